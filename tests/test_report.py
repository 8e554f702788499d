"""The report's runs train as the lab does, and its numbers and pictures follow from these runs."""

import re
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import threadpoolctl
from matplotlib.figure import Figure

import numpy_mnist
from docs import report, runs
from docs.report import MARK, Runs
from docs.runs import SETTINGS, Setting, train_run
from numpy_fnn import Log, NumpyModel, Softmax
from utils import Dataset, load_dataset, moving_average

pytestmark = pytest.mark.pages

PAGE = report.PAGE.read_text(encoding="utf-8")


def test_train_run_repeats_the_accuracies_that_the_command_prints(
    digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--dataset digits --epoch-number 2 --batch-size 500 --learning-rate 0.05 --seed 3"
    numpy_mnist.main([*options.split(), "--plot", str(tmp_path / "loss.png")])
    printed = re.findall(r"Accuracy: (\S+)", capsys.readouterr().out)
    _, accuracies = train_run(digits, Setting(2, 500, 0.05), 3)
    assert printed == [f"{accuracy:.4f}" for accuracy in accuracies]


def test_train_run_keeps_the_results_before_a_nan_loss(data_dir: Path) -> None:
    small = load_dataset("MNIST", str(data_dir))
    losses, accuracies = train_run(small, Setting(5, 10, 1e4, original=True), 0)
    steps = np.isfinite(losses).sum()
    assert 0 < steps < len(losses) == 15
    assert np.isfinite(accuracies).tolist() == [step <= steps for step in (3, 6, 9, 12, 15)]


def start(setting: Setting) -> NumpyModel:
    """Return the model with which a run starts."""
    with mock.patch.object(runs, "train") as train:
        train_run(mock.MagicMock(), setting, 0)
    return train.call_args.args[0]


def test_nudge_changes_one_weight_in_its_last_bit() -> None:
    weights = start(Setting(1, 1, 0.1)).W1
    nudged = start(Setting(1, 1, 0.1, nudged=True)).W1
    assert abs(weights.view(np.int32) - nudged.view(np.int32)).sum() == 1


def test_original_formulas_give_nan_when_those_of_the_lab_stay_finite() -> None:
    model = start(Setting(1, 1, 0.1, original=True))
    scores = np.array([[0, 3, -1]], np.float32)
    half = np.full((1, 3), 0.5, np.float32)
    for softmax, log, finite in ((Softmax(), Log(), True), (model.softmax, model.log, False)):
        np.testing.assert_allclose(softmax.forward(scores), [[0.047, 0.936, 0.017]], atol=0.001)
        log.forward(half)
        np.testing.assert_allclose(log.backward(half), [[1, 1, 1]])
        with np.errstate(all="ignore"):
            assert np.isfinite(softmax.forward(30 * scores)).all() == finite
            log.forward(0 * half)
            assert np.isfinite(log.backward(0 * half)).all() == finite


def describe(_: Dataset, setting: Setting, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the seed, the setting and each library's number of threads, instead of training."""
    threads = [library["num_threads"] for library in threadpoolctl.threadpool_info()]
    return np.array([seed, *setting]), np.array(threads)


def test_run_has_one_thread_and_one_column(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FILE", data_dir / "runs.npz")
    monkeypatch.setattr(runs, "train_run", describe)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    runs.main(["--data-dir", str(data_dir), "--seeds", "3"])
    file = np.load(runs.FILE)
    for name, setting in SETTINGS.items():
        assert file[f"{name}: losses"].T.tolist() == [[seed, *setting] for seed in range(3)]
        assert (file[f"{name}: accuracies"] == 1).all()


def test_experiments_and_original_accuracies_are_the_published_ones() -> None:
    published = (
        "128 0.1 .9485 .9647 .9715",
        "128 0.1 .9496 .9600 .9675 .9761 .9755 .9775 .9791 .9795 .9781 .9810",
        "256 0.1 .9253 .9477 .9522 .9651 .9680 .9731 .9755 .9766 .9766 .9790",
        "256 0.5 .9505 .9675 .9706 .9471 .9737 .8980 .9757 .9573 .9770 .9792",
    )
    for number, line in enumerate(published, 1):
        batch_size, learning_rate, *accuracies = map(float, line.split())
        assert SETTINGS[f"experiment {max(number, 2)}"][1:3] == (batch_size, learning_rate)
        assert report.ORIGINAL[number] == tuple(accuracies)


def test_verdict_changes_at_a_quarter_and_three_quarters() -> None:
    verdicts = [report.verdict(count, 20) for count in (0, 5, 6, 14, 15, 20)]
    assert verdicts == ["no", "no", "not shown", "not shown", "yes", "yes"]


def test_fluctuation_is_measured_around_the_average_of_the_right_steps() -> None:
    losses = np.column_stack([np.linspace(1, 0, 1000)] * 2)
    losses[300:400:2, 1] += 0.1
    losses[877:920:2, 0] += 0.02  # while the average falls from 0.125 to 0.08
    averages = np.column_stack([moving_average(column) for column in losses.T])
    made = Runs(losses, averages, np.zeros((10, 2)), 100)
    np.testing.assert_allclose(made.epochs_until(0.25), [7.5, 7.5], atol=0.01)
    np.testing.assert_allclose(made.fluctuation(4, 4), [0, 0.05], atol=0.005)
    np.testing.assert_allclose(made.fluctuation_at_level(), [0.01, 0], atol=0.001)


@pytest.fixture(scope="module")
def made() -> dict[str, Runs]:
    """Return made-up runs of 100 or 50 steps an epoch."""
    rng = np.random.default_rng(0)
    result: dict[str, Runs] = {}
    for name, setting in SETTINGS.items():
        steps = setting.epochs * 12800 // setting.batch_size
        losses = 0.001 + np.exp(1 - np.arange(steps)[:, None] / rng.uniform(10, 60, 8))
        losses *= rng.normal(1, 0.1, (steps, 8))
        accuracies = rng.uniform(0.94, 0.98, (setting.epochs, 8)) ** 2
        losses[300, : len(result)] = 9  # two spikes in experiment 4, the third setting
        averages = np.column_stack([moving_average(column) for column in losses.T])
        result[name] = Runs(losses, averages, accuracies, steps // setting.epochs)
    result["original formulas"].accuracies[4:, :3] = np.nan
    return result


def rows(content: str) -> list[list[str]]:
    lines = content.strip().splitlines()[2:]  # without the head
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_quantities_compare_the_right_experiments(made: dict[str, Runs]) -> None:
    two, three, four, doubled = [made[name] for name in list(SETTINGS)[:4]]
    expected = [
        two.accuracies[9] - two.accuracies[2],
        two.accuracies[20:30].mean(axis=0) - two.accuracies[10:20].mean(axis=0),
        two.losses[200:300].mean(axis=0) - two.losses[900:1000].mean(axis=0),
        two.fluctuation(3, 3) - two.fluctuation(10, 10),
        two.accuracies[0] - three.accuracies[0],
        two.accuracies[9] - three.accuracies[9],
        two.accuracies[9] - three.accuracies[19],
        doubled.epochs_until(0.1) / two.epochs_until(0.1),
        two.accuracies[9] - doubled.accuracies[9],
        two.fluctuation_at_level() / three.fluctuation_at_level(),
        two.fluctuation(2, 10) / three.fluctuation(2, 10),
        two.fluctuation(7, 10) / three.fluctuation(7, 10),
        three.epochs_until(0.1) / four.epochs_until(0.1),
        four.fluctuation_at_level() / three.fluctuation_at_level(),
        four.accuracies[0] - three.accuracies[0],
    ]
    bounds = {"above 0": (0, 99), "above 1": (1, 99), "0.9 to 1.1": (0.9, 1.1)}
    bounds["within ±0.0028"] = (-0.0028, 0.0028)
    for values, row in zip(expected, rows(report.quantity_table(made)), strict=True):
        low, high = bounds[row[1]]
        count = sum(low < value < high for value in values)
        spread = report.spread(values, ".2f" if "over" in row[0] else ".4f")
        assert row[2:] == [spread, f"{count} of 8", report.verdict(count, 8)]


def test_accuracies_are_in_their_column_and_bold_out_of_range(made: dict[str, Runs]) -> None:
    table = rows(report.accuracy_table(made))
    for number, column, beside in ((1, 1, 3), (2, 2, 3), (3, 4, 5), (4, 6, 7)):
        accuracies = made[f"experiment {max(number, 2)}"].accuracies.round(4)
        for row, values, original in zip(table, accuracies, report.ORIGINAL[number], strict=False):
            assert row[column].strip("*") == f"{original:.4f}"
            assert row[column].startswith("**") != (min(values) <= original <= max(values))
            assert row[beside] == report.spread(values)


def test_sentences_state_medians_ranges_and_counts_of_the_runs(made: dict[str, Runs]) -> None:
    assert report.spread(np.array([1, 9, 2])) == "2.0000 (1.0000 to 9.0000)"
    contents = report.contents(made)
    assert (contents["seeds"], contents["spikes"], contents["lost"]) == ("8", "2 of 8", "3 of 8")
    assert 0 < int(contents["outside"]) == contents["accuracies"].count("**") / 2
    accuracies = made["experiment 2"].accuracies
    falls = sum(accuracies[i] < accuracies[i - 1] for i in range(11, 30))
    assert contents["falls"] == report.spread(falls, "g")
    change = accuracies[:10] - made["experiment 2, nudged"].accuracies
    assert contents["experiment 2, nudged"] == report.spread(abs(change).max(axis=0))


def test_page_and_pictures_show_the_runs(
    made: dict[str, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays: dict[str, Any] = {"machine": "this one"}
    for name, each in made.items():
        arrays |= {f"{name}: losses": each.losses, f"{name}: accuracies": each.accuracies}
    (tmp_path / "report.md").write_text(PAGE, encoding="utf-8")
    axes: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: axes.extend(figure.axes))
    monkeypatch.setattr(np, "load", lambda _: arrays)
    monkeypatch.setattr(report, "PAGE", tmp_path / "report.md")
    report.main()
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert MARK.sub("", page) == MARK.sub("", PAGE)
    filled = {name: content for _, name, content in MARK.findall(page)}
    assert filled == report.contents(made) | {"machine": "this one"}
    two, three, four, doubled = [made[name] for name in list(SETTINGS)[:4]]
    columns = [each.averages[:-26] for each in (two, three, four)]
    columns += [each.accuracies for each in (two, three, four)]
    columns += [each.averages[: 10 * each.epoch_steps - 25] for each in (two, three, doubled)]
    medians = [ax.lines[8] for ax in axes] + [axes[-1].lines[i] for i in (17, 26)]  # of 8 seeds
    for line, expected in zip(medians, columns, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), np.median(expected, axis=1))
    ends = np.ceil([line.get_xdata()[-1] for line in medians])
    assert ends.tolist() == [30, 20, 10, 30, 20, 10, 10, 10, 10]
    assert [line.get_linestyle() for line in medians[-3:]] == ["-", "-", ":"]


def test_committed_page_has_the_rows_and_verdicts_of_the_rule(made: dict[str, Runs]) -> None:
    (committed,) = [content for _, name, content in MARK.findall(PAGE) if name == "quantities"]
    for row, new in zip(rows(committed), rows(report.quantity_table(made)), strict=True):
        assert row[:2] == new[:2]
        assert row[4] == report.verdict(*map(int, row[3].split(" of ")))
