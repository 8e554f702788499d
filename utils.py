"""Data sets, one-hot targets and the picture of a training run."""

import contextlib
import gzip
import io
import math
import os
import socket
import struct
import sys
import tempfile
import zlib
from collections.abc import Sequence
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


class DataError(Exception):
    """A data set that can't be had; the message is a sentence for the person at the keyboard."""


class Dataset(NamedTuple):
    """A data set in memory: `train` and `test` are (images (N, 28, 28) float32 normalized, labels (N,) uint8)."""

    name: str
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    source: str


def load_dataset(name: str, data_dir: str = "data", fallback: bool = False) -> Dataset:
    """Return one of DATASETS, read from data_dir/name/raw and downloaded to there first where a file is missing.

    With `fallback`, digits stand in where the download fails, and stderr says so. Raises DataError where there is no
    such data set, the download fails, a file is damaged, or scikit-learn, which brings the digits, can't be imported.
    """
    if name not in DATASETS:
        raise DataError(f"the data set {name!r} is not one of {', '.join(DATASETS)}")
    if name == "digits":
        return load_digits()
    raw = Path(data_dir, name, "raw")
    placed = find_files(raw)
    if missing := [file for file in FILES if file not in placed]:
        try:
            download(name, raw, missing)
        except Exception as error:  # whatever it is, the way out for the user is the same
            failed = f"{name} could not be downloaded ({reason(error)})"
            failed += (
                f"; to use it, put {', '.join(missing)}, each unpacked or as a .gz, into {raw}"
            )
            if not fallback:
                raise DataError(failed) from error
            print(f"{failed}; going on with digits.", file=sys.stderr)
            return load_digits()
        placed = find_files(raw)
    train_images, train_labels, test_images, test_labels = (placed[file] for file in FILES)
    return Dataset(
        name,
        read_images(train_images, train_labels),
        read_images(test_images, test_labels),
        str(raw),
    )


def reason(error: BaseException) -> str:
    """Return what an exception says, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def damaged(path: Path, fault: str) -> DataError:
    """Return the error for a file that is there but is not what it should be."""
    return DataError(
        f"{path} can't be used: {fault}; move it away and run again to download it anew"
    )


def find_files(raw: Path) -> dict[str, Path]:
    """Return the paths of those of FILES that are in `raw`, unpacked or, as the mirrors hand them out, as a .gz.

    Raises DataError where the folder is there but can't be read.
    """
    try:
        names = os.listdir(raw)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{raw} can't be read ({reason(error)})") from error
    return {file: raw / name for file in FILES for name in (f"{file}.gz", file) if name in names}


def read_images(images_path: Path, labels_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the normalized images (N, 28, 28) and the labels (N,) of two IDX files; raises DataError."""
    images, labels = read_idx(images_path, 28, 28), read_idx(labels_path)
    if len(labels) != len(images) or labels.max() > 9:
        fault = f"it has {len(labels)} labels from {labels.min()} to {labels.max()}"
        raise damaged(
            labels_path, f"{fault}, expected {len(images)} from 0 to 9 for {images_path.name}"
        )
    return normalize(images), labels.copy()  # what is read from a file can't be written to


