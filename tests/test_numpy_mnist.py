"""Mini-batches, training against PyTorch, the command line, its faults and what it says of them."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from matplotlib.figure import Figure

import numpy_mnist
from numpy_fnn import Array, NumpyLoss, NumpyModel
from numpy_mnist import main, mini_batch, new_model, train
from tests.torch_reference import TorchModel
from utils import FILES, Dataset, initial_weights, one_hot

IMAGES, LABELS = np.arange(10 * 28 * 28, dtype=np.float32).reshape(10, 28, 28), np.arange(10, dtype=np.uint8)
PAIRS = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]


# ---- mini-batches


@pytest.mark.parametrize(
    ("dataset", "size"),
    [((IMAGES, LABELS), 10), ([IMAGES, LABELS], 10), (PAIRS, 10), (tuple(PAIRS), 10), (PAIRS[:2], 2)],
)
def test_batches_hold_every_image_once_with_its_label(dataset: Any, size: int) -> None:
    batches = list(mini_batch(dataset, batch_size=4))
    assert [len(labels) for _, labels in batches] == ([4, 4, 2] if size == 10 else [2])
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    assert images.dtype == np.float32
    assert sorted(labels) == list(range(size))
    np.testing.assert_array_equal(images, IMAGES[labels])


def test_arrays_of_other_kinds_are_arrays() -> None:
    for dataset in ((IMAGES, LABELS.tolist()), (torch.tensor(IMAGES), torch.tensor(LABELS))):
        images, labels = next(mini_batch(dataset, 10))
        np.testing.assert_array_equal(images, IMAGES[labels])


def test_order_is_drawn_anew_from_the_generator() -> None:
    def orders(rng: np.random.Generator | None) -> list[list[int]]:
        return [np.concatenate([labels for _, labels in mini_batch((IMAGES, LABELS), 3, rng)]).tolist() for _ in "ab"]

    first, second = orders(np.random.default_rng(0))
    assert first != second
    assert first != sorted(first)
    assert [first, second] == orders(np.random.default_rng(0))
    assert orders(None)[0] != orders(None)[0]
    pairs = mini_batch(PAIRS, 10, np.random.default_rng(0))
    assert next(pairs)[1].tolist() == first


def test_torchvision_data_set_is_a_sequence_of_pairs(data_dir: Path) -> None:
    transform = torchvision.transforms.ToTensor()
    batches = list(mini_batch(torchvision.datasets.MNIST(str(data_dir), transform=transform), 7))
    assert [images.shape for images, _ in batches] == [(7, 1, 28, 28)] * 4 + [(2, 1, 28, 28)]
    assert batches[0][0].dtype == np.float32


@pytest.mark.parametrize(
    ("dataset", "batch_size", "words"),
    [
        ([], 4, "mini_batch has 0 images and batch_size 4, but 1 or more are wanted"),
        ((IMAGES[:0], LABELS[:0]), 4, "mini_batch has 0 images and batch_size 4, but 1 or more are wanted"),
        (PAIRS, 0, "mini_batch has 10 images and batch_size 0, but 1 or more are wanted"),
        ((IMAGES, LABELS[:9]), 4, "labels has shape (9,), but (10,) is wanted"),
        ((IMAGES, one_hot(LABELS)), 4, "labels has shape (10, 10), but (10,) is wanted"),
    ],
)
def test_mini_batch_of_bad_data(dataset: Any, batch_size: int, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        mini_batch(dataset, batch_size)


@pytest.mark.parametrize("shape", [(9,), (1,), (10, 1)])
def test_evaluation_with_labels_of_another_shape(shape: tuple[int, ...]) -> None:
    words = f"labels has shape {shape}, but (10,) is wanted"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        numpy_mnist.evaluate(NumpyModel(), IMAGES, np.zeros(shape, np.uint8))


# ---- training


def largest_difference_from_torch(train_set: tuple[Array, Array]) -> tuple[int, float]:
    """Train one epoch in float64 with train and with torch autograd, and compare the loss of every step."""
    images, labels = train_set[0].astype(np.float64), train_set[1]
    weights = [W.astype(np.float64) for W in initial_weights(np.random.default_rng(0), *NumpyModel.SHAPES.values())]
    model, reference = NumpyModel(), TorchModel(*weights)
    model.W1, model.W2, model.W3 = weights
    history = train(model, (images, labels), (images[:10], labels[:10]), 1, 128, 0.1, np.random.default_rng(1))
    expected = []
    for x, y in mini_batch((images, labels), 128, np.random.default_rng(1)):
        expected.append(reference.backward(reference.forward(x), np.eye(10)[y]))
        reference.optimize(0.1)
    assert expected[-1] < expected[0] / 2
    return len(expected), float(np.max(np.abs(np.subtract(history.losses, expected))))


@pytest.mark.parametrize(("source", "steps"), [("digits", 293), ("mnist", 469)])
def test_losses_of_a_whole_epoch_agree_with_torch(source: str, steps: int, request: pytest.FixtureRequest) -> None:
    dataset: Dataset = request.getfixturevalue(source)
    compared, difference = largest_difference_from_torch(dataset.train)
    assert compared == steps
    assert difference <= 1e-12


def test_training_learns_and_keeps_float32(digits: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    model = new_model(rng)
    history = train(model, digits.train, digits.test, rng=rng)
    assert len(history.losses) == 3 * 293
    assert len(history.accuracies) == len(history.seconds) == 3
    assert history.accuracies[-1] > 0.9
    assert history.accuracies[-1] == np.mean(model.forward(digits.test[0]).argmax(axis=1) == digits.test[1])
    assert min(history.seconds) > 0
    assert model.x1_grad is None
    assert capsys.readouterr().out == "".join(f"[{i}] Accuracy: {a:.4f}\n" for i, a in enumerate(history.accuracies))
    dtypes = {getattr(model, name).dtype for name in ("W1", "W2", "W3", "W1_grad", "log_grad")}
    assert dtypes == {np.dtype("float32")}


def test_course_training_loop_runs_unchanged() -> None:
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((10, 28, 28)).astype(np.float32)
    train_dataset = [(patterns[i % 10] + rng.standard_normal((28, 28)) / 10, i % 10) for i in range(300)]
    model: Any = NumpyModel()
    numpy_loss: Any = NumpyLoss()
    model.W1, model.W2, model.W3 = initial_weights(rng, (784, 256), (256, 64), (64, 10))
    train_loss = []
    for _ in range(3):
        for x, y in mini_batch(train_dataset, batch_size=32):
            y_pred = model.forward(x)
            loss = numpy_loss.get_loss(y_pred, one_hot(y))
            model.backward(numpy_loss.backward())
            model.optimize(0.1)
            train_loss.append(loss.item())
    assert train_loss[-1] < 0.1 < train_loss[0]
    assert np.mean(model.forward(patterns).argmax(axis=1) == np.arange(10)) == 1


# ---- the command line


@pytest.fixture
def arguments(data_dir: Path, tmp_path: Path) -> list[str]:
    """Return options for a run on the small files."""
    return ["--data-dir", str(data_dir), "--plot", str(tmp_path / "loss.png")]


def test_run_prints_data_set_accuracies_and_picture(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for options in ([], ["--dataset", "MNIST"]):
        (tmp_path / "loss.png").unlink(missing_ok=True)
        assert main([*arguments, "--batch-size", "7", *options]) == 0
        outputs.append(capsys.readouterr().out)
        assert (tmp_path / "loss.png").exists()
    lines = outputs[0].splitlines()
    assert lines[0] == f"MNIST: 30 training and 20 test images from {tmp_path}/data/MNIST/raw"
    for epoch, line in enumerate(lines[1:4]):
        assert re.fullmatch(rf"\[{epoch}\] Accuracy: 0\.\d{{4}}", line)
    assert lines[4:] == [f"The loss curve is in {tmp_path}/loss.png"]
    assert outputs[0] == outputs[1]


def test_picture_that_is_replaced_is_said_and_shown_where_there_is_a_display(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[bool] = []

    def show() -> None:
        shown.append(True)
        raise KeyboardInterrupt  # Ctrl-C in the terminal, which ends the run as closing the window does

    monkeypatch.setattr("matplotlib.pyplot.show", show)
    assert main([*arguments, "--epoch-number", "1"]) == 0
    assert shown == []
    monkeypatch.setattr("matplotlib.backend_bases.FigureCanvasBase.required_interactive_framework", "some")
    assert main([*arguments, "--epoch-number", "1"]) == 0
    assert shown == [True]
    words = f"The loss curve is in {arguments[-1]}, in place of the picture that was there\n"
    assert capsys.readouterr().out.endswith(words)


def test_every_option_reaches_the_run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures: list[tuple[Any, ...]] = []
    monkeypatch.setattr(numpy_mnist, "plot_curve", lambda *args: pictures.append(args))
    monkeypatch.setattr(numpy_mnist, "show", lambda: None)
    for options in ([], ["--learning-rate", "0.2"], ["--seed", "1"], ["--batch-size", "8"], ["--epoch-number", "2"]):
        assert main([*arguments, "--batch-size", "10", "--epoch-number", "4", *options]) == 0
    losses = [picture[0] for picture in pictures]
    assert [len(each) for each in losses] == [12, 12, 12, 16, 6]
    assert losses[0][0] == losses[1][0] != losses[2][0]
    assert losses[0][1] != losses[1][1]
    assert losses[0][:6] == losses[4]
    assert [len(accuracies) for _, accuracies, _, _ in pictures] == [4, 4, 4, 4, 2]
    assert pictures[3][2] == "MNIST: 4 epochs, batch size 8, learning rate 0.1, seed 0"
    assert pictures[2][2:] == ("MNIST: 4 epochs, batch size 10, learning rate 0.1, seed 1", arguments[-1])


def test_same_seed_gives_the_same_losses_to_the_last_digit(digits: Dataset) -> None:
    def losses(seed: int) -> list[float]:
        rng = np.random.default_rng(seed)
        train_set = (digits.train[0][:2000], digits.train[1][:2000])
        return train(new_model(rng), train_set, digits.test, 2, rng=rng).losses

    assert losses(0) == losses(0) != losses(1)


def test_help_explains_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    defaults = ["3", "128", "0.1", "0", "data", "loss.png", "MNIST"]
    for option, default in zip(
        ("epoch-number", "batch-size", "learning-rate", "seed", "data-dir", "plot", "dataset"), defaults, strict=True
    ):
        assert re.search(rf"--{option} \S+ [^()]+ \(default: {re.escape(default)}\)", text)


BAD_OPTIONS = [
    *(("--epoch-number", text, "argument --epoch-number: invalid int value: {!r}") for text in ("1.5", "x", "", "nan")),
    *(("--epoch-number", text, "epoch_number is {}, but a positive finite number is wanted") for text in ("0", "-1")),
    ("--batch-size", 1.5, "argument --batch-size: invalid int value: '{}'"),
    ("--batch-size", "1e2", "argument --batch-size: invalid int value: {!r}"),
    ("--batch-size", "-128", "batch_size is {}, but a positive finite number is wanted"),
    ("--learning-rate", "fast", "argument --learning-rate: invalid float value: {!r}"),
    *(
        ("--learning-rate", text, "learning_rate is {}, but a positive finite number is wanted")
        for text in ("0.0", "-0.1", "nan", "inf")
    ),
    ("--seed", "0.5", "argument --seed: invalid int value: {!r}"),
    ("--seed", "-1", "seed is {}, but 0 or more is wanted"),
]


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("option", "text", "words"), BAD_OPTIONS)
def test_bad_hyperparameter_is_one_line_before_any_data_is_touched(
    option: str,
    text: object,
    words: str,
    constant: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(numpy_mnist, "load_dataset", lambda *_: pytest.fail("the data was touched"))
    if constant:
        monkeypatch.setattr(numpy_mnist, option[2:].upper().replace("-", "_"), text)
    with pytest.raises(SystemExit) as caught:
        main([] if constant else [f"{option}={text}"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.endswith(f": error: {words.format(text)}\n")
    assert error.count("\n") == 1


def test_unknown_data_set_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--dataset", "mnist"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert re.search(r": error: argument --dataset: invalid choice: 'mnist' \(choose from '?MNIST'?, .*\)\n$", error)
    assert error.count("\n") == 1
    monkeypatch.setattr(numpy_mnist, "DATASET", "mnist")
    assert main([]) == 1
    words = "the data set 'mnist' is not one of MNIST, FashionMNIST, KMNIST, digits.\n"
    assert capsys.readouterr().err == words


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every download fail."""
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:1/"])


