"""Judge what runs say: paired tests over the seeds, corrected for their number, intervals, and how runs end.

The rule is told in report.md, before the results.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from docs.runs import Branch, Job, Run, Setting
from utils import moving_average

GUESSING = np.log(10)  # the loss of ten classes with the same probability
MARGIN = 2 * (0.98 * 0.02 / 10000) ** 0.5  # twice the standard error of an accuracy of 0.98 on 10,000 images
LEVEL = 0.1  # the loss at which experiments are compared
SIGNIFICANT = 0.05
CHANCE = 0.2  # an accuracy below it is guessing


class Experiment(NamedTuple):
    """The course's experiment: how long it is trained here, its color, the original's accuracy after each epoch."""

    trained: Setting
    color: str
    original: tuple[float, ...]


# The first epochs of a longer training are those of a shorter one: experiment 1 is the beginning of experiment 2.
EXPERIMENTS = {
    1: Experiment(Setting(30, 128, 0.1), "black", (0.9485, 0.9647, 0.9715)),
    2: Experiment(
        Setting(30, 128, 0.1),
        "#0072b2",
        (0.9496, 0.9600, 0.9675, 0.9761, 0.9755, 0.9775, 0.9791, 0.9795, 0.9781, 0.9810),
    ),
    3: Experiment(
        Setting(20, 256, 0.1),
        "#009e73",
        (0.9253, 0.9477, 0.9522, 0.9651, 0.9680, 0.9731, 0.9755, 0.9766, 0.9766, 0.9790),
    ),
    4: Experiment(
        Setting(10, 256, 0.5),
        "#d55e00",
        (0.9505, 0.9675, 0.9706, 0.9471, 0.9737, 0.8980, 0.9757, 0.9573, 0.9770, 0.9792),
    ),
}


class Result(NamedTuple):
    """What the runs of an experiment gave, a row for each seed, NaN after the end of a run that ended in NaN."""

    losses: np.ndarray  # (seeds, steps)
    averages: np.ndarray  # (seeds, steps), the moving average
    accuracies: np.ndarray  # (seeds, epochs), like the rest
    train_accuracies: np.ndarray
    seconds: np.ndarray

    def epoch(self, number: int) -> int:
        """Return the first step of an epoch."""
        return number * self.losses.shape[1] // self.accuracies.shape[1]


class Measurement(NamedTuple):
    """One value for each seed: said to be above 0, a ratio above 1, or within a margin of 0 where that is given."""

    text: str
    values: np.ndarray
    digits: int = 4
    ratio: bool = False
    margin: float | None = None


class Verdict(NamedTuple):
    """Median and 95 % interval, the p-value after Holm's correction, and the verdict."""

    median: float
    low: float
    high: float
    p_value: float
    words: str


