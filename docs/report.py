"""Fill in the numbers of report.md and draw its figures.

This program reads the file that docs.runs saved. Arrays of runs have a column for each seed.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np

from docs.runs import FILE, SETTINGS
from utils import WINDOW, moving_average

matplotlib.use("Agg")
import matplotlib.pyplot as plt

plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3})

PAGE = Path(__file__).with_name("report.md")
FIGURES = PAGE.with_name("figures")
MARK = re.compile("(<!-- (?!end)(.*?) -->)(.*?)(?=<!-- end -->)", re.DOTALL)
LOSS = f"training loss (nats per image),\nmean of {WINDOW} steps"
EPOCHS = 10
COLORS = ("#0072b2", "#009e73", "#d55e00")

# The accuracies that the original report gave after each epoch of its experiments.
ORIGINAL = {
    1: (0.9485, 0.9647, 0.9715),
    2: (0.9496, 0.9600, 0.9675, 0.9761, 0.9755, 0.9775, 0.9791, 0.9795, 0.9781, 0.9810),
    3: (0.9253, 0.9477, 0.9522, 0.9651, 0.9680, 0.9731, 0.9755, 0.9766, 0.9766, 0.9790),
    4: (0.9505, 0.9675, 0.9706, 0.9471, 0.9737, 0.8980, 0.9757, 0.9573, 0.9770, 0.9792),
}

# Twice the standard error of an accuracy of 0.98 on 10,000 images.
MARGIN = 2 * math.sqrt(0.98 * 0.02 / 10000)
# What a claim expects of a quantity, in words and as two bounds, and the quantity's format.
ABOVE_0 = ("above 0", 0, math.inf, ".4f")
ABOVE_1 = ("above 1", 1, math.inf, ".2f")
NEAR_0 = (f"within ±{MARGIN:.4f}", -MARGIN, MARGIN, ".4f")
NEAR_1 = ("0.9 to 1.1", 0.9, 1.1, ".2f")


class Runs(NamedTuple):
    """The runs of one setting."""

    losses: np.ndarray  # of every step
    averages: np.ndarray  # the moving averages of the losses
    accuracies: np.ndarray  # after every epoch
    epoch_steps: int

    def epochs_until(self, level: float) -> np.ndarray:
        """Return after how many epochs the moving average is below a level for the first time."""
        return (self.averages < level).argmax(axis=0) / self.epoch_steps

    def fluctuation(self, first: int, last: int) -> np.ndarray:
        """Return the fluctuation from epoch `first` to epoch `last`, counted from 1."""
        deviations = self.losses - self.averages
        return deviations[(first - 1) * self.epoch_steps : last * self.epoch_steps].std(axis=0)

    def fluctuation_at_level(self) -> np.ndarray:
        """Return the fluctuation while the moving average falls from 0.125 to 0.08."""
        starts = (self.averages < 0.125).argmax(axis=0)
        stops = (self.averages < 0.08).argmax(axis=0)
        columns = zip((self.losses - self.averages).T, starts, stops, strict=True)
        return np.array([column[start:stop].std() for column, start, stop in columns])


def spread(values: np.ndarray, form: str = ".4f") -> str:
    """Return the median and the range of the values, as text."""
    return f"{np.median(values):{form}} ({values.min():{form}} to {values.max():{form}})"


def verdict(count: int, seeds: int) -> str:
    """Return the verdict on a claim whose quantity is as expected in `count` of the seeds."""
    if count >= 0.75 * seeds:
        return "yes"
    return "no" if count <= 0.25 * seeds else "not shown"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, whose head is the first row."""
    head, *lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(["\n", head, re.sub(r"[^|]+", " --- ", head), *lines, "\n"])


