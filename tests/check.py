"""Check the steps of the lab sheet, with NumPy alone: python -m tests.check [STEP ...].

Each row of the table is one result of your code. Outputs are compared with their formula in plain
Python, and gradients with central differences of that formula. In step 6, stand-ins for the
operators record what NumpyModel.backward gives to them. So no row depends on another step.
"""

import argparse
import importlib
import itertools
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4  # of relative errors; those of a right result, from rounding, are below 1e-5

Case = tuple[Any, np.ndarray, np.ndarray]  # your array, the expected one, and an input


class Fault(Exception):
    """What is wrong with a result, in a sentence."""


# ---- the formulas, in plain Python


def dot(row: Sequence[float], column: Sequence[float]) -> float:
    """Return the sum of the products of two rows of numbers."""
    return sum(a * b for a, b in zip(row, column, strict=True))


def softmax(row: list[float]) -> list[float]:
    """Return exp(X − max X) / Σₖ exp(Xₖ − max X)."""
    exp = [math.exp(a - max(row)) for a in row]
    return [a / sum(exp) for a in exp]


FORMULAS: dict[str, Callable[..., Any]] = {
    "Matmul": lambda x, W: [[dot(row, column) for column in zip(*W, strict=True)] for row in x],
    "Relu": lambda x: [[max(a, 0) for a in row] for row in x],
    "Log": lambda x: [[math.log(a + 1e-12) for a in row] for row in x],
    "Softmax": lambda x: [softmax(row) for row in x],
    "NumpyLoss": lambda pred, target: -sum(map(dot, pred, target)) / len(pred),
}


