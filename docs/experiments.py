"""Run the experiments of report.md over several seeds and refresh its tables and figures.

Run it from the project's folder: python -m docs.experiments [--help].
"""

import argparse
import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from tqdm import tqdm

from numpy_fnn import Array, Log, NumpyModel, NumpyOp, Softmax
from numpy_mnist import DATA_DIR, History, new_model, train
from utils import WINDOW, Dataset, load_dataset, moving_average

matplotlib.use("Agg")
import matplotlib.pyplot as plt

REPORT = Path(__file__).with_name("report.md")
FIGURES = REPORT.with_name("figures")


class Experiment(NamedTuple):
    """Hyperparameters, the original report's accuracy after each epoch, and the line that stands for it in pictures."""

    batch_size: int
    learning_rate: float
    original: tuple[float, ...]
    line: dict[str, Any]


class Result(NamedTuple):
    """What the runs of an experiment gave, one row a seed: losses (seeds, steps), the others (seeds, epochs)."""

    losses: Array
    accuracies: Array
    seconds: Array
    output: str
    model: NumpyModel


# Each with its own dashes, so that they can be told apart in grayscale.
EXPERIMENTS = {
    1: Experiment(128, 0.1, (0.9485, 0.9647, 0.9715), {"color": "black", "linestyle": "-", "linewidth": 3}),
    2: Experiment(
        128,
        0.1,
        (0.9496, 0.9600, 0.9675, 0.9761, 0.9755, 0.9775, 0.9791, 0.9795, 0.9781, 0.9810),
        {"color": "navy", "linestyle": "--"},
    ),
    3: Experiment(
        256,
        0.1,
        (0.9253, 0.9477, 0.9522, 0.9651, 0.9680, 0.9731, 0.9755, 0.9766, 0.9766, 0.9790),
        {"color": "tab:red", "linestyle": "-."},
    ),
    4: Experiment(
        256,
        0.5,
        (0.9505, 0.9675, 0.9706, 0.9471, 0.9737, 0.8980, 0.9757, 0.9573, 0.9770, 0.9792),
        {"color": "tab:orange", "linestyle": ":"},
    ),
}


class UnstableSoftmax(Softmax):
    """Softmax without the shift by the row's maximum."""

    def forward(self, x: Array) -> Array:
        """Return y, shaped like x; NaN where an exponential overflows."""
        y = np.exp(x)
        y /= y.sum(axis=-1, keepdims=True)
        self.memory = {"y": y}
        return y


class InexactLog(Log):
    """Log whose backward forgets the epsilon of its forward."""

    def backward(self, grad_y: Array) -> Array:
        """Return grad_x, shaped like grad_y; infinite where x is 0."""
        return grad_y / self.memory["x"]


def run(
    experiment: Experiment, dataset: Dataset, seed: int, history: History, **operators: NumpyOp
) -> tuple[NumpyModel, str]:
    """Train once as numpy_mnist.py does, with `operators` for the model's, fill `history`, return model and output."""
    rng, printed = np.random.default_rng(seed), io.StringIO()
    model = new_model(rng)
    vars(model).update(operators)
    sgd = (len(experiment.original), experiment.batch_size, experiment.learning_rate)
    with contextlib.redirect_stdout(printed):
        train(model, dataset.train, dataset.test, *sgd, rng, history)
    return model, printed.getvalue()


def run_seeds(experiment: Experiment, dataset: Dataset, seeds: int, progress: Any) -> Result:
    """Train with every seed."""
    histories = [History() for _ in range(seeds)]
    runs = []
    for seed, history in enumerate(histories):
        runs.append(run(experiment, dataset, seed, history))
        progress.update()
    losses, accuracies, seconds = (
        np.array([getattr(history, name) for history in histories]) for name in ("losses", "accuracies", "seconds")
    )
    model, output = runs[0]
    return Result(losses, accuracies, seconds, output, model)


def run_unstable(experiment: Experiment, dataset: Dataset, seeds: int, progress: Any) -> list[int | None]:
    """Train with the unstable forms, and return for every seed the step at which the loss was no longer finite."""
    steps: list[int | None] = []
    for seed in range(seeds):
        history = History()
        try:
            with np.errstate(divide="ignore"):
                run(experiment, dataset, seed, history, softmax=UnstableSoftmax(), log=InexactLog())
            steps.append(None)
        except FloatingPointError:
            steps.append(len(history.losses))
        progress.update()
    return steps


