"""Tests of targets, data sets, downloads and the picture of a run."""

import gzip
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torchvision import datasets, transforms

from tests.conftest import idx
from utils import DATASETS, FILES, DataError, load_dataset, moving_average, one_hot, plot_curve


def test_one_hot_sets_the_label_and_refuses_others() -> None:
    targets = one_hot(np.array([2, 0, 9], np.uint8))
    np.testing.assert_array_equal(targets, np.eye(10, dtype=np.float32)[[2, 0, 9]], strict=True)
    np.testing.assert_array_equal(one_hot(torch.tensor([1, 0]), 2), [[0, 1], [1, 0]])
    for labels in ([0, 10], [0, -1], [0, 0.5], [[0], [1]], np.eye(10)):
        with pytest.raises(ValueError, match=f"labels .* 0 to 9 .* to {np.max(labels)} in shape"):
            one_hot(labels)


def test_moving_average_has_a_window_that_shrinks_at_the_ends() -> None:
    values = np.random.default_rng(0).random(200)
    averages = moving_average(values.tolist())
    expected = [values[:21].mean(), values[75:126].mean(), values[-21:].mean()]
    np.testing.assert_allclose(averages[[10, 100, -11]], expected)


@patch.object(Figure, "savefig", Mock())
def test_picture_shows_accuracies_and_losses_and_cuts_off_a_loss_spike() -> None:
    losses = [*(0.1 + 2.2 * 0.9 ** np.arange(200)), 27.6]
    loss, accuracy, *_ = plot_curve(losses, [0.9, 0.95], [0.91, 0.97]).axes
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), losses)
    np.testing.assert_array_equal(loss.lines[1].get_ydata(), moving_average(losses))
    lines = {line.get_label().split()[0]: line.get_xydata().tolist() for line in accuracy.lines}
    assert lines == {"test": [[0, 0.9], [1, 0.95]], "training": [[0, 0.91], [1, 0.97]]}
    for axes, words in ((loss, "step.* loss .nats"), (accuracy, "epoch.*accuracy .fraction")):
        assert re.search(words, f"{axes.get_xlabel()} {axes.get_ylabel()}")
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert names == [line.get_label() for line in axes.lines]
    assert "27.60" in loss.lines[0].get_label()
    assert loss.get_ylim() == (0, pytest.approx(2.6, abs=0.3))
    assert plot_curve([2.3, *[25.0] * 99]).axes[0].get_ylim()[1] > 25


def trained(mistakes: int, shape: tuple[int, int] = (784, 40), scale: float = 1) -> tuple[Any, Any]:
    """Return a stand-in for a model, and 20 test images with this number of mistakes."""
    rng = np.random.default_rng(0)
    y_pred = np.log(rng.dirichlet(np.ones(10), 20))
    labels = (y_pred.argmax(axis=1) + (np.arange(20) < mistakes)) % 10
    model = SimpleNamespace(W1=scale * rng.standard_normal(shape), forward=lambda _: scale * y_pred)
    return model, (rng.random((20, 28, 28)), labels)


