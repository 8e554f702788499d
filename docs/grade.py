"""Grade hand-ins of the lab: python -m docs.grade SUBMISSION... [--output DIR] [--seconds 20].

A submission is a folder or .zip with numpy_fnn.py and numpy_mnist.py; nothing else of it is read. For each step of the
lab sheet, the student's bodies of that step alone are put into the finished lab and run in a process of their own, on
inputs drawn anew; what they return is compared in this one. It needs the packages of tests/requirements.txt.

This runs students' code. Its time and, on Linux, its memory (2 GB) are limited, but a body can still read and delete
files, the finished lab's, too, and end the grading: use a container, or a user who owns only the hand-ins.
"""

import argparse
import ast
import contextlib
import csv
import inspect
import json
import os
import secrets
import subprocess
import sys
import tempfile
import traceback
import types
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import numpy as np
from tqdm import tqdm

import numpy_fnn
import numpy_mnist
from docs.exercise import PROJECT, STEPS, without_solutions
from utils import reason

# The finished lab without the solutions of a step. Made here, since Python 3.11 can't parse in several threads at once.
LAB = {
    file: (PROJECT / f"{file}.py").read_text(encoding="utf-8")
    for file in ("utils", "numpy_fnn", "numpy_mnist")
}
LABS = {
    step: {file: without_solutions(LAB[file], names) for file in LAB}
    for step, names in STEPS.items()
}
CHILD = "from __future__ import annotations\nimport ast, contextlib, sys, traceback, types, numpy as np\n"


