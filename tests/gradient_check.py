"""Check every gradient of numpy_fnn.py against central differences: python -m tests.gradient_check.

It is the first thing to run after touching an operator, and needs NumPy alone. Each line of its table compares a
gradient of `backward` with the slope of `forward`. The line of an operator depends on no other operator; those of
NumpyModel depend on all. Where `forward` and `backward` are wrong alike, they agree: the tests find that.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from numpy_fnn import Log, Matmul, NumpyLoss, NumpyModel, Relu, Softmax, check_shape

STEP = 3e-5  # of a central difference, relative to the entry
TOLERANCE = 1e-4  # a right gradient has a relative error below 2e-5, from rounding
Comparison = tuple[Any, np.ndarray]  # a gradient as computed, and as it should be

# Inputs and G of operators: square, so that a forgotten transpose is a wrong gradient and not an error about shapes.
X = np.array([[0.5, -1.2, 0.8], [-0.7, 1.1, -0.3], [1.4, 0.2, -0.9]])
W = np.array([[-0.4, 0.9, 1.3], [0.6, -0.8, 0.7], [1.5, 0.3, -1.1]])
P = np.logspace(-13, 0, 9).reshape(3, 3)  # probabilities, some of them as small as Log's ε
G = np.array([[1.2, -0.6, 0.4], [0.8, 0.5, -1.3], [-0.2, 1.1, 0.9]])


def numerical_gradient(f: Callable[[], float], x: np.ndarray) -> np.ndarray:
    """Return the slope of f(), which reads the array x, in each entry of x: (f(x + h) − f(x − h)) / 2h, float64.

    h is proportional to the entry, which therefore keeps its sign: Relu has a kink at 0, Log ends there.
    """
    slopes = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        entry, h = x[i], STEP * abs(x[i])
        x[i] = entry + h
        above = f()
        x[i] = entry - h
        below = f()
        x[i] = entry
        slopes[i] = (above - below) / (2 * h)
    return slopes


def relative_errors(computed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return |a − b| / (|a| + |b|) of every entry; a sum below 1e-3 counts as 1e-3, as rounding is all there is."""
    return abs(computed - expected) / np.maximum(abs(computed) + abs(expected), 1e-3)


@contextmanager
def keeping(call: str, **arrays: np.ndarray) -> Iterator[None]:
    """Raise ValueError if what is done inside, `call` by name, changes one of the arrays."""
    before = {name: array.copy() for name, array in arrays.items()}
    yield
    for name, array in arrays.items():
        if not np.array_equal(array, before[name], equal_nan=True):
            raise ValueError(f"{call} changed {name} in place")


def check_returned(call: str, result: object, kind: type, expected: str) -> None:
    """Raise ValueError unless the result is an array or a tuple, `kind`, as `expected` names it."""
    if not isinstance(result, kind):
        names = {np.ndarray: "one array", type(None): "None"}
        raise ValueError(
            f"{call} returned {names.get(type(result), type(result).__name__)}, expected {expected}"
        )


def run(op: Any, inputs: list[np.ndarray], grad_y: np.ndarray) -> dict[str, np.ndarray]:
    """Return the output and the gradient with respect to every input under their names; raise ValueError for others."""
    forward, backward = (f"{type(op).__name__}.{method}" for method in ("forward", "backward"))
    arrays = dict(zip("xW", inputs, strict=False))
    with keeping(forward, **arrays):
        y = op.forward(*inputs)
    check_returned(forward, y, np.ndarray, "y")
    check_shape(f"y of {forward}", y, grad_y.shape)
    if "y" not in op.memory:
        raise ValueError(f'{forward} left no "y" in memory')
    with keeping(backward, **arrays, y=y, grad_y=grad_y):
        grads = op.backward(grad_y)
    if len(inputs) == 1:
        check_returned(backward, grads, np.ndarray, "grad_x")
        return {"y": y, "grad_x": grads}
    check_returned(backward, grads, tuple, "(grad_x, grad_w)")
    return {"y": y, "grad_x": grads[0], "grad_w": grads[1]}


def check_operator(operator: type[Any], inputs: list[np.ndarray], i: int = 0) -> Comparison:
    """Return the gradient with respect to inputs[i] as the operator computes it, and as it should be."""
    op, inputs = operator(), [x.copy() for x in inputs]
    _, *grads = run(op, inputs, G.copy()).values()
    # G is the gradient of Σ G ⊙ Y with respect to Y.
    return grads[i], numerical_gradient(lambda: (G * op.forward(*inputs)).sum(), inputs[i])


