"""Data sets, one-hot targets, initial weights and the picture of a training run."""

import math
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DATASETS = ("MNIST", "FashionMNIST", "KMNIST", "digits")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
WINDOW = 50  # steps of the moving average


class DataError(Exception):
    """A data set that can't be had; the message is a sentence for the person at the keyboard."""


class DownloadError(DataError):
    """A data set that is not on disk and can't be downloaded."""


class Dataset(NamedTuple):
    """A data set in memory: `train` and `test` are (images (N, 28, 28) float32 normalized, labels (N,) uint8)."""

    name: str
    train: tuple[Array, Array]
    test: tuple[Array, Array]
    source: str


def load_dataset(name: str, data_dir: str) -> Dataset:
    """Return one of DATASETS, read from data_dir/name/raw and downloaded to there first where a file is missing.

    Raises
    ------
    DownloadError
        Where files are missing and the download fails.
    DataError
        Where there is no such data set, a file is damaged, or scikit-learn, which brings the digits, is not installed.
    """
    if name not in DATASETS:
        raise DataError(f"the data set {name!r} is not one of {', '.join(DATASETS)}")
    if name == "digits":
        return load_digits()
    raw = Path(data_dir, name, "raw")
    paths = [raw / file for file in FILES]
    try:
        complete = all(path.exists() for path in paths)
    except OSError as error:
        raise damaged(raw, f"it can't be read ({error.strerror})") from error
    if not complete:
        download(name, raw)
    return Dataset(name, read_images(*paths[:2]), read_images(*paths[2:]), str(raw))


def damaged(path: Path, fault: str) -> DataError:
    """Return the error for a file that is there but is not what it should be."""
    return DataError(f"{path} can't be used: {fault}; move it away and run again to download it anew")


def read_images(images_path: Path, labels_path: Path) -> tuple[Array, Array]:
    """Return the normalized images (N, 28, 28) and the labels (N,) of two IDX files; raises DataError."""
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28):
        raise damaged(images_path, f"its images are {images.shape[1:]}, not (28, 28)")
    if len(images) != len(labels):
        raise damaged(labels_path, f"it has {len(labels)} labels for {len(images)} images in {images_path.name}")
    if labels.max() > 9:
        raise damaged(labels_path, f"it has a label {labels.max()}, not 0 to 9")
    return normalize(images), labels


def read_idx(path: Path, ndim: int) -> Array:
    """Return the uint8 array of an IDX file: two zero bytes, 8 for uint8, ndim, ndim big-endian uint32 sizes, the data.

    Raises DataError, naming the file, where it can't be read, is of another kind, empty or of the wrong length.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise damaged(path, f"it can't be read ({error.strerror or error})") from error
    header = 4 + 4 * ndim
    if len(content) < header or content[:4].tolist() != [0, 0, 8, ndim]:
        raise damaged(path, f"it is no IDX file of bytes in {ndim} dimensions (still compressed?)")
    shape = tuple(content[4:header].view(">u4").tolist())
    if len(content) - header != math.prod(shape) or len(content) == header:
        raise damaged(path, f"its header promises {shape} bytes, but {len(content) - header} follow it")
    return content[header:].reshape(shape)


def download(name: str, raw: Path) -> None:
    """Put the missing files of a data set into `raw`, downloaded and verified by torchvision.

    It works in a folder of its own, so that neither a failure nor Ctrl-C leaves half a file, nor is a file replaced.
    Raises DownloadError, which says how to place the files by hand.
    """
    print(f"{raw.absolute()} lacks files of {name}: downloading them with torchvision", file=sys.stderr)
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(10)  # seconds; torchvision sets none, and a silent firewall would hold for minutes
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=raw, prefix="download-") as folder:
            from torchvision import datasets  # 2.5 s and 400 MB, which a run whose files are in place does not pay

            getattr(datasets, name)(folder, download=True)
            for file in FILES:
                if not (raw / file).exists():
                    Path(folder, name, "raw", file).rename(raw / file)
    except Exception as error:  # whatever it is, the way out for the user is the same
        raise DownloadError(
            f"{name} could not be downloaded ({' '.join(str(error).split())}); to use it, put its four files "
            f"{', '.join(FILES)}, uncompressed, into {raw}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def load_digits() -> Dataset:
    """Return scikit-learn's 1,797 digits (8, 8) as images of MNIST's kind: 37,500 to train on, 297 to test.

    Each pixel is enlarged 3×3 and the image framed with two pixels. The first 1,500 digits train, each in all 25 shifts
    of −2 to 2 pixels; the last 297, by other writers, test.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise DataError("the digits data set needs scikit-learn: python -m pip install scikit-learn") from error
    digits, labels = datasets.load_digits(return_X_y=True)
    images = digits.reshape(-1, 8, 8).repeat(3, axis=1).repeat(3, axis=2)
    images = normalize(np.pad(images * (255 / 16), ((0, 0), (2, 2), (2, 2))))
    labels = labels.astype(np.uint8)
    # The frame is as wide as the shifts, so that what np.roll carries around the edge is background.
    shifts = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    train_images = np.concatenate([np.roll(images[:1500], shift, axis=(1, 2)) for shift in shifts])
    train_labels = np.tile(labels[:1500], len(shifts))
    return Dataset("digits", (train_images, train_labels), (images[1500:], labels[1500:]), "scikit-learn")