def read_idx(path: Path, *shape: int) -> np.ndarray:
    """Return the uint8 array (N, *shape) of an IDX file: two zero bytes, 8 for uint8, ndim, ndim sizes, the data.

    The sizes are big-endian uint32. Raises DataError where the file can't be read, or is not of this kind and shape.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, f"it can't be read ({reason(error)})") from error
    ndim = 1 + len(shape)
    count, rest = divmod(len(content) - 4 - 4 * ndim, math.prod(shape))
    header = struct.pack(f">4B{ndim}I", 0, 0, 8, ndim, max(count, 0), *shape)
    if rest or count < 1 or not content.startswith(header):
        raise damaged(
            path,
            f"its {len(content)} bytes are no IDX file of {'×'.join(map(str, ('N', *shape)))} bytes",
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(count, *shape)


def download(name: str, raw: Path, missing: Sequence[str]) -> None:
    """Put the missing files of a data set into `raw`, downloaded and verified by torchvision.

    It works in a folder of its own, so that neither a failure nor Ctrl-C leaves half a file.
    """
    print(
        f"{raw.absolute()} lacks {', '.join(missing)}: downloading {name} with torchvision",
        file=sys.stderr,
    )
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(
            10
        )  # seconds; torchvision sets none, and a silent firewall would hold for minutes
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=raw, prefix="download-") as folder:
            from torchvision import (
                datasets,
            )  # 2.5 s and 400 MB, which a run whose files are in place does not pay

            getattr(datasets, name)(folder, download=True)
            for file in missing:
                Path(folder, name, "raw", file).replace(raw / file)
    finally:
        socket.setdefaulttimeout(timeout)


def load_digits() -> Dataset:
    """Return scikit-learn's 1,797 digits (8, 8) as images of MNIST's kind: 37,500 to train on, 297 to test.

    Each pixel is enlarged 3×3 and the image framed with two pixels. The first 1,500 digits train, each in all 25 shifts
    of −2 to 2 pixels; the last 297, by other writers, test.
    """
    try:
        from sklearn import datasets
    except Exception as error:  # a broken installation fails in ways of its own
        words = "the digits data set needs scikit-learn, which can't be imported"
        raise DataError(f"{words} ({reason(error)}): python -m pip install scikit-learn") from error
    digits, labels = datasets.load_digits(return_X_y=True)
    images = digits.reshape(-1, 8, 8).repeat(3, axis=1).repeat(3, axis=2)
    images = normalize(np.pad(images * (255 / 16), ((0, 0), (2, 2), (2, 2))))
    labels = labels.astype(np.uint8)
    # The frame is as wide as the shifts, so that what np.roll carries around the edge is background.
    shifts = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    train_images = np.concatenate([np.roll(images[:1500], shift, axis=(1, 2)) for shift in shifts])
    train_labels = np.tile(labels[:1500], len(shifts))
    return Dataset(
        "digits", (train_images, train_labels), (images[1500:], labels[1500:]), "scikit-learn"
    )


def normalize(images: np.ndarray) -> np.ndarray:
    """Return (p / 255 − 0.1307) / 0.3081, float32, for pixels p from 0 to 255, to the last bit as torchvision does."""
    pixels = images.astype(np.float32)
    pixels /= 255  # in place: as one expression, it takes 180 MB more for the training images
    pixels -= 0.1307
    pixels /= 0.3081
    return pixels


def one_hot(labels: Any, classes: int = 10) -> np.ndarray:
    """Return targets (N, classes), float32, 1 at the label and 0 elsewhere, for labels (N,) from 0 to classes − 1."""
    labels = np.asarray(labels)
    targets = labels[..., None] == np.arange(classes)
    if labels.ndim != 1 or targets.sum() != len(labels):
        words = f"expected integers from 0 to {classes - 1} in shape (N,)"
        raise ValueError(
            f"labels are {labels.min()} to {labels.max()} in shape {labels.shape}, {words}"
        )
    return targets.astype(np.float32)


def moving_average(values: Sequence[float]) -> np.ndarray:
    """Return for each value the mean of the WINDOW values around it, of fewer, as many on each side, at the ends."""
    steps = np.arange(len(values))
    half = np.minimum(np.minimum(steps, steps[::-1]), WINDOW // 2)
    sums = np.cumsum([0, *values])
    return (sums[steps + half + 1] - sums[steps - half]) / (2 * half + 1)


def import_pyplot() -> Any:
    """Return matplotlib.pyplot with the backend of MPLBACKEND or, where it can't be had, one that matplotlib chooses.

    Notebooks set that variable for every command they run, and where it is wrong importing matplotlib fails.
    """
    backend = "" if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", "")
    import matplotlib.pyplot as plt  # whoever only loads data does not wait for it

    if backend:
        os.environ["MPLBACKEND"] = backend
        with contextlib.suppress(Exception):  # each backend fails in a way of its own
            plt.switch_backend(backend)
    return plt


def picture_file(path: str) -> tuple[Path, Path]:
    """Return the file that a picture saved to `path` becomes, links followed, and one beside it to write first.

    Raises ValueError for an extension that no picture has, OSError where one of the files can't be written.
    """
    kinds = import_pyplot().FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in kinds:
        raise ValueError(f"{path!r} has not one of the extensions {', '.join(kinds)}")
    file = Path(path).resolve()
    if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
        raise OSError(f"{path!r} is there, and is no file that may be written to")
    part = file.with_name(f"{file.name}-{os.getpid()}.part")
    try:
        part.touch()  # the system knows best what it refuses
        part.unlink()
    except OSError as error:
        raise OSError(f"{path!r} can't be written ({reason(error)})") from error
    return file, part


def tile(images: np.ndarray, columns: int, below: int = 1, beside: int = 1) -> np.ndarray:
    """Return images (N, 28, 28) as one, `columns` a row, with NaN, drawn as background, below and beside each."""
    images = np.pad(
        images, ((0, -len(images) % columns), (0, below), (0, beside)), constant_values=np.nan
    )
    _, height, width = images.shape
    return images.reshape(-1, columns, height, width).swapaxes(1, 2).reshape(-1, columns * width)


def draw_weights(ax: Any, W1: np.ndarray) -> None:
    """Draw the 32 columns of W1 (784 pixels, d') of largest norm as images, on one color scale around 0."""
    images = W1[:784, np.argsort(-np.linalg.norm(W1, axis=0))[:32]].T.reshape(-1, 28, 28)
    limit = abs(images).max() or 1
    ax.imshow(tile(images, 8), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_title(
        f"What the first layer looks for: {len(images)} columns of W1\n(red above 0, blue below)",
        fontsize=10,
    )
    ax.axis("off")


def draw_mistakes(ax: Any, y_pred: np.ndarray, images: np.ndarray, labels: np.ndarray) -> None:
    """Draw the eight test images of which log-probabilities `y_pred` (N, 10) are wrong and most certain."""
    answers = y_pred.argmax(axis=1)
    wrong = np.flatnonzero(answers != labels)
    worst = wrong[np.argsort(-y_pred[wrong, answers[wrong]], kind="stable")][:8]
    columns, below, beside = 4, 16, 14  # the latter in pixels, for the words
    ax.imshow(
        tile(images[worst].reshape(-1, 28, 28), columns, below, beside),
        cmap="gray_r",
        interpolation="nearest",
    )
    for place, i in enumerate(worst):
        said, true = (
            f"{digit}: {np.exp(y_pred[i, digit]):.3f}" for digit in (answers[i], labels[i])
        )
        x, y = place % columns * (28 + beside) + 14, place // columns * (28 + below) + 29
        ax.text(x, y, f"taken for {said}\nlabeled {true}", ha="center", va="top", fontsize=8)
    ax.set_title("Most certain of a wrong answer, with probabilities\n(test images)", fontsize=10)
    ax.axis("off")


@np.errstate(over="ignore", invalid="ignore")  # of a model that diverged
def plot_curve(
    losses: Sequence[float],
    accuracies: Sequence[float] = (),
    train_accuracies: Sequence[float] = (),
    model: Any = None,
    test_set: Any = (),
    title: str = "",
    path: str = "loss.png",
    show: bool = True,
) -> Any:
    """Save a picture of a run, show it in a window where there is a display, and return it, a closed Figure.

    It has the loss of every step, the accuracies of every epoch and, of a model with a test set (images, labels), the
    weights of the first layer and the mistakes. Raises OSError or ValueError where it can't be saved: what was there
    before is still there.
    """
    plt, (file, part) = import_pyplot(), picture_file(path)
    panels, size, mistaken = ["LLLLAA" if len(accuracies) else "LLLLLL"], (10, 4), False
    if learned := model is not None and np.isfinite(y_pred := model.forward(test_set[0])).all():
        mistaken = (y_pred.argmax(axis=1) != test_set[1]).any()
        panels, size = [*panels, "WWWMMM" if mistaken else "WWW..."], (10, 7)
    heights = (4, 3)[: len(panels)]
    figure, axes = plt.subplot_mosaic(
        "\n".join(panels), figsize=size, height_ratios=heights, layout="constrained"
    )
    figure.suptitle(title)
    marker = "." if len(losses) < WINDOW else ""  # the line of a single step could not be seen
    label = f"each step (highest: {max(losses):.2f})"
    axes["L"].plot(losses, color="tab:blue", alpha=0.3, linewidth=0.8, marker=marker, label=label)
    axes["L"].plot(moving_average(losses), color="tab:blue", label=f"mean of up to {WINDOW} steps")
    axes["L"].set(xlabel="step (one mini-batch)", ylabel="training loss (nats per image)")
    # A burst of losses, drawn in full, would flatten the rest: the legend tells its height.
    axes["L"].set_ylim(0, 1.1 * max(losses[0], np.quantile(losses, 0.95)))
    axes["L"].legend()
    if len(accuracies):
        axes["A"].plot(
            train_accuracies, color="tab:gray", marker=".", label="training (up to 10,000)"
        )
        axes["A"].plot(accuracies, color="tab:orange", marker="o", label="test")
        axes["A"].set(xlabel="epoch", ylabel="accuracy (fraction)")
        axes["A"].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    for ax in (axes[panel] for panel in "LA" if panel in axes):
        ax.grid(alpha=0.3)
        ax.locator_params(axis="x", integer=True, min_n_ticks=1)
    if learned:
        draw_weights(axes["W"], model.W1)
    if mistaken:
        draw_mistakes(axes["M"], y_pred, *test_set)
    picture = io.BytesIO()
    try:
        figure.savefig(picture, dpi=100, format=Path(path).suffix[1:])
        part.write_bytes(picture.getvalue())
        part.replace(file)  # only now, and as a whole
        if show and figure.canvas.required_interactive_framework:
            with contextlib.suppress(KeyboardInterrupt):  # as good a way as any to close the window
                plt.show(block=True)
    finally:
        part.unlink(missing_ok=True)
        plt.close(figure)
    return figure
