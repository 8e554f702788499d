"""Targets, averages, the picture of a run, data sets and their faults."""

import functools
import gzip
import hashlib
import http.server
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

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


def test_one_hot() -> None:
    targets = one_hot(np.array([2, 0, 9], np.uint8))
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets, np.eye(10)[[2, 0, 9]])
    np.testing.assert_array_equal(one_hot(torch.tensor([1, 0]), 2), [[0, 1], [1, 0]])
    for labels in ([0, 10], [0, -1], [0, 0.5], [[0], [1]], np.eye(10)):
        words = rf"^labels are .*{np.max(labels)} in shape .*, expected integers from 0 to 9"
        with pytest.raises(ValueError, match=words):
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
    return {
        ax.get_ylabel().split(" (")[0] or ("mistakes" if ax.texts else "weights"): ax
        for ax in figure.axes
    }


def learned(mistakes: int, shape: tuple[int, int] = (784, 40), scale: float = 1) -> dict[str, Any]:
    """Return a stand-in for a model with W1 of a shape, and 20 test images, so many of which it takes for others."""
    rng = np.random.default_rng(0)
    y_pred = np.log(rng.dirichlet(np.ones(10), 20))
    labels = (y_pred.argmax(axis=1) + (np.arange(20) < mistakes)) % 10
    model = types.SimpleNamespace(
        W1=scale * rng.standard_normal(shape), forward=lambda images: scale * y_pred
    )
    return {"model": model, "test_set": (rng.random((20, 28, 28)), labels)}


def test_picture_shows_losses_and_accuracies_with_units(tmp_path: Path) -> None:
    losses = np.linspace(2.3, 0.1, 200).tolist()
    figure = plot_curve(
        losses, [0.9, 0.95], [0.91, 0.97], title="MNIST: a title", path=str(tmp_path / "loss.png")
    )
    assert figure.get_suptitle() == "MNIST: a title"
    loss, accuracy = figure.axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), losses)
    np.testing.assert_allclose(loss.lines[1].get_ydata(), moving_average(losses))
    assert (loss.get_xlabel(), loss.get_ylabel()) == (
        "step (one mini-batch)",
        "training loss (nats per image)",
    )
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "accuracy (fraction)")
    lines = {line.get_label().split()[0]: line.get_xydata().tolist() for line in accuracy.lines}
    assert lines == {"test": [[0, 0.9], [1, 0.95]], "training": [[0, 0.91], [1, 0.97]]}
    legends = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in (loss, accuracy)]
    assert legends == [[line.get_label() for line in ax.lines] for ax in (loss, accuracy)]
    assert re.fullmatch("mean of .*51 steps", legends[0][1])
    assert loss.lines[0].get_marker() == "", "with many steps, dots hide the line"


