"""Data sets and their faults, one-hot targets, initial weights and the picture."""

import functools
import gzip
import hashlib
import http.server
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from torchvision import transforms

import utils
from tests.conftest import idx
from utils import FILES, DataError, Dataset, DownloadError, initial_weights, load_dataset, moving_average, one_hot

TRAIN_IMAGES, TRAIN_LABELS = FILES[:2]


def test_files_in_place_are_read_and_normalized_as_torchvision_does(data_dir: Path) -> None:
    dataset = load_dataset("MNIST", str(data_dir))
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    for train, (images, labels) in ((True, dataset.train), (False, dataset.test)):
        expected = torchvision.datasets.MNIST(str(data_dir), train=train, transform=transform)
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, np.stack([np.asarray(image[0]) for image, _ in expected]))
        np.testing.assert_array_equal(labels, expected.targets)
    assert (dataset.name, dataset.source) == ("MNIST", str(data_dir / "MNIST" / "raw"))


def test_files_in_place_need_neither_torch_nor_torchvision_nor_sklearn(data_dir: Path) -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "sklearn")))  # importing them is now an error
from numpy_mnist import main
sys.exit(main(sys.argv[1:]))
"""
    arguments = ["--data-dir", str(data_dir), "--plot", str(data_dir / "loss.png")]
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(re.findall(r"^\[\d\] Accuracy: 0\.\d{4}$", run.stdout, re.MULTILINE)) == 3


def test_all_three_data_sets_have_folders_of_their_own(data_dir: Path) -> None:
    for name in ("FashionMNIST", "KMNIST"):
        (data_dir / "MNIST").rename(data_dir / name)
        assert load_dataset(name, str(data_dir)).name == name
        (data_dir / name).rename(data_dir / "MNIST")


def test_digits_train_in_all_shifts_and_test_by_other_writers(digits: Dataset) -> None:
    from sklearn import datasets

    original, labels = datasets.load_digits(return_X_y=True)
    (train_images, train_labels), (test_images, test_labels) = digits.train, digits.test
    assert train_images.shape == (37500, 28, 28)
    assert test_images.shape == (297, 28, 28)
    assert train_images.dtype == test_images.dtype == np.float32
    np.testing.assert_array_equal(test_labels, labels[1500:])
    np.testing.assert_array_equal(train_labels, np.tile(labels[:1500], 25))

    pixels = np.rint((test_images * 0.3081 + 0.1307) * 16).astype(int)
    np.testing.assert_array_equal(pixels[:, 2:-2, 2:-2][:, 1::3, 1::3].reshape(297, 64), original[1500:])
    np.testing.assert_array_equal(pixels[:, 2:-2, 2:-2][:, ::3, ::3], pixels[:, 2:-2, 2:-2][:, 2::3, 2::3])
    border = pixels.copy()
    border[:, 2:-2, 2:-2] = 0
    assert not border.any()

    shifts = train_images.reshape(25, 1500, 28, 28)[:, 7]
    middle = shifts[12]
    assert len({shift.tobytes() for shift in shifts}) == 25
    for shift, image in zip([(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)], shifts, strict=True):
        np.testing.assert_array_equal(image, np.roll(middle, shift, (0, 1)))


# ---- the download, from a server that stands in for the real ones


class Handler(http.server.SimpleHTTPRequestHandler):
    """A server of files that does not log."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve the four files, compressed, as torchvision's MNIST; return the folder that is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    resources = []
    for name, content in contents.items():
        compressed = gzip.compress(content)
        (folder / f"{name}.gz").write_bytes(compressed)
        resources.append((f"{name}.gz", hashlib.md5(compressed).hexdigest()))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as httpd:
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{httpd.server_port}/"])
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder
        httpd.shutdown()


