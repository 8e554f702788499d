"""The operators, the loss and the model against PyTorch's autograd, central differences, extremes and bad use."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numpy_fnn import Array, Log, Matmul, NumpyLoss, NumpyModel, Relu, Softmax
from tests.torch_reference import TorchModel

REFERENCES: dict[type[Any], Callable[..., torch.Tensor]] = {
    Matmul: torch.matmul,
    Relu: torch.relu,
    Log: lambda x: torch.log(x + 1e-12),
    Softmax: lambda x: torch.softmax(x, dim=-1),
}
# The largest error, relative to the largest sum of the terms' absolute values: a few roundings, in another order.
TOLERANCES = {np.float32: 2e-6, np.float64: 4e-15}
GRADIENTS = [f"{name}_grad" for name in ["log", "softmax", "x3", "W3", "relu_2", "x2", "W2", "relu_1", "x1", "W1"]]

all_operators = pytest.mark.parametrize("operator", REFERENCES)
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCES)
sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)


def lay_out(array: Array, layout: str) -> Array:
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


def make_inputs(
    operator: type[Any], shape: tuple[int, int, int], exponent: int, rng: np.random.Generator
) -> list[Array]:
    """Return float64 inputs of about 10**exponent; Matmul's weight is as small as x is large, so that y is neither."""
    n, d_in, d_out = shape
    x = rng.standard_normal((n, d_in)) * 10.0**exponent
    if operator is Matmul:
        return [x, rng.standard_normal((d_in, d_out)) * 10.0**-exponent]
    return [abs(x) if operator is Log else x]


def backward(op: Any, grad_y: Array) -> tuple[Array, ...]:
    """Return the gradients with respect to every input."""
    grads = op.backward(grad_y)
    return grads if isinstance(grads, tuple) else (grads,)


@all_operators
@given(st.tuples(sizes, sizes, sizes), st.sampled_from(list(TOLERANCES)), st.integers(-30, 30), seeds, st.data())
@settings(deadline=None)
def test_operator_agrees_with_torch_and_leaves_its_inputs_alone(
    operator: type[Any], shape: tuple[int, int, int], dtype: type[Any], exponent: int, seed: int, data: st.DataObject
) -> None:
    layouts = st.sampled_from(["C", "Fortran", "sliced", "read-only"])
    rng = np.random.default_rng(seed)
    inputs = [lay_out(x.astype(dtype), data.draw(layouts)) for x in make_inputs(operator, shape, exponent, rng)]
    tensors = [torch.tensor(x.copy(), requires_grad=True) for x in inputs]
    before = [x.copy() for x in inputs]
    op = operator()
    y = op.forward(*inputs)
    grad_y = lay_out(rng.standard_normal(y.shape).astype(dtype), data.draw(layouts))
    before.append(grad_y.copy())
    grads = backward(op, grad_y)

    expected_y = REFERENCES[operator](*tensors)
    expected_y.backward(torch.tensor(grad_y.copy()))
    expectations = [expected_y.detach().numpy(), *(tensor.grad.numpy() for tensor in tensors)]
    terms = [abs(expected) for expected in expectations]
    if operator is Matmul:
        x, W, G = (abs(array) for array in (*inputs, grad_y))
        terms = [x @ W, G @ W.T, x.T @ G]
    elif operator is Softmax:
        terms[1] = abs(grad_y)
    for actual, expected, summed in zip((y, *grads), expectations, terms, strict=True):
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCES[dtype] * summed.max())
    for array, copy in zip((*inputs, grad_y), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@all_operators
@given(st.tuples(sizes, sizes, sizes), st.integers(-30, 30), seeds)
@settings(deadline=None)
def test_backward_agrees_with_central_differences(
    operator: type[Any], shape: tuple[int, int, int], exponent: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Softmax is far from linear within a step that is small against large logits.
    inputs = make_inputs(operator, shape, min(exponent, 0) if operator is Softmax else exponent, rng)
    directions = [rng.uniform(-1, 1, x.shape) * (1 if operator is Softmax else abs(x)) for x in inputs]
    op = operator()
    y = op.forward(*inputs)
    grad_y = rng.standard_normal(y.shape)
    slope = sum((g * v).sum() for g, v in zip(backward(op, grad_y), directions, strict=True))

    h = 1e-4
    above, below = (
        op.forward(*(x + sign * h * v for x, v in zip(inputs, directions, strict=True))) for sign in (1, -1)
    )
    assert slope == pytest.approx((grad_y * (above - below)).sum() / (2 * h), rel=1e-6, abs=1e-6 * abs(y).sum())


@both_dtypes
def test_relu_at_zeros_infinities_and_nan_is_torchs(dtype: type[Any]) -> None:
    x = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, -1e-30]], dtype)
    tensor = torch.tensor(x, requires_grad=True)
    relu = Relu()
    y = relu.forward(x)
    torch.relu(tensor).backward(torch.ones_like(tensor))
    np.testing.assert_array_equal(y, [[0, 0, np.inf, 0, np.nan, x[0, 5], 0]])
    np.testing.assert_array_equal(relu.backward(np.ones_like(x)), [[0, 0, 1, 0, 1, 1, 0]])
    np.testing.assert_array_equal(relu.backward(np.ones_like(x)), tensor.grad)


