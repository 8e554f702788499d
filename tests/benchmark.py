"""Seconds an epoch of the same network, batches and SGD in this lab and elsewhere: python -m tests.benchmark [--help].

Every measurement is a process of its own with the same number of threads, and the contenders take turns over several
rounds, so that a noisy neighbor disturbs all of them alike.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import numpy_mnist
from numpy_fnn import NumpyModel
from utils import FILES, initial_weights, load_dataset

ROOT = Path(__file__).parent.parent
LEARNING_RATE = numpy_mnist.LEARNING_RATE


def timed(run_epoch: Callable[[], object]) -> float:
    """Return the seconds of the second call; the first one warms up, compiles and starts the threads."""
    run_epoch()
    start = time.perf_counter()
    run_epoch()
    return time.perf_counter() - start


def lab(data_dir: str, batch_size: int, train_set: Any = None) -> float:
    """Train with this lab's own function, evaluation left out."""
    rng = np.random.default_rng(0)
    images, labels = load_dataset("MNIST", data_dir).train
    with contextlib.redirect_stdout(io.StringIO()):
        history = numpy_mnist.train(
            numpy_mnist.new_model(rng),
            train_set or (images, labels),
            (images[:1], labels[:1]),
            1 if train_set else 2,
            batch_size,
            LEARNING_RATE,
            rng,
        )
    return history.seconds[-1]


def torchvision_pairs(data_dir: str) -> Any:
    """Return the training set as torchvision gives it: pairs of a normalized tensor and a label."""
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    return datasets.MNIST(data_dir, transform=transform)


def lab_pairs(data_dir: str, batch_size: int) -> float:
    """Train this lab on pairs, converted to arrays every epoch, as course solutions do."""
    return lab(data_dir, batch_size, torchvision_pairs(data_dir))


def products(data_dir: str, batch_size: int) -> float:
    """Compute nothing but the eight matrix products of every step."""
    rng = np.random.default_rng(0)
    images, _ = load_dataset("MNIST", data_dir).train
    x1 = images[:batch_size].reshape(batch_size, 784)
    W1, W2, W3 = (rng.standard_normal(shape, dtype=np.float32) for shape in NumpyModel.SHAPES.values())
    x2, x3, y = (rng.standard_normal((batch_size, W.shape[1]), dtype=np.float32) for W in (W1, W2, W3))

    def run_epoch() -> None:
        for _ in range(0, len(images), batch_size):
            for a, b in ((x1, W1), (x2, W2), (x3, W3), (x3.T, y), (y, W3.T), (x2.T, x3), (x3, W2.T), (x1.T, x2)):
                a @ b

    return timed(run_epoch)


def torch_model() -> tuple[Any, Any, Any]:
    """Return network, loss and optimizer as a PyTorch user writes them."""
    import torch

    layers = [torch.nn.Linear(*shape, bias=False) for shape in NumpyModel.SHAPES.values()]
    relu = torch.nn.ReLU()
    model = torch.nn.Sequential(layers[0], relu, layers[1], relu, layers[2])
    return model, torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def torch_step(model: Any, loss_function: Any, optimizer: Any, x: Any, y: Any) -> float:
    """Take one step of SGD and return the loss."""
    optimizer.zero_grad()
    loss = loss_function(model(x), y)
    loss.backward()
    optimizer.step()
    return float(loss.item())


def torch_tensors(data_dir: str, batch_size: int) -> float:
    """Train with PyTorch eager, all tensors in memory."""
    import torch

    images, labels = load_dataset("MNIST", data_dir).train
    x, y = torch.from_numpy(images.reshape(-1, 784)), torch.from_numpy(labels.astype(np.int64))
    parts = torch_model()
    return timed(lambda: [torch_step(*parts, x[i], y[i]) for i in torch.randperm(len(x)).split(batch_size)])


def torch_loader(data_dir: str, batch_size: int) -> float:
    """Train with PyTorch eager and its DataLoader."""
    import torch

    loader = torch.utils.data.DataLoader(torchvision_pairs(data_dir), batch_size, shuffle=True)
    parts = torch_model()
    start = time.perf_counter()
    for x, y in loader:
        torch_step(*parts, x.flatten(1), y)
    return time.perf_counter() - start


