"""The judgement of the report, on made-up results whose verdicts are known."""

import numpy as np
import pytest
from scipy import stats

from docs import judge
from docs.judge import EXPERIMENTS, MARGIN, Measurement, Result
from docs.runs import Branch, Job, Run, Setting
from utils import moving_average

SEEDS = 20


def one(values: np.ndarray, margin: float | None = None, ratio: bool = False) -> judge.Verdict:
    return judge.verdicts([Measurement("", values, margin=margin, ratio=ratio)])[0]


def result(seed: int, epochs: int, steps: int, noise: float = 0.05, slope: float = 3) -> Result:
    """Return a made-up result: losses that fall exponentially, with noise in proportion, and random accuracies."""
    rng = np.random.default_rng(seed)
    course = 2.3 * np.exp(-slope * np.arange(epochs * steps) / steps / 3) + 0.001
    losses = course * (1 + noise * rng.normal(size=(SEEDS, epochs * steps)))
    accuracies, train_accuracies, seconds = rng.uniform(0.9, 1, (3, SEEDS, epochs))
    averages = np.array([moving_average(row) for row in losses])
    return Result(losses, averages, accuracies, train_accuracies, seconds)


@pytest.fixture(scope="module")
def results() -> tuple[Result, Result, Result]:
    return result(2, 30, 100, 0.1), result(3, 20, 50, slope=2), result(4, 10, 50, 0.2, 6)


def measured(two: Result, three: Result, four: Result) -> list[Measurement]:
    return [each for claim in judge.measurements(two, three, four).values() for each in claim]


def test_the_originals_accuracies_are_the_courses() -> None:
    assert {number: experiment.original for number, experiment in EXPERIMENTS.items()} == {
        1: (0.9485, 0.9647, 0.9715),
        2: (0.9496, 0.9600, 0.9675, 0.9761, 0.9755, 0.9775, 0.9791, 0.9795, 0.9781, 0.9810),
        3: (0.9253, 0.9477, 0.9522, 0.9651, 0.9680, 0.9731, 0.9755, 0.9766, 0.9766, 0.9790),
        4: (0.9505, 0.9675, 0.9706, 0.9471, 0.9737, 0.8980, 0.9757, 0.9573, 0.9770, 0.9792),
    }


def test_experiments_are_trained_long_enough_and_told_apart() -> None:
    assert EXPERIMENTS[1].trained == EXPERIMENTS[2].trained
    assert [EXPERIMENTS[n].trained.epochs for n in (2, 3, 4)] == [30, 20, 10]
    assert {(experiment.trained.forms, experiment.trained.nudged) for experiment in EXPERIMENTS.values()} == {
        ("this lab", False)
    }
    assert len({experiment.color for experiment in EXPERIMENTS.values()}) == 4


def test_a_difference_counts_where_signed_ranks_say_so() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=SEEDS)
    noise -= np.median(noise)
    assert one(noise + 2).words == "yes"
    assert one(noise - 2).words == "no, the opposite"
    assert one(noise).words == "not shown"
    assert one(np.exp(noise + 2), ratio=True).words == "yes"
    assert one(np.exp(noise - 2), ratio=True).words == "no, the opposite"
    assert one(np.exp(noise), ratio=True).words == "not shown"
    assert one(np.exp(noise + 2), ratio=True).p_value == pytest.approx(stats.wilcoxon(noise + 2).pvalue)
    assert one(noise + 2).p_value == pytest.approx(stats.wilcoxon(noise + 2).pvalue)
    # 1.4 standard errors above 0 are not enough
    weak = np.linspace(-1, 1, SEEDS) + 0.2
    assert 0.05 < one(weak).p_value < 0.3
    assert one(weak).words == "not shown"
    # the p-value is two-sided
    borderline = np.linspace(-1, 1, SEEDS) + 0.29
    assert 0.025 < stats.wilcoxon(borderline, alternative="greater").pvalue < 0.05 < one(borderline).p_value