def stack(runs: Sequence[Run], setting: Setting, images: int) -> Result:
    """Return the runs of one setting, one a seed, as arrays; `images` are those of the training set."""
    steps = setting.epochs * -(-images // setting.batch_size)

    def rows(name: str, width: int) -> np.ndarray:
        values = np.full((len(runs), width), np.nan)
        for row, run in zip(values, runs, strict=True):
            row[: len(getattr(run, name))] = getattr(run, name)
        return values

    losses = rows("losses", steps)
    averages = np.array([moving_average(row) for row in losses])
    return Result(
        losses, averages, *(rows(name, setting.epochs) for name in ("accuracies", "train_accuracies", "seconds"))
    )


def fluctuation(result: Result, starts: np.ndarray | int, stops: np.ndarray | int) -> np.ndarray:
    """Return for every seed the standard deviation, from a step to a step, of the loss around its moving average."""
    rows = zip(
        result.losses - result.averages, *np.broadcast_arrays(starts, stops, result.losses[:, 0])[:2], strict=True
    )
    return np.array([row[start:stop].std() if start < stop else np.nan for row, start, stop in rows])


def mean_loss(result: Result, epoch: int) -> np.ndarray:
    """Return for every seed the mean loss of one epoch."""
    return result.losses[:, result.epoch(epoch) : result.epoch(epoch + 1)].mean(axis=1)


def steps_until(result: Result, level: float) -> np.ndarray:
    """Return for every seed the step at which the moving average is first below a level, else the number of steps."""
    below = result.averages < level
    return np.where(below.any(axis=1), below.argmax(axis=1), below.shape[1])


def fluctuation_at(result: Result, level: float) -> np.ndarray:
    """Return for every seed the fluctuation while the moving average falls from 1.25 times a level to 0.8 times it."""
    return fluctuation(result, steps_until(result, 1.25 * level), steps_until(result, 0.8 * level))


def epochs_until(result: Result, level: float) -> np.ndarray:
    """Return for every seed the epochs until the moving average is first below a level."""
    return steps_until(result, level) * result.accuracies.shape[1] / result.losses.shape[1]


def seconds_until(result: Result, level: float) -> np.ndarray:
    """Return for every seed the seconds until the moving average is first below a level."""
    return epochs_until(result, level) * np.median(result.seconds, axis=1)


def measurements(two: Result, three: Result, four: Result) -> dict[str, list[Measurement]]:
    """Return for each of the five conclusions what tests it, of the results of experiments 2, 3 and 4."""
    accuracy = two.accuracies
    gains = np.diff(accuracy[:, 9:], axis=1)
    early, late = (fluctuation(two, two.epoch(epoch), two.epoch(epoch + 1)) for epoch in (2, 9))
    return {
        "(a) More epochs raise accuracy until it saturates and fluctuates.": [
            Measurement(
                "experiment 2, accuracy after epoch 9 less that after epoch 2", accuracy[:, 9] - accuracy[:, 2]
            ),
            Measurement(
                "mean accuracy of epochs 20 to 29 less that of epochs 10 to 19",
                accuracy[:, 20:].mean(axis=1) - accuracy[:, 10:20].mean(axis=1),
                margin=MARGIN,
            ),
            Measurement(
                "an epoch's gain in accuracy, epochs 10 to 29: standard deviation less mean",
                gains.std(axis=1) - gains.mean(axis=1),
            ),
        ],
        "(b) More epochs lower the loss and its fluctuation.": [
            Measurement(
                "experiment 2, mean loss of epoch 2 less that of epoch 9", mean_loss(two, 2) - mean_loss(two, 9)
            ),
            Measurement("fluctuation in epoch 2 less that in epoch 9", early - late),
        ],
        "(c) A larger batch learns more slowly per epoch but ends about as high.": [
            Measurement(
                "accuracy after epoch 0, experiment 2 less experiment 3", accuracy[:, 0] - three.accuracies[:, 0]
            ),
            Measurement(
                f"epochs until the loss is below {LEVEL}, experiment 3 less experiment 2",
                epochs_until(three, LEVEL) - epochs_until(two, LEVEL),
                2,
            ),
            Measurement(
                f"seconds until the loss is below {LEVEL}, experiment 3 less experiment 2",
                seconds_until(three, LEVEL) - seconds_until(two, LEVEL),
                2,
            ),
            Measurement(
                "equal epochs: accuracy after epoch 9, experiment 2 less experiment 3",
                accuracy[:, 9] - three.accuracies[:, 9],
                margin=MARGIN,
            ),
            Measurement(
                "equal steps: accuracy of experiment 2 after epoch 9 less that of experiment 3 after epoch 19",
                accuracy[:, 9] - three.accuracies[:, 19],
                margin=MARGIN,
            ),
        ],
        "(d) A larger batch has a smoother loss.": [
            Measurement(
                f"fluctuation at a loss of {LEVEL}, experiment 2 over experiment 3",
                fluctuation_at(two, LEVEL) / fluctuation_at(three, LEVEL),
                2,
                ratio=True,
            ),
        ],
        "(e) A higher learning rate falls faster and may fluctuate more.": [
            Measurement(
                "steps until the loss is below 0.5, experiment 3 less experiment 4",
                steps_until(three, 0.5) - steps_until(four, 0.5),
                0,
            ),
            Measurement(
                f"fluctuation at a loss of {LEVEL}, experiment 4 over experiment 3",
                fluctuation_at(four, LEVEL) / fluctuation_at(three, LEVEL),
                2,
                ratio=True,
            ),
            Measurement(
                "lowest accuracy after epochs 5 to 9, experiment 3 less experiment 4",
                three.accuracies[:, 5:10].min(axis=1) - four.accuracies[:, 5:10].min(axis=1),
            ),
        ],
    }


def p_value(measurement: Measurement) -> float:
    """Return the p-value of Wilcoxon's signed ranks: of values unlike 0, or of values within or beyond the margin."""
    # Rounded, so that differences that are alike count as such.
    values = (np.log(measurement.values) if measurement.ratio else measurement.values).round(9)
    if measurement.margin is None:
        return float(stats.wilcoxon(values).pvalue)
    sides = [(measurement.margin + sign * values).round(9) for sign in (1, -1)]
    within = max(stats.wilcoxon(side, alternative="greater").pvalue for side in sides)
    beyond = 2 * min(stats.wilcoxon(side, alternative="less").pvalue for side in sides)
    return float(min(within, beyond, 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values after Holm's correction for their number."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.sort(p_values) * np.arange(len(order), 0, -1)).clip(max=1)
    return adjusted


def verdicts(measured: Sequence[Measurement]) -> list[Verdict]:
    """Return a verdict for each of the measurements, corrected for the number of them all."""
    judged = []
    for measurement, p in zip(measured, holm([p_value(each) for each in measured]), strict=True):
        median = float(np.median(measurement.values))
        low, high = stats.quantile_test(measurement.values, p=0.5).confidence_interval(0.95)
        margin = measurement.margin
        so = median > measurement.ratio if margin is None else abs(median) < margin
        words = ("yes" if so else "no, the opposite") if p < SIGNIFICANT else "not shown"
        judged.append(Verdict(median, low, high, float(p), words))
    return judged


def overall(words: Sequence[str]) -> str:
    """Return what the verdicts on one conclusion come to."""
    count = words.count("yes")
    if all("opposite" in word for word in words):
        return "The opposite holds."
    return "It holds." if count == len(words) else "It holds partly." if count else "It is not shown."


def burst_step(losses: np.ndarray) -> int | None:
    """Return the first step that, once a loss was below 0.5, has a loss above that of guessing; None without one."""
    learned = np.maximum.accumulate(losses < 0.5)
    burst = learned & (losses > GUESSING)
    return int(burst.argmax()) if burst.any() else None


def cut(run: Run, setting: Setting, epochs: int, images: int) -> Run:
    """Return the first epochs of a run, for which burst_step and outcomes look no further."""
    return run._replace(
        losses=run.losses[: epochs * -(-images // setting.batch_size)], accuracies=run.accuracies[:epochs]
    )


def outcomes(runs: Sequence[Run], setting: Setting) -> list[str]:
    """Return how each run went: "NaN", "chance", "burst" (and not lost) or "calm"."""
    return [
        "NaN"
        if len(run.accuracies) < setting.epochs
        else "chance"
        if run.accuracies[-1] < CHANCE
        else "calm"
        if burst_step(run.losses) is None
        else "burst"
        for run in runs
    ]


def recovered(branch: Branch) -> bool:
    """Return whether a branch is an able network again at its end."""
    return branch.accuracy >= 0.9


def telling(bursts: dict[Job, dict[str, Branch]]) -> tuple[Job, dict[str, Branch]]:
    """Return the first burst that not all branches recover from, or else the first."""
    lost = [(job, branches) for job, branches in bursts.items() if not all(map(recovered, branches.values()))]
    return (lost or list(bursts.items()))[0]


def batch_noise(losses: np.ndarray, batch_size: int) -> float:
    """Return the standard deviation of the mean loss of a batch, over 100 shuffles of the losses of all images."""
    rng, count = np.random.default_rng(0), len(losses) // batch_size * batch_size
    return float(np.std([rng.permutation(losses)[:count].reshape(-1, batch_size).mean(axis=1) for _ in range(100)]))


def outside(values: np.ndarray, original: Sequence[float]) -> list[int]:
    """Return the epochs at which the original's accuracy, of four decimals, lies outside the range of all seeds."""
    values = values.round(4)
    return [i for i, accuracy in enumerate(original) if not values[:, i].min() <= accuracy <= values[:, i].max()]