@both_dtypes
def test_log_of_zero_is_finite_and_its_gradient_the_exact_derivative(dtype: type[Any]) -> None:
    log = Log()
    np.testing.assert_allclose(log.forward(np.zeros((2, 3), dtype)), math.log(1e-12), rtol=1e-6)
    np.testing.assert_allclose(log.backward(np.ones((2, 3), dtype)), 1e12, rtol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([1e4, -1e4, 0], [1, 0, 0]),
        ([3e38, -3e38, 0], [1, 0, 0]),
        ([-3e38, -3e38, 3e38], [0, 0, 1]),
        ([-3e38, -3e38, -3e38], [1 / 3, 1 / 3, 1 / 3]),
        ([7, 7, 7], [1 / 3, 1 / 3, 1 / 3]),
        ([0, 100, 0], [0, 1, 0]),
    ],
)
def test_softmax_of_extreme_logits_is_right_and_silent(logits: list[float], expected: list[float]) -> None:
    softmax = Softmax()
    np.testing.assert_allclose(softmax.forward(np.array([logits], np.float32)), [expected], atol=1e-7)
    assert np.isfinite(softmax.backward(np.array([[1e12, -1, 0]], np.float32))).all()


@given(sizes, sizes, st.integers(-30, 30), seeds)
def test_softmax_rows_are_distributions(n: int, classes: int, exponent: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((n, classes)) * 10.0**exponent
    y = Softmax().forward(x.astype(np.float32))
    assert (y >= 0).all()
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-6)


def test_certain_wrong_answer_costs_a_large_finite_loss() -> None:
    softmax, log, numpy_loss = Softmax(), Log(), NumpyLoss()
    y_pred = log.forward(softmax.forward(np.array([[1e4, 0, -1e4]], np.float32)))
    assert numpy_loss.get_loss(y_pred, np.array([[0, 0, 1]])) == pytest.approx(-math.log(1e-12))
    assert np.isfinite(softmax.backward(log.backward(numpy_loss.backward()))).all()


@pytest.mark.parametrize("target_dtype", [np.float64, np.float32, np.uint8, np.bool_])
@both_dtypes
def test_loss_is_a_float_whose_gradient_keeps_the_dtype_of_pred(dtype: type[Any], target_dtype: type[Any]) -> None:
    pred = np.log(np.array([[0.25, 0.75], [0.5, 0.5]], dtype))
    numpy_loss = NumpyLoss()
    loss = numpy_loss.get_loss(pred, np.array([[1, 0], [0, 1]], target_dtype))
    assert isinstance(loss, float)
    assert loss == pytest.approx((math.log(4) + math.log(2)) / 2, rel=1e-6)
    grad = numpy_loss.backward()
    assert grad.dtype == dtype
    np.testing.assert_array_equal(grad, [[-0.5, 0], [0, -0.5]])


