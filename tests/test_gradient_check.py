"""The gradient check: right operators are ok at once, and of a wrong one its own line tells."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numpy_fnn
from tests import gradient_check

PROJECT = Path(__file__).resolve().parents[1]
SOURCE = (PROJECT / "numpy_fnn.py").read_text(encoding="utf-8")
LINES = [f"{operator} {gradient}" for operator, gradient, _, _ in gradient_check.GRADIENTS]


def test_all_are_ok_with_numpy_alone_in_less_than_a_second() -> None:
    program = """
import sys, time
sys.modules.update(dict.fromkeys(("torch", "torchvision", "pytest", "matplotlib")))  # importing them is now an error
from tests.gradient_check import main
code = main()
print(time.process_time())
sys.exit(code)
"""
    # One thread: on a busy machine the waiting of a second one would count as computing.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environment, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    *table, seconds = run.stdout.splitlines()
    assert [line.split()[-1] for line in table] == ["verdict", *["ok"] * len(LINES)]
    assert float(seconds) < 1


def test_numerical_gradient_of_a_known_function() -> None:
    x = np.array([[1.0, -2.0], [0.5, 1e-13]])
    before = x.copy()
    slopes = gradient_check.numerical_gradient(lambda: float((x**3).sum()), x[:, :1])
    np.testing.assert_allclose(slopes, 3 * before[:, :1] ** 2, rtol=1e-7)
    np.testing.assert_array_equal(x, before)


def test_formulas_in_docstrings_are_those_of_the_class_and_of_the_table() -> None:
    def numbers(owner: object) -> list[str]:
        return re.findall(r"\((\d\.\d)\)", owner.__doc__ or "")

    for operator in (numpy_fnn.Matmul, numpy_fnn.Relu, numpy_fnn.Log, numpy_fnn.Softmax, numpy_fnn.NumpyLoss):
        forward: Any = getattr(operator, "forward", None) or numpy_fnn.NumpyLoss.get_loss
        rows = [formula for name, _, formula, _ in gradient_check.GRADIENTS if name == operator.__name__]
        assert numbers(operator) == numbers(forward) + numbers(operator.backward)
        assert rows == numbers(operator.backward)
    assert {formula for name, _, formula, _ in gradient_check.GRADIENTS if name == "NumpyModel"} == {"6.1"}
    assert numbers(numpy_fnn.NumpyModel.backward) == ["6.1"]


def with_signs(x_sign: int, w_sign: int, matmul: Any, *arguments: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients of a Matmul with these signs, for a wrong NumpyModel.backward to call."""
    grad_x, grad_w = matmul.backward(*arguments)
    return x_sign * grad_x, w_sign * grad_w


def check_source(
    source: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, str], str]:
    """Check this source in place of numpy_fnn.py's; return the verdicts that are not ok, by line, and all output."""
    changed = types.ModuleType("changed")
    changed.__dict__["with_signs"] = with_signs
    exec(source, changed.__dict__)
    for name in ("Matmul", "Relu", "Log", "Softmax", "NumpyLoss", "NumpyModel"):
        monkeypatch.setattr(gradient_check, name, getattr(changed, name))
    code = gradient_check.main()
    output = capsys.readouterr().out
    table = re.findall(r"^([A-Z]\w+ +\w+) +\(\d\.\d\) +(?:[\d.]+e[-+]\d+ +|nan +)?(.+)$", output, re.MULTILINE)
    assert [" ".join(line.split()) for line, _ in table] == LINES
    verdicts = {" ".join(line.split()): verdict for line, verdict in table if verdict != "ok"}
    assert code == (1 if verdicts else 0)
    return verdicts, output


def check_changed(
    old: str, new: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, str], str]:
    """Check numpy_fnn.py with `old` replaced by `new`, as check_source does."""
    assert old in SOURCE, f"numpy_fnn.py has no {old!r}"
    return check_source(SOURCE.replace(old, new, 1), monkeypatch, capsys)


