"""Operators, loss and model against PyTorch's autograd, central differences, extremes and bad use.

A test that needs what a step of the lab sheet writes has that step's name in its own: `-k Relu` chooses those of Relu.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from numpy_fnn import Log, Matmul, NumpyLoss, NumpyModel, Relu, Softmax
from tests.gradient_check import keeping, run
from tests.torch_reference import TorchModel

# A new operator needs an entry here.
REFERENCES: dict[type[Any], Callable[..., torch.Tensor]] = {
    Matmul: torch.matmul,
    Relu: torch.relu,
    Log: lambda x: torch.log(x + 1e-12),
    Softmax: lambda x: torch.softmax(x, dim=-1),
}
COURSE_SHAPES = {"W1": (784, 256), "W2": (256, 64), "W3": (64, 10)}
GRADIENTS = [f"{name}_grad" for name in ["log", "softmax", "x3", "W3", "relu_2", "x2", "W2", "relu_1", "x1", "W1"]]
# The largest error, relative to the largest sum of the terms' absolute values: a few roundings, in another order.
TOLERANCES = {np.float32: 2e-6, np.float64: 4e-15}

all_operators = pytest.mark.parametrize("operator", REFERENCES)
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCES)
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)
# One failure, shrunk, and no more: a report that fits on a screen.
searching = settings(deadline=None, report_multiple_bugs=False, phases=(Phase.generate, Phase.shrink))


def assert_near(name: str, actual: Any, expected: Any, atol: float) -> None:
    """Fail, in a sentence that begins with `name`, unless both are alike in dtype, shape and, within atol, values."""
    __tracebackhide__ = True
    actual, expected = np.asarray(actual), np.asarray(expected)
    for kind in ("shape", "dtype"):
        if getattr(actual, kind) != getattr(expected, kind):
            pytest.fail(f"{name} has {kind} {getattr(actual, kind)}, expected {getattr(expected, kind)}")
    differ = ~np.isclose(actual, expected, rtol=0, atol=atol, equal_nan=True)
    if differ.any():
        i = tuple(int(axis[0]) for axis in np.nonzero(differ))
        values = f"{actual[i]:.6g} at {list(i)}, expected {expected[i]:.6g} ± {atol:.1g}"
        pytest.fail(f"{name} is {values}, off by {actual[i] - expected[i]:.1g}; {differ.sum()} of {differ.size} differ")


def assert_same(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    """Fail, in a sentence that begins with `name`, unless both are the same to the last bit."""
    __tracebackhide__ = True
    assert_near(name, actual, expected, 0)


# ---- every operator


def draw(operator: type[Any], shape: tuple[int, int, int], exponent: int, seed: int) -> list[np.ndarray]:
    """Return float64 inputs of about 10**exponent, and G; Matmul's W is as small as x is large, so y is neither."""
    rng, (n, d_in, d_out) = np.random.default_rng(seed), shape
    x = rng.standard_normal((n, d_in)) * 10.0**exponent
    if operator is Matmul:
        return [x, rng.standard_normal((d_in, d_out)) * 10.0**-exponent, rng.standard_normal((n, d_out))]
    return [abs(x) if operator is Log else x, rng.standard_normal(x.shape)]


def run_torch(operator: type[Any], inputs: list[np.ndarray], grad_y: np.ndarray) -> list[np.ndarray]:
    """Return the output and the gradient with respect to every input, by PyTorch."""
    tensors = [torch.tensor(x.copy(), requires_grad=True) for x in inputs]
    y = REFERENCES[operator](*tensors)
    y.backward(torch.tensor(grad_y.copy()))
    return [y.detach().numpy(), *(tensor.grad.numpy() for tensor in tensors)]


