"""Seconds that this lab and others need to train the same network, in Markdown: python -m tests.benchmark [--help].

Every measurement is a process of its own, and the contenders take turns over several rounds, so that a noisy neighbor
disturbs all of them alike. An epoch is the second one of its process, so that no contender is timed cold; a whole run
is timed cold, from the start of Python to the picture. It takes a quarter of an hour, with --busy 2 over an hour;
the time left is shown. It needs Linux, and measures JAX where it is installed. For one core: taskset -c 0 python ...
"""

import argparse
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from numpy_fnn import NumpyModel
from numpy_mnist import History, train
from utils import Dataset, find_files, load_dataset, plot_curve

ROOT = Path(__file__).parent.parent
WIDTHS = [784, *(width for _, width in NumpyModel.SHAPES.values())]
LEARNING_RATE = 0.1

# ---- the contenders: each trains that network with SGD, and prints the accuracy on the test set after every epoch


def lab(data: Dataset, batch_size: int, epoch_number: int) -> History:
    """Train with this lab's own function."""
    return train(NumpyModel(), data.train, data.test, epoch_number, batch_size, LEARNING_RATE)


def epochs_of(epoch_number: int, train_epoch: Callable[[], Iterable[float]], accuracy: Callable[[], float]) -> History:
    """Do what this lab's `train` does, with an epoch, which returns its losses, and an accuracy from elsewhere."""
    history = History()
    for epoch in range(epoch_number):
        start = time.perf_counter()
        history.losses += train_epoch()
        history.seconds.append(time.perf_counter() - start)
        history.accuracies.append(accuracy())
        print(f"[{epoch}] Accuracy: {history.accuracies[-1]:.4f}", flush=True)
    return history


def torch_eager(data: Dataset, batch_size: int, epoch_number: int) -> History:
    """Train with PyTorch eager, all tensors in memory."""
    import torch

    x, y = torch.from_numpy(data.train[0]), torch.from_numpy(data.train[1]).long()
    return torch_history(data, epoch_number, lambda: ((x[i], y[i]) for i in torch.randperm(len(x)).split(batch_size)))


def torch_loader(data: Dataset, batch_size: int, epoch_number: int) -> History:
    """Train with PyTorch eager, through a DataLoader over torchvision's data set."""
    import torch
    from torchvision import datasets, transforms

    steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,)), torch.flatten]
    pairs = datasets.MNIST(Path(data.source).parents[1], transform=transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(pairs, batch_size, shuffle=True)
    return torch_history(data, epoch_number, lambda: loader)


def torch_history(data: Dataset, epoch_number: int, batches: Callable[[], Any]) -> History:
    """Train with PyTorch on the batches of every epoch."""
    import torch

    layers: list[Any] = [torch.nn.Linear(*shape, bias=False) for shape in NumpyModel.SHAPES.values()]
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    loss_function, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    x_test, y_test = map(torch.from_numpy, data.test)

    def train_epoch() -> Iterator[float]:
        for x, y in batches():
            optimizer.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()
            yield loss.item()

    @torch.no_grad()
    def accuracy() -> float:
        return float((model(x_test).argmax(1) == y_test).float().mean())

    return epochs_of(epoch_number, train_epoch, accuracy)


def jax_jitted(data: Dataset, batch_size: int, epoch_number: int) -> History:
    """Train with JAX, the whole step jitted, arrays in memory."""
    import jax

    x, y, x_test, y_test = map(jax.numpy.asarray, (*data.train, *data.test))
    model, rng = NumpyModel(), np.random.default_rng()
    weights: Any = [model.W1, model.W2, model.W3]

    def forward(weights: Any, x: Any) -> Any:
        return jax.nn.relu(jax.nn.relu(x @ weights[0]) @ weights[1]) @ weights[2]

    def loss_function(weights: Any, x: Any, y: Any) -> Any:
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(forward(weights, x)), y[:, None], axis=1).mean()

    @jax.jit
    def step(weights: Any, x: Any, y: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_function)(weights, x[batch], y[batch])
        return [W - LEARNING_RATE * grad for W, grad in zip(weights, grads, strict=True)], loss

    def train_epoch() -> list[float]:
        nonlocal weights
        order, losses = rng.permutation(len(x)), []
        for start in range(0, len(x), batch_size):
            weights, loss = step(weights, x, y, order[start : start + batch_size])
            losses.append(loss)
        return [float(loss) for loss in losses]  # waits for all that was dispatched

    return epochs_of(epoch_number, train_epoch, lambda: float((forward(weights, x_test).argmax(1) == y_test).mean()))