def evaluate(name: str, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return the value of a formula, float64."""
    return np.array(FORMULAS[name](*(x.astype(float).tolist() for x in inputs)))


def numerical_gradient(name: str, inputs: list[np.ndarray], i: int, grad_y: Any) -> np.ndarray:
    """Return the gradient of Σ G ⊙ Y with respect to inputs[i], by central differences.

    At 0 it is the difference to the left, as Relu's derivative is 0 there by (2.3).
    """
    x = inputs[i].astype(float)
    arrays = [*inputs[:i], x, *inputs[i + 1 :]]
    gradient = np.zeros(x.shape)
    for index, entry in np.ndenumerate(inputs[i].astype(float)):
        h = 1e-6 * (abs(entry) + 1e-12)
        x[index] = entry + h if entry else 0
        width = x[index] - (entry - h)
        difference = evaluate(name, arrays)
        x[index] = entry - h
        difference -= evaluate(name, arrays)
        x[index] = entry
        gradient[index] = (grad_y * difference).sum() / width
    return gradient


# ---- the checks: each returns the cases of a row, or raises a Fault


def student(module: str, name: str) -> Any:
    """Return a class or function of the student's, imported only now: a file may not compile."""
    return getattr(importlib.import_module(module), name)


def read_only(array: Any) -> np.ndarray:
    """Return a float32 array in which a change in place is an error, in the line that makes it."""
    array = np.array(array, np.float32)
    array.setflags(write=False)
    return array


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return numbers of either sign, with absolute values from 0.2 to 2."""
    return read_only(rng.uniform(0.2, 2, shape) * rng.choice([-1, 1], shape))


def draw_inputs(name: str, rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Return inputs of an operator, the first with n rows, for which usual mistakes show."""
    x = draw(rng, n, 4).copy()
    if name == "Matmul":
        return [read_only(x), draw(rng, 4, 2)]
    if name == "Relu":
        x[0, 0] = 0
    if name == "Log":
        x = abs(x)
        x[0, :2] = 0, 1e-13
    if name == "Softmax":  # no maximum, mean or minimum of the whole array fits all rows
        x += np.array([[1], [300], [1000]], np.float32)[:n]
    return [read_only(x)]


def check_operator(name: str, result: str, rng: np.random.Generator) -> list[Case]:
    """Return the cases of "y", "grad_x" or "grad_w": two batches, computed by one object."""
    op = student("numpy_fnn", name)()
    other = type(op)()
    cases = []
    for n in (3, 2):
        inputs = draw_inputs(name, rng, n)
        grad_y = draw(rng, *evaluate(name, inputs).shape)
        y = op.forward(*inputs)
        if "y" not in op.memory:
            raise Fault('forward must store y in self.memory["y"]')
        if result == "y":
            cases.append((y, evaluate(name, inputs), inputs[0]))
            continue
        y.setflags(write=False)
        other.forward(*draw_inputs(name, rng, n))  # must not change what `op` has stored
        grads = op.backward(grad_y)
        if len(inputs) == 1:
            grads = (grads,)
        if not isinstance(grads, tuple) or len(grads) != len(inputs):
            raise Fault("backward must return a tuple, (grad_x, grad_w)")
        i = ["grad_x", "grad_w"].index(result)
        cases.append((grads[i], numerical_gradient(name, inputs, i, grad_y), inputs[0]))
    return cases


def check_loss(name: str, _: str, rng: np.random.Generator) -> list[Case]:
    """Return two cases of grad_p."""
    numpy_loss = student("numpy_fnn", name)()
    cases = []
    for n in (4, 2):
        inputs = [draw(rng, n, 3), read_only(np.eye(3)[rng.integers(0, 3, n)])]
        numpy_loss.get_loss(*inputs)
        cases.append((numpy_loss.backward(), numerical_gradient(name, inputs, 0, 1), inputs[1]))
    return cases


# For each operator, the last first: the gradient that it gets, and those that it returns.
WIRING = {
    "log": ["grad_y", "log_grad"],
    "softmax": ["log_grad", "softmax_grad"],
    "matmul_3": ["softmax_grad", "x3_grad", "W3_grad"],
    "relu_2": ["x3_grad", "relu_2_grad"],
    "matmul_2": ["relu_2_grad", "x2_grad", "W2_grad"],
    "relu_1": ["x2_grad", "relu_1_grad"],
    "matmul_1": ["relu_1_grad", "x1_grad", "W1_grad"],
}


class StandIn:
    """What takes the place of an operator's backward, and keeps what it gets."""

    def __init__(self, grads: tuple[np.ndarray, ...]) -> None:
        self.grads = grads
        self.got: Any = "nothing"

    def __call__(self, grad_y: np.ndarray, needs_input_grad: bool = True) -> Any:
        """Return one gradient, or a tuple of two."""
        self.got = grad_y
        return self.grads if len(self.grads) > 1 else self.grads[0]


def check_wiring(name: str, operator: str, rng: np.random.Generator) -> list[Case]:
    """Raise a Fault if an operator gets a wrong gradient, or what it returns is not kept."""
    model = student("numpy_fnn", name)()
    arrays = {gradient: draw(rng, 2, 2) for gradient in itertools.chain(*WIRING.values())}
    names = {array.tobytes(): gradient for gradient, array in arrays.items()}
    for op, (_, *returned) in WIRING.items():
        grads = tuple(arrays[gradient] for gradient in returned)
        getattr(model, op).backward = StandIn(grads)
    stand_in = getattr(model, operator).backward
    try:
        model.backward(arrays["grad_y"])
    except Exception:  # what came before it is judged
        if isinstance(stand_in.got, str):
            raise
    given, *returned = WIRING[operator]
    seen = [(f"{operator}.backward got", stand_in.got, given)]
    seen += [(f"self.{name} is", getattr(model, name, "missing"), name) for name in returned]
    for words, array, expected in seen:
        known = names.get(np.asarray(array).tobytes(), "another array")
        found = array if isinstance(array, str) else known
        if found != expected:
            raise Fault(f"{words} {found}, expected {expected}")
    return []


def check_optimize(_: str, weight: str, rng: np.random.Generator) -> list[Case]:
    """Return the case of a weight after a step of SGD."""
    model = student("numpy_fnn", "NumpyModel")()
    arrays = {name: draw(rng, 4, 3) for name in ("W1", "W2", "W3", "W1_grad", "W2_grad", "W3_grad")}
    vars(model).update(arrays)
    model.optimize(0.25)
    expected = arrays[weight] - 0.25 * arrays[f"{weight}_grad"]
    return [(getattr(model, weight), expected, arrays[weight])]


# What must be true of mini-batches of 5 of 23 images.
MINI_BATCH = {
    "sizes": "the batches must have 5, 5, 5, 5 and 3 images, and with batch_size 99 all 23",
    "images": "every image must come exactly once, with its own label, in its dtype and shape",
    "shuffle": "the images must be shuffled over the whole data set, not within batches",
    "seed": "a seed must give the same order twice, and another seed another order",
    "rng": "a generator, and no rng, must give another order each time",
}


def check_mini_batch(_: str, result: str, rng: np.random.Generator) -> list[Case]:
    """Raise a Fault unless a sentence of MINI_BATCH is true."""
    mini_batch = student("numpy_mnist", "mini_batch")
    labels = np.arange(23, dtype=np.uint8)
    images = read_only(labels[:, None, None].repeat(2, axis=1))  # each image holds its label
    seed = int(rng.integers(1000))

    def batches(rng: Any, batch_size: int = 5) -> list[Any]:
        return list(itertools.islice(mini_batch((images, labels), batch_size, rng), 99))

    def order(rng: Any) -> list[int]:
        return np.concatenate([y for _, y in batches(rng)]).tolist()

    xs, ys = zip(*batches(seed), strict=True)
    if result == "sizes":
        true = [*map(len, ys), len(batches(seed, 99)[0][1])] == [5, 5, 5, 5, 3, 23]
    elif result == "images":
        x, y = np.concatenate(xs), np.concatenate(ys)
        true = sorted(y) == list(labels) and np.array_equal(x, images[y])
        true = true and (x.dtype, y.dtype) == (images.dtype, labels.dtype)
    elif result == "shuffle":
        true = any(np.ptp(y) != len(y) - 1 for y in ys)  # a batch is not of consecutive images
    elif result == "seed":
        true = order(seed) == order(seed) != order(seed + 1)
    else:
        generator = np.random.default_rng(seed)
        true = order(generator) != order(generator) and order(None) != order(None)
    if not true:
        raise Fault(MINI_BATCH[result])
    return []


# Step, name, check, and its results with the numbers of their formulas. A new operator needs its
# row here, such as (8, "Tanh", check_operator, {"y": "10.1", "grad_x": "10.2"}), and a formula.
CHECKS: list[tuple[int, str, Callable[..., list[Case]], dict[str, str]]] = [
    (1, "Matmul", check_operator, {"y": "1.1", "grad_x": "1.4", "grad_w": "1.5"}),
    (2, "Relu", check_operator, {"y": "2.1", "grad_x": "2.4"}),
    (3, "Log", check_operator, {"y": "3.1", "grad_x": "3.4"}),
    (4, "Softmax", check_operator, {"y": "4.1", "grad_x": "4.3"}),
    (5, "NumpyLoss", check_loss, {"grad_p": "5.2"}),
    (6, "NumpyModel", check_wiring, dict.fromkeys(WIRING, "6.1")),
    (7, "optimize", check_optimize, dict.fromkeys(("W1", "W2", "W3"), "7.1")),
    (7, "mini_batch", check_mini_batch, dict.fromkeys(MINI_BATCH, "8.1")),
]


# ---- the verdicts


def relative_errors(yours: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return |a − b| / (|a| + |b|) of each entry; a sum below 0.01 counts as 0.01."""
    return abs(yours - expected) / np.maximum(abs(yours) + abs(expected), 0.01)


def side_by_side(yours: np.ndarray, expected: np.ndarray, x: np.ndarray) -> str:
    """Return your array, with a star at each wrong entry, the expected one and the input."""
    stars = np.where(relative_errors(yours, expected) < TOLERANCE, "  ", "* ")
    blocks = {"yours (* is wrong)": np.char.add(np.char.mod("%9.3g", yours), stars)}
    blocks |= {"expected": np.char.mod("%9.3g  ", expected), "input": np.char.mod("%9.3g  ", x)}
    titles = "".join(f"{title:>{11 * block.shape[1] - 2}}  " for title, block in blocks.items())
    return "\n".join([titles, *map("".join, np.hstack(list(blocks.values())))])


def compare(result: str, cases: list[Case]) -> tuple[str, str]:
    """Return the largest relative error, and the verdict: "ok", or "WRONG" with the matrices."""
    largest = 0.0
    for yours, expected, x in cases:
        if not isinstance(yours, np.ndarray):
            raise Fault(f"{result} is {type(yours).__name__}, expected an array")
        if yours.shape != expected.shape or yours.dtype != np.float32:
            got = f"{yours.dtype} {yours.shape}"
            raise Fault(f"{result} is {got}, expected float32 {expected.shape}")
        errors = relative_errors(yours, expected)
        largest = errors.max(initial=largest)
        if not largest < TOLERANCE:
            factor = (yours * expected).sum() / (expected**2).sum()
            proportional = relative_errors(yours, factor * expected).max() < TOLERANCE
            words = f": {factor:.3g} times what is expected" if proportional else ""
            return f"{largest:.1e}", f"WRONG{words}\n{side_by_side(yours, expected, x)}"
    return f"{largest:.1e}" if cases else "", "ok"


def sentence(error: Exception) -> str:
    """Return what an exception says, and in which line of the student's it was raised."""
    if isinstance(error, Fault):
        return str(error)
    if isinstance(error, NotImplementedError):
        return "not written yet"
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.endswith(("numpy_fnn.py", "numpy_mnist.py")):
            place = f"{Path(frame.filename).name}:{frame.lineno}: "
    if "read-only" in str(error):
        return f"{place}changed in place what it was given"
    return f"{place}{type(error).__name__}: {error}"


@np.errstate(all="ignore")  # the verdict says what is wrong
def judge(steps: Sequence[int], seed: int) -> Iterator[tuple[int, str, str, str, str]]:
    """Yield step, result, formula, relative error and verdict of each row of these steps."""
    for step, name, check, results in CHECKS:
        verdicts: dict[str, str] = {}
        for result, formula in results.items() if step in steps else ():
            try:
                error, verdict = compare(result, check(name, result, np.random.default_rng(seed)))
            except Exception as exception:
                error, verdict = "", sentence(exception)
            if verdict != "ok" and verdicts.get("y", "ok") != "ok":
                error, verdict = "", "not judged before y is ok"
            verdicts[result] = verdict
            yield step, f"{name} {result}", formula, error, verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and return the exit code: 0 if every row is ok, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.check", description=__doc__)
    parser.add_argument("steps", nargs="*", type=int, metavar="STEP", help="1 to 7 (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the numbers")
    options = parser.parse_args(arguments)
    print("step  result               formula  relative error  verdict")
    verdicts: list[str] = []
    for step, result, formula, error, verdict in judge(options.steps or range(8), options.seed):
        if any("WRONG" in earlier for earlier in verdicts):
            verdict = verdict.partition("\n")[0]  # only the first WRONG row shows its matrices
        print(f"{step:<6}{result:<21}({formula}){error:>18}  {verdict}")
        verdicts.append(verdict)
    if set(verdicts) == {"ok"}:
        return 0
    print("Start with the first row that is not ok.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