@pytest.mark.parametrize(
    ("operator", "shape"),
    [(operator, (2, 3)) for operator in REFERENCES]
    + [(operator, shape) for operator in REFERENCES if operator is not Matmul for shape in ((3,), (2, 1, 3))],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@both_dtypes
def test_operator_on_small_numbers(dtype: type[Any], operator: type[Any], shape: tuple[int, ...]) -> None:
    x = np.resize(np.array([0, 0.5, 2, 1, 0.25, 4], dtype), shape)
    W = np.array([[1, -2, 3], [0.5, 3, 2], [-1, 0.25, 4]], dtype)
    inputs = [x, W] if operator is Matmul else [x] if operator is Log else [x - 1]
    grad_y = np.resize(np.array([1, -2, 0.5, 3, -0.25, 1.5], dtype), shape)
    expected = run_torch(operator, inputs, grad_y)
    for (name, actual), right in zip(run(operator(), inputs, grad_y).items(), expected, strict=True):
        assert_near(f"{name} of {operator.__name__}", actual, right, 2 * TOLERANCES[dtype] * abs(right).max())


@all_operators
def test_used_operator_computes_what_a_fresh_one_does(operator: type[Any]) -> None:
    used, cases = operator(), [draw(operator, (4, 4, 4), 0, seed) for seed in range(2)]
    returned = [run(used, inputs, grad_y) for *inputs, grad_y in cases]
    for (*inputs, grad_y), results in zip(cases, returned, strict=True):
        for name, expected in run(operator(), inputs, grad_y).items():
            assert_same(f"{name} of {operator.__name__}, after it was used twice,", results[name], expected)


@all_operators
@pytest.mark.parametrize("shape", [(1, 3), (3,), (3, 1), ()], ids=str)
def test_gradient_of_another_shape_is_not_broadcast(operator: type[Any], shape: tuple[int, ...]) -> None:
    op = operator()
    op.forward(*[np.ones((3, 3))] * (2 if operator is Matmul else 1))
    words = f"grad_y of {operator.__name__}.backward has shape {shape}, expected (3, 3)"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        op.backward(np.ones(shape))


# ---- each operator


@pytest.mark.parametrize(
    ("x_shape", "W_shape"),
    [((2, 3), (2, 3)), ((3,), (3, 4)), ((2, 3), (3,)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((), (3, 4))],
    ids=str,
)
def test_Matmul_takes_matrices_that_fit(x_shape: tuple[int, ...], W_shape: tuple[int, ...]) -> None:
    words = f"Matmul has x {x_shape} and W {W_shape}, expected (N, d) and (d, d')"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        Matmul().forward(np.ones(x_shape), np.ones(W_shape))


def test_Matmul_skips_the_input_gradient_on_request() -> None:
    matmul = Matmul()
    matmul.forward(np.ones((2, 3)), np.ones((3, 4)))
    for _ in range(2):
        grad_x, _ = matmul.backward(np.ones((2, 4)), needs_input_grad=False)
        if grad_x is not None:
            pytest.fail("grad_x of Matmul.backward with needs_input_grad=False is an array, expected None")
        matmul.memory["W"] = np.ones(0)  # the product with it would be an error


@both_dtypes
def test_Relu_at_zeros_and_infinities_is_torchs(dtype: type[Any]) -> None:
    x = np.array([[0.0, -0.0, np.inf, -np.inf, 1e-30, -1e-30]], dtype)
    tensor = torch.tensor(x, requires_grad=True)
    y = torch.relu(tensor)
    y.backward(torch.ones_like(tensor))
    relu = Relu()
    assert_same("y of Relu", relu.forward(x), y.detach().numpy())
    assert_same("grad_x of Relu", relu.backward(np.ones_like(x)), tensor.grad)


def test_Relu_keeps_NaN() -> None:
    assert_same("y of Relu", Relu().forward(np.array([[np.nan, -1]])), np.array([[np.nan, 0]]))


@both_dtypes
def test_Log_of_zero_is_finite_and_its_gradient_the_exact_derivative(dtype: type[Any]) -> None:
    log, zeros = Log(), np.zeros((2, 3), dtype)
    assert_near("y of Log at 0", log.forward(zeros), np.full_like(zeros, math.log(1e-12)), 1e-4)
    assert_near("grad_x of Log at 0", log.backward(zeros + 1), np.full_like(zeros, 1e12), 1e6)


def test_Log_adds_its_epsilon() -> None:
    log, x = Log(), np.array([0.0, 0.5, 3.5])
    log.epsilon = 0.5
    assert_near("y of Log with an epsilon of 0.5", log.forward(x), np.log([0.5, 1, 4]), 1e-15)
    assert_near("grad_x of Log with an epsilon of 0.5", log.backward(np.ones(3)), np.array([2, 1, 0.25]), 1e-15)


@pytest.mark.filterwarnings("ignore:overflow")  # of the difference of 3e38 and -3e38, whose exponential is still 0
@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1e4, -1e4, 0], [1, 0, 0]),
        ([3e38, -3e38, 0], [1, 0, 0]),
        ([-3e38, -3e38, 3e38], [0, 0, 1]),
        ([-3e38, -3e38, -3e38], [1 / 3, 1 / 3, 1 / 3]),
        ([7, 7, 7], [1 / 3, 1 / 3, 1 / 3]),
        ([0, 100, 0], [0, 1, 0]),
    ],
    ids=str,
)
def test_Softmax_of_extreme_scores_is_right(scores: list[float], expected: list[float]) -> None:
    softmax = Softmax()
    y = softmax.forward(np.array([scores], np.float32))
    assert_near(f"y of Softmax for scores {scores}", y, np.array([expected], np.float32), 1e-7)
    grad_x = softmax.backward(np.array([[1e12, -1, 0]], np.float32))
    assert np.isfinite(grad_x).all(), f"grad_x of Softmax for scores {scores} is {grad_x}"