@patch.object(Figure, "savefig", Mock())
def test_picture_shows_the_largest_columns_and_the_most_certain_mistakes() -> None:
    model, (images, labels) = trained(15)
    figure = plot_curve([2.3], [], [], model, (images, labels))
    weights, *mistakes = [axes for axes in figure.axes if axes.images]
    largest = np.argsort(-(model.W1**2).sum(axis=0))[:32]
    for i, column in enumerate(model.W1.T[largest]):
        tile = weights.images[0].get_array()[30 * (i // 8) :, 30 * (i % 8) :][1:29, 1:29]
        np.testing.assert_array_equal(tile, column.reshape(28, 28))
    low, high = weights.images[0].get_clim()
    assert -low == high == abs(model.W1[:, largest]).max()
    y_pred = model.forward(images)
    most_certain = sorted(range(15), key=lambda i: -y_pred[i].max())
    for axes, i in zip(mistakes, most_certain[:8], strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), images[i])
        predicted = y_pred[i].argmax()
        p, p_label = np.exp(y_pred[i, [predicted, labels[i]]])
        expected = [str(predicted), f"{p:.3f}", str(labels[i]), f"{p_label:.3f}"]
        assert re.findall(r"[\d.]+", axes.get_title()) == expected


@pytest.mark.filterwarnings("error")
def test_picture_of_every_model_is_saved_in_the_format_of_its_extension(tmp_path: Path) -> None:
    for (model, test_set), count, name, start in (
        (trained(3, scale=np.nan), 0, "diverged.PNG", b"\x89PNG"),
        (trained(0), 1, "no mistakes.pdf", b"%PDF"),
        (trained(0, scale=0), 9, "weights of zero.svg", b"<?xml"),
        (trained(3, (785, 8)), 4, "8 columns with a bias.png", b"\x89PNG"),
    ):
        path = tmp_path / name
        figure = plot_curve([2.3], [], [], model, test_set, name, str(path))
        assert sum(len(axes.images) for axes in figure.axes) == count
        assert figure.get_suptitle() == name
        assert path.read_bytes().startswith(start)


@patch.object(Figure, "savefig", Mock())
def test_window_is_shown_only_with_an_interactive_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    plot_curve([2.3])
    monkeypatch.setattr(FigureCanvasBase, "required_interactive_framework", "qt")
    figure = plot_curve([2.3])
    assert shown == [figure]
    assert not plt.fignum_exists(figure.number)


def test_run_from_a_notebook_needs_no_torch(data_dir: Path, monkeypatch: Any) -> None:
    program = "import sys; sys.modules.update(torch=None, torchvision=None, sklearn=None)"
    program += "; from numpy_mnist import main; main()"
    monkeypatch.chdir(data_dir.parent)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr, Path("loss.png").exists()) == (0, "", True)
    accuracies = r"(\[\d\] Accuracy: [01]\.\d{4}\n){3}"
    assert re.fullmatch(rf"MNIST: 30 .* 20 .*\n{accuracies}.* loss\.png\n", result.stdout)


def test_images_equal_those_that_torchvision_normalizes(data_dir: Path) -> None:
    dataset = load_dataset("MNIST", str(data_dir))
    normalize = transforms.Normalize((0.1307,), (0.3081,))
    for train, (images, labels) in ((True, dataset.train), (False, dataset.test)):
        expected = datasets.MNIST(str(data_dir), train=train)
        pixels = normalize(expected.data.to(torch.float32).div(255)).numpy()
        np.testing.assert_array_equal(images, pixels, strict=True)
        np.testing.assert_array_equal(labels, expected.targets)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["{0}", "{1}", "{0}.gz", "{1}.gz"])
@pytest.mark.parametrize("folder", ["", "{0}/", "{1}/"])
def test_hand_placed_files_are_found(folder: str, name: str, packed: bool, data_dir: Path) -> None:
    expected = load_dataset("MNIST", str(data_dir))
    raw = data_dir / "MNIST" / "raw"
    for file in FILES:
        content = (raw / file).read_bytes()
        (raw / file).unlink()
        path = raw / (folder + name).format(file, file.replace("-idx", ".idx"))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(content) if packed else content)
    np.testing.assert_equal(load_dataset("MNIST", str(data_dir)), expected)


