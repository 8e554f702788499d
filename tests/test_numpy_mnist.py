"""Mini-batches, training by the course's own code and against PyTorch, the command line, runs that do not end well."""

import inspect
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision

import numpy_mnist
from numpy_fnn import NumpyLoss, NumpyModel
from numpy_mnist import History, evaluate, main, mini_batch, train
from tests.gradient_check import keeping
from tests.torch_reference import TorchModel
from utils import FILES, DataError, Dataset, load_dataset, one_hot, plot_curve

IMAGES = np.random.default_rng(0).standard_normal((10, 28, 28), np.float32)
LABELS = np.arange(10, dtype=np.uint8)
PAIRS = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]

# ---- mini-batches


def labels_of(dataset: Any, batch_size: int, rng: Any = None) -> list[list[int]]:
    """Return the labels of each batch."""
    return [labels.tolist() for _, labels in mini_batch(dataset, batch_size, rng)]


@pytest.mark.parametrize(
    ("dataset", "sizes"),
    [
        pytest.param((IMAGES, LABELS), [4, 4, 2], id="arrays"),
        pytest.param([IMAGES, LABELS.tolist()], [4, 4, 2], id="array and list"),
        pytest.param((torch.tensor(IMAGES), torch.tensor(LABELS)), [4, 4, 2], id="tensors"),
        pytest.param(PAIRS, [4, 4, 2], id="pairs"),
        pytest.param(tuple(PAIRS[:2]), [2], id="two pairs"),
    ],
)
def test_mini_batch_yields_every_image_once_with_its_label(dataset: Any, sizes: list[int]) -> None:
    with keeping("mini_batch", images=IMAGES, labels=LABELS):
        batches = list(mini_batch(dataset, batch_size=4))
    found = [len(labels) for _, labels in batches]
    assert found == sizes, f"mini_batch yields batches of {found} images, expected {sizes}, the last one shorter"
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    assert sorted(labels) == list(range(sum(sizes))), "mini_batch does not yield every label once"
    assert np.array_equal(images, IMAGES[labels]), "mini_batch yields images with the labels of others"
    assert images.dtype == np.float32, f"mini_batch turns float32 images into {images.dtype}"


def test_mini_batch_shuffles_by_rng() -> None:
    dataset = (IMAGES, LABELS)
    assert labels_of(dataset, 10, 0) != [sorted(LABELS)], "mini_batch does not shuffle"
    assert labels_of(dataset, 10, 0) == labels_of(dataset, 10, 0), (
        "mini_batch: rng is not used: a seed gives two orders"
    )
    assert labels_of(dataset, 10, 0) != labels_of(dataset, 10, 1), (
        "mini_batch: rng is not used: two seeds give one order"
    )
    assert labels_of(dataset, 10) != labels_of(dataset, 10), "mini_batch: without rng, two calls give one order"
    generator = np.random.default_rng(0)
    first, second = labels_of(dataset, 10, generator), labels_of(dataset, 10, generator)
    assert first != second, "mini_batch: of one generator, two calls draw one order"
    assert first == labels_of(dataset, 10, 0), "mini_batch: a seed and its generator give two orders"


def test_mini_batch_takes_a_torchvision_data_set(data_dir: Path) -> None:
    transform = torchvision.transforms.ToTensor()
    batches = list(mini_batch(torchvision.datasets.MNIST(str(data_dir), transform=transform), 7))
    assert [images.shape for images, _ in batches] == [(7, 1, 28, 28)] * 4 + [(2, 1, 28, 28)]
    assert batches[0][0].dtype == np.float32


