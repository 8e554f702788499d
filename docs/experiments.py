"""Run the experiments of report.md over several seeds and refresh its tables and figures.

Run it from the project's folder: python -m docs.experiments [--help]. Runs are kept, so that a second call draws and
writes without training.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import scipy
from scipy import stats

from docs import judge
from docs.judge import EXPERIMENTS, Result
from docs.runs import AROUND, BRANCHES, FORMS, Branch, Job, Run, Setting, gather, machine
from numpy_fnn import Log, NumpyLoss, NumpyModel, Softmax
from numpy_mnist import DATA_DIR
from utils import WINDOW, Dataset, draw_mistakes, load_dataset, one_hot

matplotlib.use("Agg")
import matplotlib.pyplot as plt

plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3})

REPORT = Path(__file__).with_name("report.md")
DERIVATIONS = "derivations.md"  # beside it, with one table of numbers
FIGURES = REPORT.with_name("figures")
LEVELS = (0.3, 0.2, 0.1, 0.05)  # losses at which fluctuations are compared
SHOWN = 120  # steps of a branch in the picture
BATCH_SIZES = (32, 64, 128, 256, 512, 1024)
SMALL = EXPERIMENTS[2].trained._replace(epochs=len(EXPERIMENTS[2].original))  # of its seed 0 the weights are looked at
BURSTING = EXPERIMENTS[4].trained
SWEEP = {rate: BURSTING._replace(learning_rate=rate) for rate in (0.2, 0.3, 0.5, 0.7, 1.0)}  # and 0.1 is experiment 3
COLORS = dict(zip(BRANCHES, (EXPERIMENTS[4].color, "#cc79a7", "black"), strict=True))
OUTCOMES = {"calm": "no burst", "burst": "burst, not lost", "chance": "ended at chance", "NaN": "ended in NaN"}


def title(number: int) -> str:
    """Return the name of an experiment with its hyperparameters."""
    (_, batch_size, rate, *_), _, original = EXPERIMENTS[number]
    return f"Experiment {number}: {len(original)} epochs, batch size {batch_size}, learning rate {rate}"


# ---- pictures


def save(figure: Any, name: str) -> None:
    """Write a picture for the report."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / name, dpi=100)
    plt.close(figure)


def draw_seeds(ax: Any, x: np.ndarray, rows: np.ndarray, label: str, color: str, linestyle: str = "-") -> None:
    """Draw a thin line for every seed, and their median; `x` is (points,) or (seeds, points)."""
    ax.plot(np.broadcast_to(x, rows.shape).T, rows.T, color=color, alpha=0.35, linewidth=0.5)
    medians = np.median(np.atleast_2d(x), axis=0), np.median(rows, axis=0)
    ax.plot(*medians, linestyle, color=color, linewidth=2, label=label)


