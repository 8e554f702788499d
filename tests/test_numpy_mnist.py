"""Training by the course's own code and against PyTorch, mini-batches, the command line, runs that do not end well."""

import inspect
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torchvision

import numpy_mnist
from numpy_fnn import NumpyLoss, NumpyModel
from numpy_mnist import History, evaluate, main, mini_batch, train
from tests.torch_reference import TorchModel
from utils import FILES, Dataset, load_dataset, one_hot, plot_curve

IMAGES = np.random.default_rng(0).standard_normal((10, 28, 28), np.float32)
LABELS = np.arange(10, dtype=np.uint8)
PAIRS = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]


def test_course_training_loop_runs_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
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
    model = NumpyModel(0)
    history = train(model, digits.train, digits.test, rng=0)
    assert len(history.losses) == 3 * 293
    assert len(history.accuracies) == len(history.train_accuracies) == len(history.seconds) == 3
    assert history.accuracies[-1] > 0.9
    assert history.accuracies[-1] == np.mean(model.forward(digits.test[0]).argmax(axis=1) == digits.test[1])
    assert history.train_accuracies[-1] == evaluate(model, digits.train[0][:10000], digits.train[1][:10000])
    assert min(history.seconds) > 0
    assert model.x1_grad is None
    assert capsys.readouterr().out == "".join(f"[{i}] Accuracy: {a:.4f}\n" for i, a in enumerate(history.accuracies))
    assert repr(history) == f"History(accuracies={history.accuracies})"
    dtypes = {getattr(model, name).dtype for name in ("W1", "W2", "W3", "W1_grad", "log_grad")}
    assert dtypes == {np.dtype("float32")}


@pytest.mark.parametrize(("source", "steps"), [("digits", 293), ("mnist", 469)])
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


def test_hyperparameter_left_out_is_the_constant_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(**hyperparameters: Any) -> list[float]:
        return train(NumpyModel(0), PAIRS, (IMAGES, LABELS), rng=0, **hyperparameters).losses

    as_shipped = losses()
    assert as_shipped == losses(epoch_number=3, batch_size=128, learning_rate=0.1)
    for constant, value in ("EPOCH_NUMBER", 2), ("BATCH_SIZE", 3), ("LEARNING_RATE", 0.02):
        monkeypatch.setattr(numpy_mnist, constant, value)
    assert losses() == losses(epoch_number=2, batch_size=3, learning_rate=0.02) != as_shipped


def test_order_is_another_in_each_epoch_and_by_the_seed_the_same_in_each_run() -> None:
    def losses(rng: Any) -> list[float]:  # at a rate that changes no weight, they tell the order
        return train(NumpyModel(0), PAIRS, (IMAGES, LABELS), 2, 3, 1e-30, rng).losses

    assert losses(0)[:4] != losses(0)[4:]
    assert losses(0) == losses(np.random.default_rng(0)) != losses(1)
    assert losses(None) != losses(None)


def test_seconds_are_those_of_the_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # ticks whenever it is read, and when the model is evaluated
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(numpy_mnist, "evaluate", lambda *_: next(clock) / 100)
    assert train(NumpyModel(0), PAIRS, (IMAGES, LABELS), 3).seconds == [1, 1, 1]


def test_evaluation_takes_what_forward_takes() -> None:
    model = NumpyModel(0)
    labels = model.forward(IMAGES).argmax(axis=1)
    labels[:5] = (labels[:5] + 1) % 10
    for images in (IMAGES, IMAGES.reshape(10, 784), torch.tensor(IMAGES)[:, None]):
        for expected in (labels, labels.tolist(), torch.tensor(labels)):
            assert evaluate(model, images, expected) == 0.5


# ---- mini-batches


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
def test_batches_hold_every_image_once_with_its_label(dataset: Any, sizes: list[int]) -> None:
    batches = list(mini_batch(dataset, batch_size=4))
    assert [len(labels) for _, labels in batches] == sizes
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    assert images.dtype == np.float32
    assert sorted(labels) == list(range(sum(sizes)))
    np.testing.assert_array_equal(images, IMAGES[labels])


