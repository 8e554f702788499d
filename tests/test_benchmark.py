"""The benchmark in its smallest form: it runs, and all contenders do the same work."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from numpy_mnist import History
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
    smallest = ["--tables", "epochs", "default run", "--contenders", "this lab", "--rounds", "1", "--batch-size", "100"]
    benchmark.main(["--data-dir", str(easy_dir), *smallest])
    captured = capsys.readouterr()
    machine, *tables = captured.out.split("\n\n")
    assert re.search(r"\d cores, Python \d.*, numpy \d", machine)
    titles = "second epoch, batch size 100", "default run, 3 epochs, from a cold start"
    for title, table in zip(titles, tables, strict=True):
        head, _, row, *_ = table.splitlines()
        assert head == f"| {title} | seconds | ratio | peak memory (MB) |"
        assert re.fullmatch(r"\| this lab \| (\d+\.\d\d) \(\1–\1\) \| 1\.00 \| \d+ \|", row)


def test_rows_are_what_their_names_say(easy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: dict[str, dict[str, list[str]]] = {}
    monkeypatch.setattr(benchmark, "print_table", lambda title, rows, *_, **__: tables.update({title: rows}))
    benchmark.main(["--data-dir", str(easy_dir)])
    epochs, *whole_runs, _ = tables.values()
    assert all("128, 2, " in command[-1] for command in epochs.values())
    for rows, epoch_number in zip(whole_runs, ("3", "10"), strict=True):
        lab, one_thread, *others = rows.values()
        assert (lab[2], lab[-1]) == ("numpy_mnist.py", epoch_number)
        assert one_thread == ["env", "OPENBLAS_NUM_THREADS=1", *lab[1:]]
        assert all(f"128, {epoch_number}, " in command[-1] for command in others)


def test_packed_files_are_an_error_before_anything_is_measured(
    easy_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path := easy_dir / "MNIST" / "raw" / FILES[0]).rename(f"{path}.gz")
    with pytest.raises(SystemExit) as caught:
        benchmark.main(["--data-dir", str(easy_dir)])
    assert caught.value.code == 2
    assert "gunzip" in capsys.readouterr().err


def test_seconds_are_those_of_the_last_epoch(
    easy_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(benchmark.CONTENDERS, "this lab", lambda *_: History(seconds=[3.0, 2.0]))
    benchmark.run("this lab", str(easy_dir), 10, 2, "")
    assert capsys.readouterr().out == "2.0\n"


def test_contenders_take_turns_idle_and_busy(
    easy_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = []

    def measure(command: list[str], load: int) -> tuple[float, float, str]:
        turns.append((command[1], load))
        return len(turns) ** 2, 100 + len(turns), "[1] Accuracy: 0.9\n0.25\n"

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "THREADS", ["", "A=1"])
    options = ["--data-dir", str(easy_dir), "--rounds", "3", "--busy", "2", "--contenders", "this lab"]
    benchmark.main([*options, "--tables", "threads"])
    assert turns == [(sys.executable, 0), (sys.executable, 2), ("A=1", 0), ("A=1", 2)] * 3
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "| default run of this lab | seconds | ratio | beside 2 busy processes (s) | ratio | peak memory (MB) |",
        "| --- | --: | --: | --: | --: | --: |",
        "| as it ships | 25.00 (1.00–81.00) | 1.00 | 36.00 (4.00–100.00) | 1.00 | 106 |",
        "| A=1 | 49.00 (9.00–121.00) | 1.96 | 64.00 (16.00–144.00) | 1.78 | 108 |",
    ]
    benchmark.main([*options, "--tables", "epochs"])
    assert capsys.readouterr().out.splitlines()[-1] == "| this lab | 0.25 (0.25–0.25) | 1.00 | 114 |"


def test_measurement_is_of_one_process_beside_busy_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    program = "import os; x = b'x' * 2**27; p = os.getppid(); print('OMP_NUM_THREADS' in os.environ)\n"
    program += "print(len(open(f'/proc/{p}/task/{p}/children').read().split()))"  # of the one that measures
    idle, busy = (benchmark.measure([sys.executable, "-c", program], load) for load in (0, 2))
    assert 0 < idle[0] < 60
    assert idle[1] > 128
    assert (idle[2], busy[2]) == ("False\n1\n", "False\n3\n")
    with pytest.raises(SystemExit, match="failed"):
        benchmark.measure([sys.executable, "-c", "raise ValueError"], 0)


@pytest.mark.parametrize("name", list(benchmark.CONTENDERS)[:-1])
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