def sklearn_mlp(data: Dataset, batch_size: int, epoch_number: int) -> History:
    """Train with scikit-learn's MLPClassifier; its layers have biases, and it tells one loss an epoch."""
    from sklearn.neural_network import MLPClassifier

    sgd = {"solver": "sgd", "alpha": 0, "momentum": 0, "learning_rate_init": LEARNING_RATE}
    model = MLPClassifier(WIDTHS[1:-1], batch_size=batch_size, **sgd)

    def train_epoch() -> list[float]:
        return [model.partial_fit(*data.train, classes=np.arange(10)).loss_]

    return epochs_of(epoch_number, train_epoch, lambda: model.score(*data.test))


def products(data: Dataset, batch_size: int, epoch_number: int) -> History:
    """Compute nothing but the eight matrix products of every step."""
    rng = np.random.default_rng()
    W1, W2, W3 = (rng.standard_normal(shape, np.float32) for shape in NumpyModel.SHAPES.values())
    x1, x2, x3, y = (rng.standard_normal((batch_size, width), np.float32) for width in WIDTHS)

    def train_epoch() -> list[float]:
        for _ in range(0, len(data.train[1]), batch_size):
            for a, b in ((x1, W1), (x2, W2), (x3, W3), (x3.T, y), (y, W3.T), (x2.T, x3), (x3, W2.T), (x1.T, x2)):
                a @ b
        return []

    return epochs_of(epoch_number, train_epoch, lambda: 0)


CONTENDERS: dict[str, Callable[[Dataset, int, int], History]] = {
    "this lab": lab,
    "PyTorch eager, tensors in memory": torch_eager,
    "JAX, jitted": jax_jitted,
    "scikit-learn MLPClassifier": sklearn_mlp,
    "PyTorch eager, DataLoader": torch_loader,
    "the eight matrix products alone": products,
}
RUNS = list(CONTENDERS)[1:4]  # whole runs, beside those of this lab
THREADS = ["", *(f"OPENBLAS_NUM_THREADS={count}" for count in (1, 2))]
THREADS += [f"OPENBLAS_THREAD_TIMEOUT={power}" for power in (4, 14, 20)]  # 2**power cycles, 2**26 by default
TABLES = ["epochs", "default run", "experiment 2", "threads"]


def run(name: str, data_dir: str, batch_size: int, epoch_number: int, plot: str) -> None:
    """Run a contender from its start to its picture, and print the seconds of its last epoch."""
    _, (images, labels), (test_images, test_labels), source = load_dataset("MNIST", data_dir)
    data = Dataset("MNIST", (images.reshape(-1, 784), labels), (test_images.reshape(-1, 784), test_labels), source)
    history = CONTENDERS[name](data, batch_size, epoch_number)
    if history.losses:
        plot_curve(history.losses, history.accuracies, path=plot, show=False)
    print(history.seconds[-1])


# ---- measuring


