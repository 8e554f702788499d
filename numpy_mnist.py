"""Train the network of numpy_fnn.py with mini-batch SGD: python numpy_mnist.py [--help]."""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from numpy_fnn import NumpyLoss, NumpyModel, check_shape
from utils import DATASETS, DataError, load_dataset, one_hot, picture_path, plot_curve

EPOCH_NUMBER = 3
BATCH_SIZE = 128
LEARNING_RATE = 0.1
SEED = 0
DATASET = "MNIST"  # or FashionMNIST, KMNIST, digits
DATA_DIR = "data"
PLOT = "loss.png"

ADVICE = "try a lower learning rate or a larger batch, or, after editing an operator, python -m tests.gradient_check"


@dataclass
class History:
    """What a training run leaves: the loss of every step; of every epoch the accuracies and the training seconds."""

    losses: list[float] = field(default_factory=list, repr=False)
    accuracies: list[float] = field(default_factory=list)  # on the test set
    train_accuracies: list[float] = field(default_factory=list, repr=False)  # on the first 10,000 training images
    seconds: list[float] = field(default_factory=list, repr=False)


def as_arrays(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, ...) and labels (N,) of two arrays, the fast form, or of a sequence of N pairs of them."""
    if len(dataset) == 2 and hasattr(dataset[0], "shape"):
        images, labels = dataset
    else:
        pairs = [dataset[i] for i in range(len(dataset))]
        images, labels = [np.asarray(image) for image, _ in pairs], [label for _, label in pairs]
    return np.asarray(images), np.asarray(labels)


def mini_batch(
    dataset: Any, batch_size: int = 128, rng: np.random.Generator | int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield shuffled batches (images, labels) (8.1), the last one shorter where the size does not divide.

    `dataset` is either two arrays, images (N, ...) and labels (N,), the fast form, or a sequence of N pairs (image,
    label), such as a torchvision data set. `rng`, a generator or a seed, draws the order; without one, each call draws
    another. Raises ValueError, at the first batch, for an empty data set, labels not (N,), or a batch size below 1.
    """
    images, labels = as_arrays(dataset)
    check_shape("labels", labels, (len(images),))
    if len(images) < 1 or batch_size < 1:
        raise ValueError(f"mini_batch has {len(images)} images and batch_size {batch_size}, expected 1 or more of each")
    order = np.random.default_rng(rng).permutation(len(images))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        yield images[batch], labels[batch]


def evaluate(model: NumpyModel, images: Any, labels: Any) -> float:
    """Return the accuracy, the fraction of `images` (N, ...) whose most probable class is their label (N,)."""
    return float(np.mean(model.forward(images).argmax(axis=1) == np.asarray(labels)))