def test_differences_that_are_alike_but_for_rounding_count_as_alike() -> None:
    values = np.repeat([0.1, -0.2, 0.3, 0.4], 5)
    assert one(values + 1e-12 * np.random.default_rng(0).normal(size=SEEDS)).p_value == one(values).p_value


def test_a_blow_up_turns_no_verdict_around() -> None:
    values = np.linspace(0.1, 0.3, SEEDS)
    for blown_up in (-1e6, 1e6):
        values[0] = blown_up
        assert one(values).words == "yes"
        assert 0.1 < one(values).low < one(values).median < one(values).high < 0.3


def test_a_run_that_ended_in_nan_shows_nothing() -> None:
    values = np.linspace(0.1, 0.3, SEEDS)
    values[0] = np.nan
    assert one(values).words == "not shown"


def test_about_as_high_needs_proof_on_both_sides() -> None:
    noise = np.linspace(-0.001, 0.001, SEEDS)
    assert pytest.approx(0.0028) == MARGIN
    assert one(noise, MARGIN).words == one(noise + 0.001, MARGIN).words == one(noise - 0.001, MARGIN).words == "yes"
    assert one(noise + 0.004, MARGIN).words == one(noise - 0.004, MARGIN).words == "no, the opposite"
    assert one(noise + MARGIN, MARGIN).words == one(noise - MARGIN, MARGIN).words == "not shown"
    # beyond the margin is two-sided, too
    borderline = MARGIN + 0.001 * (np.linspace(-1, 1, SEEDS) + 0.29)
    p = stats.wilcoxon((MARGIN - borderline).round(9), alternative="less").pvalue
    assert 0.025 < p < 0.05 < one(borderline, MARGIN).p_value == pytest.approx(2 * p)
    assert one(borderline, MARGIN).words == "not shown"
    assert one(noise * 20, MARGIN).words == "not shown"  # no difference found is no proof of there being none


def test_the_interval_is_that_of_the_sign_test() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 21))
    assert one(values)[:3] == (10.5, 6, 15)


def test_holms_correction() -> None:
    p_values = [0.04, 0.001, 0.03, 0.5, 0.02]
    np.testing.assert_allclose(judge.holm(p_values), [0.09, 0.005, 0.09, 0.5, 0.08])
    assert judge.holm([0.9, 0.8]).tolist() == [1, 1]
    borderline = Measurement("", np.linspace(-1, 1, SEEDS) + 0.4)
    assert judge.verdicts([borderline])[0].words == "yes"
    assert {verdict.words for verdict in judge.verdicts([borderline] * 10)} == {"not shown"}
    strong = Measurement("", np.linspace(1, 2, SEEDS))
    assert [each.words for each in judge.verdicts([borderline, strong] + [borderline] * 8)][:2] == ["not shown", "yes"]


def test_a_conclusion_holds_if_all_of_it_does() -> None:
    assert judge.overall(["yes", "yes"]) == "It holds."
    assert judge.overall(["not shown", "yes"]) == judge.overall(["yes", "no, the opposite"]) == "It holds partly."
    assert judge.overall(["not shown", "no, the opposite"]) == "It is not shown."
    assert judge.overall(["no, the opposite"] * 2) == "The opposite holds."


