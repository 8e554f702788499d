"""The exercise for students: complete, without solutions, and green step by step as the bodies come back."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs import exercise
from tests import conftest

MODULES = ("numpy_fnn.py", "numpy_mnist.py")
GUARDED = {"Matmul.forward", "NumpyLoss.backward", "NumpyModel.optimize", "mini_batch"}
GUARDED |= {f"{operator}.backward" for operator in ("Matmul", "Relu", "Log", "Softmax")}
TO_WRITE = GUARDED | {"Relu.forward", "Log.forward", "Softmax.forward", "NumpyModel.backward"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the exercise in it."""
    folder = tmp_path_factory.mktemp("exercise") / "course" / "lab"
    assert exercise.main([str(folder)]) == 0
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder, on one thread, as it may share the machine."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    """Return the functions and methods of a module by name."""
    return dict(exercise.functions(path.read_text(encoding="utf-8")))


def test_formulas_are_left_out_and_nothing_else(folder: Path) -> None:
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.suffix in (".py", ".md")
    )
    code = {line.strip() for line in text.splitlines()} | set(re.findall(r"`([^`]+)`", text))
    assert {name for step in exercise.STEPS.values() for name in step} == TO_WRITE
    for module in MODULES:
        original, left = functions(exercise.PROJECT / module), functions(folder / module)
        assert list(left) == list(original)
        lines = (exercise.PROJECT / module).read_text(encoding="utf-8").splitlines()
        removed, rest = len(lines), iter(lines)
        for line in (folder / module).read_text(encoding="utf-8").splitlines():
            assert "NotImplementedError" in line or line in rest, line  # in the same order
            removed -= "NotImplementedError" not in line
        for name, function in left.items():
            if name not in TO_WRITE:
                assert ast.unparse(function) == ast.unparse(original[name])
                continue
            *kept, hole = map(ast.unparse, function.body)
            solution = list(map(ast.unparse, original[name].body))
            assert kept == solution[: len(kept)]
            removed -= (original[name].end_lineno or 0) - (
                original[name].body[len(kept) - 1].end_lineno or 0
            )
            numbers = re.findall(r"\(\d\.\d\)", ast.get_docstring(function) or "")
            assert hole == f"raise NotImplementedError('write {' and '.join(numbers)}')"
            assert ("raise" in kept[-1] or "check_" in kept[-1]) == (name in GUARDED)
            for statement in solution[len(kept) :]:
                assert "raise" not in statement
                assert "check_" not in statement
                assert statement.splitlines()[-1].strip() not in code
        assert removed == 0


def test_no_formula_of_a_gradient_is_left_where_it_is_to_be_derived() -> None:
    given, derive = (
        {
            name: content.decode()
            for name, content in exercise.exercise(derive).items()
            if name.endswith((".py", ".md"))
        }
        for derive in (False, True)
    )
    assert len(re.findall(r"grad_\w = ", given["numpy_fnn.py"])) == 6
    assert not re.findall(r"grad_\w = ", derive["numpy_fnn.py"])
    for line in given["numpy_fnn.py"].splitlines():
        forward, separator, _ = line.partition(",  grad_")
        assert (forward if separator else line) in derive["numpy_fnn.py"]
    tags = re.findall(r"\\tag\{(\d\.\d)\}", derive["docs/derivations.md"])
    assert tags == ["1.1", "2.1", "3.1", "4.1", "5.1", "7.1", "8.1", "9.1"]
    for name, text in derive.items():
        assert not re.findall(r"ᵀ G|G W|\.T @|@ W\.T|T ?/ ?N|Y − T", text), name
    for page in ("README.md", "docs/lab_sheet.zh.md"):
        assert given[page].startswith(derive[page].rstrip())
        assert "-k Softmax" in derive[page]


def test_no_page_or_command_names_what_the_copy_lacks(folder: Path) -> None:
    for page in [folder / "README.md", *folder.glob("docs/*.md")]:
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r"\[\w+\.$", text, re.MULTILINE), f"{page.name} has half a sentence"
        for link in re.findall(r"\]\((?!\w+:|#)([^)#]+)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        for module in re.findall(r"-m ((?:docs|tests)[.\w]+)", text):
            assert (folder / f"{module.replace('.', '/')}.py").exists(), f"{page.name}: -m {module}"
        for name in re.findall(r"[\w/]+\.\w+", text):
            here, there = (
                any((top / parent / name).is_file() for parent in (".", "docs", "tests"))
                for top in (folder, exercise.PROJECT)
            )
            assert here or not there, f"{page.name}: {name}"


def test_gradient_check_says_what_is_not_written_yet(folder: Path) -> None:
    check = run(folder, "-m", "tests.gradient_check")
    assert (check.returncode, check.stderr) == (1, "")
    assert re.findall(r"\(\d\.\d\) +(.+)$", check.stdout, re.MULTILINE) == ["not written yet"] * 10


# A plugin for pytest: while a test of one step runs, the functions of later steps are not written.
LATER = """
import numpy_fnn
import pytest


