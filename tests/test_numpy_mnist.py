"""Mini-batches, training by the course's own code and against PyTorch, the command line, runs that do not end well."""

import inspect
import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

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
from utils import DataError, Dataset, load_dataset, one_hot, plot_curve

IMAGES = np.random.default_rng(0).standard_normal((10, 28, 28), np.float32)
LABELS = np.arange(10, dtype=np.uint8)
PAIRS = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]

# ---- mini-batches


@pytest.mark.parametrize(
    ("dataset", "sizes"),
    [
        pytest.param((IMAGES, LABELS), [4, 4, 2], id="arrays"),
        pytest.param((torch.tensor(IMAGES), torch.tensor(LABELS)), [4, 4, 2], id="tensors"),
        pytest.param(PAIRS, [4, 4, 2], id="pairs"),
        pytest.param(tuple(PAIRS[:2]), [2], id="two pairs"),
    ],
)
def test_mini_batch_yields_every_image_once_with_its_label(dataset: Any, sizes: list[int]) -> None:
    with keeping("mini_batch", images=IMAGES, labels=LABELS):
        batches = list(mini_batch(dataset, batch_size=4))
    found = [len(labels) for _, labels in batches]
    assert found == sizes, (
        f"mini_batch yields batches of {found} images, expected {sizes}, the last one shorter"
    )
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    assert sorted(labels) == list(range(sum(sizes))), "mini_batch does not yield every label once"
    assert np.array_equal(images, IMAGES[labels]), (
        "mini_batch yields images with the labels of others"
    )
    assert images.dtype == np.float32, f"mini_batch turns float32 images into {images.dtype}"


def test_mini_batch_shuffles_by_rng() -> None:
    def order(rng: Any = None) -> list[int]:
        (_, labels), *_ = mini_batch((IMAGES, LABELS), 10, rng)
        return labels.tolist()

    assert order(0) != sorted(LABELS), "mini_batch does not shuffle"
    assert order(0) == order(0), "mini_batch: rng is not used: a seed gives two orders"
    assert order(0) != order(1), "mini_batch: rng is not used: two seeds give one order"
    assert order() != order(), "mini_batch: without rng, two calls give one order"
    generator = np.random.default_rng(0)
    first, second = order(generator), order(generator)
    assert first != second, "mini_batch: of one generator, two calls draw one order"
    assert first == order(0), "mini_batch: a seed and its generator give two orders"


def test_mini_batch_takes_a_torchvision_data_set(data_dir: Path) -> None:
    transform = torchvision.transforms.ToTensor()
    batches = list(mini_batch(torchvision.datasets.MNIST(str(data_dir), transform=transform), 7))
    assert [images.shape for images, _ in batches] == [(7, 1, 28, 28)] * 4 + [(2, 1, 28, 28)]
    assert batches[0][0].dtype == np.float32


