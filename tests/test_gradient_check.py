"""The gradient check: right operators are ok with NumPy alone, and of a wrong one its own line tells."""

import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numpy_fnn
from tests import gradient_check

PROJECT = Path(__file__).resolve().parents[1]
SOURCE = (PROJECT / "numpy_fnn.py").read_text(encoding="utf-8")
LINES = [f"{operator} {gradient}" for operator, gradient, _, _ in gradient_check.GRADIENTS]
# Returns, for numpy_fnn.py with the first string replaced by the second, what check_source does.
Check = Callable[[str, str], tuple[dict[str, str], str]]


def test_all_are_ok_with_numpy_alone() -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "pytest", "matplotlib")))  # importing them is now an error
from tests.gradient_check import main
sys.exit(main())
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert [line.split()[-1] for line in run.stdout.splitlines()] == [
        "verdict",
        *["ok"] * len(LINES),
    ]


def test_numerical_gradient_of_a_known_function() -> None:
    x = np.array([[1.0, -2.0], [0.5, 1e-13]])
    before = x.copy()
    slopes = gradient_check.numerical_gradient(lambda: float((x**3).sum()), x[:, :1])
    np.testing.assert_allclose(slopes, 3 * before[:, :1] ** 2, rtol=1e-7)
    np.testing.assert_array_equal(x, before)


def test_formulas_in_docstrings_are_those_of_the_class_and_of_the_table() -> None:
    def numbers(owner: object) -> list[str]:
        return re.findall(r"\((\d\.\d)\)", owner.__doc__ or "")

    for operator in (
        numpy_fnn.Matmul,
        numpy_fnn.Relu,
        numpy_fnn.Log,
        numpy_fnn.Softmax,
        numpy_fnn.NumpyLoss,
    ):
        forward: Any = getattr(operator, "forward", None) or numpy_fnn.NumpyLoss.get_loss
        rows = [
            formula for name, _, formula, _ in gradient_check.GRADIENTS if name == operator.__name__
        ]
        assert numbers(operator) == numbers(forward) + numbers(operator.backward)
        assert rows == numbers(operator.backward)
    assert {
        formula for name, _, formula, _ in gradient_check.GRADIENTS if name == "NumpyModel"
    } == {"6.1"}
    assert numbers(numpy_fnn.NumpyModel.backward) == ["6.1"]


def check_source(
    source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, str], str]:
    """Check this source in place of numpy_fnn.py's; return the verdicts that are not ok, by line, and all output."""
    changed = types.ModuleType("changed")
    exec(source, changed.__dict__)
    for name in ("Matmul", "Relu", "Log", "Softmax", "NumpyLoss", "NumpyModel"):
        monkeypatch.setattr(gradient_check, name, getattr(changed, name))
    code = gradient_check.main()
    output = capsys.readouterr().out
    table = re.findall(
        r"^([A-Z]\w+ +\w+) +\(\d\.\d\) +(?:[\d.]+e[-+]\d+ +|nan +)?(.+)$", output, re.MULTILINE
    )
    assert [" ".join(line.split()) for line, _ in table] == LINES
    verdicts = {" ".join(line.split()): verdict for line, verdict in table if verdict != "ok"}
    assert code == (1 if verdicts else 0)
    return verdicts, output


@pytest.fixture
def check_changed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    def check(old: str, new: str) -> tuple[dict[str, str], str]:
        assert old in SOURCE, f"numpy_fnn.py has no {old!r}"
        return check_source(SOURCE.replace(old, new, 1), monkeypatch, capsys)

    return check


RELU, MASK, MEMORY = (
    "y = np.maximum(x, 0)",
    'return grad_y * (self.memory["x"] > 0)',
    'self.memory = {"x": x, "y": y}',
)
SLOPE, GRADS, TARGET = (
    'grad_y / (self.memory["x"] + self.epsilon)',
    "return grad_x, grad_w",
    "return -self.target",
)
X1_W1 = "self.x1_grad, self.W1_grad ="


