"""Run the tests with one thread and without windows, and provide their data sets."""

import os
from pathlib import Path

# On a busy machine, threads that wait for each other take many times as long.
os.environ |= {"OMP_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1", "MPLBACKEND": "agg"}

import numpy as np
import pytest

from utils import FILES, Dataset, find_files, load_dataset


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test that needs MNIST, so that `-m mnist` selects it."""
    if "mnist" in getattr(item, "fixturenames", ()):
        item.add_marker("mnist")


def idx(array: np.ndarray) -> bytes:
    """Return the bytes of an IDX file of a uint8 array."""
    return np.array([2048 + array.ndim, *array.shape], ">u4").tobytes() + array.tobytes()


@pytest.fixture
def contents() -> dict[str, bytes]:
    """Return four small files in MNIST's format, 30 training and 20 test images."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2, (10, 28, 28), np.uint8) * 200  # one for each class
    arrays = []
    for size in (30, 20):
        labels = np.arange(size, dtype=np.uint8) % 10
        arrays += [patterns[labels] + rng.integers(0, 50, (size, 28, 28), np.uint8), labels]
    return dict(zip(FILES, map(idx, arrays), strict=True))


@pytest.fixture
def data_dir(tmp_path: Path, contents: dict[str, bytes]) -> Path:
    """Return a data directory with these files as MNIST."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in contents.items():
        (raw / name).write_bytes(content)
    return tmp_path / "data"


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    """Return MNIST from the folder MNIST_DIR, or from data."""
    folder = os.environ.get("MNIST_DIR", "data")
    if not set(FILES) <= set(find_files(Path(folder, "MNIST", "raw"))):
        pytest.skip(f"MNIST is not in {folder}: run numpy_mnist.py once, or set MNIST_DIR")
    return load_dataset("MNIST", folder)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """Return scikit-learn's digits."""
    return load_dataset("digits")
