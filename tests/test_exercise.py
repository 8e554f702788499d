"""The exercise for students: complete, without solutions, and whole again once the removed bodies are back."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import exercise

TO_WRITE = {
    "numpy_fnn.py": {
        *(
            f"{operator}.{method}"
            for operator in ("Matmul", "Relu", "Log", "Softmax")
            for method in ("forward", "backward")
        ),
        "NumpyLoss.backward",
        "NumpyModel.backward",
        "NumpyModel.optimize",
    },
    "numpy_mnist.py": {"mini_batch"},
}
SOME_TESTS = "model_agrees or course"  # they need all that is to be written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the exercise in it."""
    folder = tmp_path_factory.mktemp("exercise") / "lab"
    assert exercise.main([str(folder)]) == 0
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder, on one thread, as it may share the machine."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def functions(source: str) -> dict[str, ast.FunctionDef]:
    """Return the functions of a module by name, with those of its classes."""
    module = ast.parse(source)
    found = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    for owner in module.body:
        if isinstance(owner, ast.ClassDef):
            found |= {f"{owner.name}.{node.name}": node for node in owner.body if isinstance(node, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("name", TO_WRITE)
def test_bodies_are_left_out_and_nothing_else(folder: Path, name: str) -> None:
    original = functions((exercise.PROJECT / name).read_text(encoding="utf-8"))
    left = functions((folder / name).read_text(encoding="utf-8"))
    assert list(left) == list(original)
    for function, node in left.items():
        if function not in TO_WRITE[name]:
            assert ast.unparse(node) == ast.unparse(original[function])
            continue
        assert ast.unparse(node.args) == ast.unparse(original[function].args)
        docstring = ast.get_docstring(node)
        assert docstring == ast.get_docstring(original[function])
        assert re.fullmatch(
            r"raise NotImplementedError\('write \(\d\.\d\)( and \(\d\.\d\))?'\)", ast.unparse(node.body[1])
        )
        assert set(re.findall(r"\d\.\d", ast.unparse(node.body[1]))) == set(
            re.findall(r"\((\d\.\d)\)", docstring or "")
        )
        assert len(node.body) == 2


def test_no_line_of_a_solution_is_in_the_copy(folder: Path) -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.suffix in (".py", ".md"))
    code = {line.strip() for line in text.splitlines()} | set(re.findall(r"`([^`]+)`", text))
    for name in TO_WRITE:
        for _, node in exercise.functions_to_write((exercise.PROJECT / name).read_text(encoding="utf-8")):
            for statement in node.body[1:]:
                assert ast.unparse(statement).splitlines()[-1].strip() not in code


def test_links_lead_to_files_as_they_do_in_the_lab(folder: Path) -> None:
    for page in [folder / "README.md", *folder.glob("docs/*.md")]:
        original = exercise.PROJECT / page.relative_to(folder)
        for link in re.findall(r"\]\(([^:#)]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists() == (original.parent / link).exists(), f"{page.name}: {link}"


def test_gradient_check_says_what_is_not_written_yet(folder: Path) -> None:
    check = run(folder, "-m", "tests.gradient_check")
    assert (check.returncode, check.stderr) == (1, "")
    assert re.findall(r"\(\d\.\d\) +(.+)$", check.stdout, re.MULTILINE) == ["not written yet"] * 10


def test_tests_fail_by_name(folder: Path) -> None:
    tests = run(folder, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", "-k", SOME_TESTS)
    assert tests.returncode == 1, tests.stdout  # of an error at import it would be 2
    assert "FAILED tests/test_numpy_fnn.py::test_model_agrees_with_torch" in tests.stdout
    assert "FAILED tests/test_numpy_mnist.py::test_course" in tests.stdout
    assert "NotImplementedError: write (1.1)" in tests.stdout


def test_original_bodies_make_all_green(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    exercise.write_exercise(whole)
    for name in TO_WRITE:
        original = (exercise.PROJECT / name).read_text(encoding="utf-8")
        lines, bodies = (whole / name).read_text(encoding="utf-8").splitlines(keepends=True), functions(original)
        for function, node in reversed(functions("".join(lines)).items()):
            if function in TO_WRITE[name]:
                body = bodies[function]
                solution = original.splitlines(keepends=True)[body.body[0].end_lineno : body.end_lineno]
                lines[node.body[1].lineno - 1 : node.end_lineno] = solution
        assert "".join(lines) == original
        (whole / name).write_text("".join(lines), encoding="utf-8")
    assert run(whole, "-m", "tests.gradient_check").returncode == 0
    tests = run(whole, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SOME_TESTS)
    assert tests.returncode == 0, tests.stdout


def test_folder_must_be_new_or_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for folder, words in ((tmp_path, "is not empty"), (tmp_path / "file", "File exists")):
        with pytest.raises(SystemExit) as caught:
            exercise.main([str(folder)])
        assert caught.value.code == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b""
    (tmp_path / "empty").mkdir()
    assert exercise.main([str(tmp_path / "empty")]) == 0
