"""The model, operators and loss against PyTorch's autograd, central differences, extremes and bad use."""

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
from tests.gradient_check import numerical_gradient
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
    for kind in ("dtype", "shape"):
        if getattr(actual, kind) != getattr(expected, kind):
            pytest.fail(f"{name} has {kind} {getattr(actual, kind)}, expected {getattr(expected, kind)}")
    differ = ~np.isclose(actual, expected, rtol=0, atol=atol, equal_nan=True)
    if differ.any():
        i = tuple(int(axis[0]) for axis in np.nonzero(differ))
        values = f"{actual[i]:.6g} at {list(i)}, expected {expected[i]:.6g} ± {atol:.1g}"
        pytest.fail(f"{name} is {values}; {differ.sum()} of {differ.size} entries differ")


def assert_same(name: str, actual: np.ndarray, expected: np.ndarray) -> None:
    """Fail, in a sentence that begins with `name`, unless both are the same to the last bit."""
    __tracebackhide__ = True
    assert_near(name, actual, expected, 0)


# ---- the model and the course's own code against PyTorch


@pytest.mark.parametrize("shape", [(32, 784), (32, 28, 28), (32, 1, 28, 28)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
def test_model_agrees_with_torch(dtype: type[Any], tolerance: float, shape: tuple[int, ...]) -> None:
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
    model.optimize(0.1)
    reference.optimize(0.1)
    for name, before in zip(NumpyModel.SHAPES, weights, strict=True):
        compare(name, getattr(model, name), getattr(reference, name).detach().numpy())
        assert not np.array_equal(getattr(model, name), before)
        compare(f"{name}_grad, after the step,", getattr(model, f"{name}_grad"), reference.gradient(name))


def test_shapes_are_the_courses() -> None:
    assert NumpyModel.SHAPES == COURSE_SHAPES


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


def make_inputs(
    operator: type[Any], shape: tuple[int, int, int], exponent: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return float64 inputs of about 10**exponent; Matmul's weight is as small as x is large, so that y is neither."""
    n, d_in, d_out = shape
    x = rng.standard_normal((n, d_in)) * 10.0**exponent
    if operator is Matmul:
        return [x, rng.standard_normal((d_in, d_out)) * 10.0**-exponent]
    return [abs(x) if operator is Log else x]


def run(op: Any, inputs: list[np.ndarray], grad_y: np.ndarray) -> dict[str, np.ndarray]:
    """Return the output and the gradient with respect to every input, under their names."""
    y = op.forward(*inputs)
    grads = op.backward(grad_y)
    return dict(zip(("y", "grad_x", "grad_w"), (y, *(grads if isinstance(grads, tuple) else (grads,))), strict=False))


def output_shape(operator: type[Any], inputs: list[np.ndarray]) -> tuple[int, ...]:
    """Return the shape of the output."""
    return (inputs[0] @ inputs[1]).shape if operator is Matmul else inputs[0].shape


@all_operators
@given(st.tuples(sizes, sizes, sizes), st.sampled_from(list(TOLERANCES)), st.integers(-30, 30), seeds, st.data())
@searching
def test_operator_agrees_with_torch_and_leaves_its_inputs_alone(
    operator: type[Any], shape: tuple[int, int, int], dtype: type[Any], exponent: int, seed: int, data: st.DataObject
) -> None:
    layouts = st.sampled_from(["C", "Fortran", "sliced", "read-only"])
    rng = np.random.default_rng(seed)
    inputs = [lay_out(x.astype(dtype), data.draw(layouts)) for x in make_inputs(operator, shape, exponent, rng)]
    grad_y = lay_out(rng.standard_normal(output_shape(operator, inputs)).astype(dtype), data.draw(layouts))
    before = [array.copy() for array in (*inputs, grad_y)]
    tensors = [torch.tensor(x.copy(), requires_grad=True) for x in inputs]
    results = run(operator(), inputs, grad_y)

    expected_y = REFERENCES[operator](*tensors)
    expected_y.backward(torch.tensor(grad_y.copy()))
    expectations = [expected_y.detach().numpy(), *(tensor.grad.numpy() for tensor in tensors)]
    # A slope may be a difference, as Softmax's y (1 − y) is: its terms, and so its rounding errors, are as large as G.
    terms = [abs(expectations[0]), abs(expectations[1]) + abs(grad_y)] if operator is not Matmul else []
    if operator is Log:
        terms[1] = abs(expectations[1])
    elif operator is Matmul:
        x, W, G = (abs(array) for array in (*inputs, grad_y))
        terms = [x @ W, G @ W.T, x.T @ G]
    for (name, actual), expected, summed in zip(results.items(), expectations, terms, strict=True):
        assert_near(f"{name} of {operator.__name__}", actual, expected, TOLERANCES[dtype] * summed.max())
    for array, copy in zip((*inputs, grad_y), before, strict=True):
        assert_same(f"an array given to {operator.__name__}", array, copy)


@all_operators
@given(st.tuples(*[st.integers(1, 6)] * 3), seeds)
@searching
def test_backward_agrees_with_central_differences(operator: type[Any], shape: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = make_inputs(operator, shape, 0, rng)
    if operator is Log:
        inputs = [10.0 ** rng.uniform(-14, 0, shape[:2])]
    op, grad_y = operator(), rng.standard_normal(output_shape(operator, inputs))
    results = run(op, inputs, grad_y)
    largest = abs(grad_y * results.pop("y")).sum()
    for x, (name, actual) in zip(inputs, results.items(), strict=True):
        expected = numerical_gradient(lambda: (grad_y * op.forward(*inputs)).sum(), x)
        # The step is relative to x, and so is what the difference resolves.
        assert_near(f"x times {name} of {operator.__name__}", x * actual, x * expected, 1e-6 * largest)


@all_operators
def test_used_operator_computes_what_a_fresh_one_does(operator: type[Any]) -> None:
    used, rng = operator(), np.random.default_rng(0)
    for _ in range(2):
        inputs = make_inputs(operator, (4, 4, 4), 0, rng)
        grad_y = rng.standard_normal((4, 4))
        fresh = run(operator(), inputs, grad_y)
        for name, actual in run(used, inputs, grad_y).items():
            assert_same(f"{name} of a used {operator.__name__}", actual, fresh[name])


def test_used_model_and_loss_compute_what_fresh_ones_do() -> None:
    used, used_loss, rng = NumpyModel(0), NumpyLoss(), np.random.default_rng(0)
    for _ in range(2):
        x, target = rng.standard_normal((4, 784)), np.eye(10)[rng.integers(0, 10, 4)]
        fresh, fresh_loss = NumpyModel(), NumpyLoss()
        fresh.W1, fresh.W2, fresh.W3 = used.W1, used.W2, used.W3
        losses = []
        for model, numpy_loss in ((used, used_loss), (fresh, fresh_loss)):
            losses.append(numpy_loss.get_loss(model.forward(x), target))
            model.backward(numpy_loss.backward())
            model.optimize(0.1)
        assert losses[0] == losses[1]
        for name in (*GRADIENTS, *NumpyModel.SHAPES):
            assert_same(f"{name} of a used NumpyModel", getattr(used, name), getattr(fresh, name))


@all_operators
def test_returned_arrays_do_not_change_on_the_next_call(operator: type[Any]) -> None:
    op, rng = operator(), np.random.default_rng(0)
    results = run(op, make_inputs(operator, (4, 4, 4), 0, rng), rng.standard_normal((4, 4)))
    copies = {name: array.copy() for name, array in results.items()}
    run(op, make_inputs(operator, (4, 4, 4), 0, rng), rng.standard_normal((4, 4)))
    for name, array in results.items():
        assert_same(f"{name} of {operator.__name__}, after the next call,", array, copies[name])


# ---- extremes


@both_dtypes
def test_relu_at_zeros_and_infinities_is_torchs(dtype: type[Any]) -> None:
    x = np.array([[0.0, -0.0, np.inf, -np.inf, 1e-30, -1e-30]], dtype)
    tensor = torch.tensor(x, requires_grad=True)
    y = torch.relu(tensor)
    y.backward(torch.ones_like(tensor))
    relu = Relu()
    assert_same("y of Relu", relu.forward(x), y.detach().numpy())
    assert_same("grad_x of Relu", relu.backward(np.ones_like(x)), tensor.grad)


def test_relu_keeps_nan() -> None:
    assert_same("y of Relu", Relu().forward(np.array([[np.nan, -1]])), np.array([[np.nan, 0]]))


@both_dtypes
def test_log_of_zero_is_finite_and_its_gradient_the_exact_derivative(dtype: type[Any]) -> None:
    log = Log()
    np.testing.assert_allclose(log.forward(np.zeros((2, 3), dtype)), math.log(1e-12), rtol=1e-6)
    np.testing.assert_allclose(log.backward(np.ones((2, 3), dtype)), 1e12, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:overflow")  # of the difference of 3e38 and -3e38, whose exponential is still 0
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
    ids=str,
)
def test_softmax_of_extreme_logits_is_right(logits: list[float], expected: list[float]) -> None:
    softmax = Softmax()
    np.testing.assert_allclose(softmax.forward(np.array([logits], np.float32)), [expected], atol=1e-7)
    assert np.isfinite(softmax.backward(np.array([[1e12, -1, 0]], np.float32))).all()


@given(sizes, sizes, st.integers(-30, 30), seeds)
@searching
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


# ---- the loss, the initial weights, the step


@pytest.mark.parametrize("target_dtype", [np.float64, np.float32, np.uint8, np.bool_])
@both_dtypes
def test_loss_is_a_float_whose_gradient_keeps_the_dtype_of_pred(dtype: type[Any], target_dtype: type[Any]) -> None:
    pred = np.log(np.array([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]], dtype))
    numpy_loss = NumpyLoss()
    loss = numpy_loss.get_loss(pred, np.array([[1, 0], [0, 1], [0, 0]], target_dtype))
    assert isinstance(loss, float)
    assert loss == pytest.approx((math.log(4) + math.log(2)) / 3, rel=1e-6)
    expected = np.array([[-1 / 3, 0], [0, -1 / 3], [0, 0]], dtype)
    assert_same("grad_p of NumpyLoss", numpy_loss.backward(), expected)


def test_initial_weights_have_the_distribution_of_torch_linear() -> None:
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


def test_initial_weights_follow_the_seed() -> None:
    model, same = NumpyModel(0), NumpyModel(np.random.default_rng(0))
    others = (NumpyModel(1), NumpyModel(), NumpyModel())
    for name in NumpyModel.SHAPES:
        assert_same(name, getattr(same, name), getattr(model, name))
        assert len({getattr(other, name).tobytes() for other in (model, *others)}) == 4


def test_input_gradient_is_skipped_on_request() -> None:
    model, numpy_loss = NumpyModel(), NumpyLoss()
    numpy_loss.get_loss(model.forward(np.ones((2, 784), np.float32)), np.eye(10)[:2])
    model.backward(numpy_loss.backward(), needs_input_grad=False)
    assert model.x1_grad is None
    matmul = Matmul()
    matmul.forward(np.ones((2, 3)), np.ones((3, 4)))
    matmul.memory["W"] = np.ones(0)  # the product with it would be an error
    assert matmul.backward(np.ones((2, 4)), needs_input_grad=False)[0] is None


def test_numpy_learning_rate_keeps_float32_weights() -> None:
    model, numpy_loss = NumpyModel(), NumpyLoss()
    numpy_loss.get_loss(model.forward(np.ones((2, 784), np.float32)), np.eye(10)[:2])
    model.backward(numpy_loss.backward())
    model.optimize(np.float64(0.1))
    assert {W.dtype for W in (model.W1, model.W2, model.W3)} == {np.dtype("float32")}


# ---- bad use


@all_operators
@pytest.mark.parametrize("shape", [(1, 3), (3,), (3, 1), ()], ids=str)
def test_gradient_of_another_shape_is_not_broadcast(operator: type[Any], shape: tuple[int, ...]) -> None:
    op = operator()
    op.forward(*[np.ones((3, 3))] * (2 if operator is Matmul else 1))
    words = f"grad_y of {operator.__name__}.backward has shape {shape}, expected (3, 3)"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        op.backward(np.ones(shape))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Relu().backward(np.ones((2, 3))), "Relu.backward was called before Relu.forward"),
        (lambda: NumpyLoss().backward(), "NumpyLoss.backward was called before NumpyLoss.get_loss"),
        (lambda: NumpyModel().backward(np.ones((2, 10))), "Log.backward was called before Log.forward"),
        (lambda: NumpyModel().optimize(0.1), "NumpyModel.optimize was called before NumpyModel.backward"),
    ],
    ids=["Relu.backward", "NumpyLoss.backward", "NumpyModel.backward", "NumpyModel.optimize"],
)
def test_call_before_its_time_is_an_error_that_names_both(call: Callable[[], object], words: str) -> None:
    with pytest.raises(RuntimeError, match=f"^{re.escape(words)}$"):
        call()