def table(*rows: Sequence[object]) -> str:
    """Return a Markdown table, the first row its head."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def smooth(losses: Array) -> Array:
    """Return the moving average of every row."""
    return np.array([moving_average(row) for row in losses])


def fluctuation(losses: Array, epoch: int, epochs: int) -> Array:
    """Return for every row the standard deviation, in one epoch, of the loss around its moving average."""
    return np.array_split(losses - smooth(losses), epochs, axis=1)[epoch].std(axis=1)


def epoch_loss(losses: Array, epoch: int, epochs: int) -> Array:
    """Return for every row the mean loss of one epoch."""
    return np.array_split(losses, epochs, axis=1)[epoch].mean(axis=1)


# ---- pictures


def save(figure: Any, name: str) -> None:
    """Write a picture for the report."""
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / name, dpi=100)
    plt.close(figure)


def plot_experiment(number: int, result: Result) -> None:
    """Draw the loss of seed 0, its moving average, and the band of the moving averages of all seeds."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    averages = smooth(result.losses)
    steps = np.arange(averages.shape[1])
    color = EXPERIMENTS[number].line["color"]
    seeds = len(averages)
    axes.plot(result.losses[0], color=color, alpha=0.5, linewidth=0.6, label="seed 0, each step")
    axes.fill_between(
        steps,
        averages.min(0),
        averages.max(0),
        color="gray",
        alpha=0.5,
        label=f"{seeds} seeds, means of {WINDOW} steps",
    )
    axes.plot(steps, averages[0], color=color, linewidth=1.5, label=f"seed 0, mean of {WINDOW} steps")
    axes.set(xlabel="step (one mini-batch)", ylabel="training loss (nats per image)", yscale="log")
    axes.set_title(title(number))
    axes.legend()
    axes.grid(alpha=0.3)
    save(figure, f"experiment_{number}.png")


def title(number: int) -> str:
    """Return the name of an experiment with its hyperparameters."""
    batch_size, rate, original, _ = EXPERIMENTS[number]
    return f"Experiment {number}: {len(original)} epochs, batch size {batch_size}, learning rate {rate}"


def plot_comparison(results: dict[int, Result]) -> None:
    """Draw loss and accuracy of all experiments, means over the seeds, against steps and against seconds."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex="col", sharey="row", layout="constrained")
    for number, result in results.items():
        line = EXPERIMENTS[number].line
        averages = smooth(result.losses).mean(axis=0)
        count, epochs = result.losses.shape[1], result.accuracies.shape[1]
        ends = np.linspace(0, count, epochs + 1)
        seconds = np.concatenate([[0], np.median(result.seconds, axis=0).cumsum()])
        steps = np.arange(count)
        accuracy = result.accuracies.mean(axis=0)
        for column, x in ((0, steps), (1, np.interp(steps, ends, seconds))):
            axes[0, column].plot(x, averages, label="" if column else title(number), **line)
        for column, x in ((0, ends[1:]), (1, seconds[1:])):
            axes[1, column].plot(x, accuracy, marker="o", markersize=4, **line)
    axes[0, 0].set(ylabel=f"training loss (nats per image),\nmean of {WINDOW} steps and all seeds", yscale="log")
    axes[1, 0].set(xlabel="step (one mini-batch)", ylabel="test accuracy (fraction),\nmean of all seeds", ylim=(0.9, 1))
    axes[1, 1].set(xlabel="training time (seconds)")
    figure.legend(loc="outside lower center", ncols=2)
    for ax in axes.flat:
        ax.grid(alpha=0.3)
    save(figure, "comparison.png")


def plot_mistakes(model: NumpyModel, images: Array, labels: Array) -> None:
    """Draw the test digits whose wrong answer has the highest probability."""
    probabilities = np.exp(model.forward(images))
    answers = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(answers != labels)
    worst = wrong[np.argsort(-probabilities[wrong, answers[wrong]], kind="stable")][:24]
    figure, axes = plt.subplots(3, 8, figsize=(11, 5.2), layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for ax, i in zip(axes.flat, worst, strict=False):
        ax.imshow(images[i].reshape(28, 28), cmap="gray_r")
        answer, label = answers[i], labels[i]
        ax.set_title(
            f"taken for {answer}: {probabilities[i, answer]:.3f}\nlabeled {label}: {probabilities[i, label]:.3f}",
            fontsize=9,
        )
    save(figure, "mistakes.png")


# ---- tables


def experiment_section(number: int, result: Result) -> str:
    """Return what the report says of one experiment."""
    rows: list[tuple[str, ...]] = [
        ("epoch", "original", "mean", "standard deviation", "smallest", "largest", "original inside")
    ]
    for epoch, values in enumerate(result.accuracies.T):
        original = EXPERIMENTS[number].original[epoch]
        inside = "yes" if values.min().round(4) <= original <= values.max().round(4) else "no"
        figures = (original, values.mean(), values.std(ddof=1), values.min(), values.max())
        rows.append((str(epoch), *(f"{figure:.4f}" for figure in figures), inside))
    outside = [row[0] for row in rows if row[-1] == "no"]
    where = (
        f"outside after epoch{'s' * (len(outside) > 1)} {', '.join(outside)}" if outside else "inside after every epoch"
    )
    return (
        f"{title(number)}. Seed 0 prints\n\n```text\n{result.output}```\n\nand the accuracies of {len(result.losses)} "
        f"seeds are, with the original report's value {where}:\n\n{table(*rows)}\n\n"
        f"![Loss of experiment {number}](figures/experiment_{number}.png)"
    )


def plus_minus(values: Array, digits: int = 4) -> str:
    """Return mean and standard deviation."""
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def first_below(result: Result, threshold: float) -> tuple[Array, Array, Array]:
    """Return for every seed the steps, epochs and seconds until the loss, averaged, is below the threshold."""
    averages = smooth(result.losses)
    below = averages < threshold
    steps = np.where(below.any(axis=1), below.argmax(axis=1), averages.shape[1])
    epochs = steps * result.accuracies.shape[1] / result.losses.shape[1]
    return steps, epochs, epochs * np.median(result.seconds, axis=1)


def standard_error(values: Array) -> float:
    """Return the standard error of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


