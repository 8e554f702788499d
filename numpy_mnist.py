"""Train the network of numpy_fnn.py with mini-batch SGD: python numpy_mnist.py [--help]."""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from numpy_fnn import Array, NumpyLoss, NumpyModel
from utils import DATASETS, DataError, Dataset, DownloadError, initial_weights, load_dataset, one_hot, plot_history

EPOCH_NUMBER = 3
BATCH_SIZE = 128
LEARNING_RATE = 0.1
SEED = 0
DATASET = "MNIST"  # or FashionMNIST, KMNIST, digits
DATA_DIR = "data"
PLOT = "loss.png"


@dataclass
class History:
    """What a training run leaves: the loss of every step; the test accuracy and training seconds of every epoch."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def mini_batch(
    dataset: Any, batch_size: int = 128, rng: np.random.Generator | None = None
) -> Iterator[tuple[Array, Array]]:
    """Return an iterator over shuffled batches (images, labels), the last one shorter where the size does not divide.

    `dataset` is either two arrays, images (N, ...) and labels (N,), the fast form, or a sequence of N pairs (image,
    label), such as a torchvision data set. `rng` draws the order; without one, each call draws another. Raises
    ValueError for an empty data set, unequal numbers of images and labels, or a batch size below 1.
    """
    arrays = len(dataset) == 2 and isinstance(dataset[0], np.ndarray)
    size = len(dataset[0]) if arrays else len(dataset)
    if arrays and len(dataset[1]) != size:
        raise ValueError(f"the data set has {size} images but {len(dataset[1])} labels; one label an image is wanted")
    if size < 1 or batch_size < 1:
        raise ValueError(f"the data set has {size} images and batch_size is {batch_size}; at least 1 of each is wanted")

    def gather(batch: Array) -> tuple[Array, Array]:
        if arrays:
            return dataset[0][batch], dataset[1][batch]
        images, labels = zip(*(dataset[i] for i in batch), strict=True)
        return np.stack(images), np.array(labels)

    order = (rng or np.random.default_rng()).permutation(size)
    return (gather(order[start : start + batch_size]) for start in range(0, size, batch_size))


def new_model(rng: np.random.Generator) -> NumpyModel:
    """Return a model whose initial weights are drawn from `rng`."""
    model = NumpyModel()
    model.W1, model.W2, model.W3 = initial_weights(rng, *NumpyModel.SHAPES.values())
    return model


def evaluate(model: NumpyModel, images: Array, labels: Array) -> float:
    """Return the accuracy, the fraction of `images` (N, 28, 28) whose most probable class is their label (N,)."""
    return float(np.mean(model.forward(images).argmax(axis=1) == labels))


@np.errstate(over="ignore", invalid="ignore")  # the loss tells, in one sentence
def train(
    model: NumpyModel,
    train_set: Any,
    test_set: tuple[Array, Array],
    epoch_number: int = EPOCH_NUMBER,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    rng: np.random.Generator | None = None,
    history: History | None = None,
) -> History:
    """Train `model` in place, print the accuracy on `test_set` (images, labels) after each epoch, return the history.

    `train_set` and `rng` are mini_batch's. A history given by the caller is filled as training goes, and so keeps what
    was done when an exception ends it: FloatingPointError at the first step whose loss is not finite.
    """
    history = history or History()
    numpy_loss = NumpyLoss()
    for epoch in range(epoch_number):
        start = time.perf_counter()
        for step, (x, labels) in enumerate(mini_batch(train_set, batch_size, rng)):
            y_pred = model.forward(x)
            loss = numpy_loss.get_loss(y_pred, one_hot(labels))
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss} in epoch {epoch}, step {step}, at learning rate {learning_rate}; "
                    f"try a lower learning rate, such as {learning_rate / 10:g}"
                )
            history.losses.append(loss)
            model.backward(numpy_loss.backward(), needs_input_grad=False)
            model.optimize(learning_rate)
        history.seconds.append(time.perf_counter() - start)
        history.accuracies.append(evaluate(model, *test_set))
        print(f"[{epoch}] Accuracy: {history.accuracies[-1]:.4f}", flush=True)
    return history


def number(kind: type[int] | type[float], above: int, wanted: str, text: str) -> float:
    """Return the finite number above `above` that `text` says; an error to argparse, saying what is wanted, if none."""
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not above < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, whose defaults are the constants above; a bad one is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description="Train a three-layer network with mini-batch SGD, in NumPy, and plot its loss.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    positive_int = partial(number, int, 0, "a positive whole number")
    positive_float = partial(number, float, 0, "a positive finite number")
    natural = partial(number, int, -1, "a whole number of 0 or more")
    for option, default, kind, text in (
        ("--epoch-number", EPOCH_NUMBER, positive_int, "passes over the training data"),
        ("--batch-size", BATCH_SIZE, positive_int, "images a step"),
        ("--learning-rate", LEARNING_RATE, positive_float, "factor of the gradient in a step"),
        ("--seed", SEED, natural, "of the initial weights and the shuffles"),
        ("--data-dir", DATA_DIR, str, "folder of the data sets, into which missing files are downloaded"),
        ("--plot", PLOT, str, "where to save the picture of the loss, as .png, .pdf or .svg"),
    ):
        # argparse checks a default that is a string like the command line, and so catches an edited constant, too.
        parser.add_argument(option, default=str(default), type=kind, help=text)
    parser.add_argument("--dataset", default=argparse.SUPPRESS, help=f"{', '.join(DATASETS)} (default: {DATASET})")
    options = parser.parse_args(arguments)
    options.asked_by_name = "dataset" in options
    options.dataset = options.dataset if options.asked_by_name else DATASET
    if options.dataset not in DATASETS:
        parser.error(f"argument --dataset: {options.dataset!r} is not one of {', '.join(DATASETS)}")
    return options


def find_dataset(name: str, data_dir: str, asked_by_name: bool) -> Dataset:
    """Return the data set, or digits where its download fails and it was not asked for by name; raises DataError."""
    try:
        return load_dataset(name, data_dir)
    except DownloadError as error:
        if asked_by_name:
            raise
        print(f"{error}; going on with digits.", file=sys.stderr)
        return load_dataset("digits", data_dir)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the data, train, save the picture, and return the exit code."""
    options = parse_options(arguments)
    sgd = (options.epoch_number, options.batch_size, options.learning_rate)
    rng, history, code = np.random.default_rng(options.seed), History(), 0
    try:
        name, train_set, test_set, source = find_dataset(options.dataset, options.data_dir, options.asked_by_name)
        print(f"{name}: {len(train_set[1])} training and {len(test_set[1])} test images from {source}", flush=True)
        train(new_model(rng), train_set, test_set, *sgd, rng, history)
    except (DataError, FloatingPointError) as error:
        code = 1
        print(f"{error}.", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        print(f"Interrupted after {len(history.losses)} steps.", file=sys.stderr)
    if history.losses:
        title = "{}: {} epochs, batch size {}, learning rate {}, seed {}".format(name, *sgd, options.seed)
        try:
            plot_history(history.losses, history.accuracies, title, options.plot)
        except (OSError, ValueError, ImportError) as error:
            code = code or 1
            print(f"The loss curve could not be saved to {options.plot} ({error}).", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
