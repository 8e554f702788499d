"""Write the students' copy of the lab, in which they fill in the functions of the lab sheet."""

import argparse
import gzip
import inspect
import re
from collections.abc import Sequence
from pathlib import Path

from numpy_fnn import Log, Matmul, NumpyLoss, NumpyModel, Relu, Softmax
from numpy_mnist import DATA_DIR, mini_batch
from utils import find_files

PROJECT = Path(__file__).resolve().parents[1]
CODE = ("numpy_fnn.py", "numpy_mnist.py", "utils.py", "tests/__init__.py", "tests/check.py")
TO_WRITE = (
    *(Matmul.forward, Matmul.backward, Relu.forward, Relu.backward, Log.forward, Log.backward),
    *(Softmax.forward, Softmax.backward, NumpyLoss.backward),
    *(NumpyModel.backward, NumpyModel.optimize, mini_batch),
)
DERIVE = "\nDerive the gradient of each operator, of the loss and of the model yourself.\n"


def with_holes(source: str) -> str:
    """Return a module's source in which each function TO_WRITE ends after its last check."""
    for function in TO_WRITE:
        code = inspect.getsource(function)
        # Up to the last line that ends the docstring, raises an error or calls check_grad.
        kept = re.findall(r'(?s)^.*(?:"""|raise \w[^\n]+|check_grad[^\n]+)\n', code)[0]
        indent = re.findall(r'^( +)"""', code, re.MULTILINE)[0]
        formulas = " and ".join(re.findall(r"\(\d\.\d\)", function.__doc__ or ""))
        hole = f'{indent}raise NotImplementedError("write {formulas}")\n'
        source = source.replace(code, kept + hole)
    return source


def exercise(derive: bool, data_dir: str) -> dict[str, bytes]:
    """Return the files of the copy by their paths; with `derive`, without gradients' formulas."""
    texts = {name: (PROJECT / name).read_text(encoding="utf-8") for name in CODE}
    texts = {name: with_holes(text) for name, text in texts.items()}
    pages = {page.name: page.read_text(encoding="utf-8") for page in PROJECT.glob("docs/*.md")}
    if derive:
        texts["numpy_fnn.py"] = re.sub(r",  grad_\w+ = .*?\(\d\.\d\)", "", texts["numpy_fnn.py"])
        pages = {name: "\n## ".join(text.split("\n## ")[:2]) for name, text in pages.items()}
        pages["derivations.md"] += DERIVE
    # The sheet moves from docs to the top, and the quotations of code are solutions.
    texts["README.md"] = re.sub(r"(\]\()(?!#|\w+:)", r"\1docs/", pages["lab_sheet.md"])
    texts["docs/lab_sheet.zh.md"] = pages["lab_sheet.zh.md"].replace(
        "(lab_sheet.md", "(../README.md"
    )
    texts["docs/derivations.md"] = re.sub(
        r"```python\n(?s:.*?)```\n\n?", "", pages["derivations.md"]
    )
    requirements = (PROJECT / "requirements.txt").read_text(encoding="utf-8")
    texts["requirements.txt"] = re.sub("torchvision.*\n", "", requirements)
    files = {name: text.encode() for name, text in texts.items()}
    for picture in re.findall(r"\((docs/figures/[^)]+)\)", texts["README.md"]):
        files[picture] = (PROJECT / picture).read_bytes()
    for name, path in find_files(Path(data_dir, "MNIST", "raw")).items():
        content = path.read_bytes()
        if path.suffix != ".gz":
            content = gzip.compress(content)
        files[f"data/MNIST/raw/{name}.gz"] = content
    return files


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the copy into a new folder."""
    parser = argparse.ArgumentParser(prog="python -m docs.exercise", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new folder for the copy")
    words = "leave out the formulas of gradients, for students who derive them"
    parser.add_argument("--derive", action="store_true", help=words)
    words = f"folder of the data sets, for a copy with MNIST (default: {DATA_DIR})"
    parser.add_argument("--data-dir", default=DATA_DIR, metavar="DIR", help=words)
    options = parser.parse_args(arguments)
    files = exercise(options.derive, options.data_dir)
    try:
        options.folder.mkdir(parents=True)
    except OSError as error:
        parser.error(f"FOLDER must be new: {error}")
    for name, content in files.items():
        path = options.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    print(f"The copy is in {options.folder}. Its README.md says where to start.")


if __name__ == "__main__":
    main()
