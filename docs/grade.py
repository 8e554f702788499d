"""Grade hand-ins of the lab: python -m docs.grade SUBMISSION... [--output DIR] [--seconds 20].

A submission is a folder or .zip with numpy_fnn.py and numpy_mnist.py; nothing else of it is read. For each step of the
lab sheet, the student's bodies of that step alone are put into the finished lab and run in a process of their own, on
inputs drawn anew; what they return is compared in this one. It needs the packages of tests/requirements.txt.

This runs students' code. Its time and, except on Windows, its memory (2 GB) are limited, but a body can still read and
delete files, the finished lab's, too, and end the grading: use a container, or a user who owns only the hand-ins.
"""

import argparse
import ast
import contextlib
import csv
import inspect
import json
import marshal
import os
import signal
import sys
import tempfile
import traceback
import types
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from typing import IO, Any

import numpy as np
from tqdm import tqdm

import numpy_fnn
import numpy_mnist
from docs.exercise import PROJECT, STEPS
from utils import reason

FILES = ("numpy_fnn", "numpy_mnist")
LAB = 10**6  # is added to line numbers of the finished lab: smaller ones are the student's
CHILD = f"""
from __future__ import annotations
import contextlib, marshal, os, sys, traceback, types
import numpy as np
LAB = {LAB}
source, job = marshal.load(sys.stdin.buffer)
exec(source)
run(*job)
"""


def results(step: str, lab: dict[str, Any], seed: int) -> Iterator[tuple[str, str, Any]]:
    """Yield (function, name, value) of what the functions of a step return or leave, for inputs drawn by the seed."""
    rng = np.random.default_rng(seed)

    def draw(dtype: type[Any], *shape: int) -> np.ndarray:
        array = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(dtype)
        array.setflags(write=False)  # a change in place is an error, in the student's line
        return array

    for dtype in (np.float32, np.float64):
        if step in ("Matmul", "Relu", "Log", "Softmax"):
            x = draw(dtype, 4, 6).copy()
            x[0, :2] = 0, 1e-12  # Relu's kink, and where Log needs its ε
            x = abs(x) if step == "Log" else x + dtype(1000 * (step == "Softmax"))  # exp overflows without the shift
            x.setflags(write=False)
            op, inputs = lab[step](), (x, draw(dtype, 6, 6)) if step == "Matmul" else (x,)
            yield f"{step}.forward", "y", op.forward(*inputs)
            yield f"{step}.forward", 'memory["y"]', op.memory["y"]
            grads = op.backward(draw(dtype, 4, 6))
            grads = grads if isinstance(grads, tuple) else (grads,)
            for name, grad in zip(("grad_x", "grad_w"), grads, strict=False):
                yield f"{step}.backward", name, grad
        else:
            model, numpy_loss = lab["NumpyModel"](), lab["NumpyLoss"]()
            vars(model).update({name: draw(dtype, *shape) for name, shape in model.SHAPES.items()})
            numpy_loss.get_loss(model.forward(draw(dtype, 5, 784)), draw(dtype, 5, 10))
            grad_p = numpy_loss.backward()
            yield "NumpyLoss.backward", "grad_p", grad_p
            model.backward(grad_p)
            for name in ("log", "softmax", "x3", "W3", "relu_2", "x2", "W2", "relu_1", "x1", "W1"):
                yield "NumpyModel.backward", f"{name}_grad", getattr(model, f"{name}_grad")
            model.optimize(np.float64(0.3))
            for name in model.SHAPES:
                yield "NumpyModel.optimize", name, getattr(model, name)
    if "mini_batch" in step:
        images, labels, generator = draw(np.float32, 23, 1), np.arange(23), np.random.default_rng(seed + 1)
        for source in (seed, seed, generator, generator, None, None):
            dataset = (images, labels) if source else list(zip(images, labels, strict=True))
            batches = zip(lab["mini_batch"](dataset, 5, source), range(23), strict=False)  # 5, unless they never end
            x, y = zip(*((np.array(x), np.array(y)) for (x, y), _ in batches), strict=True)
            yield "mini_batch", "batch sizes", np.array([len(batch) for batch in y])
            yield "mini_batch", "label and image", np.c_[np.concatenate(y), np.concatenate(x)]