@pytest.mark.parametrize(
    ("line", "old", "new", "verdict"),
    [
        ("Matmul grad_x", "grad_y @ W.T if", "grad_y @ W if", "WRONG"),
        ("Matmul grad_w", "x.T @ grad_y", "x @ grad_y", "WRONG"),
        ("Relu grad_x", MASK, "return grad_y", "WRONG"),
        ("Relu grad_x", RELU, "y = x + 0", "WRONG"),
        ("Log grad_x", SLOPE, 'grad_y / self.memory["x"]', "WRONG"),
        ("Log grad_x", "np.log(x + self.epsilon)", "np.log(x) + self.epsilon", "WRONG"),
        ("Softmax grad_x", "(grad_y * y).sum(axis=-1", "(grad_y * y).sum(axis=0", "WRONG"),
        ("Softmax grad_x", "y = exp / ", "y = np.nan * exp / ", "WRONG"),
        (
            "NumpyLoss grad_p",
            f"{TARGET} / len(self.target)",
            f"{TARGET} / self.target.shape[1]",
            "WRONG",
        ),
        ("Relu grad_x", RELU, 'raise NotImplementedError("(2.1)")', "not written yet"),
        ("Relu grad_x", MASK, "return grad_y[:1]", "grad_x has shape (1, 3), expected (3, 3)"),
        ("Relu grad_x", MASK, "pass", "Relu.backward returned None, expected grad_x"),
        (
            "Relu grad_x",
            MASK,
            'self.memory["x"] *= 2; return grad_y',
            "Relu.backward changed x in place",
        ),
        ("Relu grad_x", RELU, f"{RELU}[1:]", "y of Relu.forward has shape (2, 3), expected (3, 3)"),
        ("Relu grad_x", MEMORY, "pass", 'Relu.forward left no "y" in memory'),
        ("Relu grad_x", MEMORY, 'self.memory = {"y": y}', "KeyError: 'x'"),
        ("Relu grad_x", RELU, "x[x < 0] = 0; y = x", "Relu.forward changed x in place"),
        ("Log grad_x", "y = np.log(", "x += 1e-12; y = np.log(", "Log.forward changed x in place"),
        (
            "Softmax grad_x",
            "return y * (",
            "y *= 2; return y * (",
            "Softmax.backward changed y in place",
        ),
        ("Matmul grad_x", "        return y\n", "", "Matmul.forward returned None, expected y"),
        (
            "Matmul grad_x",
            "y = x @ W\n",
            "W *= 2; y = x @ W\n",
            "Matmul.forward changed W in place",
        ),
        (
            "Matmul grad_w",
            GRADS,
            "return grad_w",
            "Matmul.backward returned one array, expected (grad_x, grad_w)",
        ),
        (
            "NumpyLoss grad_p",
            TARGET,
            "-self.target",
            "NumpyLoss.backward returned None, expected grad_p",
        ),
        (
            "NumpyLoss grad_p",
            TARGET,
            f"self.target *= 2; {TARGET}",
            "NumpyLoss.backward changed target in place",
        ),
        (
            "NumpyModel W1_grad",
            X1_W1,
            "self.W1_grad, _ =",
            "W1_grad has shape (4, 784), expected (784, 256)",
        ),
    ],
)
def test_mistake_in_an_operator_is_told_in_its_own_line(
    line: str, old: str, new: str, verdict: str, check_changed: Check
) -> None:
    verdicts, output = check_changed(old, new)
    assert verdicts[line] == verdict
    assert all(other.split()[0] in (line.split()[0], "NumpyModel") for other in verdicts)
    # Of the model nothing is shown: its lines depend on this one.
    assert output.count("as it should be") == (verdict == "WRONG")


LAST = "self.matmul_1.backward(self.relu_1_grad, needs_input_grad)"


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("self.relu_1.backward(self.x2_grad)", "self.x2_grad", ["W1", "x1"]),
        ("self.relu_2.backward(self.x3_grad)", "self.x3_grad", ["W2", "W1", "x1"]),
        ("self.softmax.backward(self.log_grad)", "self.log_grad", ["W3", "W2", "W1", "x1"]),
        ("self.log.backward(grad_y)", "grad_y", ["W3", "W2", "W1", "x1"]),
        *((LAST, f"{LAST}; self.{name}_grad *= -1", [name]) for name in ("W3", "W2", "W1", "x1")),
    ],
)
def test_wrong_wiring_is_wrong_in_the_models_lines(
    old: str, new: str, names: list[str], check_changed: Check
) -> None:
    verdicts, _ = check_changed(old, new)
    assert verdicts == {f"NumpyModel {name}_grad": "WRONG" for name in names}


def test_gradient_a_little_off_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def off(check: Callable[[], gradient_check.Comparison]) -> gradient_check.Comparison:
        computed, expected = check()
        return 1.001 * computed, expected

    rows = [(*names, lambda check=check: off(check)) for *names, check in gradient_check.GRADIENTS]
    monkeypatch.setattr(gradient_check, "GRADIENTS", rows)
    verdicts, _ = check_source(SOURCE, monkeypatch, capsys)
    assert verdicts == dict.fromkeys(LINES, "WRONG")


def test_operator_that_changes_its_gradient_spoils_no_other_line(check_changed: Check) -> None:
    # Log is the model's last operator: its G is the one that the model was given.
    verdicts, _ = check_changed(f"return {SLOPE}", SLOPE.replace("/", "/=") + "; return grad_y")
    assert verdicts == {"Log grad_x": "Log.backward changed grad_y in place"}


def test_first_wrong_gradient_is_shown_beside_the_right_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = SOURCE.replace("y = x @ W", "raise NotImplementedError").replace(MASK, "return grad_y")
    _, output = check_source(source, monkeypatch, capsys)
    lines = output.splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith("WRONG"))
    shown = [line.split() for line in lines[first + 2 : first + 5]]
    assert shown == [
        ["1.2", "-0.6*", "0.4", "1.2", "0", "0.4"],
        ["0.8*", "0.5", "-1.3*", "0", "0.5", "0"],
        ["-0.2", "1.1", "0.9*", "-0.2", "1.1", "0"],
    ]
    assert lines[-1].startswith("Repair the first line that is not ok")