def quantity_table(runs: Mapping[str, Runs]) -> str:
    """Return the table of quantities, each with its claim and what the claim expects."""
    two = runs["experiment 2"]
    three = runs["experiment 3"]
    four = runs["experiment 4"]
    doubled = runs["256 at 0.2"]
    acc_2 = two.accuracies
    acc_3 = three.accuracies
    late_gain = acc_2[20:].mean(axis=0) - acc_2[10:20].mean(axis=0)
    loss = two.losses.reshape(len(acc_2), two.epoch_steps, -1).mean(axis=1)
    calming = two.fluctuation(3, 3) - two.fluctuation(10, 10)
    pace = doubled.epochs_until(0.1) / two.epochs_until(0.1)
    behind = acc_2[9] - doubled.accuracies[9]
    smoother = two.fluctuation_at_level() / three.fluctuation_at_level()
    smoother_overall = two.fluctuation(2, 10) / three.fluctuation(2, 10)
    smoother_late = two.fluctuation(7, 10) / three.fluctuation(7, 10)
    faster = three.epochs_until(0.1) / four.epochs_until(0.1)
    rougher = four.fluctuation_at_level() / three.fluctuation_at_level()
    quantities = [
        ("(a) accuracy: epoch 10 minus epoch 3", acc_2[9] - acc_2[2], ABOVE_0),
        ("(a) mean accuracy: epochs 21 to 30 minus epochs 11 to 20", late_gain, NEAR_0),
        ("(b) mean loss: epoch 3 minus epoch 10", loss[2] - loss[9], ABOVE_0),
        ("(b) fluctuation: epoch 3 minus epoch 10", calming, ABOVE_0),
        ("(c) accuracy after epoch 1: 128 minus 256", acc_2[0] - acc_3[0], ABOVE_0),
        ("(c) accuracy after epoch 10: 128 minus 256", acc_2[9] - acc_3[9], NEAR_0),
        ("(c) accuracy: 128 after epoch 10 minus 256 after epoch 20", acc_2[9] - acc_3[19], NEAR_0),
        ("(c) epochs until the loss is 0.1: 256 at 0.2 over 128", pace, NEAR_1),
        ("(c) accuracy after epoch 10: 128 minus 256 at 0.2", behind, NEAR_0),
        ("(d) fluctuation at a loss of 0.1: 128 over 256", smoother, ABOVE_1),
        ("(d) fluctuation in epochs 2 to 10: 128 over 256", smoother_overall, ABOVE_1),
        ("(d) fluctuation in epochs 7 to 10: 128 over 256", smoother_late, ABOVE_1),
        ("(e) epochs until the loss is 0.1: 0.1 over 0.5", faster, ABOVE_1),
        ("(e) fluctuation at a loss of 0.1: 0.5 over 0.1", rougher, ABOVE_1),
        ("(f) accuracy after epoch 1: 0.5 minus 0.1", four.accuracies[0] - acc_3[0], ABOVE_0),
    ]
    rows = [["quantity", "expected", "median (range)", "seeds", "verdict"]]
    for name, values, (expected, low, high, form) in quantities:
        count = int(((low < values) & (values < high)).sum())
        counted = f"{count} of {len(values)}"
        rows.append([name, expected, spread(values, form), counted, verdict(count, len(values))])
    return table(rows)


def accuracy_table(runs: Mapping[str, Runs]) -> str:
    """Return the table of accuracies; the original's are bold if outside the range of the runs."""
    columns = [["after epoch", *map(str, range(1, EPOCHS + 1))]]
    for number, original in ORIGINAL.items():
        name = f"experiment {max(number, 2)}"  # experiment 1 is the beginning of experiment 2
        accuracies = runs[name].accuracies[:EPOCHS].round(4)
        cells = [""] * EPOCHS
        for epoch, value in enumerate(original):
            inside = accuracies[epoch].min() <= value <= accuracies[epoch].max()
            cells[epoch] = f"{value:.4f}" if inside else f"**{value:.4f}**"
        columns.append([f"original {number}", *cells])
        if number > 1:
            columns.append([name, *map(spread, accuracies)])
    return table(zip(*columns, strict=True))


