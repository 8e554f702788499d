"""Judge what runs say, by the rule that report.md tells: medians, their intervals, and counts of seeds."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from docs.runs import Run, Setting
from utils import moving_average

GUESSING = math.log(10)  # the loss of ten classes with the same probability
MARGIN = (
    2 * (0.98 * 0.02 / 10000) ** 0.5
)  # twice the standard error of an accuracy of 0.98 on 10,000 images
LEVEL = 0.1  # the loss at which runs are compared
ABOVE_0, ABOVE_1, ALIKE = (0.0, math.inf), (1.0, math.inf), (-MARGIN, MARGIN)


class Result(NamedTuple):
    """What the runs of a setting gave, a row for each seed, NaN after the end of a run that ended in NaN."""

    name: str
    setting: Setting
    steps: int  # of an epoch
    losses: np.ndarray  # of every step
    averages: np.ndarray  # the moving average of the losses
    accuracies: np.ndarray  # of every epoch


Quantity = Callable[[Result], np.ndarray]  # one value for each seed
Side = tuple[float, float]  # the open interval in which a quantity lies by what was concluded
Measurement = tuple[str, np.ndarray, Side]


def stack(name: str, setting: Setting, runs: Sequence[Run]) -> Result:
    """Return the runs of one setting, one a seed, as arrays."""
    losses, accuracies = map(np.array, zip(*runs, strict=True))
    averages = np.array([moving_average(row) for row in losses])
    return Result(name, setting, losses.shape[1] // setting.epochs, losses, averages, accuracies)


def steps_until(result: Result, level: float = LEVEL) -> np.ndarray:
    """Return for every seed the step at which the moving average is first below a level, else the number of steps."""
    below = result.averages < level
    return np.where(below.any(axis=1), below.argmax(axis=1), below.shape[1])


def fluctuation(result: Result, first: int, last: int) -> np.ndarray:
    """Return for every seed, of some epochs, the standard deviation of the loss around its moving average."""
    return (result.losses - result.averages)[
        :, first * result.steps : (last + 1) * result.steps
    ].std(axis=1)


def fluctuation_at_level(result: Result) -> np.ndarray:
    """Return for every seed the fluctuation while the moving average falls from 1.25 times LEVEL to 0.8 times it."""
    starts, stops = steps_until(result, 1.25 * LEVEL), steps_until(result, 0.8 * LEVEL)
    rows = zip(result.losses - result.averages, starts, stops, strict=True)
    return np.array([row[start:stop].std() for row, start, stop in rows])


def stairs(result: Result) -> np.ndarray:
    """Return for every seed by which share the loss changes at the ends of epochs 3 to 8: means of 80 steps."""
    ends = np.arange(4, 10)[:, None] * result.steps
    before, after = (
        result.losses[:, ends + np.arange(first, first + 80)].mean(axis=2) for first in (-80, 0)
    )
    return after / before - 1


def compare(
    what: str, of: Quantity, first: Result, second: Result, concluded: Side = ABOVE_0
) -> Measurement:
    """Return by how much or, where that is to be above 1, by which factor a quantity is larger in the first result."""
    values, word = (
        (of(first) / of(second), "over")
        if concluded == ABOVE_1
        else (of(first) - of(second), "less")
    )
    return f"{what}: {first.name} {word} {second.name}", values, concluded


def measurements(
    two: Result, three: Result, four: Result, doubled: Result
) -> dict[str, list[Measurement]]:
    """Return for each of the six conclusions what tests it; `doubled` has twice the batch and the rate of `two`."""
    falls = (np.diff(two.accuracies[:, 10:30], axis=1) < 0).sum(axis=1)
    early, late = (
        two.accuracies[:, epochs].mean(axis=1) for epochs in (slice(10, 20), slice(20, 30))
    )
    loss_2, loss_9 = (
        two.losses[:, n * two.steps : (n + 1) * two.steps].mean(axis=1) for n in (2, 9)
    )
    tenth, fluctuates = two.accuracies[:, 9], f"fluctuation at a loss of {LEVEL}"
    equal_steps = f"accuracy: {two.name} after epoch 9 less {three.name} after epoch 19"
    return {
        "a": [
            ("accuracy, after epoch 9 less after epoch 2", tenth - two.accuracies[:, 2], ABOVE_0),
            ("mean accuracy, epochs 20 to 29 less epochs 10 to 19", late - early, ALIKE),
            ("epochs from 11 to 29 in which the accuracy falls, of 19", falls, ABOVE_0),
        ],
        "b": [
            ("mean loss, epoch 2 less epoch 9", loss_2 - loss_9, ABOVE_0),
            (
                "fluctuation, epoch 2 less epoch 9",
                fluctuation(two, 2, 2) - fluctuation(two, 9, 9),
                ABOVE_0,
            ),
        ],
        "c": [
            compare("accuracy after epoch 0", lambda r: r.accuracies[:, 0], two, three),
            compare(
                f"epochs until the loss is {LEVEL}", lambda r: steps_until(r) / r.steps, three, two
            ),
            compare("accuracy after epoch 9", lambda r: r.accuracies[:, 9], two, three, ALIKE),
            (equal_steps, tenth - three.accuracies[:, 19], ALIKE),
            compare("accuracy after epoch 9", lambda r: r.accuracies[:, 9], two, doubled, ALIKE),
        ],
        "d": [
            compare(fluctuates, fluctuation_at_level, two, three, ABOVE_1),
            compare(
                "fluctuation in epochs 0 to 9", lambda r: fluctuation(r, 0, 9), two, three, ABOVE_1
            ),
            compare(
                "fluctuation in epochs 0 to 5", lambda r: fluctuation(r, 0, 5), two, three, ABOVE_1
            ),
            compare(
                "fluctuation in epochs 6 to 9", lambda r: fluctuation(r, 6, 9), two, three, ABOVE_1
            ),
        ],
        "e": [
            compare(f"steps until the loss is {LEVEL}", steps_until, three, four),
            compare(fluctuates, fluctuation_at_level, four, three, ABOVE_1),
            compare(
                "lowest accuracy after epochs 5 to 9",
                lambda r: r.accuracies[:, 5:10].min(axis=1),
                three,
                four,
            ),
        ],
        "f": [
            compare("accuracy after epoch 0", lambda r: r.accuracies[:, 0], four, three),
            compare("accuracy after epoch 2", lambda r: r.accuracies[:, 2], four, three),
        ],
    }


def rank(count: int) -> int:
    """Return which of the sorted values, counted from either end, bounds the sign test's 95 % interval; 0 if none."""
    return int(stats.binom.ppf(0.025, count, 0.5))


def verdict(values: np.ndarray, concluded: Side) -> tuple[float, float, str, str]:
    """Return the interval of the median, in how many seeds a quantity is as was concluded, and the verdict."""
    (least, most), place, ordered = concluded, rank(len(values)), np.sort(values)
    low, high = (ordered[place - 1], ordered[-place]) if place else (-math.inf, math.inf)
    inside, beyond = least < low and high < most, high < least or most < low
    count = f"{((least < values) & (values < most)).sum()} of {len(values)}"
    return low, high, count, "as concluded" if inside else "the opposite" if beyond else "not shown"


def burst_step(losses: np.ndarray) -> int:
    """Return the first step that, once a loss was below 0.5, has a loss above that of guessing; 0 without one."""
    learned = np.maximum.accumulate(losses < 0.5)
    return int(np.argmax(learned & (losses > GUESSING)))


def outcome(run: Run) -> str:
    """Return how a run ended: "NaN", "at chance" (below 0.2), "burst, not lost" or "no burst"."""
    if np.isnan(run.accuracies[-1]):
        return "NaN"
    if run.accuracies[-1] < 0.2:
        return "at chance"
    return "burst, not lost" if burst_step(run.losses) else "no burst"