def files_below(folder: Path) -> set[str]:
    """Return the names of all files and folders below `folder`, and none where it does not exist."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_missing_files_are_downloaded_and_the_others_left_alone(
    server: Path, tmp_path: Path, contents: dict[str, bytes]
) -> None:
    raw = tmp_path / "new" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    own = bytearray(contents[TRAIN_LABELS])
    own[-1] = 0
    (raw / TRAIN_LABELS).write_bytes(own)
    dataset = load_dataset("MNIST", str(tmp_path / "new"))
    assert len(dataset.train[1]) == 30
    assert (raw / TRAIN_LABELS).read_bytes() == own
    assert files_below(tmp_path / "new") == {"MNIST", "MNIST/raw", *(f"MNIST/raw/{name}" for name in FILES)}
    assert socket.getdefaulttimeout() is None


def test_any_missing_file_is_downloaded_within_timeouts(
    server: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts = []
    download = torchvision.datasets.MNIST.download

    def watched(self: object) -> None:
        timeouts.append(socket.getdefaulttimeout())
        download(self)

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", watched)
    for name in FILES:
        (data_dir / "MNIST" / "raw" / name).unlink()
        assert len(load_dataset("MNIST", str(data_dir)).test[1]) == 20
    assert timeouts == [10] * 4


@pytest.mark.parametrize("fault", ["missing", "corrupt", "no server"])
def test_failed_download_is_a_sentence_and_leaves_no_file(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    last = server / f"{FILES[3]}.gz"
    if fault == "missing":
        last.unlink()
    elif fault == "corrupt":
        last.write_bytes(last.read_bytes()[:-1])
    else:
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])
    with pytest.raises(DownloadError) as caught:
        load_dataset("MNIST", str(tmp_path / "new"))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("MNIST could not be downloaded (")
    assert message.endswith(f"put its four files {', '.join(FILES)}, uncompressed, into {tmp_path}/new/MNIST/raw")
    assert files_below(tmp_path / "new") == {"MNIST", "MNIST/raw"}


def test_interrupted_download_leaves_no_file(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets.MNIST, "_load_data", interrupt)  # all four are extracted by then
    with pytest.raises(KeyboardInterrupt):
        load_dataset("MNIST", str(tmp_path / "new"))
    assert files_below(tmp_path / "new") == {"MNIST", "MNIST/raw"}


def test_without_torchvision_and_scikit_learn_a_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DownloadError, match=r"^MNIST could not be downloaded .*torchvision"):
        load_dataset("MNIST", str(tmp_path))
    with pytest.raises(DataError, match="the digits data set needs scikit-learn"):
        load_dataset("digits", str(tmp_path))


# ---- files that are there but are not what they should be


KIND = "it is no IDX file of bytes in"
PROMISE = "its header promises"


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (TRAIN_IMAGES, lambda content: b"", KIND),
        (TRAIN_IMAGES, lambda content: content[:3], KIND),
        (TRAIN_IMAGES, lambda content: content[:4], KIND),
        (TRAIN_IMAGES, lambda content: content[:10], KIND),
        (TRAIN_IMAGES, lambda content: content[:15], KIND),
        (TRAIN_IMAGES, lambda content: content[:16], "its header promises (30, 28, 28) bytes, but 0 follow it"),
        (TRAIN_IMAGES, lambda content: content[: 16 + 784], PROMISE),
        (TRAIN_IMAGES, lambda content: content[:-1], PROMISE),
        (TRAIN_IMAGES, lambda content: content + b"\0", PROMISE),
        (TRAIN_IMAGES, lambda content: content[:4] + b"\xff\xff\xff\xff" + content[8:], PROMISE),
        (TRAIN_IMAGES, lambda content: idx(np.zeros((0, 28, 28), np.uint8)), PROMISE),
        (TRAIN_IMAGES, gzip.compress, f"{KIND} 3 dimensions (still compressed?)"),
        (TRAIN_IMAGES, lambda content: b"\0\0\x0d\x03" + content[4:], KIND),
        (TRAIN_IMAGES, lambda content: b"\0\0\x08\x01" + content[4:], KIND),
        (TRAIN_IMAGES, lambda content: idx(np.zeros((30, 14, 56), np.uint8)), "its images are (14, 56), not (28, 28)"),
        (TRAIN_IMAGES, lambda content: idx(np.zeros((30, 28, 27), np.uint8)), "its images are (28, 27), not (28, 28)"),
        (TRAIN_LABELS, lambda content: b"", KIND),
        (TRAIN_LABELS, lambda content: content[:7], KIND),
        (TRAIN_LABELS, lambda content: content[:-1], PROMISE),
        (TRAIN_LABELS, lambda content: content[:-1] + b"\x0a", "it has a label 10, not 0 to 9"),
        (
            TRAIN_LABELS,
            lambda content: b"\0\0\x08\x01\0\0\0\x1d" + content[9:],
            f"it has 29 labels for 30 images in {TRAIN_IMAGES}",
        ),
    ],
)
def test_damaged_file_is_named_and_left_alone(
    data_dir: Path, name: str, damage: Callable[[bytes], bytes], words: str
) -> None:
    path = data_dir / "MNIST" / "raw" / name
    content = damage(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))} can't be used: .*{re.escape(words)}"):
        load_dataset("MNIST", str(data_dir))
    assert path.read_bytes() == content


def test_folder_in_place_of_a_file_is_named(data_dir: Path) -> None:
    path = data_dir / "MNIST" / "raw" / TRAIN_LABELS
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=re.escape(f"{path} can't be used: it can't be read")):
        load_dataset("MNIST", str(data_dir))
    assert path.is_dir()


@pytest.mark.parametrize(("owner", "call", "part"), [(np, "fromfile", f"raw/{TRAIN_IMAGES}"), (Path, "exists", "raw")])
def test_file_or_folder_without_permission_is_named(
    owner: object, call: str, part: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:  # an administrator can read any file: no permission bits would do it
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(owner, call, refuse)
    words = f"{data_dir / 'MNIST' / part} can't be used: it can't be read (Permission denied)"
    with pytest.raises(DataError, match=re.escape(words)):
        load_dataset("MNIST", str(data_dir))


# ---- targets, weights, pictures


def test_one_hot() -> None:
    targets = one_hot(np.array([2, 0, 9], np.uint8))
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets, np.eye(10)[[2, 0, 9]])
    np.testing.assert_array_equal(one_hot(torch.tensor([1, 0]), 2), [[0, 1], [1, 0]])
    assert one_hot(np.array([])).shape == (0, 10)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 10], "labels are 0 to 10, but integers 0 to 9 are wanted"),
        ([0.5, 1], "labels are 0.5 to 1.0, but integers 0 to 9 are wanted"),
        ([-1, 3], "labels are -1 to 3, but integers 0 to 9 are wanted"),
        ([[0], [1]], "labels have shape (2, 1), but (N,) is wanted"),
        (3, "labels have shape (), but (N,) is wanted"),
    ],
)
def test_one_hot_of_wrong_labels(labels: object, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        one_hot(np.array(labels))


def test_initial_weights_have_the_distribution_of_torch_linear() -> None:
    shapes = ((784, 256), (256, 64), (64, 10))
    weights = initial_weights(np.random.default_rng(1), *shapes)
    for (fan_in, fan_out), weight in zip(shapes, weights, strict=True):
        assert weight.shape == (fan_in, fan_out)
        assert weight.dtype == np.float32
        expected = torch.nn.Linear(fan_in, fan_out).weight.detach().numpy()
        assert 0.99 * fan_in**-0.5 < -weight.min() <= fan_in**-0.5
        assert 0.99 * fan_in**-0.5 < weight.max() <= fan_in**-0.5
        assert weight.std() == pytest.approx(expected.std(), rel=0.1)
        assert weight.mean() == pytest.approx(0, abs=0.1 * fan_in**-0.5)
    for weight, same in zip(weights, initial_weights(np.random.default_rng(1), *shapes), strict=True):
        np.testing.assert_array_equal(weight, same)


def test_moving_average() -> None:
    np.testing.assert_allclose(moving_average([1, 2, 3, 7, 8], 3), [1.5, 2, 4, 6, 7.5])
    np.testing.assert_allclose(moving_average([1, 3, 5]), [2, 3, 4])
    assert moving_average([5.0] * 80) == pytest.approx(np.full(80, 5))


@pytest.mark.parametrize(("steps", "averaged"), [(200, 50), (4, 4)])
def test_picture_shows_losses_and_accuracies_with_units(steps: int, averaged: int, tmp_path: Path) -> None:
    path = tmp_path / "lös s.png"
    losses = list(np.linspace(2.3, 0.1, steps))
    utils.plot_curve(losses, [0.9, 0.95], "MNIST: a title", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    figure = plt.gcf()
    left, right = figure.axes
    assert figure.get_suptitle() == "MNIST: a title"
    np.testing.assert_array_equal(left.lines[0].get_ydata(), losses)
    np.testing.assert_allclose(np.asarray(left.lines[1].get_ydata()), moving_average(losses))
    np.testing.assert_array_equal(right.lines[0].get_ydata(), [0.9, 0.95])
    assert left.get_xlabel() == "step (one mini-batch)"
    assert left.get_ylabel() == "training loss (nats per image)"
    assert right.get_xlabel() == "epoch"
    assert right.get_ylabel() == "test accuracy (fraction)"
    legend = left.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["each step", f"mean of {averaged} steps"]