def test_torchvision_data_set_is_a_sequence_of_pairs(data_dir: Path) -> None:
    transform = torchvision.transforms.ToTensor()
    batches = list(mini_batch(torchvision.datasets.MNIST(str(data_dir), transform=transform), 7))
    assert [images.shape for images, _ in batches] == [(7, 1, 28, 28)] * 4 + [(2, 1, 28, 28)]
    assert batches[0][0].dtype == np.float32


def test_order_is_drawn_anew_from_a_generator_or_a_seed() -> None:
    def order(rng: Any) -> list[int]:
        return np.concatenate([labels for _, labels in mini_batch((IMAGES, LABELS), 3, rng)]).tolist()

    generator = np.random.default_rng(0)
    first, second = order(generator), order(generator)
    assert len({tuple(each) for each in (first, second, order(1), sorted(first), order(None), order(None))}) == 6
    assert order(0) == first == next(mini_batch(PAIRS, 10, 0))[1].tolist()


def test_batches_are_of_128_images() -> None:
    assert [len(labels) for _, labels in mini_batch((np.zeros((300, 1)), np.zeros(300)))] == [128, 128, 44]


@pytest.mark.parametrize(
    ("dataset", "batch_size", "words"),
    [
        pytest.param([], 4, "mini_batch has 0 images and batch_size 4, expected 1 or more of each", id="no pairs"),
        pytest.param((IMAGES[:0], LABELS[:0]), 4, "mini_batch has 0 images and batch_size 4, exp", id="empty arrays"),
        pytest.param(PAIRS, 0, "mini_batch has 10 images and batch_size 0, expected 1 or more of each", id="size 0"),
        pytest.param((IMAGES, LABELS[:9]), 4, "labels has shape (9,), expected (10,)", id="9 labels"),
        pytest.param((IMAGES, one_hot(LABELS)), 4, "labels has shape (10, 10), expected (10,)", id="one-hot labels"),
    ],
)
def test_mini_batch_of_bad_data(dataset: Any, batch_size: int, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        next(mini_batch(dataset, batch_size))


# ---- the command line


@pytest.fixture
def arguments(data_dir: Path, tmp_path: Path) -> list[str]:
    """Return options for a run on the small files."""
    return ["--data-dir", str(data_dir), "--plot", str(tmp_path / "loss.png")]


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return a list that gets the arguments of every picture, in place of the picture."""
    calls: list[dict[str, Any]] = []
    bind = inspect.signature(plot_curve).bind
    monkeypatch.setattr(numpy_mnist, "plot_curve", lambda *args, **kw: calls.append(bind(*args, **kw).arguments))
    return calls


def test_run_of_all_defaults_prints_data_set_accuracies_and_picture(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data_dir.parent)
    monkeypatch.setattr(sys, "argv", ["kernel_launcher.py", "-f", "kernel.json"])  # a notebook's own
    outputs = []
    for options in ([], ["--dataset", "MNIST"]):
        assert main(options) == 0
        assert Path("loss.png").read_bytes().startswith(b"\x89PNG")
        Path("loss.png").unlink()
        outputs.append(capsys.readouterr())
    lines = outputs[0].out.splitlines()
    assert lines[0] == f"MNIST: 30 training and 20 test images from {Path('data', 'MNIST', 'raw')}"
    for epoch, line in enumerate(lines[1:4]):
        assert re.fullmatch(rf"\[{epoch}\] Accuracy: 0\.\d{{4}}", line)
    assert lines[4:] == ["The loss curve is in loss.png"]
    assert outputs[0] == outputs[1]
    assert outputs[0].err == ""
    assert plt.get_fignums() == []


def test_run_in_a_thread_saves_the_picture(arguments: list[str], tmp_path: Path) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(arguments)))
    thread.start()
    thread.join()
    assert codes == [0]
    assert (tmp_path / "loss.png").exists()


def test_every_option_reaches_the_run(arguments: list[str], pictures: list[dict[str, Any]]) -> None:
    for options in ([], ["--learning-rate", "0.2"], ["--seed", "1"], ["--batch-size", "8"], ["--epoch-number", "1"]):
        assert main([*arguments, "--batch-size", "10", "--epoch-number", "4", *options]) == 0
    losses = [picture["losses"] for picture in pictures]
    assert [len(each) for each in losses] == [12, 12, 12, 16, 3]
    assert losses[0][0] == losses[1][0] != losses[2][0]
    assert losses[0][1] != losses[1][1]
    assert losses[0][:3] == losses[4]
    for name in ("accuracies", "train_accuracies"):
        assert [len(picture[name]) for picture in pictures] == [4, 4, 4, 4, 1]
    assert pictures[2]["title"] == "MNIST: 4 epochs, batch size 10, learning rate 0.1, seed 1"
    assert pictures[4]["title"] == "MNIST: 1 epoch, batch size 10, learning rate 0.1, seed 0"
    assert {(picture["path"], picture["show"]) for picture in pictures} == {(arguments[-1], True)}
    W1, y_pred, images, labels = pictures[0]["learned"]
    assert (W1.shape[0], y_pred.shape, images.shape, labels.shape) == (784, (20, 10), (20, 28, 28), (20,))
    _, _, (test_images, test_labels), _ = load_dataset("MNIST", arguments[1])
    np.testing.assert_array_equal(images, test_images)
    np.testing.assert_array_equal(labels, test_labels)
    assert np.mean(y_pred.argmax(axis=1) == labels) == pictures[0]["accuracies"][-1]


def test_every_edited_constant_reaches_the_run(
    tmp_path: Path, data_dir: Path, pictures: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / "MNIST").rename(data_dir / "KMNIST")
    constants = {"DATASET": "KMNIST", "DATA_DIR": data_dir, "PLOT": tmp_path / "curve.svg", "SEED": 5}
    constants |= {"EPOCH_NUMBER": 2, "BATCH_SIZE": 15, "LEARNING_RATE": 0.25}
    for name, value in constants.items():
        monkeypatch.setattr(numpy_mnist, name, value)
    assert main([]) == 0
    assert pictures[0]["title"] == "KMNIST: 2 epochs, batch size 15, learning rate 0.25, seed 5"
    assert pictures[0]["path"] == str(tmp_path / "curve.svg")


def test_too_little_memory_is_a_sentence(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def normalize(images: np.ndarray) -> np.ndarray:
        raise MemoryError("Unable to allocate 180. MiB")

    monkeypatch.setattr("utils.normalize", normalize)
    assert main(arguments) == 1
    assert capsys.readouterr().err == "Unable to allocate 180. MiB.\n"


def test_help_explains_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("usage: ")
    defaults = ["3", "128", "0.1", "0", "MNIST", "data", "loss.png"]
    for option, default in zip(
        ("epoch-number", "batch-size", "learning-rate", "seed", "dataset", "data-dir", "plot"), defaults, strict=True
    ):
        assert re.search(rf"--{option} \S+ [^()]*\(default: {re.escape(default)}\)", text)


@pytest.mark.parametrize("constant", [False, True], ids=["option", "constant"])
@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        *(("--epoch-number", text, f"argument --epoch-number: invalid int value: '{text}'") for text in ("1.5", "")),
        *(
            ("--epoch-number", text, f"epoch_number is {text}, expected a positive finite number")
            for text in ("0", "-1")
        ),
        ("--batch-size", 1e2, "argument --batch-size: invalid int value: '100.0'"),
        ("--batch-size", -128, "batch_size is -128, expected a positive finite number"),
        ("--learning-rate", "fast", "argument --learning-rate: invalid float value: 'fast'"),
        *(
            ("--learning-rate", text, f"learning_rate is {float(text)}, expected a positive finite number")
            for text in ("0", "-0.1", "nan", "inf")
        ),
        ("--seed", None, "argument --seed: invalid int value: 'None'"),
        ("--seed", -1, "seed is -1, expected 0 or more"),
        ("--dataset", "mnist", "'mnist'"),
        ("--dataset", "50% MNIST", "'50% MNIST'"),
        ("--plot", "loss", "argument --plot: 'loss' has not one of the extensions "),
        ("--plot", None, "argument --plot: 'None' has not one of the extensions "),
        ("--plot", "loss.xyz", "argument --plot: 'loss.xyz' has not one of the extensions "),
        ("--plot", "missing/loss.png", "argument --plot: 'missing/loss.png' is not in a folder that exists"),
        pytest.param("--plot", f"{'x' * 300}/loss.png", "is not in a folder that exists", id="--plot-long"),
    ],
)
def test_bad_option_or_constant_is_a_sentence_before_any_data_is_touched(
    option: str,
    value: object,
    words: str,
    constant: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(numpy_mnist, "load_dataset", lambda *_, **__: pytest.fail("the data was touched"))
    if constant:
        monkeypatch.setattr(numpy_mnist, option[2:].upper().replace("-", "_"), value)
    with pytest.raises(SystemExit) as caught:
        main([] if constant else [f"{option}={value}"])
    assert caught.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: ")
    assert ": error: " in error
    assert words in error


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every download fail."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])


@pytest.mark.usefixtures("offline")
def test_failed_download_goes_on_with_digits(
    tmp_path: Path, pictures: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--epoch-number", "1", "--data-dir", str(tmp_path)]) == 0
    assert pictures[0]["title"] == "digits: 1 epoch, batch size 128, learning rate 0.1, seed 0"
    captured = capsys.readouterr()
    assert captured.out.startswith("digits: 37500 training and 297 test images from scikit-learn\n[0] Accuracy: 0.")
    assert "MNIST" not in captured.out
    sentence = captured.err.splitlines()[-1]  # of a normal run, nothing more is said
    assert sentence.startswith("MNIST could not be downloaded (")
    raw = tmp_path / "MNIST" / "raw"
    assert sentence.endswith(f"{FILES[3]}, each unpacked or as a .gz, into {raw}; going on with digits.")


@pytest.mark.usefixtures("offline")
def test_failed_download_of_a_data_set_asked_for_by_name_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dataset", "MNIST", "--data-dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("MNIST could not be downloaded (")


@pytest.mark.usefixtures("offline")
def test_failed_download_without_scikit_learn_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("the digits data set needs scikit-learn")


def test_damaged_file_is_one_line(
    arguments: list[str], data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data_dir / "MNIST" / "raw" / FILES[2]
    path.write_bytes(path.read_bytes()[:-1])
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{path} can't be used: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "loss.png").exists()


# ---- runs that do not end well


def interrupt(*_: object) -> None:
    """Do what Ctrl-C does."""
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("losses", "speaks"),
    [
        pytest.param([2.3026] * 50, True, id="at chance"),
        pytest.param([2.3026] * 49, False, id="49 steps"),
        pytest.param([2.3026] * 50 + [2.299] * 50, False, id="a little learned"),
        pytest.param([0.1] * 50 + [2.3] * 50, True, id="learned and lost"),
    ],
)
def test_run_that_learned_nothing_says_so(
    losses: list[float],
    speaks: bool,
    arguments: list[str],
    pictures: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(numpy_mnist, "train", lambda *args: args[-1].losses.extend(losses))
    assert main(arguments) == 0
    error = capsys.readouterr().err
    assert error.startswith("The loss is still that of guessing, ln 10 = 2.30, or more; try a lower") is speaks
    assert error.count("\n") == speaks


@pytest.mark.parametrize(
    "options",
    [
        *(["--learning-rate", rate, "--batch-size", "10", "--epoch-number", "20"] for rate in ("1", "2", "1e6")),
        ["--batch-size", "1"],
    ],
    ids=" ".join,
)
def test_rates_too_high_and_batches_of_one_image_learn_nothing(
    options: list[str], arguments: list[str], pictures: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, *options]) == 0
    assert capsys.readouterr().err.startswith("The loss is still that of guessing")


@pytest.mark.filterwarnings("error")
def test_loss_that_is_not_finite_stops_the_run_and_saves_the_curve(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--learning-rate", "1e30", "--batch-size", "10", "--epoch-number", "9"]) == 1
    captured = capsys.readouterr()
    words = r"the loss is not finite in epoch 0, step [12], at learning rate 1e\+30; try a lower learning rate .*\.\n"
    assert re.fullmatch(words, captured.err)
    assert captured.out.endswith(f"The loss curve is in {tmp_path / 'loss.png'}\n")
    assert (tmp_path / "loss.png").exists()


def test_divergence_in_the_last_step_is_no_success(
    arguments: list[str], pictures: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--learning-rate", "1e38", "--batch-size", "30", "--epoch-number", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("the loss is not finite after epoch 0, at learning rate 1e+38; try a lower")
    assert "Accuracy" not in captured.out
    assert pictures[0]["title"].startswith("MNIST: 0 epochs")
    assert not pictures[0]["show"]


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_sentence_names_the_epoch_and_the_step(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0] * 5 + [value])
    monkeypatch.setattr(NumpyLoss, "backward", lambda self: np.zeros((2, 10), np.float32))
    monkeypatch.setattr(NumpyLoss, "get_loss", lambda *_: next(losses))
    history = History()
    with pytest.raises(
        FloatingPointError, match=r"^the loss is not finite in epoch 1, step 5, at learning rate 0\.5; "
    ):
        train(NumpyModel(0), PAIRS, (IMAGES, LABELS), 3, 2, 0.5, history=history)
    assert history.losses == [1.0] * 5


@pytest.mark.parametrize(("steps", "epochs"), [(2, "0 epochs"), (3, "1 epoch"), (7, "2 epochs")])
def test_interrupted_training_saves_what_was_done(
    steps: int,
    epochs: str,
    arguments: list[str],
    pictures: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = itertools.count()

    def optimize(*_: object) -> None:
        if next(calls) == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(NumpyModel, "optimize", optimize)
    assert main([*arguments, "--batch-size", "10"]) == 130
    assert capsys.readouterr().err == f"Interrupted after {steps + 1} steps.\n"
    assert pictures[0]["title"].startswith(f"MNIST: {epochs}, batch size 10")
    assert len(pictures[0]["losses"]) == steps + 1
    assert not pictures[0]["show"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process alone")
def test_ctrl_c_ends_the_process_with_130(tmp_path: Path) -> None:
    command = [sys.executable, numpy_mnist.__file__, "--dataset", "digits", "--epoch-number", "1000"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [*command, "--plot", str(tmp_path / "loss.png")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as run:
        timer = threading.Timer(60, run.kill)  # ends the reading, too
        timer.start()
        assert run.stdout is not None
        lines = [run.stdout.readline() for _ in "ab"]
        run.send_signal(signal.SIGINT)
        _, error = run.communicate()
        timer.cancel()
    assert lines[1].startswith("[0] Accuracy: 0.")
    assert run.returncode == 130
    steps = re.fullmatch(r"Interrupted after (\d+) steps\.\n", error)
    assert steps is not None
    assert int(steps[1]) < 300 * 293  # the lines that fill a buffer are more
    assert (tmp_path / "loss.png").exists()


def test_interrupted_download_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", interrupt)
    assert main(["--data-dir", str(tmp_path / "data")]) == 130
    assert capsys.readouterr().err.endswith("\nInterrupted after 0 steps.\n")


@pytest.mark.parametrize("code", [1, 130])
@pytest.mark.parametrize(
    "plot", ["folder.png", f"{'x' * 300}.png", "full.jpg"], ids=["folder", "long name", "full disk"]
)
def test_picture_that_can_not_be_saved_does_not_cost_the_results(
    code: int,
    plot: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder.png").mkdir()
    if plot == "full.jpg":
        if not Path("/dev/full").exists():
            pytest.skip("/dev/full, a disk that is always full, is Linux's")
        (tmp_path / plot).symlink_to("/dev/full")
    if code == 130:
        monkeypatch.setattr(numpy_mnist, "evaluate", interrupt)
    path = tmp_path / plot
    assert main([*arguments, "--plot", str(path)]) == code
    captured = capsys.readouterr()
    assert captured.out.count("Accuracy") == (3 if code == 1 else 0)
    words = rf"The loss curve could not be saved to {re.escape(repr(str(path)))} \(.*\[Errno .*\)\."
    assert re.fullmatch(words, captured.err.splitlines()[-1])
