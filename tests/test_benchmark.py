"""The benchmark in its smallest form: it runs, and all contenders do the same work."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import benchmark
from tests.conftest import idx
from utils import FILES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads the CPU and the memory from Linux")


@pytest.fixture
def easy_dir(tmp_path: Path) -> Path:
    """Return a data directory with 400 training and 20 test images, a bright row for each digit."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for size, (images, labels) in ((400, FILES[:2]), (20, FILES[2:])):
        digits = np.arange(size) % 10
        (raw / images).write_bytes(idx(np.repeat(np.eye(28, dtype=np.uint8)[digits, :, None] * 255, 28, axis=2)))
        (raw / labels).write_bytes(idx(digits.astype(np.uint8)))
    return tmp_path


def test_smallest_benchmark_prints_machine_and_tables(easy_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    smallest = ["--tables", "epochs", "runs", "--contenders", "this lab", "--rounds", "1", "--batch-size", "100"]
    benchmark.main(["--data-dir", str(easy_dir), *smallest])
    captured = capsys.readouterr()
    machine, *tables = captured.out.split("\n\n")
    assert re.search(r"\d cores, Python \d.*, numpy \d", machine)
    titles = "second epoch, batch size 100", "default run, 3 epochs", "experiment 2, 10 epochs"
    for title, table in zip(titles, tables, strict=True):
        head, _, row = table.splitlines()
        assert head == f"| {title} | seconds | ratio | peak memory (MB) |"
        assert re.fullmatch(r"\| this lab \| (\d+\.\d\d) \(\1–\1\) \| 1\.00 \| \d+ \|", row)


def test_contenders_take_turns_idle_and_busy(
    easy_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = []

    def measure(command: list[str], load: int) -> tuple[float, float, str]:
        turns.append((command[:-1], load))
        return len(turns), 100 + len(turns), ""

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "THREADS", ["", "A=1"])
    benchmark.main(["--data-dir", str(easy_dir), "--tables", "threads", "--rounds", "3", "--busy", "2"])
    assert [load for _, load in turns] == [0, 2] * 6
    assert [command[1] for command, _ in turns[::2]] == [sys.executable, "A=1"] * 3
    head, rule, *rows = capsys.readouterr().out.splitlines()[-4:]
    title = "| default run of this lab | seconds | ratio | beside 2 busy processes (s) | ratio | peak memory (MB) |"
    assert (head, rule) == (title, "| --- " + "| --: " * 5 + "|")
    assert rows == [
        "| as it ships | 5.00 (1.00–9.00) | 1.00 | 6.00 (2.00–10.00) | 1.00 | 106 |",
        "| A=1 | 7.00 (3.00–11.00) | 1.40 | 8.00 (4.00–12.00) | 1.33 | 108 |",
    ]


def test_measurement_is_of_one_process_beside_busy_ones() -> None:
    program = "import os; x = b'x' * 2**27; print(len(os.listdir('/proc')), *os.listdir())"
    idle, busy = (benchmark.measure([sys.executable, "-c", program], load) for load in (0, 9))
    assert "numpy_fnn.py" in idle[2]
    assert 0 < idle[0] < 60
    assert idle[1] > 128
    assert int(busy[2].split()[0]) > int(idle[2].split()[0])
    with pytest.raises(SystemExit, match="failed"):
        benchmark.measure([sys.executable, "-c", "raise ValueError"], 0)


@pytest.mark.parametrize("name", [*benchmark.RUNS, "PyTorch eager, DataLoader"])
def test_contender_learns_and_saves_its_picture(name: str, easy_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "JAX, jitted":
        pytest.importorskip("jax")
    benchmark.run(name, str(easy_dir), 10, 3, str(easy_dir / "loss.png"))
    *lines, last, seconds = capsys.readouterr().out.splitlines()
    assert [line[:14] for line in lines] == ["[0] Accuracy: ", "[1] Accuracy: "]
    assert last == "[2] Accuracy: 1.0000"
    assert 0 < float(seconds) < 60
    assert (easy_dir / "loss.png").exists()


def test_products_are_timed(easy_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.run("the eight matrix products alone", str(easy_dir), 10, 1, "")
    assert float(capsys.readouterr().out.splitlines()[-1]) > 0