@pytest.mark.parametrize(
    ("name", "start"), [("lös s.PNG", b"\x89PNG"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")]
)
def test_format_is_that_of_the_extension(name: str, start: bytes, tmp_path: Path) -> None:
    plot_curve([2.3], path=str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(start)


def test_epochs_are_counted_in_whole_numbers(tmp_path: Path) -> None:
    for epochs in (1, 3, 30):
        accuracy = plot_curve(
            [2.3], [0.9] * epochs, [0.9] * epochs, path=str(tmp_path / "loss.png")
        ).axes[1]
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
    for others in (0.1, 25.0):  # as in a long run, and at learning rate 2
        figure = plot_curve([2.3, *[others] * 99], path=str(tmp_path / "loss.png"))
        assert figure.axes[0].get_ylim()[1] > max(2.3, others)


@pytest.mark.parametrize(
    ("epochs", "run", "expected"),
    [
        pytest.param(0, {}, ["training loss"], id="losses alone"),
        pytest.param(0, learned(3, scale=np.nan), ["training loss"], id="diverged"),
        pytest.param(
            0, learned(0, scale=0), ["training loss", "weights", "mistakes"], id="weights of zero"
        ),
        pytest.param(1, learned(0), ["training loss", "accuracy", "weights"], id="nothing wrong"),
        pytest.param(
            2,
            learned(20, (785, 8)),
            ["training loss", "accuracy", "weights", "mistakes"],
            id="with bias",
        ),
    ],
)
@pytest.mark.filterwarnings("error")
def test_no_panel_is_empty_and_the_loss_is_the_largest(
    epochs: int, run: dict[str, Any], expected: list[str], tmp_path: Path
) -> None:
    figure = plot_curve(
        [2.3], [0.5] * epochs, [0.5] * epochs, **run, path=str(tmp_path / "loss.png")
    )
    assert list(panels(figure)) == expected
    assert all(ax.has_data() for ax in figure.axes)
    assert figure.axes[0].lines[0].get_marker() == ".", "the line of a single step can't be seen"
    areas = [ax.get_position().width * ax.get_position().height for ax in figure.axes]
    assert areas[0] == max(areas)
    for image in (image for ax in figure.axes for image in ax.images):
        low, high = image.get_clim()
        assert low < high


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
    (red, _, blue, _), (gray, *_) = (
        weights.to_rgba(np.array([[high]]))[0, 0],
        mistakes.to_rgba(np.array([[1.0]]))[0, 0],
    )
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


def test_window_is_shown_where_there_is_a_display(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[int] = []

    def interrupted_show(block: bool) -> None:
        shown.append(len(plt.get_fignums()))
        raise KeyboardInterrupt  # Ctrl-C in the terminal, which ends the run as closing the window does

    monkeypatch.setattr(plt, "show", interrupted_show)
    monkeypatch.setattr(
        "utils.import_pyplot", lambda: plt
    )  # whose backend stays, whatever the canvas says now
    path = str(tmp_path / "loss.png")
    plot_curve([2.3], path=path)
    monkeypatch.setattr(
        "matplotlib.backend_bases.FigureCanvasBase.required_interactive_framework", "some"
    )
    plot_curve([2.3], path=path, show=False)
    assert shown == []
    plot_curve([2.3], path=path)
    assert shown == [1]
    assert plt.get_fignums() == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lets administrators alone make links")
def test_picture_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    link = tmp_path / "loss.png"
    link.symlink_to("here/there")
    for _ in range(2):  # where there is no file yet, and where there is one
        plot_curve([2.3], path=str(link))
    assert link.is_symlink()
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["there"]
    assert link.read_bytes().startswith(b"\x89PNG")


def test_picture_that_may_not_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "loss.png"
    path.write_bytes(b"old")
    _, part = picture_file(str(path))
    monkeypatch.setattr(os, "getpid", lambda: 0)
    assert picture_file(str(path)) != (path.resolve(), part), (
        "two runs at once would write one file"
    )
    monkeypatch.setattr(
        os, "access", lambda *_: False
    )  # an administrator may write everywhere, whatever the bits
    for save in (picture_file, lambda path: plot_curve([2.3], path=path)):
        with pytest.raises(OSError, match="may be written to"):
            save(str(path))


# ---- data sets in place


def test_files_in_place_are_read_and_normalized_as_torchvision_does(data_dir: Path) -> None:
    dataset = load_dataset("MNIST", str(data_dir))
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    for train, (images, labels) in ((True, dataset.train), (False, dataset.test)):
        expected = torchvision.datasets.MNIST(str(data_dir), train=train, transform=transform)
        assert images.dtype == np.float32
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(
            images, np.stack([np.asarray(image[0]) for image, _ in expected])
        )
        np.testing.assert_array_equal(labels, expected.targets)
        assert labels.flags.writeable
    assert (dataset.name, dataset.source) == ("MNIST", str(data_dir / "MNIST" / "raw"))


def test_compressed_files_are_read_as_they_are(data_dir: Path) -> None:
    expected, raw = load_dataset("MNIST", str(data_dir)), data_dir / "MNIST" / "raw"
    for name in FILES:
        (raw / name).write_bytes(
            gzip.compress((raw / name).read_bytes())
        )  # without .gz, as some browsers save it
    for name in FILES[1:]:
        (raw / name).rename(raw / f"{name}.gz")
    (raw / f"{FILES[0]}.gz").write_bytes(b"of two, the one without .gz is read")
    dataset = load_dataset("MNIST", str(data_dir))
    np.testing.assert_equal((dataset.train, dataset.test), (expected.train, expected.test))
    assert sorted(path.name for path in raw.iterdir()) == sorted(
        [FILES[0], *(f"{name}.gz" for name in FILES)]
    )


def test_files_in_place_need_neither_torch_nor_torchvision_nor_sklearn(data_dir: Path) -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "sklearn")))  # importing them is now an error
from numpy_mnist import main
sys.exit(main())
"""
    command = [
        sys.executable,
        "-c",
        program,
        "--data-dir",
        str(data_dir),
        "--plot",
        str(data_dir / "loss.png"),
    ]
    run = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False
    )
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
    framed = (
        np.pad(np.kron(original.reshape(-1, 8, 8), np.ones((3, 3))), ((0, 0), (2, 2), (2, 2))) / 16
    )
    np.testing.assert_allclose(test_images * 0.3081 + 0.1307, framed[1500:], atol=1e-6)
    shifts = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    for shift, images in zip(shifts, train_images.reshape(25, 1500, 28, 28), strict=True):
        np.testing.assert_allclose(
            images * 0.3081 + 0.1307, np.roll(framed[:1500], shift, (1, 2)), atol=1e-6
        )


# ---- the download, from a server that stands in for the real ones


@pytest.fixture
def server(
    tmp_path: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Serve the files of each data set, compressed, told apart by the last label; return the folder that is served."""
    folder = tmp_path / "served"
    # What is moved into place from a folder elsewhere fails where that is another file system: here, anywhere else.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        for number, name in enumerate(DATASETS[:3]):
            (folder / name).mkdir(parents=True)
            resources = []
            for file, content in contents.items():
                compressed = gzip.compress(content[:-1] + bytes([number]))
                (folder / name / f"{file}.gz").write_bytes(compressed)
                resources.append((f"{file}.gz", hashlib.md5(compressed).hexdigest()))
            source = getattr(torchvision.datasets, name)
            monkeypatch.setattr(
                source, "mirrors", [f"http://127.0.0.1:{httpd.server_port}/{name}/"]
            )
            monkeypatch.setattr(source, "resources", resources)
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield folder
        httpd.shutdown()


def files_below(folder: Path) -> set[str]:
    """Return the names of all files and folders below `folder`."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", DATASETS[:3])
def test_each_data_set_is_downloaded_once_into_a_folder_of_its_own(
    name: str, server: Path, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("fault", ["file is missing", "file has other content", "no torchvision"])
def test_failed_download_is_a_sentence_and_leaves_no_file(
    fault: str, server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "new" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / FILES[0]).write_bytes(b"there before")
    last = server / "MNIST" / f"{FILES[3]}.gz"
    if fault == "file is missing":
        last.unlink()
    elif fault == "file has other content":
        last.write_bytes(gzip.compress(idx(np.zeros(20, np.uint8))))
    else:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(DataError) as caught:
        load_dataset("MNIST", str(tmp_path / "new"))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("MNIST could not be downloaded (")
    assert message.endswith(
        f"; to use it, put {', '.join(FILES[1:])}, each unpacked or as a .gz, into {raw}"
    )
    assert files_below(tmp_path / "new") == {"MNIST", "MNIST/raw", f"MNIST/raw/{FILES[0]}"}


@pytest.mark.usefixtures("server")
def test_interrupted_download_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts = []

    def interrupt(*_: object) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise KeyboardInterrupt

    monkeypatch.setattr(
        torchvision.datasets.MNIST, "_load_data", interrupt
    )  # all four are extracted by then
    with pytest.raises(KeyboardInterrupt):
        load_dataset("MNIST", str(tmp_path / "new"))
    assert [*timeouts, socket.getdefaulttimeout()] == [10, None]
    assert files_below(tmp_path / "new") == {"MNIST", "MNIST/raw"}


# ---- what can't be had


def test_scikit_learn_that_fails_on_import_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sklearn.py").write_text("raise SystemError('built for another NumPy')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    words = "the digits data set needs scikit-learn, which can't be imported (built for another NumPy): python -m pip"
    with pytest.raises(DataError, match=re.escape(words)):
        load_dataset("digits")


NO_IDX = "bytes are no IDX file of N×28×28 bytes"
DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "empty file": (FILES[0], lambda content: b"", NO_IDX),
    "no images": (FILES[0], lambda content: idx(np.zeros((0, 28, 28), np.uint8)), NO_IDX),
    "cut in an image": (FILES[0], lambda content: content[:-1], NO_IDX),
    "cut after an image": (FILES[0], lambda content: content[:-784], NO_IDX),
    "floats": (FILES[0], lambda content: b"\0\0\x0d\x03" + content[4:], NO_IDX),
    "14×56": (FILES[0], lambda content: idx(np.zeros((30, 14, 56), np.uint8)), NO_IDX),
    "compressed, cut": (
        FILES[0],
        lambda content: gzip.compress(content)[:-9],
        "it can't be read (",
    ),
    "compressed, checksum": (
        FILES[0],
        lambda content: gzip.compress(content)[:-8] + bytes(8),
        "it can't be read (",
    ),
    "compressed, no deflate": (
        FILES[0],
        lambda content: b"\x1f\x8b" + b"\xff" * 99,
        "it can't be read (",
    ),
    "label 10": (
        FILES[1],
        lambda content: content[:-1] + b"\x0a",
        "it has 30 labels from 0 to 10, expected 30 from",
    ),
    "29 labels": (
        FILES[1],
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
    with pytest.raises(
        DataError,
        match=f"^{re.escape(str(path))} can't be used: .*{re.escape(words)}.*; move it away",
    ):
        load_dataset("MNIST", str(data_dir))
    assert path.read_bytes() == content


def test_file_or_folder_that_can_not_be_read_is_named(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = data_dir / "MNIST" / "raw"
    (raw / FILES[1]).unlink()
    (raw / FILES[1]).mkdir()
    words = rf"^{re.escape(str(raw / FILES[1]))} can't be used: it can't be read \(\w+ .*\); move"
    with pytest.raises(DataError, match=words):
        load_dataset("MNIST", str(data_dir))
    monkeypatch.setattr(os, "listdir", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(DataError, match=re.escape(f"{raw} can't be read (Permission denied)")):
        load_dataset("MNIST", str(data_dir), fallback=True)
