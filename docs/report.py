"""Run the experiments of report.md over several seeds, draw its figures, and fill in its numbers.

Run it from the project's folder: python -m docs.report [--help]. Runs are kept, so that a second call trains nothing.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy import stats

from docs import judge
from docs.judge import Result
from docs.runs import AROUND, FORMS, Job, Run, Setting, gather, machine
from numpy_fnn import Log
from numpy_mnist import DATA_DIR
from utils import WINDOW, DataError, load_dataset

matplotlib.use("Agg")
import matplotlib.pyplot as plt

plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3})

PAGE = Path(__file__).with_name("report.md")
FIGURES = PAGE.with_name("figures")
LOSS = f"training loss (nats per image),\nmean of {WINDOW} steps"
EPOCHS = 10

# What the original report gave after each epoch of its experiments.
ORIGINAL = {
    1: (0.9485, 0.9647, 0.9715),
    2: (0.9496, 0.9600, 0.9675, 0.9761, 0.9755, 0.9775, 0.9791, 0.9795, 0.9781, 0.9810),
    3: (0.9253, 0.9477, 0.9522, 0.9651, 0.9680, 0.9731, 0.9755, 0.9766, 0.9766, 0.9790),
    4: (0.9505, 0.9675, 0.9706, 0.9471, 0.9737, 0.8980, 0.9757, 0.9573, 0.9770, 0.9792),
}
# Experiments 2 and 3 go on after their EPOCHS; experiment 1 is the beginning of experiment 2.
EXPERIMENTS = {2: Setting(30, 128, 0.1), 3: Setting(20, 256, 0.1), 4: Setting(EPOCHS, 256, 0.5)}
COLORS = {2: "#0072b2", 3: "#009e73", 4: "#d55e00"}
DOUBLED = Setting(EPOCHS, 256, 0.2)
REPLACED = Setting(EPOCHS, 128, 0.1, replacement=True)
NUDGED = {
    number: setting._replace(epochs=EPOCHS, nudged=True) for number, setting in EXPERIMENTS.items()
}
SWEEP = (
    EXPERIMENTS[3],
    DOUBLED,
    EXPERIMENTS[4],
    Setting(EPOCHS, 256, 0.7),
    Setting(EPOCHS, 256, 1.0),
)
BY_FORMS = tuple(EXPERIMENTS[4]._replace(forms=forms) for forms in FORMS)
FAST = tuple(Setting(EPOCHS, 256, 1.0, forms) for forms in ("this lab", "exact cross-entropy"))
IN_BURST = ("this lab", "exact cross-entropy", "no shift and G / X")


def plan(seeds: int) -> dict[Setting, int]:
    """Return the number of seeds of each setting: all or, where less will do, half or a quarter of them."""
    compared = (
        *EXPERIMENTS.values(),
        DOUBLED,
        *(EXPERIMENTS[4]._replace(forms=forms) for forms in IN_BURST),
    )
    counts = dict.fromkeys((*SWEEP, *FAST, *NUDGED.values()), -(-seeds // 4))
    return (
        counts
        | dict.fromkeys((*BY_FORMS, REPLACED), -(-seeds // 2))
        | dict.fromkeys(compared, seeds)
    )


def draw_seeds(ax: Any, x: np.ndarray, rows: np.ndarray, color: str, label: str) -> None:
    """Draw a thin line for every seed, and their median."""
    ax.plot(x, rows.T, color=color, alpha=0.3, linewidth=0.5)
    ax.plot(x, np.median(rows, axis=0), color=color, linewidth=2, label=label)


def draw_losses(ax: Any, result: Result, epochs: int, per: int, color: str, label: str) -> None:
    """Draw the loss over the first epochs, counted in units of `per` steps."""
    steps = np.arange(epochs * result.steps - WINDOW // 2)  # their averages look at no later epoch
    draw_seeds(ax, steps / per, result.averages[:, : len(steps)], color, label)
    ax.set(yscale="log", xlabel="steps" if per == 1 else "epochs of training", ylabel=LOSS)


def plot_experiments(results: Mapping[int, Result]) -> Any:
    """Draw loss and accuracy of every seed, with the original's accuracies as marks."""
    figure, axes = plt.subplots(
        2, 3, figsize=(13, 7), sharex="col", sharey="row", layout="constrained"
    )
    for (number, result), (upper, lower) in zip(results.items(), axes.T, strict=True):
        (seeds, epochs), color = result.accuracies.shape, COLORS[number]
        draw_losses(upper, result, epochs, result.steps, color, "")
        draw_seeds(
            lower,
            np.arange(1, epochs + 1),
            result.accuracies,
            color,
            f"{seeds} seeds, thick their median",
        )
        for n, marker in ((1, "s"), (2, "D")) if number == 2 else ((number, "D"),):
            after = np.arange(1, len(ORIGINAL[n]) + 1)
            label = "original" if n == number else f"original, experiment {n}"
            lower.plot(after, ORIGINAL[n], marker, color="black", mfc="white", label=label)
        upper.set_title(
            "Experiment {}\nbatch size {}, learning rate {}".format(number, *result.setting[1:3])
        )
        lower.set_yscale(
            "logit"
        )  # so that accuracies near 1 can be told apart, and the worst is in the picture
        lower.set_yticks(
            ticks := (0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.98), map(str, ticks)
        )
        lower.minorticks_off()
        lower.set(xlabel="epochs of training", ylabel="test accuracy (fraction)")
        lower.locator_params(axis="x", integer=True)
    for ax in axes.flat:
        ax.label_outer()
    axes[1, 0].legend(loc="lower right")
    return figure