def test_mini_batch_of_bad_data() -> None:
    for dataset, batch_size, words in (
        ((IMAGES[:0], LABELS[:0]), 4, "the data set has 0 images"),
        (PAIRS, 0, "batch_size is 0, expected 1 or more"),
        ((IMAGES, LABELS[:9]), 4, "labels has shape (9,), expected (10,)"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
            next(mini_batch(dataset, batch_size))


# ---- training


def test_training_by_the_course_runs_unchanged() -> None:
    rng = np.random.default_rng(0)
    train_dataset = [
        (IMAGES[i % 10] + rng.standard_normal((28, 28)) / 10, i % 10) for i in range(300)
    ]
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


def test_training_learns_and_keeps_float32(
    digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = NumpyModel(0), digits.train[0].astype(np.float64)
    history = train(model, (images, digits.train[1]), digits.test, rng=0)
    assert len(history.losses) == 3 * 293
    assert len(history.accuracies) == len(history.train_accuracies) == len(history.seconds) == 3
    assert history.accuracies[-1] > 0.9
    assert history.accuracies[-1] == np.mean(
        model.forward(digits.test[0]).argmax(axis=1) == digits.test[1]
    )
    assert history.train_accuracies[-1] == evaluate(model, images[:10000], digits.train[1][:10000])
    assert model.x1_grad is None
    assert capsys.readouterr().out == "".join(
        f"[{i}] Accuracy: {a:.4f}\n" for i, a in enumerate(history.accuracies)
    )
    dtypes = {getattr(model, name).dtype for name in ("W1", "W2", "W3", "W1_grad", "log_grad")}
    assert dtypes == {np.dtype("float32")}


def test_losses_of_a_whole_epoch_agree_with_torch(digits: Dataset) -> None:
    images, labels = digits.train[0].astype(np.float64), digits.train[1]
    model = NumpyModel(0)
    weights: list[np.ndarray] = [W.astype(np.float64) for W in (model.W1, model.W2, model.W3)]
    model.W1, model.W2, model.W3 = weights
    reference = TorchModel(*weights)
    history = train(
        model, (images, labels), (images[:10], labels[:10]), 1, 128, 0.1, np.random.default_rng(1)
    )
    expected = []
    for x, y in mini_batch((images, labels), 128, np.random.default_rng(1)):
        expected.append(reference.backward(reference.forward(x), np.eye(10)[y]))
        reference.optimize(0.1)
    assert expected[-1] < expected[0] / 2
    np.testing.assert_allclose(history.losses, expected, rtol=0, atol=1e-12)


def test_defaults_are_the_constants() -> None:
    assert "batch_size: int = 128" in str(inspect.signature(mini_batch))
    for words in ("epoch_number: int = 3", "batch_size: int = 128", "learning_rate: float = 0.1"):
        assert words in str(inspect.signature(train))


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
        *(
            ({"learning_rate": rate}, f"learning_rate is {rate}, expected")
            for rate in (0, np.nan, np.inf, None)
        ),
        ({"train_set": (IMAGES.astype(np.uint8), LABELS)}, "images are uint8, expected floats"),
        ({"train_set": (IMAGES, [*range(9), 10]), "batch_size": 1}, "labels are 0 to 10 "),
        ({"test_set": (IMAGES, LABELS[:, None])}, "labels has shape (10, 1), expected (10,)"),
        ({"test_set": (IMAGES[:, :14], LABELS)}, "x has shape (1, 14, 28), expected "),
        ({"test_set": []}, "the data set has 0 images"),
    ],
    ids=str,
)
def test_training_starts_with_the_right_hyperparameters_and_data_alone(
    changed: dict[str, Any], words: str
) -> None:
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
def run(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Runner:
    """Return a function that runs the command line on the small files, with options and edited constants."""

    def run(*options: object, **constants: object) -> Run:
        picture: dict[str, Any] = {}

        def plot(*arguments: Any, **named: Any) -> None:
            picture.update(inspect.signature(plot_curve).bind(*arguments, **named).arguments)
            plot_curve(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(numpy_mnist, "plot_curve", plot)
            for name, value in {
                "DATA_DIR": str(data_dir),
                "PLOT": str(tmp_path / "loss.png"),
                **constants,
            }.items():
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
    monkeypatch.setattr(
        sys, "argv", ["kernel_launcher.py", "-f", "kernel.json"]
    )  # a notebook's own
    result = run(DATA_DIR="data", PLOT="loss.png")
    lines = result.out.splitlines()
    assert lines[0] == f"MNIST: 30 training and 20 test images from {Path('data', 'MNIST', 'raw')}"
    for epoch, line in enumerate(lines[1:4]):
        assert re.fullmatch(rf"\[{epoch}\] Accuracy: [01]\.\d{{4}}", line)
    assert lines[4:] == ["The loss curve is in loss.png"]
    assert (result.code, result.err) == (0, "")
    assert sorted(path.name for path in Path().iterdir()) == ["data", "loss.png"]


@pytest.mark.parametrize("kind", ["option", "constant"])
def test_every_option_and_constant_reaches_the_run(
    kind: str, run: Runner, data_dir: Path, tmp_path: Path
) -> None:
    (data_dir / "MNIST").rename(tmp_path / "KMNIST")
    values: dict[str, object] = {
        "epoch_number": 2,
        "batch_size": 15,
        "learning_rate": 0.25,
        "seed": 5,
    }
    values |= {"dataset": "KMNIST", "data_dir": tmp_path, "plot": tmp_path / "curve.svg"}
    if kind == "option":
        picture = run(
            *(f"--{name.replace('_', '-')}={value}" for name, value in values.items())
        ).picture
    else:
        picture = run(**{name.upper(): value for name, value in values.items()}).picture
    data, rng = load_dataset("KMNIST", str(tmp_path)), np.random.default_rng(5)
    model = NumpyModel(rng)
    history = train(model, data.train, data.test, 2, 15, 0.25, rng)
    for name in ("losses", "accuracies", "train_accuracies"):
        assert picture[name] == getattr(history, name)
    np.testing.assert_equal((picture["model"].W1, picture["test_set"]), (model.W1, data.test))
    assert picture["title"] == "KMNIST: 2 of 2 epochs, batch size 15, learning rate 0.25, seed 5"
    assert picture["show"]
    assert (tmp_path / "curve.svg").exists()


def test_help_explains_every_option_with_its_default(run: Runner) -> None:
    text = " ".join(run("--help", DATA_DIR="data", PLOT="loss.png").out.split())
    defaults = {"epoch-number": "3", "batch-size": "128", "learning-rate": "0.1", "seed": "0"}
    for option, default in {
        **defaults,
        "dataset": "MNIST",
        "data-dir": "data",
        "plot": "loss.png",
    }.items():
        assert re.search(rf"--{option} \S+ [^()]*\(default: {re.escape(default)}\)", text), option


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--epoch-number", "1.5", "epoch.number.*1.5"),
        ("--epoch-number", 0, "epoch_number is 0, expected"),
        ("--batch-size", 0, "batch_size is 0, expected"),
        ("--learning-rate", "fast", "learning.rate.* 'fast'"),
        ("--learning-rate", np.nan, "learning_rate is nan, expected"),
        ("--seed", None, "seed.* None|'None'"),
        ("--seed", -1, "seed is -1, expected"),
        ("--plot", None, "None"),
        ("--plot", "loss.xyz", "'loss.xyz' has not one of the extensions .*png"),
        ("--plot", "missing/loss.png", "missing.+loss.png"),
        ("--plot", "folder.png", "'folder.png' is there, and is no file"),
        pytest.param(
            "--plot",
            f"{'x' * 300}.png",
            "too long|No such file|Invalid argument",
            id="--plot-too long",
        ),
    ],
)
def test_bad_option_or_constant_is_a_sentence_before_any_data_is_touched(
    option: str,
    value: object,
    words: str,
    run: Runner,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    monkeypatch.setattr(
        numpy_mnist, "load_dataset", Mock(side_effect=AssertionError("the data was touched"))
    )
    constant = {option[2:].upper().replace("-", "_"): value}
    for result in (run(f"{option}={value}"), run(**constant)):
        assert result.code == 2
        assert result.err.startswith("usage: ")
        assert re.search(f": error: .*({words})", result.err.splitlines()[-1]), result.err
    assert sorted(path.name for path in Path().iterdir()) == ["data", "folder.png"]


@pytest.mark.parametrize("backend", ["module://missing.backend", "module://json", "nonsense"])
def test_backend_and_terminal_without_umlauts_do_not_stop_a_run(
    backend: str, data_dir: Path
) -> None:
    path = data_dir / "lös.png"
    command = [
        sys.executable,
        numpy_mnist.__file__,
        "--data-dir",
        str(data_dir),
        "--plot",
        str(path),
    ]
    environment = {
        **os.environ,
        "MPLBACKEND": backend,
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "1",
    }
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr, path.exists()) == (0, "", True)


def test_failed_download_goes_on_with_digits_unless_the_data_set_was_asked_for(
    run: Runner, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])
    (data_dir / "MNIST").rename(data_dir / "elsewhere")
    result = run("--epoch-number", 1)
    assert result.code == 0
    assert result.picture["title"].startswith("digits: 1 of 1 epochs, ")
    assert result.out.startswith(
        "digits: 37500 training and 297 test images from scikit-learn\n[0] Accuracy: 0."
    )
    assert "MNIST" not in result.out
    sentence = result.err.splitlines()[-1]  # of a normal run, nothing more is said
    assert sentence.startswith("MNIST could not be downloaded (")
    assert sentence.endswith(f" into {data_dir / 'MNIST' / 'raw'}; going on with digits.")
    result = run("--dataset", "MNIST")
    assert (result.code, result.out, result.picture) == (1, "", {})
    assert result.err.splitlines()[-1].startswith("MNIST could not be downloaded (")
    assert run(DATASET="mnist").err.startswith("the data set 'mnist' is not one of MNIST, ")