@pytest.mark.usefixtures("offline")
def test_failed_download_goes_on_with_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles: list[str] = []
    monkeypatch.setattr(numpy_mnist, "plot_curve", lambda losses, accuracies, title, path: titles.append(title))
    monkeypatch.setattr(numpy_mnist, "show", lambda: None)
    assert main(["--epoch-number", "1", "--data-dir", str(tmp_path)]) == 0
    assert titles == ["digits: 1 epochs, batch size 128, learning rate 0.1, seed 0"]
    captured = capsys.readouterr()
    assert captured.out.startswith("digits: 37500 training and 297 test images from scikit-learn\n[0] Accuracy: 0.")
    assert "MNIST" not in captured.out
    sentence = captured.err.splitlines()[-1]
    assert sentence.startswith("MNIST could not be downloaded (")
    assert sentence.endswith(f"{FILES[3]}, uncompressed, into {tmp_path}/MNIST/raw; going on with digits.")


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
    assert capsys.readouterr().err.endswith(
        "\nthe digits data set needs scikit-learn: python -m pip install scikit-learn.\n"
    )


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


def full(*_: object, **__: object) -> None:
    """Fail as a full disk does."""
    raise OSError(28, "No space left on device")


@pytest.mark.filterwarnings("error")
def test_loss_that_is_not_finite_stops_the_run_and_saves_the_curve(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--learning-rate", "1e30", "--batch-size", "10", "--epoch-number", "9"]) == 1
    captured = capsys.readouterr()
    assert re.fullmatch(
        r"the loss is not finite in epoch 0, step [12], at learning rate 1e\+30; try a lower one, .*\.\n",
        captured.err,
    )
    assert captured.out.endswith(f"The loss curve is in {tmp_path}/loss.png\n")
    assert (tmp_path / "loss.png").exists()


def test_divergence_in_the_last_step_is_no_success(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--learning-rate", "1e38", "--batch-size", "30", "--epoch-number", "1"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("the loss is not finite in epoch 0, step 1, at learning rate 1e+38; try a lower")
    assert "Accuracy" not in captured.out
    assert (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_sentence_names_the_epoch_and_the_step(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0] * 5 + [value])
    monkeypatch.setattr(NumpyLoss, "backward", lambda self: np.zeros((2, 10), np.float32))
    monkeypatch.setattr(NumpyLoss, "get_loss", lambda *_: next(losses))
    history = numpy_mnist.History()
    with pytest.raises(
        FloatingPointError, match=r"^the loss is not finite in epoch 1, step 5, at learning rate 0\.5; "
    ):
        train(new_model(np.random.default_rng()), PAIRS, (IMAGES, LABELS), 3, 2, 0.5, history=history)
    assert history.losses == [1.0] * 5


@pytest.mark.parametrize("saved", [True, False])
def test_interrupted_training_saves_the_curve(
    saved: bool,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = iter([lambda: None] * 3)

    def optimize(*_: object) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(NumpyModel, "optimize", optimize)
    if not saved:
        monkeypatch.setattr(Figure, "savefig", full)
    assert main([*arguments, "--batch-size", "10"]) == 130
    captured = capsys.readouterr()
    assert captured.err.startswith("Interrupted after 4 steps.\n")
    assert captured.out.endswith(f"The loss curve is in {tmp_path}/loss.png\n") is saved


def test_ctrl_c_ends_the_process_with_130(tmp_path: Path) -> None:
    command = [sys.executable, numpy_mnist.__file__, "--dataset", "digits", "--epoch-number", "1000"]
    with subprocess.Popen(
        [*command, "--plot", str(tmp_path / "loss.png")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as run:
        try:
            assert run.stdout is not None
            while not run.stdout.readline().startswith("[0] Accuracy"):
                assert run.poll() is None
            run.send_signal(signal.SIGINT)
            _, error = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 130
    assert re.fullmatch(r"Interrupted after \d+ steps\.\n", error)
    assert (tmp_path / "loss.png").exists()


def test_interrupted_download_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", interrupt)
    assert main(["--data-dir", str(tmp_path / "data")]) == 130
    assert capsys.readouterr().err.endswith("\nInterrupted after 0 steps.\n")
    assert list((tmp_path / "data" / "MNIST" / "raw").iterdir()) == []


@pytest.mark.parametrize(
    ("plot", "savefig", "reason"),
    [
        ("missing/loss.png", None, "No such file or directory"),
        ("data", None, "Format '' is not supported"),
        ("loss.xyz", None, "Format 'xyz' is not supported"),
        (f"{'x' * 300}.png", None, "File name too long"),
        ("loss.png", full, "No space left on device"),
    ],
)
def test_picture_that_can_not_be_saved_does_not_cost_the_results(
    arguments: list[str],
    plot: str,
    savefig: Callable[..., None] | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if savefig:
        monkeypatch.setattr(Figure, "savefig", savefig)
    path = tmp_path / plot
    assert main([*arguments, "--plot", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("Accuracy") == 3
    assert captured.err.startswith(f"The loss curve could not be saved to {str(path)!r} (")
    assert reason in captured.err
    assert captured.err.count("\n") == 1