def check_loss() -> Comparison:
    """Return the gradient of the loss of two images and three classes as computed, and as it should be."""
    numpy_loss, pred, target = (
        NumpyLoss(),
        np.log([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]),
        np.eye(3)[[2, 0]],
    )
    numpy_loss.get_loss(pred, target)
    with keeping("NumpyLoss.backward", pred=pred, target=target):
        computed = numpy_loss.backward()
    check_returned("NumpyLoss.backward", computed, np.ndarray, "grad_p")
    return computed, numerical_gradient(lambda: numpy_loss.get_loss(pred, target), pred)


def check_model(name: str) -> Comparison:
    """Return a corner of the model's gradient for "W1", "W2", "W3" or "x1" as computed, and as it should be."""
    rng, model = np.random.default_rng(0), NumpyModel()
    arrays = {"x1": rng.standard_normal((4, 784))}
    for weight, (d, width) in NumpyModel.SHAPES.items():
        arrays[weight] = rng.standard_normal((d, width)) / np.sqrt(d)
        setattr(model, weight, arrays[weight])
    grad_y = rng.standard_normal((4, 10))
    model.forward(arrays["x1"])
    model.backward(grad_y.copy())
    computed = getattr(model, f"{name}_grad")
    check_shape(f"{name}_grad", np.asarray(computed), arrays[name].shape)
    # The corner is a view: a step in it is a step in the weight or the images that it was cut from.
    corner = arrays[name][:3, :3]
    return computed[:3, :3], numerical_gradient(
        lambda: (grad_y * model.forward(arrays["x1"])).sum(), corner
    )


# Operator, gradient, formula in docs/derivations.md, and check; a new operator needs a row for each of its inputs.
GRADIENTS: list[tuple[str, str, str, Callable[[], Comparison]]] = [
    ("Matmul", "grad_x", "1.4", lambda: check_operator(Matmul, [X, W], 0)),
    ("Matmul", "grad_w", "1.5", lambda: check_operator(Matmul, [X, W], 1)),
    ("Relu", "grad_x", "2.4", lambda: check_operator(Relu, [X])),
    ("Log", "grad_x", "3.4", lambda: check_operator(Log, [P])),
    ("Softmax", "grad_x", "4.3", lambda: check_operator(Softmax, [X])),
    ("NumpyLoss", "grad_p", "5.2", check_loss),
    ("NumpyModel", "W3_grad", "6.1", lambda: check_model("W3")),
    ("NumpyModel", "W2_grad", "6.1", lambda: check_model("W2")),
    ("NumpyModel", "W1_grad", "6.1", lambda: check_model("W1")),
    ("NumpyModel", "x1_grad", "6.1", lambda: check_model("x1")),
]


def side_by_side(computed: np.ndarray, expected: np.ndarray) -> str:
    """Return two matrices as text, with a star at each entry that differs."""
    text = f"{'as computed (* differs)':>39}   {'as it should be':>33}\n"
    for row, right in zip(computed, expected, strict=True):
        stars = [
            " " if error < TOLERANCE else "*" for error in relative_errors(row, right)
        ]  # NaN differs, too
        text += "".join(f"{value:11.3g}{star} " for value, star in zip(row, stars, strict=True))
        text += "   " + "".join(f"{value:11.3g}" for value in right) + "\n"
    return text


@np.errstate(all="ignore")  # the verdict tells
def main() -> int:
    """Print the table and return the exit code, 0 if every gradient is ok and 1 otherwise."""
    print("operator    gradient  formula  relative error  verdict")
    verdicts: list[str] = []
    for operator, gradient, formula, check in GRADIENTS:
        largest, case = "", ""
        try:
            computed, expected = check()
            check_shape(gradient, np.asarray(computed), expected.shape)
            error = relative_errors(computed, expected).max()
            largest = f"{error:.1e}"
            verdict = "ok" if error < TOLERANCE else "WRONG"
            # After another mistake, `forward` need not be what is compared with.
            if verdict == "WRONG" and set(verdicts) <= {"ok", "not written yet"}:
                case = side_by_side(computed, expected)
        except NotImplementedError:
            verdict = "not written yet"
        except ValueError as error:
            verdict = str(error)
        except Exception as error:  # a mistake in an operator can be any of them
            verdict = f"{type(error).__name__}: {error}"
        verdicts.append(verdict)
        print(
            f"{operator:<12}{gradient:<10}({formula}){'':<4}{largest:<16}{verdict}\n{case}", end=""
        )
    if set(verdicts) == {"ok"}:
        return 0
    print("Repair the first line that is not ok: the lines of NumpyModel depend on all operators.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
