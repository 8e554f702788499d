"""Write a copy of the lab for students to fill in: python -m docs.exercise FOLDER [--derive].

What the lab sheet asks them to write is left out of the copy, up to the checks that come before it; the sheet is the
copy's README, and the derivations come without their code.
"""

import argparse
import ast
import re
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from posixpath import dirname, join, normpath

PROJECT = Path(__file__).resolve().parents[1]
FILES = (
    *(
        ".gitignore",
        ".pytest.ini",
        "requirements.txt",
        "numpy_fnn.py",
        "numpy_mnist.py",
        "utils.py",
    ),
    *(
        f"tests/{name}"
        for name in ("__init__.py", "conftest.py", "gradient_check.py", "requirements.txt")
    ),
    *(
        f"tests/{name}.py"
        for name in ("test_numpy_fnn", "test_numpy_mnist", "test_utils", "torch_reference")
    ),
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


def functions(source: str, file: str = "<source>") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the name, such as "Relu.forward" or "mini_batch", and the syntax tree of each function and method."""
    for node in ast.parse(source, file).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from (
                (f"{node.name}.{part.name}", part)
                for part in node.body
                if isinstance(part, ast.FunctionDef)
            )


def without_solutions(source: str, names: Collection[str], file: str = "<source>") -> str:
    """Return Python source in which functions of these names end after their last check and say what to write."""
    lines = source.splitlines(keepends=True)
    for _, function in reversed([item for item in functions(source, file) if item[0] in names]):
        docstring, *statements = function.body
        checks = [
            node for node in statements if re.search(r"\braise\b|\bcheck_\w+\(", ast.unparse(node))
        ]
        last = [docstring, *checks][-1]
        formulas = " and ".join(re.findall(r"\(\d\.\d\)", ast.get_docstring(function) or ""))
        hole = f'{" " * docstring.col_offset}raise NotImplementedError("write {formulas}")\n'
        lines[last.end_lineno : function.end_lineno] = [hole]
    return "".join(lines)


def forward_alone(page: str) -> str:
    """Return the page of the derivations with its forward formulas, and the numbers of those left to derive."""
    _, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    kept = r".*?\\tag\{[1-5]\.1\}\n```\n|## 6\..*?\|\n(?=\n)"  # section 6 begins with a table of all shapes
    for i, section in enumerate(sections):
        if forward := re.match(kept, section, flags=re.DOTALL):
            numbers = re.findall(r"\\tag\{(\d\.\d)\}", section[forward.end() :])
            sections[i] = (
                f"{forward[0]}\nYours to derive: {', '.join(f'({number})' for number in numbers)}.\n\n"
            )
    return "# Formulas\n\n" + "".join(sections)


def exercise(derive: bool = False) -> dict[str, bytes]:
    """Return the files of the copy by their paths; with `derive`, no formula of a gradient is in them."""
    texts = {name: (PROJECT / name).read_text(encoding="utf-8") for name in FILES}
    to_write = {name for step in STEPS.values() for name in step}
    for name in ("numpy_fnn.py", "numpy_mnist.py"):
        texts[name] = without_solutions(texts[name], to_write, name)
    pages = {
        page.name: page.read_text(encoding="utf-8") for page in (PROJECT / "docs").glob("*.md")
    }
    derivations = re.sub(r"```python\n.*?\n```\n\n?", "", pages["derivations.md"], flags=re.DOTALL)
    derivations = re.sub(
        r"[^.]*\]\(report\.md\S*\)[^.]*\.", "", derivations
    )  # sentences about what is not in the copy
    if derive:
        texts["numpy_fnn.py"] = re.sub(r",  grad_\w+ = .*?\(\d\.\d\)", "", texts["numpy_fnn.py"])
        derivations = forward_alone(derivations)
        for name in (
            "lab_sheet.md",
            "lab_sheet.zh.md",
        ):  # whose experiments and answers tell about the gradients
            pages[name] = "".join(re.split(r"^(?=## )", pages[name], flags=re.MULTILINE)[:2])
    # The sheet moves from docs up to the copy's top.
    sheet = re.sub(
        r"(?<=\]\()(?!\w+:|#)[^#)]+",
        lambda link: normpath(join("docs", link[0])),
        pages["lab_sheet.md"],
    )
    chinese = pages["lab_sheet.zh.md"].replace("](lab_sheet.md", "](../README.md")
    texts |= {
        "README.md": sheet,
        "docs/lab_sheet.zh.md": chinese,
        "docs/derivations.md": derivations,
    }
    files = {name: text.encode() for name, text in texts.items()}
    for page, text in texts.items():
        for link in re.findall(r"!\[.*?\]\(([^:)]+)\)", text):
            picture = normpath(join(dirname(page), link))
            files[picture] = (PROJECT / picture).read_bytes()
    return files


def write_exercise(folder: Path, derive: bool = False) -> None:
    """Write the whole copy, or nothing and raise OSError; `folder` is new or empty."""
    files, folder = exercise(derive), folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty, expected a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        for name, content in files.items():
            path = Path(work, folder.name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if folder.exists():
            folder.rmdir()  # Windows renames to nothing that exists
        Path(work, folder.name).rename(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the copy and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.exercise", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new or empty")
    parser.add_argument(
        "--derive", action="store_true", help="leave out the formulas of the gradients, too"
    )
    options = parser.parse_args(arguments)
    try:
        write_exercise(options.folder, options.derive)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        parser.error(f"the exercise can't be written: {error}")
    print(f"The exercise is in {options.folder}; README.md there says where to start.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
