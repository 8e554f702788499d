"""Measure how long this lab and other libraries take to train the same network.

`python -m docs.speed` prints the tables of speed.md. Run it while nothing else runs. A whole run
loads MNIST, trains and saves the picture. An epoch lasts from one printed accuracy to the next.
"""

import argparse
import os
import sys
import time
from importlib import util
from itertools import product
from subprocess import PIPE, Popen
from typing import Any

import numpy as np

from numpy_fnn import NumpyModel
from numpy_mnist import BATCH_SIZE, DATA_DIR, EPOCH_NUMBER, LEARNING_RATE, SEED, mini_batch
from utils import load_dataset, plot_curve

LAB = "numpy_mnist.py"
PICTURE = "loss_speed.png"
# OpenBLAS (NumPy, scikit-learn) and PyTorch read the first two variables, JAX reads the third.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "NPROC": "1"}


def scores(weights: Any, x: Any, relu: Any) -> Any:
    """Return the scores (logits) of images `x` (N, 784), in any library's arrays."""
    return relu(relu(x @ weights[0]) @ weights[1]) @ weights[2]


def torch_eager(model: NumpyModel, x: Any, y: Any, images: Any) -> Any:
    """Train with PyTorch in eager mode."""
    import torch

    weights = [torch.tensor(W, requires_grad=True) for W in (model.W1, model.W2, model.W3)]
    x, y, images = (torch.tensor(array) for array in (x, y, images))
    optimizer = torch.optim.SGD(weights, lr=LEARNING_RATE)

    def step(i: Any) -> float:
        i = torch.from_numpy(i)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(scores(weights, x[i], torch.relu), y[i].long())
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, torch.no_grad()(lambda: scores(weights, images, torch.relu))


def jax_jitted(model: NumpyModel, x: Any, y: Any, images: Any) -> Any:
    """Train with JAX, which compiles the whole step."""
    import jax

    weights: Any = [model.W1, model.W2, model.W3]
    x, y, images = jax.device_put((x, y, images))

    def loss_function(weights: Any, x: Any, y: Any) -> Any:
        log_probabilities = jax.nn.log_softmax(scores(weights, x, jax.nn.relu))
        return -log_probabilities[jax.numpy.arange(len(y)), y].mean()

    @jax.jit
    def update(weights: Any, x: Any, y: Any, i: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_function)(weights, x[i], y[i])
        return [W - LEARNING_RATE * grad for W, grad in zip(weights, grads, strict=True)], loss

    def step(i: Any) -> Any:
        weights[:], loss = update(weights, x, y, i)
        return loss

    return step, lambda: scores(weights, images, jax.nn.relu)


def sklearn_mlp(model: NumpyModel, x: Any, y: Any, images: Any) -> Any:
    """Train with scikit-learn's MLPClassifier, which has biases and draws weights and batches."""
    from sklearn.neural_network import MLPClassifier

    sgd = {"solver": "sgd", "learning_rate_init": LEARNING_RATE, "momentum": 0, "alpha": 0}
    mlp = MLPClassifier([len(model.W2), len(model.W3)], batch_size=BATCH_SIZE, **sgd)
    fit = mlp.partial_fit
    return lambda _: fit(x, y, classes=range(10)).loss_, lambda: mlp.predict_proba(images)


def matrix_products(model: NumpyModel, x: Any, y: Any, images: Any) -> Any:
    """Compute only the matrix products of this lab, eight in a step and three in an evaluation."""
    W1, W2, W3 = model.W1, model.W2, model.W3
    x1 = x[:BATCH_SIZE]

    def step(_: Any) -> float:
        x2 = x1 @ W1
        x3 = x2 @ W2
        grad = x3 @ W3
        _ = [x3.T @ grad, grad @ W3.T, x2.T @ x3, x3 @ W2.T, x1.T @ x2]
        return 1.0  # nothing is learned

    return step, lambda: images @ W1 @ W2 @ W3