def accuracy_axis(ax: Any) -> None:
    """Stretch accuracies near 1, so that the worst value is in the picture and the usual ones can be told apart."""
    ax.set_yscale("logit")
    low, high = ax.get_ylim()
    fine, coarse = (0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.98), (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
    ticks = [tick for tick in (fine if low > 0.8 else coarse) if low <= tick <= high]
    ax.set_yticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.set(xlabel="after epoch", ylabel="test accuracy (fraction)")


def plot_experiment(number: int, result: Result) -> None:
    """Draw loss and accuracy of every seed, with the original's accuracies as marks."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    _, color, original = EXPERIMENTS[number]
    epochs = len(original)
    steps = np.arange(result.epoch(epochs) - WINDOW // 2)  # their averages look at no later epoch
    seeds = f"{len(result.losses)} seeds and their median"
    draw_seeds(left, steps / result.epoch(1), result.averages[:, : len(steps)], seeds, color)
    left.set(xlabel="epoch", ylabel=f"training loss (nats per image),\nmean of {WINDOW} steps", yscale="log")
    draw_seeds(right, np.arange(epochs), result.accuracies[:, :epochs], seeds, color)
    for other in (number,) if number > 2 else (1, 2):
        marks, label = EXPERIMENTS[other].original, f"original, experiment {other}"
        right.plot(marks, "D" if other == number else "s", color="black", mfc="white", label=label)
    accuracy_axis(right)
    figure.suptitle(title(number))
    for ax in (left, right):
        ax.legend()
    save(figure, f"experiment_{number}.png")


def plot_comparison(results: dict[int, Result]) -> None:
    """Draw the loss of the experiments, counted in epochs, steps and seconds."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.5), sharey=True, layout="constrained")
    for number, result in results.items():
        (_, batch_size, rate, *_), color, original = EXPERIMENTS[number]
        steps = np.arange(result.epoch(len(original)) - WINDOW // 2)
        epochs = steps / result.epoch(1)
        label = f"{number}: batch size {batch_size}, learning rate {rate}"
        for ax, x in zip(axes, (epochs, steps, epochs * np.median(result.seconds)), strict=True):
            draw_seeds(ax, x, result.averages[:, : len(steps)], label, color)
    axes[0].set(ylabel=f"training loss (nats per image),\nmean of {WINDOW} steps", yscale="log")
    for ax, unit in zip(axes, ("epochs", "steps", "seconds of training"), strict=True):
        ax.set_xlabel(unit)
    figure.suptitle("Per epoch the smaller batch leads, per step neither; the higher rate is ahead until it bursts")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, title="experiment")
    save(figure, "comparison.png")


def plot_saturation(result: Result) -> None:
    """Draw training and test accuracy of the long experiment 2."""
    figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    epochs = np.arange(result.accuracies.shape[1])
    draw_seeds(ax, epochs, result.train_accuracies, "training (first 10,000 images)", "gray", "--")
    draw_seeds(ax, epochs, result.accuracies, "test", EXPERIMENTS[2].color)
    ax.set(xlabel="after epoch", ylabel="accuracy (fraction)")
    ax.set_title("Experiment 2 continued: the training images are learned, the test accuracy hardly moves")
    ax.legend()
    save(figure, "saturation.png")


def plot_noise(noise: dict[int, float], sigma: float) -> None:
    """Draw how the loss of a batch scatters at fixed weights, beside σ/√B."""
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    sizes = np.array(list(noise))
    ax.plot(sizes, sigma / np.sqrt(sizes), "--", color="gray", label="σ/√B")
    ax.plot(sizes, list(noise.values()), "o", color=EXPERIMENTS[2].color, label="measured")
    ax.set(xscale="log", yscale="log", xlabel="batch size B", ylabel="standard deviation of the loss\n(nats per image)")
    ax.set_xticks(sizes, sizes)
    ax.set_yticks(list(noise.values()), [f"{deviation:.4f}" for deviation in noise.values()])
    ax.minorticks_off()
    ax.set_title("Fixed weights: four times the batch, half the noise")
    ax.legend()
    save(figure, "noise.png")


def plot_outcomes(groups: dict[str, list[Run]]) -> None:
    """Draw for each learning rate which share of its runs ended how."""
    figure, ax = plt.subplots(figsize=(8, 4), layout="constrained")
    names, bottom = [f"{rate}\n{len(runs)} runs" for rate, runs in groups.items()], np.zeros(len(groups))
    for (key, label), color in zip(OUTCOMES.items(), ("#dddddd", "#f0e442", "#777777", "black"), strict=True):
        shares = np.array([judge.outcomes(runs, BURSTING).count(key) / len(runs) for runs in groups.values()])
        ax.bar(names, shares, bottom=bottom, color=color, edgecolor="white", label=label)
        bottom += shares
    ax.set_axisbelow(True)
    ax.set(xlabel="learning rate", ylabel="share of the runs")
    figure.suptitle("Up to a learning rate of 0.7 most runs have no burst, at 1.0 most never learn")
    figure.legend(loc="outside right center")
    save(figure, "rates.png")


def plot_burst(branches: dict[str, Branch], name: str) -> None:
    """Draw one burst, from the same weights and batches in each of the branches."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), sharex=True, layout="constrained")
    labels = ("true loss (nats per image)", "recorded loss", "share of images with p < ε", "norm of the gradient")
    for forms, (course, accuracy) in branches.items():
        alive = np.isfinite(course[:, 0])
        end = f"accuracy {accuracy:.3f} after {AROUND[1]} steps" if alive.all() else "ended in NaN"
        steps, shown = np.arange(len(course))[alive][:SHOWN] - AROUND[0], course[alive][:SHOWN]
        for ax, label, values in zip(axes.flat, labels, shown.T, strict=True):
            ax.plot(steps, values, color=COLORS[forms], label=f"{forms}: {end}")
            if not alive.all():
                ax.plot(steps[-1], values[-1], "x", color=COLORS[forms], markersize=10, markeredgewidth=3)
            ax.set(ylabel=label, yscale="linear" if "share" in label else "symlog" if "norm" in label else "log")
    for ax in axes[0]:
        for loss, name_of in ((judge.GUESSING, "ln 10"), (-np.log(1e-12), "−ln ε")):
            ax.axhline(loss, color="gray", linestyle=":")
            ax.text(0.99, loss, name_of, transform=ax.get_yaxis_transform(), ha="right", va="bottom", color="gray")
    for ax in axes[1]:
        ax.set_xlabel("step, from the first whose loss is above that of guessing")
    figure.suptitle(f"One burst, {name}: who comes back (× where a run ends in NaN)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, "burst.png")


def plot_mistakes(model: NumpyModel, images: np.ndarray, labels: np.ndarray) -> None:
    """Draw the test digits of which the network is most certain and wrong."""
    figure, ax = plt.subplots(figsize=(10, 4.4), layout="constrained")
    draw_mistakes(ax, model.forward(images), images, labels, rows=3, columns=8)
    save(figure, "mistakes.png")


# ---- tables


def table(*rows: Sequence[object]) -> str:
    """Return a Markdown table, the first row its head."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def clip_section() -> str:
    """Return what the operators make of one wrong class that is ahead by Δ, in float32."""
    rows: list[Sequence[str]] = [("Δ", "p", "gradient that reaches the scores, of cross-entropy's")]
    for ahead in (10, 20, 25, -np.log(1e-12), 30, 40, 80, 104):
        softmax, log, loss = Softmax(), Log(), NumpyLoss()
        p = softmax.forward(np.array([[0, ahead]], np.float32))
        loss.get_loss(log.forward(p), one_hot([0], 2))
        share = softmax.backward(log.backward(loss.backward()))[0, 1] / p[0, 1]
        rows.append((f"{ahead:.3g}", f"{p[0, 0]:.2g}", f"{share:.4f}" if share > 0.001 else f"{abs(share):.0g}"))
    return table(*rows)


def experiment_section(number: int, result: Result, run: Run) -> str:
    """Return what the report says of one experiment; `run` is that of seed 0."""
    epochs, others = len(EXPERIMENTS[number].original), (1, 2) if number == 2 else (number,)
    originals = [list(map("{:.4f}".format, EXPERIMENTS[n].original)) + [""] * epochs for n in others]
    for n, column in zip(others, originals, strict=True):
        for epoch in judge.outside(result.accuracies, EXPERIMENTS[n].original):
            column[epoch] = f"**{column[epoch]}**"
    heads = (f"original, experiment {n}" for n in others)
    rows: list[Sequence[object]] = [("epoch", *heads, "median", "smallest", "largest")]
    for epoch, values in enumerate(result.accuracies.T[:epochs]):
        figures = (f"{value:.4f}" for value in (np.median(values), values.min(), values.max()))
        rows.append((epoch, *(column[epoch] for column in originals), *figures))
    lines = "".join(run.output.splitlines(keepends=True)[:epochs])
    text = f"{title(number)}. Seed 0 prints\n\n```text\n{lines}```\n\n"
    return f"{text}and the accuracies of {len(result.losses)} seeds are:\n\n{table(*rows)}"


def originals_section(results: dict[int, Result]) -> str:
    """Return how many of the original's values lie outside the range of the seeds."""
    count = sum(len(experiment.original) for experiment in EXPERIMENTS.values())
    out = sum(len(judge.outside(results[max(n, 2)].accuracies, EXPERIMENTS[n].original)) for n in EXPERIMENTS)
    seeds = len(results[2].losses)
    return (
        f"Of the original's {count} values, {out} lie outside the range of the {seeds} seeds. A value of one more run "
        f"of the same kind lies outside with a probability of 2/{seeds + 1}, so that {2 * count / (seeds + 1):.1f} are "
        f"expected."
    )


def decimal(value: float, digits: int) -> str:
    """Return a number for a table, without a minus before 0."""
    return f"{value + 0:.{digits}f}".replace("-0." + "0" * digits, "0." + "0" * digits)


def conclusions_section(results: dict[int, Result]) -> str:
    """Return the five conclusions with what was measured and the verdicts."""
    claims = judge.measurements(*(results[n] for n in (2, 3, 4)))
    verdicts = iter(judge.verdicts([measurement for measured in claims.values() for measurement in measured]))
    head = ("measured", "concluded", "median and 95 % interval", "smallest to largest", "p", "as concluded")
    paragraphs = []
    for claim, measured in claims.items():
        rows: list[Sequence[str]] = []
        for (text, values, digits, ratio, margin), verdict in zip(measured, verdicts, strict=False):
            concluded = f"above {ratio:d}" if margin is None else f"within ±{margin:.4f}"
            median, low, high, least, most = (decimal(x, digits) for x in (*verdict[:3], values.min(), values.max()))
            p = "< 0.0001" if verdict.p_value < 0.0001 else f"{verdict.p_value:.4f}"
            rows.append((text, concluded, f"{median} ({low} to {high})", f"{least} to {most}", p, verdict.words))
        paragraphs.append(f"**{claim} {judge.overall([row[-1] for row in rows])}**\n\n{table(head, *rows)}")
    return "\n\n".join(paragraphs)


def noise_section(results: dict[int, Result], noise: dict[int, float], sigma: float) -> str:
    """Return the fluctuation at equal losses, and that at fixed weights beside σ/√B."""
    levels: list[Sequence[str]] = [
        ("loss", "fluctuation, batch size 128", "batch size 256", "ratio", "seeds with a ratio above 1")
    ]
    for level in LEVELS:
        two, three = (judge.fluctuation_at(results[n], level) for n in (2, 3))
        median = (f"{np.median(x):.4f}" for x in (two, three))
        levels.append((str(level), *median, f"{np.median(two / three):.2f}", f"{(two > three).sum()} of {len(two)}"))
    sizes = [("batch size B", *map(str, noise)), ("measured", *(f"{x:.4f}" for x in noise.values()))]
    sizes.append(("σ/√B", *(f"{sigma / size**0.5:.4f}" for size in noise)))
    at_end = [
        (np.median(judge.fluctuation(r, r.epoch(9), r.epoch(10))), np.median(judge.mean_loss(r, 9)))
        for r in (results[2], results[3])
    ]
    return (
        f"At equal losses (medians over the seeds; √2 = {2**0.5:.2f} is expected):\n\n{table(*levels)}\n\n"
        f"At fixed weights, those of seed 0 after experiment 2, where the losses of single images have a standard "
        f"deviation of σ = {sigma:.3f}:\n\n{table(*sizes)}\n\n"
        f"At equal epochs the two sizes can't be compared, because their losses differ: in epoch 9, batch size 128 "
        f"fluctuates by {at_end[0][0]:.4f} around {at_end[0][1]:.4f}, batch size 256 by {at_end[1][0]:.4f} around "
        f"{at_end[1][1]:.4f}."
    )


def outcomes_table(head: str, groups: dict[str, list[Run]]) -> str:
    """Return how the runs of each group ended."""
    lost = ("burst or lost, 95 % interval", "lost, 95 % interval")
    rows: list[Sequence[object]] = [
        (head, "runs", *OUTCOMES.values(), *lost, "median of the last accuracies, without NaN")
    ]
    for name, runs in groups.items():
        outcomes = judge.outcomes(runs, BURSTING)
        counts = [outcomes.count(key) for key in OUTCOMES]
        ends = (stats.binomtest(sum(counts[first:]), len(runs)).proportion_ci() for first in (1, 2))
        last = [run.accuracies[-1] for run, outcome in zip(runs, outcomes, strict=True) if outcome != "NaN"]
        intervals = (f"{low:.1%} to {high:.1%}" for low, high in ends)
        rows.append((name, len(runs), *counts, *intervals, f"{np.median(last):.4f}" if last else ""))
    return table(*rows)


def forms_section(runs: dict[str, list[Run]]) -> str:
    """Return how the runs with each of the forms ended, and how low accuracies are without a burst."""
    ended = {forms: zip(runs[forms], judge.outcomes(runs[forms], BURSTING), strict=True) for forms in BRANCHES[:2]}
    calm = ([run.accuracies[1:].min() for run, outcome in pairs if outcome == "calm"] for pairs in ended.values())
    low = [f"{min(lowest):.4f}" if lowest else "none" for lowest in calm]
    return (
        f"{outcomes_table('forms', runs)}\n\nOrdinary dips are no bursts: after epochs 1 to 9, accuracies of runs "
        f"without a burst go down to {low[0]} with this lab's forms, and to {low[1]} with exact cross-entropy."
    )


def bursts_section(bursts: dict[Job, dict[str, Branch]]) -> str:
    """Return what became of the bursts in each of the branches."""
    back = {job: [judge.recovered(branches[forms]) for forms in BRANCHES] for job, branches in bursts.items()}
    largest = ("highest recorded loss", "highest true loss", "largest share of images with p < ε")
    rows: list[Sequence[object]] = [("rate", "seed", *largest, *(f"recovered: {forms}" for forms in BRANCHES))]
    for job in sorted(bursts, key=lambda job: (job.setting.learning_rate, job.seed)):
        true, recorded, share, _ = bursts[job][BRANCHES[0]].course.max(axis=0)
        ends = ("yes" if each else "no" for each in back[job])
        rows.append((job.setting.learning_rate, job.seed, f"{recorded:.1f}", f"{true:.1f}", f"{share:.3f}", *ends))
    pairs = [(lab, exact) for lab, exact, _ in back.values()]
    first, second = pairs.count((True, False)), pairs.count((False, True))
    p = f", p = {stats.binomtest(first, first + second).pvalue:.4f} in the sign test" if first + second else ""
    return (
        f"Recovered (an accuracy of 0.9 or more, {AROUND[1]} steps after the burst began), and how far the burst went "
        f"with this lab's forms:\n\n{table(*rows)}\n\nThis lab recovered and exact cross-entropy did not from {first} "
        f"of the {len(bursts)} bursts, the other way round from {second}{p}."
    )


def chaos_section(run: Run, nudged: Run) -> str:
    """Return how far two runs come apart of which one weight differs in its last bit."""
    ends = [f"{accuracies[-1]:.4f}" for accuracies in (run.accuracies, nudged.accuracies)]
    largest = abs(run.accuracies - nudged.accuracies).max()
    return (
        f"Seed 0 of experiment 4 ends at {ends[0]}, and with a single initial weight changed in its last bit at "
        f"{ends[1]}; on the way, the accuracies of the two come to differ by {largest:.4f}."
    )


def fill(report: str, name: str, content: str) -> str:
    """Return the report with the text between the two marks of `name` replaced."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, rest = report.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{content}\n\n{end}{after}"


def plan(seeds: int) -> dict[Setting, int]:
    """Return how many seeds each setting is trained with: half of them for the sweep and for forms changed singly."""
    counts = {EXPERIMENTS[n].trained: seeds for n in (2, 3, 4)}
    counts |= {BURSTING._replace(forms=forms): seeds if forms in BRANCHES else seeds // 2 for forms in FORMS}
    counts |= {setting: seeds // 2 for setting in SWEEP.values() if setting != BURSTING}
    return counts | {SMALL: 1, BURSTING._replace(nudged=True): 1}


def refresh(runs: dict[Setting, list[Run]], bursts: dict[Job, dict[str, Branch]], dataset: Dataset) -> None:
    """Draw the figures and write the sections of the report that have numbers."""
    images, labels = dataset.train
    results = {
        n: judge.stack(runs[setting], setting, len(labels)) for n in (2, 3, 4) for setting in [EXPERIMENTS[n].trained]
    }
    sections = {f"experiment {n}": experiment_section(n, results[n], runs[EXPERIMENTS[n].trained][0]) for n in results}
    for n, result in results.items():
        plot_experiment(n, result)
    plot_comparison(results)
    plot_saturation(results[2])

    model = NumpyModel()
    model.W1, model.W2, model.W3 = runs[SMALL][0].weights
    plot_mistakes(model, *dataset.test)
    losses = -model.forward(images)[np.arange(len(labels)), labels]
    noise, sigma = {size: judge.batch_noise(losses, size) for size in BATCH_SIZES}, float(losses.std())
    plot_noise(noise, sigma)

    slow = EXPERIMENTS[3].trained
    begin = [judge.cut(run, slow, BURSTING.epochs, len(labels)) for run in runs[slow]]
    sweep = {"0.1": begin} | {str(rate): runs[setting] for rate, setting in SWEEP.items()}
    plot_outcomes(sweep)
    if bursts:
        job, shown = judge.telling(bursts)
        plot_burst(shown, f"learning rate {job.setting.learning_rate}, seed {job.seed}, step {job.burst}")

    sections |= {
        "machine": f"Measured on: {machine()}, SciPy {scipy.__version__}; two runs at a time, one thread each.",
        "clip": clip_section(),
        "originals": originals_section(results),
        "conclusions": conclusions_section(results),
        "noise": noise_section(results, noise, sigma),
        "sweep": outcomes_table("learning rate", sweep),
        "stability": forms_section({forms: runs[BURSTING._replace(forms=forms)] for forms in FORMS}),
        "bursts": bursts_section(bursts),
        "chaos": chaos_section(runs[BURSTING][0], runs[BURSTING._replace(nudged=True)][0]),
    }
    for page, names in ((REPORT.with_name(DERIVATIONS), {"clip"}), (REPORT, sections.keys() - {"clip"})):
        text = page.read_text(encoding="utf-8")
        for name in names:
            text = fill(text, name, sections[name])
        page.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all experiments, write the figures, and refresh the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data-dir", default=DATA_DIR, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=20, help="runs of each experiment, from seed 0 on; at least 2")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"--seeds is {options.seeds}, expected at least 2")

    dataset = load_dataset("MNIST", options.data_dir)
    counts = plan(options.seeds)
    # Seed by seed, so that a noisy neighbor disturbs all settings alike.
    jobs = [Job(setting, seed) for seed in range(options.seeds) for setting, count in counts.items() if seed < count]
    runs: dict[Setting, list[Run]] = {setting: [] for setting in counts}
    for job, run in zip(jobs, gather(jobs, dataset, options.data_dir), strict=True):
        runs[job.setting].append(run)
    swept = sorted(SWEEP.values(), key=lambda setting: setting != BURSTING)  # experiment 4 is first, for the picture
    jobs = [Job(setting, i, judge.burst_step(run.losses)) for setting in swept for i, run in enumerate(runs[setting])]
    jobs = [job for job in jobs if job.burst is not None]
    refresh(runs, dict(zip(jobs, gather(jobs, dataset, options.data_dir), strict=True)), dataset)
    print(f"Refreshed {REPORT} and the figures in {FIGURES}")


if __name__ == "__main__":
    main()
