"""Targets, averages, the picture of a run, data sets and their faults."""

import functools
import gzip
import hashlib
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision
from torchvision import transforms

from tests.conftest import idx
from utils import (
    DATASETS,
    FILES,
    DataError,
    Dataset,
    load_dataset,
    moving_average,
    one_hot,
    picture_file,
    plot_curve,
)

ROOT = Path(__file__).parent.parent
TRAIN_IMAGES, TRAIN_LABELS = FILES[:2]


def test_one_hot() -> None:
    targets = one_hot(np.array([2, 0, 9], np.uint8))
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets, np.eye(10)[[2, 0, 9]])
    np.testing.assert_array_equal(one_hot(torch.tensor([1, 0]), 2), [[0, 1], [1, 0]])
    for labels in ([0, 10], [0, -1], [0, 0.5], [[0], [1]], np.eye(10)):
        with pytest.raises(
            ValueError, match=rf"^labels are .*{np.max(labels)} in shape .*, expected integers from 0 to 9"
        ):
            one_hot(labels)


def test_moving_average_starts_and_ends_where_the_values_do() -> None:
    np.testing.assert_allclose(moving_average([1, 3, 5, 4, 9]), [1, 3, 4.4, 6, 9])
    values = np.random.default_rng(0).random(200)
    averages = moving_average(values.tolist())
    assert averages[100] == pytest.approx(values[75:126].mean())
    assert averages[[10, -11]] == pytest.approx([values[:21].mean(), values[-21:].mean()])


# ---- the picture of a run


def panels(figure: Any) -> dict[str, Any]:
    """Return the panels of a picture by what they show: a quantity with its unit, weights, or mistakes with texts."""
    return {ax.get_ylabel().split(" (")[0] or ("mistakes" if ax.texts else "weights"): ax for ax in figure.axes}


def learned(mistakes: int, width: int = 40, rows: int = 784) -> dict[str, Any]:
    """Return a stand-in for a model with W1 (rows, width), and 20 test images, so many of which it takes for others."""
    rng = np.random.default_rng(0)
    y_pred = np.log(rng.dirichlet(np.ones(10), 20))
    labels = (y_pred.argmax(axis=1) + (np.arange(20) < mistakes)) % 10
    model = types.SimpleNamespace(W1=rng.standard_normal((rows, width)), forward=lambda images: y_pred)
    return {"model": model, "test_set": (rng.random((20, 28, 28)), labels)}


def test_picture_shows_losses_and_accuracies_with_units(tmp_path: Path) -> None:
    path = tmp_path / "lös s.png"
    losses = np.linspace(2.3, 0.1, 200).tolist()
    figure = plot_curve(losses, [0.9, 0.95], [0.91, 0.97], title="MNIST: a title", path=str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []
    assert figure.get_suptitle() == "MNIST: a title"
    loss, accuracy = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), losses)
    np.testing.assert_allclose(loss.lines[1].get_ydata(), moving_average(losses))
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("step (one mini-batch)", "training loss (nats per image)")
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "accuracy (fraction)")
    lines = {line.get_label().split()[0]: line.get_xydata().tolist() for line in accuracy.lines}
    assert lines == {"test": [[0, 0.9], [1, 0.95]], "training": [[0, 0.91], [1, 0.97]]}
    legends = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in (loss, accuracy)]
    assert legends == [[line.get_label() for line in ax.lines] for ax in (loss, accuracy)]
    assert re.fullmatch("mean of .*51 steps", legends[0][1])


