"""What hand-ins of the lab are given: an honest one all, a fault its step and its sentence, a cheat nothing."""

import ast
import csv
import json
import os
import re
import select
import textwrap
import zipfile
from pathlib import Path

import pytest

from docs import grade
from docs.exercise import PROJECT, STEPS, functions

LAST = list(STEPS)[-1]
HONEST = {  # as right as the lab, in another way
    "Matmul.backward": "x, W = self.memory['x'], self.memory['W']\nreturn np.dot(grad_y, W.T), np.dot(x.T, grad_y)",
    "Relu.forward": "self.memory = {'x': x, 'y': positive(x)}\nreturn self.memory['y']",
    "Relu.backward": "return self.mask() * grad_y",
    "Log.forward": "y = log(x + EPSILON)\nself.memory = {'x': x, 'y': y}\nreturn y",
    "NumpyModel.optimize": """
        for name in "W1", "W2", "W3":
            setattr(self, name, getattr(self, name) - float(learning_rate) * getattr(self, f"{name}_grad"))
    """,
    "mini_batch": """
        images, labels = as_arrays(dataset)
        order = np.arange(len(images))
        np.random.default_rng(rng).shuffle(order)
        return [(images[i], labels[i]) for i in np.split(order, range(batch_size, len(order), batch_size))]
    """,
}
OWN = """
    def mask(self):
        return self.memory["x"] > 0


from numpy import log
import a_package_that_only_this_student_has

EPSILON = 1e-12


def positive(a):
    return np.maximum(a, zero())


def zero():
    return 0
"""
WRONG = {
    "Matmul.forward": "import sys\nprint('ok')\nsys.exit(0)",
    "Relu.backward": "return grad_z",
    "Log.forward": "hoard = []\nwhile True:\n    hoard.append(np.empty(10**8))",
    "Softmax.backward": "return self.memory['y'] * grad_y",
    "NumpyLoss.backward": "return (-self.target / len(self.target)).tolist()",
    "NumpyModel.backward": "import os\nos.write(1, b'ok')\nos.write(3, b'ok')\nos._exit(0)",
    "mini_batch": "while True:\n    pass\nyield",
}
BATCHES = """
    images, labels = as_arrays(dataset)
    rng = np.random.default_rng({rng})
    order = {order}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        yield images[batch], labels[{labels}]
"""


def hand_in(folder: Path, bodies: dict[str, str], own: str = "") -> Path:
    """Write the finished lab with other bodies, and the student's own lines after Relu, into the folder."""
    folder.mkdir(parents=True)
    for file in ("numpy_fnn.py", "numpy_mnist.py"):
        source = (PROJECT / file).read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for name, node in sorted(functions(source), key=lambda item: -item[1].lineno):
            if name == "Relu.backward":
                lines.insert(node.end_lineno or 0, own)
            if name in bodies:
                body = textwrap.indent(textwrap.dedent(bodies[name]).strip(), " " * node.body[0].col_offset)
                lines[node.body[0].end_lineno : node.end_lineno] = [body + "\n"]
        (folder / file).write_text("".join(lines), encoding="utf-8")
    return folder


def faults(folder: Path, step: str = LAST) -> str:
    """Return the sentence about a step."""
    return grade.judge(step, grade.read(folder), 1, 30)


def test_hand_ins_are_graded_step_by_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hand_in(tmp_path / "in" / "honest", HONEST, OWN)
    wrong = hand_in(tmp_path / "in" / "wrong", WRONG) / "numpy_fnn.py"
    line = wrong.read_text(encoding="utf-8").partition("return grad_z")[0].count("\n") + 1
    hole = 'raise NotImplementedError("write")'
    cheat = hand_in(tmp_path / "in" / "two holes", {"Log.backward": hole, "mini_batch": hole}) / "numpy_fnn.py"
    evil = f"open({str(tmp_path / 'touched')!r}, 'w')"  # in every place that is run at import
    source = cheat.read_text(encoding="utf-8").replace("    def forward", f"    @{evil}.write\n    def forward")
    source = source.replace("grad_y: np.ndarray)", f"grad_y: {evil} = {evil})")
    cheat.write_text(f"{source}\n{evil}\n", encoding="utf-8")
    cheat.with_name("numpy.py").write_text(evil, encoding="utf-8")
    (tmp_path / "in" / "empty").mkdir()

    submissions = [str(tmp_path / "in" / name) for name in ("honest", "wrong", "two holes", "empty")]
    assert grade.main([*submissions, "--output", str(tmp_path / "out"), "--seconds", "6"]) == 0
    assert not (tmp_path / "touched").exists()
    expected = {
        "honest": [""] * 7,
        "wrong": [
            r"Matmul\.forward, line \d+: SystemExit: 0",
            rf"Relu\.backward, line {line}: NameError: name 'grad_z' is not defined",
            r"Log\.forward, line \d+: MemoryError: .*" if os.name == "posix" else "Log.*",
            r"Softmax: grad_x is -?\d\S* at \[\d, \d\], expected -?\d\S*",
            r"NumpyLoss\.backward: TypeError: grad_p is a list, expected an array",
            r"NumpyModel\.backward ended its process",
            r"mini_batch did not end within 6 s",
        ],
        "two holes": [r"Log\.backward: not written yet" if step == "Log" else "" for step in STEPS],
        "empty": [r".*numpy_fnn\.py is missing"] * 7,
    }
    expected["two holes"][-1] = r"mini_batch: not written yet"
    with (tmp_path / "out" / "grades.csv").open(encoding="utf-8-sig", newline="") as file:
        _, *rows = csv.reader(file)
    output = capsys.readouterr().out
    assert "ok" not in output
    for row, printed, (name, patterns) in zip(rows, output.splitlines(), expected.items(), strict=True):
        tests = json.loads((tmp_path / "out" / name / "results.json").read_text(encoding="utf-8"))["tests"]
        for test, pattern in zip(tests, patterns, strict=True):
            assert re.fullmatch(pattern, test["output"]), test
            assert test["score"] == (pattern == "") <= test["max_score"] == 1
        assert [test["name"] for test in tests] == [f"{i} {step}" for i, step in enumerate(STEPS, 1)]
        assert row == [name, str(patterns.count("")), *(test["output"] for test in tests)]
        assert re.match(rf"{name} +{patterns.count('')}/7\b", printed)
        assert all(test["output"] in printed for test in tests)


