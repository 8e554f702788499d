"""Write a copy of the lab for students to fill in: python -m docs.exercise FOLDER.

What docs/lab_sheet.md asks them to write is left out of the copy, and the derivations come without their code.
"""

import argparse
import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
FILES = (
    *(".gitignore", ".pytest.ini", "README.md", "requirements.txt", "numpy_fnn.py", "numpy_mnist.py", "utils.py"),
    *("docs/__init__.py", "docs/README.zh.md", "docs/lab_sheet.md", "docs/derivations.md", "docs/report.md"),
    "docs/speed.md",
    *(path.relative_to(PROJECT).as_posix() for path in (PROJECT / "docs" / "figures").glob("*.png")),
    *("tests/__init__.py", "tests/conftest.py", "tests/gradient_check.py", "tests/requirements.txt"),
    *("tests/test_numpy_fnn.py", "tests/test_numpy_mnist.py", "tests/test_utils.py", "tests/torch_reference.py"),
)
# What each step of the lab sheet asks to write, under the words that choose its tests (pytest -k).
STEPS = {
    "Matmul": ("Matmul.forward", "Matmul.backward"),
    "Relu": ("Relu.forward", "Relu.backward"),
    "Log": ("Log.forward", "Log.backward"),
    "Softmax": ("Softmax.forward", "Softmax.backward"),
    "NumpyLoss": ("NumpyLoss.backward",),
    "NumpyModel": ("NumpyModel.backward",),
    "optimize or mini_batch": ("NumpyModel.optimize", "mini_batch"),
}


def functions(source: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the name, such as "Relu.forward" or "mini_batch", and the syntax tree of each function and method."""
    module = ast.parse(source)
    classes = [(f"{node.name}.", node.body) for node in module.body if isinstance(node, ast.ClassDef)]
    for prefix, body in (("", module.body), *classes):
        for node in body:
            if isinstance(node, ast.FunctionDef):
                yield prefix + node.name, node


def functions_to_write(source: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield those of them that are left to students."""
    names = {name for step in STEPS.values() for name in step}
    yield from ((name, node) for name, node in functions(source) if name in names)


def without_solutions(source: str) -> str:
    """Return Python source in which these functions keep their docstrings alone, and say which formulas to write."""
    lines = source.splitlines(keepends=True)
    for _, function in sorted(functions_to_write(source), key=lambda item: -item[1].lineno):
        formulas = " and ".join(re.findall(r"\(\d\.\d\)", ast.get_docstring(function) or ""))
        docstring = function.body[0]
        indent = " " * docstring.col_offset
        lines[docstring.end_lineno : function.end_lineno] = [f'{indent}raise NotImplementedError("write {formulas}")\n']
    return "".join(lines)


def write_exercise(folder: Path) -> None:
    """Write the copy into `folder`; raises OSError where that can't be written or already has something in it."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty, expected a new or empty folder")
    for name in FILES:
        content = (PROJECT / name).read_bytes()
        if name in ("numpy_fnn.py", "numpy_mnist.py"):
            content = without_solutions(content.decode()).encode()
        elif name == "README.md":
            content = content.partition(b"## Before you commit")[0]
        elif name == "docs/derivations.md":
            content = re.sub(rb"```python\n.*?\n```\n\n", b"", content, flags=re.DOTALL)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the copy and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.exercise", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new or empty")
    folder = parser.parse_args(arguments).folder
    try:
        write_exercise(folder)
    except OSError as error:
        parser.error(f"the exercise can't be written: {error}")
    print(f"The exercise is in {folder}; docs/lab_sheet.md there says where to start.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
