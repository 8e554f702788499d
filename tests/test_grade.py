"""What hand-ins are given: an honest one all, a fault the sentence of its step, a cheat nothing, and no other harm."""

import codecs
import csv
import json
import os
import re
import textwrap
import zipfile
from pathlib import Path

import pytest

from docs import grade
from docs.exercise import PROJECT, STEPS, functions

HONEST = {  # as right as the lab, in other words, but for a function that no step asks for
    "as_arrays": "return None",
    "Relu.backward": "return self.mask() * grad_y",
    "Log.forward": "y = logarithm(x)\nself.memory = {'x': x, 'y': y}\nreturn y",
    "mini_batch": """
        images, labels = as_arrays(dataset)
        order = np.arange(len(images))
        np.random.default_rng(rng).shuffle(order)
        return [(images[i], labels[i]) for i in np.split(order, range(batch_size, len(order), batch_size))]
    """,
}
OWN = """
    def mask(self):
        return positive(self.memory["x"])
from numpy import log
import a_package_that_only_this_student_has
EPSILON = 1e-12
def logarithm(a):
    return log(a + EPSILON)
def positive(a):
    return a > 0
"""
HOARD = "import resource as r\nr.setrlimit(r.RLIMIT_DATA, (-1, -1))\nhoard = [np.empty(10**7) for _ in range(40)]"
WRONG = {  # a body, and the sentence of its step
    "Matmul.forward": ("print('ok')\nraise ValueError('no')", r"Matmul, line \d\d: ValueError: no"),
    "Relu.backward": ("return grad_z", r"Relu, line LINE: NameError: .*"),
    "Log.forward": (HOARD, r"Log, line \d+: MemoryError.*" if os.name == "posix" else "Log.*"),
    "Softmax.backward": (
        "return self.memory['y'] * grad_y",
        r"Softmax: grad_x is -?\d\S* at \[\d, \d\], expected .*",
    ),
    "NumpyLoss.backward": (
        "return [[0.1]]",
        r"NumpyLoss: TypeError: NumpyLoss: grad_p is a list, .*",
    ),
    "NumpyModel.backward": (
        "import os\nos.write(1, b'ok')\nos._exit(0)",
        r"NumpyModel ended its process",
    ),
    "mini_batch": ("while True:\n    pass\nyield", "optimize or mini_batch did not end within 6 s"),
}
CHEAT = {  # with two holes, and NumpyLoss.backward under another name
    "Matmul.forward": ("check_shape('x', x, ())", r"Matmul, line \d\d: ValueError: .*"),
    "Relu.forward": ("x[x < 0] = 0", r"Relu, line \d+: ValueError: .* read-only"),
    "Log.backward": (
        "raise NotImplementedError('write (3.4)')",
        r"Log, line \d+: NotImplementedError: write \(3.4\)",
    ),
    "NumpyLoss.backward": ("return 0", r"NumpyLoss: NotImplementedError: write \(5.2\)"),
    "NumpyModel.backward": (
        "raise NotImplementedError('no')",
        r"NumpyModel, line \d+: NotImplementedError: no",
    ),
    "NumpyModel.optimize": (
        "self.W1 -= self.W1_grad",
        r"optimize or mini_batch, line \d+: ValueError: .* read-only",
    ),
}


def hand_in(folder: Path, bodies: dict[str, str], own: str = "") -> Path:
    """Write the finished lab with other bodies, and the student's own lines after those of Relu, into the folder."""
    folder.mkdir(parents=True)
    for file in ("numpy_fnn.py", "numpy_mnist.py"):
        source = (PROJECT / file).read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for name, node in reversed(list(functions(source))):
            if name == "Relu.backward":
                lines.insert(node.end_lineno or 0, own)
            if name in bodies:
                body = textwrap.indent(
                    textwrap.dedent(bodies[name]).strip(), " " * node.body[0].col_offset
                )
                lines[node.body[0].end_lineno : node.end_lineno] = [body + "\n"]
        (folder / file).write_text("".join(lines), encoding="utf-8")
    return folder