@np.errstate(over="ignore", invalid="ignore")  # the loss tells, in one sentence
def train(
    model: NumpyModel,
    train_set: Any,
    test_set: tuple[Any, Any],
    epoch_number: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    rng: np.random.Generator | int | None = None,
    history: History | None = None,
) -> History:
    """Train `model` in place, print the accuracy on `test_set` (images, labels) after each epoch, return the history.

    `train_set` and `rng` are mini_batch's; pairs are turned into arrays once. A hyperparameter left out is the constant
    above. A history given by the caller is filled as training goes, and so keeps what was done when an exception ends
    it: FloatingPointError where the loss is not finite, or would not be after an epoch's last step.
    """
    epoch_number = EPOCH_NUMBER if epoch_number is None else epoch_number
    batch_size = BATCH_SIZE if batch_size is None else batch_size
    learning_rate = LEARNING_RATE if learning_rate is None else learning_rate
    history = history or History()
    rng = np.random.default_rng(rng)
    train_images, train_labels = as_arrays(train_set)
    numpy_loss, advice = NumpyLoss(), f"at learning rate {learning_rate}; {ADVICE}"
    for epoch in range(epoch_number):
        start = time.perf_counter()
        for x, labels in mini_batch((train_images, train_labels), batch_size, rng):
            y_pred = model.forward(x)
            loss = numpy_loss.get_loss(y_pred, one_hot(labels))
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is not finite in epoch {epoch}, step {len(history.losses)}, {advice}"
                )
            history.losses.append(loss)
            model.backward(numpy_loss.backward(), needs_input_grad=False)
            model.optimize(learning_rate)
        history.seconds.append(time.perf_counter() - start)
        if not np.isfinite(model.forward(x)).all():  # what the last step did, no loss of this epoch shows
            raise FloatingPointError(f"the loss is not finite after epoch {epoch}, {advice}")
        history.accuracies.append(evaluate(model, *test_set))
        history.train_accuracies.append(evaluate(model, train_images[:10000], train_labels[:10000]))
        print(f"[{epoch}] Accuracy: {history.accuracies[-1]:.4f}", flush=True)
    return history


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, whose defaults are the constants above; a bad one ends in a sentence and exit code 2."""
    defaults_shown = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(usage="%(prog)s [options]", description=__doc__, formatter_class=defaults_shown)
    if DATASET not in DATASETS:
        parser.error(f"DATASET is {DATASET!r}, expected one of {', '.join(DATASETS)}")
    # argparse checks the type of a default that is a string, and so that of an edited constant, too.
    parser.add_argument("--epoch-number", type=int, default=str(EPOCH_NUMBER), help="passes over the training data")
    parser.add_argument("--batch-size", type=int, default=str(BATCH_SIZE), help="images a step")
    parser.add_argument("--learning-rate", type=float, default=str(LEARNING_RATE), help="factor of the gradient")
    parser.add_argument("--seed", type=int, default=str(SEED), help="seed of weights and shuffles")
    parser.add_argument(
        "--dataset", choices=DATASETS, default=argparse.SUPPRESS, help=f"what to learn (default: {DATASET})"
    )
    parser.add_argument("--data-dir", default=str(DATA_DIR), help="folder of the data sets, also for downloads")
    parser.add_argument(
        "--plot", type=picture_path, default=str(PLOT), help="where to save the picture, such as a .png"
    )
    options = parser.parse_args(arguments)
    for name in ("epoch_number", "batch_size", "learning_rate"):
        if not 0 < (value := getattr(options, name)) < math.inf:
            parser.error(f"{name} is {value}, expected a positive finite number")
    if options.seed < 0:
        parser.error(f"seed is {options.seed}, expected 0 or more")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the data, train, save the picture, and return the exit code."""
    options = parse_options(arguments)
    asked = vars(options).get("dataset")
    rng, history, code = np.random.default_rng(options.seed), History(), 0
    model = NumpyModel(rng)
    try:
        name, train_set, test_set, source = load_dataset(asked or DATASET, options.data_dir, fallback=asked is None)
        print(f"{name}: {len(train_set[1])} training and {len(test_set[1])} test images from {source}", flush=True)
        train(model, train_set, test_set, options.epoch_number, options.batch_size, options.learning_rate, rng, history)
        if len(history.losses) >= 50 and np.mean(history.losses[-50:]) >= 2.3:
            print(f"The loss is still that of guessing, ln 10 = 2.30, or more; {ADVICE}.", file=sys.stderr)
    except (DataError, FloatingPointError, MemoryError) as error:
        print(f"{error}.", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(f"Interrupted after {len(history.losses)} steps.", file=sys.stderr)
        code = 130
    if history.losses:
        epochs = len(history.accuracies)
        title = f"{name}: {epochs} epoch{'s' * (epochs != 1)}, batch size {options.batch_size}, "
        title += f"learning rate {options.learning_rate}, seed {options.seed}"
        curves = (history.losses, history.accuracies, history.train_accuracies)
        learned = (model.W1, model.forward(test_set[0]), *test_set) if code != 1 else ()  # a diverged run has NaN
        try:
            plot_curve(*curves, learned, title, options.plot, show=code == 0)
            print(f"The loss curve is in {options.plot}", flush=True)
        except Exception as error:  # from the file system, or from matplotlib for its many formats
            print(f"The loss curve could not be saved to {options.plot!r} ({error}).", file=sys.stderr)
            code = code or 1
    return code


if __name__ == "__main__":
    sys.exit(main())