def plot_batches(*results: Result) -> Any:
    """Draw the loss of runs that differ in batch size and learning rate, counted in epochs and in steps."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    for result, color in zip(results, (COLORS[2], COLORS[3], "#e69f00"), strict=True):
        setting = "{} at {}".format(*result.setting[1:3])
        for ax, per, unit in zip(axes, (result.steps, 1), ("epochs", "steps"), strict=True):
            reached = (
                f"loss {judge.LEVEL} after {np.median(judge.steps_until(result)) / per:.4g} {unit}"
            )
            draw_losses(ax, result, EPOCHS, per, color, f"{setting}: {reached}")
            ax.legend(title="batch size at learning rate")
            ax.label_outer()
    axes[0].set_title("Per epoch, 256 at 0.2 falls on 128 at 0.1")
    axes[1].set_title("Per step, 256 at 0.1 is slightly ahead of 128 at 0.1")
    return figure


def plot_stairs(permuted: Result, replaced: Result) -> Any:
    """Draw the loss with images drawn in permutations and with replacement, the median of the seeds."""
    figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    for result, label, color in (
        (permuted, "permutation", COLORS[2]),
        (replaced, "integers", "black"),
    ):
        steps = np.arange(result.steps, EPOCHS * result.steps - WINDOW // 2)
        ax.plot(
            steps / result.steps,
            np.median(result.averages, axis=0)[steps],
            color=color,
            label=label,
        )
    ax.set(yscale="log", xlabel="epochs of training", ylabel=LOSS, xticks=range(1, EPOCHS + 1))
    ax.set_yticks(ticks := (0.02, 0.05, 0.1, 0.2), map(str, ticks))
    ax.minorticks_off()
    ax.legend()
    return figure


def plot_burst(courses: Mapping[str, tuple[np.ndarray, float]]) -> Any:
    """Draw one burst, from the same weights and batches on, with each of the forms; × is the end of a run."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.5), layout="constrained")
    labels = ("true loss (nats per image)", "share of images with p < ε", "norm of the gradient")
    for (forms, (course, accuracy)), color in zip(
        courses.items(), (COLORS[4], "#cc79a7", "black"), strict=True
    ):
        lost = len(course) < sum(AROUND)
        end = "NaN" if lost else f"accuracy {accuracy:.2f} after {AROUND[1]} steps"
        style: dict[str, Any] = {"marker": "x" if lost else "", "markersize": 10, "markevery": [-1]}
        for ax, values in zip(axes, course[:140].T, strict=True):
            ax.plot(
                np.arange(len(values)) - AROUND[0],
                values,
                color=color,
                label=f"{forms}: {end}",
                **style,
            )
    for loss, words in ((judge.GUESSING, "ln 10"), (-np.log(Log().epsilon), "−ln ε")):
        axes[0].axhline(loss, color="gray", linestyle=":")
        axes[0].text(
            0.99,
            loss,
            words,
            transform=axes[0].get_yaxis_transform(),
            ha="right",
            va="bottom",
            color="gray",
        )
    for ax, label, scale in zip(axes, labels, ("log", "linear", "symlog"), strict=True):
        ax.set(xlabel="step, from the first above ln 10", ylabel=label, yscale=scale)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def table(*rows: Sequence[object]) -> str:
    """Return a Markdown table, the first row its head."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(["\n", lines[0], "|" + " --- |" * len(rows[0]), *lines[1:], "\n"])


def accuracies_table(results: Mapping[int, Result], lost: str) -> tuple[str, int]:
    """Return the accuracies, with `lost` runs of the original's forms, and how many of its own, bold, are outside."""
    columns, outside = [["after epoch", *map(str, range(EPOCHS)), "ended in NaN"]], 0
    for number, original in ORIGINAL.items():
        values = results[max(number, 2)].accuracies.round(4)[:, :EPOCHS]
        low, median, high = (
            np.min(values, axis=0),
            np.median(values, axis=0),
            np.max(values, axis=0),
        )
        out = (low[: len(original)] > original) | (high[: len(original)] < original)
        outside += out.sum()
        cells = [
            f"**{value:.4f}**" if bold else f"{value:.4f}"
            for value, bold in zip(original, out, strict=True)
        ]
        columns.append(
            [
                f"original {number}",
                *cells,
                *[""] * (EPOCHS - len(cells)),
                lost if number == 4 else "",
            ]
        )
        if number > 1:
            cells = [f"{median[i]:.4f} ({low[i]:.4f} to {high[i]:.4f})" for i in range(EPOCHS)]
            columns.append(
                [
                    f"experiment {number}",
                    *cells,
                    f"{np.isnan(values[:, -1]).sum()} of {len(values)}",
                ]
            )
    return table(*zip(*columns, strict=True)), outside