def contents(runs: Mapping[str, Runs]) -> dict[str, str]:
    """Return the text to fill in at each mark of the page."""
    accuracies = runs["experiment 2"].accuracies
    seeds = accuracies.shape[1]
    losses = runs["experiment 4"].losses
    spikes = np.maximum.accumulate(losses < 0.5) & (losses > math.log(10))
    lost = np.isnan(runs["original formulas"].accuracies[-1]).sum()
    values = {
        "seeds": str(seeds),
        "accuracies": accuracy_table(runs),
        "falls": spread((np.diff(accuracies[10:], axis=0) < 0).sum(axis=0), "g"),
        "quantities": quantity_table(runs),
        "spikes": f"{spikes.any(axis=0).sum()} of {seeds}",
        "lost": f"{lost} of {seeds}",
    }
    values["outside"] = str(values["accuracies"].count("**") // 2)
    for name in ("experiment 2", "experiment 4"):
        changes = runs[name].accuracies[:EPOCHS] - runs[f"{name}, nudged"].accuracies
        values[f"{name}, nudged"] = spread(abs(changes).max(axis=0))
    return values


def draw(ax: Any, columns: np.ndarray, per_epoch: int, color: str, **style: Any) -> None:
    """Draw a thin line for each seed, and a thick line for their median, over the epochs."""
    epochs = np.arange(1, len(columns) + 1) / per_epoch
    ax.plot(epochs, columns, color=color, alpha=0.3, linewidth=0.5)
    ax.plot(epochs, np.median(columns, axis=1), color=color, linewidth=2, zorder=3, **style)
    ax.set_xlabel("epochs of training")


def plot_experiments(runs: Mapping[str, Runs]) -> Any:
    """Draw loss and accuracy of the experiments, and the original's accuracies as marks."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), sharex="col", sharey="row", layout="tight")
    for number, (upper, lower), color in zip((2, 3, 4), axes.T, COLORS, strict=True):
        name = f"experiment {number}"
        title = "{}\nbatch size {}, learning rate {}".format(name, *SETTINGS[name][1:3])
        draw(upper, runs[name].averages[: -WINDOW // 2], runs[name].epoch_steps, color)
        upper.set(title=title, xlabel="")
        draw(lower, runs[name].accuracies, 1, color, label="median of the seeds")
        lower.plot(range(1, 11), ORIGINAL[number], "kD", mfc="white", label="original")
        lower.locator_params(axis="x", integer=True)
        lower.set_yscale("logit")  # separates accuracies near 1
        lower.legend(loc="lower right")
    axes[0, 0].set(yscale="log", ylabel=LOSS)
    ticks = (0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.98)
    axes[1, 0].set(ylabel="test accuracy", yticks=ticks, yticklabels=ticks)
    axes[1, 0].minorticks_off()
    return figure


def plot_batches(runs: Mapping[str, Runs]) -> Any:
    """Draw the loss for two batch sizes and two learning rates."""
    figure, ax = plt.subplots(figsize=(9, 4.5), layout="tight")
    lines = {"experiment 2": "-", "experiment 3": "-", "256 at 0.2": ":"}
    for (name, line), color in zip(lines.items(), COLORS, strict=True):
        label = "batch size {}, learning rate {}".format(*SETTINGS[name][1:3])
        averages = runs[name].averages[: EPOCHS * runs[name].epoch_steps - WINDOW // 2]
        draw(ax, averages, runs[name].epoch_steps, color, linestyle=line, label=label)
    ax.set(yscale="log", ylabel=LOSS)
    ax.legend()
    return figure


def main() -> None:
    """Read the runs, fill in the page, and draw the figures."""
    file = np.load(FILE)
    runs = {}
    for name, setting in SETTINGS.items():
        losses = file[f"{name}: losses"]
        averages = np.column_stack([moving_average(column) for column in losses.T])
        accuracies = file[f"{name}: accuracies"]
        runs[name] = Runs(losses, averages, accuracies, len(losses) // setting.epochs)
    values = contents(runs) | {"machine": str(file["machine"])}
    page = MARK.sub(lambda match: match[1] + values[match[2]], PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")
    plot_experiments(runs).savefig(FIGURES / "experiments.png")
    plot_batches(runs).savefig(FIGURES / "batches.png")


if __name__ == "__main__":
    main()