@pytest.mark.parametrize(
    ("line", "old", "new"),
    [
        ("Matmul grad_x", "grad_y @ W.T if", "grad_y @ W if"),
        ("Matmul grad_x", "grad_y @ W.T if", "-grad_y @ W.T if"),
        ("Matmul grad_w", "x.T @ grad_y", "x @ grad_y"),
        ("Matmul grad_w", "x.T @ grad_y", "grad_y.T @ x"),
        ("Relu grad_x", 'return grad_y * (self.memory["x"] > 0)', "return grad_y"),
        ("Relu grad_x", 'return grad_y * (self.memory["x"] > 0)', 'return grad_y * (self.memory["x"] < 0)'),
        ("Relu grad_x", "np.maximum(x, 0)", "x + 0"),
        ("Log grad_x", 'grad_y / (self.memory["x"] + self.epsilon)', 'grad_y / self.memory["x"]'),
        ("Log grad_x", 'grad_y / (self.memory["x"] + self.epsilon)', 'grad_y / self.memory["x"] + self.epsilon'),
        ("Log grad_x", "np.log(x + self.epsilon)", "np.log(x) + self.epsilon"),
        ("Log grad_x", "return grad_y / (", "return -grad_y / ("),
        ("Softmax grad_x", "(grad_y - (grad_y * y).sum(axis=-1, keepdims=True))", "grad_y"),
        ("Softmax grad_x", "(grad_y * y).sum(axis=-1, keepdims=True)", "(grad_y * y).sum(axis=0, keepdims=True)"),
        ("Softmax grad_x", "y * (grad_y - (", "y * (grad_y + ("),
        ("Softmax grad_x", "y * (grad_y - (", "np.nan * (grad_y - ("),
        ("Softmax grad_x", "y = exp / ", "y = np.nan * exp / "),
        ("NumpyLoss grad_p", "-self.target / len(self.target)", "-self.target"),
        ("NumpyLoss grad_p", "-self.target / len(self.target)", "-self.target / self.target.shape[1]"),
        ("NumpyLoss grad_p", "-self.target / len(self.target)", "self.target / len(self.target)"),
    ],
)
def test_wrong_operator_is_wrong_in_its_own_line(
    line: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts, _ = check_changed(old, new, monkeypatch, capsys)
    assert verdicts.pop(line) == "WRONG"
    assert all(other.startswith("NumpyModel") for other in verdicts)


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("self.relu_1.backward(self.x2_grad)", "self.x2_grad", ["W1", "x1"]),
        ("self.relu_2.backward(self.x3_grad)", "self.x3_grad", ["W2", "W1", "x1"]),
        ("self.softmax.backward(self.log_grad)", "self.log_grad", ["W3", "W2", "W1", "x1"]),
        ("self.log.backward(grad_y)", "grad_y", ["W3", "W2", "W1", "x1"]),
        ("self.relu_1.backward(self.x2_grad)", "self.relu_1.backward(-self.x2_grad)", ["W1", "x1"]),
        ("self.matmul_1.backward(self.relu_1_grad", "with_signs(-1, 1, self.matmul_1, self.relu_1_grad", ["x1"]),
        ("self.matmul_1.backward(self.relu_1_grad", "with_signs(1, -1, self.matmul_1, self.relu_1_grad", ["W1"]),
        ("self.matmul_2.backward(self.relu_2_grad", "with_signs(1, -1, self.matmul_2, self.relu_2_grad", ["W2"]),
        ("self.matmul_3.backward(self.softmax_grad", "with_signs(1, -1, self.matmul_3, self.softmax_grad", ["W3"]),
    ],
)
def test_wrong_wiring_is_wrong_in_the_models_lines(
    old: str, new: str, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts, _ = check_changed(old, new, monkeypatch, capsys)
    assert verdicts == {f"NumpyModel {name}_grad": "WRONG" for name in lines}


@pytest.mark.parametrize("factor", [0.85, 1.001])
@pytest.mark.parametrize("i", range(len(LINES)), ids=LINES)
def test_gradient_a_little_off_is_wrong_in_its_line(
    i: int, factor: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def off() -> gradient_check.Comparison:
        computed, expected = check()
        return factor * computed, expected

    rows = gradient_check.GRADIENTS.copy()
    operator, gradient, formula, check = rows[i]
    rows[i] = (operator, gradient, formula, off)
    monkeypatch.setattr(gradient_check, "GRADIENTS", rows)
    verdicts, _ = check_source(SOURCE, monkeypatch, capsys)
    assert verdicts == {LINES[i]: "WRONG"}


RELU, MASK, MEMORY = "y = np.maximum(x, 0)", 'return grad_y * (self.memory["x"] > 0)', 'self.memory = {"x": x, "y": y}'
GRADS, TARGET = "return grad_x, grad_w", "return -self.target"


@pytest.mark.parametrize(
    ("line", "old", "new", "verdict"),
    [
        ("Relu grad_x", MASK, 'raise NotImplementedError("(2.4)")', "not written yet"),
        ("Relu grad_x", MASK, "raise ZeroDivisionError('a sentence')", "ZeroDivisionError: a sentence"),
        ("Relu grad_x", MASK, "return grad_y[:1]", "ValueError: grad_x has shape (1, 3), expected (3, 3)"),
        ("Relu grad_x", MASK, "pass", "Relu.backward returned None, expected grad_x"),
        ("Relu grad_x", MASK, "return (grad_y,)", "Relu.backward returned tuple, expected grad_x"),
        ("Relu grad_x", MASK, "grad_y *= 0; return grad_y", "Relu.backward changed grad_y in place"),
        ("Relu grad_x", MASK, 'self.memory["x"] *= 2; return grad_y', "Relu.backward changed x in place"),
        ("Relu grad_x", RELU, "x[x < 0] = 0; y = x", "Relu.forward changed x in place"),
        ("Relu grad_x", RELU, f"{RELU}.sum()", "Relu.forward returned float64, expected y"),
        ("Relu grad_x", RELU, f"{RELU}[1:]", "ValueError: y of Relu.forward has shape (2, 3), expected (3, 3)"),
        ("Relu grad_x", MEMORY, "pass", 'Relu.forward left no "y" in memory'),
        ("Relu grad_x", MEMORY, 'self.memory = {"y": y}', "KeyError: 'x'"),
        ("Log grad_x", "y = np.log(", "x += 1e-12; y = np.log(", "Log.forward changed x in place"),
        ("Softmax grad_x", "return y * (", "y *= 2; return y * (", "Softmax.backward changed y in place"),
        ("Matmul grad_x", "        return y\n", "", "Matmul.forward returned None, expected y"),
        ("Matmul grad_x", "y = x @ W\n", "W *= 2; y = x @ W\n", "Matmul.forward changed W in place"),
        ("Matmul grad_x", GRADS, "pass", "Matmul.backward returned None, expected (grad_x, grad_w)"),
        ("Matmul grad_w", GRADS, "return grad_w", "Matmul.backward returned one array, expected (grad_x, grad_w)"),
        ("NumpyLoss grad_p", TARGET, "-self.target", "NumpyLoss.backward returned None, expected grad_p"),
        ("NumpyLoss grad_p", TARGET, f"self.target *= 2; {TARGET}", "NumpyLoss.backward changed target in place"),
    ],
)
def test_what_can_not_be_compared_is_said_in_the_operators_own_line(
    line: str, old: str, new: str, verdict: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts, output = check_changed(old, new, monkeypatch, capsys)
    assert verdicts[line] == verdict
    assert all(other.split()[0] in (line.split()[0], "NumpyModel") for other in verdicts)
    assert "as it should be" not in output  # of the model, whose lines depend on this one


@pytest.mark.parametrize(
    ("operator", "old", "new"),
    [
        ("Relu", MASK, 'grad_y *= self.memory["x"] > 0'),
        ("Log", "return grad_y / (", "grad_y /= ("),
        ("Softmax", "return y * (grad_y - (", "grad_y[...] = y * (grad_y - ("),
    ],
)
def test_operator_that_changes_its_gradient_spoils_no_other_line(
    operator: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in SOURCE
    changed = re.sub(rf"^( +){re.escape(old)}(.*)$", rf"\1{new}\2; return grad_y", SOURCE, flags=re.MULTILINE)
    verdicts, _ = check_source(changed, monkeypatch, capsys)
    assert verdicts == {f"{operator} grad_x": f"{operator}.backward changed grad_y in place"}


def test_missing_forward_is_the_verdict_of_its_operator(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts, _ = check_changed("y = np.maximum(x, 0)", "raise NotImplementedError", monkeypatch, capsys)
    model = {line for line in LINES if line.startswith("NumpyModel")}
    assert verdicts == dict.fromkeys({"Relu grad_x", *model}, "not written yet")


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
    assert output.count("as it should be") == 1
    assert lines[-1].startswith("Repair the first line that is not ok")