def sklearn_mlp(data_dir: str, batch_size: int) -> float:
    """Train with scikit-learn's MLPClassifier, plain SGD; its layers have biases."""
    from sklearn.neural_network import MLPClassifier

    images, labels = load_dataset("MNIST", data_dir).train
    x = images.reshape(-1, 784)
    model = MLPClassifier(
        (256, 64), solver="sgd", alpha=0, batch_size=batch_size, learning_rate_init=LEARNING_RATE, momentum=0
    )
    return timed(lambda: model.partial_fit(x, labels, classes=np.arange(10)))


def jax_jitted(data_dir: str, batch_size: int) -> float:
    """Train with JAX, the whole step jitted, arrays in memory."""
    import jax

    images, labels = load_dataset("MNIST", data_dir).train
    x, y = jax.numpy.asarray(images.reshape(-1, 784)), jax.numpy.asarray(labels)
    weights = initial_weights(np.random.default_rng(0), *NumpyModel.SHAPES.values())

    def loss_function(weights: Any, x: Any, y: Any) -> Any:
        h = jax.nn.relu(jax.nn.relu(x @ weights[0]) @ weights[1]) @ weights[2]
        return -jax.numpy.take_along_axis(jax.nn.log_softmax(h), y[:, None], axis=1).mean()

    @jax.jit
    def step(weights: Any, x: Any, y: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_function)(weights, x[batch], y[batch])
        return [W - LEARNING_RATE * grad for W, grad in zip(weights, grads, strict=True)], loss

    def run_epoch() -> None:
        nonlocal weights
        order, losses = np.random.default_rng().permutation(len(images)), []
        for start in range(0, len(order), batch_size):
            weights, loss = step(weights, x, y, order[start : start + batch_size])
            losses.append(loss)
        jax.block_until_ready((weights, losses))

    return timed(run_epoch)


EPOCHS: dict[str, Callable[[str, int], float]] = {
    "this lab": lab,
    "PyTorch eager, tensors in memory": torch_tensors,
    "PyTorch eager, DataLoader": torch_loader,
    "scikit-learn MLPClassifier": sklearn_mlp,
    "JAX, jitted": jax_jitted,
    "this lab, torchvision pairs": lab_pairs,
    "the eight matrix products alone": products,
}


def torch_script(data_dir: str, plot: str) -> None:
    """Do in PyTorch what numpy_mnist.py does: three epochs, the accuracy after each, the picture."""
    import torch
    from torchvision import datasets

    from utils import plot_curve

    train_set, test_set = (datasets.MNIST(data_dir, train=train) for train in (True, False))
    x, x_test = (((each.data.flatten(1) / 255) - 0.1307) / 0.3081 for each in (train_set, test_set))
    parts = torch_model()
    losses, accuracies = [], []
    for epoch in range(3):
        for i in torch.randperm(len(x)).split(128):
            losses.append(torch_step(*parts, x[i], train_set.targets[i]))
        with torch.no_grad():
            accuracies.append((parts[0](x_test).argmax(1) == test_set.targets).float().mean().item())
        print(f"[{epoch}] Accuracy: {accuracies[-1]:.4f}")
    plot_curve(losses, accuracies, "PyTorch", plot)


def seconds_of_epoch(name: str, data_dir: str, batch_size: int) -> float:
    """Measure one epoch in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(EPOCHS[name], (data_dir, batch_size))


def seconds_and_megabytes(command: list[str]) -> tuple[float, float]:
    """Run a command and return its wall time and peak memory."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def random_mnist(data_dir: str) -> None:
    """Write random images and labels, of MNIST's sizes, as its files."""
    rng = np.random.default_rng(0)
    raw = Path(data_dir, "MNIST", "raw")
    raw.mkdir(parents=True)
    for name, size, high in zip(FILES, (60000, 60000, 10000, 10000), (256, 10, 256, 10), strict=True):
        shape = (size, 28, 28) if high == 256 else (size,)
        header = np.array([0x0800 + len(shape), *shape], ">u4").tobytes()
        (raw / name).write_bytes(header + rng.integers(0, high, shape, np.uint8).tobytes())


