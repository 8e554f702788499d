"""Train the network of numpy_fnn.py with mini-batch SGD: python numpy_mnist.py [--help]."""

import argparse
import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from numpy_fnn import Array, NumpyLoss, NumpyModel, check_shape
from utils import DATASETS, DataError, Dataset, DownloadError, initial_weights, load_dataset, one_hot, plot_curve, show

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
    ValueError for an empty data set, labels that are not (N,), or a batch size below 1.
    """
    if len(dataset) == 2 and hasattr(dataset[0], "shape"):
        images, labels = (np.asarray(array) for array in dataset)
    else:
        pairs = [dataset[i] for i in range(len(dataset))]
        images = np.array([np.asarray(image) for image, _ in pairs])
        labels = np.array([label for _, label in pairs])
    check_shape("labels", labels, (len(images),))
    if len(images) < 1 or batch_size < 1:
        raise ValueError(f"mini_batch has {len(images)} images and batch_size {batch_size}, but 1 or more are wanted")
    order = (rng or np.random.default_rng()).permutation(len(images))
    batches = np.split(order, range(batch_size, len(order), batch_size))
    return ((images.take(batch, axis=0), labels[batch]) for batch in batches)


def new_model(rng: np.random.Generator) -> NumpyModel:
    """Return a model whose initial weights are drawn from `rng`."""
    model = NumpyModel()
    model.W1, model.W2, model.W3 = initial_weights(rng, *NumpyModel.SHAPES.values())
    return model


def evaluate(model: NumpyModel, images: Array, labels: Array) -> float:
    """Return the accuracy, the fraction of `images` (N, 28, 28) whose most probable class is their label (N,).

    It is NaN where a log-probability is not finite.
    """
    check_shape("labels", labels, (len(images),))
    y_pred = model.forward(images)
    return float(np.mean(y_pred.argmax(axis=1) == labels)) if np.isfinite(y_pred).all() else math.nan


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
    was done when an exception ends it: FloatingPointError at the first step whose loss is not finite, or after an epoch
    whose model gives no finite log-probabilities.
    """
    history = history or History()
    numpy_loss = NumpyLoss()
    for epoch in range(epoch_number):
        start = time.perf_counter()
        for x, labels in mini_batch(train_set, batch_size, rng):
            y_pred = model.forward(x)
            loss = numpy_loss.get_loss(y_pred, one_hot(labels))
            if not math.isfinite(loss):
                break
            history.losses.append(loss)
            model.backward(numpy_loss.backward(), needs_input_grad=False)
            model.optimize(learning_rate)
        seconds = time.perf_counter() - start
        accuracy = evaluate(model, *test_set)
        if not math.isfinite(loss + accuracy):  # the last step of an epoch shows in the accuracy first
            where = f"in epoch {epoch}, step {len(history.losses)}, at learning rate {learning_rate}"
            advice = "try a lower one, or run the tests if you edited an operator"
            raise FloatingPointError(f"the loss is not finite {where}; {advice}")
        history.accuracies.append(accuracy)
        history.seconds.append(seconds)
        print(f"[{epoch}] Accuracy: {accuracy:.4f}", flush=True)
    return history


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, whose defaults are the constants above; a bad one is one line on stderr and exit code 2.

    The constant DATASET is left to load_dataset to check.
    """
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,  # it would stand above every error
        description="Train a three-layer network with mini-batch SGD, in NumPy, and plot its loss.",
    )
    for option, default, kind, text in (
        ("--epoch-number", EPOCH_NUMBER, int, "passes over the training data"),
        ("--batch-size", BATCH_SIZE, int, "images a step"),
        ("--learning-rate", LEARNING_RATE, float, "factor of the gradient in a step"),
        ("--seed", SEED, int, "seed of weights and shuffles"),
        ("--data-dir", DATA_DIR, str, "folder of the data sets, into which missing files are downloaded"),
        ("--plot", PLOT, str, "where to save the picture of the loss, such as a .png, .pdf or .svg"),
    ):
        # argparse checks a default that is a string like the command line, and so catches an edited constant, too.
        parser.add_argument(option, default=str(default), type=kind, help=f"{text} (default: %(default)s)")
    parser.add_argument("--dataset", choices=DATASETS, help=f"data set to learn (default: {DATASET})")
    options = parser.parse_args(arguments)
    for name in ("epoch_number", "batch_size", "learning_rate"):
        if not 0 < (value := getattr(options, name)) < math.inf:
            parser.error(f"{name} is {value}, but a positive finite number is wanted")
    if options.seed < 0:
        parser.error(f"seed is {options.seed}, but 0 or more is wanted")
    return options


def find_dataset(options: argparse.Namespace) -> Dataset:
    """Return the data set asked for by name, else DATASET, or digits where its download fails; raises DataError."""
    try:
        return load_dataset(options.dataset or DATASET, options.data_dir)
    except DownloadError as error:
        if options.dataset:
            raise
        print(f"{error}; going on with digits.", file=sys.stderr)
        return load_dataset("digits", options.data_dir)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the data, train, save the picture, and return the exit code."""
    options = parse_options(arguments)
    sgd = (options.epoch_number, options.batch_size, options.learning_rate)
    rng, history, code = np.random.default_rng(options.seed), History(), 0
    try:
        name, train_set, test_set, source = find_dataset(options)
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
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C must not cost the curve
        try:
            replaced = ", in place of the picture that was there" if Path(options.plot).exists() else ""
            plot_curve(history.losses, history.accuracies, title, options.plot)
        except Exception as error:  # from the file system, or from matplotlib for its many formats
            code = code or 1
            print(f"The loss curve could not be saved to {options.plot!r} ({error}).", file=sys.stderr)
        else:
            print(f"The loss curve is in {options.plot}{replaced}", flush=True)
        finally:
            signal.signal(signal.SIGINT, handler)
    if code == 0:
        with contextlib.suppress(KeyboardInterrupt):  # as good a way as any to close the window
            show()
    return code


if __name__ == "__main__":
    sys.exit(main())
