"""The students' copy is complete, has no solutions, and passes the check once it is filled in."""

import gzip
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import exercise
from docs.exercise import PROJECT, TO_WRITE, with_holes
from tests.check import CHECKS
from utils import FILES


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two copies, the second made with --derive; short texts replace MNIST's files."""
    folder = tmp_path_factory.mktemp("exercise")
    (folder / "MNIST" / "raw").mkdir(parents=True)
    for name in FILES:
        (folder / "MNIST" / "raw" / name).write_text(name)
    exercise.main([str(folder / "new" / "given"), "--data-dir", str(folder)])
    exercise.main([str(folder / "derive"), "--data-dir", str(folder), "--derive"])
    return [folder / "new" / "given", folder / "derive"]


def read(copy: Path) -> str:
    """Return the text of all code and pages."""
    paths = [path for path in copy.rglob("*") if path.suffix in (".py", ".md")]
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def test_copy_has_every_file_that_a_student_needs(copies: list[Path]) -> None:
    expected = {"README.md", "requirements.txt", "docs/derivations.md", "docs/lab_sheet.zh.md"}
    expected |= {*exercise.CODE, *(f"data/MNIST/raw/{name}.gz" for name in FILES)}
    for copy in copies:
        paths = {path.relative_to(copy).as_posix() for path in copy.rglob("*.*")}
        assert {path for path in paths if not path.startswith("docs/figures/")} == expected
        packages = re.findall("^[a-z-]+", (copy / "requirements.txt").read_text(), re.MULTILINE)
        assert packages == ["numpy", "matplotlib", "scikit-learn"]
        for name in FILES:
            content = (copy / "data" / "MNIST" / "raw" / f"{name}.gz").read_bytes()
            assert gzip.decompress(content).decode() == name


def test_copy_has_no_line_of_a_solution(copies: list[Path]) -> None:
    for copy in copies:
        text = "".join(read(copy).split())
        for function in TO_WRITE:
            code = inspect.getsource(function)
            kept, _, _ = with_holes(code).rpartition("raise NotImplementedError")
            solution = ["".join(line.split()) for line in code[len(kept) :].splitlines()]
            assert "raise" not in code[len(kept) :], "the checks stay"
            assert not [line for line in solution if line in text and line != ""]


def test_derive_leaves_out_every_formula_of_a_gradient(copies: list[Path]) -> None:
    pattern = r"grad_[xwp] = |ᵀ|\^T|T ?/ ?N|G /|\\tag\{[1-6]\.[2-9]|Y − T"
    given, derive = ({*re.findall(pattern, read(copy))} for copy in copies)
    assert len(given) > 9, "the pattern must find the formulas"
    assert not derive
    assert "Derive" in (copies[1] / "docs" / "derivations.md").read_text(encoding="utf-8")


def test_pages_of_the_copy_name_only_files_that_it_has(copies: list[Path]) -> None:
    for copy in copies:
        for page in [copy / "README.md", *copy.glob("docs/*.md")]:
            text = page.read_text(encoding="utf-8")
            for link in re.findall(r"\]\((?!\w+:|#)([^)#]+)", text):
                assert (page.parent / link).exists(), f"{page}: {link}"
            for module in re.findall(r"-m ((?:docs|tests)\.\w+)", text):
                assert (copy / f"{module.replace('.', '/')}.py").exists(), f"{page}: {module}"


def test_filled_in_copy_passes_every_row(copies: list[Path]) -> None:
    rows = sum(len(results) for *_, results in CHECKS)
    for expected in ("not (?:written yet|judged before y is ok)", "ok"):
        check = [sys.executable, "-m", "tests.check"]
        output = subprocess.run(check, cwd=copies[0], capture_output=True, text=True).stdout
        assert len(re.findall(rf"^\d .* {expected}$", output, re.MULTILINE)) == rows
        for name in ("numpy_fnn.py", "numpy_mnist.py"):
            text = (copies[0] / name).read_text(encoding="utf-8")
            for function in TO_WRITE:
                code = inspect.getsource(function)
                text = text.replace(with_holes(code), code)
            (copies[0] / name).write_text(text, encoding="utf-8")
            assert text == (PROJECT / name).read_text(encoding="utf-8")


def test_existing_folder_is_refused(copies: list[Path]) -> None:
    with pytest.raises(SystemExit, match="2"):
        exercise.main([str(copies[1])])