def run(modules: list[tuple[str, Any]], step: str, seed: int, seconds: float) -> None:
    """Write the results of a step to stdout, or what happened in place of one: the child's part of the work."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what students print goes nowhere
    with contextlib.suppress(ImportError):  # on Windows
        import resource

        # bytes of memory, seconds, bytes of a file, processes of its own
        for name, limit in {"AS": 2 << 30, "CPU": int(seconds) + 9, "FSIZE": 1 << 26, "NPROC": 0}.items():
            with contextlib.suppress(AttributeError, ValueError, OSError):
                resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    try:
        lab: dict[str, Any] = {}
        for name, code in modules:
            module = sys.modules.setdefault(name, types.ModuleType(name))
            exec(code, vars(module))
            lab |= vars(module)
        for _, name, value in results(step, lab, seed):
            if not isinstance(value, np.ndarray):
                raise TypeError(f"{name} is a {type(value).__name__}, expected an array")
            np.save(output, value, allow_pickle=False)
            output.flush()
    except NotImplementedError:
        np.save(output, np.array(": not written yet"))
    except BaseException as error:  # SystemExit, too
        frames = traceback.walk_tb(error.__traceback__)
        lines = [line for frame, line in frames if frame.f_code.co_filename.startswith("numpy_") and line < LAB]
        text = f"{type(error).__name__}: {error}"
        traceback.clear_frames(error.__traceback__)  # and so the memory that they hold
        np.save(output, np.array(f", line {lines[-1]}: {text}" if lines else f": {text}"))
    output.flush()
    os._exit(0)  # without the student's threads and exit functions


def definitions(module: ast.Module) -> dict[str, Any]:
    """Return the functions, methods, classes, imports and constants of a module by name, and no other code."""
    found: dict[str, Any] = {}
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            methods = {f"{node.name}.{part.name}": part for part in node.body if isinstance(part, ast.FunctionDef)}
            found |= {node.name: node, **methods}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0]: node for alias in node.names}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            found |= {ast.unparse(target): node for target in node.targets}
    return found


def assemble(step: str, file: str, student: ast.Module) -> list[tuple[str, Any]]:
    """Return code of the finished lab's module with the student's bodies of a step, and of what else these need."""
    lab = ast.increment_lineno(ast.parse((PROJECT / f"{file}.py").read_text(encoding="utf-8")), LAB)
    ours, theirs = definitions(lab), definitions(student)
    bodies = [name for name in STEPS[step] if name in ours]
    if missing := [name for name in bodies if not isinstance(theirs.get(name), ast.FunctionDef)]:
        raise ValueError(f"{missing[0]} is missing")
    wanted = bodies.copy()
    for name in wanted:  # which grows on the way
        if name in theirs and (name in bodies or name not in ours):
            for part in ast.walk(theirs[name]):
                names = {getattr(part, "id", ""), f"{name.partition('.')[0]}.{getattr(part, 'attr', '')}"}
                wanted += names - set(wanted)
    own: list[ast.stmt] = []
    for name, node in theirs.items():
        owner = name.rpartition(".")[0]
        if name in bodies:
            ours[name].body = node.body
            for parameter, renamed in zip(ours[name].args.args, node.args.args, strict=False):
                parameter.arg = renamed.arg
        elif name in wanted and name not in ours and owner in ("", *ours):
            (ours[owner].body if owner else own).append(node)
    return [(file, compile(ast.Module(body, []), f"{file}.py", "exec")) for body in (lab.body, own)]


def read(submission: Path) -> dict[str, ast.Module]:
    """Return the syntax trees of the two files in a folder or .zip, or in a folder there; raises what is wrong."""
    root: Any = zipfile.Path(submission) if submission.is_file() else submission
    places = [place for place in (root, *root.iterdir()) if (place / "numpy_fnn.py").is_file()]
    if not places:
        raise ValueError("numpy_fnn.py is missing")
    trees = {}
    for file in FILES:
        with (places[0] / f"{file}.py").open("rb") as content:
            source = content.read(1 << 20).decode("utf-8-sig")  # a small zip can hold gigabytes
        trees[file] = ast.parse(source, f"{file}.py")
    return trees


def run_apart(job: bytes, output: IO[bytes], seconds: float) -> str:
    """Run a job in a process of its own, which writes to `output`, and return how it ended."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-c", CHILD]
        child = Popen(command, 0, None, PIPE, output, DEVNULL, cwd=folder, env=environment, start_new_session=True)
        try:
            child.communicate(job, seconds)
            return "ended its process"
        except TimeoutExpired:
            return f"did not end within {seconds:g} s"
        finally:
            with contextlib.suppress(OSError):  # nobody is left
                os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()
            child.wait()


