"""Check the code that students write in the steps of the lab sheet. It needs only NumPy.

Outputs are compared with their formula in plain Python, and gradients with central differences of
that formula. NumpyModel.backward runs with stand-ins for the operators, so steps are independent.
"""

import argparse
import functools
import itertools
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4  # for relative errors; rounding causes errors below 1e-5

Case = tuple[Any, np.ndarray, Any]  # your array, the expected one, and the input to show or None


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
    return np.array(FORMULAS[name](*[array.tolist() for array in inputs]))


def numerical_gradient(name: str, inputs: list[np.ndarray], i: int, grad_y: Any) -> np.ndarray:
    """Return the gradient of Σ G ⊙ Y with respect to inputs[i], by central differences."""
    x = inputs[i].astype(float)
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        below = np.zeros(x.shape)
        below[index] = 1e-6 * (abs(x[index]) + 1e-12)
        above = below * (x != 0)  # at 0, use only the left side, since (2.3) gives Relu 0 there
        high = evaluate(name, [*inputs[:i], x + above, *inputs[i + 1 :]])
        low = evaluate(name, [*inputs[:i], x - below, *inputs[i + 1 :]])
        gradient[index] = (grad_y * (high - low)).sum() / (above + below)[index]
    return gradient


def require(true: bool, words: str) -> None:
    """Raise ValueError with these words unless the condition is true."""
    if not true:
        raise ValueError(words)


def read_only(array: Any) -> np.ndarray:
    """Return a float32 array that raises ValueError in the line that changes it in place."""
    array = np.array(array, np.float32)
    array.setflags(write=False)
    return array


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return numbers of either sign, with absolute values from 0.2 to 2."""
    return read_only(rng.uniform(0.2, 2, shape) * rng.choice([-1, 1], shape))


def draw_inputs(name: str, rng: np.random.Generator, n: int) -> list[np.ndarray]:
    """Return inputs of an operator, the first with n rows, that reveal typical mistakes."""
    x = draw(rng, n, 3).copy()
    if name == "Matmul":
        return [read_only(x), draw(rng, 3, 2)]
    if name in ("Relu", "Log"):
        x[0, :2] = [0, 1e-13]
    if name == "Log":
        x = abs(x)
    if name == "Softmax":  # so that subtracting one number from the whole array fails
        x += np.array([[5], [300], [1000], [30]], np.float32)[:n]
    return [read_only(x)]


def check_operator(name: str, result: str, rng: np.random.Generator) -> Iterator[Case]:
    """Yield the cases of "y", "grad_x" or "grad_w", for three batches with the same object."""
    operator = getattr(import_module("numpy_fnn"), name)  # here, since the import may fail
    op = operator()
    for batch, n in enumerate([4, 4, 2]):
        inputs = draw_inputs(name, rng, n)
        shown = inputs[0] if len(inputs) == 1 else None
        y = op.forward(*inputs)
        np.asarray(y).setflags(write=False)
        if result == "y":
            yield y, evaluate(name, inputs), shown
            require("y" in op.memory, 'forward must store y in self.memory["y"]')
            continue
        if batch > 0:
            operator().forward(*draw_inputs(name, rng, n))  # must not change op.memory
        grad_y = draw(rng, *y.shape)
        grads = op.backward(grad_y)
        if len(inputs) == 1:
            grads = [grads]
        require(isinstance(grads, tuple | list), "backward must return two arrays, grad_x, grad_w")
        i = ["grad_x", "grad_w"].index(result)
        yield grads[i], numerical_gradient(name, inputs, i, grad_y), shown
        grads[i].setflags(write=False)


def check_loss(name: str, _: str, rng: np.random.Generator) -> Iterator[Case]:
    """Yield the cases of grad_p, for two batches with the same object."""
    numpy_loss = import_module("numpy_fnn").NumpyLoss()
    for n in (4, 2):
        inputs = [draw(rng, n, 3), read_only(np.eye(3)[rng.integers(0, 3, n)])]
        numpy_loss.get_loss(*inputs)
        yield numpy_loss.backward(), numerical_gradient(name, inputs, 0, 1), inputs[1]


# The gradients that each operator's backward gets (first) and returns, from the last operator on.
WIRING = {
    "log": ["grad_y", "log_grad"],
    "softmax": ["log_grad", "softmax_grad"],
    "matmul_3": ["softmax_grad", "x3_grad", "W3_grad"],
    "relu_2": ["x3_grad", "relu_2_grad"],
    "matmul_2": ["relu_2_grad", "x2_grad", "W2_grad"],
    "relu_1": ["x2_grad", "relu_1_grad"],
    "matmul_1": ["relu_1_grad", "x1_grad", "W1_grad"],
}


def stand_in(got: Any, op: str, grads: Any, grad_y: Any, needs_input_grad: bool = True) -> Any:
    """Replace an operator's backward: record the gradient that it gets, and return `grads`."""
    got[op] = grad_y
    require(needs_input_grad or op == "matmul_1", f"{op}.backward must not get needs_input_grad")
    return tuple(grads) if len(grads) == 2 else grads[0]