def missing(*_):
    raise NotImplementedError("a later step")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    own = [i for i, words in enumerate(STEPS) if any(word.lower() in item.name.lower() for word in words.split(" or "))]
    later = [name for names in list(STEPS.values())[max(own, default=9) + 1 :] for name in names if "." in name]
    with pytest.MonkeyPatch.context() as patch:
        for owner, method in (name.split(".") for name in later):
            patch.setattr(getattr(numpy_fnn, owner), method, missing)
        yield
"""


def test_tests_need_no_later_step(folder: Path) -> None:
    pytest_x = (
        "-m",
        "pytest",
        "-x",
        "-q",
        "--tb=line",
        "--strict-markers",
        "-p",
        "no:cacheprovider",
    )
    tests = re.findall(
        r"^tests/(\w+)\.py::(.+)$", run(folder, *pytest_x, "--collect-only").stdout, re.MULTILINE
    )
    assert {module for module, _ in tests} == {"test_numpy_fnn", "test_numpy_mnist", "test_utils"}
    words = [step.lower().split(" or ") for step in exercise.STEPS]
    steps = [
        [i for i, step in enumerate(words) if any(word in test.lower() for word in step)]
        for _, test in tests
    ]
    assert max(map(len, steps)) == 1  # `-k` of two steps would choose the same test
    assert [step for (step,) in filter(None, steps)] == sorted(
        step for (step,) in filter(None, steps)
    )
    stopped = run(folder, *pytest_x).stdout
    assert re.findall(r"^FAILED .*\[.*Matmul.*\]", stopped, re.MULTILINE), stopped
    assert "NotImplementedError: write (1.1)" in stopped
    for module in MODULES:  # which the copy is part of: the first test sees that
        shutil.copy(exercise.PROJECT / module, folder)
    (folder / "later.py").write_text(f"STEPS = {exercise.STEPS}\n{LATER}", encoding="utf-8")
    passed = run(folder, *pytest_x, "-p", "later", "-k", f"course or {' or '.join(exercise.STEPS)}")
    assert passed.returncode == 0, passed.stdout
    assert run(folder, "-m", "tests.gradient_check").returncode == 0


def test_copy_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(folder: Path, *words: str) -> None:
        with pytest.raises(SystemExit) as caught:
            exercise.main([str(folder)])
        assert caught.value.code == 2
        sentence = capsys.readouterr().err.splitlines()[-1]
        assert all(word in sentence for word in ("the exercise can't be written: ", *words)), (
            sentence
        )

    def write_bytes(path: Path, content: bytes) -> int:
        if path.name == "utils.py":
            raise OSError(28, "No space left on device")
        return write_all(path, content)

    def read_text(path: Path, encoding: str) -> str:
        return "def f(:" if path.name == "numpy_mnist.py" else path.read_bytes().decode(encoding)

    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "is not empty")
    refused(tmp_path / "file", "file")
    write_all = Path.write_bytes
    with monkeypatch.context() as full_disk:
        full_disk.setattr(Path, "write_bytes", write_bytes)
        refused(tmp_path / "empty", "No space left on device")
        refused(tmp_path / "new", "No space left on device")
    with monkeypatch.context() as typing_error:
        typing_error.setattr(Path, "read_text", read_text)
        refused(tmp_path / "new", "numpy_mnist.py, line 1")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"]
    assert exercise.main([str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty" / "utils.py").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on memory is Linux's")
def test_test_without_end_is_ended(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "SECONDS", 0.2)
    for body, error in (
        (lambda: [None for _ in range(10**9)], conftest.WithoutEndError),
        (lambda: [bytes(2**26) for _ in range(1000)], MemoryError),
    ):
        limited = conftest.pytest_runtest_call(request.node)
        next(limited)
        with pytest.raises(error):
            body()
        next(limited, None)
