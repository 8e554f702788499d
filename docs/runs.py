"""Train the runs that report.md speaks of, two at a time, and keep what each leaves, so that it is trained once."""

import ast
import contextlib
import inspect
import io
import itertools
import math
import platform
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import joblib
import numpy as np
import threadpoolctl
from scipy import special
from tqdm import tqdm

import numpy_fnn
import numpy_mnist
from numpy_fnn import Log, NumpyLoss, NumpyModel, NumpyOp, Softmax
from utils import Dataset, one_hot

CACHE = Path(__file__).with_name(".report_cache")  # git ignores it
AROUND = (20, 480)  # steps of a burst's course before and after its first


class Unshifted(Softmax):
    """Softmax without the shift by the row's maximum: NaN where an exponential overflows."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return y, shaped like x."""
        exp = np.exp(x)
        self.memory = {"y": exp / exp.sum(axis=-1, keepdims=True)}
        return self.memory["y"]


class Inexact(Log):
    """Log whose backward forgets the epsilon of its forward: infinite or NaN where x is 0."""

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return grad_x, shaped like grad_y."""
        return grad_y / self.memory["x"]


class LogSoftmax(NumpyOp):
    """The exact logarithm of softmax; with NumpyLoss, the gradient that reaches the scores is (y - t) / N."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return log-probabilities, shaped like the scores x."""
        self.memory = {"y": special.log_softmax(x, axis=-1)}
        return self.memory["y"]

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return grad_x, shaped like grad_y."""
        return grad_y - np.exp(self.memory["y"]) * grad_y.sum(axis=-1, keepdims=True)


NOTHING = SimpleNamespace(
    forward=lambda x: x, backward=lambda grad_y: grad_y
)  # LogSoftmax leaves nothing to Log
FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "this lab": lambda: {"softmax": Softmax(), "log": Log()},
    "exact cross-entropy": lambda: {"softmax": LogSoftmax(), "log": NOTHING},
    "no shift": lambda: {"softmax": Unshifted(), "log": Log()},
    "G / X": lambda: {"softmax": Softmax(), "log": Inexact()},
    "no shift and G / X": lambda: {"softmax": Unshifted(), "log": Inexact()},
}


class WithReplacement(np.random.Generator):
    """A generator whose permutations are drawn with replacement: an epoch shows some images twice, others never."""

    def permutation(self, x: Any, axis: int = 0) -> Any:
        """Return x integers below x."""
        return self.integers(x, size=x)


class Setting(NamedTuple):
    """What a run depends on besides its seed; `nudged` changes one initial weight in its last bit."""

    epochs: int
    batch_size: int
    learning_rate: float
    forms: str = "this lab"
    nudged: bool = False
    replacement: bool = False


class Run(NamedTuple):
    """What a run leaves, NaN after its end where it ended in NaN."""

    losses: np.ndarray  # of every step
    accuracies: np.ndarray  # on the test set, after every epoch


class Job(NamedTuple):
    """A run or, with the first step of a burst of this lab's forms, what other forms make of that burst."""

    setting: Setting
    seed: int
    burst: int | None = None


def start(setting: Setting, seed: int) -> tuple[NumpyModel, np.random.Generator]:
    """Return the model that the seed draws, and the generator that goes on to draw the shuffles, as the lab does."""
    rng = np.random.default_rng(seed)
    if setting.replacement:
        rng = WithReplacement(rng.bit_generator)
    model = NumpyModel(rng)
    vars(model).update(FORMS[setting.forms]())
    if setting.nudged:
        model.W1[0, 0] = np.nextafter(model.W1[0, 0], np.float32(1))
    return model, rng


def train_run(dataset: Dataset, setting: Setting, seed: int) -> Run:
    """Train as numpy_mnist.py does."""
    (model, rng), history = start(setting, seed), numpy_mnist.History()
    silent = contextlib.redirect_stdout(io.StringIO())
    with silent, contextlib.suppress(FloatingPointError), np.errstate(divide="ignore"):
        numpy_mnist.train(
            model, dataset.train, dataset.test, *setting[:3], rng=rng, history=history
        )
    steps = setting.epochs * math.ceil(len(dataset.train[1]) / setting.batch_size)
    run = Run(np.full(steps, np.nan), np.full(setting.epochs, np.nan))
    run.losses[: len(history.losses)] = history.losses
    run.accuracies[: len(history.accuracies)] = history.accuracies
    return run