def check_wiring(_: str, operator: str, rng: np.random.Generator) -> None:
    """Raise ValueError if an operator gets a wrong gradient or its own gradients are not stored."""
    model = import_module("numpy_fnn").NumpyModel()
    known = {name: draw(rng, 2, 2) for name in itertools.chain(*WIRING.values())}
    model.W1 = model.W2 = model.W3 = known["grad_y"]  # of the shape of all gradients
    got: dict[str, Any] = dict.fromkeys(WIRING, "nothing")
    for op, (_, *returned) in WIRING.items():
        grads = [known[name] for name in returned]
        getattr(model, op).backward = functools.partial(stand_in, got, op, grads)
    model.backward(known["grad_y"], needs_input_grad=False)
    model.backward(known["grad_y"])  # gradients must not add up
    require(model.W1 is model.W2 is model.W3 is known["grad_y"], "backward changed a weight")
    given, *returned = WIRING[operator]
    seen = [(f"{operator}.backward got", got[operator], given)]
    seen += [(f"self.{name} is", getattr(model, name, "missing"), name) for name in returned]
    for words, array, expected in seen:
        require(not isinstance(array, str), f"{words} {array}")
        found = next((n for n in known if np.array_equal(array, known[n])), "something else")
        require(found == expected, f"{words} {found}, expected {expected}")


def check_optimize(_: str, weight: str, rng: np.random.Generator) -> Iterator[Case]:
    """Yield the case of a weight after one step of SGD."""
    model = import_module("numpy_fnn").NumpyModel()
    arrays = {name: draw(rng, 4, 3) for name in ("W1", "W2", "W3", "W1_grad", "W2_grad", "W3_grad")}
    for name, array in arrays.items():
        setattr(model, name, array)
    model.optimize(0.5)
    grad = f"{weight}_grad"
    yield getattr(model, weight), arrays[weight] - 0.5 * arrays[grad], None
    require(getattr(model, grad) is arrays[grad], f"optimize must not change self.{grad}")


def check_mini_batch(_: str, result: str, rng: np.random.Generator) -> None:
    """Raise ValueError if the mini-batches of 23 images break the rule that `result` names."""
    mini_batch = import_module("numpy_mnist").mini_batch
    labels = np.frombuffer(bytes(range(23)), np.uint8)  # read-only
    images = read_only(labels.repeat(2).reshape(23, 2, 1))  # each image consists of its label
    seed = int(rng.integers(1000))

    def order(rng: Any, batch_size: int = 5) -> list[list[int]]:
        batches = mini_batch((images, labels), batch_size, rng) or []  # perhaps endless
        return [np.ravel(batch[-1]).tolist() for batch in itertools.islice(batches, 9)]

    if result == "sizes":
        sizes = [[len(batch) for batch in order(seed, size)] for size in (5, 23, 99)]
        right = sizes == [[5, 5, 5, 5, 3], [23], [23]]
        words = f"batch_size 5, 23, 99 must give [5, 5, 5, 5, 3], [23], [23], got {sizes}"
    elif result == "images":
        batches = itertools.islice(mini_batch((images, labels), 5, rng), 9)
        x, y = map(np.concatenate, zip(*batches, strict=True))
        right = (x.dtype, y.dtype) == (images.dtype, labels.dtype)
        right = right and sorted(y) == list(labels) and np.array_equal(x, images[y])
        words = "every image must come exactly once, with its label, in its shape and dtype"
    elif result == "shuffle":
        consecutive = [np.ptp(batch) == len(batch) - 1 for batch in order(seed)]
        right = sum(consecutive) < 3  # of 5 batches; by chance, it is hardly ever more than 1
        words = "the images must be shuffled over the whole data set, not only within batches"
    elif result == "seed":
        right = order(seed) == order(seed) != order(seed + 1)
        words = "a seed must always give the same order, and another seed must give another order"
    else:
        one = np.random.default_rng(seed)
        same = np.random.default_rng(seed)
        right = order(one) == order(same) != order(one) and order(None) != order(None)
        words = "a generator must decide the order; a second call, also with None, must change it"
    require(right, words)


