"""The lab sheet: its changes fit the source and do what the answers say, its code runs, both languages say the same."""

import contextlib
import inspect
import itertools
import math
import re
import sys
import textwrap
import types
from operator import attrgetter
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import numpy_fnn
import numpy_mnist
import utils
from docs.exercise import STEPS
from numpy_fnn import NumpyLoss, NumpyModel, NumpyOp
from tests import gradient_check, test_numpy_fnn
from tests.test_gradient_check import check_source
from utils import Dataset, normalize, one_hot

DOCS = Path(__file__).parents[1] / "docs"
SHEETS = ENGLISH, CHINESE = [
    (DOCS / name).read_text(encoding="utf-8") for name in ("lab_sheet.md", "lab_sheet.zh.md")
]


def code_blocks(page: str) -> list[str]:
    """Return the fenced blocks of code, without their indentation."""
    blocks = re.findall(r"^ *```\w+\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for code in blocks]


def run_code(word: str) -> dict[str, Any]:
    """Run the sheet's block of code that has this word, and return its variables."""
    (code,) = (code for code in code_blocks(ENGLISH) if word in code)
    variables: dict[str, Any] = {}
    exec(code, variables)
    return variables


def experiments(page: str) -> dict[str, str]:
    """Return the experiments, each with its answer, by number."""
    found = re.findall(r"^\*\*(\d+)\. (.+?)^</details>$", page, re.MULTILINE | re.DOTALL)
    return {number: " ".join(text.split()) for number, text in found}


def code_spans(text: str) -> list[str]:
    """Return what stands between single backticks, sorted."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return sorted(" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))


def numbers(text: str) -> set[float]:
    """Return the numbers outside of code."""
    text = re.sub(r"```.*?```|`[^`]+`|(?<=\d),(?=\d{3})", "", text, flags=re.DOTALL)
    return {float(number) for number in re.findall(r"\d*\.?\d+", text)}


EXPERIMENTS = experiments(ENGLISH)


def changed(number: str, module: types.ModuleType = numpy_fnn) -> str:
    """Return the module's source with the changes of an experiment, and of the one before if they are to stay."""
    before = "still in place" in EXPERIMENTS[number]
    source = changed(str(int(number) - 1)) if before else inspect.getsource(module)
    for function, old, new in re.findall(
        r"[Ii]n `([\w.]+)`: `([^`]+)` becomes `([^`]+)`", EXPERIMENTS[number]
    ):
        body = inspect.getsource(attrgetter(function)(module))
        change, count = re.subn(r"(?<!\w)" + re.escape(old).replace("…", ".+"), new, body)
        assert count == 1, f"{function} has {old!r} {count} times"
        assert change != body
        source = source.replace(body, change)
    return source


def module_of(source: str) -> Any:
    """Return a module with this source."""
    module = types.ModuleType("changed")
    sys.modules["changed"] = module  # where dataclasses look for it
    exec(source, module.__dict__)
    return module


def first_losses(number: str, learning_rate: float, mnist: Dataset, steps: int = 50) -> list[float]:
    """Return the losses of the command's first steps with seed 0, up to the first that is not finite."""
    rng, numpy_loss, losses = np.random.default_rng(0), NumpyLoss(), []
    model = module_of(changed(number)).NumpyModel(rng)
    with np.errstate(all="ignore"):
        for images, labels in itertools.islice(numpy_mnist.mini_batch(mnist.train, rng=rng), steps):
            loss = numpy_loss.get_loss(model.forward(images), one_hot(labels))
            if not math.isfinite(loss):
                break
            losses.append(loss)
            model.backward(numpy_loss.backward(), needs_input_grad=False)
            model.optimize(learning_rate)
    return losses


def said(number: str, pattern: str) -> float:
    """Return the number that an answer says, where the pattern has its group."""
    (found,) = re.findall(pattern, EXPERIMENTS[number])
    return float(found)


def test_both_languages_have_the_same_experiments_commands_code_and_numbers() -> None:
    assert list(EXPERIMENTS) == [str(number) for number in range(1, 11)]
    assert code_blocks(ENGLISH) == code_blocks(CHINESE)
    assert set(code_spans(ENGLISH)) <= set(code_spans(CHINESE))
    assert [page.count("<details>") for page in SHEETS] == [10, 10]
    for number, chinese in experiments(CHINESE).items():
        assert code_spans(EXPERIMENTS[number]) == code_spans(chinese)
        assert numbers(EXPERIMENTS[number]) == numbers(chinese)
    assert numbers(ENGLISH) == numbers(CHINESE)


@pytest.mark.parametrize("page", SHEETS, ids=["English", "Chinese"])
def test_steps_are_those_of_the_exercise(page: str) -> None:
    rows = re.findall(r"^\| \d \| (.+?) \|.*`-k \"?([\w ]+)\"?` \|$", page, re.MULTILINE)
    assert [words for _, words in rows] == list(STEPS)
    for (row, words), names in zip(rows, STEPS.values(), strict=True):
        functions = [
            attrgetter(name)(numpy_mnist if name == "mini_batch" else numpy_fnn) for name in names
        ]
        formulas = [
            number
            for function in functions
            for number in re.findall(r"\(\d\.\d\)", function.__doc__)
        ]
        assert re.findall(r"\(\d\.\d\)", row) == formulas, words


def test_words_explained_in_chinese_are_printed() -> None:
    modules = (numpy_fnn, numpy_mnist, utils, gradient_check, test_numpy_fnn)
    sources = "".join(map(inspect.getsource, modules))
    words = code_spans("".join(re.findall(r"^\| (`.*?`) \| [^|`]+ \|$", CHINESE, re.MULTILINE)))
    assert len(words) >= 10
    for part in (part for span in words for part in span.split("...")):
        assert part.strip(" ,") in sources, part


@pytest.mark.parametrize(
    "number", [number for number, text in EXPERIMENTS.items() if "Gradient check:" in text]
)
def test_gradient_check_says_what_the_answer_says(
    number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts, _ = check_source(changed(number), monkeypatch, capsys)
    wrong = [line for line in verdicts if not line.startswith("NumpyModel")]
    assert wrong == re.findall(r"Gradient check: `(.+?)` WRONG", EXPERIMENTS[number])
    assert bool(verdicts) != ("Gradient check: all ok" in EXPERIMENTS[number])


def test_answers_about_the_first_steps(mnist: Dataset) -> None:
    ln_10 = said("1", r"stays at ([\d.]+),")
    assert first_losses("1", 0.1, mnist) == pytest.approx([ln_10] * 50, abs=1e-4)
    assert len(first_losses("2", 0.1, mnist)) < said("2", r"within (\d+) steps")
    assert first_losses("3", 0.1, mnist) == pytest.approx(first_losses("6", 0.1, mnist), abs=1e-3)
    assert len(first_losses("3", 1, mnist)) < said("3", r"within (\d+) steps")
    steps, loss = (
        int(said("6", pattern)) for pattern in (r"Within (\d+) steps", r"loss is about (\d+),")
    )
    assert np.mean(first_losses("6", 2, mnist, steps + 20)[steps:]) == pytest.approx(loss, abs=2)


@pytest.mark.parametrize("number", ["4", "5"])
def test_wrong_gradients_that_train(number: str, mnist: Dataset) -> None:
    rng = np.random.default_rng(0)
    history = numpy_mnist.train(
        module_of(changed(number)).NumpyModel(rng), mnist.train, mnist.test, rng=rng
    )
    assert history.accuracies[-1] == pytest.approx(
        said(number, r"^[^`]+.*?About (\.\d+)"), abs=0.01
    )


def test_overfitting(mnist: Dataset) -> None:
    module, rng = module_of(changed("7", numpy_mnist)), np.random.default_rng(0)
    model, train_set = NumpyModel(rng), [part[:1000] for part in mnist.train]
    test_losses, train_losses = [], []
    for epochs in (16, 84):
        numpy_mnist.train(model, train_set, [part[:10] for part in mnist.test], epochs, rng=rng)
        test_losses.append(module.evaluate(model, *mnist.test))
        train_losses.append(module.evaluate(model, *train_set))
    assert test_losses == pytest.approx(
        [said("7", r", at (\.\d+)"), said("7", r"is (\.\d+) in the end")], abs=0.02
    )
    assert train_losses[1] == pytest.approx(said("7", r"to (\.\d+)\. The test"), abs=0.001)
    assert numpy_mnist.evaluate(model, *train_set) == 1
    assert numpy_mnist.evaluate(model, *mnist.test) == pytest.approx(
        said("7", r"About (\.\d+) on"), abs=0.01
    )


@pytest.mark.parametrize("source", ["digits", pytest.param("mnist", marks=pytest.mark.mnist)])
def test_gradient_is_a_photograph(
    source: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = request.getfixturevalue(source)
    pixels = np.round(255 * (0.1307 + 0.3081 * dataset.train[0]))
    whole = dataset._replace(
        train=(normalize(pixels), dataset.train[1])
    )  # digits have pixels between whole numbers
    monkeypatch.setattr(utils, "load_dataset", lambda _: whole)
    monkeypatch.chdir(tmp_path)
    names = run_code("photograph.png")
    plt.close("all")
    assert (tmp_path / "photograph.png").exists()
    assert sorted(names["found"].reshape(-1, 784).tolist()) == sorted(
        pixels[names["batch"]].reshape(-1, 784).tolist()
    )


def test_images_are_drawn_with_replacement() -> None:
    module = module_of(changed("10", numpy_mnist))
    for mini_batch, distinct in ((numpy_mnist.mini_batch, 1000), (module.mini_batch, 632)):
        batches = list(mini_batch((np.arange(1000.0), np.arange(1000)), 128, 0))
        assert [len(labels) for _, labels in batches] == [128] * 7 + [104]
        assert len(set(np.concatenate([labels for _, labels in batches]))) == pytest.approx(
            distinct, abs=40
        )


class Tanh(NumpyOp):
    """The operator that the sheet's recipe adds."""

    power = 2

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return tanh x."""
        self.memory = {"y": np.tanh(x)}
        return self.memory["y"]

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return G ⊙ (1 − Y²)."""
        self.check_grad(grad_y)
        return grad_y * (1 - self.memory["y"] ** self.power)


@pytest.mark.parametrize(("power", "code"), [(2, 0), (1, 1)], ids=["right", "square forgotten"])
def test_recipe_for_an_operator_works(
    power: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tanh, "power", power)
    row, entry = re.findall(r"`(\(\"Tanh\".+?\))`.*?`(Tanh: .+?)`", ENGLISH, re.DOTALL)[0]
    names = {"Tanh": Tanh, "torch": torch, **vars(gradient_check)}
    monkeypatch.setattr(gradient_check, "GRADIENTS", [eval(row, names)])
    assert gradient_check.main() == code
    monkeypatch.setattr(test_numpy_fnn, "REFERENCES", eval(f"{{{entry}}}", names))
    with (
        contextlib.nullcontext()
        if code == 0
        else pytest.raises(pytest.fail.Exception, match="grad_x of Tanh is")
    ):
        test_numpy_fnn.test_operator_agrees_with_torch(Tanh)


@pytest.mark.parametrize("momentum", [0.9, 0])
def test_check_of_momentum(
    momentum: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def optimize(model: Any, learning_rate: float) -> None:
        model.velocity = momentum * getattr(model, "velocity", 0) + model.W1_grad
        model.W1 = model.W1 - learning_rate * model.velocity

    monkeypatch.setattr(NumpyModel, "optimize", optimize)
    run_code("momentum=")
    assert (float(capsys.readouterr().out) < 1e-6) == (momentum == 0.9)


def read_digit(path: str) -> np.ndarray:
    """Return an image as the network knows it: the student's part, for a picture of the right size."""
    pixels = 255 * plt.imread(path)[..., 0]
    return normalize(255 - pixels if pixels[0, 0] > 127 else pixels)


def test_check_of_a_digit_of_ones_own(
    mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "my_digit", types.SimpleNamespace(read_digit=read_digit))
    monkeypatch.setattr(utils, "load_dataset", lambda _: mnist)
    monkeypatch.chdir(tmp_path)
    run_code("read_digit")
    output = capsys.readouterr().out
    accuracies = re.findall(r"^\d (0\.\d+)$", output, re.MULTILINE)
    expected = re.findall(r"\.\d\d", " ".join(ENGLISH.split()).partition("this prints about")[2])[
        :4
    ]
    assert list(map(float, accuracies)) == pytest.approx(list(map(float, expected)), abs=0.03)
    white, black = re.findall(r"^7 \[\[(.*?)\]\]$", output, re.MULTILINE)
    assert white == black
    assert np.argmax(list(map(float, white.split()))) == 7