def measured_table(measured: Sequence[judge.Measurement]) -> str:
    """Return what was measured for a conclusion, with counts and verdicts."""
    rows = [("measured", "concluded", "median", "95 % interval", "seeds", "verdict")]
    for text, values, concluded in measured:
        side = (
            f"within ±{judge.MARGIN:.4f}"
            if concluded == judge.ALIKE
            else f"above {concluded[0]:.0f}"
        )
        *bounds, count, words = judge.verdict(values, concluded)
        median, low, high = (
            f"{round(float(x), 4) + 0:.4g}" for x in (np.median(values), *bounds)
        )  # -0 + 0 is 0
        rows.append((text, side, median, f"{low} to {high}", count, words))
    return table(*rows)


def outcomes_table(head: str, groups: Mapping[object, Sequence[Run]]) -> str:
    """Return how the runs of each group ended, with the exact interval (Clopper and Pearson's) of those lost."""
    ends = ("no burst", "burst, not lost", "at chance", "NaN")
    rows: list[Sequence[object]] = [
        (head, "runs", *ends, "lost, 95 % interval", "last accuracy", "last loss")
    ]
    for name, runs in groups.items():
        outcomes = [judge.outcome(run) for run in runs]
        counts = [outcomes.count(end) for end in ends]
        low, high = stats.binomtest(sum(counts[2:]), len(runs)).proportion_ci()
        accuracy, loss = np.nanmedian(
            [(run.accuracies[-1], run.losses[-50:].mean()) for run in runs], axis=0
        )
        rows.append(
            (name, len(runs), *counts, f"{low:.0%} to {high:.0%}", f"{accuracy:.4f}", f"{loss:.3g}")
        )
    return table(*rows)


def fill(page: str, contents: Mapping[str, object]) -> str:
    """Return the page with each `<!-- name -->...<!-- end -->` filled anew; a name without contents is a KeyError."""
    mark = re.compile(r"(<!-- (?!end)(.*?) -->).*?(?=<!-- end -->)", re.DOTALL)
    return mark.sub(lambda match: f"{match[1]}{contents[match[2]]}", page)