MINI_BATCH = ("sizes", "images", "shuffle", "seed", "rng")
# Each row has a step, a name, a check, and its results with their formula numbers. A new operator
# needs a row, such as (8, "Tanh", check_operator, {"y": "10.1", "grad_x": "10.2"}), and a formula.
CHECKS: list[tuple[int, str, Callable[..., Any], dict[str, str]]] = [
    (1, "Matmul", check_operator, {"y": "1.1", "grad_x": "1.4", "grad_w": "1.5"}),
    (2, "Relu", check_operator, {"y": "2.1", "grad_x": "2.4"}),
    (3, "Log", check_operator, {"y": "3.1", "grad_x": "3.4"}),
    (4, "Softmax", check_operator, {"y": "4.1", "grad_x": "4.3"}),
    (5, "NumpyLoss", check_loss, {"grad_p": "5.2"}),
    (6, "NumpyModel", check_wiring, dict.fromkeys(WIRING, "6.1")),
    (7, "optimize", check_optimize, {"W1": "7.1", "W2": "7.1", "W3": "7.1"}),
    (7, "mini_batch", check_mini_batch, dict.fromkeys(MINI_BATCH, "8.1")),
]


def relative_errors(yours: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return |a − b| / (|a| + |b|) of each entry; a sum below 0.1 counts as 0.1."""
    return abs(yours - expected) / np.maximum(abs(yours) + abs(expected), 0.1)


def wrong(result: str, yours: np.ndarray, expected: np.ndarray, shown: Any) -> str:
    """Return "WRONG", the factor if there is one, and the matrices with a star at wrong numbers."""
    verdict = "WRONG"
    factor = (yours * expected).sum() / (expected**2).sum()
    if relative_errors(yours, factor * expected).max() < TOLERANCE:
        verdict += f": {factor:.4g} times what is expected"
    stars = np.where(relative_errors(yours, expected) < TOLERANCE, "  ", "* ")
    blocks = {f"your {result}": np.char.add(np.char.mod("%10.4g", yours), stars)}
    blocks["expected"] = np.char.mod("%10.4g  ", expected)
    if shown is not None:
        blocks["input"] = np.char.mod("%10.4g  ", shown)
    titles = [title.center(12 * block.shape[1]) for title, block in blocks.items()]
    return "\n".join([verdict, "".join(titles), *map("".join, np.hstack([*blocks.values()]))])


@np.errstate(all="ignore")  # the verdict says what is wrong
def compare(result: str, cases: Iterable[Case] | None) -> tuple[str, str]:
    """Return the largest relative error, as text, and "ok" or what is wrong."""
    largest = 0.0
    for batch, (yours, expected, shown) in enumerate(cases or []):
        require(isinstance(yours, np.ndarray), f"{result} is {type(yours).__name__}, not an array")
        words = f"{result} is {yours.dtype} {yours.shape}, expected float32 {expected.shape}"
        require((yours.dtype, yours.shape) == (np.float32, expected.shape), words)
        error = relative_errors(yours, expected).max()
        if not error < TOLERANCE:  # true for NaN, too
            later = " only after another batch or with two objects" if batch else ""
            verdict = wrong(result, yours, expected, shown).replace("WRONG", f"WRONG{later}")
            return f"{error:.1e}", verdict
        largest = max(largest, error)
    return f"{largest:.1e}" if cases else "", "ok"


def sentence(error: Exception) -> str:
    """Return the message of an exception, and the line of the student's code that raised it."""
    if isinstance(error, NotImplementedError):
        return "not written yet"
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.endswith(("numpy_fnn.py", "numpy_mnist.py")):
            place = f"{Path(frame.filename).name}:{frame.lineno}: "
    if "read-only" in str(error):
        return f"{place}changed in place what it was given, or what it returned before"
    return f"{place}{type(error).__name__}: {error}" if place else str(error)


def judge(steps: Sequence[int], seed: int) -> Iterator[tuple[int, str, str, str, str]]:
    """Yield step, result, formula, relative error and verdict of each row of these steps."""
    for step, name, check, results in CHECKS:
        verdicts: dict[str, str] = {}
        for result, formula in results.items() if step in steps else ():
            error = ""
            try:
                error, verdict = compare(result, check(name, result, np.random.default_rng(seed)))
            except Exception as exception:
                verdict = sentence(exception)
            if verdict != "ok" and verdicts.get("y", "ok") != "ok":
                error = ""
                verdict = "not judged before y is ok"
            verdicts[result] = verdict
            yield step, f"{name} {result}", formula, error, verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and return the exit code: 0 if every row is ok, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.check", description=__doc__)
    parser.add_argument("steps", nargs="*", type=int, default=range(99), help="default: all seven")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the inputs")
    options = parser.parse_args(arguments)
    print("step  result               formula  relative error  verdict")
    verdicts: list[str] = []
    for step, result, formula, error, verdict in judge(options.steps, options.seed):
        if "WRONG" in " ".join(verdicts):  # only the first WRONG row shows its matrices
            verdict = verdict.partition("\n")[0]
        print(f"{step:<6}{result:<21}({formula}){error:>18}  {verdict}")
        verdicts.append(verdict)
    if set(verdicts) == {"ok"}:
        return 0
    print("Start with the first row that is not ok.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
