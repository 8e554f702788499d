"""The runs of the report: trained as the lab trains, with the forms they claim, kept under what they depend on."""

import inspect
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

import numpy_mnist
from docs import runs
from docs.runs import BRANCHES, FORMS, Job, LogSoftmax, Setting, start_model, train_branches, train_run, use
from numpy_fnn import NumpyLoss, NumpyModel
from utils import Dataset, load_dataset, one_hot

SHORT = Setting(2, 10, 0.1)


@pytest.fixture
def small(data_dir: Path) -> Dataset:
    return load_dataset("MNIST", str(data_dir))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CACHE", tmp_path / "cache")


@pytest.mark.parametrize("seed", [0, 3])
def test_a_run_is_what_the_command_prints(
    small: Dataset, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    monkeypatch.setattr(numpy_mnist, "plot_curve", lambda *_, **__: None)
    run = train_run(small, SHORT, seed)
    assert len(run.losses) == 6
    options = ["--epoch-number", "2", "--batch-size", "10", "--seed", str(seed), "--data-dir", str(data_dir)]
    assert numpy_mnist.main(options) == 0
    assert run.output in capsys.readouterr().out
    assert run.output.count("Accuracy") == len(run.accuracies) == len(run.train_accuracies) == len(run.seconds) == 2
    assert len(run.weights) == (3 if seed == 0 else 0)
    assert not np.array_equal(run.losses, train_run(small, SHORT, seed + 1).losses)


def test_a_longer_run_begins_as_a_shorter_one(small: Dataset) -> None:
    short, long = train_run(small, SHORT, 0), train_run(small, SHORT._replace(epochs=4), 0)
    assert np.array_equal(long.losses[:6], short.losses)
    assert np.array_equal(long.accuracies[:2], short.accuracies)


def test_a_nudge_changes_one_weight_in_its_last_bit() -> None:
    model, nudged = (start_model(SHORT._replace(nudged=nudge), 0)[0] for nudge in (False, True))
    assert (model.W1 != nudged.W1).sum() == 1
    assert 0 < abs(model.W1 - nudged.W1).max() < 1e-8
    assert np.array_equal(model.W2, nudged.W2)


def gradient(forms: str, ahead: float) -> tuple[float, np.ndarray]:
    """Return the loss and the gradient that reaches the scores where a wrong class is `ahead` of the true one."""
    model, loss = use(NumpyModel(), forms), NumpyLoss()
    with np.errstate(all="ignore"):
        scores = np.array([[0, ahead, -1]], np.float32)
        value = loss.get_loss(model.log.forward(model.softmax.forward(scores)), one_hot([0], 3))
        return value, model.softmax.backward(model.log.backward(loss.backward()))[0]


def test_the_forms_agree_where_nothing_is_extreme() -> None:
    assert tuple(FORMS) == ("this lab", "exact cross-entropy", "no shift", "G / X", "no shift and G / X")
    loss, expected = gradient("this lab", 3)
    for forms in FORMS:
        assert gradient(forms, 3)[0] == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(gradient(forms, 3)[1], expected, rtol=1e-5)


def test_the_forms_differ_as_they_are_named() -> None:
    for forms in FORMS:
        assert np.isfinite(gradient(forms, 80)[1]).all(), forms
        assert np.isfinite(gradient(forms, 110)[1]).all() == (forms in ("this lab", "exact cross-entropy")), forms
    assert [np.isnan(gradient(forms, 110)[0]) for forms in FORMS] == [False, False, True, False, True]
    assert [np.isfinite(gradient(forms, 95)[1]).all() for forms in FORMS] == [True, True, False, False, False]
    shares = [abs(gradient(forms, 30)[1][1]) for forms in FORMS]
    np.testing.assert_allclose(shares, [0.0856, 1, 0.0856, 1, 1], atol=1e-3)


def test_exact_cross_entropy_neither_caps_the_loss_nor_clips_the_gradient() -> None:
    loss, grad = gradient("exact cross-entropy", 60)
    assert loss == pytest.approx(60)
    np.testing.assert_allclose(grad, [-1, 1, 0], atol=1e-6)
    loss, grad = gradient("this lab", 60)
    assert loss == pytest.approx(-np.log(1e-12))
    np.testing.assert_allclose(grad, 0, atol=1e-6)


def test_a_run_that_ends_in_nan_keeps_what_was_before(small: Dataset) -> None:
    run = train_run(small, Setting(5, 10, 1e4, "no shift and G / X"), 0)
    assert len(run.accuracies) == len(run.train_accuracies) == len(run.seconds) < 5
    assert np.isfinite(run.losses).all()


def test_branches_go_on_from_the_run_with_its_batches(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "AROUND", (2, 5))
    setting = Setting(5, 10, 0.01)
    run = train_run(small, setting, 1)
    branches = train_branches(small, setting, 1, 6)  # steps 4 to 10 of 15
    assert tuple(branches) == BRANCHES
    assert np.array_equal(branches["this lab"].course[:, 1], run.losses[4:11])
    for branch in branches.values():
        np.testing.assert_allclose(branch.course[:3], branches["this lab"].course[:3], rtol=1e-3)
        np.testing.assert_allclose(branch.course[:, 0], branch.course[:, 1], rtol=1e-3)  # no image is near epsilon


def test_a_branch_records_true_loss_loss_share_and_norm() -> None:
    model = NumpyModel(0)
    model.W3 *= 2000
    x, labels = np.random.default_rng(0).normal(size=(20, 784)).astype(np.float32), np.arange(20) % 10
    true, recorded, share, norm = runs.step(model, x, labels, 0.0)
    log_p = LogSoftmax().forward(model.matmul_3.memory["y"].astype(float))[np.arange(20), labels]
    assert true == pytest.approx(-log_p.mean())
    assert share == np.mean(log_p < np.log(1e-12)) > 0.2
    assert recorded == pytest.approx(np.minimum(-log_p, -np.log(1e-12)).mean(), rel=0.01)
    assert recorded < 0.9 * true
    squares = [(grad.astype(float) ** 2).sum() for grad in (model.W1_grad, model.W2_grad, model.W3_grad)]
    assert norm == pytest.approx(sum(squares) ** 0.5)


def test_what_is_kept_is_not_trained_again(
    small: Dataset, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job(SHORT, 0), Job(SHORT, 1), Job(SHORT, 0, 3), Job(SHORT._replace(learning_rate=0.2), 0)]
    first = runs.gather(jobs, small, str(data_dir))
    assert "epoch" in capsys.readouterr().err  # the progress bar
    for job, given in zip(jobs[:2], first, strict=False):  # these processes have one thread, this one may have two
        np.testing.assert_allclose(given.losses, train_run(small, SHORT, job.seed).losses, rtol=1e-4)
    assert tuple(first[2]) == BRANCHES
    assert not np.array_equal(first[3].losses, first[0].losses)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: pytest.fail("trains again"))
    again = runs.gather(jobs[::-1], small, str(data_dir))
    assert np.array_equal(again[-1].losses, first[0].losses)
    for change in ("code", "machine"):
        with monkeypatch.context() as changed:
            changed.setattr(runs, change, lambda: "another")
            with pytest.raises(pytest.fail.Exception):
                runs.gather(jobs, small, str(data_dir))
    for other in (Job(SHORT, 2), Job(SHORT._replace(epochs=3), 0), Job(SHORT._replace(nudged=True), 0)):
        with pytest.raises(pytest.fail.Exception):
            runs.gather([other], small, str(data_dir))
    small.train[0][3, 5, 5] += 1
    with pytest.raises(pytest.fail.Exception):
        runs.gather(jobs, small, str(data_dir))


def test_code_is_that_of_the_training_without_comments_and_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {"train": "def train():\n    return 1\n"}
    original = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda part: sources.get(getattr(part, "__name__", "")) or original(part))
    code = runs.code()
    sources["train"] = 'def train():\n    """Say more."""\n    return 1  # and why\n'
    documented = runs.code()
    sources["train"] = "def train():\n    return 2\n"
    assert runs.code() != code
    sources["train"] = 'def train():\n    """Say less."""\n    return 1\n'
    assert runs.code() == documented
    for name in ("class Softmax", "def mini_batch", "def evaluate", "def one_hot", "class Unshifted"):
        kind, word = name.split()
        assert f"{'ClassDef' if kind == 'class' else 'FunctionDef'}(name='{word}'" in code