def refresh(runs: Mapping[Setting, Sequence[Run]], courses: Mapping[str, Any], burst: Job) -> None:
    """Draw the figures and fill in the report."""
    experiments = {n: judge.stack(f"experiment {n}", s, runs[s]) for n, s in EXPERIMENTS.items()}
    two, three, four = experiments.values()
    doubled, replaced = (
        judge.stack(name, s, runs[s])
        for name, s in (("256 at 0.2", DOUBLED), ("integers", REPLACED))
    )
    plot_experiments(experiments).savefig(FIGURES / "experiments.png")
    plot_batches(two, three, doubled).savefig(FIGURES / "batches.png")
    plot_stairs(two, replaced).savefig(FIGURES / "stairs.png")
    plot_burst(courses).savefig(FIGURES / "burst.png")

    ends = [judge.outcome(run) for run in runs[BY_FORMS[-1]]]
    accuracies, outside = accuracies_table(experiments, f"{ends.count('NaN')} of {len(ends)}")
    measured = judge.measurements(two, three, four, doubled)
    seeds, count = len(runs[DOUBLED]), sum(map(len, measured.values()))
    missing = count * 2 * stats.binom.cdf(judge.rank(seeds) - 1, seeds, 0.5)
    slow = [
        Run(run.losses[: len(run.losses) // 2], run.accuracies[:EPOCHS])
        for run in runs[EXPERIMENTS[3]]
    ]
    contents = {
        "machine": machine(),
        "seeds": seeds,
        "ranks": f"{judge.rank(seeds)} and {seeds + 1 - judge.rank(seeds)}",
        "margin": f"{judge.MARGIN:.4f}",
        "missing": f"{missing:.1f} of {count}",
        "accuracies": accuracies,
        "outside": f"{outside} are outside; {2 * sum(map(len, ORIGINAL.values())) / (seeds + 1):.1f}",
        "rates": outcomes_table(
            "learning rate", {"0.1": slow} | {s.learning_rate: runs[s] for s in SWEEP[1:]}
        ),
        "forms": outcomes_table(
            "forms", {f"{s.forms}, {s.learning_rate}": runs[s] for s in (*BY_FORMS, *FAST)}
        ),
        "burst": f"seed {burst.seed}, step {burst.burst}" if burst.burst else "none",
    }
    contents |= {f"conclusion {letter}": measured_table(rows) for letter, rows in measured.items()}
    for result, name in ((two, "permutation"), (replaced, "integers")):
        contents[name] = ", ".join(
            f"{share:+.0%}" for share in np.median(judge.stairs(result), axis=0)
        )
    for n, setting in NUDGED.items():
        pairs = zip(runs[EXPERIMENTS[n]], runs[setting], strict=False)
        moved = [abs(run.accuracies[:EPOCHS] - other.accuracies).max() for run, other in pairs]
        contents[f"nudged {n}"] = f"{max(moved):.4f}"
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), contents), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all runs, draw the figures, fill in the report, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.report",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-dir", default=DATA_DIR, help="folder of the data sets")
    parser.add_argument(
        "--seeds", type=int, default=20, help="runs of each experiment, from seed 0 on"
    )
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"--seeds is {options.seeds}, expected 2 or more")
    counts = plan(options.seeds)
    # Seed by seed, so that whatever else the machine does disturbs all settings alike.
    jobs = [
        Job(setting, seed)
        for seed in range(options.seeds)
        for setting, count in counts.items()
        if seed < count
    ]
    try:
        dataset = load_dataset("MNIST", options.data_dir)
        done = dict(zip(jobs, gather(jobs, dataset), strict=True))
        runs = {
            setting: [done[Job(setting, seed)] for seed in range(count)]
            for setting, count in counts.items()
        }
        bursting = runs[EXPERIMENTS[4]]
        seed = int(
            np.argmax(
                [np.nanmax(run.losses) if judge.burst_step(run.losses) else 0 for run in bursting]
            )
        )
        step = judge.burst_step(bursting[seed].losses)
        jobs = [Job(EXPERIMENTS[4]._replace(forms=forms), seed, step) for forms in IN_BURST]
        courses = dict(zip(IN_BURST, gather(jobs, dataset), strict=True))
    except DataError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print("Interrupted; the runs that ended are kept.", file=sys.stderr)
        return 130
    refresh(runs, courses, jobs[0])
    print(f"Filled in {PAGE} and drew the figures in {FIGURES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
