"""Data sets, one-hot targets and the picture of a training run."""

import gzip
import os
import socket
import sys
import tempfile
import zlib
from argparse import ArgumentTypeError
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DATASETS = ("MNIST", "FashionMNIST", "KMNIST", "digits")
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
WINDOW = 51  # steps of the moving average
if "inline" in os.environ.get("MPLBACKEND", "") and "IPython" not in sys.modules:
    os.environ["MPLBACKEND"] = "agg"  # Matplotlib might refuse a notebook's backend


class DataError(Exception):
    """A data set that cannot be loaded; the message is a sentence that says what to do."""


class Dataset(NamedTuple):
    """A data set: `train` and `test` are normalized float32 images (N, 28, 28) and labels (N,)."""

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    source: str


def load_dataset(name: str, data_dir: str = "data", fallback: bool = False) -> Dataset:
    """Return one of DATASETS, read from data_dir/name/raw; missing files are downloaded first.

    If the download fails and `fallback` is true, print the reason and return the digits instead.
    Raises DataError if there is no such data set, the download fails, or a file is damaged.
    """
    if name not in DATASETS:
        raise DataError(f"the data set must be one of {', '.join(DATASETS)}, got {name!r}")
    if name == "digits":
        return load_digits()
    raw = Path(data_dir, name, "raw")
    missing = [file for file in FILES if file not in find_files(raw)]
    if missing:
        try:
            download(name, raw, missing)
        except Exception as error:  # whatever it is, the user can place the files by hand
            reason = " ".join(str(error).split())
            message = f"{name} could not be downloaded ({reason}); to train on it, put "
            message += f"{', '.join(missing)}, compressed (.gz) or not, into {raw.absolute()}"
            if not fallback:
                raise DataError(message) from error
            print(f"{message}. Using the digits data set instead.", file=sys.stderr)
            return load_digits()
    paths = [find_files(raw)[file] for file in FILES]
    return Dataset(name, read_images(*paths[:2]), read_images(*paths[2:]), str(raw))


def find_files(raw: Path) -> dict[str, Path]:
    """Return the paths of the files in `raw` and in its folders, keyed by their names in FILES.

    7-Zip and Kaggle write a dot (train-images.idx3-ubyte), and mirrors add .gz.
    """
    found: dict[str, Path] = {}
    for path in [*sorted(raw.glob("*")), *sorted(raw.glob("*/*"))]:
        if path.is_file():
            found.setdefault(path.name.removesuffix(".gz").replace(".idx", "-idx"), path)
    return found


def download(name: str, raw: Path, missing: Sequence[str]) -> None:
    """Download a data set with torchvision, which verifies it, and put `missing` into `raw`."""
    print(f"{', '.join(missing)} not found in {raw}: downloading {name}", file=sys.stderr)
    from torchvision import datasets  # takes 2.5 s and 400 MB, so only if needed

    socket.setdefaulttimeout(10)  # seconds; behind a firewall, torchvision waits for minutes
    raw.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=raw) as folder:  # keeps partial files out of `raw`
        getattr(datasets, name)(folder, download=True)
        for file in missing:
            Path(folder, name, "raw", file).replace(raw / file)


