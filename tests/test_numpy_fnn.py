"""Operators, loss and model agree with PyTorch's autograd, and refuse wrong use.

Inputs of the comparisons are read-only, so that a change in place raises ValueError.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from numpy_fnn import Log, Matmul, NumpyLoss, NumpyModel, Relu, Softmax
from tests.torch_reference import TorchModel

# A new operator needs an entry here.
REFERENCES: dict[type[Any], Callable[..., torch.Tensor]] = {
    Matmul: torch.matmul,
    Relu: torch.relu,
    Log: lambda x: torch.log(x + 1e-12),
    Softmax: lambda x: torch.softmax(x, dim=-1),
}
GRADIENTS = ("log", "softmax", "x3", "W3", "relu_2", "x2", "W2", "relu_1", "x1", "W1")
# The largest allowed error, absolute plus relative. Rounding errors are less than a tenth of this.
TOLERANCES = {np.dtype("float32"): 1e-5, np.dtype("float64"): 1e-12}

all_operators = pytest.mark.parametrize("operator", REFERENCES)
both_dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def read_only(array: Any, dtype: Any = None) -> np.ndarray:
    """Return a read-only copy of an array, in `dtype` if it is given."""
    array = np.array(array, dtype)
    array.setflags(write=False)
    return array


def assert_near(name: str, actual: Any, expected: np.ndarray) -> None:
    """Fail unless two arrays have the same shape and dtype, and nearly the same values."""
    assert (name, actual.shape, actual.dtype) == (name, expected.shape, expected.dtype)
    tolerance = TOLERANCES[expected.dtype]
    np.testing.assert_allclose(actual, expected, tolerance, tolerance, err_msg=name)


def draw(operator: type[Any], dtype: Any, shape: Any, seed: int) -> list[np.ndarray]:
    """Return the inputs of an operator, the first of this shape, and G."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    if operator is Log:
        x = 10.0 ** rng.uniform(-15, 0, shape)  # probabilities on both sides of ε
    x.flat[0] = 0  # where Relu has a kink
    arrays = [x, rng.standard_normal(shape)]
    if operator is Matmul:
        arrays = [x, rng.standard_normal((shape[1], 7)), rng.standard_normal((len(x), 7))]
    return [read_only(array, dtype) for array in arrays]


