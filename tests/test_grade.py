"""What hand-ins get: points for what is right; a fault costs no other step and no other hand-in."""

import inspect
import json
import shutil
from pathlib import Path

import pytest

from docs import grade
from docs.exercise import PROJECT, TO_WRITE, with_holes

HOARD = "return [np.empty(10**7) for _ in range(999 if __import__('os').name == 'posix' else 0)]"
FAULTS = {  # a body for each step, its points, and what is said
    "Matmul.backward": ("while True: pass", "0.33", "Matmul grad_x: not finished after 3 s"),
    "Relu.backward": ("__import__('os')._exit(0)", "0.5", "Relu grad_x: the process ended"),
    "Log.forward": ("self.memory = {'y': x}; return x", "0.0", "Log y: WRONG"),
    "Softmax.backward": ("__import__('ctypes').string_at(0)", "0.5", "Softmax grad_x: the process"),
    "NumpyLoss.backward": ("return input()", "0.0", "NumpyLoss grad_p: numpy_fnn.py:"),
    "NumpyModel.backward": (HOARD, "0.0", "NumpyModel log: numpy_fnn.py:"),
    "mini_batch": ("def f(:", "0.38", "mini_batch sizes: SyntaxError: "),
}
HARMLESS = "import os, sys\nos.chdir('/')\nprint('x' * 10**7)\nassert not sys.argv[1:]\n"


def hand_in(folder: Path, bodies: dict[str, str], end: str = "") -> Path:
    """Write the lab, with other bodies and an end, into a folder, as Windows' Notepad saves it."""
    folder.mkdir(parents=True)
    for name in ("numpy_fnn.py", "numpy_mnist.py"):
        text = (PROJECT / name).read_text(encoding="utf-8") + end
        for function in TO_WRITE:
            code = inspect.getsource(function)
            hole = f'raise NotImplementedError("write {function.__qualname__}")'
            if function.__qualname__ in bodies:
                body = bodies[function.__qualname__]
                text = text.replace(code, with_holes(code).replace(hole, body))
        (folder / name).write_text(text, encoding="utf-8-sig", newline="\r\n")
    return folder


def run(folder: Path, *submissions: Path) -> list[list[str]]:
    """Return the lines of grades.csv: a name, the score, the points of each step, the faults."""
    grade.main([*map(str, submissions), "--output", str(folder), "--seconds", "3"])
    lines = (folder / "grades.csv").read_text(encoding="utf-8-sig").splitlines()
    return [line.split(",", 9) for line in lines[1:]]


def test_fault_costs_the_rows_of_its_step_alone(tmp_path: Path) -> None:
    faulty = hand_in(tmp_path / "faulty", {name: body for name, (body, _, _) in FAULTS.items()})
    unread = hand_in(tmp_path / "unread", {"Relu.backward": "def f(:"})
    right = hand_in(tmp_path / "right", {}, HARMLESS)
    first, second, third = run(tmp_path / "out", faulty, unread, right)
    assert first[2:9] == [points for _, points, _ in FAULTS.values()]
    for fault, (_, _, words) in zip(first[9].split("; "), FAULTS.values(), strict=True):
        assert fault.strip('"').startswith(words)
    assert second[1] == "0.0"
    assert second[9].count("Matmul") + second[9].count("Relu") == 1  # it is said once
    assert third == ["right", "7.0", *["1.0"] * 7, ""]
    results = json.loads((tmp_path / "out" / "faulty" / "results.json").read_text())
    assert results["score"] == float(first[1])
    assert sum(test["score"] for test in results["tests"]) == pytest.approx(
        float(first[1]), abs=0.1
    )
    assert all(set(test) == {"name", "score", "max_score", "output"} for test in results["tests"])


def test_files_are_found_at_any_depth_of_a_folder_or_archive(tmp_path: Path) -> None:
    lab = hand_in(tmp_path / "lab" / "a" / "b", {})
    (lab / "0").mkdir()
    (lab / "0" / "numpy_fnn.py").write_text("deeper")
    (lab / "._numpy_fnn.py").write_text("macOS")
    archive = shutil.make_archive(str(tmp_path / "in" / "b"), "zip", tmp_path / "lab")
    (tmp_path / "in" / "._b.zip").write_text("macOS")
    (tmp_path / "in" / "train-images-idx3-ubyte.gz").write_text("not a tar")
    other = shutil.make_archive(str(tmp_path / "c"), "gztar", tmp_path / "lab")
    for i, submission in enumerate((tmp_path / "lab", archive, tmp_path / "in", other)):
        (tmp_path / str(i)).mkdir()
        grade.collect(Path(submission), tmp_path / str(i))
        for name in ("numpy_fnn.py", "numpy_mnist.py"):
            assert (tmp_path / str(i) / name).read_bytes() == (lab / name).read_bytes()


def test_interruption_keeps_what_is_graded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def judge(folder: Path, _: float) -> dict[str, str]:
        if (folder / "numpy_fnn.py").read_text() == "stop":
            raise KeyboardInterrupt
        return dict.fromkeys(grade.ROWS, "ok")

    monkeypatch.setattr(grade, "judge", judge)
    paths = [tmp_path / name / "submission" for name in "abc"]
    for path, text in zip(paths, ("", "", "stop"), strict=True):
        path.mkdir(parents=True)
        (path / "numpy_fnn.py").write_text(text)
    with pytest.raises(SystemExit, match="2 of 3"):
        run(tmp_path / "out", *paths)
    assert capsys.readouterr().out.split()[::2] == ["a/submission", "b/submission"]
    assert len((tmp_path / "out" / "grades.csv").read_text(encoding="utf-8").splitlines()) == 3
    for refused in ([tmp_path / "out"], [tmp_path / "new", tmp_path / "nobody"]):
        with pytest.raises(SystemExit, match="2"):
            run(*refused, *paths)
