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
GRADIENTS = [
    f"{name}_grad"
    for name in ["log", "softmax", "x3", "W3", "relu_2", "x2", "W2", "relu_1", "x1", "W1"]
]
# The largest error, relative to the largest sum of the terms' absolute values: a few roundings, in another order.
TOLERANCES = {np.float32: 2e-6, np.float64: 4e-15}

all_operators = pytest.mark.parametrize("operator", REFERENCES)
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCES)
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)
# One failure, shrunk, and no more: a report that fits on a screen.
searching = settings(
    deadline=None, report_multiple_bugs=False, phases=(Phase.generate, Phase.shrink)
)


def assert_near(name: str, actual: Any, expected: Any, atol: float = 0) -> None:
    """Fail, in a sentence that begins with `name`, unless both are alike in dtype, shape and, within atol, values."""
    __tracebackhide__ = True
    actual, expected = np.asarray(actual), np.asarray(expected)
    for kind in ("shape", "dtype"):
        if getattr(actual, kind) != getattr(expected, kind):
            pytest.fail(
                f"{name} has {kind} {getattr(actual, kind)}, expected {getattr(expected, kind)}"
            )
    differ = ~np.isclose(actual, expected, rtol=0, atol=atol, equal_nan=True)
    if differ.any():
        i = tuple(int(axis[0]) for axis in np.nonzero(differ))
        values = f"{actual[i]:.6g} at {list(i)}, expected {expected[i]:.6g} ± {atol:.1g}"
        pytest.fail(
            f"{name} is {values}, off by {actual[i] - expected[i]:.1g}; {differ.sum()} of {differ.size} differ"
        )


# ---- every operator


def draw(
    operator: type[Any], shape: tuple[int, int, int], exponent: int, seed: int
) -> list[np.ndarray]:
    """Return float64 inputs of about 10**exponent, and G; Matmul's W is as small as x is large, so y is neither."""
    rng, (n, d_in, d_out) = np.random.default_rng(seed), shape
    x = rng.standard_normal((n, d_in)) * 10.0**exponent
    if operator is Matmul:
        return [
            x,
            rng.standard_normal((d_in, d_out)) * 10.0**-exponent,
            rng.standard_normal((n, d_out)),
        ]
    return [abs(x) if operator is Log else x, rng.standard_normal(x.shape)]


def run_torch(
    operator: type[Any], inputs: list[np.ndarray], grad_y: np.ndarray
) -> list[np.ndarray]:
    """Return the output and the gradient with respect to every input, by PyTorch."""
    tensors = [torch.tensor(x.copy(), requires_grad=True) for x in inputs]
    y = REFERENCES[operator](*tensors)
    y.backward(torch.tensor(grad_y.copy()))
    return [y.detach().numpy(), *(tensor.grad.numpy() for tensor in tensors)]


