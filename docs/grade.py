"""Grade students' submissions with the finished lab's check and a secret seed.

A submission is a folder or an archive (.zip, .tar.gz) with numpy_fnn.py and numpy_mnist.py at any
depth. If there are several files of one name, the one that is least deep counts. Each step is
worth one point, shared equally by its rows.

This program runs students' code in a process with limits on time and memory. These limits do not
stop malice, so use a container. On Gradescope, let run_autograder do this in the finished lab:
  python3 -m docs.grade /autograder/submission --output grades
  cp grades/submission/results.json /autograder/results/
"""

import argparse
import csv
import itertools
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from subprocess import DEVNULL, TimeoutExpired, run

from docs.exercise import PROJECT
from tests.check import CHECKS

ROWS: dict[str, int] = {}  # the name of each row of the check, and its step
for number, name, _, results in CHECKS:
    ROWS |= {f"{name} {result}": number for result in results}
STEPS = Counter(ROWS.values())  # the number of rows of each step

# This program runs a student's code in its own process. It writes a line of JSON for each row.
CHILD = """
import json, os, sys
sys.path[0] = os.getcwd()  # a student's code may change the current folder
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if sys.platform == "linux":  # other systems have no such limit
    import resource
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))  # bytes
from tests.check import judge
with open("verdicts", "a") as file:
    for _, row, _, _, verdict in judge({steps}, {seed}):
        print(json.dumps([row, verdict]), file=file, flush=True)
"""


def collect(submission: Path, folder: Path) -> None:
    """Copy the student's files from a folder, an archive, or archives in a folder."""
    archives = [submission]
    if submission.is_dir():  # macOS adds files .* that are not archives
        archives = [*submission.rglob("[!.]*.zip"), *submission.rglob("[!.]*.tar.gz")]
    for archive in archives:
        shutil.unpack_archive(archive, folder / "unpacked")
    for name in ("numpy_fnn.py", "numpy_mnist.py"):
        (folder / name).write_text(f"raise ImportError('{name} is missing')\n")
        for place in (folder / "unpacked", submission):
            paths = sorted(place.rglob(name), key=lambda path: (len(path.parts), path))
            for path in paths[:1]:  # the shallowest
                shutil.copy(path, folder)


def judge(folder: Path, seconds: float) -> dict[str, str]:
    """Return the verdict of each row. If a step ends its process, a new one runs the rest."""
    verdicts: dict[str, str] = {}
    while len(verdicts) < len(ROWS):
        steps = {step for row, step in ROWS.items() if row not in verdicts}
        command = [sys.executable, "-c", CHILD.format(steps=steps, seed=secrets.randbits(32))]
        try:
            run(command, cwd=folder, timeout=seconds, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
            fault = "the process ended"
        except TimeoutExpired:
            fault = f"not finished after {seconds:g} s"
        verdicts |= map(json.loads, (folder / "verdicts").read_text().splitlines())
        missing = [row for row in ROWS if row not in verdicts]
        verdicts |= {row: fault for row in missing if ROWS[row] == ROWS[missing[0]]}
    return verdicts


def grade(submission: Path, seconds: float) -> dict[str, str]:
    """Return the verdict of each row of a submission, each verdict in one line."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        shutil.copytree(PROJECT / "tests", folder / "tests")
        shutil.copy(PROJECT / "utils.py", folder)
        try:
            collect(submission, folder)
            verdicts = judge(folder, seconds)
        except Exception as error:  # damaged archives raise errors of many kinds
            verdicts = dict.fromkeys(ROWS, f"cannot be graded: {error}")
    return {row: verdict.partition("\n")[0][:200] for row, verdict in verdicts.items()}


def report(name: str, verdicts: dict[str, str], folder: Path | None) -> None:
    """Print the score and the first fault; in `folder`, save results.json and extend grades.csv."""
    oks = Counter(ROWS[row] for row, verdict in verdicts.items() if verdict == "ok")
    points = [oks[step] / STEPS[step] for step in STEPS]
    score = round(sum(points), 2)
    judged = [row for row, verdict in verdicts.items() if not verdict.startswith("not judged")]
    groups = itertools.groupby(judged, verdicts.get)
    faults = [f"{next(rows)}: {verdict}" for verdict, rows in groups if verdict != "ok"]
    print(f"{name}  {score:.2f}/{len(STEPS)}  {''.join(faults[:1])}", flush=True)
    if folder:
        tests = []
        for row, verdict in verdicts.items():
            most = round(1 / STEPS[ROWS[row]], 2)
            earned = most if verdict == "ok" else 0
            tests.append({"name": row, "score": earned, "max_score": most, "output": verdict})
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "results.json").write_text(json.dumps({"score": score, "tests": tests}))
        with open(folder / "grades.csv", "a", encoding="utf-8-sig", newline="") as file:
            table = csv.writer(file)
            if file.tell() == 0:
                table.writerow(["name", "score", *(f"step {step}" for step in STEPS), "faults"])
            table.writerow([name, score, *(round(x, 2) for x in points), "; ".join(faults)])


def main(arguments: list[str] | None = None) -> None:
    """Grade the submissions; print a line for each and save its grades."""
    parser = argparse.ArgumentParser("python -m docs.grade", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("submissions", nargs="+", type=Path, metavar="SUBMISSION", help="folder or archive")
    add("--output", type=Path, metavar="DIR", help="new folder for grades.csv and results.json")
    add("--seconds", type=float, default=20, metavar="S", help="seconds per process (default: 20)")
    options = parser.parse_args(arguments)
    try:
        paths = [path.resolve(strict=True) for path in options.submissions]
        if options.output:
            options.output.mkdir(parents=True)
    except OSError as error:
        parser.error(f"{error}; submissions must exist, and the folder of --output must be new")
    top = os.path.commonpath([path.parent for path in paths])
    for i, path in enumerate(paths):
        try:
            verdicts = grade(path, options.seconds)
        except KeyboardInterrupt:
            sys.exit(f"Interrupted: {i} of {len(paths)} submissions are graded.")
        report(path.relative_to(top).as_posix(), verdicts, options.output)


if __name__ == "__main__":
    main()