class Measurement(NamedTuple):
    """A figure that a conclusion says is positive, over the seeds."""

    text: str
    values: Array
    as_concluded: bool
    digits: int = 4


def positive(text: str, values: Array, digits: int = 4) -> Measurement:
    """Return a measurement that is as concluded where its mean is more than two standard errors above 0."""
    return Measurement(text, values, bool(values.mean() > 2 * standard_error(values)), digits)


def mean(rows: Array) -> Array:
    """Return the mean of every row, and 0 where rows are empty."""
    return rows.sum(axis=1) / max(rows.shape[1], 1)


def measurements(results: dict[int, Result]) -> dict[str, list[Measurement]]:
    """Return for each of the five conclusions the figures that test it."""
    small, large, fast = results[2], results[3], results[4]
    epochs = small.accuracies.shape[1]
    early, late = min(2, epochs - 1), epochs - 1
    middle = epochs // 2
    accuracy = {2: small.accuracies, 3: large.accuracies, 4: fast.accuracies}
    changes = np.diff(accuracy[2], axis=1, prepend=0)
    first, last = changes[:, early + 1 : middle + 1], changes[:, middle + 1 :]
    rough = {n: fluctuation(results[n].losses, late, epochs) for n in (2, 3, 4)}
    difference, spread = accuracy[2][:, late] - accuracy[3][:, late], accuracy[3][:, late].std(ddof=1)
    small_epochs, large_epochs = first_below(small, 0.1)[1], first_below(large, 0.1)[1]
    slow_steps, fast_steps = first_below(large, 0.5)[0], first_below(fast, 0.5)[0]

    return {
        "(a) More epochs raise accuracy until it saturates and fluctuates.": [
            positive(
                f"experiment 2, accuracy after epoch {late} less that after epoch {early}",
                accuracy[2][:, late] - accuracy[2][:, early],
            ),
            positive(
                f"mean gain of an epoch from {early + 1} to {middle} less that of an epoch from {middle + 1} to {late}",
                mean(first) - mean(last),
            ),
            positive(
                f"standard deviation of the gains of epochs {middle + 1} to {late} less their mean",
                mean((last - mean(last)[:, None]) ** 2) ** 0.5 - mean(last),
            ),
        ],
        "(b) More epochs lower the loss and its fluctuation.": [
            positive(
                f"experiment 2, mean loss of epoch {early} less that of epoch {late}",
                epoch_loss(small.losses, early, epochs) - epoch_loss(small.losses, late, epochs),
            ),
            positive(
                f"fluctuation in epoch {early} less that in epoch {late}",
                fluctuation(small.losses, early, epochs) - rough[2],
            ),
        ],
        "(c) A larger batch learns more slowly per epoch but ends about as high.": [
            positive("accuracy after epoch 0, experiment 2 less experiment 3", accuracy[2][:, 0] - accuracy[3][:, 0]),
            positive(
                "epochs until the loss is below 0.1, experiment 3 less experiment 2", large_epochs - small_epochs, 2
            ),
            Measurement(
                f"accuracy after epoch {late}, experiment 2 less experiment 3; at most the standard deviation that "
                f"experiment 3 has over the seeds, {spread:.4f}",
                difference,
                bool(abs(difference.mean()) <= spread),
            ),
        ],
        "(d) A larger batch has a smoother loss.": [
            positive(f"fluctuation in epoch {late}, experiment 2 less experiment 3", rough[2] - rough[3]),
            positive(
                f"fluctuation in epoch {late} per mean loss there, experiment 2 less experiment 3",
                rough[2] / epoch_loss(small.losses, late, epochs) - rough[3] / epoch_loss(large.losses, late, epochs),
            ),
        ],
        "(e) A higher learning rate falls faster and fluctuates more.": [
            positive("steps until the loss is below 0.5, experiment 3 less experiment 4", slow_steps - fast_steps, 0),
            positive(f"fluctuation in epoch {late}, experiment 4 less experiment 3", rough[4] - rough[3]),
            positive(
                f"standard deviation of the accuracy from epoch {middle} on, experiment 4 less experiment 3",
                accuracy[4][:, middle:].std(axis=1) - accuracy[3][:, middle:].std(axis=1),
            ),
        ],
    }


