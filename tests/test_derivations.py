"""The derivations: the code that they quote is the code, the numbers that they give are those of the operators."""

import doctest
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import numpy_fnn
import numpy_mnist
from numpy_fnn import Log, NumpyLoss, NumpyModel, Softmax
from utils import one_hot

PAGE = Path(__file__).parents[1].joinpath("docs", "derivations.md").read_text(encoding="utf-8")
CODE = [inspect.getsource(module) for module in (numpy_fnn, numpy_mnist)]
TAGS = re.findall(r"\\tag\{([\d.]+)\}", PAGE)


def test_quoted_code_is_the_code() -> None:
    lines = [[line.strip() for line in code.splitlines()] for code in CODE]
    quotes = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert quotes
    for quote in quotes:
        expected = [line.strip() for line in quote.splitlines()]
        count = len(expected)
        assert any(code[i : i + count] == expected for code in lines for i in range(len(code))), quote


def test_every_formula_that_the_code_cites_is_derived() -> None:
    fnn, mnist = (set(re.findall(r"\((\d\.\d)\)", code)) for code in CODE)
    assert fnn >= {"1.1", "1.4", "1.5", "2.1", "2.4", "3.1", "3.4", "4.1", "4.3", "5.1", "5.2", "6.1", "7.1", "9.1"}
    assert mnist >= {"8.1"}
    assert fnn | mnist <= set(TAGS)


def test_every_number_of_the_original_has_its_counterpart() -> None:
    originals = "1.1 1.2 1.3.1 1.3 1.4 1.5 2.1 2.2 2.3 2.4 3.1 3.2 3.3 3.4 4.1 4.2 4.3"
    assert " ".join(TAGS) == f"{originals} 5.1 5.2 5.3 6.1 7.1 8.1 9.1"


def test_vec_on_numbers() -> None:
    (example,) = re.findall(r"```pycon\n(.*?)```", PAGE, re.DOTALL)
    test = doctest.DocTestParser().get_doctest(example, {}, "derivations", None, 0)
    failed, tried = doctest.DocTestRunner().run(test)
    assert failed == 0
    assert tried > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_epsilon_clips_the_gradient_that_reaches_the_scores(dtype: str) -> None:
    rng = np.random.default_rng(0)
    scores, labels = (rng.normal(size=(200, 10)) * 15).astype(dtype), rng.integers(0, 10, 200)
    softmax, log, loss = Softmax(), Log(), NumpyLoss()
    y = softmax.forward(scores)
    loss.get_loss(log.forward(y), one_hot(labels))
    p = y[np.arange(200), labels].astype(float)
    r = p / (p + log.epsilon)
    assert min(r) < 0.01 < 0.99 < max(r)  # (5.3) is tried on both sides of epsilon
    tolerance = 1e-9 if dtype == "float32" else 1e-15
    grad = softmax.backward(log.backward(loss.backward()))
    np.testing.assert_allclose(grad, r[:, None] * (y - one_hot(labels)) / 200, rtol=1e-5, atol=tolerance)


def test_the_table_of_the_clip() -> None:
    rows = re.findall(r"^\| ([\d.]+) \| ([\de.-]+) \| ([\de.-]+) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 5
    for ahead, p, share in rows:
        softmax, log, loss = Softmax(), Log(), NumpyLoss()
        y = softmax.forward(np.array([[0, float(ahead)]], np.float32))
        loss.get_loss(log.forward(y), one_hot([0], 2))
        assert float(p) == pytest.approx(y[0, 0], rel=0.05), ahead
        grad = softmax.backward(log.backward(loss.backward()))[0, 1]
        assert float(share) == pytest.approx(grad / y[0, 1], rel=0.2, abs=1e-4 if float(share) > 0.001 else 0), ahead


def test_a_dead_layer_leaves_no_gradient_for_weights() -> None:
    model, loss, x = NumpyModel(0), NumpyLoss(), abs(np.random.default_rng(0).normal(size=(4, 784)))
    model.W1 = -abs(model.W1)
    assert loss.get_loss(model.forward(x), one_hot([1, 2, 3, 4])) == pytest.approx(np.log(10))
    model.backward(loss.backward())
    assert not any(grad.any() for grad in (model.W1_grad, model.W2_grad, model.W3_grad))
    assert all(grad.any() for grad in (model.log_grad, model.softmax_grad, model.x3_grad))


def test_the_scores_of_a_new_network() -> None:
    x = np.random.default_rng(0).normal(size=(200, 784)).astype(np.float32)
    scores = []
    for seed in range(20):
        model = NumpyModel(seed)
        model.forward(x)
        scores.append(model.matmul_3.memory["y"])
    assert np.mean(np.square(scores)) == pytest.approx(1 / 108, rel=0.2)
    model.W1, model.W2, model.W3 = (W * len(W) ** 0.5 for W in (model.W1, model.W2, model.W3))
    model.forward(x)
    np.testing.assert_allclose(model.matmul_3.memory["y"], 3584 * scores[-1], rtol=1e-3, atol=0.01)


def test_the_steps_of_an_epoch() -> None:
    batches = [len(x) for x, _ in numpy_mnist.mini_batch((np.zeros((60000, 1)), np.zeros(60000)), 128, 0)]
    assert (len(batches), batches[0], batches[-1]) == (469, 128, 96)