def test_digits_have_shifted_training_images_and_test_images_of_other_writers(digits: Any) -> None:
    original, labels = load_digits(return_X_y=True)
    enlarged = np.kron(original.reshape(-1, 8, 8), np.ones((3, 3)))
    framed = (np.pad(enlarged, ((0, 0), (2, 2), (2, 2))) / 16 - 0.1307) / 0.3081
    for shift, images in zip(np.ndindex(5, 5), np.split(digits.train[0], 25), strict=True):
        rolled = np.roll(framed[:1500], np.subtract(shift, 2), (1, 2))
        np.testing.assert_allclose(images, rolled, atol=1e-6)
    np.testing.assert_allclose(digits.test[0], framed[1500:], atol=1e-6)
    np.testing.assert_array_equal(digits.train[1], np.tile(labels[:1500], 25))
    np.testing.assert_array_equal(digits.test[1], labels[1500:])
    assert digits.train[0].dtype == digits.test[0].dtype == np.float32


def test_damaged_file_is_named_and_kept(data_dir: Path, contents: dict[str, bytes]) -> None:
    images, labels, *_ = contents.values()
    packed = gzip.compress(images)
    damaged_labels = [images, labels + bytes(1), labels[:-1] + b"\x0a", idx(np.zeros(29, np.uint8))]
    damaged_images = [b"", images[:-1], images[:-784], images + bytes(1), images + bytes(783)]
    damaged_images += [b"<!DOCTYPE html>" + bytes(99), labels, b"\0\0\x0d" + images[3:]]
    damaged_images += [packed[:-9], packed[:10] + b"\xff" * 99]
    for file, damages in ((FILES[1], damaged_labels), (FILES[0], damaged_images)):
        path = data_dir / "MNIST" / "raw" / file
        for content in damages:
            path.write_bytes(content)
            with pytest.raises(DataError, match=f"^{re.escape(str(path))} .*delete (it|both).*$"):
                load_dataset("MNIST", str(data_dir), fallback=True)
            assert path.read_bytes() == content


@pytest.fixture
def server(tmp_path: Path, contents: dict[str, bytes], monkeypatch: Any) -> Iterator[Path]:
    """Serve the files, with 0 as the last label, for each data set; return the served folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    for file, content in contents.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content[:-1] + bytes(1)))
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        for name in DATASETS[:3]:
            source = getattr(datasets, name)
            monkeypatch.setattr(source, "mirrors", [f"http://127.0.0.1:{httpd.server_port}/"])
            monkeypatch.setattr(source, "resources", [(f"{file}.gz", None) for file in FILES])
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield folder
        httpd.shutdown()


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("name", DATASETS[:3])
def test_missing_files_are_downloaded_once(name: str, tmp_path: Path, contents: Any) -> None:
    raw = tmp_path / name / "raw"
    raw.mkdir(parents=True)
    (raw / FILES[1]).write_bytes(contents[FILES[1]])
    for modules in ({}, {"torchvision": None}):  # the second time, there is nothing to download
        with patch.dict(sys.modules, modules):
            dataset = load_dataset(name, str(tmp_path))
        assert (dataset.name, dataset.train[1][-1], dataset.test[1][-1]) == (name, 9, 0)
    assert (raw / FILES[1]).read_bytes() == contents[FILES[1]]
    assert {path.name for path in raw.iterdir()} == set(FILES)


def test_failed_download_leaves_no_file(server: Path, data_dir: Path) -> None:
    raw = data_dir / "MNIST" / "raw"
    for file in FILES[1:]:
        (raw / file).unlink()
    # The interruption comes when all four files have been downloaded.
    interrupted = patch.object(datasets.MNIST, "_load_data", side_effect=KeyboardInterrupt)
    with interrupted, pytest.raises(KeyboardInterrupt):
        load_dataset("MNIST", str(data_dir))
    last = server / f"{FILES[3]}.gz"
    last.write_bytes(last.read_bytes()[:-9])
    words = f"^MNIST could not be downloaded .*{', '.join(FILES[1:])}.* {re.escape(str(raw))}$"
    for modules in ({}, {"torchvision": None}):
        with patch.dict(sys.modules, modules), pytest.raises(DataError, match=words):
            load_dataset("MNIST", str(data_dir))
    assert [path.name for path in raw.iterdir()] == [FILES[0]]