# Each contender starts from the weights of `model` and returns two functions. The first takes a
# step of SGD on the images x[i] and returns the loss. The second returns the scores of `images`.
CONTENDERS = {"PyTorch": torch_eager, "JAX": jax_jitted, "scikit-learn": sklearn_mlp}
CONTENDERS["matrix products only"] = matrix_products


def run(name: str, data_dir: str) -> None:
    """Train a contender and save the picture, as numpy_mnist.py does."""
    _, (x, y), (x_test, y_test), _ = load_dataset("MNIST", data_dir)
    images = np.concatenate([x_test, x[:10000]]).reshape(-1, 784)
    labels = np.concatenate([y_test, y[:10000]])
    step, predict = CONTENDERS[name](NumpyModel(SEED), x.reshape(-1, 784), y, images)
    size = len(y) if name == "scikit-learn" else BATCH_SIZE  # which makes its own batches
    indices = (np.zeros(len(y)), np.arange(len(y)))  # instead of images and labels
    rng = np.random.default_rng(SEED)
    losses = []
    accuracies = []
    for epoch in range(EPOCH_NUMBER):
        losses += [step(i) for _, i in mini_batch(indices, size, rng)]
        accuracies.append(np.mean(np.asarray(predict()).argmax(axis=1) == labels))
        print(f"[{epoch}] Accuracy: {accuracies[-1]:.4f}")
    plot_curve([float(loss) for loss in losses], accuracies, path=PICTURE)


def measure(name: str, data_dir: str, busy: int, settings: dict[str, str]) -> tuple[float, float]:
    """Return the seconds of a run and of its last epoch, while `busy` other processes run."""
    command = [sys.executable, "-c", f"from docs.speed import run; run{(name, data_dir)}"]
    if name == LAB:
        command[1:] = [LAB, "--dataset=MNIST", "--data-dir", data_dir, "--plot", PICTURE]
    environment = {key: value for key, value in os.environ.items() if key not in ONE_THREAD}
    environment |= {"MPLBACKEND": "Agg", "PYTHONUNBUFFERED": "1", **settings}
    neighbors = [Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        start = time.perf_counter()
        with Popen(command, env=environment, stdout=PIPE, text=True) as process:
            ends = [time.perf_counter() for line in process.stdout or () if "Accuracy" in line]
        return time.perf_counter() - start, ends[-1] - ends[-2]
    finally:
        for neighbor in neighbors:
            neighbor.kill()


def main() -> None:
    """Measure, and print the tables."""
    from tqdm import tqdm  # here, so that no contender waits for it

    parser = argparse.ArgumentParser(prog="python -m docs.speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="runs per cell")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="also beside N processes")
    parser.add_argument("--data-dir", default=DATA_DIR, metavar="DIR", help="folder of data sets")
    options = parser.parse_args()
    np.show_runtime()
    names = [LAB, *(name for name in CONTENDERS if name != "JAX" or util.find_spec("jax"))]
    columns: dict[str, tuple[int, dict[str, str]]] = {}
    for busy in sorted({0, options.busy}):
        columns[f"{busy} busy processes, default threads"] = (busy, {})
        columns[f"{busy} busy processes, one thread"] = (busy, ONE_THREAD)
    results: dict[Any, Any] = {turn: [] for turn in product(names, columns)}
    for name, column in tqdm(list(results) * options.rounds):
        results[name, column].append(measure(name, options.data_dir, *columns[column]))
    for kind, title in enumerate(["whole run", "last epoch"]):
        shown = [column for column in columns if title == "whole run" or "one thread" in column]
        print("\n|", " | ".join([title, *shown]), "|\n| --- |" + " --: |" * len(shown))
        for name in names:
            values = np.array([results[name, column] for column in shown])[:, :, kind]
            cells = [f"{np.median(v):.2f} ({v.min():.2f}–{v.max():.2f})" for v in values]
            print("|", " | ".join([name, *cells]), "|")


if __name__ == "__main__":
    main()