@pytest.mark.parametrize(
    ("operator", "shape"),
    [(operator, (2, 3)) for operator in REFERENCES]
    + [
        (operator, shape)
        for operator in REFERENCES
        if operator is not Matmul
        for shape in ((3,), (2, 1, 3))
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@both_dtypes
def test_operator_on_small_numbers(
    dtype: type[Any], operator: type[Any], shape: tuple[int, ...]
) -> None:
    x = np.resize(np.array([0, 0.5, 2, 1, 0.25, 4], dtype), shape)
    W = np.array([[1, -2, 3], [0.5, 3, 2], [-1, 0.25, 4]], dtype)
    inputs = [x, W] if operator is Matmul else [x] if operator is Log else [x - 1]
    grad_y = np.resize(np.array([1, -2, 0.5, 3, -0.25, 1.5], dtype), shape)
    expected = run_torch(operator, inputs, grad_y)
    for (name, actual), right in zip(
        run(operator(), inputs, grad_y).items(), expected, strict=True
    ):
        assert_near(
            f"{name} of {operator.__name__}",
            actual,
            right,
            2 * TOLERANCES[dtype] * abs(right).max(),
        )


@all_operators
def test_used_operator_computes_what_a_fresh_one_does(operator: type[Any]) -> None:
    used, cases = operator(), [draw(operator, (4, 4, 4), 0, seed) for seed in range(2)]
    returned = [run(used, inputs, grad_y) for *inputs, grad_y in cases]
    for (*inputs, grad_y), results in zip(cases, returned, strict=True):
        for name, expected in run(operator(), inputs, grad_y).items():
            assert_near(
                f"{name} of {operator.__name__}, after it was used twice,", results[name], expected
            )


@all_operators
@pytest.mark.parametrize("shape", [(1, 3), (3,), (3, 1), ()], ids=str)
def test_gradient_of_another_shape_is_not_broadcast(
    operator: type[Any], shape: tuple[int, ...]
) -> None:
    op = operator()
    op.forward(*[np.ones((3, 3))] * (2 if operator is Matmul else 1))
    words = f"grad_y of {operator.__name__}.backward has shape {shape}, expected (3, 3)"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        op.backward(np.ones(shape))


# ---- each operator


@pytest.mark.parametrize(
    ("x_shape", "W_shape"),
    [
        ((2, 3), (2, 3)),
        ((3,), (3, 4)),
        ((2, 3), (3,)),
        ((5, 2, 3), (3, 4)),
        ((2, 3), (5, 3, 4)),
        ((), (3, 4)),
    ],
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
        assert grad_x is None, (
            "grad_x of Matmul.backward with needs_input_grad=False is an array, expected None"
        )
        matmul.memory["W"] = np.ones(0)  # the product with it would be an error


def test_Relu_at_zeros_infinities_and_NaN() -> None:
    relu, x = Relu(), np.array([0.0, -0.0, np.inf, -np.inf, 1e-30, -1e-30, np.nan])
    assert_near("y of Relu", relu.forward(x), np.array([0, 0, np.inf, 0, 1e-30, 0, np.nan]))
    assert_near("grad_x of Relu", relu.backward(np.ones(7))[:6], np.array([0.0, 0, 1, 0, 1, 0]))


def test_Log_adds_its_epsilon() -> None:
    log, x = Log(), np.array([0.0, 0.5, 3.5])
    log.epsilon = 0.5
    assert_near("y of Log with an epsilon of 0.5", log.forward(x), np.log([0.5, 1, 4]), 1e-15)
    assert_near(
        "grad_x of Log with an epsilon of 0.5",
        log.backward(np.ones(3)),
        np.array([2, 1, 0.25]),
        1e-15,
    )


@pytest.mark.filterwarnings(
    "ignore:overflow"
)  # of the difference of 3e38 and -3e38, whose exponential is still 0
def test_Softmax_of_extreme_scores_is_right() -> None:
    scores = [[1e4, -1e4, 0], [3e38, -3e38, 0], [-3e38, -3e38, -3e38], [0, 100, 0]]
    expected = [[1, 0, 0], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1, 0]]
    softmax = Softmax()
    y = softmax.forward(np.array(scores, np.float32))
    assert_near(f"y of Softmax for scores {scores}", y, np.array(expected, np.float32), 1e-7)
    grad_x = softmax.backward(np.array([[1e12, -1, 0]] * 4, np.float32))
    assert np.isfinite(grad_x).all(), f"grad_x of Softmax for scores {scores} is {grad_x.tolist()}"


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
@given(
    st.tuples(sizes, sizes, sizes),
    st.sampled_from(list(TOLERANCES)),
    st.integers(-30, 30),
    seeds,
    st.data(),
)
@searching
def test_operator_agrees_with_torch(
    operator: type[Any],
    shape: tuple[int, int, int],
    dtype: type[Any],
    exponent: int,
    seed: int,
    data: st.DataObject,
) -> None:
    layouts = st.sampled_from(["C", "Fortran", "sliced", "read-only"])
    *inputs, grad_y = (
        lay_out(array.astype(dtype), data.draw(layouts))
        for array in draw(operator, shape, exponent, seed)
    )
    expectations = run_torch(operator, inputs, grad_y)
    # A slope may be a difference, as Softmax's is: its terms, and so its rounding errors, are as large as G.
    terms = [abs(array) for array in expectations]
    if operator is Matmul:  # of sums, those of absolute values
        terms = run_torch(operator, [abs(array) for array in inputs], abs(grad_y))
    elif operator is not Log:
        terms[1] += abs(grad_y)
    results = run(operator(), inputs, grad_y)
    for (name, actual), expected, summed in zip(results.items(), expectations, terms, strict=True):
        assert_near(
            f"{name} of {operator.__name__}", actual, expected, TOLERANCES[dtype] * summed.max()
        )


# ---- the loss


@pytest.mark.parametrize("target_dtype", [np.float64, np.float32, np.uint8, np.bool_])
@both_dtypes
def test_NumpyLoss_is_a_float_whose_gradient_keeps_the_dtype_of_pred(
    dtype: type[Any], target_dtype: type[Any]
) -> None:
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
    ("pred_shape", "target_shape"),
    [((2, 3), (1, 3)), ((2, 3), (2,)), ((3,), (3,)), ((0, 3), (0, 3))],
    ids=str,
)
def test_NumpyLoss_takes_two_matrices_of_one_shape(
    pred_shape: tuple[int, ...], target_shape: tuple[int, ...]
) -> None:
    words = f"NumpyLoss has pred {pred_shape} and target {target_shape}, expected (N, C) with N > 0"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        NumpyLoss().get_loss(np.ones(pred_shape), np.ones(target_shape))


# ---- the model


@pytest.mark.parametrize("shape", [(32, 784), (32, 28, 28), (32, 1, 28, 28)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_NumpyModel_agrees_with_torch(
    dtype: type[Any], tolerance: float, shape: tuple[int, ...]
) -> None:
    model, numpy_loss, rng = NumpyModel(), NumpyLoss(), np.random.default_rng(0)
    for batch in ("first", "second"):
        weights = [
            rng.uniform(-0.1, 0.1, shape).astype(dtype) for shape in NumpyModel.SHAPES.values()
        ]
        x, target = (
            rng.standard_normal(shape).astype(dtype),
            np.eye(10, dtype=dtype)[rng.integers(0, 10, 32)],
        )
        model.W1, model.W2, model.W3 = weights
        y_pred = model.forward(x)
        loss = numpy_loss.get_loss(y_pred, target)
        model.backward(numpy_loss.backward())
        reference = TorchModel(*weights)
        expected_pred = reference.forward(x)
        assert loss == pytest.approx(reference.backward(expected_pred, target), rel=tolerance)
        pairs = {"y_pred": (y_pred, expected_pred.detach().numpy())}
        pairs |= {name: (getattr(model, name), reference.gradient(name)) for name in GRADIENTS}
        for name, (actual, expected) in pairs.items():
            assert_near(
                f"{name} of NumpyModel's {batch} batch",
                actual,
                expected,
                tolerance * abs(expected).max(),
            )


def test_NumpyModel_skips_the_input_gradient_on_request() -> None:
    model, numpy_loss = NumpyModel(), NumpyLoss()
    numpy_loss.get_loss(model.forward(np.ones((2, 784), np.float32)), np.eye(10)[:2])
    model.backward(numpy_loss.backward(), needs_input_grad=False)
    assert model.x1_grad is None, (
        "x1_grad of NumpyModel.backward with needs_input_grad=False is an array, expected None"
    )


def test_NumpyModel_starts_with_the_shapes_of_the_course_and_uniform_in_fan_in() -> None:
    model, shapes = NumpyModel(1), {"W1": (784, 256), "W2": (256, 64), "W3": (64, 10)}
    for name, (fan_in, fan_out) in shapes.items():
        weight, bound = getattr(model, name), fan_in**-0.5
        assert (weight.shape, weight.dtype) == ((fan_in, fan_out), np.float32)
        assert abs(weight).max() <= bound
        quartiles = np.quantile(weight / bound, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quartiles, [-1, -0.5, 0, 0.5, 1], atol=0.05)


def test_NumpyModel_follows_the_seed() -> None:
    model, same = NumpyModel(0), NumpyModel(np.random.default_rng(0))
    others = (NumpyModel(1), NumpyModel(), NumpyModel())
    for name in NumpyModel.SHAPES:
        assert_near(name, getattr(same, name), getattr(model, name))
        assert len({getattr(other, name).tobytes() for other in (model, *others)}) == 4


@pytest.mark.parametrize(
    "shape",
    [
        (4, 14, 14),
        (4, 14, 56),
        (4, 56, 14),
        (4, 28, 28, 1),
        (4, 28, 1, 28),
        (28, 28),
        (2, 785),
        (784,),
        (),
    ],
    ids=str,
)
def test_NumpyModel_takes_images_alone(shape: tuple[int, ...]) -> None:
    words = f"x has shape {shape}, expected (N, 784), (N, 28, 28) or (N, 1, 28, 28)"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        NumpyModel().forward(np.ones(shape))


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.uint8])
@both_dtypes
def test_NumpyModel_computes_in_the_dtype_of_its_weights(dtype: type[Any], kind: type[Any]) -> None:
    model, images = NumpyModel(0), np.eye(784)[:3].astype(kind)
    model.W1, model.W2, model.W3 = (W.astype(dtype) for W in (model.W1, model.W2, model.W3))
    assert_near(
        "y_pred of NumpyModel",
        model.forward(images),
        model.forward(images.astype(dtype)).astype(dtype),
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Relu().backward(np.ones((2, 3))), "Relu.backward was called before Relu.forward"),
        (lambda: NumpyLoss().backward(), "NumpyLoss.backward was called before NumpyLoss.get_loss"),
        (
            lambda: NumpyModel().backward(np.ones((2, 10))),
            "Log.backward was called before Log.forward",
        ),
        (
            lambda: NumpyModel().optimize(0.1),
            "NumpyModel.optimize was called before NumpyModel.backward",
        ),
    ],
    ids=["Relu.backward", "NumpyLoss.backward", "NumpyModel.backward", "optimize"],
)
def test_call_before_its_time_is_an_error_that_names_both(
    call: Callable[[], object], words: str
) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(words)}$"):
        call()


