"""The report: what it quotes is what the code says, and what it derives and claims is so."""

import doctest
import inspect
import re

import numpy as np
import pytest

import numpy_fnn
import numpy_mnist
from docs import experiments
from numpy_fnn import Log, NumpyLoss, NumpyModel, Softmax
from utils import one_hot

CODE = [inspect.getsource(module) for module in (numpy_fnn, numpy_mnist)]
REPORT = experiments.REPORT.read_text(encoding="utf-8")
DERIVATIONS = experiments.REPORT.with_name(experiments.DERIVATIONS).read_text(encoding="utf-8")
TAGS = re.findall(r"\\tag\{([\d.]+)\}", DERIVATIONS)


def test_quoted_code_is_the_code() -> None:
    quotes = re.findall(r"```python\n(.*?)```", DERIVATIONS, re.DOTALL)
    lines = [[line.strip() for line in code.splitlines()] for code in CODE]
    assert len(quotes) == 14
    for quote in quotes:
        expected = [line.strip() for line in quote.splitlines()]
        count = len(expected)
        assert any(code[i : i + count] == expected for code in lines for i in range(len(code))), quote


def test_every_formula_that_the_code_cites_is_in_the_derivations() -> None:
    fnn, mnist = (set(re.findall(r"\((\d\.\d)\)", code)) for code in CODE)
    assert fnn >= {"1.1", "1.4", "1.5", "2.1", "2.4", "3.1", "3.4", "4.1", "4.3", "5.1", "5.2", "6.1", "7.1", "9.1"}
    assert mnist >= {"8.1"}
    assert fnn | mnist <= set(TAGS)


def test_every_number_of_the_courses_report_has_its_counterpart() -> None:
    courses = "1.1 1.2 1.3.1 1.3 1.4 1.5 2.1 2.2 2.3 2.4 3.1 3.2 3.3 3.4 4.1 4.2 4.3"
    assert " ".join(TAGS) == f"{courses} 5.1 5.2 5.3 6.1 7.1 8.1 9.1"


def test_vec_on_numbers() -> None:
    (example,) = re.findall(r"```pycon\n(.*?)```", DERIVATIONS, re.DOTALL)
    test = doctest.DocTestParser().get_doctest(example, {}, "report", None, 0)
    assert doctest.DocTestRunner().run(test) == (0, 7)


def test_every_picture_of_the_report_is_there_and_shown() -> None:
    shown = set(re.findall(r"\(figures/([^)]+)\)", REPORT))
    assert shown | {"loss.png"} == {path.name for path in experiments.FIGURES.iterdir()}


def test_links_into_the_report_have_their_heading() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", REPORT, re.M)
    }
    assert (links := set(re.findall(r"\]\(report.md#([^)]+)\)", DERIVATIONS)))
    assert links <= headings


def test_the_report_is_refreshed() -> None:
    sections = re.findall(r"<!-- begin ([^>]*) -->\n(.*?)<!-- end \1 -->", DERIVATIONS + REPORT, re.DOTALL)
    assert len(sections) == (DERIVATIONS + REPORT).count("<!-- begin") == 12
    assert all(content.strip() for _, content in sections)
    assert "of 20 seeds are" in REPORT


def test_neither_this_lab_nor_exact_cross_entropy_lost_a_run() -> None:
    ended = dict(re.findall(r"^\| (this lab|exact cross-entropy) \| (\d+ \| .*?) \| [\d.]+% to", REPORT, re.M))
    assert [row.split(" | ")[-2:] for row in ended.values()] == [["0", "0"]] * 2  # at chance, in NaN


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_epsilon_clips_the_gradient_that_reaches_the_scores(dtype: str) -> None:
    rng = np.random.default_rng(0)
    scores, labels = (rng.normal(size=(200, 10)) * 15).astype(dtype), rng.integers(0, 10, 200)
    softmax, log, loss = Softmax(), Log(), NumpyLoss()
    y = softmax.forward(scores)
    loss.get_loss(log.forward(y), one_hot(labels))
    p = y[np.arange(200), labels].astype(float)
    r = p / (p + 1e-12)
    assert min(r) < 0.01 < 0.99 < max(r)  # (5.3) is tried on both sides of epsilon
    expected = r[:, None] * (y - one_hot(labels)) / 200
    np.testing.assert_allclose(
        softmax.backward(log.backward(loss.backward())),
        expected,
        rtol=1e-5,
        atol=1e-9 if dtype == "float32" else 1e-15,
    )


def test_a_new_networks_scores_have_a_variance_of_about_1_in_108() -> None:
    x = np.random.default_rng(0).normal(size=(200, 784)).astype(np.float32)
    models = [NumpyModel(seed) for seed in range(20)]
    for model in models:
        model.forward(x)
    variance = np.mean([np.mean(model.matmul_3.memory["y"] ** 2) for model in models])
    assert variance == pytest.approx(1 / 108, rel=0.2)
    assert 28 * 16 * 8 == 3584  # what ±1 in place of ±1/√d multiplies the scores by


def test_the_steps_of_an_epoch() -> None:
    batches = list(numpy_mnist.mini_batch((np.zeros((60000, 1)), np.zeros(60000)), 128, 0))
    assert (len(batches), len(batches[0][0]), len(batches[-1][0])) == (469, 128, 96)
