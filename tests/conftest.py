"""One thread for the tests, their order and their limits, and their data sets: small ones, and MNIST where it is."""

import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

# Beside other busy programs, threads that wait for each other take many times as long. NumPy and torch look at start,
# OpenBLAS and MKL at OpenMP's variable, too; VECLIB is macOS's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VECLIB_MAXIMUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")  # no windows

import numpy as np
import pytest

from utils import FILES, Dataset, find_files, load_dataset

# The words of a test's name that say which step of the lab sheet it needs.
STEPS = ("Matmul", "Relu", "Log", "Softmax", "NumpyLoss", "NumpyModel", "optimize", "mini_batch")
SECONDS = 20  # of computing; what a busy machine makes a test wait does not count
MEMORY = 1 << 30  # bytes, besides what is taken before the test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests run in the order of the lab sheet, so that `-x` stops where the student is, and mark MNIST's."""

    def step(item: pytest.Item) -> int:
        name = item.nodeid.partition("::")[2].lower()
        return max((i for i, step in enumerate(STEPS) if step.lower() in name), default=len(STEPS))

    items.sort(key=step)
    for item in items:
        if "mnist" in getattr(item, "fixturenames", ()):
            item.add_marker("mnist")


class WithoutEndError(BaseException):
    """What ends a test; no Exception, since Hypothesis would catch that and try again."""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """End a test that computes without end, or takes memory without end, where the system can."""
    if sys.platform == "win32":
        yield
        return
    import resource

    seconds = SECONDS * (10 if {"mnist", "pages"} & set(item.keywords) else 1)

    def stop(*_: object) -> None:
        raise WithoutEndError(f"the test has been computing for {seconds} s")

    limits = resource.getrlimit(resource.RLIMIT_DATA)
    statm = Path("/proc/self/statm")
    if statm.exists():  # Linux's
        taken = int(statm.read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (taken + MEMORY, limits[1]))
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    resource.setrlimit(resource.RLIMIT_DATA, limits)


def idx(array: np.ndarray) -> bytes:
    """Return the bytes of an IDX file of a uint8 array."""
    return struct.pack(f">2x2B{array.ndim}I", 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def contents() -> dict[str, bytes]:
    """Return four small files in MNIST's format: 30 training and 20 test images of classes easy to tell."""
    rng = np.random.default_rng(0)
    patterns, arrays = rng.integers(0, 2, (10, 28, 28)) * 200, []
    for size in (30, 20):
        labels = np.arange(size, dtype=np.uint8) % 10
        arrays += [
            (patterns[labels] + rng.integers(0, 50, (size, 28, 28))).astype(np.uint8),
            labels,
        ]
    return {name: idx(array) for name, array in zip(FILES, arrays, strict=True)}


@pytest.fixture
def data_dir(tmp_path: Path, contents: dict[str, bytes]) -> Path:
    """Return a data directory in which these files stand as MNIST."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in contents.items():
        (raw / name).write_bytes(content)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    """Return the real MNIST from MNIST_DIR or data."""
    folder = os.environ.get("MNIST_DIR", "data")
    if len(find_files(Path(folder, "MNIST", "raw"))) < len(FILES):
        pytest.skip(
            f"MNIST is not in {folder}: run numpy_mnist.py once, or set MNIST_DIR to a data directory"
        )
    return load_dataset("MNIST", folder)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Return scikit-learn's digits."""
    return load_dataset("digits")