# ---- a step of SGD


@both_dtypes
@pytest.mark.parametrize("rate", [0.25, np.float64(0.25)], ids=["float", "NumPy float"])
def test_optimize_takes_a_step(rate: float, dtype: type[Any]) -> None:
    model, rng = NumpyModel(), np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape).astype(dtype) for name, shape in NumpyModel.SHAPES.items()
    }
    grads = {
        f"{name}_grad": rng.standard_normal(W.shape).astype(dtype) for name, W in weights.items()
    }
    for name, array in (weights | grads).items():
        setattr(model, name, array)
    with keeping("optimize", **weights, **grads):
        model.optimize(rate)
    for name, W in weights.items():
        expected = W - dtype(0.25) * grads[f"{name}_grad"]
        assert_near(
            f"{name} after optimize({rate!r})",
            getattr(model, name),
            expected,
            4 * TOLERANCES[dtype],
        )


# ---- the course's own code


def test_course_handout_code_runs_unchanged() -> None:
    """As its tester and its training loop do: weights of torch, transposed, float64 targets, and loss.item()."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(fan_in, fan_out, bias=False)
        for fan_in, fan_out in ((784, 256), (256, 64), (64, 10))
    ]
    reference = TorchModel(*(layer.weight.T.detach().numpy() for layer in layers))
    numpy_loss: Any = NumpyLoss()
    model = NumpyModel()
    model.W1, model.W2, model.W3 = (layer.weight.T.detach().clone().numpy() for layer in layers)
    x = torch.randn((100, 28, 28)).numpy()
    y = np.eye(10)[np.arange(100) % 10]
    y_pred = model.forward(x)
    loss = numpy_loss.get_loss(y_pred, y)
    model.backward(numpy_loss.backward())
    model.optimize(0.1)
    assert loss.item() == pytest.approx(reference.backward(reference.forward(x), y), rel=1e-6)
    reference.optimize(0.1)
    for name in ("W1", "W2", "W3"):
        assert_near(
            f"{name} after a step",
            getattr(model, name),
            getattr(reference, name).detach().numpy(),
            1e-6,
        )
