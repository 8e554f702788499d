"""The report: runs as the lab trains them, the rule, and what tables and pictures make of made-up runs."""

import inspect
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import pytest
import threadpoolctl
from scipy import special, stats

import numpy_mnist
from docs import judge, report, runs
from docs.report import BY_FORMS, DOUBLED, EXPERIMENTS, FAST, IN_BURST, NUDGED, ORIGINAL, REPLACED
from docs.runs import AROUND, FORMS, Job, Run, Setting, follow_burst, start, train_run
from numpy_fnn import Log, NumpyLoss, NumpyModel
from utils import Dataset, load_dataset, one_hot

pytestmark = pytest.mark.pages

PAGE = report.PAGE.read_text(encoding="utf-8")
ROOT = report.PAGE.parents[1]
MARK = re.compile("(<!-- (?!end)(.*?) -->)(.*?)(?=<!-- end -->)", re.DOTALL)
SHORT = Setting(2, 10, 0.1)
SEEDS = 9  # of which the 2nd and the 8th bound the interval


@pytest.fixture
def small(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setattr(runs, "CACHE", tmp_path / "cache")
    return load_dataset("MNIST", str(data_dir))


def test_a_run_is_what_the_command_prints(
    small: Dataset, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--epoch-number=2", "--batch-size=10", "--seed=3", f"--plot={data_dir}/loss.png"]
    assert numpy_mnist.main([*options, f"--data-dir={data_dir}"]) == 0
    printed = re.findall(r"Accuracy: (\S+)", capsys.readouterr().out)
    assert printed == [f"{accuracy:.4f}" for accuracy in train_run(small, SHORT, 3).accuracies]


def test_a_run_that_ends_in_nan_keeps_what_was_before(small: Dataset) -> None:
    run = train_run(small, Setting(5, 10, 1e4, "no shift and G / X"), 0)
    finite = np.isfinite(run.losses)
    assert 0 < finite.sum() < len(run.losses) == 15
    assert finite[: finite.sum()].all()
    assert np.isfinite(run.accuracies).sum() == finite.sum() // 3


def test_a_nudge_changes_a_last_bit_and_replacement_the_shuffles() -> None:
    settings = (SHORT, SHORT._replace(nudged=True), SHORT._replace(replacement=True))
    (model, _), (nudged, _), (other, replacing) = (start(setting, 0) for setting in settings)
    assert np.count_nonzero(model.W1 != nudged.W1) == 1
    np.testing.assert_allclose(nudged.W1, model.W1, atol=1e-8)
    assert np.array_equal(model.W1, other.W1)
    order = replacing.permutation(100)
    assert len(order) == 100
    assert len(set(order)) < 80
    assert set(order) <= set(range(100))


def gradient(forms: str, ahead: float) -> tuple[float, np.ndarray]:
    """Return the loss and the gradient that reaches the scores where a wrong class is `ahead` of the true one."""
    operators, loss = FORMS[forms](), NumpyLoss()
    with np.errstate(all="ignore"):
        scores = np.array([[0, ahead, -1]], np.float32)
        value = loss.get_loss(
            operators["log"].forward(operators["softmax"].forward(scores)), one_hot([0], 3)
        )
        return value, operators["softmax"].backward(operators["log"].backward(loss.backward()))[0]


def test_the_forms_differ_as_they_are_named_and_agree_where_nothing_is_extreme() -> None:
    for forms in FORMS:
        (loss, grad), (expected_loss, expected_grad) = gradient(forms, 3), gradient("this lab", 3)
        assert loss == pytest.approx(expected_loss, rel=1e-6)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-5)
    assert [bool(np.isnan(gradient(forms, 110)[0])) for forms in FORMS] == [
        False,
        False,
        True,
        False,
        True,
    ]
    assert [np.isfinite(gradient(forms, 110)[1]).all() for forms in FORMS] == [
        True,
        True,
        False,
        False,
        False,
    ]
    np.testing.assert_allclose(
        [gradient(forms, 30)[1][1] for forms in FORMS], [0.0856, 1, 0.0856, 1, 1], atol=1e-3
    )
    assert gradient("exact cross-entropy", 60)[0] == pytest.approx(60)


def test_a_burst_goes_on_from_the_run_with_its_batches(
    small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "AROUND", (2, 5))
    course, accuracy = follow_burst(small, Setting(5, 10, 0.01), 1, 6)  # steps 4 to 10 of 15
    losses = train_run(small, Setting(5, 10, 0.01), 1).losses
    np.testing.assert_allclose(course[:, 0], losses[4:11], rtol=1e-3)  # no image is near epsilon
    assert 0 <= accuracy <= 1
    lab, exact, unshifted = (
        follow_burst(small, Setting(5, 10, 1e3, forms), 1, 3)[0] for forms in list(FORMS)[:3]
    )
    assert (
        exact[0, 0] == lab[0, 0]
    )  # step 1 was reached with this lab's forms, and the next with others
    assert exact[1, 0] != lab[1, 0]
    assert len(unshifted) < 7
    assert np.isfinite(unshifted).all()


def test_a_step_records_true_loss_share_and_norm() -> None:
    model = NumpyModel(0)
    model.W3 *= 2000
    x, labels = (
        np.random.default_rng(0).normal(size=(20, 784)).astype(np.float32),
        np.arange(20) % 10,
    )
    true, share, norm = runs.step(model, x, labels, 0.0)
    log_p = special.log_softmax(model.matmul_3.memory["y"].astype(float), axis=1)[
        np.arange(20), labels
    ]
    assert true == pytest.approx(-log_p.mean())
    assert share == np.mean(log_p < np.log(1e-12)) > 0.2
    grads = [grad.ravel() for grad in (model.W1_grad, model.W2_grad, model.W3_grad)]
    assert norm == pytest.approx(np.linalg.norm(np.concatenate(grads).astype(float)))


def test_what_is_kept_counts_for_the_same_code_machine_and_data(
    small: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job(SHORT, 0), Job(SHORT, 1), Job(SHORT, 0, 3)]
    first = runs.gather(jobs, small)
    assert re.search(
        r"6/6 \[\d+:\d+<\d+:\d+", capsys.readouterr().err
    )  # epochs done, time gone and left
    np.testing.assert_allclose(first[1].losses, train_run(small, SHORT, 1).losses, rtol=1e-4)
    monkeypatch.setattr(joblib, "Parallel", lambda **_: pytest.fail("trains again"))
    assert np.array_equal(runs.gather(jobs[::-1], small)[-1].losses, first[0].losses)

    def check_trained_again(job: Job = jobs[0]) -> None:
        with pytest.raises(pytest.fail.Exception):
            runs.gather([job], small)

    check_trained_again(Job(SHORT._replace(nudged=True), 0))
    for change in ("code", "machine"):
        with monkeypatch.context() as changed:
            changed.setattr(runs, change, lambda: "another")
            check_trained_again()
    for array in (*small.train, *small.test):  # one after the other, each changed back
        kept, array[0] = array[0].copy(), array[1]
        check_trained_again()
        array[0] = kept
    runs.gather(jobs, small)


def test_the_code_of_a_run_is_without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    code, getsource = runs.code(), inspect.getsource
    words = [('."""', '. More."""'), ("Error(", 'Error("More"'), ("  # ", "  # More ")]
    parts = [
        (part, f"{part}_")
        for part in ("class Softmax", "class WithReplacement", "def mini_batch", "def one_hot")
    ]
    for old, new in (*words, *parts):
        monkeypatch.setattr(
            inspect, "getsource", lambda part, old=old, new=new: getsource(part).replace(old, new)
        )
        assert (runs.code() == code) == ((old, new) in words), new


def threads_of_a_job(job: Job, dataset: Dataset, path: Path) -> int:
    """Return how many threads NumPy's products have, in place of runs.perform."""
    joblib.dump([library["num_threads"] for library in threadpoolctl.threadpool_info()], path)
    return 1


def test_a_run_has_one_thread(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "perform", threads_of_a_job)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    (threads,) = runs.gather([Job(SHORT, 7)], small)
    assert set(threads) <= {1}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to interrupt")
def test_an_interrupt_keeps_the_runs_that_ended(data_dir: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    code = f"import pathlib, sys\nfrom docs import report, runs\nruns.CACHE = pathlib.Path({str(cache)!r})\n"
    code += f"sys.exit(report.main({['--data-dir', str(data_dir), '--seeds', '500']!r}))"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while (
        len(list(cache.glob("*.pickle"))) < 3
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to workers, too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "Interrupted; the runs that ended are kept."
    assert len([joblib.load(path) for path in cache.glob("*.pickle")]) >= 3


def test_data_that_can_not_be_had_is_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main(["--data-dir", "/dev/null/none"])
    assert "/dev/null/none" in capsys.readouterr().err


def test_the_interval_holds_the_median_in_95_percent() -> None:
    assert (judge.rank(5), judge.rank(20)) == (0, 6)
    for seeds in (5, 9, 20, 40):
        values = np.random.default_rng(0).normal(size=seeds)
        low, high, *_ = judge.verdict(values, judge.ABOVE_0)
        bounds = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
        assert (low, high) == (
            np.nan_to_num(bounds.low, nan=-math.inf),
            np.nan_to_num(bounds.high, nan=math.inf),
        )


def test_a_verdict_is_told_by_the_6th_and_15th_of_20() -> None:
    for below, words in (
        (5, "as concluded"),
        (6, "not shown"),
        (14, "not shown"),
        (15, "the opposite"),
    ):
        values = np.repeat([1.5, 0.5], [20 - below, below])
        for verdict in (
            judge.verdict(values, judge.ABOVE_1),
            judge.verdict(values - 1, judge.ABOVE_0),
        ):
            assert verdict[2:] == (f"{20 - below} of 20", words)


def test_differences_within_the_margin_are_alike() -> None:
    assert pytest.approx(0.0028) == judge.MARGIN
    assert judge.verdict(np.linspace(-0.0027, 0.0027, 20), judge.ALIKE)[2:] == (
        "20 of 20",
        "as concluded",
    )
    assert judge.verdict(np.linspace(0.001, 0.005, 20), judge.ALIKE)[3] == "not shown"
    for apart in (0.003, -0.003):
        assert judge.verdict(np.full(20, apart), judge.ALIKE)[2:] == ("0 of 20", "the opposite")


def test_bursts_and_ends() -> None:
    losses = np.array([2.4, 3.0, 0.4, 2.2, 2.4, 9.0])  # 3.0 comes before anything is learned
    assert (judge.burst_step(losses), judge.burst_step(losses[:4])) == (4, 0)
    for accuracy, words in ((0.9, "burst, not lost"), (0.19, "at chance"), (np.nan, "NaN")):
        assert judge.outcome(Run(losses, np.array([0.9, accuracy]))) == words
    assert judge.outcome(Run(losses[:4], np.array([0.3]))) == "no burst"


def made_run(setting: Setting, seed: int) -> Run:
    """Return a run that tells setting and seed, 100 or 50 steps an epoch; the means of seeds are not their medians."""
    rng, steps = (
        np.random.default_rng([seed, *repr(setting).encode()]),
        setting.epochs * 12800 // setting.batch_size,
    )
    losses = 2.3 * np.exp(-np.arange(steps) / (50 + seed**2)) * rng.normal(1, 0.1, steps) + 0.001
    accuracies = rng.uniform(0.94, 0.98, setting.epochs) - 0.0004 * seed**2
    if setting == EXPERIMENTS[4] and seed in (2, 5):
        losses[300] = 30.0 / seed
    if setting == EXPERIMENTS[3] and seed == 1:
        losses[750] = 5.0  # after the epochs that the rates are compared in
    if setting.forms == "no shift and G / X" and seed % 2:
        losses[203:], accuracies[4:] = np.nan, np.nan
    if setting == FAST[0]:
        losses[:], accuracies[:] = 25.0 + seed, 0.098
    return Run(losses, accuracies)


def made(setting: Setting, seeds: int = SEEDS) -> judge.Result:
    return judge.stack("", setting, [made_run(setting, seed) for seed in range(seeds)])


def made_course(job: Job) -> tuple[np.ndarray, float]:
    """Return what becomes of a burst, with each column unlike the others."""
    course = np.random.default_rng(len(job.setting.forms)).uniform(
        (1, 0, 10), (5, 1, 20), (sum(AROUND), 3)
    )
    return (course[:40] if job.setting.forms == IN_BURST[2] else course), 0.93


class Refreshed(NamedTuple):
    """What one call left: the page, what stands between its marks, the axes of its figures by name, and the jobs."""

    page: str
    contents: dict[str, str]
    axes: dict[str, Any]
    jobs: list[Job]

    def rows(self, name: str) -> list[list[str]]:
        """Return the cells of the table between the marks of `name`."""
        lines = self.contents[name].strip().splitlines()
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Refreshed:
    page, axes, jobs = tmp_path_factory.mktemp("docs") / "report.md", {}, []
    page.write_text(MARK.sub(r"\1", PAGE), encoding="utf-8")

    def gather(asked: list[Job], _: Dataset) -> list[Any]:
        jobs.extend(asked)
        return [made_course(job) if job.burst else made_run(job.setting, job.seed) for job in asked]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "PAGE", page)
        patched.setattr(report, "gather", gather)
        patched.setattr(report, "load_dataset", lambda *_: None)
        patched.setattr(
            matplotlib.figure.Figure,
            "savefig",
            lambda figure, path: axes.update({path.name: figure.axes}),
        )
        assert report.main(["--seeds", str(SEEDS)]) == 0
    plt.close("all")
    text = page.read_text(encoding="utf-8")
    return Refreshed(text, {name: content for _, name, content in MARK.findall(text)}, axes, jobs)


def test_too_few_seeds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main(["--seeds", "1"])
    assert "--seeds is 1, expected 2 or more" in capsys.readouterr().err


def test_what_is_measured_of_a_run() -> None:
    losses = np.array([np.linspace(1, 0, 1001)[:-1], np.full(1000, 0.2)])
    losses[1, ::2] += 0.1
    result = judge.stack("", Setting(10, 1, 0.1), [Run(row, np.zeros(10)) for row in losses])
    assert (result.steps, judge.steps_until(result).tolist()) == (100, [901, 1000])
    np.testing.assert_allclose(result.averages[:, 500], [0.5, 0.25], atol=0.001)
    np.testing.assert_allclose(judge.fluctuation(result, 3, 4), [0, 0.05], atol=0.001)
    losses[0, 877:920:2] += 0.02  # while the average falls from 0.125 to 0.08
    result = judge.stack("", Setting(10, 1, 0.1), [Run(losses[0], np.zeros(10))])
    assert judge.fluctuation_at_level(result) == pytest.approx(0.01, rel=0.1)


def test_measured_is_what_the_words_say(refreshed: Refreshed) -> None:
    two, three, four, doubled = map(made, (*EXPERIMENTS.values(), DOUBLED))
    a2, a3, a4, a5 = (result.accuracies.T for result in (two, three, four, doubled))
    until, moves, at_level = judge.steps_until, judge.fluctuation, judge.fluctuation_at_level
    losses = two.losses.reshape(SEEDS, 30, 100).mean(axis=2).T
    expected = {
        "accuracy, after epoch 9 less after epoch 2": a2[9] - a2[2],
        "mean accuracy, epochs 20 to 29 less epochs 10 to 19": a2[20:].mean(axis=0)
        - a2[10:20].mean(axis=0),
        "epochs from 11 to 29 in which the accuracy falls, of 19": (a2[11:] < a2[10:-1]).sum(
            axis=0
        ),
        "mean loss, epoch 2 less epoch 9": losses[2] - losses[9],
        "fluctuation, epoch 2 less epoch 9": moves(two, 2, 2) - moves(two, 9, 9),
        "accuracy after epoch 0: 2 less 3": a2[0] - a3[0],
        "epochs until the loss is 0.1: 3 less 2": until(three) / 50 - until(two) / 100,
        "accuracy after epoch 9: 2 less 3": a2[9] - a3[9],
        "accuracy: 2 after epoch 9 less 3 after epoch 19": a2[9] - a3[19],
        "accuracy after epoch 9: 2 less 256 at 0.2": a2[9] - a5[9],
        "fluctuation at a loss of 0.1: 2 over 3": at_level(two) / at_level(three),
        "fluctuation in epochs 0 to 9: 2 over 3": moves(two, 0, 9) / moves(three, 0, 9),
        "fluctuation in epochs 0 to 5: 2 over 3": moves(two, 0, 5) / moves(three, 0, 5),
        "fluctuation in epochs 6 to 9: 2 over 3": moves(two, 6, 9) / moves(three, 6, 9),
        "steps until the loss is 0.1: 3 less 4": until(three) - until(four),
        "fluctuation at a loss of 0.1: 4 over 3": at_level(four) / at_level(three),
        "lowest accuracy after epochs 5 to 9: 3 less 4": a3[5:10].min(axis=0)
        - a4[5:10].min(axis=0),
        "accuracy after epoch 0: 4 less 3": a4[0] - a3[0],
        "accuracy after epoch 2: 4 less 3": a4[2] - a3[2],
    }
    rows = [row for letter in "abcdef" for row in refreshed.rows(f"conclusion {letter}")[2:]]
    assert [row[0].replace("experiment ", "") for row in rows] == list(expected)
    for row, values in zip(rows, expected.values(), strict=True):
        text, concluded, median, interval, count, verdict = row
        low, *_, high = sorted(values)[1:-1]
        numbers = [float(number) for number in (median, *interval.split(" to "))]
        np.testing.assert_allclose(
            numbers, [np.median(values), low, high], rtol=1e-3, atol=6e-5, err_msg=text
        )
        bounds = {
            "above 0": (0, math.inf),
            "above 1": (1, math.inf),
            "within ±0.0028": (-0.0028, 0.0028),
        }[concluded]
        assert (concluded == "above 1") == ("over" in text)
        assert (count, verdict) == judge.verdict(values, bounds)[2:]


def test_accuracies_are_bold_outside_the_range_of_the_seeds(refreshed: Refreshed) -> None:
    head, _, *rows, ended = refreshed.rows("accuracies")
    for number, original in ORIGINAL.items():
        values = made(EXPERIMENTS[max(number, 2)]).accuracies.round(4).T[:10]
        cells = [row[head.index(f"original {number}")] for row in rows]
        for accuracy, row, cell in zip(original, values, cells, strict=False):
            assert cell == (
                f"{accuracy:.4f}" if min(row) <= accuracy <= max(row) else f"**{accuracy:.4f}**"
            )
        if number > 1:
            expected = [
                f"{np.median(row):.4f} ({min(row):.4f} to {max(row):.4f})" for row in values
            ]
            assert [row[head.index(f"experiment {number}")] for row in rows] == expected
    bold = str(rows).count("**") // 2
    assert 0 < bold < 33
    assert refreshed.contents["outside"] == f"{bold} are outside; {33 * 2 / 10}"
    assert ended[head.index("original 4")] == "4 of 9"


def test_ends_are_counted_with_exact_intervals(refreshed: Refreshed) -> None:
    rates, forms = (
        {row[0]: row[1:] for row in refreshed.rows(name)[2:]} for name in ("rates", "forms")
    )
    assert list(rates) == ["0.1", "0.2", "0.5", "0.7", "1.0"]
    assert rates["0.1"][:6] == ["9", "9", "0", "0", "0", "0% to 34%"]
    assert rates["0.5"][:6] == ["9", "7", "2", "0", "0", "0% to 34%"]
    assert rates["1.0"] == ["3", "0", "0", "3", "0", "29% to 100%", "0.0980", "26"]
    assert list(forms) == [
        *(f"{name}, 0.5" for name in FORMS),
        "this lab, 1.0",
        "exact cross-entropy, 1.0",
    ]
    assert forms["this lab, 0.5"] == rates["0.5"]
    assert forms["no shift, 0.5"][0] == "5"
    calm = np.median([made_run(BY_FORMS[-1], seed).accuracies[-1] for seed in range(0, SEEDS, 2)])
    assert forms["no shift and G / X, 0.5"][:7] == [
        "9",
        "5",
        "0",
        "0",
        "4",
        "14% to 79%",
        f"{calm:.4f}",
    ]


def test_numbers_in_sentences(refreshed: Refreshed) -> None:
    said = refreshed.contents
    assert (said["seeds"], said["ranks"], said["burst"]) == ("9", "2 and 8", "seed 2, step 300")
    assert said["missing"] == f"{19 * 2 * 10 / 512:.1f} of 19"
    for name, seeds in (("permutation", made(EXPERIMENTS[2])), ("integers", made(REPLACED, 5))):
        means = (
            seeds.losses[:, 320:980].reshape(len(seeds.losses), -1, 20).mean(axis=2)
        )  # of 20 steps, from 80 before
        falls = [
            means[:, i + 4 : i + 8].sum(axis=1) / means[:, i : i + 4].sum(axis=1) - 1
            for i in range(0, 30, 5)
        ]
        assert said[name] == ", ".join(f"{np.median(fall):+.0%}" for fall in falls)
    for number, setting in NUDGED.items():
        moved = abs(made(EXPERIMENTS[number], 3).accuracies[:, :10] - made(setting, 3).accuracies)
        assert said[f"nudged {number}"] == f"{moved.max():.4f}"


def test_runs_are_trained_seed_by_seed_and_the_highest_burst_followed(refreshed: Refreshed) -> None:
    seeds = [job.seed for job in refreshed.jobs[:-3]]
    assert seeds == sorted(seeds)
    assert refreshed.jobs[-3:] == [
        Job(EXPERIMENTS[4]._replace(forms=forms), 2, 300) for forms in IN_BURST
    ]


def check_lines(
    ax: Any, expected: Sequence[np.ndarray], ends: Sequence[float] | np.ndarray, unit: str
) -> None:
    """Check that an axis shows thick the medians of each of `expected`, and thin, if any, its rows, up to `ends`."""
    thin = [line.get_ydata() for line in ax.lines if line.get_linewidth() == 0.5]
    assert not thin or np.array_equal(np.concatenate(thin), np.concatenate(expected, axis=None))
    thick = [
        line
        for line in ax.lines
        if line.get_linewidth() != 0.5 and not line.get_label().startswith("original")
    ]
    for line, rows, end in zip(thick, expected, ends, strict=True):
        assert np.array_equal(line.get_ydata(), np.median(rows, axis=0))
        assert line.get_xdata()[-1] == pytest.approx(end)
    assert ax.get_xlabel() == unit


def test_the_experiments(refreshed: Refreshed) -> None:
    axes = refreshed.axes["experiments.png"]
    for (number, setting), upper, lower in zip(
        EXPERIMENTS.items(), axes[:3], axes[3:], strict=True
    ):
        result = made(setting)
        check_lines(upper, [result.averages[:, :-25]], [setting.epochs - 26 / result.steps], "")
        check_lines(lower, [result.accuracies], [setting.epochs], "epochs of training")
        assert (upper.get_yscale(), lower.get_yscale()) == ("log", "logit")
        marks = [tuple(line.get_ydata()) for line in lower.lines if line.get_marker() in "sD"]
        assert marks == ([ORIGINAL[1], ORIGINAL[2]] if number == 2 else [ORIGINAL[number]])
        assert all(line.get_xdata()[0] == 1 for line in lower.lines)


def test_the_batches(refreshed: Refreshed) -> None:
    results = [made(setting) for setting in (EXPERIMENTS[2], EXPERIMENTS[3], DOUBLED)]
    rows = [result.averages[:, : 10 * result.steps - 25] for result in results]
    left, right = refreshed.axes["batches.png"]
    for ax, label, pers in (
        (left, "epochs of training", (100, 50, 50)),
        (right, "steps", (1, 1, 1)),
    ):
        check_lines(ax, rows, np.divide((974, 474, 474), pers), label)
        for text, result, per in zip(ax.get_legend().get_texts(), results, pers, strict=True):
            setting, after = result.setting, np.median(judge.steps_until(result)) / per
            assert (
                text.get_text()
                == f"{setting[1]} at {setting[2]}: loss 0.1 after {after:.4g} {label.split()[0]}"
            )


def test_the_stairs(refreshed: Refreshed) -> None:
    (ax,) = refreshed.axes["stairs.png"]
    rows = [result.averages[:, 100:975] for result in (made(EXPERIMENTS[2]), made(REPLACED, 5))]
    check_lines(ax, rows, [9.74, 9.74], "epochs of training")
    assert [line.get_label() for line in ax.lines] == ["permutation", "integers"]


def test_the_burst(refreshed: Refreshed) -> None:
    axes = refreshed.axes["burst.png"]
    for i, (ax, words) in enumerate(
        zip(axes, ("true loss", "share of images with p < ε", "norm"), strict=True)
    ):
        assert words in ax.get_ylabel()
        assert ax.get_xlabel().startswith("step")
        for line, forms in zip(ax.lines, IN_BURST, strict=False):
            course = made_course(Job(EXPERIMENTS[4]._replace(forms=forms), 0, 1))[0]
            assert line.get_label().startswith(f"{forms}: ")
            assert np.array_equal(line.get_ydata(), course[:140, i])
            assert line.get_xdata()[0] == -AROUND[0]
            assert (line.get_marker() == "x") == ("NaN" in line.get_label()) == (len(course) == 40)
    heights = {text.get_text(): text.get_position()[1] for text in axes[0].texts}
    assert heights == {
        "ln 10": pytest.approx(np.log(10)),
        "−ln ε": pytest.approx(-np.log(Log().epsilon)),
    }
    assert [line.get_ydata()[0] for line in axes[0].lines[3:]] == list(heights.values())


def test_the_page_is_filled_in_and_keeps_what_is_written_by_hand(refreshed: Refreshed) -> None:
    assert MARK.sub(r"\1", refreshed.page) == MARK.sub(r"\1", PAGE)
    assert all(content.strip() for content in refreshed.contents.values())
    assert "<!-- seeds -->20<!-- end -->" in PAGE
    assert set(re.findall(r"\(figures/([^)]+)\)", PAGE)) == set(refreshed.axes)
    assert not re.search(
        r"^[ \d.-]*<!--.*--> *[^\s<]", PAGE, re.MULTILINE
    )  # Markdown would show such a line as it is


def test_the_readmes_commands_are_the_experiments() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(
        r"numpy_mnist.py --epoch-number (\S+) --batch-size (\S+) --learning-rate (\S+)", readme
    )
    settings = [EXPERIMENTS[max(number, 2)] for number in ORIGINAL]
    expected = [
        (len(original), *setting[1:3])
        for original, setting in zip(ORIGINAL.values(), settings, strict=True)
    ]
    assert commands == [tuple(map(str, each)) for each in expected]
