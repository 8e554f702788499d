"""Train the network of numpy_fnn.py with mini-batch SGD: python numpy_mnist.py [--help]."""

import argparse
import atexit
import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from numpy_fnn import NumpyLoss, NumpyModel, check_shape
from utils import DATASETS, DataError, load_dataset, one_hot, picture_file, plot_curve, reason

EPOCH_NUMBER = 3
BATCH_SIZE = 128
LEARNING_RATE = 0.1
SEED = 0
DATASET = "MNIST"  # or FashionMNIST, KMNIST, digits
DATA_DIR = "data"
PLOT = "loss.png"

CHECK = "after editing an operator, run python -m tests.gradient_check"


@dataclass
class History:
    """What a training run leaves: the loss of every step; of every epoch the accuracies and the training seconds."""

    losses: list[float] = field(default_factory=list, repr=False)
    accuracies: list[float] = field(default_factory=list)  # on the test set
    train_accuracies: list[float] = field(
        default_factory=list, repr=False
    )  # on up to 10,000 training images
    seconds: list[float] = field(default_factory=list, repr=False)


def as_arrays(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, ...) and labels (N,) of two arrays, the fast form, or of a sequence of N pairs of them.

    Raises ValueError for an empty data set, or labels of another shape.
    """
    if len(dataset) == 2 and hasattr(dataset[0], "shape"):
        images, labels = np.asarray(dataset[0]), np.asarray(dataset[1])
    else:
        pairs = [dataset[i] for i in range(len(dataset))]
        images, labels = (
            np.array([np.asarray(image) for image, _ in pairs]),
            np.array([label for _, label in pairs]),
        )
    if len(images) == 0:
        raise ValueError("the data set has 0 images, expected 1 or more")
    check_shape("labels", labels, (len(images),))
    return images, labels


def mini_batch(
    dataset: Any, batch_size: int = BATCH_SIZE, rng: np.random.Generator | int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield shuffled batches (images, labels) (8.1), the last one shorter where the size does not divide.

    `dataset` is either two arrays, images (N, ...) and labels (N,), the fast form, or a sequence of N pairs (image,
    label), such as a torchvision data set. `rng`, a generator or a seed, draws the order; without one, each call draws
    another. Raises ValueError, at the first batch, for an empty data set, labels not (N,), or a batch size below 1.
    """
    images, labels = as_arrays(dataset)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
    order = np.random.default_rng(rng).permutation(len(images))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        yield images[batch], labels[batch]


def evaluate(model: NumpyModel, images: Any, labels: Any) -> float:
    """Return the accuracy, the fraction of `images` (N, ...) whose most probable class is their label (N,)."""
    y_pred, labels = model.forward(images), np.asarray(labels)
    check_shape("labels", labels, (len(y_pred),))
    return float(np.mean(y_pred.argmax(axis=1) == labels))


def check_hyperparameters(
    epoch_number: int, batch_size: int, learning_rate: float, seed: int = 0
) -> None:
    """Raise ValueError unless the hyperparameters are of the right kind and neither too small nor infinite."""
    for name, value, least in (
        ("epoch_number", epoch_number, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} is {value!r}, expected an integer of {least} or more")
    if not isinstance(learning_rate, Real) or not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate!r}, expected a positive finite number")