@pytest.mark.parametrize(
    ("dataset", "batch_size", "words"),
    [
        pytest.param([], 4, "the data set has 0 images", id="no pairs"),
        pytest.param((IMAGES[:0], LABELS[:0]), 4, "the data set has 0 images", id="empty arrays"),
        pytest.param(PAIRS, 0, "batch_size is 0, expected 1 or more", id="size 0"),
        pytest.param((IMAGES, LABELS[:9]), 4, "labels has shape (9,), expected (10,)", id="9 labels"),
        pytest.param((IMAGES, one_hot(LABELS)), 4, "labels has shape (10, 10), expected (10,)", id="one-hot labels"),
    ],
)
def test_mini_batch_of_bad_data(dataset: Any, batch_size: int, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        next(mini_batch(dataset, batch_size))


# ---- training


def test_training_by_the_course_runs_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, default_rng = itertools.count(), np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda rng=None: default_rng(next(seeds) if rng is None else rng))
    rng = np.random.default_rng(0)
    train_dataset = [(IMAGES[i % 10] + rng.standard_normal((28, 28)) / 10, i % 10) for i in range(300)]
    model: Any = NumpyModel()
    numpy_loss: Any = NumpyLoss()
    train_loss = []
    for _ in range(3):
        for x, y in mini_batch(train_dataset, batch_size=32):
            y_pred = model.forward(x)
            loss = numpy_loss.get_loss(y_pred, one_hot(y))
            model.backward(numpy_loss.backward())
            model.optimize(0.1)
            train_loss.append(loss.item())
    assert train_loss[-1] < 0.1 < train_loss[0]
    assert np.mean(model.forward(IMAGES).argmax(axis=1) == LABELS) == 1


def test_training_learns_and_keeps_float32(digits: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    model, images = NumpyModel(0), digits.train[0].astype(np.float64)
    history = train(model, (images, digits.train[1]), digits.test, rng=0)
    assert len(history.losses) == 3 * 293
    assert len(history.accuracies) == len(history.train_accuracies) == len(history.seconds) == 3
    assert history.accuracies[-1] > 0.9
    assert history.accuracies[-1] == np.mean(model.forward(digits.test[0]).argmax(axis=1) == digits.test[1])
    assert history.train_accuracies[-1] == evaluate(model, images[:10000], digits.train[1][:10000])
    assert min(history.seconds) > 0
    assert model.x1_grad is None
    assert capsys.readouterr().out == "".join(f"[{i}] Accuracy: {a:.4f}\n" for i, a in enumerate(history.accuracies))
    assert repr(history) == f"History(accuracies={history.accuracies})"
    dtypes = {getattr(model, name).dtype for name in ("W1", "W2", "W3", "W1_grad", "log_grad")}
    assert dtypes == {np.dtype("float32")}


@pytest.mark.parametrize(("source", "steps"), [("digits", 293), pytest.param("mnist", 469, marks=pytest.mark.mnist)])
def test_losses_of_a_whole_epoch_agree_with_torch(source: str, steps: int, request: pytest.FixtureRequest) -> None:
    dataset: Dataset = request.getfixturevalue(source)
    images, labels = dataset.train[0].astype(np.float64), dataset.train[1]
    model = NumpyModel(0)
    weights: list[np.ndarray] = [W.astype(np.float64) for W in (model.W1, model.W2, model.W3)]
    model.W1, model.W2, model.W3 = weights
    reference = TorchModel(*weights)
    history = train(model, (images, labels), (images[:10], labels[:10]), 1, 128, 0.1, np.random.default_rng(1))
    expected = []
    for x, y in mini_batch((images, labels), 128, np.random.default_rng(1)):
        expected.append(reference.backward(reference.forward(x), np.eye(10)[y]))
        reference.optimize(0.1)
    assert len(expected) == steps
    assert expected[-1] < expected[0] / 2
    np.testing.assert_allclose(history.losses, expected, rtol=0, atol=1e-12)


def test_defaults_are_the_constants() -> None:
    constants = {"epoch_number": 3, "batch_size": 128, "learning_rate": 0.1}
    for function in (train, mini_batch):
        parameters = inspect.signature(function).parameters
        defaults = {name: parameters[name].default for name in constants if name in parameters}
        assert defaults == {name: constants[name] for name in defaults} != {}


def test_order_is_another_in_each_epoch_and_by_the_seed_the_same_in_each_run() -> None:
    def losses(rng: Any) -> list[float]:  # at a rate that changes no weight, they tell the order
        return train(NumpyModel(0), PAIRS, PAIRS, 2, 3, 1e-30, rng).losses

    assert losses(0)[:4] != losses(0)[4:]
    assert losses(0) == losses(np.random.default_rng(0)) != losses(1)
    assert losses(None) != losses(None)


def test_seconds_are_those_of_the_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # ticks whenever it is read, and when the model is evaluated
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(numpy_mnist, "evaluate", lambda *_: next(clock) / 100)
    assert train(NumpyModel(0), PAIRS, PAIRS, 3).seconds == [1, 1, 1]


def test_evaluation_takes_what_forward_takes_and_a_label_for_each_image() -> None:
    model = NumpyModel(0)
    labels = model.forward(IMAGES).argmax(axis=1)
    labels[:5] = (labels[:5] + 1) % 10
    for images in (IMAGES, IMAGES.reshape(10, 784), torch.tensor(IMAGES)[:, None]):
        for expected in (labels, labels.tolist(), torch.tensor(labels)):
            assert evaluate(model, images, expected) == 0.5
    for wrong in (labels[:, None], labels[:1], 3):
        with pytest.raises(ValueError, match=r"^labels has shape .*, expected \(10,\)$"):
            evaluate(model, IMAGES, wrong)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"epoch_number": 0}, "epoch_number is 0, expected an integer of 1 or more"),
        ({"batch_size": 1e2}, "batch_size is 100.0, expected an integer of 1 or more"),
        *(({"learning_rate": rate}, f"learning_rate is {rate}, expected") for rate in (0, -0.1, np.nan, np.inf)),
        ({"train_set": (IMAGES.astype(np.uint8), LABELS)}, "images are uint8, expected floats"),
        ({"test_set": (IMAGES.astype(np.uint8), LABELS)}, "images are uint8, expected floats"),
        ({"train_set": (IMAGES, LABELS + 1)}, "labels are 1 to 10 "),
        ({"test_set": (IMAGES, LABELS[:, None])}, "labels has shape (10, 1), expected (10,)"),
        ({"test_set": (IMAGES[:, :14], LABELS)}, "x has shape (1, 14, 28), expected "),
        ({"test_set": []}, "the data set has 0 images"),
    ],
    ids=str,
)
def test_training_starts_with_the_right_hyperparameters_and_data_alone(changed: dict[str, Any], words: str) -> None:
    history = History()
    arguments = {"train_set": PAIRS, "test_set": PAIRS, "history": history, **changed}
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        train(NumpyModel(0), **arguments)
    assert history.losses == []


