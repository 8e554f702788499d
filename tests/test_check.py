"""The check accepts every right solution, and reports each mistake in the step of this mistake."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import numpy_fnn
import numpy_mnist
from tests import check

ARGUMENTS = {"forward": "self, x, W=None", "backward": "self, grad_y=None, needs_input_grad=True"}
ARGUMENTS |= {"optimize": "self, learning_rate", "mini_batch": "dataset, batch_size, rng"}
KEEP = "\nself.memory.update(x=x, W=W, y=y)\nreturn y"
GRADS = "return grad_y @ self.memory['W'].T, self.memory['x'].T @ grad_y"
WIRING = """for name in "log", "softmax", "matmul_3", "relu_2", "matmul_2", "relu_1", "matmul_1":
    grad_y = getattr(self, name).backward(grad_y)
    if "matmul" in name:
        grad_y, grad_w = grad_y
        setattr(self, f"W{name[-1]}_grad", grad_w)
    setattr(self, f"{name}_grad".replace("matmul_", "x"), grad_y)"""
SGD = """for W in "W1", "W2", "W3":
    setattr(self, W, getattr(self, W) - learning_rate * getattr(self, W + "_grad"))"""
BATCHES = """images, labels = as_arrays(dataset)
order = np.random.default_rng(rng).permutation(len(images))
parts = [order[i : i + batch_size] for i in range(0, len(images), batch_size)]
return [(images[part], labels[part]) for part in parts]"""
TOTAL = """self.total = getattr(self, "total", 0) + self.memory["x"].T @ grad_y
return grad_y @ self.memory["W"].T, self.total"""
SHARED = "self.memory = vars(forward)\ny = np.maximum(x, 0)" + KEEP
BUFFER = "y = vars(self).setdefault('buffer', x + 0)\ny[:] = np.log(x + self.epsilon)" + KEEP
ADDED = WIRING.replace("grad_w)", 'grad_w + getattr(self, f"W{name[-1]}_grad", 0))')
OTHER_STYLE = {
    "Matmul.backward": GRADS.replace("['W']", ".pop('W')"),
    "Relu.backward": "grad_x = grad_y.copy()\ngrad_x[self.memory['y'] == 0] = 0\nreturn grad_x",
    "NumpyModel.backward": WIRING,
    "NumpyModel.optimize": SGD,
    "mini_batch": BATCHES,
}
MISTAKES = [  # the first row that is not ok, the function, its body, and a part of the verdict
    ("Matmul y", "Matmul.forward", "self.memory['y'] = x @ W", "y is NoneType, not an array"),
    ("Matmul y", "Matmul.forward", "return x @ W", 'store y in self.memory["y"]'),
    ("Matmul grad_x", "Matmul.backward", "return self.memory['x'].T @ grad_y", "must return two"),
    ("Matmul grad_x", "Matmul.backward", GRADS.replace(".T,", ".T * 1.001,"), "1.001 times"),
    ("Relu grad_x", "Relu.backward", "return grad_y * (self.memory['x'] >= 0)", "WRONG\n"),
    ("Relu grad_x", "Relu.backward", "return self.memory['x'] > 0", "grad_x is bool (4, 3)"),
    ("Relu grad_x", "Relu.backward", "raise NotImplementedError('write')", "not written yet"),
    ("Log y", "Log.forward", "y = np.log(np.maximum(x, 1e-12))" + KEEP, "WRONG\n"),
    ("Log grad_x", "Log.backward", "return grad_x", "numpy_fnn.py:2: NameError"),
    ("Softmax y", "Softmax.forward", "y = np.exp(x)\ny /= y.sum(1)[:, None]" + KEEP, "nan"),
    ("NumpyLoss grad_p", "NumpyLoss.backward", "return -self.target / 4", "WRONG only after"),
    ("NumpyModel log", "NumpyModel.backward", WIRING.replace('d".', 's".'), "log_grad is missing"),
    ("NumpyModel relu_2", "NumpyModel.backward", WIRING.replace('"relu_2", ', ""), "got nothing"),
    ("optimize W1", "NumpyModel.optimize", "pass", "WRONG\n"),
    ("optimize W2", "NumpyModel.optimize", SGD.replace('"W2", ', ""), "WRONG\n"),
    ("optimize W1", "NumpyModel.optimize", "self.W1 -= self.W1_grad", ".py:2: changed in place"),
    ("mini_batch sizes", "mini_batch", BATCHES.replace("(images), b", "(images) - 4, b"), "[5, 5,"),
    ("mini_batch images", "mini_batch", BATCHES.replace("permutation(", "choice(23, "), "once"),
    ("mini_batch shuffle", "mini_batch", BATCHES.replace("order[i", "sorted(order)[i"), "whole"),
    ("mini_batch seed", "mini_batch", BATCHES.replace("(rng)", "(0)"), "another order"),
    ("Matmul grad_w", "Matmul.backward", TOTAL, "WRONG only after"),
    ("Relu grad_x", "Relu.forward", SHARED, "WRONG only after"),
    ("Log y", "Log.forward", BUFFER, ".py:3: changed in place"),
    ("NumpyModel matmul_3", "NumpyModel.backward", ADDED, "W3_grad is something else"),
    ("NumpyModel log", "NumpyModel.backward", WIRING + "\nself.W1 = 0", "changed a weight"),
    ("mini_batch sizes", "mini_batch", "while True:\n    yield dataset", "got "),
]


def write(monkeypatch: pytest.MonkeyPatch, function: str, body: str) -> None:
    """Replace a function of the lab, as if its file had this body from its second line on."""
    monkeypatch.setattr(numpy_fnn.NumpyModel, "SHAPES", dict.fromkeys("abc", (2, 2)))  # faster
    owner, _, name = function.rpartition(".")
    code = f"def {name}({ARGUMENTS[name]}):\n{textwrap.indent(body, '    ')}"
    namespace = dict(vars(numpy_fnn if owner else numpy_mnist))
    exec(compile(code, "numpy_fnn.py", "exec"), namespace)
    monkeypatch.setattr(getattr(numpy_fnn, owner) if owner else numpy_mnist, name, namespace[name])


@pytest.mark.parametrize("style", [{"mini_batch": BATCHES}, OTHER_STYLE])
def test_right_solution_passes_every_row(style: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for function, body in style.items():
        write(monkeypatch, function, body)
    for seed in range(50 * len(style), 50 * len(style) + 50):
        assert {row[4] for row in check.judge(range(8), seed)} == {"ok"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_fails_only_its_own_step(mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row, function, body, words = mistake
    write(monkeypatch, function, body)
    faults = [fault for fault in check.judge(range(8), 0) if fault[4] != "ok"]
    assert faults[0][1] == row
    assert words in faults[0][4]
    assert len({fault[0] for fault in faults}) == 1


def test_first_wrong_row_shows_its_matrices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(monkeypatch, "Log.backward", "return grad_y + 1")
    write(monkeypatch, "Softmax.backward", "return grad_y + 1")
    assert check.main([]) == 1
    output = capsys.readouterr().out
    counts = [output.count(words) for words in ("WRONG", "your grad_x", "expected", "input", "* ")]
    assert counts == [2, 1, 1, 1, 12]
    assert output.endswith("\nStart with the first row that is not ok.\n")


@pytest.mark.parametrize(("file", "oks"), [("other.py", 25), ("numpy_mnist.py", 20)])
def test_check_needs_only_numpy(file: str, oks: int, tmp_path: Path) -> None:
    (tmp_path / file).write_text("def mini_batch(:\n")  # the error fails only the file's rows
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.modules |= dict.fromkeys("
    code += "['torch', 'torchvision', 'pytest', 'matplotlib', 'sklearn']); import tests.check; "
    command = [sys.executable, "-c", f"{code}sys.exit(tests.check.main([]))"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert (run.returncode, run.stdout.count("  ok\n")) == (int(oks < 25), oks)
