"""Seconds that this lab and others take to train the same network: python -m docs.speed prints the tables of speed.md.

Run it while nothing else runs: each measurement is a process of its own, and all take turns. Whole runs are timed from
the start of Python to the saved picture, epochs when nothing is cold any more. JAX is measured where it is installed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from numpy_fnn import NumpyModel
from numpy_mnist import BATCH_SIZE, DATA_DIR, EPOCH_NUMBER, LEARNING_RATE, History, train
from utils import DataError, load_dataset, plot_curve

# Read by OpenBLAS (NumPy, scikit-learn), OpenMP and MKL (PyTorch), Accelerate (NumPy on macOS) and XLA (JAX).
THREADS = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NPROC",
)
PROGRAM = "numpy_mnist.py"


def epochs(
    train_set: Any, test_set: Any, step: Any, predict: Any, batch_size: int = BATCH_SIZE
) -> History:
    """Do what `train` does, with a step from the indices of a batch to its loss, and scores (N, 10) of the test set."""
    history, rng, size = History(), np.random.default_rng(), len(train_set[1])
    for _ in range(EPOCH_NUMBER):
        start = time.perf_counter()
        losses = [
            step(batch)
            for batch in np.split(rng.permutation(size), range(batch_size, size, batch_size))
        ]
        history.losses += map(float, losses)  # which waits for what JAX has dispatched
        history.seconds.append(time.perf_counter() - start)
        history.accuracies.append(
            float(np.mean(np.asarray(predict()).argmax(axis=1) == test_set[1]))
        )
    return history


def scores(weights: Any, x: Any, relu: Callable[[Any], Any]) -> Any:
    """Return what the network gives to its softmax, in any library's arrays."""
    return relu(relu(x @ weights[0]) @ weights[1]) @ weights[2]


def torch_eager(model: NumpyModel, train_set: Any, test_set: Any) -> History:
    """Train with PyTorch eager, tensors in memory."""
    import torch

    x, y, x_test = map(torch.tensor, (*train_set, test_set[0]))
    weights = [torch.tensor(W, requires_grad=True) for W in (model.W1, model.W2, model.W3)]
    optimizer = torch.optim.SGD(weights, lr=LEARNING_RATE)

    def step(batch: Any) -> float:
        batch = torch.from_numpy(batch)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            scores(weights, x[batch], torch.relu), y[batch].long()
        )
        loss.backward()
        optimizer.step()
        return loss.item()

    return epochs(
        train_set, test_set, step, torch.no_grad()(lambda: scores(weights, x_test, torch.relu))
    )


def jax_jitted(model: NumpyModel, train_set: Any, test_set: Any) -> History:
    """Train with JAX, the whole step jitted, arrays in memory."""
    import jax

    x, y, x_test = map(jax.numpy.asarray, (*train_set, test_set[0]))
    weights: Any = [model.W1, model.W2, model.W3]

    def loss_function(weights: Any, x: Any, y: Any) -> Any:
        return -jax.nn.log_softmax(scores(weights, x, jax.nn.relu))[
            jax.numpy.arange(len(y)), y
        ].mean()

    @jax.jit
    def update(weights: Any, x: Any, y: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_function)(weights, x[batch], y[batch])
        return [W - LEARNING_RATE * grad for W, grad in zip(weights, grads, strict=True)], loss

    def step(batch: Any) -> Any:
        weights[:], loss = update(weights, x, y, batch)
        return loss

    return epochs(train_set, test_set, step, lambda: scores(weights, x_test, jax.nn.relu))


def sklearn_mlp(model: NumpyModel, train_set: Any, test_set: Any) -> History:
    """Train with scikit-learn's MLPClassifier, which has biases, draws its own weights and tells one loss an epoch."""
    from sklearn.neural_network import MLPClassifier

    sgd = {
        "solver": "sgd",
        "learning_rate_init": LEARNING_RATE,
        "batch_size": BATCH_SIZE,
        "momentum": 0,
        "alpha": 0,
    }
    network = MLPClassifier([len(model.W2), len(model.W3)], **sgd)

    def epoch(_: Any) -> float:
        return network.partial_fit(*train_set, classes=np.arange(10)).loss_

    return epochs(
        train_set, test_set, epoch, lambda: network.predict_proba(test_set[0]), len(train_set[1])
    )


def products(model: NumpyModel, train_set: Any, test_set: Any) -> History:
    """Compute nothing but the eight matrix products of this lab's step: three forward, five backward."""
    W1, W2, W3, rng = model.W1, model.W2, model.W3, np.random.default_rng()
    x1, x2, x3, y = (
        rng.random((BATCH_SIZE, width), np.float32) for width in (*map(len, (W1, W2, W3)), 10)
    )
    pairs = [(x1, W1), (x2, W2), (x3, W3), (y, W3.T), (x3.T, y), (x3, W2.T), (x2.T, x3), (x1.T, x2)]

    def step(_: Any) -> float:
        for a, b in pairs:
            np.matmul(a, b)
        return 1  # for the picture

    return epochs(train_set, test_set, step, lambda: test_set[0])


# Called as `train` is: each does plain SGD from the model's weights, and returns its history.
LIBRARIES = {"PyTorch": torch_eager, "JAX": jax_jitted, "scikit-learn": sklearn_mlp}
CONTENDERS: dict[str, Callable[..., History]] = {
    "this lab": train,
    "its eight products": products,
    **LIBRARIES,
}


def run(name: str, data_dir: str, plot: str) -> None:
    """Run a contender from the data to the picture, and print the seconds of its last epoch."""
    mnist = load_dataset("MNIST", data_dir)
    sets = [(images.reshape(-1, 784), labels) for images, labels in (mnist.train, mnist.test)]
    history = CONTENDERS[name](NumpyModel(), *sets)
    plot_curve(history.losses, history.accuracies, path=plot, show=False)
    print(history.seconds[-1])


