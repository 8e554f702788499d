"""The derivations quote the lab's code, and their numbers are those that operators compute."""

import doctest
import inspect
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

import numpy_fnn
import numpy_mnist
from numpy_fnn import Log, NumpyLoss, NumpyModel, Softmax
from utils import one_hot

PATH = Path(__file__).parents[1] / "docs" / "derivations.md"
PAGE = PATH.read_text(encoding="utf-8")
CODE = inspect.getsource(numpy_fnn) + inspect.getsource(numpy_mnist)


@pytest.mark.parametrize("quote", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_quoted_code_stands_in_the_modules(quote: str) -> None:
    assert any(f"\n{textwrap.indent(quote, depth * ' ')}" in CODE for depth in (0, 4, 8, 12))


def test_formulas_have_the_numbers_that_the_code_cites() -> None:
    tags = re.findall(r"\\tag\{([\d.]+)\}", PAGE)
    originals = "1.1 1.2 1.4 1.5 1.3.1 1.3 2.1 2.2 2.3 2.4 3.1 3.2 3.3 3.4 4.1 4.2 4.3"
    assert " ".join(tags) == f"{originals} 5.1 5.2 5.3 6.1 7.1 8.1 9.1"
    assert set(re.findall(r"\((\d\.\d)\)", CODE)) <= set(tags)


def test_examples_print_what_the_page_shows() -> None:
    assert doctest.testfile(str(PATH), module_relative=False, encoding="utf-8").failed == 0


def gradient(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities, and the gradient that reaches the scores."""
    softmax = Softmax()
    log = Log()
    loss = NumpyLoss()
    y = softmax.forward(scores)
    loss.get_loss(log.forward(y), one_hot(labels, scores.shape[1]))
    return y, softmax.backward(log.backward(loss.backward()))


def test_gradient_of_the_scores_follows_formula_5_3_on_both_sides_of_epsilon() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 200)
    y, grad = gradient(rng.normal(size=(200, 10)) * 15, labels)
    p = y[np.arange(200), labels]
    r = p / (p + Log().epsilon)
    assert min(r) < 0.01 < 0.99 < max(r)
    np.testing.assert_allclose(grad, r[:, None] * (y - one_hot(labels)) / 200, atol=1e-15)


def test_table_of_probabilities_and_gradients_shows_what_the_operators_compute() -> None:
    rows = re.findall(r"^\| ([\d.]+) \| ([\de.-]+) \| ([\de.-]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 5
    for ahead, p, share in rows:
        y, grad = gradient(np.array([[0, float(ahead)]], np.float32), np.array([0]))
        assert float(p) == pytest.approx(y[0, 0], rel=0.05), ahead
        assert float(share) == pytest.approx(grad[0, 1] / y[0, 1], rel=0.2), ahead


def test_dead_layer_gives_every_weight_a_gradient_of_zero() -> None:
    model = NumpyModel(0)
    model.W1 = -abs(model.W1)
    loss = NumpyLoss()
    x = abs(np.random.default_rng(0).normal(size=(4, 784)))
    assert loss.get_loss(model.forward(x), one_hot([1, 2, 3, 4])) == pytest.approx(np.log(10))
    model.backward(loss.backward())
    assert not any(grad.any() for grad in (model.W1_grad, model.W2_grad, model.W3_grad))
    assert all(grad.any() for grad in (model.log_grad, model.softmax_grad, model.x3_grad))


def test_scores_of_a_new_network_have_the_variance_of_the_page() -> None:
    x = np.random.default_rng(0).normal(size=(200, 784)).astype(np.float32)
    scores = []
    for model in map(NumpyModel, range(20)):
        model.forward(x)
        scores.append(model.matmul_3.memory["y"])
    assert np.mean(np.square(scores)) == pytest.approx(1 / 108, rel=0.2)
    model.W1, model.W2, model.W3 = (W * len(W) ** 0.5 for W in (model.W1, model.W2, model.W3))
    model.forward(x)
    np.testing.assert_allclose(model.matmul_3.memory["y"], 3584 * scores[-1], rtol=1e-3, atol=0.01)