def results(step: str, lab: dict[str, Any], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of what the functions of a step return or leave, for inputs drawn by the seed."""
    rng = np.random.default_rng(seed)

    def read_only(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array.setflags(write=False)  # a change in place is an error, in the student's line
        return array

    def draw(*shape: int) -> np.ndarray:
        return read_only(rng.standard_normal(shape) / np.sqrt(shape[0]))

    if step in ("Matmul", "Relu", "Log", "Softmax"):
        x = rng.standard_normal((4, 6))
        x[0, :2] = 0, 1e-12  # Relu's kink, and where Log needs its ε
        x = read_only(
            {"Log": abs(x), "Softmax": x + 1000}.get(step, x)
        )  # exp overflows without the shift
        op = lab[step]()
        yield f"{step}: y", op.forward(x, draw(6, 6)) if step == "Matmul" else op.forward(x)
        grads = op.backward(draw(4, 6))
        names = (f"{step}: grad_x", f"{step}: grad_w")
        yield from zip(names, grads if isinstance(grads, tuple) else (grads,), strict=False)
    else:
        model, numpy_loss = lab["NumpyModel"](), lab["NumpyLoss"]()
        vars(model).update({name: draw(*shape) for name, shape in model.SHAPES.items()})
        numpy_loss.get_loss(model.forward(draw(5, 784)), draw(5, 10))
        grad_p = numpy_loss.backward()
        yield "NumpyLoss: grad_p", grad_p
        model.backward(grad_p)
        for name in ("log", "softmax", "x3", "W3", "relu_2", "x2", "W2", "relu_1", "x1", "W1"):
            yield f"NumpyModel: {name}_grad", getattr(model, f"{name}_grad")
        model.optimize(np.float64(0.3))
        for name in model.SHAPES:
            yield f"optimize: {name}", getattr(model, name)
    if "mini_batch" in step:
        images, labels, generator = draw(23, 1), np.arange(23), np.random.default_rng(seed + 1)
        orders = {tuple(range(23))}
        for i, source in enumerate((seed, seed, generator, generator, None, None)):
            xs, ys = zip(*lab["mini_batch"]((images, labels), 5, source), strict=True)
            yield f"mini_batch: batch sizes of call {i}", np.array([len(batch) for batch in ys])
            pairs = np.c_[np.concatenate(ys), np.concatenate(xs)].tolist()
            yield f"mini_batch: labels and their images of call {i}", np.array(sorted(pairs))
            orders.add(tuple(label for label, _ in pairs))
        name = "mini_batch: number of orders (not shuffled, a seed twice, a generator twice, no rng twice)"
        yield name, np.array([len(orders)])


def graft(module: types.ModuleType, hand_in: bytes, names: Sequence[str]) -> None:
    """Put a student's functions of these names into a module of the lab, and what they need of the student's own."""
    student = types.ModuleType(module.__name__)
    vars(student).update(vars(module))
    for node in ast.parse(hand_in).body:
        kept = isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)
        if kept or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)):
            with contextlib.suppress(
                Exception
            ):  # as of a package that only the student has: who needs it will tell
                exec(compile(ast.Module([node], []), "hand-in", "exec"), vars(student))
    for name in names:
        owner, _, function = name.rpartition(".")
        if hasattr(module, owner or name):
            ours, theirs = (
                (getattr(module, owner), getattr(student, owner)) if owner else (module, student)
            )
            for part, value in list(vars(theirs).items()):
                if part == function or not hasattr(ours, part):
                    setattr(ours, part, value)
    vars(student).update(
        vars(module)
    )  # whatever else the lab has, a student's functions find as it is in the lab


def run(
    lab: dict[str, str], hand_in: dict[str, bytes], step: str, names: Sequence[str], seed: int
) -> None:
    """Write the results of a step, and what ended them before their time, to results.npz: the child's part."""
    with contextlib.suppress(ImportError, ValueError):  # where the system can't
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    arrays: dict[str, Any] = {}
    try:
        found: dict[str, Any] = {}
        for file, source in lab.items():
            module = sys.modules[file] = types.ModuleType(file)
            exec(source, vars(module))
            graft(module, hand_in.get(file, b""), names)
            found |= vars(module)
        for name, value in results(step, found, seed):
            if not isinstance(value, np.ndarray):
                raise TypeError(f"{name} is a {type(value).__name__}, expected an array")
            arrays[name] = value.copy()
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # and so the memory that they hold
        frames = traceback.walk_tb(error.__traceback__)
        lines = [
            f", line {line}" for frame, line in frames if frame.f_code.co_filename == "hand-in"
        ]
        arrays["error"] = np.array(f"{step}{''.join(lines[-1:])}: {type(error).__name__}: {error}")
    np.savez("results.npz", **arrays)


def read(submission: Path) -> dict[str, bytes]:
    """Return the two files in a folder or .zip, or in a folder there; raises what is wrong with them."""
    root: Any = zipfile.Path(submission) if submission.is_file() else submission
    places = [place for place in (root, *root.iterdir()) if (place / "numpy_fnn.py").is_file()]
    if not places:
        raise ValueError("numpy_fnn.py is missing")
    if not (places[0] / "numpy_mnist.py").is_file():
        raise ValueError("numpy_mnist.py is missing")
    files = {name: (places[0] / f"{name}.py").read_bytes() for name in ("numpy_fnn", "numpy_mnist")}
    for name, content in files.items():
        compile(content, f"{name}.py", "exec")
    return files


def judge(step: str, hand_in: dict[str, bytes], seed: int, seconds: float) -> str:
    """Return the first thing that is wrong with a step of a submission, "" where nothing is."""
    # The program is read from stdin, so that no path leads from it to the finished lab.
    program = CHILD + "".join(inspect.getsource(function) for function in (results, graft, run))
    program += f"run(*{(LABS[step], hand_in, step, STEPS[step], seed)})\n"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process: dict[str, Any] = {
            "cwd": folder,
            "env": environment,
            "stdout": DEVNULL,
            "stderr": DEVNULL,
        }
        try:
            subprocess.run(
                [sys.executable, "-"], input=program.encode(), timeout=seconds, **process
            )
            with np.load(Path(folder, "results.npz")) as file:
                got = dict(file)
        except subprocess.TimeoutExpired:
            return f"{step} did not end within {seconds:g} s"
        except Exception:  # a body left no results, or wrote something itself
            return f"{step} ended its process"
    for name, expected in results(step, {**vars(numpy_fnn), **vars(numpy_mnist)}, seed):
        if name not in got:
            return str(got.get("error", f"{name} is missing"))
        array = got[name]
        if (array.dtype, array.shape) != (expected.dtype, expected.shape):
            return (
                f"{name} is {array.dtype} {array.shape}, expected {expected.dtype} {expected.shape}"
            )
        for i in map(tuple, np.argwhere(~np.isclose(array, expected, 1e-4, 1e-4)).tolist()):
            return f"{name} is {array[i]:.6g} at {list(i)}, expected {expected[i]:.6g}"
    return ""


def grade(submission: Path, seed: int, seconds: float) -> list[str]:
    """Return the sentence of each step of a submission, "" where the step is right."""
    try:
        trees = read(submission)
    except Exception as error:  # of a damaged zip, many kinds
        return [f"it can't be read: {reason(error)}"] * len(STEPS)
    return [" ".join(judge(step, trees, seed, seconds).split())[:200] for step in STEPS]


def main(arguments: Sequence[str] | None = None) -> int:
    """Grade, print a line for each submission, write the files, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.grade", description=__doc__)
    parser.add_argument(
        "submissions", nargs="+", type=Path, metavar="SUBMISSION", help="a folder or .zip"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="new or empty; for grades.csv and each results.json",
    )
    parser.add_argument(
        "--seconds", type=float, default=20, help="the limit for each step (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    submissions = {path.resolve().name.removesuffix(".zip"): path for path in options.submissions}
    if len(submissions) < len(options.submissions):
        parser.error(
            f"two submissions have the same name, expected names of their own: {', '.join(submissions)}"
        )
    if not options.seconds > 0:
        parser.error(f"--seconds is {options.seconds}, expected more than 0")
    if missing := [str(path) for path in options.submissions if not path.exists()]:
        parser.error(f"there is no {', '.join(missing)}")
    if (
        options.output
        and options.output.exists()
        and (options.output.is_file() or any(options.output.iterdir()))
    ):
        parser.error(f"{options.output} is there already, expected a new or empty folder")
    warnings.simplefilter("ignore")  # those of students' code
    seed, rows = secrets.randbits(32), []
    with ThreadPool(os.cpu_count()) as pool:
        graded = pool.imap(lambda path: grade(path, seed, options.seconds), submissions.values())
        for name, faults in zip(
            submissions, tqdm(graded, total=len(submissions), disable=None), strict=True
        ):
            score, sentences = faults.count(""), "; ".join(dict.fromkeys(filter(None, faults)))
            tqdm.write(
                f"{name:<{max(map(len, submissions))}}  {score}/{len(STEPS)}  {sentences}".rstrip()
            )
            rows.append([name, score, *faults])
            if options.output:
                tests = [
                    {
                        "name": f"{i} {step}",
                        "score": int(not fault),
                        "max_score": 1,
                        "output": fault,
                    }
                    for i, (step, fault) in enumerate(zip(STEPS, faults, strict=True), 1)
                ]
                (options.output / name).mkdir(parents=True)
                (options.output / name / "results.json").write_text(
                    json.dumps({"tests": tests}, indent=1)
                )
    if options.output:
        with open(
            options.output / "grades.csv", "w", encoding="utf-8-sig", newline=""
        ) as file:  # as Excel reads it
            csv.writer(file).writerows([["name", "score", *STEPS], *rows])
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a console that has no Chinese goes on
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Interrupted: not all are graded.", file=sys.stderr)
        sys.exit(130)