def assert_near(name: str, actual: Array, expected: Array, tolerance: float) -> None:
    """Compare with an error relative to the largest value; `name` is for the message."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * abs(expected).max(), err_msg=name)


@pytest.mark.parametrize("shape", [(32, 784), (32, 28, 28), (32, 1, 28, 28)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_model_agrees_with_torch(dtype: type[Any], tolerance: float, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weights = [rng.uniform(-0.1, 0.1, shape).astype(dtype) for shape in NumpyModel.SHAPES.values()]
    x, target = rng.standard_normal(shape).astype(dtype), np.eye(10, dtype=dtype)[rng.integers(0, 10, 32)]
    model, numpy_loss, reference = NumpyModel(), NumpyLoss(), TorchModel(*weights)
    model.W1, model.W2, model.W3 = weights

    y_pred, expected_pred = model.forward(x), reference.forward(x)
    assert_near("y_pred", y_pred, expected_pred.detach().numpy(), tolerance)
    expected_loss = reference.backward(expected_pred, target)
    assert numpy_loss.get_loss(y_pred, target) == pytest.approx(expected_loss, rel=tolerance)
    model.backward(numpy_loss.backward())
    for name in GRADIENTS:
        assert_near(name, getattr(model, name), reference.gradient(name), tolerance)
    model.optimize(0.1)
    reference.optimize(0.1)
    for name, before in zip(NumpyModel.SHAPES, weights, strict=True):
        assert_near(name, getattr(model, name), getattr(reference, name).detach().numpy(), tolerance)
        assert not np.array_equal(getattr(model, name), before)
        assert_near(
            f"{name}_grad", getattr(model, f"{name}_grad"), reference.gradient(name), tolerance
        )  # still readable


def test_input_gradient_is_skipped_on_request() -> None:
    model, numpy_loss = NumpyModel(), NumpyLoss()
    numpy_loss.get_loss(model.forward(np.ones((2, 784), np.float32)), np.eye(10)[:2])
    model.backward(numpy_loss.backward(), needs_input_grad=False)
    assert model.x1_grad is None
    matmul = Matmul()
    matmul.forward(np.ones((2, 3)), np.ones((3, 4)))
    matmul.memory["W"] = np.ones(0)  # the product with it would be an error
    assert matmul.backward(np.ones((2, 4)), needs_input_grad=False)[0] is None


def test_new_model_has_random_weights() -> None:
    model, other = NumpyModel(), NumpyModel()
    for name, (fan_in, _) in NumpyModel.SHAPES.items():
        assert getattr(model, name).dtype == np.float32
        assert getattr(model, name).std() == pytest.approx(fan_in**-0.5, rel=0.2)
        assert not np.array_equal(getattr(model, name), getattr(other, name))


def test_numpy_learning_rate_keeps_float32_weights() -> None:
    model, numpy_loss = NumpyModel(), NumpyLoss()
    numpy_loss.get_loss(model.forward(np.ones((2, 784), np.float32)), np.eye(10)[:2])
    model.backward(numpy_loss.backward())
    model.optimize(np.float64(0.1))
    assert {W.dtype for W in (model.W1, model.W2, model.W3)} == {np.dtype("float32")}


@all_operators
def test_returned_arrays_do_not_change_on_the_next_call(operator: type[Any]) -> None:
    op, rng = operator(), np.random.default_rng(0)

    def step() -> tuple[Array, ...]:
        y = op.forward(*make_inputs(operator, (4, 4, 4), 0, rng))
        return (y, *backward(op, rng.standard_normal(y.shape)))

    arrays = step()
    copies = [array.copy() for array in arrays]
    step()
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_course_handout_code_runs_unchanged() -> None:
    """The course's tester: operators one by one, then the model with weights made by torch."""
    x, W = np.random.normal(size=(5, 6)), np.random.normal(size=(6, 4))  # noqa: NPY002
    numpy_matmul = Matmul()
    numpy_out = numpy_matmul.forward(x, W)
    numpy_x_grad, numpy_W_grad = numpy_matmul.backward(np.ones_like(numpy_out))
    torch_x, torch_W = (torch.from_numpy(array).clone().requires_grad_() for array in (x, W))
    torch_out = torch.matmul(torch_x, torch_W)
    torch_out.sum().backward()
    pairs = [(numpy_out, torch_out), (numpy_x_grad, torch_x.grad), (numpy_W_grad, torch_W.grad)]

    for numpy_op, torch_op in ((Relu(), torch.relu), (Log(), torch.log), (Softmax(), lambda x: torch.softmax(x, -1))):
        x = np.random.uniform(low=0.1, high=1.0, size=(3, 4))  # noqa: NPY002
        numpy_out = numpy_op.forward(x)
        numpy_x_grad = numpy_op.backward(np.ones_like(numpy_out))
        torch_x = torch.from_numpy(x).clone().requires_grad_()
        torch_out = torch_op(torch_x)
        torch_out.sum().backward()
        pairs += [(numpy_out, torch_out), (numpy_x_grad, torch_x.grad)]

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
    pairs.append((y_pred, torch_pred))
    pairs += [(getattr(model, name), torch.from_numpy(reference.gradient(name))) for name in GRADIENTS]
    model.optimize(0.1)
    reference.optimize(0.1)
    pairs += [(model.W1, reference.W1), (model.W2, reference.W2), (model.W3, reference.W3)]

    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-6)


