"""Tests of mini-batches, training and the command line."""

import inspect
import os
import re
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
import torchvision

import numpy_mnist
from numpy_fnn import NumpyLoss, NumpyModel
from numpy_mnist import main, mini_batch, train
from tests.torch_reference import TorchModel
from utils import Dataset, load_dataset, one_hot, plot_curve

IMAGES = np.random.default_rng(0).standard_normal((10, 28, 28), np.float32)
LABELS = np.arange(10, dtype=np.uint8)
PAIRS = list(zip(IMAGES, LABELS.tolist(), strict=True))
IMAGES.setflags(write=False)
LABELS.setflags(write=False)


def test_mini_batch_yields_every_image_once_with_its_label() -> None:
    tensors = (torch.tensor(IMAGES), torch.tensor(LABELS))
    doubles = (IMAGES.astype(np.float64), LABELS)
    for dataset in ((IMAGES, LABELS), tensors, doubles, PAIRS, tuple(PAIRS[:2])):
        batches = list(islice(mini_batch(dataset, batch_size=4), 5))
        images = np.concatenate([x for x, _ in batches])
        labels = np.concatenate([y for _, y in batches])
        sizes = [2] if len(labels) == 2 else [4, 4, 2]
        assert [len(y) for _, y in batches] == sizes
        assert sorted(labels) == list(range(sum(sizes)))
        np.testing.assert_array_equal(images, IMAGES[labels])
        assert images.dtype == (np.float64 if dataset is doubles else np.float32)


def test_mini_batch_shuffles_the_whole_set_and_follows_its_rng() -> None:
    numbers = np.arange(100)

    def order(rng: Any = None) -> list[int]:
        batches = mini_batch((numbers.astype(np.float32), numbers), 10, rng)
        return np.concatenate([labels for _, labels in islice(batches, 20)]).tolist()

    assert min(np.ptp(np.reshape(order(0), (10, 10)), axis=1)) > 50
    assert order(0) == order(0) != order(1)
    assert order() != order()
    generator = np.random.default_rng(0)
    assert order(generator) == order(0) != order(generator)


def test_bad_data_is_refused_before_the_first_step() -> None:
    model = NumpyModel(0)
    for dataset, batch_size, words in (
        ((IMAGES[:0], LABELS[:0]), 4, "got 0"),
        ((IMAGES, LABELS[:9]), 4, r"labels .*\(9,\)"),
        ((IMAGES, LABELS[:, None]), 4, r"labels .*\(10, 1\)"),
        ((IMAGES, LABELS + 1), 10, "labels .* 10"),
        ((IMAGES[:, :14], LABELS), 4, r"\(4, 14, 28\)"),
        ((IMAGES.astype(np.uint8), LABELS), 4, "uint8"),
        (PAIRS, 0, "batch_size .* 0"),
    ):
        with pytest.raises(ValueError, match=words):
            train(model, dataset, PAIRS, 1, batch_size)
    np.testing.assert_array_equal(model.W1, NumpyModel(0).W1)


def test_training_loop_of_the_course_learns_from_a_torchvision_data_set(data_dir: Path) -> None:
    transform = torchvision.transforms.ToTensor()
    train_dataset = torchvision.datasets.MNIST(str(data_dir), transform=transform)
    model = NumpyModel(0)
    numpy_loss: Any = NumpyLoss()
    train_loss = []
    for _ in range(50):
        for x, y in mini_batch(train_dataset, batch_size=15):
            assert x.shape == (15, 1, 28, 28)
            y_pred = model.forward(x)
            loss = numpy_loss.get_loss(y_pred, one_hot(y))
            model.backward(numpy_loss.backward())
            model.optimize(0.1)
            train_loss.append(loss.item())
    assert train_loss[-1] < train_loss[0] / 10


