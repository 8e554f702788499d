"""A submission gets points for right rows. A fault costs no other step and no other submission."""

import inspect
import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from docs import grade
from docs.exercise import PROJECT, with_holes
from numpy_fnn import Log, Matmul, NumpyLoss, NumpyModel, Relu, Softmax
from numpy_mnist import mini_batch

HOARD = "MemoryError" if sys.platform == "linux" else ""  # other systems have no limit
FAULTS: dict[Any, tuple[str, str, str]] = {  # for each step: a body, its points, its verdict
    Matmul.backward: ("while True: pass", "0.33", "Matmul grad_x: not finished after 3 s"),
    Relu.backward: ("__import__('os')._exit(0)", "0.5", "Relu grad_x: the process ended"),
    Log.forward: ("self.memory = {'y': x}; return x", "0.0", "Log y: WRONG"),
    Softmax.backward: ("__import__('ctypes').string_at(0)", "0.5", "Softmax grad_x: the process"),
    NumpyLoss.backward: ("return input()", "0.0", "EOFError"),
    NumpyModel.backward: ("return [np.empty(10**7) for _ in range(999)]", "0.0", HOARD),
    mini_batch: ("def f(:", "0.38", "mini_batch sizes: invalid syntax (numpy_mnist.py"),
}
HARMLESS = "import os, sys\nos.chdir('/')\nprint('x' * 10**7)\nassert not sys.argv[1:]\n"


def hand_in(folder: Path, bodies: dict[Any, str], end: str = "") -> Path:
    """Write the lab with these bodies and this end into a folder, as Windows' Notepad saves it."""
    folder.mkdir(parents=True)
    for name in ("numpy_fnn.py", "numpy_mnist.py"):
        text = (PROJECT / name).read_text(encoding="utf-8") + end
        for function, body in bodies.items():
            code = inspect.getsource(function)
            text = text.replace(code, with_holes(code).rpartition("raise ")[0] + body + "\n")
        (folder / name).write_text(text, encoding="utf-8-sig", newline="\r\n")
    return folder


def run(folder: Path, *submissions: Path) -> list[list[str]]:
    """Return the lines of grades.csv: a name, the score, the points of each step, the faults."""
    grade.main([*map(str, submissions), "--output", str(folder), "--seconds", "3"])
    lines = (folder / "grades.csv").read_text(encoding="utf-8").split("\ufeff")[1].splitlines()
    return [line.split(",", 9) for line in lines[1:]]


def test_fault_costs_only_rows_of_its_step(tmp_path: Path) -> None:
    faulty = hand_in(tmp_path / "faulty", {name: body for name, (body, _, _) in FAULTS.items()})
    unread = hand_in(tmp_path / "unread", {Relu.backward: "def f(:"})
    right = hand_in(tmp_path / "right", {}, HARMLESS)
    first, second, third = run(tmp_path / "out", faulty, unread, right)
    assert first[2:9] == [points for _, points, _ in FAULTS.values()]
    for fault, (_, _, words) in zip(first[9].split("; "), FAULTS.values(), strict=True):
        assert words in fault
    assert second[9].count("Matmul") + second[9].count("Relu") == 1  # the error is named once
    assert third == ["right", "7.0", *["1.0"] * 7, ""]
    results = json.loads((tmp_path / "out" / "faulty" / "results.json").read_text())
    assert [test["score"] for test in results["tests"][:3]] == [0.33, 0, 0]


def test_files_are_found_at_any_depth_of_a_folder_or_archive(tmp_path: Path) -> None:
    lab = hand_in(tmp_path / "lab" / "a", {})
    hand_in(lab / "0", {}, "# deeper")
    archive = shutil.make_archive(str(tmp_path / "in" / "b"), "zip", tmp_path / "lab")
    (tmp_path / "in" / "._b.zip").write_text("macOS")
    other = shutil.make_archive(str(tmp_path / "c"), "gztar", tmp_path / "lab")
    for submission in (tmp_path / "lab", tmp_path / "in", Path(archive), Path(other)):
        folder = hand_in(tmp_path / f"found in {submission.name}", {}, "# other files")
        grade.collect(submission, folder)
        for path in lab.glob("numpy_*.py"):
            assert (folder / path.name).read_bytes() == path.read_bytes()


def test_interruption_and_bad_arguments_keep_earlier_grades(tmp_path: Path) -> None:
    verdicts = dict.fromkeys(grade.ROWS, "ok")
    interrupted = mock.patch.object(grade, "grade", side_effect=[verdicts, KeyboardInterrupt])
    with interrupted, pytest.raises(SystemExit, match="1 of 3"):
        run(tmp_path / "out", *(hand_in(tmp_path / name / "submission", {}) for name in "abc"))
    assert "\na/submission,7.0" in (tmp_path / "out" / "grades.csv").read_text(encoding="utf-8")
    for output, submission in (("out", "a"), ("new", "nobody")):
        with pytest.raises(SystemExit, match="2"):
            run(tmp_path / output, tmp_path / submission)