# ---- the command line


class Run(NamedTuple):
    """What a run of the command line leaves; `picture` are the arguments of plot_curve, {} where there was no call."""

    code: Any
    out: str
    err: str
    picture: dict[str, Any]


Runner = Callable[..., Run]


@pytest.fixture
def run(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    """Return a function that runs the command line on the small files, with options and edited constants."""

    def run(*options: object, draw: bool = False, **constants: object) -> Run:
        picture: dict[str, Any] = {}

        def plot(*arguments: Any, **named: Any) -> None:
            picture.update(inspect.signature(plot_curve).bind(*arguments, **named).arguments)
            if draw:
                plot_curve(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(numpy_mnist, "plot_curve", plot)
            for name, value in {"DATA_DIR": str(data_dir), "PLOT": str(tmp_path / "loss.png"), **constants}.items():
                patch.setattr(numpy_mnist, name, value)
            try:
                code: Any = main([str(option) for option in options])
            except SystemExit as error:
                code = error.code
        return Run(code, *capsys.readouterr(), picture)

    return run


def test_run_of_all_defaults_prints_data_set_accuracies_and_picture(
    run: Runner, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_dir.parent)
    monkeypatch.setattr(sys, "argv", ["kernel_launcher.py", "-f", "kernel.json"])  # a notebook's own
    result = run(draw=True, DATA_DIR="data", PLOT="loss.png")
    lines = result.out.splitlines()
    assert lines[0] == f"MNIST: 30 training and 20 test images from {Path('data', 'MNIST', 'raw')}"
    for epoch, line in enumerate(lines[1:4]):
        assert re.fullmatch(rf"\[{epoch}\] Accuracy: [01]\.\d{{4}}", line)
    assert lines[4:] == ["The loss curve is in loss.png"]
    assert (result.code, result.err) == (0, "")
    assert Path("loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in Path().iterdir()) == ["data", "loss.png"]
    assert run("--dataset", "MNIST", DATA_DIR="data", PLOT="loss.png").out == result.out
    assert plt.get_fignums() == []


def test_run_in_a_thread_saves_the_picture(run: Runner, tmp_path: Path) -> None:
    thread = threading.Thread(target=run, kwargs={"draw": True})
    thread.start()
    thread.join()
    assert (tmp_path / "loss.png").exists()


def test_every_option_reaches_the_run(run: Runner, data_dir: Path) -> None:
    options: Any = ([], ["--learning-rate", 0.2], ["--seed", 1], ["--batch-size", 8], ["--epoch-number", 1])
    pictures = [run("--batch-size", 10, "--epoch-number", 4, *each).picture for each in options]
    losses = [picture["losses"] for picture in pictures]
    assert [len(each) for each in losses] == [12, 12, 12, 16, 3]
    assert losses[0][0] == losses[1][0] != losses[2][0]
    assert losses[0][1] != losses[1][1]
    assert losses[0][:3] == losses[4]
    for name in ("accuracies", "train_accuracies"):
        assert [len(picture[name]) for picture in pictures] == [4, 4, 4, 4, 1]
    assert pictures[2]["title"] == "MNIST: 4 of 4 epochs, batch size 10, learning rate 0.1, seed 1"
    assert all(picture["show"] for picture in pictures)
    images, labels = pictures[0]["test_set"]
    np.testing.assert_array_equal(images, load_dataset("MNIST", str(data_dir)).test[0])
    assert evaluate(pictures[0]["model"], images, labels) == pictures[0]["accuracies"][-1]


def test_every_edited_constant_reaches_the_run(run: Runner, data_dir: Path, tmp_path: Path) -> None:
    (data_dir / "MNIST").rename(data_dir / "KMNIST")
    hyperparameters = {"EPOCH_NUMBER": 2, "BATCH_SIZE": 15, "LEARNING_RATE": 0.25, "SEED": 5}
    result = run(draw=True, DATASET="KMNIST", DATA_DIR=data_dir, PLOT=tmp_path / "curve.svg", **hyperparameters)
    assert result.picture["title"] == "KMNIST: 2 of 2 epochs, batch size 15, learning rate 0.25, seed 5"
    assert len(result.picture["losses"]) == 4
    assert (tmp_path / "curve.svg").exists()
    assert run(DATASET="mnist").err.startswith("the data set 'mnist' is not one of MNIST, ")


def test_help_explains_every_option_with_its_default(run: Runner) -> None:
    text = " ".join(run("--help", DATA_DIR="data", PLOT="loss.png").out.split())
    defaults = {"epoch-number": "3", "batch-size": "128", "learning-rate": "0.1", "seed": "0"}
    for option, default in {**defaults, "dataset": "MNIST", "data-dir": "data", "plot": "loss.png"}.items():
        assert re.search(rf"--{option} \S+ [^()]*\(default: {re.escape(default)}\)", text), option


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--epoch-number", "1.5", "epoch.number.*1.5"),
        *(("--epoch-number", number, f"epoch_number is {number}, expected") for number in (0, -1)),
        ("--batch-size", 1e2, "batch.size.* 100.0|'100.0'"),
        ("--batch-size", -128, "batch_size is -128, expected"),
        ("--learning-rate", "fast", "learning.rate.* 'fast'"),
        *(("--learning-rate", rate, f"learning_rate is {rate}, expected") for rate in (0.0, -0.1, np.nan, np.inf)),
        ("--seed", None, "seed.* None|'None'"),
        ("--seed", -1, "seed is -1, expected"),
        ("--plot", "loss", "'loss' has not one of the extensions .*png"),
        ("--plot", None, "None"),
        ("--plot", "loss.xyz", "'loss.xyz' has not one of the extensions "),
        ("--plot", "missing/loss.png", "missing.+loss.png"),
        ("--plot", "folder.png", "'folder.png' is there, and is no file"),
        pytest.param("--plot", f"{'x' * 300}.png", "too long|No such file|Invalid argument", id="--plot-too long"),
    ],
)
def test_bad_option_or_constant_is_a_sentence_before_any_data_is_touched(
    option: str, value: object, words: str, run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    monkeypatch.setattr(numpy_mnist, "load_dataset", lambda *_, **__: pytest.fail("the data was touched"))
    constant = {option[2:].upper().replace("-", "_"): value}
    for result in (run(f"{option}={value}"), run(**constant)):
        assert result.code == 2
        assert result.err.startswith("usage: ")
        assert re.search(f": error: .*({words})", result.err.splitlines()[-1]), result.err
    assert sorted(path.name for path in Path().iterdir()) == ["data", "folder.png"]


@pytest.mark.parametrize("backend", ["module://missing.backend", "module://json", "nonsense"])
def test_backend_that_can_not_be_had_does_not_stop_a_run(backend: str, data_dir: Path) -> None:
    command = [sys.executable, numpy_mnist.__file__, "--data-dir", str(data_dir), "--plot", str(data_dir / "loss.png")]
    result = subprocess.run(command, env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert (data_dir / "loss.png").exists()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> Path:
    """Let every download fail, and return the folder in which files are missing."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])
    (data_dir / "MNIST").rename(data_dir / "elsewhere")
    return data_dir / "MNIST" / "raw"


def test_failed_download_goes_on_with_digits(run: Runner, offline: Path) -> None:
    result = run("--epoch-number", 1)
    assert result.code == 0
    assert result.picture["title"].startswith("digits: 1 of 1 epochs, ")
    assert result.out.startswith("digits: 37500 training and 297 test images from scikit-learn\n[0] Accuracy: 0.")
    assert "MNIST" not in result.out
    sentence = result.err.splitlines()[-1]  # of a normal run, nothing more is said
    assert sentence.startswith("MNIST could not be downloaded (")
    assert sentence.endswith(f"{FILES[3]}, each unpacked or as a .gz, into {offline}; going on with digits.")


@pytest.mark.usefixtures("offline")
def test_data_set_that_can_not_be_had_is_an_error(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for options, words in ((["--dataset", "MNIST"], "MNIST could not be"), ([], "the digits data set needs")):
        result = run(*options)
        assert (result.code, result.out, result.picture) == (1, "", {})
        assert result.err.splitlines()[-1].startswith(words)


# ---- runs that do not end well


@pytest.mark.parametrize("error", [DataError("a file can't be used"), MemoryError("180 MiB"), MemoryError()], ids=repr)
def test_data_that_can_not_be_used_is_one_sentence(
    error: Exception, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> Dataset:
        raise error

    monkeypatch.setattr(numpy_mnist, "load_dataset", load)
    result = run()
    assert (result.code, result.out, result.err, result.picture) == (1, "", f"{str(error) or 'MemoryError'}.\n", {})


@pytest.mark.parametrize(
    "options",
    [
        ["--learning-rate", 1e-9],
        ["--learning-rate", 2, "--batch-size", 10, "--epoch-number", 20],
        ["--learning-rate", 1e6, "--epoch-number", 1],
    ],
    ids=str,
)
def test_run_that_learned_hardly_anything_says_so(options: list[object], run: Runner) -> None:
    result = run(*options)
    assert (result.code, result.err.count("\n")) == (0, 1)
    accuracy = f"{result.picture['accuracies'][-1]:.4f}"
    assert float(accuracy) < 0.5
    for words in (accuracy, "another learning rate", "more epochs", "tests.gradient_check"):
        assert words in result.err


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("options", "words", "epochs"),
    [
        (
            ["--learning-rate", 1e30, "--batch-size", 10],
            r"at step [12] \(epoch 0\) at learning rate 1e\+30; ",
            "0 of 3",
        ),
        (["--learning-rate", 1e38, "--epoch-number", 1], r"after epoch 0 at learning rate 1e\+38; ", "0 of 1"),
    ],
    ids=["in an epoch", "in the last step"],
)
def test_divergence_stops_the_run_and_saves_the_curve(
    options: list[object], words: str, epochs: str, run: Runner, tmp_path: Path
) -> None:
    result = run(*options, draw=True)
    assert result.code == 1
    assert re.fullmatch(rf"the loss is not finite {words}try a lower one or .*tests\.gradient_check\.\n", result.err)
    assert result.out.endswith(f"The loss curve is in {tmp_path / 'loss.png'}\n")
    assert "Accuracy" not in result.out
    assert result.picture["title"].startswith(f"MNIST: {epochs} epochs")
    assert not result.picture["show"]
    assert (tmp_path / "loss.png").exists()


def test_divergence_in_a_later_epoch_is_told_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0] * (2 + 5) + [np.inf])  # of two looks at the data sets, and of the steps
    monkeypatch.setattr(NumpyLoss, "backward", lambda self: np.zeros((2, 10), np.float32))
    monkeypatch.setattr(NumpyLoss, "get_loss", lambda *_: next(losses))
    history = History()
    with pytest.raises(FloatingPointError, match=r"at step 5 \(epoch 1\) at learning rate 0\.5; "):
        train(NumpyModel(0), PAIRS[:8], PAIRS, 3, 2, 0.5, history=history)
    assert history.losses == [1.0] * 5
    assert len(history.seconds) == len(history.accuracies) == 1


def interrupt(*_: object, **__: object) -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(("steps", "epochs"), [(2, 0), (3, 1), (7, 2)])
def test_interrupted_training_saves_what_was_done(
    steps: int, epochs: int, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()
    monkeypatch.setattr(NumpyModel, "optimize", lambda *_: interrupt() if next(calls) == steps else None)
    result = run("--batch-size", 10)
    assert (result.code, result.err) == (130, f"Interrupted after {steps + 1} steps.\n")
    assert result.picture["title"].startswith(f"MNIST: {epochs} of 3 epochs, batch size 10")
    assert len(result.picture["losses"]) == steps + 1
    assert not result.picture["show"]


@pytest.mark.parametrize("twice", [False, True])
def test_ctrl_c_in_the_picture_leaves_the_old_one(
    twice: bool, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loss.png").write_bytes(b"old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupt)
    if twice:
        monkeypatch.setattr(NumpyModel, "optimize", interrupt)
    result = run(draw=True)
    assert (result.code, result.err) == (130, f"Interrupted after {1 if twice else 3} steps.\n")
    assert (tmp_path / "loss.png").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "loss.png"]


def test_interrupted_download_is_one_sentence(run: Runner, offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", interrupt)
    result = run()
    assert (result.code, result.err.splitlines()[-1]) == (130, "Interrupted after 0 steps.")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process alone")
def test_ctrl_c_ends_the_process_with_130(data_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, numpy_mnist.__file__, "--data-dir", str(data_dir), "--epoch-number", "100000"]
    with subprocess.Popen(
        [*command, "--plot", str(tmp_path / "loss.png")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in "ab"]
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert lines[1].startswith("[0] Accuracy: 0.")
    steps = re.fullmatch(r"Interrupted after (\d+) steps\.\n", error)
    assert steps is not None, error
    assert int(steps[1]) < 4096 / len(lines[1]), "the first line came with all that fill a buffer: it is not flushed"
    assert process.returncode == 130
    assert (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("code", [1, 130])
def test_picture_that_can_not_be_saved_does_not_cost_the_results(
    code: int, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(path: Path, content: bytes) -> None:  # what a full disk does
        path.open("wb").write(content[:100])
        raise OSError(28, "No space left on device")

    (tmp_path / "loss.png").write_bytes(b"old")
    monkeypatch.setattr(Path, "write_bytes", write_half)
    if code == 130:
        monkeypatch.setattr(numpy_mnist, "evaluate", interrupt)
    result = run(draw=True)
    assert result.code == code
    assert result.out.count("Accuracy") == (3 if code == 1 else 0)
    words = f"The loss curve could not be saved to {tmp_path / 'loss.png'} (No space left on device)."
    assert result.err.splitlines()[0] == words
    assert (tmp_path / "loss.png").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "loss.png"]


def test_output_that_can_not_be_printed_costs_no_picture(data_dir: Path) -> None:
    path = data_dir / "lös.png"
    command = [sys.executable, numpy_mnist.__file__, "--data-dir", str(data_dir), "--plot", str(path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert path.exists()
    path.unlink()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()  # as `| head -0` does
        assert process.stderr is not None
        assert process.stderr.read() == ""