def measure(command: list[str], load: int) -> tuple[float, float, str]:
    """Run a command beside `load` busy processes, and return its wall time, peak memory in MB and output."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
    # The shell's number of threads does not count: a row sets its own, or leaves the choice to the library.
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    start = time.perf_counter()
    try:
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            output = "".join(process.stdout or ())
            _, process.returncode, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    finally:
        for one in busy:
            one.kill()
            one.wait()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, usage.ru_maxrss / 1024, output


def print_table(
    title: str, commands: dict[str, list[str]], rounds: int, loads: list[int], epochs: bool = False
) -> None:
    """Measure commands beside each number of busy processes, taking turns, and print a Markdown table."""
    seconds: dict[tuple[str, int], list[float]] = {(name, load): [] for name in commands for load in loads}
    peaks: dict[str, list[float]] = {name: [] for name in commands}
    turns, start = list(seconds) * rounds, time.perf_counter()
    for done, (name, load) in enumerate(turns):
        left = (time.perf_counter() - start) / (done or math.nan) * (len(turns) - done)
        print(f"\r\033[K{title}, {done + 1} of {len(turns)}, {left:.0f} s left: {name}", end="", file=sys.stderr)
        wall, megabytes, output = measure(commands[name], load)
        seconds[name, load].append(float(output.split()[-1]) if epochs else wall)
        peaks[name].append(megabytes)
    print(file=sys.stderr)
    columns = [f"beside {load} busy processes (s)" if load else "seconds" for load in loads]
    print(f"\n| {title} | {' | ratio | '.join(columns)} | ratio | peak memory (MB) |")
    print("| --- " + "| --: " * (2 * len(loads) + 1) + "|")
    for name in commands:
        cells = [name]
        for load in loads:
            values, first = seconds[name, load], seconds[next(iter(commands)), load]
            middle = statistics.median(values)
            cells += [f"{middle:.2f} ({min(values):.2f}–{max(values):.2f})", f"{middle / statistics.median(first):.2f}"]
        print(f"| {' | '.join(cells)} | {statistics.median(peaks[name]):.0f} |", flush=True)


def print_machine(rounds: int) -> None:
    """Print what the figures depend on, and what they are."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    packages = ("numpy", "torch", "scikit-learn", "jax")
    versions = [f"{each.name} {each.version}" for each in metadata.distributions() if each.name in packages]
    print(f"{(models or [platform.machine()])[0]}, {len(os.sched_getaffinity(0))} cores, Python", end=" ")
    print(f"{platform.python_version()}, {', '.join(versions)}, NumPy's BLAS: {blas['name']} {blas['version']}.")
    print(f"Median of {rounds} rounds (smallest–largest), ratio to the first row.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="what to measure")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=list(CONTENDERS),
        help="whom to measure, beside whole runs of this lab",
    )
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128], help="of the epochs, a table each")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of every row")
    parser.add_argument("--busy", type=int, default=0, help="processes beside which whole runs are measured, too")
    parser.add_argument("--data-dir", default="data", help="where MNIST is, or is downloaded to")
    options = parser.parse_args(arguments)
    data_dir = str(Path(options.data_dir).resolve())
    placed = find_files(Path(data_dir, "MNIST", "raw")).values()
    if "PyTorch eager, DataLoader" in options.contenders and any(path.suffix == ".gz" for path in placed):
        parser.error(f"torchvision reads unpacked files alone: gunzip {data_dir}/MNIST/raw/*.gz")
    # Not here: Linux counts the peak memory of a process among that of those which it starts.
    subprocess.run(
        [sys.executable, "-c", f"import utils; utils.load_dataset('MNIST', {data_dir!r})"], cwd=ROOT, check=True
    )
    print_machine(options.rounds)
    names = [name for name in options.contenders if name != "JAX, jitted" or find_spec("jax")]
    loads = [0, options.busy] if options.busy else [0]
    with tempfile.TemporaryDirectory() as folder:
        plot = str(Path(folder, "loss.png"))

        def contender(name: str, batch_size: int, epochs: int) -> list[str]:
            call = f"run{(name, data_dir, batch_size, epochs, plot)}"
            return [sys.executable, "-c", f"from tests.benchmark import run; {call}"]

        def lab_run(epochs: int, setting: str = "") -> list[str]:
            files = ["--dataset", "MNIST", "--data-dir", data_dir, "--plot", plot]
            return ["env", *setting.split(), sys.executable, "numpy_mnist.py", *files, "--epoch-number", str(epochs)]

        if "epochs" in options.tables:
            for size in options.batch_size:
                rows = {name: contender(name, size, 2) for name in names}
                print_table(f"second epoch, batch size {size}", rows, options.rounds, [0], epochs=True)
        for title, epochs in (("default run", 3), ("experiment 2", 10)):
            if title in options.tables:
                rows = {"this lab": lab_run(epochs)}
                rows["this lab, one BLAS thread"] = lab_run(epochs, "OPENBLAS_NUM_THREADS=1")
                rows |= {name: contender(name, 128, epochs) for name in names if name in RUNS}
                print_table(f"{title}, {epochs} epochs, from a cold start", rows, options.rounds, loads)
        if "threads" in options.tables:
            rows = {setting or "as it ships": lab_run(3, setting) for setting in THREADS}
            print_table("default run of this lab", rows, options.rounds, loads)


if __name__ == "__main__":
    main()
