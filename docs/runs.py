"""Train the runs that report.md speaks of, two at a time, and keep what they leave, so that each is trained once."""

import ast
import contextlib
import copy
import hashlib
import inspect
import io
import itertools
import multiprocessing
import os
import pickle
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import numpy_fnn
import numpy_mnist
from numpy_fnn import Log, NumpyLoss, NumpyModel, NumpyOp, Softmax
from utils import Dataset, load_dataset, one_hot

CACHE = Path(__file__).with_name(".experiments_cache")  # git ignores it
AROUND = (20, 480)  # steps of a branch before and after the first step of its burst
DATA: Dataset  # what a process trains on


class Unshifted(Softmax):
    """Softmax without the shift by the row's maximum: NaN where an exponential overflows."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return y, shaped like x."""
        exp = np.exp(x)
        y = exp / exp.sum(axis=-1, keepdims=True)
        self.memory = {"y": y}
        return y


class Inexact(Log):
    """Log whose backward forgets the epsilon of its forward: infinite or NaN where x is 0."""

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return grad_x, shaped like grad_y."""
        return grad_y / self.memory["x"]


class Scores(Softmax):
    """Softmax's place, left to the scores themselves: LogSoftmax needs them."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return x."""
        return x

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return grad_y."""
        return grad_y


class LogSoftmax(Log):
    """The exact logarithm of softmax; with NumpyLoss, the gradient that reaches the scores is (y - t) / N."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return log-probabilities, shaped like the scores x."""
        y = x - x.max(axis=-1, keepdims=True)
        y = y - np.log(np.exp(y).sum(axis=-1, keepdims=True))
        self.memory = {"y": y}
        return y

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return grad_x, shaped like grad_y."""
        return grad_y - np.exp(self.memory["y"]) * grad_y.sum(axis=-1, keepdims=True)


FORMS: dict[str, dict[str, type[NumpyOp]]] = {
    "this lab": {"softmax": Softmax, "log": Log},
    "exact cross-entropy": {"softmax": Scores, "log": LogSoftmax},
    "no shift": {"softmax": Unshifted, "log": Log},
    "G / X": {"softmax": Softmax, "log": Inexact},
    "no shift and G / X": {"softmax": Unshifted, "log": Inexact},
}
BRANCHES = ("this lab", "exact cross-entropy", "no shift and G / X")


class Setting(NamedTuple):
    """What a run depends on besides its seed; `nudged` changes one initial weight in its last bit."""

    epochs: int
    batch_size: int
    learning_rate: float
    forms: str = "this lab"
    nudged: bool = False


class Run(NamedTuple):
    """What a run leaves: the loss of every step, the rest for every epoch; less of both where it ended in NaN."""

    losses: np.ndarray
    accuracies: np.ndarray
    train_accuracies: np.ndarray
    seconds: np.ndarray
    output: str
    weights: tuple[np.ndarray, ...]  # of seed 0 alone, after the last epoch


class Branch(NamedTuple):
    """What some forms make of a burst."""

    course: np.ndarray  # (steps, 4): true loss, recorded loss, share of images with p < epsilon, norm of the gradient
    accuracy: float  # at the end


class Job(NamedTuple):
    """A run or, with the first step of a burst of that run, its branches around that step."""

    setting: Setting
    seed: int
    burst: int | None = None

    def epochs(self) -> int:
        """Return about how many epochs of training this is."""
        return self.setting.epochs if self.burst is None else 10


def use(model: NumpyModel, forms: str) -> NumpyModel:
    """Return the model with other operators."""
    vars(model).update({name: operator() for name, operator in FORMS[forms].items()})
    return model


def start_model(setting: Setting, seed: int) -> tuple[NumpyModel, np.random.Generator]:
    """Return the model that the seed draws, and the generator that goes on to draw the shuffles, as the lab does."""
    rng = np.random.default_rng(seed)
    model = use(NumpyModel(rng), setting.forms)
    if setting.nudged:
        model.W1[0, 0] = np.nextafter(model.W1[0, 0], np.float32(1))
    return model, rng


def train_run(dataset: Dataset, setting: Setting, seed: int) -> Run:
    """Train as numpy_mnist.py does."""
    (model, rng), history, printed = start_model(setting, seed), numpy_mnist.History(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(FloatingPointError), np.errstate(divide="ignore"):
        numpy_mnist.train(model, dataset.train, dataset.test, *setting[:3], rng, history)
    return Run(
        np.array(history.losses),
        np.array(history.accuracies),
        np.array(history.train_accuracies),
        np.array(history.seconds[: len(history.accuracies)]),
        printed.getvalue(),
        (model.W1, model.W2, model.W3) if seed == 0 else (),
    )


@np.errstate(all="ignore")
def step(model: NumpyModel, x: np.ndarray, labels: np.ndarray, learning_rate: float) -> tuple[float, ...]:
    """Take one step as numpy_mnist.py does and return what Branch.course has of it."""
    numpy_loss, target = NumpyLoss(), one_hot(labels)
    recorded = numpy_loss.get_loss(model.forward(x), target)
    model.backward(numpy_loss.backward(), needs_input_grad=False)
    true = LogSoftmax().forward(model.matmul_3.memory["y"].astype(float))[target == 1]
    norm = np.sqrt(sum(np.sum(grad.astype(float) ** 2) for grad in (model.W1_grad, model.W2_grad, model.W3_grad)))
    model.optimize(learning_rate)
    return -true.mean(), recorded, np.mean(np.exp(true) < 1e-12), norm


def train_branches(dataset: Dataset, setting: Setting, seed: int, burst: int) -> dict[str, Branch]:
    """Train to AROUND[0] steps before a burst, and go on with the same batches in each of the BRANCHES."""
    (model, rng), (before, after) = start_model(setting, seed), AROUND
    epochs = iter(lambda: numpy_mnist.mini_batch(dataset.train, setting.batch_size, rng), None)
    batches = itertools.chain.from_iterable(epochs)
    for x, labels in itertools.islice(batches, max(burst - before, 0)):
        step(model, x, labels, setting.learning_rate)
    models = {forms: use(copy.deepcopy(model), forms) for forms in BRANCHES}
    courses: dict[str, list[tuple[float, ...]]] = {forms: [] for forms in BRANCHES}
    for x, labels in itertools.islice(batches, before + after):
        for forms, course in courses.items():
            course.append(step(models[forms], x, labels, setting.learning_rate))
    return {
        forms: Branch(np.array(courses[forms]), numpy_mnist.evaluate(models[forms], *dataset.test))
        for forms in BRANCHES
    }


def machine() -> str:
    """Return what the digits of a run depend on besides the code and the data."""
    cpu, blas = Path("/proc/cpuinfo"), np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    name = next((line.split(": ")[1] for line in lines if "model name" in line), platform.machine())
    return f"{name}, Python {platform.python_version()}, NumPy {np.__version__}, {blas['name']} {blas['version']}"


def code() -> str:
    """Return the code that a run executes, without comments, docstrings and layout."""
    parts = (numpy_mnist.as_arrays, numpy_mnist.mini_batch, numpy_mnist.evaluate, numpy_mnist.train, one_hot)
    trees = [ast.parse(inspect.getsource(part)) for part in (numpy_fnn, sys.modules[__name__], *parts)]
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant("")
    return "\n".join(map(ast.dump, trees))


def start_worker(data_dir: str) -> None:
    """Load the data set that this process trains on."""
    global DATA
    DATA = load_dataset("MNIST", data_dir)


def perform(job: Job) -> tuple[Job, Any]:
    """Return the job with what it gives."""
    setting, seed, burst = job
    return job, train_run(DATA, setting, seed) if burst is None else train_branches(DATA, setting, seed, burst)


def gather(jobs: Sequence[Job], dataset: Dataset, data_dir: str) -> list[Any]:
    """Return what each job gives: kept from earlier, or trained now in two processes of one thread and kept.

    What is kept counts for the same code, machine and data alone.
    """
    data = [hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for array in (*dataset.train, *dataset.test)]
    base = "\n".join([code(), machine(), *data])
    paths = {job: CACHE / f"{hashlib.sha256(f'{base}{job}'.encode()).hexdigest()}.pickle" for job in jobs}
    if missing := [job for job, path in paths.items() if not path.exists()]:
        CACHE.mkdir(exist_ok=True)
        os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")  # for the processes, before they import NumPy
        total = sum(job.epochs() for job in missing)
        with (
            multiprocessing.get_context("spawn").Pool(2, start_worker, (data_dir,)) as pool,
            tqdm(total=total, unit="epoch", smoothing=0) as progress,
        ):
            for job, given in pool.imap_unordered(perform, missing):
                partial = paths[job].with_suffix(".partial")  # so that Ctrl-C leaves no half a file under the name
                partial.write_bytes(pickle.dumps(given))
                partial.replace(paths[job])
                progress.update(job.epochs())
    return [pickle.loads(paths[job].read_bytes()) for job in jobs]