@np.errstate(all="ignore")
def step(
    model: NumpyModel, x: np.ndarray, labels: np.ndarray, learning_rate: float
) -> tuple[float, ...]:
    """Take one step as numpy_mnist.py does; return true loss, share of images with p < ε, norm of the gradient."""
    numpy_loss, target = NumpyLoss(), one_hot(labels)
    numpy_loss.get_loss(model.forward(x), target)
    model.backward(numpy_loss.backward(), needs_input_grad=False)
    log_p = special.log_softmax(model.matmul_3.memory["y"].astype(float), axis=1)[target == 1]
    norm = np.sqrt(
        sum(
            np.sum(grad.astype(float) ** 2)
            for grad in (model.W1_grad, model.W2_grad, model.W3_grad)
        )
    )
    model.optimize(learning_rate)
    return -log_p.mean(), np.mean(np.exp(log_p) < Log().epsilon), norm


def follow_burst(
    dataset: Dataset, setting: Setting, seed: int, burst: int
) -> tuple[np.ndarray, float]:
    """Train with this lab's forms to AROUND[0] steps before a burst, and go on with others and the run's batches.

    Return what `step` returns for each step with these, up to the first NaN, and the accuracy at the end.
    """
    (model, rng), (before, after) = start(setting._replace(forms="this lab"), seed), AROUND
    epochs = iter(lambda: numpy_mnist.mini_batch(dataset.train, setting.batch_size, rng), None)
    batches = itertools.chain.from_iterable(epochs)
    for x, labels in itertools.islice(batches, max(burst - before, 0)):
        step(model, x, labels, setting.learning_rate)
    vars(model).update(FORMS[setting.forms]())
    followed = itertools.islice(batches, before + after)
    course = np.array([step(model, x, labels, setting.learning_rate) for x, labels in followed])
    return course[np.isfinite(course).all(axis=1)], numpy_mnist.evaluate(model, *dataset.test)


def machine() -> str:
    """Return what the digits of a run depend on besides the code and the data."""
    cpu, blas = Path("/proc/cpuinfo"), np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    name = (
        re.search("model name\\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    )  # as on Linux alone
    kernels = {
        library["architecture"]
        for library in threadpoolctl.threadpool_info()
        if "architecture" in library
    }
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, {blas['name']} {blas['version']}"
    return f"{name[1] if name else platform.machine()}, {versions}, kernels {' and '.join(sorted(kernels))}"


def code() -> str:
    """Return the code that a run executes, without comments, docstrings, layout and the words of errors."""
    parts = (
        numpy_mnist.as_arrays,
        numpy_mnist.mini_batch,
        numpy_mnist.evaluate,
        numpy_mnist.train,
        one_hot,
    )
    trees = [
        ast.parse(inspect.getsource(part)) for part in (numpy_fnn, sys.modules[__name__], *parts)
    ]
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant("")
        elif isinstance(node, ast.Raise):
            node.exc = None
    return "\n".join(map(ast.dump, trees))


def perform(job: Job, dataset: Dataset, path: Path) -> int:
    """Do a job, keep what it gives under `path`, and return its number of epochs."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the parent, which ends this process
    setting, seed, burst = job
    given = (
        train_run(dataset, setting, seed)
        if burst is None
        else follow_burst(dataset, setting, seed, burst)
    )
    partial = path.with_suffix(
        ".partial"
    )  # so that an end in the middle leaves no half a file under the name
    joblib.dump(given, partial)
    partial.replace(path)
    return setting.epochs


def gather(jobs: Sequence[Job], dataset: Dataset) -> list[Any]:
    """Return what each job gives: kept from earlier, or trained now, in two processes of one thread, and kept.

    What is kept counts for the same code, machine and data alone.
    """
    base = joblib.hash((code(), machine(), dataset.train, dataset.test))
    paths = {job: CACHE / f"{joblib.hash((base, repr(job)))}.pickle" for job in jobs}
    if missing := [job for job, path in paths.items() if not path.exists()]:
        CACHE.mkdir(exist_ok=True)
        with (
            joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=1),
            tqdm(
                total=sum(job.setting.epochs for job in missing), unit="epoch", smoothing=0
            ) as progress,
        ):
            calls = (joblib.delayed(perform)(job, dataset, paths[job]) for job in missing)
            for epochs in joblib.Parallel(return_as="generator_unordered")(calls):
                progress.update(epochs)
    return [joblib.load(paths[job]) for job in jobs]
