"""Grade hand-ins of the lab: python -m docs.grade SUBMISSION ... [--output DIR].

A submission is a folder or an archive (.zip, .tar.gz) with numpy_fnn.py and numpy_mnist.py. The
finished lab's check runs on them, with numbers that nobody knows in advance. A step is worth one
point, shared by its rows.

This program runs students' code. Limits on time and memory stop accidents, not malice: use a
container. For Gradescope, let run_autograder call this program on /autograder/submission and copy
DIR/submission/results.json to /autograder/results.
"""

import argparse
import csv
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from docs.exercise import PROJECT
from tests.check import CHECKS

FILES = ("numpy_fnn.py", "numpy_mnist.py")
ROWS: dict[str, int] = {}  # the result of each row of the check, and its step
for number, name, _, results in CHECKS:
    ROWS |= {f"{name} {result}": number for result in results}
STEPS = sorted(set(ROWS.values()))
POINTS = {row: 1 / list(ROWS.values()).count(step) for row, step in ROWS.items()}

# The program of the process that runs a student's code.
CHILD = """
import json, pathlib, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))  # bytes
except ImportError:  # Windows has no limit
    pass
from tests.check import judge
seed, *steps = map(int, sys.argv[1:])
verdicts = {result: verdict for _, result, _, _, verdict in judge(steps, seed)}
pathlib.Path("verdicts.json").write_text(json.dumps(verdicts))
"""


def collect(submission: Path, folder: Path) -> None:
    """Copy the student's two files, from any depth of a folder or archive, into `folder`."""
    archives = [submission]
    if submission.is_dir():
        archives = [path for path in submission.rglob("*") if path.suffix in (".zip", ".gz")]
    with tempfile.TemporaryDirectory() as unpacked:
        for archive in archives:
            shutil.unpack_archive(archive, unpacked)
        for name in FILES:
            found = [*submission.rglob(name), *Path(unpacked).rglob(name)]
            if not found:
                raise FileNotFoundError(f"{name} is missing")
            shutil.copy(found[0], folder)


def run(folder: Path, steps: Sequence[int], seed: int, seconds: float) -> dict[str, str]:
    """Return the verdict of each row of these steps, by the check in `folder`."""
    file = folder / "verdicts.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-c", CHILD, str(seed), *map(str, steps)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    silent: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    fault = "the process ended"
    try:
        subprocess.run(command, cwd=folder, env=environment, timeout=seconds, **silent)
    except subprocess.TimeoutExpired:
        fault = f"not finished after {seconds:g} s"
    if file.exists():
        return dict(json.loads(file.read_text()))
    verdicts = {row: fault for row, step in ROWS.items() if step in steps}
    if len(steps) > 1:  # one process for each step, so that the fault costs only its own
        for step in steps:
            verdicts |= run(folder, [step], seed, seconds)
    return verdicts


def grade(submission: Path, seed: int, seconds: float) -> dict[str, str]:
    """Return the verdict, in one line, of each row of a submission."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "tests").mkdir()
        for file in ("utils.py", "tests/__init__.py", "tests/check.py"):
            shutil.copy(PROJECT / file, folder / file)
        try:
            collect(submission, folder)
        except Exception as error:  # damaged archives raise errors of many kinds
            return dict.fromkeys(ROWS, f"cannot be read: {error}")
        verdicts = run(folder, STEPS, seed, seconds)
        return {row: verdict.partition("\n")[0] for row, verdict in verdicts.items()}


def score(verdicts: dict[str, str], *steps: int) -> float:
    """Return the points for these steps."""
    oks = [row for row, verdict in verdicts.items() if verdict == "ok"]
    return round(sum(POINTS[row] for row in oks if ROWS[row] in steps), 2)


def save(graded: dict[str, dict[str, str]], folder: Path) -> None:
    """Write grades.csv, and for each submission a results.json as Gradescope reads it."""
    table = [["name", "score", *(f"step {step}" for step in STEPS), "faults"]]
    for name, verdicts in graded.items():
        faults = dict.fromkeys(verdict for verdict in verdicts.values() if verdict != "ok")
        scores = [score(verdicts, *STEPS), *(score(verdicts, step) for step in STEPS)]
        table.append([name, *map(str, scores), "; ".join(faults)])
        tests = []
        for row, verdict in verdicts.items():
            test = {"name": f"{ROWS[row]} {row}", "max_score": POINTS[row], "output": verdict}
            tests.append(test | {"score": POINTS[row] * (verdict == "ok")})
        (folder / name).mkdir(parents=True)
        (folder / name / "results.json").write_text(json.dumps({"tests": tests}, indent=1))
    with open(folder / "grades.csv", "w", encoding="utf-8-sig", newline="") as file:  # for Excel
        csv.writer(file).writerows(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Grade the submissions, print a line for each, and save the grades."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("docs.grade", description=__doc__, formatter_class=form)
    parser.add_argument("submissions", nargs="+", type=Path, metavar="SUBMISSION")
    words = "new folder for grades.csv and the results.json of each submission"
    parser.add_argument("--output", type=Path, metavar="DIR", help=words)
    words = "time limit of a submission, then of each of its steps (default: 20)"
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help=words)
    options = parser.parse_args(arguments)
    paths = [path.resolve() for path in options.submissions]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        parser.error(f"not found: {', '.join(missing)}")
    if options.output:
        try:
            options.output.mkdir(parents=True)
        except OSError as error:
            parser.error(f"--output must be a new folder: {error}")
    top = os.path.commonpath([path.parent for path in paths])
    seed = secrets.randbits(32)
    graded = {}
    try:
        with ThreadPool(os.cpu_count()) as pool:
            results = pool.imap(lambda path: grade(path, seed, options.seconds), paths)
            for path, verdicts in zip(paths, results, strict=True):
                name = path.relative_to(top).as_posix()
                graded[name] = verdicts
                faults = [f"{row}: {fault}" for row, fault in verdicts.items() if fault != "ok"]
                points = f"{score(verdicts, *STEPS):.2f}/{len(STEPS)}"
                print(f"{name}  {points}  {''.join(faults[:1])}", flush=True)
    except KeyboardInterrupt:
        print(f"Interrupted: {len(graded)} of {len(paths)} are graded.", file=sys.stderr)
    if options.output:
        save(graded, options.output)


if __name__ == "__main__":
    main()