# ---- the operators, over shapes, sizes of numbers and memory layouts


def lay_out(array: np.ndarray, layout: str) -> np.ndarray:
    """Return an array of the same values in the named memory layout."""
    if layout == "Fortran":
        return np.asfortranarray(array)
    if layout == "sliced":
        wide = np.full([2 * n for n in array.shape], np.nan, array.dtype)
        wide[::2, 1::2] = array
        return wide[::2, 1::2]
    array = array.copy()
    array.setflags(write=layout != "read-only")
    return array


@all_operators
@given(st.tuples(sizes, sizes, sizes), st.sampled_from(list(TOLERANCES)), st.integers(-30, 30), seeds, st.data())
@searching
def test_operator_agrees_with_torch(
    operator: type[Any], shape: tuple[int, int, int], dtype: type[Any], exponent: int, seed: int, data: st.DataObject
) -> None:
    layouts = st.sampled_from(["C", "Fortran", "sliced", "read-only"])
    *inputs, grad_y = (
        lay_out(array.astype(dtype), data.draw(layouts)) for array in draw(operator, shape, exponent, seed)
    )
    expectations = run_torch(operator, inputs, grad_y)
    # A slope may be a difference, as Softmax's y (1 − y) is: its terms, and so its rounding errors, are as large as G.
    terms = [abs(array) for array in expectations]
    if operator is Matmul:
        x, W, G = (abs(array) for array in (*inputs, grad_y))
        terms = [x @ W, G @ W.T, x.T @ G]
    elif operator is not Log:
        terms[1] += abs(grad_y)
    results = run(operator(), inputs, grad_y)
    for (name, actual), expected, summed in zip(results.items(), expectations, terms, strict=True):
        assert_near(f"{name} of {operator.__name__}", actual, expected, TOLERANCES[dtype] * summed.max())