def read_images(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return normalized images (N, 28, 28) and labels (N,) of two IDX files, or raise DataError."""
    images = read_idx(images_path, 28, 28)
    labels = read_idx(labels_path)
    if len(labels) != len(images) or labels.max() > 9:
        pair = f"{labels_path} and {images_path.name}"
        fault = f"{len(labels)} labels up to {labels.max()} for {len(images)} images"
        raise DataError(f"{pair} have {fault}; delete both files and run again")
    return normalize(images), labels


def read_idx(path: Path, *shape: int) -> np.ndarray:
    """Return the uint8 array (N, *shape) of an IDX file; raise DataError if it is damaged."""
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):  # compressed, whatever the file's name
            content = gzip.decompress(content)
        # The header has 2048 plus the number of axes, then the length of each axis.
        magic, count, *sizes = np.frombuffer(content, ">u4", 2 + len(shape)).tolist()
        if magic != 2049 + len(shape) or count == 0 or tuple(sizes) != shape:
            raise ValueError("not an IDX file of MNIST's images or labels")
        values = np.frombuffer(content, np.uint8, offset=8 + 4 * len(shape))
        return values.reshape(count, *shape).copy()  # a copy can be written to
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be used: {error}; delete it and run again") from error


def load_digits() -> Dataset:
    """Return scikit-learn's digits (8, 8), each pixel enlarged 3×3, in a frame of two pixels.

    The first 1,500 digits, in all 25 shifts of −2 to 2 pixels, form the training set. The last
    297, by other writers, form the test set. The shifts move only background around the edge.
    """
    from sklearn import datasets

    digits, labels = datasets.load_digits(return_X_y=True)
    images = digits.reshape(-1, 8, 8).repeat(3, axis=1).repeat(3, axis=2)
    images = normalize(np.pad(images * (255 / 16), ((0, 0), (2, 2), (2, 2))))
    labels = labels.astype(np.uint8)
    shifts = list(product(range(-2, 3), repeat=2))
    train_images = np.concatenate([np.roll(images[:1500], shift, axis=(1, 2)) for shift in shifts])
    train_labels = np.tile(labels[:1500], len(shifts))
    test = (images[1500:], labels[1500:])
    return Dataset("digits", (train_images, train_labels), test, "scikit-learn")


def normalize(images: np.ndarray) -> np.ndarray:
    """Return (p / 255 − 0.1307) / 0.3081, float32, of pixels p (0 to 255), as torchvision does."""
    pixels = images.astype(np.float32)
    pixels /= 255  # in place, which takes half the time of a single expression
    pixels -= 0.1307
    pixels /= 0.3081
    return pixels


def one_hot(labels: Any, classes: int = 10) -> np.ndarray:
    """Return targets (N, classes), float32: 1 at the label, 0 elsewhere, for labels (N,)."""
    labels = np.asarray(labels)
    targets = labels[..., None] == np.arange(classes)
    if labels.ndim != 1 or targets.sum() != len(labels):
        got = f"{labels.min()} to {labels.max()} in shape {labels.shape}"
        raise ValueError(f"labels must be integers from 0 to {classes - 1} as (N,), got {got}")
    return targets.astype(np.float32)


def moving_average(values: Sequence[float]) -> np.ndarray:
    """Return the mean of the WINDOW values around each value; the window shrinks at the ends."""
    steps = np.arange(len(values))
    half = np.minimum(np.minimum(steps, steps[::-1]), WINDOW // 2)
    sums = np.cumsum([0, *values])
    return (sums[steps + half + 1] - sums[steps - half]) / (2 * half + 1)


def picture_path(path: str) -> str:
    """Return `path` if a picture can be saved there, or raise ArgumentTypeError."""
    from matplotlib.backend_bases import FigureCanvasBase

    extensions = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in extensions:
        raise ArgumentTypeError(f"{path!r} must end in one of .{', .'.join(extensions)}")
    if not Path(path).parent.is_dir():
        raise ArgumentTypeError(f"{path!r} must be in a folder that exists")
    return path


@np.errstate(over="ignore", invalid="ignore")  # a diverged run has a picture, too
def plot_curve(
    losses: Sequence[float],
    accuracies: Sequence[float] = (),
    train_accuracies: Sequence[float] = (),
    model: Any = None,
    test_set: Any = None,
    title: str = "",
    path: str = "loss.png",
) -> Any:
    """Save a picture of a run, show it if there is a display, and return the closed figure.

    With a `model` and a `test_set` (images, labels), the picture also shows weights and mistakes.
    """
    import matplotlib.pyplot as plt  # takes 0.4 s, so only if needed

    layout = "LLLL.AAAA\nWWWW.0123\nWWWW.4567"  # loss, accuracy, weights, eight mistakes
    margins = {"left": 0.06, "right": 0.98, "top": 0.92, "bottom": 0.01, "hspace": 0.4}
    figure = plt.figure(figsize=(11, 7))
    axes = figure.subplot_mosaic(layout, height_ratios=(5, 3, 3), gridspec_kw=margins)
    figure.suptitle(title)
    label = f"each step (highest: {max(losses):.2f})"
    axes["L"].plot(losses, ".-", alpha=0.3, linewidth=0.8, markersize=2, label=label)
    axes["L"].plot(moving_average(losses), color="tab:blue", label=f"mean of {WINDOW} steps")
    axes["L"].set(xlabel="step (one mini-batch)", ylabel="training loss (nats per image)")
    # A loss spike in full would flatten the rest of the curve.
    axes["L"].set_ylim(0, 1.1 * max(losses[0], np.quantile(losses, 0.95)))
    axes["A"].plot(train_accuracies, color="tab:gray", marker=".", label="training images")
    axes["A"].plot(accuracies, color="tab:orange", marker="o", label="test images")
    axes["A"].set(xlabel="epoch", ylabel="accuracy (fraction)")
    for name in "LA":
        axes[name].grid(alpha=0.3)
        axes[name].legend()
        axes[name].locator_params(axis="x", integer=True, min_n_ticks=1)
    for name in "W01234567":
        axes[name].axis("off")
    if model is not None and np.isfinite(model.W1).all():
        draw_model(axes, model, *test_set)
    figure.savefig(path, dpi=100)
    if figure.canvas.required_interactive_framework:
        plt.show()
    plt.close(figure)
    return figure


def draw_model(axes: Any, model: Any, images: np.ndarray, labels: np.ndarray) -> None:
    """Draw the 32 columns of W1 with the largest norm, and the eight most certain mistakes."""
    columns = model.W1[:784, np.argsort(-np.linalg.norm(model.W1, axis=0))[:32]].T
    tiles = np.zeros((32, 30, 30))
    tiles[: len(columns), 1:-1, 1:-1] = columns.reshape(-1, 28, 28)
    image = tiles.reshape(4, 8, 30, 30).swapaxes(1, 2).reshape(4 * 30, 8 * 30)
    limit = abs(image).max()
    axes["W"].imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes["W"].set_title("Columns of W1 with the largest norm (red: positive)", size=10)
    y_pred = model.forward(images)
    predicted = y_pred.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    most_certain = wrong[np.argsort(-y_pred[wrong].max(axis=1))]
    for name, i in zip("01234567", most_certain, strict=False):
        p, p_label = np.exp(y_pred[i, [predicted[i], labels[i]]])
        title = f"predicted {predicted[i]} ({p:.3f})\nlabel {labels[i]} ({p_label:.3f})"
        axes[name].imshow(images[i].reshape(28, 28), cmap="gray_r")
        axes[name].set_title(title, size=8)