def summary(values: Sequence[float]) -> str:
    """Return the median and, in parentheses, the smallest and largest value."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def print_machine(options: argparse.Namespace) -> None:
    """Print what the figures depend on."""
    models = [line.split(": ")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    versions = []
    for module, package in (("numpy", "numpy"), ("torch", "torch"), ("sklearn", "scikit-learn"), ("jax", "jax")):
        if importlib.util.find_spec(module):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    print(
        f"{models[0]}, {options.threads} threads, Python {platform.python_version()}, {', '.join(versions)}; ", end=""
    )
    print(f"NumPy's BLAS: {blas['name']} {blas['version']}. Median of {options.rounds} rounds (smallest–largest).")


def print_table(*rows: Sequence[str]) -> None:
    """Print a Markdown table, the first row its head, the first column text and the others numbers."""
    print()
    for row in (rows[0], ["---"] + ["--:"] * (len(rows[0]) - 1), *rows[1:]):
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data-dir", default="data", help="where MNIST is; random data of its sizes where it is not")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128], help="sizes of a mini-batch, a table each")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of every contender")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of every contender")
    parser.add_argument("--contender", nargs="+", choices=EPOCHS, default=list(EPOCHS), help="whom to measure")
    parser.add_argument("--no-runs", action="store_true", help="leave out the whole runs")
    options = parser.parse_args()

    os.sched_setaffinity(0, range(options.threads))  # JAX takes its number of threads from here
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        data_dir = str(Path(options.data_dir).resolve())
        if not Path(data_dir, "MNIST", "raw").is_dir():
            print(f"MNIST is not in {options.data_dir}: random data of its sizes.")
            random_mnist(data_dir := folder)
        print_machine(options)
        for batch_size in options.batch_size:
            print_epochs(options, data_dir, batch_size)
        if not options.no_runs:
            print_runs(options, data_dir, folder)


def print_epochs(options: argparse.Namespace, data_dir: str, batch_size: int) -> None:
    """Measure one epoch of every contender and print the table."""
    names = [name for name in options.contender if name != "JAX, jitted" or importlib.util.find_spec("jax")]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            seconds[name].append(seconds_of_epoch(name, data_dir, batch_size))
    own = statistics.median(seconds.get("this lab", [math.nan]))
    print_table(
        (f"one epoch, batch size {batch_size}", "seconds", "ratio to this lab"),
        *((name, summary(values), f"{statistics.median(values) / own:.2f}") for name, values in seconds.items()),
    )


def print_runs(options: argparse.Namespace, data_dir: str, folder: str) -> None:
    """Measure whole runs and print the table."""
    plot = str(Path(folder, "loss.png"))
    lab_run = ["numpy_mnist.py", "--dataset", "MNIST", "--data-dir", data_dir, "--plot", plot]
    script = f"from tests.benchmark import torch_script; torch_script({data_dir!r}, {plot!r})"
    runs = {"numpy_mnist.py as it ships": lab_run, "a plain PyTorch script for the same work": ["-c", script]}
    runs |= {
        f"numpy_mnist.py --epoch-number {count}": [*lab_run, "--epoch-number", str(count)] for count in (1, 2, 4, 8)
    }
    sizes = (32, 64, 256, 512, 1024)
    runs |= {f"numpy_mnist.py --batch-size {size}": [*lab_run, "--batch-size", str(size)] for size in sizes}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, command in runs.items():
            measured[name].append(seconds_and_megabytes(command))
    rows = []
    for name, values in measured.items():
        seconds, megabytes = zip(*values, strict=True)
        rows.append((name, summary(seconds), f"{statistics.median(megabytes):.0f}"))
    print_table(("whole run", "seconds", "peak memory (MB)"), *rows)


if __name__ == "__main__":
    main()