@pytest.mark.parametrize(
    ("order", "labels", "rng", "words"),
    [
        pytest.param("rng.permutation(len(images))", "batch", "rng", "", id="right"),
        pytest.param("rng.permutation(len(images))[:20]", "batch", "rng", "batch sizes", id="the last batch dropped"),
        pytest.param("rng.integers(0, 23, 23)", "batch", "rng", "label and image", id="drawn with replacement"),
        pytest.param(
            "rng.permutation(len(images))", "start : start + len(batch)", "rng", "label and image", id="apart"
        ),
        pytest.param("np.arange(len(images))", "batch", "rng", "not shuffled", id="not shuffled"),
        pytest.param("rng.permutation(len(images))", "batch", "0", "not drawn by rng", id="always the same"),
        pytest.param("rng.permutation(len(images))", "batch", "", "not drawn by rng", id="rng ignored"),
    ],
)
def test_mini_batch_owes_what_its_docstring_says(order: str, labels: str, rng: str, words: str, tmp_path: Path) -> None:
    fault = faults(hand_in(tmp_path / "x", {"mini_batch": BATCHES.format(order=order, labels=labels, rng=rng)}))
    assert words in fault
    assert fault.startswith("mini_batch: ") == (words != "")


@pytest.mark.parametrize(
    ("function", "body"),
    [
        ("Relu.forward", "x[x < 0] = 0\nself.memory = {'x': x, 'y': x}\nreturn x"),
        ("Log.backward", "grad_y /= self.memory['x'] + self.epsilon\nreturn grad_y"),
        ("NumpyModel.optimize", "self.W1 -= learning_rate * self.W1_grad"),
    ],
)
def test_changes_in_place_are_told_with_their_line(function: str, body: str, tmp_path: Path) -> None:
    step = next(step for step, functions in STEPS.items() if function in functions)
    fault = faults(hand_in(tmp_path / "x", {function: body}), step)
    assert re.fullmatch(rf"{function}, line \d+: ValueError: .* is read-only", fault)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a named pipe tells when its last writer has ended")
def test_processes_that_a_body_starts_end_with_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    start = (
        f"import os, time\npipe = os.open({str(tmp_path / 'pipe')!r}, os.O_WRONLY)\nos.write(pipe, b'x')\nif os.fork()"
    )
    fault = faults(hand_in(tmp_path / "x", {"Relu.forward": f"{start} == 0:\n    time.sleep(60)\nos._exit(0)"}), "Relu")
    assert fault.startswith("Relu.forward")
    assert os.read(reader, 1) == b"x"
    poll = select.poll()
    poll.register(reader, 0)
    assert poll.poll(20_000) == [(reader, select.POLLHUP)]
    os.close(reader)


def test_zip_is_read_as_its_folder_is(tmp_path: Path) -> None:
    folder = hand_in(tmp_path / "alice", {})
    for i, top in enumerate(("", "alice/")):
        with zipfile.ZipFile(tmp_path / f"{i}.zip", "w") as archive:
            for path in folder.iterdir():
                archive.writestr(top + path.name, b"\xef\xbb\xbf" + path.read_bytes())  # as Windows' Notepad saves
            archive.writestr("../outside.py", "")
        trees = [grade.read(path) for path in (folder, tmp_path / f"{i}.zip", tmp_path)]
        assert len({str({file: ast.dump(tree) for file, tree in each.items()}) for each in trees}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.zip", "1.zip", "alice"]


def test_what_can_not_be_read_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grade, "judge", lambda *_: "")
    folders = [hand_in(tmp_path / name / "lab", {}) for name in "abcde"]
    (folders[0] / "numpy_fnn.py").write_text("def f(:\n", encoding="utf-8")
    (folders[1] / "numpy_fnn.py").write_bytes(b"# \xff\n")
    (folders[2] / "numpy_mnist.py").unlink()
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4")
    submissions = [*folders[:3], tmp_path / "broken.zip", tmp_path / "nowhere", *folders[3:]]
    assert grade.main([*map(str, submissions), "--output", str(tmp_path / "out")]) == 0
    scores = dict(re.findall(r"^(\S+) +(\d)/7", capsys.readouterr().out, re.MULTILINE))
    assert scores == {
        "a/lab": "0",
        "b/lab": "0",
        "c/lab": "0",
        "broken": "0",
        "nowhere": "0",
        "d/lab": "7",
        "e/lab": "7",
    }
    assert len(list(tmp_path.glob("out/**/results.json"))) == 7


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "grades.csv").write_text("old")
    for arguments, words in (
        (["a", "--output", str(tmp_path)], "is not empty"),
        (["a", "a.zip"], "two submissions are named a"),
    ):
        with pytest.raises(SystemExit) as caught:
            grade.main(arguments)
        assert caught.value.code == 2
        assert words in capsys.readouterr().err
    assert (tmp_path / "grades.csv").read_text() == "old"
