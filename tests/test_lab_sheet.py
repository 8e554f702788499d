"""The lab sheet: its one-line changes fit the source and do what the answers say, its recipe for an operator works."""

import contextlib
import math
import re
import types

import numpy as np
import pytest
import torch

from docs.exercise import PROJECT
from numpy_fnn import NumpyOp
from numpy_mnist import History, train
from tests import gradient_check, test_numpy_fnn
from tests.test_exercise import functions
from tests.test_gradient_check import check_source
from utils import Dataset

SHEET = (PROJECT / "docs" / "lab_sheet.md").read_text(encoding="utf-8")
EXPERIMENTS = dict(re.findall(r"^\*\*(\d)\. (.+?)^</details>$", SHEET, re.MULTILINE | re.DOTALL))


def change_line(source: str, function: str, new: str) -> str:
    """Return the source in which `new` stands for the line of the function that assigns the same, or returns."""
    node, lines = functions(source)[function], source.splitlines()
    start = new.split(" = ")[0] + " = " if " = " in new else "return "
    places = [i for i in range(node.lineno - 1, node.end_lineno or 0) if lines[i].strip().startswith(start)]
    assert len(places) == 1, f"{function} has {len(places)} lines that start with {start!r}"
    old = lines[places[0]]
    lines[places[0]] = old[: len(old) - len(old.lstrip())] + new
    assert lines[places[0]] != old
    return "\n".join(lines)


def changed_source(number: str, module: str = "numpy_fnn.py") -> str:
    """Return the source with the change of an experiment, and that of the one before where it is still in place."""
    in_place = "still in place" in EXPERIMENTS[number]
    source = changed_source(str(int(number) - 1)) if in_place else (PROJECT / module).read_text(encoding="utf-8")
    ((function, new),) = re.findall(r"[Ii]n `([\w.]+)`: `([^`]+)`", EXPERIMENTS[number])
    return change_line(source, function, new)


def test_there_are_eight_experiments() -> None:
    assert list(EXPERIMENTS) == list("12345678")


@pytest.mark.parametrize("number", [number for number, text in EXPERIMENTS.items() if "Gradient check:" in text])
def test_gradient_check_says_what_the_answer_says(
    number: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts, _ = check_source(changed_source(number), monkeypatch, capsys)
    wrong = [line for line in verdicts if not line.startswith("NumpyModel")]
    answer = " ".join(EXPERIMENTS[number].split())
    assert wrong == re.findall(r"Gradient check: `(.+?)` WRONG", answer)
    assert bool(verdicts) != ("Gradient check: all ok" in answer)


def test_training_images_are_the_first_1000() -> None:
    module = types.ModuleType("changed")
    module.__dict__["__name__"] = "changed"
    exec(changed_source("7", "numpy_mnist.py"), module.__dict__)
    images, labels = module.as_arrays((np.zeros((1500, 784)), np.zeros(1500)))
    assert len(images) == len(labels) == 1000


def losses_of_changed(source: str, learning_rate: float, dataset: Dataset) -> list[float]:
    """Return the losses of at most 50 steps with the network of this source, of fewer where one is not finite."""
    changed = types.ModuleType("changed")
    exec(source, changed.__dict__)
    history = History()
    images, labels = dataset.train
    with contextlib.suppress(FloatingPointError):
        train(changed.NumpyModel(0), (images[:6400], labels[:6400]), dataset.test, 1, 128, learning_rate, 0, history)
    return history.losses


def test_answers_about_the_first_steps(mnist: Dataset) -> None:
    source = (PROJECT / "numpy_fnn.py").read_text(encoding="utf-8")
    assert losses_of_changed(changed_source("1"), 0.1, mnist) == pytest.approx([math.log(10)] * 50, abs=1e-6)
    assert len(losses_of_changed(changed_source("2"), 0.1, mnist)) < 20
    assert len(losses_of_changed(changed_source("3"), 0.5, mnist)) == 50
    assert len(losses_of_changed(changed_source("3"), 1, mnist)) < 50
    assert np.mean(losses_of_changed(source, 2, mnist)[-20:]) == pytest.approx(25, abs=2)


class Tanh(NumpyOp):
    """The operator that the sheet's recipe adds."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return tanh x."""
        y = np.tanh(x)
        self.memory = {"y": y}
        return y

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return G ⊙ (1 − Y²)."""
        self.check_grad(grad_y)
        return grad_y * (1 - self.memory["y"] ** 2)


class WrongTanh(Tanh):
    """Tanh with a square forgotten."""

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return G ⊙ (1 − Y)."""
        return grad_y * (1 - self.memory["y"])


def test_recipe_for_an_operator_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    row, entry = re.findall(r"`(\(\"Tanh\".+?\))`.*?`(Tanh: .+?)`", SHEET, re.DOTALL)[0]
    for operator, code, tests_pass in ((Tanh, 0, True), (WrongTanh, 1, False)):
        names = {"Tanh": operator, "torch": torch, **vars(gradient_check)}
        monkeypatch.setattr(gradient_check, "GRADIENTS", [eval(row, names)])
        assert gradient_check.main() == code
        monkeypatch.setattr(test_numpy_fnn, "REFERENCES", eval(f"{{{entry}}}", names))
        for test in (
            test_numpy_fnn.test_operator_agrees_with_torch_and_leaves_its_inputs_alone,
            test_numpy_fnn.test_backward_agrees_with_central_differences,
        ):
            if tests_pass:
                test(operator)
            else:
                with pytest.raises(pytest.fail.Exception, match=r"grad_x of WrongTanh is"):
                    test(operator)
