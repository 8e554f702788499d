"""Train the network of numpy_fnn.py with mini-batch SGD, and save a picture of the run."""

import math
import sys
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
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

ADVICE = "try another learning rate; if you changed an operator, run python -m tests.check"


@dataclass
class History:
    """The losses of a training run, one per step, and its accuracies, one per epoch."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)  # on the test set
    train_accuracies: list[float] = field(default_factory=list)  # on up to 10,000 training images


def as_arrays(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, ...) and labels (N,) of two arrays, or of a sequence of N pairs.

    Raises ValueError for an empty data set, integer images, or labels of another shape.
    """
    if len(dataset) == 2 and hasattr(dataset[0], "shape"):
        images, labels = map(np.asarray, dataset)
    else:
        pairs = [dataset[i] for i in range(len(dataset))]
        images, labels = map(np.stack, zip(*pairs, strict=True))
    if len(images) == 0:
        raise ValueError("the data set must have at least 1 image, got 0")
    if images.dtype.kind != "f":
        raise ValueError(f"images must be floats, as load_dataset returns, got {images.dtype}")
    check_shape("labels", labels, (len(images),))
    return images, labels


def mini_batch(
    dataset: Any, batch_size: int = BATCH_SIZE, rng: np.random.Generator | int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield shuffled mini-batches (images, labels) (8.1); the last one may be smaller.

    `dataset` is two arrays, float images (N, ...) and labels (N,), or a sequence of N pairs
    (image, label), such as a torchvision data set. `rng`, a generator or a seed, draws the
    order. If it is None, every call draws another order.
    """
    images, labels = as_arrays(dataset)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = np.random.default_rng(rng).permutation(len(images))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        yield images[batch], labels[batch]


def evaluate(model: NumpyModel, images: Any, labels: Any) -> float:
    """Return the accuracy: the fraction of images (N, ...) whose predicted class is their label."""
    predicted = model.forward(images).argmax(axis=1)
    return float(np.mean(predicted == np.asarray(labels)))


@np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite raises an error
def train(
    model: NumpyModel,
    train_set: Any,
    test_set: Any,
    epoch_number: int = EPOCH_NUMBER,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    rng: np.random.Generator | int | None = None,
    history: History | None = None,
) -> History:
    """Train `model` in place, print the test accuracy after each epoch, and return the history.

    Both sets and `rng` are as for `mini_batch`. If the loss is not finite, FloatingPointError is
    raised. After any exception, the `history` that you passed has the results up to then.
    """
    history = history or History()
    train_images, train_labels = as_arrays(train_set)
    test_images, test_labels = as_arrays(test_set)
    sample = np.random.default_rng(0).permutation(len(train_images))[:10000]
    rng = np.random.default_rng(rng)
    learning_rate = float(learning_rate)  # a NumPy float would turn float32 weights into float64
    numpy_loss = NumpyLoss()

    for epoch in range(epoch_number):
        for x, labels in mini_batch((train_images, train_labels), batch_size, rng):
            y_pred = model.forward(x)
            loss = numpy_loss.get_loss(y_pred, one_hot(labels))
            if not math.isfinite(loss):
                step = f"step {len(history.losses)} (epoch {epoch})"
                raise FloatingPointError(f"the loss is not finite at {step}; {ADVICE}")
            history.losses.append(loss)
            model.backward(numpy_loss.backward(), needs_input_grad=False)
            model.optimize(learning_rate)
        history.accuracies.append(evaluate(model, test_images, test_labels))
        history.train_accuracies.append(evaluate(model, train_images[sample], train_labels[sample]))
        print(f"[{epoch}] Accuracy: {history.accuracies[-1]:.4f}", flush=True)
    return history


def parse_options(arguments: Sequence[str] | None) -> Namespace:
    """Return the options of the command line, whose defaults are the constants above."""
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--epoch-number", type=int, default=EPOCH_NUMBER, metavar="N", help="number of epochs")
    add("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help="images in a mini-batch")
    add("--learning-rate", type=float, default=LEARNING_RATE, metavar="RATE", help="step size")
    add("--seed", type=int, default=SEED, metavar="N", help="seed of weights and shuffling")
    add("--dataset", choices=DATASETS, default=SUPPRESS, help=f"data set (default: {DATASET})")
    add("--data-dir", default=DATA_DIR, metavar="DIR", help="folder of the data sets")
    add("--plot", type=picture_path, default=PLOT, metavar="FILE", help="picture file to save")
    options = parser.parse_args(arguments)
    for name, least in (("epoch_number", 1), ("batch_size", 1), ("seed", 0)):
        value = getattr(options, name)
        if value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if not 0 < options.learning_rate < math.inf:
        parser.error(f"--learning-rate must be positive and finite, got {options.learning_rate}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Load the data, train, and save the picture; an error ends the program with a sentence."""
    options = parse_options(arguments)
    hyperparameters = (options.epoch_number, options.batch_size, options.learning_rate)
    name = getattr(options, "dataset", DATASET)
    rng = np.random.default_rng(options.seed)
    model = NumpyModel(rng)
    history = History()
    try:
        data = load_dataset(name, options.data_dir, fallback="dataset" not in options)
        sizes = f"{len(data.train[1])} training and {len(data.test[1])} test images"
        print(f"{data.name}: {sizes} from {data.source}", flush=True)
        try:
            train(model, data.train, data.test, *hyperparameters, rng, history)
        finally:  # after an interruption or a divergence, too
            if history.losses:
                done = len(history.accuracies)
                title = "{}: {} of {} epochs, batch size {}, learning rate {}, seed {}"
                title = title.format(data.name, done, *hyperparameters, options.seed)
                curves = (history.losses, history.accuracies, history.train_accuracies)
                plot_curve(*curves, model, data.test, title, options.plot)
                print(f"The loss curve is in {options.plot}")
    except (DataError, FloatingPointError, OSError) as error:
        sys.exit(f"{error}.")
    except KeyboardInterrupt:
        sys.exit(f"Interrupted after {len(history.losses)} steps.")
    if history.accuracies[-1] < 0.5:
        print(f"The test accuracy is only {history.accuracies[-1]:.4f}: {ADVICE}.", file=sys.stderr)


if __name__ == "__main__":
    main()