def normalize(images: Array) -> Array:
    """Return (p / 255 − 0.1307) / 0.3081, float32, for pixels p from 0 to 255, to the last bit as torchvision does."""
    pixels = images.astype(np.float32)
    pixels /= 255
    pixels -= 0.1307
    pixels /= 0.3081
    return pixels


def one_hot(labels: Array, classes: int = 10) -> Array:
    """Return targets (N, classes), float32, 1 at the label and 0 elsewhere, for labels (N,) from 0 to classes − 1."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {labels.shape}, but (N,) is wanted")
    targets = labels[:, None] == np.arange(classes)
    if np.count_nonzero(targets) != len(labels):
        raise ValueError(f"labels are {labels.min()} to {labels.max()}, but integers 0 to {classes - 1} are wanted")
    return targets.astype(np.float32)


def initial_weights(rng: np.random.Generator, *shapes: tuple[int, int]) -> list[Array]:
    """Return a float32 weight for each shape (fan_in, fan_out), uniform in ±1/√fan_in as in torch.nn.Linear."""
    return [rng.uniform(-(shape[0] ** -0.5), shape[0] ** -0.5, shape).astype(np.float32) for shape in shapes]


def moving_average(values: Sequence[float], window: int = WINDOW) -> Array:
    """Return for each value the mean of the `window` values around it, or of those that there are at the ends."""
    weights = np.ones(min(window, len(values)))
    return np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same")


def plot_curve(losses: Sequence[float], accuracies: Sequence[float], title: str, path: str) -> None:
    """Save a picture of the loss of every step, its moving average, and the test accuracy of every epoch."""
    import matplotlib.pyplot as plt  # 0.4 s: a run that ends in an error does not wait for it

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=(2, 1), layout="constrained")
    figure.suptitle(title)
    left.plot(losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="each step")
    left.plot(moving_average(losses), color="tab:blue", label=f"mean of {min(WINDOW, len(losses))} steps")
    left.set(xlabel="step (one mini-batch)", ylabel="training loss (nats per image)", ylim=(0, None))
    left.legend()
    right.plot(accuracies, color="tab:orange", marker="o")
    right.set(xlabel="epoch", ylabel="test accuracy (fraction)")
    right.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=120, format=Path(path).suffix[1:])  # without a format, a path "loss" would mean loss.png


def show() -> None:
    """Show the picture just saved in a window, where there is a display, and wait until it is closed."""
    import matplotlib.pyplot as plt

    if plt.gcf().canvas.required_interactive_framework:
        plt.show()
