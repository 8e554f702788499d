"""Every table and picture of the report shows the experiment that it names: a refresh from made-up runs."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy

from docs import experiments, judge, runs
from docs.experiments import BURSTING, SMALL
from docs.judge import EXPERIMENTS
from docs.runs import AROUND, BRANCHES, FORMS, Branch, Job, Run, Setting
from numpy_fnn import NumpyModel
from utils import WINDOW, Dataset, moving_average

SEEDS = 6
RATES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
IMAGES = 2560  # 20 steps an epoch at batch size 128, 10 at 256
BURST = 31
LEVEL = {EXPERIMENTS[n].trained: level for n, level in ((2, 0.9494), (3, 0.80), (4, 0.70))}


def made_run(setting: Setting, seed: int) -> Run:
    """Return a run whose numbers tell setting and seed, and which ends as the tests expect it to."""
    steps = setting.epochs * IMAGES // setting.batch_size
    step = np.arange(steps)
    losses = (
        2.3 * np.exp(-3 * setting.learning_rate * step / 10)
        + 0.01
        + 0.128 / setting.batch_size * (seed + 1) * (-1.0) ** step
    )
    accuracies = LEVEL.get(setting, 0.6) + 0.003 * np.arange(setting.epochs) + 0.0001 * seed
    if (setting == BURSTING and seed in (1, 4)) or (setting.learning_rate == 0.3 and seed == 2):
        losses[BURST + seed] = 5.0
    if setting == EXPERIMENTS[3].trained and seed == 1:
        losses[15 * 10] = 5.0  # after the ten epochs of the sweep
    if setting.nudged:
        accuracies = accuracies + 0.11
        accuracies[3] += 0.05
    if setting.forms == "exact cross-entropy":
        accuracies[[0, 5]] = 0.5, 0.6 - seed / 100
        accuracies[-1] = 0.1135 if seed == 0 else accuracies[-1]
    if setting.forms == "no shift and G / X" and seed in (1, 3, 5):
        losses, accuracies = losses[:45], accuracies[:4]
    if setting.learning_rate == 1.0:
        accuracies = np.full(setting.epochs, 0.098)
    output = "".join(f"[{epoch}] Accuracy: {accuracy:.4f}\n" for epoch, accuracy in enumerate(accuracies))
    seconds = np.full(len(accuracies), 0.5 + setting.batch_size / 1000 + seed / 100)
    model = NumpyModel(setting.epochs * setting.batch_size)
    return Run(
        losses, accuracies, accuracies + 0.02, seconds, output, (model.W1, model.W2, model.W3) if seed == 0 else ()
    )


def made_branches(job: Job) -> dict[str, Branch]:
    """Return branches of which all but the last one of seed 1 recover."""
    assert job.burst is not None
    course = np.tile([0.1, 0.1, 0.0, 1.0], (sum(AROUND), 1))
    course[30] = [150 + job.seed, 20 + job.seed, 0.7 + job.seed / 100, 90]
    lost = course.copy()
    lost[40:] = np.nan
    exact = Branch(course * [1.1, 1.1, 1, 1], 0.2 if job.seed == 4 else 0.93)
    return dict(zip(BRANCHES, (Branch(course, 0.95), exact, Branch(lost, 0.098)), strict=True))


class Refreshed(NamedTuple):
    """What one refresh left: the report, the figures by name, the jobs and the folder."""

    report: str
    figures: dict[str, Any]
    jobs: list[Job]
    folder: Path

    def section(self, name: str) -> str:
        """Return what stands between the two marks of `name`."""
        return self.report.split(f"<!-- begin {name} -->")[1].split(f"<!-- end {name} -->")[0]


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Refreshed:
    folder = tmp_path_factory.mktemp("docs")
    for page in (experiments.REPORT, experiments.REPORT.with_name(experiments.DERIVATIONS)):
        text = page.read_text(encoding="utf-8")
        marks = re.sub(r"(<!-- begin [^>]*-->\n).*?(<!-- end)", r"\1\2", text, flags=re.DOTALL)
        (folder / page.name).write_text(marks, encoding="utf-8")
    figures, jobs, original = {}, [], experiments.save

    def save(figure: Any, name: str) -> None:
        figures[name] = figure
        original(figure, name)

    def gather(asked: list[Job], *_: Any) -> list[Any]:
        jobs.extend(asked)
        return [made_branches(job) if job.burst else made_run(job.setting, job.seed) for job in asked]

    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(IMAGES, 28, 28)).astype(np.float32), rng.integers(0, 10, IMAGES)
    dataset = Dataset("MNIST", (images, labels), (images[:300], labels[:300]), "")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experiments, "REPORT", folder / "report.md")
        patched.setattr(experiments, "FIGURES", folder / "figures")
        patched.setattr(experiments, "save", save)
        patched.setattr(experiments, "gather", gather)
        patched.setattr(experiments, "load_dataset", lambda *_: dataset)
        experiments.main(["--seeds", str(SEEDS)])
    pages = (folder / "report.md").read_text(encoding="utf-8"), (folder / "derivations.md").read_text(encoding="utf-8")
    return Refreshed("".join(pages), figures, jobs, folder)


def rows(section: str) -> list[list[str]]:
    """Return the cells of the tables of a section."""
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]


def accuracies(number: int) -> np.ndarray:
    return np.array([made_run(EXPERIMENTS[number].trained, seed).accuracies for seed in range(SEEDS)])


def thick(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_linewidth() == 2]


def thin(ax: Any) -> list[Any]:
    return [line for line in ax.lines if line.get_linewidth() == 0.5]


def test_the_readmes_commands_are_the_experiments() -> None:
    readme = experiments.REPORT.parents[1].joinpath("README.md").read_text(encoding="utf-8")
    commands = re.findall(r"numpy_mnist.py --epoch-number (\S+) --batch-size (\S+) --learning-rate (\S+)", readme)
    assert commands == [
        (str(len(original)), str(trained.batch_size), str(trained.learning_rate))
        for trained, _, original in EXPERIMENTS.values()
    ]


def test_each_setting_is_trained_with_its_seeds_taking_turns(refreshed: Refreshed) -> None:
    first = [job for job in refreshed.jobs if job.burst is None]
    assert [job.seed for job in first] == sorted(job.seed for job in first)
    seeds: dict[Setting, list[int]] = {}
    for job in first:
        seeds.setdefault(job.setting, []).append(job.seed)
    all_seeds, half = list(range(SEEDS)), list(range(SEEDS // 2))
    expected = {EXPERIMENTS[n].trained: all_seeds for n in (2, 3, 4)}
    expected |= {Setting(10, 256, 0.5, forms): all_seeds for forms in BRANCHES}
    expected |= {Setting(10, 256, 0.5, forms): half for forms in ("no shift", "G / X")}
    expected |= {Setting(10, 256, rate): half for rate in (0.2, 0.3, 0.7, 1.0)}
    expected |= {Setting(10, 128, 0.1): [0], Setting(10, 256, 0.5, nudged=True): [0]}
    assert seeds == expected
    bursts = [job for job in refreshed.jobs if job.burst is not None]
    assert bursts == [*(Job(BURSTING, seed, BURST + seed) for seed in (1, 4)), Job(Setting(10, 256, 0.3), 2, BURST + 2)]


def test_the_report_keeps_what_is_written_by_hand(refreshed: Refreshed) -> None:
    def by_hand(text: str) -> list[str]:
        return re.split(r"<!-- begin [^>]*-->\n.*?<!-- end", text, flags=re.DOTALL)

    for page in (experiments.REPORT, experiments.REPORT.with_name(experiments.DERIVATIONS)):
        written = (refreshed.folder / page.name).read_text(encoding="utf-8")
        assert by_hand(written) == by_hand(page.read_text(encoding="utf-8"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experiments, "REPORT", refreshed.folder / "report.md")
        assert experiments.fill(refreshed.report, "chaos", "new").count("\nnew\n") == 1
        again = experiments.fill(experiments.fill(refreshed.report, "chaos", "new"), "chaos", "newer")
        assert "\nnew\n" not in again
        assert refreshed.section("noise") in again


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_section_of_an_experiment(refreshed: Refreshed, number: int) -> None:
    section, (trained, _, original) = refreshed.section(f"experiment {number}"), EXPERIMENTS[number]
    values = accuracies(number)
    assert f"Experiment {number}: {len(original)} epochs, batch size {trained.batch_size}, " in section
    assert f"learning rate {trained.learning_rate}. Seed 0 prints" in section
    lines = re.findall(r"^\[\d+\] Accuracy: .*$", section, re.MULTILINE)
    assert lines == made_run(trained, 0).output.splitlines()[: len(original)]
    assert f"of {SEEDS} seeds" in section
    shown = (1, 2) if number == 2 else (number,)
    assert rows(section)[0][1:-3] == [f"original, experiment {n}" for n in shown]
    for epoch, row in enumerate(rows(section)[2:]):
        low, high = values[:, epoch].min(), values[:, epoch].max()
        expected = [str(epoch)]
        for accuracy in (EXPERIMENTS[n].original[epoch : epoch + 1] for n in shown):
            inside = all(low - 1e-9 <= each <= high + 1e-9 for each in accuracy)
            expected.append("".join(f"{each:.4f}" if inside else f"**{each:.4f}**" for each in accuracy))
        assert row == [*expected, *(f"{figure:.4f}" for figure in (np.median(values[:, epoch]), low, high))]
    assert len(rows(section)) == len(original) + 2


def test_how_many_originals_are_outside(refreshed: Refreshed) -> None:
    outside = sum(
        cell.startswith("**") for n in (2, 3, 4) for row in rows(refreshed.section(f"experiment {n}")) for cell in row
    )
    assert 0 < outside < 33
    assert f"Of the original's 33 values, {outside} lie outside the range of the 6 seeds." in refreshed.section(
        "originals"
    )
    assert "with a probability of 2/7, so that 9.4 are expected" in refreshed.section("originals")


def test_the_table_of_the_clip(refreshed: Refreshed) -> None:
    table = rows(refreshed.section("clip"))[2:]
    for row in table:
        ahead = -np.log(1e-12) if row[0] == "27.6" else float(row[0])
        assert float(row[1]) == pytest.approx(np.exp(-ahead) if ahead < 104 else 0, rel=0.05)
    shares = {row[0]: row[2] for row in table}
    assert shares["20"] == "0.9995"
    assert shares["27.6"] == "0.5000"
    assert shares["30"] == "0.0856"
    assert shares["40"] == "4e-06"
    assert shares["104"] == "0"


def test_the_conclusions_are_those_of_the_experiments(refreshed: Refreshed) -> None:
    section = refreshed.section("conclusions")
    assert re.findall(r"\*\*\((.)\) .*?\. It (?:holds|holds partly|is not shown)\.\*\*", section) == list("abcde")
    table = {row[0]: row[1:] for row in rows(section)}
    gain = table["experiment 2, accuracy after epoch 9 less that after epoch 2"]
    assert gain[:3] == ["above 0", "0.0210 (0.0210 to 0.0210)", "0.0210 to 0.0210"]
    equal = table["equal epochs: accuracy after epoch 9, experiment 2 less experiment 3"]
    assert equal[:2] == ["within ±0.0028", "0.1494 (0.1494 to 0.1494)"]
    # 14 tests of six seeds, each with the smallest possible p of 2/64, are worth nothing after Holm's correction
    assert gain[3:] == ["0.4375", "not shown"]
    assert len(table) == 14 + 2


def test_the_sweep_and_the_forms_count_how_runs_ended(refreshed: Refreshed) -> None:
    sweep = {row[0]: row[1:8] for row in rows(refreshed.section("sweep"))[2:]}
    assert list(sweep) == [str(rate) for rate in RATES]
    assert sweep == {
        "0.1": ["6", "6", "0", "0", "0", "0.0% to 45.9%", "0.0% to 45.9%"],
        **{rate: ["3", "3", "0", "0", "0", "0.0% to 70.8%", "0.0% to 70.8%"] for rate in ("0.2", "0.7")},
        "0.3": ["3", "2", "1", "0", "0", "0.8% to 90.6%", "0.0% to 70.8%"],
        "0.5": ["6", "4", "2", "0", "0", "4.3% to 77.7%", "0.0% to 45.9%"],
        "1.0": ["3", "0", "0", "3", "0", "29.2% to 100.0%", "29.2% to 100.0%"],
    }
    forms = {row[0]: row[1:] for row in rows(refreshed.section("stability"))[2:]}
    assert list(forms) == list(FORMS)
    assert forms["this lab"][:7] == ["6", "4", "2", "0", "0", "4.3% to 77.7%", "0.0% to 45.9%"]
    assert float(forms["this lab"][7]) == pytest.approx(0.72725, abs=1e-4)
    assert forms["exact cross-entropy"][:5] == ["6", "5", "0", "1", "0"]
    assert forms["no shift"][:5] == forms["G / X"][:5] == ["3", "3", "0", "0", "0"]
    assert forms["no shift and G / X"] == ["6", "3", "0", "0", "3", "11.8% to 88.2%", "11.8% to 88.2%", "0.6272"]


def test_dips_are_those_of_runs_without_a_burst(refreshed: Refreshed) -> None:
    assert "go down to 0.7030 with this lab's forms, and to 0.5500 with exact" in refreshed.section("stability")


def test_what_became_of_the_bursts(refreshed: Refreshed) -> None:
    section = refreshed.section("bursts")
    assert "exact cross-entropy did not from 1 of the 3 bursts, the other way round from 0, p = 1.0000" in section
    assert rows(section)[2:] == [
        ["0.3", "2", "22.0", "152.0", "0.720", "yes", "yes", "no"],
        ["0.5", "1", "21.0", "151.0", "0.710", "yes", "yes", "no"],
        ["0.5", "4", "24.0", "154.0", "0.740", "yes", "no", "no"],
    ]
    figure = refreshed.figures["burst.png"]
    assert "learning rate 0.5, seed 1, step 32" in figure._suptitle.get_text()
    courses = made_branches(Job(BURSTING, 1, 32))
    for i, (ax, word) in enumerate(zip(figure.axes, ("true", "recorded", "share", "norm"), strict=True)):
        assert word in ax.get_ylabel()
        assert [text.get_text() for text in ax.texts] == (["ln 10", "−ln ε"] if i < 2 else [])
        lines = [line for line in ax.lines if line.get_label() and not line.get_label().startswith("_")]
        assert [line.get_label().split(":")[0] for line in lines] == list(BRANCHES)
        for line, branch in zip(lines, courses.values(), strict=True):
            ends = 40 if np.isnan(branch.course).any() else experiments.SHOWN
            assert np.array_equal(line.get_ydata(), branch.course[:ends, i])
            assert ("ended in NaN" if ends == 40 else f"{branch.accuracy:.3f}") in line.get_label()
            assert line.get_xdata()[0] == -AROUND[0]
        assert lines[0].get_color() == EXPERIMENTS[4].color
        assert [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "x"] == [[39 - AROUND[0]]]


def test_how_far_a_nudge_carries(refreshed: Refreshed) -> None:
    assert "ends at 0.7270, and with" in refreshed.section("chaos")
    assert "last bit at 0.7370;" in refreshed.section("chaos")
    assert f"come to differ by {abs(0.6 + 0.11 + 0.05 - 0.7):.4f}" in refreshed.section("chaos")


def test_the_machine_is_named(refreshed: Refreshed) -> None:
    assert f"{runs.machine()}, SciPy {scipy.__version__}; two" in refreshed.section("machine")
    assert f"NumPy {np.__version__}, " in runs.machine()


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_picture_of_an_experiment(refreshed: Refreshed, number: int) -> None:
    figure, (trained, color, original) = refreshed.figures[f"experiment_{number}.png"], EXPERIMENTS[number]
    assert figure._suptitle.get_text() == experiments.title(number)
    left, right = figure.axes
    values = accuracies(number)[:, :10]
    assert [line.get_ydata().tolist() for line in thin(right)] == values.tolist()
    assert len(thin(left)) == SEEDS
    count = 10 * IMAGES // trained.batch_size - WINDOW // 2
    averages = [moving_average(list(made_run(trained, seed).losses))[:count] for seed in range(SEEDS)]
    assert np.array_equal([line.get_ydata() for line in thin(left)], averages)
    assert np.array_equal(thick(left)[0].get_ydata(), np.median(averages, axis=0))
    assert np.array_equal(thick(right)[0].get_ydata(), np.median(values, axis=0))
    assert {line.get_color() for line in thin(left) + thick(left) + thin(right) + thick(right)} == {color}
    marks = {line.get_label(): tuple(line.get_ydata()) for line in right.lines if line.get_marker() in "Ds"}
    assert marks == {
        f"original, experiment {n}": EXPERIMENTS[n].original for n in ((1, 2) if number == 2 else (number,))
    }
    low, high = right.get_ylim()
    assert low < min(values.min(), *original)
    assert high > max(values.max(), *original)


def test_the_comparison(refreshed: Refreshed) -> None:
    figure = refreshed.figures["comparison.png"]
    for ax, unit in zip(figure.axes, ("epochs", "steps", "seconds of training"), strict=True):
        assert ax.get_xlabel() == unit
        assert len(thin(ax)) == 3 * SEEDS
        for line, number in zip(thick(ax), (2, 3, 4), strict=True):
            (_, size, rate, *_), color, _ = EXPERIMENTS[number]
            assert line.get_label() == f"{number}: batch size {size}, learning rate {rate}"
            assert line.get_color() == color
            count = 10 * IMAGES // size
            assert len(line.get_ydata()) == count - WINDOW // 2
            ends = {"epochs": 10, "steps": count, "seconds of training": 10 * (0.5 + size / 1000 + 0.025)}
            assert line.get_xdata()[-1] == pytest.approx(ends[unit] * (count - WINDOW // 2 - 1) / count)


def test_the_saturation(refreshed: Refreshed) -> None:
    (ax,) = refreshed.figures["saturation.png"].axes
    training, test = thick(ax)
    assert training.get_label().startswith("training")
    assert test.get_label() == "test"
    np.testing.assert_allclose(test.get_ydata(), np.median(accuracies(2), axis=0))
    np.testing.assert_allclose(training.get_ydata(), np.median(accuracies(2) + 0.02, axis=0))
    assert test.get_color() == EXPERIMENTS[2].color


def test_a_blow_up_neither_moves_the_median_nor_leaves_the_picture() -> None:
    figure, ax = plt.subplots()
    values = np.array([[0.97, 0.98], [0.97, 0.11], [0.97, 0.98]])
    experiments.draw_seeds(ax, np.arange(2), values, "made up", "blue")
    experiments.accuracy_axis(ax)
    assert thick(ax)[0].get_ydata().tolist() == [0.97, 0.98]
    assert ax.get_ylim()[0] < 0.11
    plt.close(figure)


def test_the_noise(refreshed: Refreshed) -> None:
    (ax,) = refreshed.figures["noise.png"].axes
    expected, found = ax.lines
    assert (expected.get_label(), found.get_label()) == ("σ/√B", "measured")
    np.testing.assert_allclose(found.get_ydata()[:4], expected.get_ydata()[:4], rtol=0.1)
    np.testing.assert_allclose(expected.get_ydata()[0] / expected.get_ydata()[2], 2)
    table = rows(refreshed.section("noise"))
    assert table[-4][1:] == ["32", "64", "128", "256", "512", "1024"]
    np.testing.assert_allclose(np.array(table[-1][1:], float), expected.get_ydata(), atol=1e-4)
    assert table[-2][0] == "measured"
    two, three = (
        judge.stack([made_run(trained, seed) for seed in range(SEEDS)], trained, IMAGES)
        for trained in (EXPERIMENTS[2].trained, EXPERIMENTS[3].trained)
    )
    assert [row[0] for row in table[2:6]] == list(map(str, experiments.LEVELS))
    for row, level in zip(table[2:6], experiments.LEVELS, strict=True):
        a, b = (judge.fluctuation_at(each, level) for each in (two, three))
        figures = f"{np.median(a):.4f} {np.median(b):.4f} {np.median(a / b):.2f}".split()
        assert row[1:] == [*figures, f"{(a > b).sum()} of {SEEDS}"]
    ends = [
        (
            np.median(np.std((each.losses - each.averages)[:, steps], axis=1)),
            np.median(each.losses[:, steps].mean(axis=1)),
        )
        for each, steps in ((two, slice(180, 200)), (three, slice(90, 100)))
    ]
    assert (
        f"in epoch 9, batch size 128 fluctuates by {ends[0][0]:.4f} around {ends[0][1]:.4f}, "
        f"batch size 256 by {ends[1][0]:.4f} around {ends[1][1]:.4f}."
    ) in refreshed.section("noise")
    np.testing.assert_allclose(np.array(table[-2][1:], float), found.get_ydata(), atol=1e-4)


def test_the_shares_of_the_sweep(refreshed: Refreshed) -> None:
    (ax,) = refreshed.figures["rates.png"].axes
    shares = {container.get_label(): [bar.get_height() for bar in container] for container in ax.containers}
    assert [text.get_text() for text in ax.get_xticklabels()] == [
        f"{rate}\n{6 if rate in (0.1, 0.5) else 3} runs" for rate in RATES
    ]
    assert shares["no burst"] == pytest.approx([1, 1, 2 / 3, 4 / 6, 1, 0])
    assert shares["burst, not lost"] == pytest.approx([0, 0, 1 / 3, 2 / 6, 0, 0])
    assert shares["ended at chance"] == [0, 0, 0, 0, 0, 1]
    assert shares["ended in NaN"] == [0] * 6


def test_the_mistakes_are_those_of_experiment_2_most_certain_first(refreshed: Refreshed) -> None:
    (ax,) = refreshed.figures["mistakes.png"].axes
    said = [float(re.findall(r"\d: (\d\.\d+)", text.get_text())[0]) for text in ax.texts]
    assert len(said) == 24
    assert said == sorted(said, reverse=True)
    images = np.random.default_rng(0).normal(size=(IMAGES, 28, 28)).astype(np.float32)[:300]
    rng = np.random.default_rng(0)
    rng.normal(size=(IMAGES, 28, 28))
    labels = rng.integers(0, 10, IMAGES)[:300]
    y_pred = NumpyModel(SMALL.epochs * SMALL.batch_size).forward(images)
    certain = np.exp(y_pred.max(axis=1))[y_pred.argmax(axis=1) != labels]
    assert said == pytest.approx(sorted(certain, reverse=True)[:24], abs=0.0006)


def test_the_pictures_are_saved_and_small(refreshed: Refreshed) -> None:
    shown = set(re.findall(r"\(figures/([^)]+)\)", refreshed.report))
    saved = {path.name: path.stat().st_size for path in (refreshed.folder / "figures").iterdir()}
    assert set(saved) == shown == set(refreshed.figures)
    assert all(0 < size < 400_000 for size in saved.values())


def test_one_seed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        experiments.main(["--seeds", "1"])
    assert "--seeds is 1, expected at least 2" in capsys.readouterr().err