def judge(step: str, trees: dict[str, ast.Module], seed: int, seconds: float) -> str:
    """Return the first thing that is wrong with a step of a submission, "" where nothing is."""
    utils = compile((PROJECT / "utils.py").read_text(encoding="utf-8"), "utils.py", "exec")
    source = inspect.getsource(results) + inspect.getsource(run)  # no path leads from it to the finished lab
    try:
        modules = [("utils", utils), *(code for file in FILES for code in assemble(step, file, trees[file]))]
        job = marshal.dumps((source, (modules, step, seed, seconds)))
    except Exception as error:  # Python has many for code that can't be compiled
        return reason(error)
    orders = []
    with tempfile.TemporaryFile() as output:
        end = run_apart(job, output, seconds)
        output.seek(0)
        for function, name, expected in results(step, {**vars(numpy_fnn), **vars(numpy_mnist)}, seed):
            try:
                got = np.lib.format.read_array(output, allow_pickle=False)
            except Exception:  # there is none, or a body wrote something itself
                return f"{function} {end}"
            if got.dtype.kind == "U":
                return f"{function}{got}"
            if name == "label and image" and (got.shape, got.dtype) == (expected.shape, expected.dtype):
                orders.append(tuple(got[:, 0].tolist()))
                got, expected = got[got[:, 0].argsort()], expected[expected[:, 0].argsort()]
            if fault := difference(got, expected):
                return f"{function.partition('.')[0]}: {name} {fault}"
    if orders and tuple(sorted(orders[0])) in orders:
        return "mini_batch: the images are not shuffled"
    if orders and len(set(orders)) != 5:
        return "mini_batch: the order is not drawn by rng: the same for the same seed, else another each time"
    return ""


def difference(got: np.ndarray, expected: np.ndarray) -> str:
    """Return how an array differs from the expected one, "" where it does not."""
    if (got.dtype, got.shape) != (expected.dtype, expected.shape):
        return f"is {got.dtype} {got.shape}, expected {expected.dtype} {expected.shape}"
    tolerance = 1e-4 if expected.dtype == np.float32 else 1e-9
    for i in map(tuple, np.argwhere(~np.isclose(got, expected, tolerance, tolerance)).tolist()):
        texts = ((f"{got[i]:.{digits}g}", f"{expected[i]:.{digits}g}") for digits in range(2, 18))
        return "is {} at {}, expected {}".format(*next((a, list(i), b) for a, b in texts if a != b))
    return ""


def grade(submission: Path, seed: int, seconds: float) -> list[str]:
    """Return the sentence of each step of a submission, "" where the step is right."""
    try:
        trees = read(submission)
    except Exception as error:  # of a damaged zip, many kinds
        faults = [f"it can't be read: {reason(error)}"] * len(STEPS)
    else:
        faults = [judge(step, trees, seed, seconds) for step in STEPS]
    return ["".join(letter if letter.isprintable() else " " for letter in fault)[:200] for fault in faults]


def main(arguments: Sequence[str] | None = None) -> int:
    """Grade, print a line for each submission, write the files, and return the exit code."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m docs.grade", description=__doc__, formatter_class=formatter)
    parser.add_argument("submissions", nargs="+", type=os.path.abspath, metavar="SUBMISSION", help="a folder or .zip")
    parser.add_argument("--output", type=Path, metavar="DIR", help="new or empty; for grades.csv and each results.json")
    parser.add_argument("--seconds", type=float, default=20, help="the limit for each step (default: %(default)s)")
    options = parser.parse_args(arguments)
    top = os.path.commonpath([os.path.dirname(path) for path in options.submissions])
    submissions = {Path(path).relative_to(top).as_posix().removesuffix(".zip"): path for path in options.submissions}
    if len(submissions) < len(options.submissions):
        parser.error(f"two submissions have the same name, expected names of their own: {', '.join(submissions)}")
    if options.output and options.output.exists() and any(options.output.iterdir()):
        parser.error(f"{options.output} is not empty, expected a new or empty folder")
    warnings.simplefilter("ignore")  # those of students' code
    seed, rows = int(np.random.default_rng().integers(1, 1 << 62)), []
    with ThreadPool(os.cpu_count()) as pool:
        graded = pool.imap(lambda path: grade(Path(path), seed, options.seconds), submissions.values())
        for name, faults in zip(submissions, tqdm(graded, total=len(submissions), disable=None), strict=True):
            score, sentences = faults.count(""), "; ".join(dict.fromkeys(filter(None, faults)))
            tqdm.write(f"{name:<{max(map(len, submissions))}}  {score}/{len(STEPS)}  {sentences}".rstrip())
            rows.append([name, score, *faults])
            if options.output:
                tests = [
                    {"name": f"{i} {step}", "score": int(not fault), "max_score": 1, "output": fault}
                    for i, (step, fault) in enumerate(zip(STEPS, faults, strict=True), 1)
                ]
                (options.output / name).mkdir(parents=True)
                (options.output / name / "results.json").write_text(json.dumps({"tests": tests}, indent=1))
    if options.output:
        # utf-8-sig is what Excel reads; a name from a foreign .zip need not be text
        with open(options.output / "grades.csv", "w", encoding="utf-8-sig", errors="replace", newline="") as file:
            csv.writer(file).writerows([["name", "score", *STEPS], *rows])
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a console that has no Chinese goes on
    sys.exit(main())