# ---- runs that do not end well


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (DataError("a file can't be used"), 1, "a file can't be used."),
        (MemoryError(), 1, "MemoryError."),
        (KeyboardInterrupt(), 130, "Interrupted after 0 steps."),
    ],
)
def test_data_that_is_not_loaded_is_one_sentence_and_leaves_no_picture(
    error: BaseException,
    code: int,
    sentence: str,
    run: Runner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numpy_mnist, "load_dataset", Mock(side_effect=error))
    result = run()
    assert (result.code, result.out, result.err) == (code, "", f"{sentence}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_run_that_learned_hardly_anything_says_so(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run("--learning-rate", 1e-9, "--epoch-number", 1)
    assert (result.code, result.err.count("\n")) == (0, 1)
    for words in (
        f"{result.picture['accuracies'][-1]:.4f}",
        "another learning rate",
        "tests.gradient_check",
    ):
        assert words in result.err
    for accuracy, sentences in ((0.49, 1), (0.5, 0)):
        monkeypatch.setattr(numpy_mnist, "evaluate", Mock(return_value=accuracy))
        assert run().err.count("\n") == sentences, accuracy


@pytest.mark.filterwarnings("error")
def test_divergence_in_the_last_step_of_an_epoch_is_told() -> None:
    history = History()
    with pytest.raises(FloatingPointError, match=r"after epoch 0 at learning rate 1e\+38; "):
        train(NumpyModel(0), PAIRS, PAIRS, learning_rate=1e38, history=history)
    assert (len(history.losses), history.accuracies, history.seconds) == (1, [], [])


def test_divergence_stops_the_run_and_saves_the_curve(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NumpyLoss, "backward", lambda self: np.zeros((10, 10), np.float32))
    looks, steps = [1.0, 1.0], [1.0] * 5  # train looks at the two data sets first
    monkeypatch.setattr(NumpyLoss, "get_loss", Mock(side_effect=[*looks, *steps, np.inf]))
    result = run("--batch-size", 10)
    assert result.code == 1
    words = r"the loss is not finite at step 5 \(epoch 1\) at learning rate 0\.1; try a lower one "
    assert re.fullmatch(rf"{words}.*tests\.gradient_check\.\n", result.err)
    assert result.out.count("Accuracy") == 1
    assert result.out.endswith(f"The loss curve is in {result.picture['path']}\n")
    assert result.picture["losses"] == steps
    assert Path(result.picture["path"]).exists()


def test_interrupted_training_saves_what_was_done(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NumpyModel, "optimize", Mock(side_effect=[*[None] * 7, KeyboardInterrupt]))
    result = run("--batch-size", 10)
    assert (result.code, result.err) == (130, "Interrupted after 8 steps.\n")
    assert result.picture["title"].startswith("MNIST: 2 of 3 epochs, batch size 10, ")
    assert len(result.picture["losses"]) == 8
    assert not result.picture["show"]


@pytest.mark.parametrize("interrupted", [False, True], ids=["whole run", "interrupted run"])
@pytest.mark.parametrize("fault", ["Ctrl-C", "full disk"])
def test_picture_that_is_not_saved_leaves_the_old_one(
    fault: str, interrupted: bool, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(path: Path, content: bytes) -> None:
        path.open("wb").write(content[:100])
        raise OSError(28, "No space left on device")

    path, sentences = tmp_path / "loss.png", []
    path.write_bytes(b"old")
    if fault == "full disk":
        monkeypatch.setattr(Path, "write_bytes", write_half)
        sentences.append(f"The loss curve could not be saved to {path} (No space left on device).")
    else:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", Mock(side_effect=KeyboardInterrupt))
    if interrupted:
        monkeypatch.setattr(NumpyModel, "optimize", Mock(side_effect=KeyboardInterrupt))
    if interrupted or fault == "Ctrl-C":
        sentences.append(f"Interrupted after {1 if interrupted else 3} steps.")
    result = run()
    assert result.err.splitlines() == sentences
    assert result.code == (130 if "Interrupted" in result.err else 1)
    assert result.out.count("Accuracy") == (0 if interrupted else 3)
    assert path.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "loss.png"]
    assert plt.get_fignums() == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process alone")
def test_ctrl_c_ends_the_process_with_130(data_dir: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        numpy_mnist.__file__,
        "--data-dir",
        str(data_dir),
        "--epoch-number",
        "100000",
    ]
    with subprocess.Popen(
        [*command, "--plot", str(tmp_path / "loss.png")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore it
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in "ab"]
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert lines[1].startswith("[0] Accuracy: 0.")
    steps = re.fullmatch(r"Interrupted after (\d+) steps\.\n", error)
    assert steps is not None, error
    assert int(steps[1]) < 4096 / len(lines[1]), (
        "the first line came with all that fill a buffer: it is not flushed"
    )
    assert process.returncode == 130
    assert (tmp_path / "loss.png").exists()


def test_output_that_nobody_reads_is_no_error(data_dir: Path) -> None:
    command = [
        sys.executable,
        numpy_mnist.__file__,
        "--data-dir",
        str(data_dir),
        "--plot",
        str(data_dir / "loss.png"),
    ]
    unread, output = os.pipe()
    os.close(unread)  # as `| head -0` does
    result = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    os.close(output)
    assert result.stderr == ""