@given(sizes, sizes, st.integers(-30, 30), seeds)
@searching
def test_Softmax_rows_are_distributions(n: int, classes: int, exponent: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((n, classes)) * 10.0**exponent
    y = Softmax().forward(x.astype(np.float32))
    assert y.min() >= 0
    assert_near("the sum of a row of Softmax's y", y.sum(axis=-1), np.ones(n, np.float32), 1e-6)


# ---- the loss


@pytest.mark.parametrize("target_dtype", [np.float64, np.float32, np.uint8, np.bool_])
@both_dtypes
def test_NumpyLoss_is_a_float_whose_gradient_keeps_the_dtype_of_pred(dtype: type[Any], target_dtype: type[Any]) -> None:
    pred = np.log(np.array([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]], dtype))
    target, numpy_loss = np.array([[1, 0], [0, 1], [0, 0]], target_dtype), NumpyLoss()
    loss = numpy_loss.get_loss(pred, target)
    assert isinstance(loss, float)
    assert loss == pytest.approx((math.log(4) + math.log(2)) / 3, rel=1e-6)
    expected = np.array([[-1 / 3, 0], [0, -1 / 3], [0, 0]], dtype)
    with keeping("NumpyLoss.backward", pred=pred, target=target):
        grad_p = numpy_loss.backward()
    assert_near("grad_p of NumpyLoss", grad_p, expected, TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("pred_shape", "target_shape"), [((2, 3), (1, 3)), ((2, 3), (2,)), ((3,), (3,)), ((0, 3), (0, 3))], ids=str
)
def test_NumpyLoss_takes_two_matrices_of_one_shape(pred_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> None:
    words = f"NumpyLoss has pred {pred_shape} and target {target_shape}, expected (N, C) with N > 0"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        NumpyLoss().get_loss(np.ones(pred_shape), np.ones(target_shape))


def test_NumpyLoss_of_a_certain_wrong_answer_is_a_large_finite_loss() -> None:
    softmax, log, numpy_loss = Softmax(), Log(), NumpyLoss()
    y_pred = log.forward(softmax.forward(np.array([[1e4, 0, -1e4]], np.float32)))
    assert numpy_loss.get_loss(y_pred, np.array([[0, 0, 1]])) == pytest.approx(-math.log(1e-12))
    assert np.isfinite(softmax.backward(log.backward(numpy_loss.backward()))).all()


# ---- the model


@pytest.mark.parametrize("shape", [(32, 784), (32, 28, 28), (32, 1, 28, 28)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_NumpyModel_agrees_with_torch(dtype: type[Any], tolerance: float, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.uniform(-0.1, 0.1, shape).astype(dtype) for shape in NumpyModel.SHAPES.values()]
    x, target = rng.standard_normal(shape).astype(dtype), np.eye(10, dtype=dtype)[rng.integers(0, 10, 32)]
    model, numpy_loss, reference = NumpyModel(), NumpyLoss(), TorchModel(*weights)
    model.W1, model.W2, model.W3 = weights

    def compare(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
        __tracebackhide__ = True
        assert_near(f"{name} of NumpyModel", actual, expected, tolerance * abs(expected).max())

    y_pred, expected_pred = model.forward(x), reference.forward(x)
    compare("y_pred", y_pred, expected_pred.detach().numpy())
    expected_loss = reference.backward(expected_pred, target)
    assert numpy_loss.get_loss(y_pred, target) == pytest.approx(expected_loss, rel=tolerance)
    model.backward(numpy_loss.backward())
    for name in GRADIENTS:
        compare(name, getattr(model, name), reference.gradient(name))


def test_used_NumpyModel_computes_what_a_fresh_one_does() -> None:
    used, used_loss, rng = NumpyModel(0), NumpyLoss(), np.random.default_rng(0)
    for _ in range(2):
        used.W1, used.W2, used.W3 = (W + W[::-1] for W in (used.W1, used.W2, used.W3))
        fresh, fresh_loss = NumpyModel(), NumpyLoss()
        fresh.W1, fresh.W2, fresh.W3 = used.W1, used.W2, used.W3
        x, target = rng.standard_normal((4, 784), np.float32), np.eye(10)[rng.integers(0, 10, 4)]
        losses = []
        for model, numpy_loss in ((used, used_loss), (fresh, fresh_loss)):
            losses.append(numpy_loss.get_loss(model.forward(x), target))
            model.backward(numpy_loss.backward())
        assert losses[0] == losses[1]
        for name in GRADIENTS:
            assert_same(f"{name} of a used NumpyModel", getattr(used, name), getattr(fresh, name))


def test_NumpyModel_skips_the_input_gradient_on_request() -> None:
    model, numpy_loss = NumpyModel(), NumpyLoss()
    numpy_loss.get_loss(model.forward(np.ones((2, 784), np.float32)), np.eye(10)[:2])
    model.backward(numpy_loss.backward(), needs_input_grad=False)
    if model.x1_grad is not None:
        pytest.fail("x1_grad of NumpyModel.backward with needs_input_grad=False is an array, expected None")


def test_NumpyModel_has_the_shapes_of_the_course() -> None:
    assert NumpyModel.SHAPES == COURSE_SHAPES


def test_NumpyModel_starts_with_the_distribution_of_torch_linear() -> None:
    model = NumpyModel(1)
    for name, (fan_in, fan_out) in NumpyModel.SHAPES.items():
        weight = getattr(model, name)
        assert weight.shape == (fan_in, fan_out)
        assert weight.dtype == np.float32
        expected = torch.nn.Linear(fan_in, fan_out).weight.detach().numpy()
        assert 0.98 * fan_in**-0.5 < -weight.min() <= fan_in**-0.5
        assert 0.98 * fan_in**-0.5 < weight.max() <= fan_in**-0.5
        assert weight.std() == pytest.approx(expected.std(), rel=0.1)
        assert weight.mean() == pytest.approx(0, abs=0.1 * fan_in**-0.5)


def test_NumpyModel_follows_the_seed() -> None:
    model, same = NumpyModel(0), NumpyModel(np.random.default_rng(0))
    others = (NumpyModel(1), NumpyModel(), NumpyModel())
    for name in NumpyModel.SHAPES:
        assert_same(name, getattr(same, name), getattr(model, name))
        assert len({getattr(other, name).tobytes() for other in (model, *others)}) == 4


@pytest.mark.parametrize(
    "shape",
    [(4, 14, 14), (4, 14, 56), (4, 56, 14), (4, 28, 28, 1), (4, 28, 1, 28), (28, 28), (2, 785), (784,), ()],
    ids=str,
)
def test_NumpyModel_takes_images_alone(shape: tuple[int, ...]) -> None:
    words = f"x has shape {shape}, expected (N, 784), (N, 28, 28) or (N, 1, 28, 28)"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        NumpyModel().forward(np.ones(shape))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("W1", (256, 784), "Matmul has x (2, 784) and W (256, 784), expected (N, d) and (d, d')"),
        ("W1", (784, 257), "Matmul has x (2, 257) and W (256, 64), expected (N, d) and (d, d')"),
        ("W2", (64,), "Matmul has x (2, 256) and W (64,), expected (N, d) and (d, d')"),
        ("W3", (64, 11), "NumpyLoss has pred (2, 11) and target (2, 10), expected (N, C) with N > 0"),
    ],
    ids=["W1 transposed", "W1 too wide", "W2 a vector", "W3 too wide"],
)
def test_NumpyModel_with_a_weight_that_does_not_fit(name: str, shape: tuple[int, ...], words: str) -> None:
    model = NumpyModel()
    setattr(model, name, np.ones(shape))
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        NumpyLoss().get_loss(model.forward(np.ones((2, 784))), np.eye(10)[:2])


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.uint8])
@both_dtypes
def test_NumpyModel_computes_in_the_dtype_of_its_weights(dtype: type[Any], kind: type[Any]) -> None:
    model, images = NumpyModel(0), np.eye(784)[:3].astype(kind)
    model.W1, model.W2, model.W3 = (W.astype(dtype) for W in (model.W1, model.W2, model.W3))
    assert_same("y_pred of NumpyModel", model.forward(images), model.forward(images.astype(dtype)).astype(dtype))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Relu().backward(np.ones((2, 3))), "Relu.backward was called before Relu.forward"),
        (lambda: NumpyLoss().backward(), "NumpyLoss.backward was called before NumpyLoss.get_loss"),
        (lambda: NumpyModel().backward(np.ones((2, 10))), "Log.backward was called before Log.forward"),
        (lambda: NumpyModel().optimize(0.1), "NumpyModel.optimize was called before NumpyModel.backward"),
    ],
    ids=["Relu.backward", "NumpyLoss.backward", "NumpyModel.backward", "optimize"],
)
def test_call_before_its_time_is_an_error_that_names_both(call: Callable[[], object], words: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(words)}$"):
        call()


