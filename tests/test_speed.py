"""The speed page's program: all contenders do the same work, and its tables are what it measured."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neural_network import MLPClassifier

from docs import speed
from numpy_fnn import NumpyModel
from numpy_mnist import BATCH_SIZE, EPOCH_NUMBER, LEARNING_RATE
from utils import FILES

pytestmark = pytest.mark.pages

# Of one image, every batch has the same gradient, however it was shuffled: two steps an epoch.
IMAGE = (
    np.random.default_rng(0).standard_normal((1, 784), np.float32) / 10
)  # so small that no step learns it all
TRAIN = IMAGE.repeat(BATCH_SIZE + 10, axis=0), np.full(BATCH_SIZE + 10, 7, np.uint8)
TEST = IMAGE.repeat(4, axis=0), np.array([7, 7, 3, 7])


@pytest.mark.parametrize("name", ["PyTorch", "JAX"])
def test_contender_takes_the_steps_of_the_lab(name: str) -> None:
    pytest.importorskip("jax" if name == "JAX" else "torch")
    lab, other = (
        speed.CONTENDERS[each](NumpyModel(rng=0), TRAIN, TEST) for each in ("this lab", name)
    )
    assert len(lab.losses) == 2 * EPOCH_NUMBER
    np.testing.assert_allclose(other.losses, lab.losses, rtol=1e-3, atol=1e-6)
    assert other.accuracies == lab.accuracies == [0.75] * EPOCH_NUMBER
    assert min(other.seconds) > 0


def test_scikit_learn_takes_plain_steps_of_the_same_size(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, states = MLPClassifier.partial_fit, []

    def watched(network: Any, *arguments: Any, **options: Any) -> Any:
        fit(network, *arguments, **options)
        states.append(
            [
                torch.tensor(array, requires_grad=True)
                for array in network.coefs_ + network.intercepts_
            ]
        )
        return network

    monkeypatch.setattr(MLPClassifier, "partial_fit", watched)
    history = speed.sklearn_mlp(NumpyModel(), TRAIN, TEST)
    assert (len(history.losses), history.accuracies[-1]) == (EPOCH_NUMBER, 0.75)
    # From the state after the first epoch, the second epoch's two steps again, with PyTorch.
    W1, W2, W3, b1, b2, b3 = state = states[0]
    assert [tuple(W.shape) for W in (W1, W2, W3)] == list(NumpyModel.SHAPES.values())
    optimizer = torch.optim.SGD(state, lr=LEARNING_RATE)
    for _ in range(2):
        optimizer.zero_grad()
        y = torch.relu(torch.relu(torch.tensor(IMAGE) @ W1 + b1) @ W2 + b2) @ W3 + b3
        torch.nn.functional.cross_entropy(y, torch.tensor([7])).backward()
        optimizer.step()
    for expected, array in zip(state, states[1], strict=True):
        torch.testing.assert_close(array, expected, rtol=1e-3, atol=1e-6)


def test_products_are_those_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, multiplied = NumpyModel(), []
    monkeypatch.setattr(
        np, "matmul", lambda *pair: multiplied.append([(a.shape, str(a.dtype)) for a in pair])
    )
    speed.products(model, TRAIN, TEST)
    monkeypatch.undo()
    model.forward(TRAIN[0][:BATCH_SIZE])
    step = []
    for matmul in (model.matmul_1, model.matmul_2, model.matmul_3):
        x, W, y = (matmul.memory[name] for name in ("x", "W", "y"))
        step += [(x, W), (x.T, y), (y, W.T)]
    del step[2]  # the images need no gradient
    assert sorted(multiplied) == sorted(
        [[(a.shape, "float32") for a in pair] for pair in step] * 2 * EPOCH_NUMBER
    )


def test_tables_are_of_interleaved_rounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns: list[Any] = []

    def measure(
        name: str, data_dir: str, busy: int, settings: dict[str, str]
    ) -> tuple[float, float]:
        turns.append(
            (name, busy, settings.get("OPENBLAS_NUM_THREADS"), settings.get("OPENBLAS_CORETYPE"))
        )
        return len(turns), len(turns) / 100

    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed, "load_dataset", lambda *_: None)
    monkeypatch.setattr(
        speed, "kernels", lambda settings: settings.get("OPENBLAS_CORETYPE", "Best")
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no JAX
    speed.main(["--rounds", "3", "--busy", "2", "--kernels", "Haswell"])
    size = len(turns) // 3
    assert turns == turns[:size] * 3
    assert turns[:4] == [
        ("numpy_mnist.py", busy, threads, None) for busy in (0, 2) for threads in (None, "1")
    ]
    ours = [
        ("its eight products", 0, threads, kernels)
        for kernels in (None, "Haswell")
        for threads in (None, "1")
    ]
    assert turns[size - 4 : size] == ours
    _, whole, epoch, by_kernels = capsys.readouterr().out.split("\n\n")
    busy = "beside 2 busy processes"
    assert (
        f"| idle, default threads | idle, one thread | {busy}, default threads | {busy}, one thread |"
        in whole
    )
    assert (
        "| Best, default threads | Best, one thread | Haswell, default threads | Haswell, one"
        in by_kernels
    )
    middle = size + 5  # PyTorch's first turn is the fifth of a round
    assert (
        f"| PyTorch | {middle:.2f} (5.00–{middle + size:.2f}), {middle / (middle - 4):.2f}× |"
        in whole
    )
    assert f"| PyTorch | {middle / 100:.2f} (0.05–" in epoch


def test_measurement_has_its_own_threads_and_ends_its_busy_processes(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes, start = [], subprocess.Popen.__init__

    def watched(process: Any, *arguments: Any, **options: Any) -> None:
        processes.append(process)
        start(process, *arguments, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", watched)
    whole, epoch = speed.measure("its eight products", str(data_dir), 2, {"OMP_NUM_THREADS": "1"})
    assert whole > epoch > 0
    assert [process.returncode == 0 for process in processes] == [False, False, True]
    assert None not in [process.returncode for process in processes]
    assert speed.measure(speed.PROGRAM, str(data_dir), 0, {})[0] > 0
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    program = "import os; print(*(os.environ.get(name) for name in ('OMP_NUM_THREADS', 'NPROC')))"
    assert speed.output(["-c", program], {"NPROC": "1"}) == "None 1\n"


def test_unused_avx512_is_told(tmp_path: Path) -> None:
    (cpuinfo := tmp_path / "cpuinfo").write_text(
        "model name\t: Fast\ncpu family\t: 26\nflags\t\t: fpu avx512f\n"
    )
    told, used = (speed.machine(kernels, cpuinfo) for kernels in ("Haswell", "Cooperlake"))
    assert told.startswith("Fast (family 26), ")
    assert "--kernels SkylakeX" in told
    assert "--kernels" not in used + speed.machine("Haswell", tmp_path / "none")


def test_damaged_data_is_an_error(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data_dir / "MNIST" / "raw" / FILES[0]).write_bytes(b"")
    with pytest.raises(SystemExit, match="2"):
        speed.main(["--data-dir", str(data_dir)])
    assert FILES[0] in capsys.readouterr().err