def test_training_learns_digits_in_float32(digits: Dataset) -> None:
    model = NumpyModel(0)
    history = train(model, digits.train, digits.test, learning_rate=np.float64(0.1), rng=0)
    assert [len(values) for values in vars(history).values()] == [3 * 293, 3, 3]
    assert history.accuracies[-1] > 0.9
    assert {W.dtype for W in (model.W1, model.W2, model.W3)} == {np.dtype(np.float32)}
    assert model.x1_grad is None, "x1_grad is not needed, and takes a third of the time"


def test_losses_of_two_epochs_equal_those_of_pytorch(digits: Dataset) -> None:
    train_set = (digits.train[0][::4].astype(np.float64), digits.train[1][::4])
    model = NumpyModel(0)
    weights: list[np.ndarray] = [W.astype(np.float64) for W in (model.W1, model.W2, model.W3)]
    model.W1, model.W2, model.W3 = weights
    reference = TorchModel(*weights)
    losses = train(model, train_set, PAIRS, 2, 128, 0.1, rng=1).losses
    rng = np.random.default_rng(1)
    expected = []
    for x, y in [*mini_batch(train_set, 128, rng), *mini_batch(train_set, 128, rng)]:
        expected.append(reference.backward(reference.forward(x), np.eye(10)[y]))
        reference.optimize(0.1)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-12)