@all_operators
@pytest.mark.parametrize("shape", [(1, 3), (3,), (3, 1), ()])
def test_gradient_of_another_shape_is_not_broadcast(operator: type[Any], shape: tuple[int, ...]) -> None:
    op = operator()
    op.forward(*[np.ones((3, 3))] * (2 if operator is Matmul else 1))
    words = f"grad_y of {operator.__name__}.backward has shape {shape}, but (3, 3) is wanted"
    with pytest.raises(ValueError, match=re.escape(words)):
        op.backward(np.ones(shape))


ONES = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Relu().backward(ONES), RuntimeError, "Relu.backward was called before Relu.forward"),
        (lambda: NumpyModel().backward(ONES), RuntimeError, "Log.backward was called before Log.forward"),
        (lambda: NumpyModel().optimize(0.1), RuntimeError, "NumpyModel.optimize was called before NumpyModel.backward"),
        (lambda: NumpyLoss().backward(), RuntimeError, "NumpyLoss.backward was called before NumpyLoss.get_loss"),
        (
            lambda: Matmul().forward(ONES, ONES),
            ValueError,
            "Matmul has x (2, 3) and W (2, 3), but (N, d) and (d, d') are wanted",
        ),
        *(
            (
                lambda shape=shape: NumpyModel().forward(np.ones(shape)),
                ValueError,
                f"x has shape {shape}, but (N, 784), (N, 28, 28) or (N, 1, 28, 28) is wanted",
            )
            for shape in ((4, 14, 14), (28, 28), (2, 785), (784,), ())
        ),
        (
            lambda: setattr(NumpyModel(), "W2", np.ones((64, 256))),
            ValueError,
            "W2 has shape (64, 256), but (256, 64) is wanted",
        ),
        (
            lambda: NumpyLoss().get_loss(ONES, ONES[:1]),
            ValueError,
            "target of NumpyLoss.get_loss has shape (1, 3), but (2, 3) is wanted",
        ),
        (
            lambda: NumpyLoss().get_loss(ONES[:0], ONES[:0]),
            ValueError,
            "pred of NumpyLoss.get_loss has shape (0, 3), but (N, C) with N > 0 is wanted",
        ),
    ],
)
def test_bad_use_is_an_error_that_names_the_shapes(
    call: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        call()
