"""Write the students' copy of the lab, in which they fill in the functions of the lab sheet."""

import argparse
import gzip
import inspect
import re
from pathlib import Path

from numpy_fnn import Log, Matmul, NumpyLoss, NumpyModel, Relu, Softmax
from numpy_mnist import DATA_DIR, mini_batch
from utils import FILES, find_files

PROJECT = Path(__file__).resolve().parents[1]
CODE = ("numpy_fnn.py", "numpy_mnist.py", "utils.py", "tests/__init__.py", "tests/check.py")
PAGES = {  # each page, and its path in the copy
    "docs/lab_sheet.md": "README.md",
    "docs/lab_sheet.zh.md": "docs/lab_sheet.zh.md",
    "docs/derivations.md": "docs/derivations.md",
}
TO_WRITE = (
    *(Matmul.forward, Matmul.backward, Relu.forward, Relu.backward, Log.forward, Log.backward),
    *(Softmax.forward, Softmax.backward, NumpyLoss.backward),
    *(NumpyModel.backward, NumpyModel.optimize, mini_batch),
)
DERIVE = """
Derive the gradients of the loss with respect to both inputs of Matmul, to the inputs of Relu, Log
and Softmax, and to the log-probabilities. Then use the chain rule in NumpyModel.backward.
"""


def with_holes(source: str) -> str:
    """Return a module's source in which every function of TO_WRITE ends after its last check."""
    for function in TO_WRITE:
        code = inspect.getsource(function)
        # Keep all up to the last line that ends the docstring, raises or calls check_grad.
        kept = re.findall(r'(?s)^.*(?:"""|raise \w[^\n]+|check_grad[^\n]+)\n', code)[0]
        indent = re.findall(r'^( +)"""', code, re.MULTILINE)[0]
        hole = f'{indent}raise NotImplementedError("write {function.__qualname__}")\n'
        source = source.replace(code, kept + hole)
    return source


def exercise(derive: bool, data_dir: str) -> dict[str, bytes]:
    """Return the files of the copy, keyed by path; `derive` leaves out formulas of gradients."""
    files = {}
    for name in CODE:
        text = with_holes((PROJECT / name).read_text(encoding="utf-8"))
        if derive:
            text = re.sub(r",  grad_\w+ = .*?\(\d\.\d\)", "", text)
        files[name] = text.encode()
    for name, copy in PAGES.items():
        text = (PROJECT / name).read_text(encoding="utf-8")
        if derive:
            text = "\n## ".join(text.split("\n## ")[:2])
        if copy == "README.md":
            text = re.sub(r"(\]\()(?!#|\w+:)", r"\1docs/", text)
        text = text.replace("(lab_sheet.md", "(../README.md")
        if copy == "docs/derivations.md":  # this page quotes solutions
            text = re.sub(r"```python\n(?s:.*?)```\n\n?", "", text) + DERIVE * derive
        files[copy] = text.encode()
        for picture in re.findall(r"figures/[\w.]+", text):
            files[f"docs/{picture}"] = (PROJECT / "docs" / picture).read_bytes()
    requirements = (PROJECT / "requirements.txt").read_text(encoding="utf-8")
    files["requirements.txt"] = re.sub("torchvision.*\n", "", requirements).encode()
    found = find_files(Path(data_dir, "MNIST", "raw"))
    for name in found.keys() & FILES:
        content = found[name].read_bytes()
        if not content.startswith(b"\x1f\x8b"):  # not yet compressed
            content = gzip.compress(content, 6)  # 9, the default, takes ten times as long
        files[f"data/MNIST/raw/{name}.gz"] = content
    return files


def main(arguments: list[str] | None = None) -> None:
    """Write the copy into a new folder."""
    parser = argparse.ArgumentParser(prog="python -m docs.exercise", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new folder for the copy")
    parser.add_argument("--derive", action="store_true", help="leave out gradients' formulas")
    words = f"folder of the data sets, from which MNIST is copied (default: {DATA_DIR})"
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