def test_what_is_measured(results: tuple[Result, Result, Result]) -> None:
    two, three, four = results
    a, b, c = (each.accuracies for each in results)
    values = [each.values for each in measured(*results)]
    gains = a[:, 10:] - a[:, 9:-1]

    def scatter(each: Result, start: int, stop: int) -> np.ndarray:
        return np.std((each.losses - each.averages)[:, start:stop], axis=1)

    def at(each: Result) -> np.ndarray:
        ends = [[np.flatnonzero(row < 0.1 * factor)[0] for factor in (1.25, 0.8)] for row in each.averages]
        return np.array([np.std(row[slice(*end)]) for row, end in zip(each.losses - each.averages, ends, strict=True)])

    def first(each: Result, level: float) -> np.ndarray:
        return np.array([np.flatnonzero(row < level)[0] for row in each.averages])

    expected = [
        a[:, 9] - a[:, 2],
        a[:, 20:30].mean(axis=1) - a[:, 10:20].mean(axis=1),
        gains.std(axis=1) - gains.mean(axis=1),
        two.losses[:, 200:300].mean(axis=1) - two.losses[:, 900:1000].mean(axis=1),
        scatter(two, 200, 300) - scatter(two, 900, 1000),
        a[:, 0] - b[:, 0],
        first(three, 0.1) / 50 - first(two, 0.1) / 100,
        first(three, 0.1) / 50 * np.median(three.seconds, axis=1)
        - first(two, 0.1) / 100 * np.median(two.seconds, axis=1),
        a[:, 9] - b[:, 9],
        a[:, 9] - b[:, 19],
        at(two) / at(three),
        first(three, 0.5) - first(four, 0.5),
        at(four) / at(three),
        b[:, 5:10].min(axis=1) - c[:, 5:].min(axis=1),
    ]
    assert len(values) == len(expected)
    for i, (value, wanted) in enumerate(zip(values, expected, strict=True)):
        np.testing.assert_allclose(value, wanted, err_msg=measured(*results)[i].text)
    assert [i for i, each in enumerate(measured(*results)) if each.margin == MARGIN] == [1, 8, 9]
    assert [i for i, each in enumerate(measured(*results)) if each.ratio] == [10, 12]


def test_verdicts_on_results_made_to_have_them(results: tuple[Result, Result, Result]) -> None:
    two, three, four = results
    rise = 0.98 - 0.05 * np.exp(-np.arange(30)) + 0.001 * np.sin(np.arange(30))
    spread = np.linspace(0, 0.001, SEEDS)[:, None]
    two = two._replace(accuracies=rise + spread, seconds=np.ones((SEEDS, 30)))
    three = three._replace(accuracies=np.repeat(rise[:10] - 0.005, 2) + spread[::-1], seconds=np.ones((SEEDS, 20)))
    three.accuracies[:, 19] = two.accuracies[:, 9]
    four = four._replace(accuracies=np.full((SEEDS, 10), 0.9) + spread)
    claims = judge.measurements(two, three, four)
    words = iter(judge.verdicts([each for claim in claims.values() for each in claim]))
    by_letter = {claim[1]: [next(words).words for _ in each] for claim, each in claims.items()}
    assert by_letter == {
        "a": ["yes"] * 3,
        "b": ["yes"] * 2,
        "c": ["yes", "yes", "yes", "no, the opposite", "yes"],
        "d": ["yes"],
        "e": ["yes", "yes", "yes"],
    }


def test_stack_has_a_row_for_each_run_and_nan_after_its_end() -> None:
    setting = Setting(3, 10, 0.1)
    done = Run(np.arange(9.0), np.arange(3.0), np.arange(3.0) + 10, np.arange(3.0) + 20, "", ())
    ended = Run(np.arange(4.0), np.arange(1.0), np.arange(1.0) + 10, np.arange(1.0) + 20, "", ())
    stacked = judge.stack([done, ended], setting, 25)
    assert np.array_equal(stacked.losses[0], done.losses)
    assert np.array_equal(stacked.averages[0], moving_average([*done.losses]))
    assert np.isnan(stacked.losses).sum(axis=1).tolist() == [0, 5]
    assert np.isnan(stacked.accuracies).sum(axis=1).tolist() == [0, 2]
    assert [stacked.accuracies[0, 1], stacked.train_accuracies[0, 1], stacked.seconds[0, 1]] == [1, 11, 21]
    assert stacked.epoch(2) == 6