# ---- a step of SGD


@both_dtypes
@pytest.mark.parametrize("rate", [0.25, np.float64(0.25)], ids=["float", "NumPy float"])
def test_optimize_takes_a_step(rate: float, dtype: type[Any]) -> None:
    model, rng = NumpyModel(), np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(dtype) for name, shape in NumpyModel.SHAPES.items()}
    grads = {f"{name}_grad": rng.standard_normal(W.shape).astype(dtype) for name, W in weights.items()}
    for name, array in (weights | grads).items():
        setattr(model, name, array)
    with keeping("optimize", **weights, **grads):
        model.optimize(rate)
    for name, W in weights.items():
        expected = W - dtype(0.25) * grads[f"{name}_grad"]
        assert_near(f"{name} after optimize({rate!r})", getattr(model, name), expected, 4 * TOLERANCES[dtype])


# ---- the course's own code


def test_course_handout_code_runs_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The course's tester: operators one by one, then the model with weights made by torch."""
    monkeypatch.setattr(NumpyModel, "SHAPES", COURSE_SHAPES)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    x, W = np.random.normal(size=(5, 6)), np.random.normal(size=(6, 4))  # noqa: NPY002
    numpy_matmul = Matmul()
    numpy_out = numpy_matmul.forward(x, W)
    numpy_x_grad, numpy_W_grad = numpy_matmul.backward(np.ones_like(numpy_out))
    torch_x, torch_W = (torch.from_numpy(array).clone().requires_grad_() for array in (x, W))
    torch_out = torch.matmul(torch_x, torch_W)
    torch_out.sum().backward()
    results = {
        "y of Matmul": (numpy_out, torch_out),
        "grad_x of Matmul": (numpy_x_grad, torch_x.grad),
        "grad_w of Matmul": (numpy_W_grad, torch_W.grad),
    }

    for numpy_op, torch_op in ((Relu(), torch.relu), (Log(), torch.log), (Softmax(), lambda x: torch.softmax(x, -1))):
        x = np.random.uniform(low=0.1, high=1.0, size=(3, 4))  # noqa: NPY002
        numpy_out = numpy_op.forward(x)
        numpy_x_grad = numpy_op.backward(np.ones_like(numpy_out))
        torch_x = torch.from_numpy(x).clone().requires_grad_()
        torch_out = torch_op(torch_x)
        torch_out.sum().backward()
        name = type(numpy_op).__name__
        results |= {f"y of {name}": (numpy_out, torch_out), f"grad_x of {name}": (numpy_x_grad, torch_x.grad)}

    layers = [torch.nn.Linear(fan_in, fan_out, bias=False) for fan_in, fan_out in ((784, 256), (256, 64), (64, 10))]
    reference = TorchModel(*(layer.weight.T.detach().numpy() for layer in layers))
    numpy_loss: Any = NumpyLoss()
    model = NumpyModel()
    model.W1, model.W2, model.W3 = (layer.weight.T.detach().clone().numpy() for layer in layers)
    x = torch.randn((100, 28, 28)).numpy()
    y = np.eye(10)[np.arange(100) % 10]
    y_pred = model.forward(x)
    loss = numpy_loss.get_loss(y_pred, y)
    model.backward(numpy_loss.backward())
    torch_pred = reference.forward(x)
    assert loss.item() == pytest.approx(reference.backward(torch_pred, y), rel=1e-6)
    results["y_pred of NumpyModel"] = (y_pred, torch_pred)
    for name in GRADIENTS:
        results[f"{name} of NumpyModel"] = (getattr(model, name), torch.from_numpy(reference.gradient(name)))
    model.optimize(0.1)
    reference.optimize(0.1)
    for name in COURSE_SHAPES:
        results[f"{name} of NumpyModel"] = (getattr(model, name), getattr(reference, name))

    for name, (ours, theirs) in results.items():
        assert_near(name, ours, theirs.detach().numpy(), 1e-6)
