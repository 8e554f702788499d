"""The lab sheet's changes and programs work, its answers are true, and both languages agree."""

import inspect
import itertools
import math
import re
import sys
import types
from operator import attrgetter
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

import numpy_fnn
import numpy_mnist
import utils
from docs.exercise import TO_WRITE
from numpy_fnn import NumpyLoss, NumpyModel, NumpyOp
from tests import check
from utils import Dataset, normalize, one_hot

DOCS = Path(__file__).parents[1] / "docs"
ENGLISH = (DOCS / "lab_sheet.md").read_text(encoding="utf-8")
CHINESE = (DOCS / "lab_sheet.zh.md").read_text(encoding="utf-8")


def code_blocks(page: str) -> list[str]:
    """Return the fenced blocks of code."""
    return re.findall(r"^```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def sections(page: str, heading: str) -> dict[str, str]:
    """Return the sections of level 3 whose heading matches, by their number."""
    parts = re.split(r"^##+ ", page, flags=re.MULTILINE)
    found = [(re.match(heading, part), " ".join(part.split())) for part in parts]
    return {match[1]: text for match, text in found if match}


EXPERIMENTS = sections(ENGLISH, r"(\d+)\. ")
ANSWERS = sections(ENGLISH, r"Answer (\d+)")


def program(word: str) -> str:
    """Return the sheet's only block of code with this word."""
    (code,) = [code for code in code_blocks(ENGLISH) if word in code]
    return code


def code_spans(text: str) -> list[str]:
    """Return the texts between single backticks, sorted."""
    return sorted(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


def numbers(text: str) -> set[float]:
    """Return the numbers outside of code and links."""
    text = re.sub(r"```.*?```|`[^`]+`|\]\([^)]+\)|(?<=\d),(?=\d{3})", "", text, flags=re.DOTALL)
    return {float(number) for number in re.findall(r"\d+\.?\d*", text)}


def changed(number: str) -> Any:
    """Return the module with the changes of an experiment, including changes that it keeps."""
    module = numpy_mnist if "`main`" in EXPERIMENTS[number] else numpy_fnn
    source = inspect.getsource(module)
    texts = [EXPERIMENTS[number]]
    texts += [
        EXPERIMENTS[kept] for kept in re.findall("Keep the change of experiment (.)", texts[0])
    ]
    for text in texts:
        for name, old, new in re.findall(r"[Ii]n `([\w.]+)`, replace `([^`]+)` by `([^`]+)`", text):
            code = inspect.getsource(attrgetter(name)(module))
            pattern = r"(?<!\w)" + re.escape(old).replace("…", ".+")
            result, count = re.subn(pattern, new, code)
            assert count == 1, f"{name} has {old!r} {count} times"
            assert result != code
            source = source.replace(code, result)
    copy = types.ModuleType(module.__name__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, copy)  # where dataclasses look for it
        exec(source, vars(copy))
    return copy


def said(number: str, pattern: str) -> float:
    """Return the number that an answer states."""
    (found,) = re.findall(pattern, ANSWERS[number])
    return float(found)


def first_losses(number: str, learning_rate: float, mnist: Dataset, steps: int = 50) -> list[float]:
    """Return the losses of the first steps with seed 0, up to the first that is not finite."""
    rng = np.random.default_rng(0)
    model = changed(number).NumpyModel(rng)
    numpy_loss = NumpyLoss()
    losses: list[float] = []
    with np.errstate(all="ignore"):
        for images, labels in itertools.islice(numpy_mnist.mini_batch(mnist.train, rng=rng), steps):
            losses.append(numpy_loss.get_loss(model.forward(images), one_hot(labels)))
            if not math.isfinite(losses[-1]):
                return losses[:-1]
            model.backward(numpy_loss.backward(), needs_input_grad=False)
            model.optimize(learning_rate)
    return losses


def test_languages_share_experiments_answers_code_and_numbers() -> None:
    assert list(EXPERIMENTS) == list(ANSWERS) == [str(number) for number in range(1, 11)]
    assert code_blocks(CHINESE) == code_blocks(ENGLISH)
    for english, heading in ((EXPERIMENTS, r"实验 (\d+)"), (ANSWERS, r"答案 (\d+)")):
        chinese = sections(CHINESE, heading)
        for number, text in english.items():
            assert code_spans(chinese[number]) == code_spans(text), number
            assert numbers(chinese[number]) == numbers(text), number
    assert numbers(CHINESE) >= numbers(ENGLISH)


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=["English", "Chinese"])
def test_table_of_steps_lists_the_functions_to_write_with_their_formulas(page: str) -> None:
    rows = re.findall(r"^\| (?:\d )?\| `([\w.]+)`.* \| ([^|]+) \|$", page, re.MULTILINE)
    assert [name for name, _ in rows] == [function.__qualname__ for function in TO_WRITE]
    for (_, formulas), function in zip(rows, TO_WRITE, strict=True):
        docstring = function.__doc__ or ""
        assert re.findall(r"\(\d\.\d\)", formulas) == re.findall(r"\(\d\.\d\)", docstring)


def test_words_that_the_chinese_sheet_explains_are_in_the_programs() -> None:
    sources = "".join(map(inspect.getsource, (numpy_fnn, numpy_mnist, utils, check)))
    words = re.findall(r"^\| `([^`]+)` \| [^|`]+ \|$", CHINESE, re.MULTILINE)
    assert len(words) >= 6
    for part in re.split(r"\.\.\.|…", "…".join(words)):
        assert part.strip(" ,") in sources, part


@pytest.mark.parametrize("number", ANSWERS)
def test_check_says_what_the_answer_says(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = changed(number)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    verdicts = {result: verdict for _, result, _, _, verdict in check.judge(range(1, 8), 0)}
    wrong = [result for result, verdict in verdicts.items() if verdict != "ok"]
    assert wrong == re.findall(r"`(\w+ (?:y|grad_\w+))` is (?:WRONG|not judged)", ANSWERS[number])
    assert bool(wrong) == (number in "2, 3, 4, 5")
    assert ("Every row of the check is ok" in ANSWERS[number]) == (number in "1, 7")


def test_answers_about_the_first_steps_are_true(mnist: Dataset) -> None:
    ln_10 = said("1", r"stays at ([\d.]+),")
    assert first_losses("1", 0.1, mnist) == pytest.approx([ln_10] * 50, abs=1e-4)
    assert len(first_losses("2", 0.1, mnist)) < said("2", r"within (\d+) steps")
    assert first_losses("3", 0.1, mnist) == pytest.approx(first_losses("6", 0.1, mnist), abs=1e-3)
    assert len(first_losses("3", 1, mnist)) < said("3", r"within (\d+) steps")
    steps = int(said("6", r"Within (\d+) steps"))
    stuck = np.mean(first_losses("6", 2, mnist, steps + 20)[steps:])
    assert stuck == pytest.approx(said("6", r"rises to about (\d+),"), abs=2)


@pytest.mark.parametrize("number", ["4", "5"])
def test_network_without_relu_mask_or_relu_reaches_the_stated_accuracy(
    number: str, mnist: Dataset
) -> None:
    rng = np.random.default_rng(0)
    model = changed(number).NumpyModel(rng)
    history = numpy_mnist.train(model, mnist.train, mnist.test, rng=rng)
    expected = said(number, r"The accuracy is about ([\d.]+)\.")
    assert history.accuracies[-1] == pytest.approx(expected, abs=0.01)


def test_network_overfits_1000_images_as_the_answer_says(mnist: Dataset) -> None:
    loss_of = changed("7").evaluate
    rng = np.random.default_rng(0)
    model = NumpyModel(rng)
    train_set = [part[:1000] for part in mnist.train]
    test_losses = []
    for epochs in (16, 84):
        few = [part[:10] for part in mnist.test]
        numpy_mnist.train(model, train_set, few, epochs, rng=rng)
        test_losses.append(loss_of(model, *mnist.test))
    said_losses = [said("7", r"minimum of ([\d.]+) after"), said("7", r"rises to ([\d.]+)\.")]
    assert test_losses == pytest.approx(said_losses, abs=0.02)
    assert loss_of(model, *train_set) == pytest.approx(
        said("7", r"falling, to ([\d.]+)\. "), abs=0.001
    )
    assert numpy_mnist.evaluate(model, *train_set) == 1
    accuracy = numpy_mnist.evaluate(model, *mnist.test)
    assert accuracy == pytest.approx(said("7", r"stays near ([\d.]+) after"), abs=0.01)


@pytest.mark.parametrize("source", ["digits", pytest.param("mnist", marks=pytest.mark.mnist)])
def test_photograph_shows_the_images_of_the_batch(
    source: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = request.getfixturevalue(source)
    pixels = np.round(255 * (0.1307 + 0.3081 * dataset.train[0]))
    whole = dataset._replace(train=(normalize(pixels), dataset.train[1]))  # digits have fractions
    monkeypatch.setattr(utils, "load_dataset", lambda _: whole)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(program("photograph.png"), names)
    expected = np.unique(pixels[names["batch"]].reshape(-1, 784), axis=0)
    np.testing.assert_array_equal(names["found"], expected)
    for panels in names["axes"].T:  # both rows in the same order
        batch, found = (np.asarray(ax.images[0].get_array()) for ax in panels)
        np.testing.assert_allclose(normalize(found), batch, atol=1e-6)
    plt.close("all")


def test_stairs_program_measures_the_change_between_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: Any, history: numpy_mnist.History, **__: Any) -> None:
        epoch = len(history.losses) // 469
        history.losses += [0.5**epoch] * 469

    images = np.zeros((100, 1, 1))
    dataset = Dataset("MNIST", (images, images[:, 0, 0]), (images, images), "")
    monkeypatch.setattr(utils, "load_dataset", lambda _: dataset)
    monkeypatch.setattr(numpy_mnist, "train", train)
    monkeypatch.chdir(tmp_path)
    exec(program("stairs.png"), {})
    assert capsys.readouterr().out.count(" -50% ") == 2
    assert len(plt.gca().lines) == 2
    plt.close("all")


class Tanh(NumpyOp):
    """The operator that the sheet's extension adds."""

    power = 2

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return tanh x."""
        self.memory = {"y": np.tanh(x)}
        return self.memory["y"]

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return G ⊙ (1 − Y²)."""
        return grad_y * (1 - self.memory["y"] ** self.power)


@pytest.mark.parametrize(("power", "code"), [(2, 0), (1, 1)], ids=["right", "square forgotten"])
def test_two_lines_let_the_check_judge_tanh(
    power: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    formula, row = program('"Tanh"').splitlines()
    monkeypatch.setattr(Tanh, "power", power)
    monkeypatch.setattr(numpy_fnn, "Tanh", Tanh, raising=False)
    monkeypatch.setitem(sys.modules, "numpy_fnn", numpy_fnn)
    names = vars(check)
    monkeypatch.setattr(check, "FORMULAS", check.FORMULAS | eval(f"{{{formula}}}", names))
    monkeypatch.setattr(check, "CHECKS", [*check.CHECKS, *eval(f"[{row}]", names)])
    assert check.main(["8"]) == code


@pytest.mark.parametrize("momentum", [0.9, 0])
def test_momentum_program_separates_right_from_wrong(
    momentum: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def optimize(model: Any, learning_rate: float) -> None:
        model.V = momentum * getattr(model, "V", 0) + model.W1_grad
        model.W1 = model.W1 - learning_rate * model.V

    monkeypatch.setattr(NumpyModel, "optimize", optimize)
    exec(program("2.71"), {})
    assert (float(capsys.readouterr().out) < 1e-6) == (momentum == 0.9)


def read_digit(path: str) -> np.ndarray:
    """Return a picture of 28×28 pixels as a normalized image: the student's part."""
    pixels = 255 * plt.imread(path)[..., 0]
    return normalize(255 - pixels if pixels[0, 0] > 127 else pixels)


def test_digit_program_prints_the_accuracies_of_the_sheet(
    mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "my_digit", types.SimpleNamespace(read_digit=read_digit))
    monkeypatch.setattr(utils, "load_dataset", lambda _: mnist)
    monkeypatch.chdir(tmp_path)
    exec(program("read_digit"), {})
    output = capsys.readouterr().out
    accuracies = list(map(float, re.findall(r"^\d (0\.\d+)$", output, re.MULTILINE)))
    sentence = " ".join(ENGLISH.split()).partition("shifted by 0, 1, 2 and 3 pixels, about ")[2]
    expected = list(map(float, re.findall(r"0\.\d\d", sentence)[:4]))
    assert accuracies == pytest.approx(expected, abs=0.03)
    white, black = re.findall(r"^7 \[\[(.*?)\]\]$", output, re.MULTILINE)
    assert white == black
    assert np.argmax(list(map(float, white.split()))) == 7