@pytest.mark.parametrize(("name", "start"), [("a.PNG", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")])
def test_format_is_that_of_the_extension(name: str, start: bytes, tmp_path: Path) -> None:
    plot_curve([2.3], path=str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(start)


def test_epochs_are_counted_in_whole_numbers(tmp_path: Path) -> None:
    for epochs in (1, 2, 3, 10, 30):
        accuracies = [0.9] * epochs
        accuracy = plot_curve([1.0] * epochs, accuracies, accuracies, path=str(tmp_path / "loss.png")).axes[1]
        low, high = accuracy.get_xlim()
        ticks = [tick for tick in accuracy.get_xticks() if low <= tick <= high]
        assert ticks == [int(tick) for tick in ticks] != []


def test_all_losses_but_a_burst_are_within_the_limits(tmp_path: Path) -> None:
    losses = np.linspace(2.3, 0.1, 500)
    losses[300:310] = 27.6  # drawn in full, it would flatten the rest
    figure = plot_curve(losses.tolist(), path=str(tmp_path / "loss.png"))
    assert figure.axes[0].get_ylim()[0] == 0
    assert 2.3 <= figure.axes[0].get_ylim()[1] < 3
    assert "27.60" in figure.axes[0].get_legend().get_texts()[0].get_text()
    stuck = [2.3, *[25.0] * 99]  # as at learning rate 2
    assert plot_curve(stuck, path=str(tmp_path / "loss.png")).axes[0].get_ylim()[1] > 25


@pytest.mark.parametrize(
    ("epochs", "run", "expected"),
    [
        pytest.param(0, {}, ["training loss"], id="losses alone"),
        pytest.param(0, learned(3), ["training loss", "weights", "mistakes"], id="interrupted in the first epoch"),
        pytest.param(1, learned(0), ["training loss", "accuracy", "weights"], id="nothing wrong"),
        pytest.param(1, learned(1), ["training loss", "accuracy", "weights", "mistakes"], id="one mistake"),
        pytest.param(2, learned(20, 8, 785), ["training loss", "accuracy", "weights", "mistakes"], id="few, with bias"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_no_panel_is_empty_and_the_loss_is_the_largest(
    epochs: int, run: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    figure = plot_curve([2.3], [0.5] * epochs, [0.5] * epochs, **run, path=str(tmp_path / "loss.png"))
    assert list(panels(figure)) == expected
    assert all(ax.has_data() for ax in figure.axes)
    assert figure.axes[0].lines[0].get_marker() == ".", "the line of a single step can't be seen"
    areas = [ax.get_position().width * ax.get_position().height for ax in figure.axes]
    assert areas[0] == max(areas)


@pytest.mark.filterwarnings("error")
def test_model_that_diverged_is_not_shown_and_weights_of_zero_are(tmp_path: Path) -> None:
    run = learned(3)
    run["model"].W1[:] = 0
    shown = panels(plot_curve([2.3], **run, path=str(tmp_path / "loss.png")))
    assert shown["weights"].images[0].get_clim() == (-1, 1)
    run["model"].forward = lambda images: np.full((20, 10), np.nan)
    assert list(panels(plot_curve([2.3], **run, path=str(tmp_path / "loss.png")))) == ["training loss"]


def test_picture_shows_the_largest_weights_and_the_most_certain_mistakes(tmp_path: Path) -> None:
    run = learned(15)
    W1, (images, labels), y_pred = run["model"].W1, run["test_set"], run["model"].forward(None)
    shown = panels(plot_curve([2.3], **run, path=str(tmp_path / "loss.png")))
    weights, mistakes = shown["weights"].images[0], shown["mistakes"].images[0]
    largest = np.argsort(-(W1**2).sum(axis=0))
    for place in range(32):
        row, column = place // 8 * 29, place % 8 * 29
        tile = weights.get_array()[row : row + 28, column : column + 28]
        np.testing.assert_array_equal(tile, W1[:, largest[place]].reshape(28, 28))
    low, high = weights.get_clim()
    assert -low == high == abs(W1[:, largest[:32]]).max()
    (red, _, blue, _), (gray, *_) = weights.to_rgba(np.array([[high]]))[0, 0], mistakes.to_rgba(np.array([[1.0]]))[0, 0]
    assert red > blue, "weights above 0 are to be red"
    assert gray < 0.5, "digits are to be dark on light"
    by_certainty = sorted(range(15), key=lambda i: -y_pred[i].max())
    for place, (i, text) in enumerate(zip(by_certainty, shown["mistakes"].texts, strict=False)):
        row, column = place // 4 * 44, place % 4 * 42
        tile = mistakes.get_array()[row : row + 28, column : column + 28]
        np.testing.assert_array_equal(tile, images[i])
        assert text.get_position() == (column + 14, row + 29)
        for digit in (y_pred[i].argmax(), labels[i]):
            assert f"{digit}: {np.exp(y_pred[i, digit]):.3f}" in text.get_text()
    assert len(shown["mistakes"].texts) == 8


def test_window_is_shown_where_there_is_a_display(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[int]] = []

    def interrupted_show(block: bool) -> None:
        shown.append(plt.get_fignums())
        raise KeyboardInterrupt  # Ctrl-C in the terminal, which ends the run as closing the window does

    monkeypatch.setattr(plt, "show", interrupted_show)
    monkeypatch.setattr("utils.import_pyplot", lambda: plt)  # whose backend stays, whatever the canvas says now
    path = str(tmp_path / "loss.png")
    plot_curve([2.3], path=path)
    monkeypatch.setattr("matplotlib.backend_bases.FigureCanvasBase.required_interactive_framework", "some")
    plot_curve([2.3], path=path, show=False)
    assert shown == []
    plot_curve([2.3], path=path)
    assert len(shown) == 1
    assert len(shown[0]) == 1
    assert plt.get_fignums() == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows can't limit the size of files")
@pytest.mark.parametrize("extension", ["png", "jpg", "pdf"])
def test_picture_that_does_not_fit_leaves_the_old_one(extension: str, tmp_path: Path) -> None:
    import resource

    path = tmp_path / f"loss.{extension}"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # bytes; a full disk fails in the same way
    try:
        with pytest.raises(OSError, match="File too large"):
            plot_curve([2.3], path=str(path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert plt.get_fignums() == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets administrators alone make links")
def test_picture_follows_a_link_and_replaces_nothing_but_files(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    link = tmp_path / "loss.png"
    for there in ("first", "again"):
        link.unlink(missing_ok=True)
        link.symlink_to("here/there.png")
        plot_curve([2.3], path=str(link))
        assert (tmp_path / "here" / "there.png").read_bytes().startswith(b"\x89PNG"), there
        assert link.is_symlink()
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["there.png"]
    link.unlink()
    link.symlink_to(os.devnull)
    for path in (link, tmp_path / "here"):
        with pytest.raises((OSError, ValueError)):
            picture_file(str(path))
    assert not Path(os.devnull).is_file()


def test_picture_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "loss.png"
    assert picture_file(str(path))[0] == path.resolve()
    assert not path.exists()
    path.write_bytes(b"old")
    # An administrator may write everywhere: no permission bits would do it.
    for owner, name, refusal in ((os, "access", lambda *_: False), (Path, "touch", refuse)):
        monkeypatch.setattr(owner, name, refusal)
        for save in (picture_file, lambda path: plot_curve([2.3], path=path)):
            with pytest.raises(OSError, match=r"may be written to|Permission denied"):
                save(str(path))
        monkeypatch.undo()
    assert path.read_bytes() == b"old"


# ---- data sets in place


def test_files_in_place_are_read_and_normalized_as_torchvision_does(data_dir: Path) -> None:
    dataset = load_dataset("MNIST", str(data_dir))
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    for train, (images, labels) in ((True, dataset.train), (False, dataset.test)):
        expected = torchvision.datasets.MNIST(str(data_dir), train=train, transform=transform)
        assert images.dtype == np.float32
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(images, np.stack([np.asarray(image[0]) for image, _ in expected]))
        np.testing.assert_array_equal(labels, expected.targets)
        assert images.flags.writeable
        assert labels.flags.writeable
    assert (dataset.name, dataset.source) == ("MNIST", str(data_dir / "MNIST" / "raw"))


def test_compressed_files_are_read_as_they_are(data_dir: Path) -> None:
    expected, raw = load_dataset("MNIST", str(data_dir)), data_dir / "MNIST" / "raw"
    for name in FILES:
        (raw / name).write_bytes(gzip.compress((raw / name).read_bytes()))  # without .gz, as some browsers save it
    for name in FILES[1:]:
        (raw / name).rename(raw / f"{name}.gz")
    (raw / f"{FILES[0]}.gz").write_bytes(b"of two, the one without .gz is read")
    dataset = load_dataset("MNIST", str(data_dir))
    np.testing.assert_equal((dataset.train, dataset.test), (expected.train, expected.test))
    assert sorted(path.name for path in raw.iterdir()) == sorted([FILES[0], *(f"{name}.gz" for name in FILES)])


def test_files_in_place_need_neither_torch_nor_torchvision_nor_sklearn(data_dir: Path) -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "sklearn")))  # importing them is now an error
from numpy_mnist import main
sys.exit(main())
"""
    command = [sys.executable, "-c", program, "--data-dir", str(data_dir), "--plot", str(data_dir / "loss.png")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(re.findall(r"^\[\d\] Accuracy: [01]\.\d{4}$", run.stdout, re.MULTILINE)) == 3


def test_digits_train_in_all_shifts_and_test_by_other_writers(digits: Dataset) -> None:
    from sklearn import datasets

    original, labels = datasets.load_digits(return_X_y=True)
    (train_images, train_labels), (test_images, test_labels) = digits.train, digits.test
    assert {a.dtype for a in (train_images, test_images)} == {np.dtype(np.float32)}
    assert {a.dtype for a in (train_labels, test_labels)} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(train_labels, np.tile(labels[:1500], 25))
    np.testing.assert_array_equal(test_labels, labels[1500:])
    framed = np.pad(np.kron(original.reshape(-1, 8, 8), np.ones((3, 3))), ((0, 0), (2, 2), (2, 2))) / 16
    np.testing.assert_allclose(test_images * 0.3081 + 0.1307, framed[1500:], atol=1e-6)
    shifts = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    for shift, images in zip(shifts, train_images.reshape(25, 1500, 28, 28), strict=True):
        np.testing.assert_allclose(images * 0.3081 + 0.1307, np.roll(framed[:1500], shift, (1, 2)), atol=1e-6)


# ---- the download, from a server that stands in for the real ones


class Handler(http.server.SimpleHTTPRequestHandler):
    """A server of files that does not log."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve the files of each data set, compressed, told apart by the last label; return the folder that is served."""
    folder = tmp_path / "served"
    handler = functools.partial(Handler, directory=str(folder))
    # What is moved into place from a folder elsewhere fails where that is another file system: here, anywhere else.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        for number, name in enumerate(("MNIST", "FashionMNIST", "KMNIST")):
            (folder / name).mkdir(parents=True)
            resources = []
            for file, content in contents.items():
                compressed = gzip.compress(content[:-1] + bytes([number]))
                (folder / name / f"{file}.gz").write_bytes(compressed)
                resources.append((f"{file}.gz", hashlib.md5(compressed).hexdigest()))
            source = getattr(torchvision.datasets, name)
            monkeypatch.setattr(source, "mirrors", [f"http://127.0.0.1:{httpd.server_port}/{name}/"])
            monkeypatch.setattr(source, "resources", resources)
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        socket.setdefaulttimeout(33)
        yield folder
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(None)
        httpd.shutdown()
    assert timeout == 33, "the download left its own timeout behind"


def files_below(folder: Path) -> set[str]:
    """Return the names of all files and folders below `folder`."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", DATASETS[:3])
def test_each_data_set_is_downloaded_once_into_a_folder_of_its_own(name: str, server: Path, tmp_path: Path) -> None:
    for _ in range(2):
        dataset = load_dataset(name, str(tmp_path / "new"))
        assert dataset.name == name
        assert dataset.train[1].tolist()[-1] == dataset.test[1].tolist()[-1] == DATASETS.index(name)
        for file in (server / name).iterdir():
            file.unlink()
    expected = {name, f"{name}/raw", *(f"{name}/raw/{file}" for file in FILES)}
    assert files_below(tmp_path / "new") == expected


def test_missing_files_are_downloaded_and_the_others_left_alone(
    server: Path, data_dir: Path, contents: dict[str, bytes]
) -> None:
    raw = data_dir / "MNIST" / "raw"
    for name in FILES:
        (raw / name).unlink()
        assert len(load_dataset("MNIST", str(data_dir)).test[1]) == 20
        assert [file for file in FILES if (raw / file).read_bytes() != contents[file]] == [name]
        (raw / name).write_bytes(contents[name])


@pytest.mark.parametrize("fault", ["missing", "cut short", "one pixel changed"])
def test_failed_download_is_a_sentence_and_leaves_no_file(fault: str, server: Path, tmp_path: Path) -> None:
    last, raw = server / "MNIST" / f"{FILES[3]}.gz", tmp_path / "new" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / FILES[0]).write_bytes(b"there before")
    content = gzip.decompress(last.read_bytes())
    if fault == "one pixel changed":
        content = content[:-1] + bytes([content[-1] ^ 1])
    last.write_bytes(gzip.compress(content)[: -1 if fault == "cut short" else None])
    if fault == "missing":
        last.unlink()
    with pytest.raises(DataError) as caught:
        load_dataset("MNIST", str(tmp_path / "new"))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("MNIST could not be downloaded (")
    assert message.endswith(f"; to use it, put {', '.join(FILES[1:])}, each unpacked or as a .gz, into {raw}")
    assert files_below(tmp_path / "new") == {"MNIST", "MNIST/raw", f"MNIST/raw/{FILES[0]}"}


def test_interrupted_download_leaves_no_file(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = []

    def interrupt(*_: object) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets.MNIST, "_load_data", interrupt)  # all four are extracted by then
    with pytest.raises(KeyboardInterrupt):
        load_dataset("MNIST", str(tmp_path / "new"))
    assert timeouts == [10]
    assert files_below(tmp_path / "new") == {"MNIST", "MNIST/raw"}


# ---- what can't be had


def test_without_torchvision_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError, match=r"^MNIST could not be downloaded .*torchvision"):
        load_dataset("MNIST", str(tmp_path))


def test_scikit_learn_that_fails_on_import_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sklearn.py").write_text("raise SystemError('built for another NumPy')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    words = "the digits data set needs scikit-learn, which can't be imported (built for another NumPy): python -m pip"
    with pytest.raises(DataError, match=re.escape(words)):
        load_dataset("digits")


# In place of the training images, or of the training labels, and what is said of it.
IMAGES, LABELS = "bytes are no IDX file of N×28×28 bytes", "bytes are no IDX file of N bytes"
DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "empty file": (TRAIN_IMAGES, lambda content: b"", IMAGES),
    "cut in the sizes": (TRAIN_IMAGES, lambda content: content[:15], IMAGES),
    "no images": (TRAIN_IMAGES, lambda content: idx(np.zeros((0, 28, 28), np.uint8)), IMAGES),
    "cut in the images": (TRAIN_IMAGES, lambda content: content[:-1], IMAGES),
    "cut after an image": (TRAIN_IMAGES, lambda content: content[:-784], IMAGES),
    "a byte too many": (TRAIN_IMAGES, lambda content: content + b"\0", IMAGES),
    "floats": (TRAIN_IMAGES, lambda content: b"\0\0\x0d\x03" + content[4:], IMAGES),
    "14×56": (TRAIN_IMAGES, lambda content: idx(np.zeros((30, 14, 56), np.uint8)), IMAGES),
    "compressed, cut": (TRAIN_IMAGES, lambda content: gzip.compress(content)[:-9], "it can't be read ("),
    "compressed, checksum": (TRAIN_IMAGES, lambda content: gzip.compress(content)[:-8] + bytes(8), "it can't be read"),
    "compressed, no deflate": (TRAIN_IMAGES, lambda content: b"\x1f\x8b" + b"\xff" * 99, "it can't be read ("),
    "labels cut": (TRAIN_LABELS, lambda content: content[:-1], LABELS),
    "no labels": (TRAIN_LABELS, lambda content: idx(np.zeros(0, np.uint8)), LABELS),
    "label 10": (
        TRAIN_LABELS,
        lambda content: content[:-1] + b"\x0a",
        "it has 30 labels from 0 to 10, expected 30 from",
    ),
    "29 labels": (
        TRAIN_LABELS,
        lambda content: idx(np.zeros(29, np.uint8)),
        "it has 29 labels from 0 to 0, expected 30 ",
    ),
}


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_file_is_named_and_left_alone(
    name: str, damage: Callable[[bytes], bytes], words: str, data_dir: Path
) -> None:
    path = data_dir / "MNIST" / "raw" / name
    content = damage(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))} can't be used: .*{re.escape(words)}.*; move it away"):
        load_dataset("MNIST", str(data_dir))
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["folder", "link that leads nowhere"])
def test_what_is_no_file_is_named_and_left_alone(kind: str, data_dir: Path) -> None:
    path = data_dir / "MNIST" / "raw" / TRAIN_LABELS
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif sys.platform == "win32":
        pytest.skip("Windows lets administrators alone make links")
    else:
        path.symlink_to("nowhere")
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))} can't be used: it can't be read \(\w+ .*\); move"):
        load_dataset("MNIST", str(data_dir))
    assert path.is_dir() if kind == "folder" else os.readlink(path) == "nowhere"


def test_file_or_folder_without_permission_is_named(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:  # an administrator can read any file: no permission bits would do it
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    raw = data_dir / "MNIST" / "raw"
    words = f"{raw / TRAIN_IMAGES} can't be used: it can't be read (Permission denied)"
    with pytest.raises(DataError, match=re.escape(words)):
        load_dataset("MNIST", str(data_dir))
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=re.escape(f"{raw} can't be read (Permission denied)")):
        load_dataset("MNIST", str(data_dir), fallback=True)