def test_hand_ins_are_graded_step_by_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = hand_in(tmp_path / "honest", HONEST, OWN) / "numpy_fnn.py"
    honest.write_text(honest.read_text(encoding="utf-8").replace("grad_y", "G"), encoding="utf-8")
    wrong = (
        hand_in(tmp_path / "wrong", {name: body for name, (body, _) in WRONG.items()})
        / "numpy_fnn.py"
    )
    line = wrong.read_text(encoding="utf-8").partition("return grad_z")[0].count("\n") + 1
    cheat = (
        hand_in(tmp_path / "cheat", {name: body for name, (body, _) in CHEAT.items()})
        / "numpy_fnn.py"
    )
    source = cheat.read_text(encoding="utf-8").replace("def backward(self)", "def other(self)")
    evil = f"open({str(tmp_path / 'touched')!r}, 'w')"
    cheat.write_text(f"{source}\n{evil}\nos.remove(__file__)\n", encoding="utf-8")
    cheat.with_name("numpy.py").write_text(evil, encoding="utf-8")

    with zipfile.ZipFile(tmp_path / "honest.zip", "w") as archive:
        for path in honest.parent.iterdir():
            archive.writestr(
                f"lab/{path.name}", codecs.BOM_UTF8 + path.read_bytes()
            )  # as Windows' Notepad saves
    submissions = [str(tmp_path / "honest.zip"), str(wrong.parent), str(cheat.parent)]
    assert grade.main([*submissions, "--output", str(tmp_path / "out"), "--seconds", "6"]) == 0
    assert not (tmp_path / "touched").exists()
    _, *rows = csv.reader(
        (tmp_path / "out" / "grades.csv").read_text(encoding="utf-8-sig").splitlines()
    )
    lines, nothing = capsys.readouterr().out.splitlines(), dict[str, tuple[str, str]]()
    for (name, score, *sentences), printed, expected in zip(
        rows, lines, (nothing, WRONG, CHEAT), strict=True
    ):
        assert (score, *printed.split()[:2]) == (f"{7 - len(expected)}", name, f"{score}/7")
        tests = json.loads((tmp_path / "out" / name / "results.json").read_text())["tests"]
        for i, step in enumerate(STEPS):
            pattern = next(
                (expected[function][1] for function in STEPS[step] if function in expected), ""
            )
            assert re.fullmatch(pattern.replace("LINE", str(line)), sentences[i])
            assert sentences[i] in printed
            assert list(tests[i].values()) == [f"{i + 1} {step}", int(not pattern), 1, sentences[i]]
            assert list(tests[i]) == ["name", "score", "max_score", "output"]


@pytest.mark.parametrize(
    ("i", "old", "new", "words"),
    [
        pytest.param(1, '["x"] > 0)', '["x"] >= 0)', "Relu: grad_x .* expected -?0$", id="1 at 0"),
        pytest.param(2, "x + self.epsilon", "np.maximum(x, 1e-12)", "Log: y ", id="another ε"),
        pytest.param(
            3,
            "np.exp(x - x.max(axis=-1, keepdims=True))",
            "np.exp(x)",
            "Softmax: y is nan",
            id="no shift",
        ),
        pytest.param(
            6,
            "(0, len(order),",
            "(0, len(order) - 9,",
            "mini_batch: batch sizes",
            id="last batch dropped",
        ),
        pytest.param(
            6,
            "labels[batch]",
            "labels[start:][: len(batch)]",
            "mini_batch: labels",
            id="shuffled apart",
        ),
        pytest.param(
            6,
            "np.random.default_rng(rng).permutation",
            "np.arange",
            "mini_batch: number",
            id="not shuffled",
        ),
        pytest.param(6, "(rng).perm", "(0).perm", "mini_batch: number", id="always the same order"),
        pytest.param(6, "(rng).perm", "().perm", "mini_batch: number", id="rng ignored"),
    ],
)
def test_change_of_a_line_is_found(i: int, old: str, new: str, words: str, tmp_path: Path) -> None:
    folder = hand_in(tmp_path / "lab", {})
    for path in folder.iterdir():
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    assert re.match(words, grade.judge(list(STEPS)[i], grade.read(folder), 1, 30))


def test_what_can_not_be_read_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grade, "judge", lambda *_: "")
    folders = [hand_in(tmp_path / name, {}) for name in "abcd"]
    (folders[0] / "numpy_fnn.py").write_text("def f(:\n", encoding="utf-8")
    (folders[1] / "numpy_fnn.py").write_bytes(b"'\xff'\n")
    (folders[2] / "numpy_mnist.py").unlink()
    (tmp_path / "broken.zip").write_bytes(b"PK\3\4")
    submissions = [*folders[:3], tmp_path / "broken.zip", folders[3]]
    assert grade.main([*map(str, submissions), "--output", str(tmp_path / "out")]) == 0
    scores = re.findall(r"^(\S+) +(\d)/7", capsys.readouterr().out, re.MULTILINE)
    assert scores == [("a", "0"), ("b", "0"), ("c", "0"), ("broken", "0"), ("d", "7")]
    assert len(list(tmp_path.glob("out/**/results.json"))) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "--output", "."], "is there already"),
        (["a", "--output", "grades.csv"], "is there already"),
        (["a", "b/a", "--output", "new"], "two submissions have the same name"),
        (["nobody", "--output", "new"], "there is no nobody"),
        (["a", "--output", "new", "--seconds", "0"], "--seconds is 0.0, expected more than 0"),
    ],
    ids=str,
)
def test_bad_arguments_are_a_sentence_and_overwrite_nothing(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b/a").mkdir(parents=True)
    Path("a").mkdir()
    Path("grades.csv").write_text("old")
    with pytest.raises(SystemExit, match="2"):
        grade.main(arguments)
    assert words in capsys.readouterr().err
    assert Path("grades.csv").read_text() == "old"
    assert sorted(path.name for path in Path().iterdir()) == ["a", "b", "grades.csv"]