def test_fluctuation_is_the_deviation_around_the_moving_average() -> None:
    steps = np.arange(400)
    losses = (3 - steps / 400 + np.where(steps % 2, 0.1, -0.1))[None]
    made = Result(losses, moving_average(losses[0])[None], *np.ones((3, 1, 2)))
    assert judge.fluctuation(made, made.epoch(0), made.epoch(2))[0] == pytest.approx(0.1, rel=2e-2)
    assert np.isnan(judge.fluctuation(made, made.epoch(1), made.epoch(1))[0])
    assert judge.mean_loss(made, 1)[0] == pytest.approx(2.25, rel=1e-2)
    assert judge.steps_until(made, 2.5)[0] == pytest.approx(200, abs=2)
    assert judge.steps_until(made, 1)[0] == 400


def run(losses: list[float], accuracies: list[float]) -> Run:
    return Run(np.array(losses), np.array(accuracies), np.array(accuracies), np.ones(len(accuracies)), "", ())


def test_a_burst_is_a_loss_above_guessing_once_something_was_learned() -> None:
    assert judge.burst_step(np.array([2.4, 2.6, 1.0, 2.5, 0.4, 0.6, 2.2, 2.31, 9.0])) == 7
    assert judge.burst_step(np.array([2.4, 2.6, 0.4, 2.2])) is None
    assert judge.burst_step(np.array([2.4, 2.6, 0.6, 9.0])) is None
    assert judge.burst_step(np.array([])) is None


def test_how_a_run_ended() -> None:
    setting = Setting(2, 1, 0.5)
    ended = {
        "calm": run([2.4, 0.4], [0.9, 0.95]),
        "burst": run([2.4, 0.4, 2.5, 0.4], [0.9, 0.95]),
        "chance": run([2.4, 0.4, 2.5, 2.3], [0.9, 0.1135]),
        "NaN": run([2.4, 0.4, 2.5], [0.9]),
    }
    assert judge.outcomes(list(ended.values()), setting) == list(ended)
    assert judge.outcomes([run([2.3, 2.3], [0.1, 0.1])], setting) == ["chance"]


def test_a_cut_run_knows_nothing_of_what_came_later() -> None:
    long = run([2.4, 0.4, 0.4, 0.4, 9.0, 2.3], [0.9, 0.1])
    assert judge.outcomes([judge.cut(long, Setting(2, 10, 0.1), 1, 25)], Setting(1, 10, 0.1)) == ["calm"]
    assert len(judge.cut(long, Setting(2, 10, 0.1), 1, 25).losses) == 3


def test_the_telling_burst_is_the_first_that_not_all_recover_from() -> None:
    good, bad = Branch(np.ones((2, 4)), 0.9), Branch(np.ones((2, 4)), 0.89)
    assert judge.recovered(good)
    assert not judge.recovered(bad)
    jobs = [Job(Setting(1, 1, 1), seed, 5) for seed in range(3)]
    bursts = dict(zip(jobs, ({"x": good, "y": each} for each in (good, bad, bad)), strict=True))
    assert judge.telling(bursts) == (jobs[1], bursts[jobs[1]])
    del bursts[jobs[1]], bursts[jobs[2]]
    assert judge.telling(bursts)[0] == jobs[0]


def test_the_noise_of_a_batch_falls_with_the_root_of_its_size() -> None:
    losses = np.random.default_rng(0).exponential(size=60000)
    for size in (32, 128, 1024):
        assert judge.batch_noise(losses, size) == pytest.approx(losses.std() / size**0.5, rel=0.05)


def test_outside_is_below_the_smallest_or_above_the_largest_of_four_decimals() -> None:
    values = np.array([[0.91004, 0.92, 0.93, 0.94], [0.95, 0.96, 0.97, 0.98]])
    assert judge.outside(values, (0.9100, 0.9601, 0.9299)) == [1, 2]
    assert judge.outside(values, (0.95, 0.94, 0.95, 0.9801)) == [3]