def output(command: list[str], settings: dict[str, str]) -> str:
    """Return what Python prints for a command, with default threads unless the settings tell, and no window."""
    shell = {name: value for name, value in os.environ.items() if name not in THREADS}
    return subprocess.check_output(
        [sys.executable, *command], env=shell | {"MPLBACKEND": "Agg"} | settings, text=True
    )


def measure(name: str, data_dir: str, busy: int, settings: dict[str, str]) -> tuple[float, float]:
    """Return the seconds of a whole run beside busy processes, and of its last epoch (NaN for PROGRAM)."""
    with ExitStack() as stack:
        plot = str(Path(stack.enter_context(tempfile.TemporaryDirectory()), "loss.png"))
        command = ["-c", f"from docs.speed import run; run{(name, data_dir, plot)}"]
        if name == PROGRAM:
            command = [PROGRAM, "--dataset", "MNIST", "--data-dir", data_dir, "--plot", plot]
        for _ in range(busy):
            neighbor = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", "while True: pass"])
            )
            stack.callback(neighbor.kill)
        start = time.perf_counter()
        last = output(command, settings).split()[-1]
        return time.perf_counter() - start, np.nan if name == PROGRAM else float(last)


def kernels(settings: dict[str, str]) -> str:
    """Return the name of the kernels that NumPy's OpenBLAS uses."""
    found = re.search(
        r'"architecture": "(.*)"', output(["-m", "threadpoolctl", "-i", "numpy"], settings)
    )
    return found[1] if found else "not OpenBLAS's"


def machine(chosen: str, cpuinfo: Path) -> str:
    """Return what the figures depend on, and a warning where the kernels leave the CPU's AVX-512 unused."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""  # as on Linux alone
    cpu = dict(re.findall(r"^(model name|cpu family|flags)\s*: (.*)$", text, re.MULTILINE))
    versions = [f"{name} {metadata.version(name)}" for name in ("numpy", "torch", "scikit-learn")]
    versions += [f"jax {metadata.version('jax')}"] if util.find_spec("jax") else []
    text = f"{cpu.get('model name')} (family {cpu.get('cpu family')}), {os.cpu_count()} cores, "
    text += f"Python {sys.version.split()[0]}, {', '.join(versions)}, OpenBLAS with the kernels {chosen}."
    if "avx512f" in cpu.get("flags", "") and chosen not in (
        "SkylakeX",
        "Cooperlake",
        "SapphireRapids",
    ):
        text += "\nThese leave the CPU's AVX-512 unused: compare them with --kernels SkylakeX."
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the tables."""
    from tqdm import tqdm  # not above, where the contenders would wait for it

    parser = argparse.ArgumentParser(prog="python -m docs.speed", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, help="measurements of every cell (default: 5)"
    )
    parser.add_argument(
        "--busy", type=int, default=0, metavar="N", help="measure beside N busy processes, too"
    )
    parser.add_argument(
        "--kernels",
        nargs="+",
        default=[],
        metavar="NAME",
        help="OPENBLAS_CORETYPE of the last table",
    )
    parser.add_argument(
        "--data-dir", default=DATA_DIR, help="where MNIST is, or is downloaded to (default: data)"
    )
    options = parser.parse_args(arguments)
    try:
        load_dataset("MNIST", options.data_dir)
    except DataError as error:
        parser.error(str(error))
    kinds = {
        kernels(core): core
        for core in ({}, *({"OPENBLAS_CORETYPE": name} for name in options.kernels))
    }
    print(machine(next(iter(kinds)), Path("/proc/cpuinfo")))
    print(f"Seconds, median of {options.rounds} (smallest–largest), and ratio to the first row.")
    threads: dict[str, dict[str, str]] = {
        "default threads": {},
        "one thread": dict.fromkeys(THREADS, "1"),
    }
    places = {
        f"beside {busy} busy processes" if busy else "idle": busy for busy in (0, options.busy)
    }
    conditions = {
        f"{place}, {t}": (busy, one) for place, busy in places.items() for t, one in threads.items()
    }
    by_kernels = {
        f"{kind}, {t}": (0, core | one)
        for kind, core in kinds.items()
        for t, one in threads.items()
    }
    libraries = [name for name in LIBRARIES if name != "JAX" or util.find_spec("jax")]
    tables = [
        ("whole run", [PROGRAM, *libraries], conditions, 0),
        ("last epoch", ["this lab", *libraries], conditions, 1),
        ("last epoch, by kernels", ["this lab", "its eight products"], by_kernels, 1),
    ]
    turns = [
        (name, column) for _, names, columns, _ in tables for name in names for column in columns
    ]
    results: dict[tuple[str, str], Any] = {turn: [] for turn in turns}
    for name, column in tqdm(list(results) * options.rounds, smoothing=0):
        results[name, column].append(
            measure(name, options.data_dir, *(conditions | by_kernels)[column])
        )
    for title, names, columns, kind in tables:
        values = np.array([[results[name, column] for column in columns] for name in names])[
            ..., kind
        ]
        median, smallest, largest = np.quantile(values, (0.5, 0, 1), axis=2)
        print(f"\n| {' | '.join([title, *columns])} |\n| --- |{' --: |' * len(columns)}")
        for name, row in zip(
            names, np.stack([median, smallest, largest, median / median[0]], axis=2), strict=True
        ):
            print(
                "|",
                " | ".join(
                    [name, *("{:.2f} ({:.2f}–{:.2f}), {:.2f}×".format(*cell) for cell in row)]
                ),
                "|",
            )


if __name__ == "__main__":
    main()