def conclusions(results: dict[int, Result]) -> str:
    """Return the five conclusions with their figures and verdicts."""
    head = ("measured", "mean ± standard deviation", "median", "seeds above 0", "as concluded")
    paragraphs = []
    for claim, measured in measurements(results).items():
        as_concluded = [each.as_concluded for each in measured]
        verdict = "holds" if all(as_concluded) else "holds partly" if any(as_concluded) else "does not hold"
        rows = [
            (
                text,
                plus_minus(values, digits),
                f"{np.median(values):.{digits}f}",
                f"{(values > 0).sum()} of {len(values)}",
                "yes" if holds else "no, the opposite" if values.mean() < -2 * standard_error(values) else "no",
            )
            for text, values, holds, digits in measured
        ]
        paragraphs.append(f"**{claim} It {verdict}.**\n\n{table(head, *rows)}")
    (_, epochs_128, seconds_128), (_, epochs_256, seconds_256) = (first_below(results[n], 0.1) for n in (2, 3))
    in_epochs, in_seconds = epochs_256.mean() / epochs_128.mean(), seconds_256.mean() / seconds_128.mean()
    paragraphs.append(
        f"Does a larger batch train more slowly? Counted in epochs, {'yes' if in_epochs > 1 else 'no'}: until the loss "
        f"is below 0.1, batch size 256 needs {plus_minus(epochs_256, 2)} epochs and batch size 128 "
        f"{plus_minus(epochs_128, 2)}, {in_epochs:.2f} times as many. Counted in seconds, "
        f"{'yes' if in_seconds > 1 else 'no'}: {plus_minus(seconds_256, 2)} against {plus_minus(seconds_128, 2)}, "
        f"{in_seconds:.2f} times as long."
    )
    middle = results[4].accuracies.shape[1] // 2
    worst = {number: results[number].accuracies[:, middle:].min(axis=1) for number in (3, 4)}
    paragraphs.append(
        f"The worst epoch from epoch {middle} on has an accuracy of {plus_minus(worst[4])} at learning rate 0.5 "
        f"(lowest {worst[4].min():.4f}) against {plus_minus(worst[3])} at 0.1 (lowest {worst[3].min():.4f})."
    )
    return "\n\n".join(paragraphs)


def stability(stable: Result, steps: list[int | None]) -> str:
    """Return what the unstable forms did to experiment 4."""
    ended = [step for step in steps if step is not None]
    rows = [
        (seed, "to the end" if step is None else f"NaN at step {step}", f"{stable.accuracies[seed, -1]:.4f}")
        for seed, step in enumerate(steps)
    ]
    return (
        f"Of {len(steps)} runs with the unstable forms, {len(ended)} ended in NaN; with this lab's forms, none did.\n\n"
        + table(("seed", "unstable forms", "last accuracy with this lab's forms"), *rows)
    )


def fill(report: str, name: str, content: str) -> str:
    """Return the report with the text between the two marks of `name` replaced."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, rest = report.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{content}\n\n{end}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all experiments, write the figures, and refresh the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data-dir", default=DATA_DIR, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each experiment, from seed 0 on; at least 2")
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"--seeds is {options.seeds}, but at least 2 are wanted")

    dataset = load_dataset("MNIST", options.data_dir)
    with tqdm(total=(len(EXPERIMENTS) + 1) * options.seeds, unit="run") as progress:
        results = {
            number: run_seeds(experiment, dataset, options.seeds, progress)
            for number, experiment in EXPERIMENTS.items()
        }
        unstable = run_unstable(EXPERIMENTS[4], dataset, options.seeds, progress)

    report = REPORT.read_text(encoding="utf-8")
    for number, result in results.items():
        plot_experiment(number, result)
        report = fill(report, f"experiment {number}", experiment_section(number, result))
    plot_comparison(results)
    plot_mistakes(results[2].model, *dataset.test)
    report = fill(report, "conclusions", conclusions(results))
    report = fill(report, "stability", stability(results[4], unstable))
    REPORT.write_text(report, encoding="utf-8")
    print(f"Refreshed {REPORT} and the figures in {FIGURES}")


if __name__ == "__main__":
    main()