def run(op: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return the output and the gradient with respect to each input."""
    *inputs, grad_y = arrays
    y = op.forward(*inputs)
    # Another object of the class runs in between. The two must not share anything.
    type(op)().forward(*[np.ones_like(x) for x in inputs])
    grads = op.backward(grad_y)
    return [y, *grads] if isinstance(grads, tuple) else [y, grads]


def assert_agree(operator: type[Any], results: list[np.ndarray], arrays: list[np.ndarray]) -> None:
    """Fail unless the results of `run` agree with PyTorch's results."""
    *inputs, grad_y = map(torch.tensor, arrays)
    y = REFERENCES[operator](*[x.requires_grad_() for x in inputs])
    y.backward(grad_y)
    expected = [y.detach().numpy(), *[x.grad.numpy() for x in inputs]]
    names = ["y", "grad_x", "grad_w"][: len(expected)]
    for name, actual, right in zip(names, results, expected, strict=True):
        assert_near(f"{name} of {operator.__name__}", actual, right)


# ---- operators


@both_dtypes
@all_operators
def test_operator_agrees_with_torch(operator: type[Any], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    for seed in range(50):
        axes = 2 if operator is Matmul else rng.integers(1, 4)
        arrays = draw(operator, dtype, rng.integers(1, 20, axes), seed)
        assert_agree(operator, run(operator(), arrays), arrays)


@all_operators
def test_operator_keeps_nothing_from_one_batch_to_the_next(operator: type[Any]) -> None:
    op = operator()
    # All batches have the same shape, so an operator could wrongly reuse an array.
    batches = [draw(operator, np.float64, (5, 3), seed) for seed in (0, 1, 2)]
    results = [run(op, arrays) for arrays in batches]
    for result, arrays in zip(results, batches, strict=True):
        assert_agree(operator, result, arrays)


@all_operators
def test_operator_refuses_a_gradient_of_another_shape(operator: type[Any]) -> None:
    op = operator()
    op.forward(*[np.ones((3, 3))] * (2 if operator is Matmul else 1))
    for shape in [(1, 3), (3,), (3, 1), ()]:
        with pytest.raises(ValueError, match=f"{operator.__name__}.*{re.escape(str(shape))}"):
            op.backward(np.ones(shape))


def test_relu_agrees_with_torch_at_zeros_infinities_and_nan() -> None:
    arrays = [np.array([0.0, -0.0, np.inf, -np.inf, 1e-30, -1e-30]), np.ones(6)]
    assert_agree(Relu, run(Relu(), arrays), arrays)
    assert np.isnan(Relu().forward(np.array([np.nan])))


def test_log_adds_the_epsilon_of_its_object() -> None:
    log = Log()
    log.epsilon = 0.5
    assert_near("y", log.forward(np.array([0, 0.5, 3.5])), np.log([0.5, 1, 4]))
    assert_near("grad_x", log.backward(np.ones(3)), np.array([2, 1, 0.25]))


@pytest.mark.filterwarnings("ignore:overflow")  # −3e38 − 3e38 is −inf, whose exponential is 0
def test_softmax_agrees_with_torch_at_extreme_scores() -> None:
    scores = [[3e38, -3e38, 0], [1e4, -1e4, 9999], [3, 2, 1], [-1e4, -1e4, 0]]
    arrays = [np.array(scores, np.float32), np.array([[1e12, -1, 0]] * 4, np.float32)]
    assert_agree(Softmax, run(Softmax(), arrays), arrays)


# ---- the loss


@pytest.mark.parametrize("target_dtype", [np.float64, np.float32, np.uint8, np.bool_])
@both_dtypes
def test_loss_agrees_with_torch_in_the_dtype_of_pred(dtype: Any, target_dtype: Any) -> None:
    rng = np.random.default_rng(0)
    numpy_loss = NumpyLoss()
    results = []
    for size in (5, 3, 3):  # one object for batches of different sizes
        labels = rng.integers(0, 4, size)
        pred = torch.tensor(-rng.random((size, 4)).astype(dtype), requires_grad=True)
        expected = torch.nn.functional.nll_loss(pred, torch.tensor(labels))
        expected.backward()
        target = read_only(np.eye(4)[labels], target_dtype)
        loss: Any = numpy_loss.get_loss(read_only(pred.detach().numpy()), target)
        NumpyLoss().get_loss(np.ones((2, 4)), np.ones((2, 4)))  # a second object shares nothing
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert isinstance(loss, float)
        results.append((numpy_loss.backward(), pred.grad.numpy()))
    for grad_p, right in results:
        assert_near("grad_p", grad_p, right)


# ---- the model


@pytest.mark.parametrize("shape", [(784,), (28, 28), (1, 28, 28)], ids=str)
@pytest.mark.parametrize("image_dtype", [np.float32, np.float64])
@both_dtypes
def test_model_agrees_with_torch_in_the_dtype_of_its_weights(
    dtype: Any, image_dtype: Any, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    model = NumpyModel()
    other = NumpyModel()  # shares nothing with the model
    numpy_loss = NumpyLoss()
    for count in (8, 5):
        sizes = model.SHAPES.values()
        weights = [read_only(rng.uniform(-0.1, 0.1, size), dtype) for size in sizes]
        model.W1, model.W2, model.W3 = weights
        x = read_only(rng.standard_normal((count, *shape)), image_dtype)
        target = np.eye(10)[rng.integers(0, 10, count)]
        y_pred = model.forward(x)
        other.forward(-x)
        numpy_loss.get_loss(y_pred, target)
        model.backward(numpy_loss.backward())
        other.backward(np.ones((count, 10), np.float32))

        reference = TorchModel(*weights)
        expected_pred = reference.forward(x.astype(dtype))
        reference.backward(expected_pred, target)
        assert_near("y_pred", y_pred, expected_pred.detach().numpy())
        for name in GRADIENTS:
            expected = reference.gradient(f"{name}_grad")
            scale = abs(expected).max()
            assert_near(name, getattr(model, f"{name}_grad") / scale, expected / scale)


def test_model_skips_the_gradient_of_its_input_on_request() -> None:
    model = NumpyModel(0)
    model.forward(np.ones((2, 784)))
    grad_y = np.eye(10, dtype=np.float32)[:2]
    model.backward(grad_y)
    W1_grad = model.W1_grad
    model.backward(grad_y, needs_input_grad=False)
    assert model.x1_grad is None
    np.testing.assert_array_equal(model.W1_grad, W1_grad)


def test_model_draws_uniform_weights_scaled_by_the_root_of_fan_in() -> None:
    model = NumpyModel(1)
    for name, (fan_in, fan_out) in {"W1": (784, 256), "W2": (256, 64), "W3": (64, 10)}.items():
        weight = getattr(model, name)
        assert (weight.shape, weight.dtype) == ((fan_in, fan_out), np.float32)
        scaled = weight * fan_in**0.5
        assert abs(scaled).max() <= 1
        quartiles = np.quantile(scaled, [0, 0.25, 0.5, 0.75, 1])
        np.testing.assert_allclose(quartiles, [-1, -0.5, 0, 0.5, 1], atol=0.05)


def test_seed_determines_the_weights_of_a_new_model() -> None:
    model = NumpyModel(0)
    same = NumpyModel(np.random.default_rng(0))
    others = (NumpyModel(1), NumpyModel(), NumpyModel())
    for name in ("W1", "W2", "W3"):
        np.testing.assert_array_equal(getattr(model, name), getattr(same, name))
        assert len({getattr(each, name).tobytes() for each in (model, *others)}) == 4


@both_dtypes
def test_optimize_takes_one_step_and_changes_no_array_in_place(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    model = NumpyModel()
    expected = {}
    for name, shape in model.SHAPES.items():
        W = read_only(rng.standard_normal(shape), dtype)
        grad = read_only(rng.standard_normal(shape), dtype)
        setattr(model, name, W)
        setattr(model, f"{name}_grad", grad)
        expected[name] = W - dtype(0.25) * grad
    model.optimize(0.25)
    for name, W in expected.items():
        assert_near(name, getattr(model, name), W)


# ---- wrong use, and the course's own code


@pytest.mark.parametrize(
    ("method", "cases"),
    [
        (Matmul().forward, [[(2, 3), (2, 3)], [(3,), (3, 4)], [(5, 2, 3), (3, 4)]]),
        (Matmul().forward, [[(2, 3), (3,)], [(2, 3), (5, 3, 4)]]),
        (NumpyLoss().get_loss, [[(2, 3), (1, 3)], [(2, 3), (2,)], [(3,), (3,)], [(0, 3), (0, 3)]]),
        (NumpyModel().forward, [[(4, 14, 56)], [(4, 28, 28, 1)], [(28, 28)], [(2, 785)], [()]]),
    ],
)
def test_wrong_shapes_raise_an_error_that_names_them(method: Any, cases: list[Any]) -> None:
    for shapes in cases:
        names = [re.escape(str(shape)) for shape in shapes]
        with pytest.raises(ValueError, match=".*".join(names)):
            method(*map(np.ones, shapes))


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (Relu().backward, [np.ones((2, 3))]),
        (NumpyLoss().backward, []),
        (NumpyModel().backward, [np.ones((2, 10))]),
        (NumpyModel().optimize, [0.1]),
    ],
)
def test_method_called_too_early_raises_an_error(method: Any, arguments: list[Any]) -> None:
    with pytest.raises(RuntimeError, match=f"{method.__name__} was called before"):
        method(*arguments)


def test_handout_code_of_the_course_runs_unchanged() -> None:
    """Assign weights of torch, transposed, pass float64 targets, and read loss.item()."""
    torch.manual_seed(0)
    sizes = ((784, 256), (256, 64), (64, 10))
    layers = [torch.nn.Linear(*size, bias=False) for size in sizes]
    weights = [layer.weight.T.detach().clone().numpy() for layer in layers]
    reference = TorchModel(*weights)
    model = NumpyModel()
    numpy_loss: Any = NumpyLoss()
    model.W1, model.W2, model.W3 = weights
    x = torch.randn((20, 28, 28)).numpy()
    y = np.eye(10)[np.arange(20) % 10]
    y_pred = model.forward(x)
    loss = numpy_loss.get_loss(y_pred, y)
    model.backward(numpy_loss.backward())
    model.optimize(0.1)
    assert loss.item() == pytest.approx(reference.backward(reference.forward(x), y), rel=1e-6)
    reference.optimize(0.1)
    for name in ("W1", "W2", "W3"):
        assert_near(name, getattr(model, name), getattr(reference, name).detach().numpy())