@pytest.mark.parametrize(
    ("x_shape", "W_shape"),
    [((2, 3), (2, 3)), ((3,), (3, 4)), ((2, 3), (3,)), ((5, 2, 3), (3, 4)), ((2, 3), (5, 3, 4)), ((), (3, 4))],
    ids=str,
)
def test_matmul_takes_matrices_that_fit(x_shape: tuple[int, ...], W_shape: tuple[int, ...]) -> None:
    words = f"Matmul has x {x_shape} and W {W_shape}, expected (N, d) and (d, d')"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        Matmul().forward(np.ones(x_shape), np.ones(W_shape))


@pytest.mark.parametrize(
    ("pred_shape", "target_shape"), [((2, 3), (1, 3)), ((2, 3), (2,)), ((3,), (3,)), ((0, 3), (0, 3))], ids=str
)
def test_loss_takes_two_matrices_of_one_shape(pred_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> None:
    words = f"NumpyLoss has pred {pred_shape} and target {target_shape}, expected (N, C) with N > 0"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        NumpyLoss().get_loss(np.ones(pred_shape), np.ones(target_shape))


@pytest.mark.parametrize(
    "shape",
    [(4, 14, 14), (4, 14, 56), (4, 56, 14), (4, 28, 28, 1), (4, 28, 1, 28), (28, 28), (2, 785), (784,), ()],
    ids=str,
)
def test_model_takes_images_alone(shape: tuple[int, ...]) -> None:
    words = f"x has shape {shape}, expected (N, 784), (N, 28, 28) or (N, 1, 28, 28)"
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        NumpyModel().forward(np.ones(shape))


@pytest.mark.parametrize("name", NumpyModel.SHAPES)
def test_weight_of_a_wrong_shape_is_an_error_of_the_next_forward(name: str) -> None:
    model, (d, width) = NumpyModel(), NumpyModel.SHAPES[name]
    for shape in ((width, d), (d, width + 1), (d,)):
        setattr(model, name, np.ones(shape))
        with pytest.raises(ValueError, match=f"^{re.escape(f'{name} has shape {shape}, expected {(d, width)}')}$"):
            model.forward(np.ones((1, 784)))