def test_accuracies_cover_the_test_set_and_a_sample_of_the_training_set() -> None:
    images = np.zeros((20000, 28, 28), np.float32)  # the predicted class stays 0
    number = np.arange(20000)
    history = train(NumpyModel(0), (images, number // 10000), (images, number // 19999), 1, 5000)
    assert history.accuracies == [19999 / 20000]
    assert history.train_accuracies == [pytest.approx(0.5, abs=0.05)]


@pytest.fixture
def run(data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Return a function that runs the command line on small files; its keywords are constants."""

    def run(*options: str, **constants: object) -> SimpleNamespace:
        plot = Mock()
        for name, value in {"DATA_DIR": str(data_dir), "plot_curve": plot, **constants}.items():
            monkeypatch.setattr(numpy_mnist, name, value)
        result = SimpleNamespace(code=0, picture={})
        try:
            main(options)
        except SystemExit as error:
            print(error.code, file=sys.stderr)  # as Python does for a string
            result.code = 1 if isinstance(error.code, str) else error.code
        result.out, result.err = capsys.readouterr()
        for args, kwargs in plot.call_args_list:
            result.picture = inspect.signature(plot_curve).bind(*args, **kwargs).arguments
        return result

    return run


def test_defaults_are_those_of_the_first_experiment(run: Any) -> None:
    names = ("EPOCH_NUMBER", "BATCH_SIZE", "LEARNING_RATE", "SEED", "DATASET", "DATA_DIR", "PLOT")
    values = [3, 128, 0.1, 0, "MNIST", "data", "loss.png"]
    assert [getattr(numpy_mnist, name) for name in names] == values
    assert "batch_size: int = 128" in str(inspect.signature(mini_batch))
    assert "learning_rate: float = 0.1" in str(inspect.signature(train))
    assert "(default: 128)" in run("--help").out


@pytest.mark.parametrize("kind", ["options", "constants"])
def test_options_and_constants_reach_the_run(kind: str, run: Any, data_dir: Path) -> None:
    (data_dir / "MNIST").rename(data_dir.parent / "KMNIST")
    values: dict[str, Any] = {"epoch_number": 2, "batch_size": 15, "learning_rate": 0.25, "seed": 5}
    values |= {"dataset": "KMNIST", "data_dir": str(data_dir.parent), "plot": "curve.svg"}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    constants = {name.upper(): value for name, value in values.items()}
    result = run(*options) if kind == "options" else run(**constants)
    data = load_dataset("KMNIST", values["data_dir"])
    rng = np.random.default_rng(5)
    model = NumpyModel(rng)
    history = train(model, data.train, data.test, 2, 15, 0.25, rng)
    picture = result.picture
    expected = {**vars(history), "path": "curve.svg"}
    assert {name: picture[name] for name in expected} == expected
    np.testing.assert_equal((picture["model"].W1, picture["test_set"]), (model.W1, data.test))
    assert re.fullmatch(r"KMNIST\b.* 2 of 2 .* 15\b.* 0\.25\b.* 5", picture["title"])
    lines = [f"[{i}] Accuracy: {history.accuracies[i]:.4f}\n" for i in (0, 1)]
    assert result.out.endswith("".join([*lines, "The loss curve is in curve.svg\n"]))


def test_bad_option_ends_with_a_sentence_before_data_is_read(run: Any) -> None:
    loaded = Mock()
    for option, values in (
        ("--epoch-number", ["1.5", "0"]),
        ("--batch-size", ["0"]),
        ("--learning-rate", ["fast", "0.0", "-0.1", "inf", "nan"]),
        ("--seed", ["-1"]),
        ("--dataset", ["mnist"]),
        ("--plot", ["loss.xyz", "missing/loss.png"]),
    ):
        for value in values:
            result = run(f"{option}={value}", load_dataset=loaded)
            assert result.code == 2, (option, value)
            assert re.search(rf"{option}\b.*[ ']{re.escape(value)}\b", result.err)
    loaded.assert_not_called()


@patch.object(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])
def test_failed_download_falls_back_to_digits_without_an_option(run: Any, tmp_path: Path) -> None:
    result = run(EPOCH_NUMBER=1, DATA_DIR=str(tmp_path))
    assert (result.code, "MNIST" in result.out) == (0, False)
    assert result.out.startswith("digits: 37500 training and 297 test images")
    assert result.picture["title"].startswith("digits: 1 of 1 epochs, ")
    assert "MNIST could not be downloaded" in result.err.splitlines()[-1]
    result = run("--dataset=MNIST", DATA_DIR=str(tmp_path))
    assert (result.code, result.out, result.picture) == (1, "", {})
    assert "MNIST could not be downloaded" in result.err.splitlines()[-1]


def test_run_warns_if_its_last_accuracy_is_below_one_half(run: Any) -> None:
    for accuracies, count in (([0.1, 0.9, 0.4999], 1), ([0.9, 0.1, 0.5], 0)):
        evaluated = np.transpose([accuracies, [0.6, 0.7, 0.8]]).ravel().tolist()  # test, training
        result = run(evaluate=Mock(side_effect=evaluated))
        assert (result.code, result.picture["accuracies"]) == (0, accuracies)
        assert len(re.findall(f"{accuracies[-1]:.4f}.*learning rate", result.err)) == count


@pytest.mark.filterwarnings("error")
def test_diverged_run_saves_the_curve_and_ends_with_a_sentence(run: Any) -> None:
    result = run("--batch-size=30", "--learning-rate=1e38")
    assert result.code == 1
    assert re.fullmatch(r".* step 1 \(epoch 1\).* learning rate.*\n", result.err)
    assert len(result.picture["losses"]) == len(result.picture["accuracies"]) == 1
    assert result.picture["title"].startswith("MNIST: 1 of 3 epochs, ")


def test_run_interrupted_in_its_first_epoch_saves_the_curve(run: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(NumpyModel, "optimize", Mock(side_effect=[None, KeyboardInterrupt]))
    result = run("--batch-size=10")
    assert (result.code, result.err) == (1, "Interrupted after 2 steps.\n")
    assert result.picture["title"].startswith("MNIST: 0 of 3 epochs, ")
    assert len(result.picture["losses"]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a single process")
def test_ctrl_c_ends_the_process_with_a_sentence_and_a_picture(data_dir: Path) -> None:
    with subprocess.Popen(
        [sys.executable, numpy_mnist.__file__, "--epoch-number=100000", "--batch-size=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=data_dir.parent,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        # A shell's background jobs ignore SIGINT, and so do their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        line = next(islice(process.stdout, 1, None))
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    [steps] = re.findall(r"\AInterrupted after (\d+) steps\.\n\Z", error)
    assert int(steps) / 30 < 4096 / len(line), "lines wait until they fill a buffer"
    assert (process.returncode, (data_dir.parent / "loss.png").exists()) == (1, True)
