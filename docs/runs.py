"""Train the networks that report.md compares, and save their losses and accuracies.

Each run trains as numpy_mnist.py does, in a process with one thread. The program saves all runs
in docs/runs.npz, in arrays with a column for each seed. docs.report reads this file.
"""

import argparse
import contextlib
import io
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import threadpoolctl
from tqdm import tqdm

from numpy_fnn import Log, NumpyModel, Softmax
from numpy_mnist import DATA_DIR, History, train
from utils import Dataset, load_dataset

FILE = Path(__file__).with_name("runs.npz")  # git ignores it


class Setting(NamedTuple):
    """What a run depends on besides its seed."""

    epochs: int
    batch_size: int
    learning_rate: float
    original: bool = False  # Softmax and Log compute the formulas of the original report
    nudged: bool = False  # one initial weight is changed in its last bit


SETTINGS = {
    "experiment 2": Setting(30, 128, 0.1),  # its first three epochs are experiment 1
    "experiment 3": Setting(20, 256, 0.1),
    "experiment 4": Setting(10, 256, 0.5),
    "256 at 0.2": Setting(10, 256, 0.2),
    "original formulas": Setting(10, 256, 0.5, original=True),
    "experiment 2, nudged": Setting(10, 128, 0.1, nudged=True),
    "experiment 4, nudged": Setting(10, 256, 0.5, nudged=True),
}


class OriginalSoftmax(Softmax):
    """Softmax without the shift by the row's maximum. If an exponential overflows, y is NaN."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return y, shaped like x."""
        exp = np.exp(x)
        self.memory = {"y": exp / exp.sum(axis=-1, keepdims=True)}
        return self.memory["y"]


class OriginalLog(Log):
    """Log whose backward omits the epsilon of its forward. It divides by zero if x is 0."""

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return grad_x, shaped like grad_y."""
        return grad_y / self.memory["x"]


def train_run(dataset: Dataset, setting: Setting, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train as numpy_mnist.py does, and return a loss per step and a test accuracy per epoch.

    If the loss becomes NaN, the run ends, and the rest of both arrays is NaN.
    """
    rng = np.random.default_rng(seed)
    model = NumpyModel(rng)
    if setting.original:
        model.softmax = OriginalSoftmax()
        model.log = OriginalLog()
    if setting.nudged:
        model.W1[0, 0] = np.nextafter(model.W1[0, 0], np.float32(1))
    history = History()
    silent = contextlib.redirect_stdout(io.StringIO())
    with silent, contextlib.suppress(FloatingPointError), np.errstate(divide="ignore"):
        train(model, dataset.train, dataset.test, *setting[:3], rng, history)
    steps = setting.epochs * math.ceil(len(dataset.train[1]) / setting.batch_size)
    losses = np.pad(history.losses, (0, steps - len(history.losses)), constant_values=np.nan)
    missing = setting.epochs - len(history.accuracies)
    return losses, np.pad(history.accuracies, (0, missing), constant_values=np.nan)


def machine() -> str:
    """Return the versions and kernels on which the last digits of a run depend."""
    libraries = threadpoolctl.threadpool_info()
    kernels = " and ".join(str(library.get("architecture")) for library in libraries)
    return f"Python {platform.python_version()}, NumPy {np.__version__}, kernels for {kernels}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every setting with every seed, in two processes, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m docs.runs", description=__doc__)
    parser.add_argument("--data-dir", default=DATA_DIR, metavar="DIR", help="folder of data sets")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="number (default: 20)")
    options = parser.parse_args(arguments)
    dataset = load_dataset("MNIST", options.data_dir)
    arrays: dict[str, Any] = {"machine": machine()}
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=1):
        for name, setting in SETTINGS.items():
            seeds = range(options.seeds)
            calls = [joblib.delayed(train_run)(dataset, setting, seed) for seed in seeds]
            runs = joblib.Parallel(return_as="generator")(calls)
            losses, accuracies = zip(*tqdm(runs, desc=name, total=len(calls)), strict=True)
            arrays[f"{name}: losses"] = np.column_stack(losses)
            arrays[f"{name}: accuracies"] = np.column_stack(accuracies)
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