@np.errstate(over="ignore", invalid="ignore")  # the loss tells, in one sentence
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
    """Train `model` in place, print the accuracy on `test_set` after each epoch, return the history.

    Both sets and `rng` are what mini_batch takes, the images float; pairs are turned into arrays once. A history given
    by the caller is filled as training goes, and so keeps what was done when an exception ends it: FloatingPointError
    where the loss is not finite, or would not be after an epoch's last step. Raises ValueError, before the first step,
    for a hyperparameter or a data set that is not what it should be.
    """
    check_hyperparameters(epoch_number, batch_size, learning_rate)
    history, rng, numpy_loss = history or History(), np.random.default_rng(rng), NumpyLoss()
    (train_images, train_labels), (test_images, test_labels) = (
        as_arrays(train_set),
        as_arrays(test_set),
    )
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if images.dtype.kind != "f":
            raise ValueError(
                f"images are {images.dtype}, expected floats, normalized as load_dataset's are"
            )
        numpy_loss.get_loss(
            model.forward(images[:1]), one_hot(labels)[:1]
        )  # raises where shapes or labels don't fit
    advice = f"at learning rate {learning_rate}; try a lower one or a larger batch, or, {CHECK}"
    for epoch in range(epoch_number):
        start = time.perf_counter()
        for x, labels in mini_batch((train_images, train_labels), batch_size, rng):
            y_pred = model.forward(x)
            loss = numpy_loss.get_loss(y_pred, one_hot(labels))
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is not finite at step {len(history.losses)} (epoch {epoch}) {advice}"
                )
            history.losses.append(loss)
            model.backward(numpy_loss.backward(), needs_input_grad=False)
            model.optimize(learning_rate)
        seconds = time.perf_counter() - start
        if not np.isfinite(
            model.forward(x)
        ).all():  # what the last step did, no loss of this epoch shows
            raise FloatingPointError(f"the loss is not finite after epoch {epoch} {advice}")
        history.accuracies.append(evaluate(model, test_images, test_labels))
        history.train_accuracies.append(evaluate(model, train_images[:10000], train_labels[:10000]))
        history.seconds.append(seconds)
        print(f"[{epoch}] Accuracy: {history.accuracies[-1]:.4f}", flush=True)
    return history


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, whose defaults are the constants above; a bad one ends in a sentence and exit code 2."""
    parser = argparse.ArgumentParser(usage="%(prog)s [options]", description=__doc__)
    for name, kind, default, words in (
        ("--epoch-number", int, EPOCH_NUMBER, "passes over the training data"),
        ("--batch-size", int, BATCH_SIZE, "images a step"),
        ("--learning-rate", float, LEARNING_RATE, "factor of the gradient"),
        ("--seed", int, SEED, "seed of weights and shuffles"),
        ("--data-dir", str, DATA_DIR, "folder of the data sets, also for downloads"),
        ("--plot", str, PLOT, "where to save the picture, such as a .png"),
    ):
        parser.add_argument(
            name, type=kind, default=default, help=f"{words} (default: %(default)s)"
        )
    parser.add_argument("--dataset", choices=DATASETS, help=f"what to learn (default: {DATASET})")
    options = parser.parse_args(arguments)
    try:
        check_hyperparameters(
            options.epoch_number, options.batch_size, options.learning_rate, options.seed
        )
        picture_file(options.plot)
    except (TypeError, ValueError, OSError) as error:
        parser.error(str(error))
    return options


def save_picture(
    options: argparse.Namespace, name: str, history: History, model: NumpyModel, test_set: Any
) -> bool:
    """Save the picture of a run, say where it is or why it could not be saved, and return whether it was."""
    epochs, of = len(history.accuracies), options.epoch_number
    title = f"{name}: {epochs} of {of} epochs, batch size {options.batch_size}, "
    title += f"learning rate {options.learning_rate}, seed {options.seed}"
    curves = (history.losses, history.accuracies, history.train_accuracies)
    try:
        plot_curve(*curves, model, test_set, title, options.plot, show=epochs == of)
    except Exception as error:  # from the file system, or from matplotlib for its many formats
        print(
            f"The loss curve could not be saved to {options.plot} ({reason(error)}).",
            file=sys.stderr,
        )
        return False
    print(f"The loss curve is in {options.plot}", flush=True)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the data, train, save the picture, and return the exit code."""
    options = parse_options(arguments)
    rng, history, code = np.random.default_rng(options.seed), History(), 1
    model = NumpyModel(rng)
    try:
        data = load_dataset(
            options.dataset or DATASET, options.data_dir, fallback=options.dataset is None
        )
        sizes = f"{len(data.train[1])} training and {len(data.test[1])} test images"
        print(f"{data.name}: {sizes} from {data.source}", flush=True)
        hyperparameters = (options.epoch_number, options.batch_size, options.learning_rate)
        try:
            train(model, data.train, data.test, *hyperparameters, rng, history)
            code = 0
        finally:  # after a divergence and Ctrl-C, too
            if history.losses and not save_picture(options, data.name, history, model, data.test):
                code = 1
        if history.accuracies[-1] < 0.5:
            learned = (
                f"Hardly anything was learned: the test accuracy is {history.accuracies[-1]:.4f}"
            )
            print(
                f"{learned}; try another learning rate or batch size, more epochs, or, {CHECK}.",
                file=sys.stderr,
            )
    except (DataError, FloatingPointError, MemoryError) as error:
        print(f"{reason(error)}.", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"Interrupted after {len(history.losses)} steps.", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # nobody reads on, as after `| head -2`
        code = 1
    return code


if __name__ == "__main__":
    with contextlib.suppress(AttributeError):  # in a notebook or an IDE
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names that it can't print
    atexit.register(
        signal.signal, signal.SIGINT, signal.SIG_IGN
    )  # the run is over: Ctrl-C is no failure any more
    sys.exit(main())
