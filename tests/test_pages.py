"""On all pages, links, commands and files exist, and the README's program repeats the run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils import FILES

ROOT = Path(__file__).parents[1]
PATHS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.py"), *ROOT.glob("docs/*.py"), *ROOT.glob("tests/*.py"))
}
README = PAGES["README.md"]
CHINESE = PAGES["docs/README.zh.md"]
WRITTEN = ("photograph.py", "stairs.py", "my_digit.py", "docs/runs.npz")  # by students, programs

all_pages = pytest.mark.parametrize("name", PAGES)


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@all_pages
def test_links_lead_to_files_and_headings(name: str) -> None:
    for link, _, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(#([^)]+))?\)", PAGES[name]):
        path = (ROOT / name).parent / link if link else ROOT / name
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{link}#{anchor}"


@all_pages
def test_commands_options_and_files_exist(name: str) -> None:
    text = PAGES[name]
    command = r"python3? (?:-m ((?:docs|tests)\.\w+)|(numpy_\w+\.py))([^\n`&]*)"
    for module, script, options in re.findall(command, text):
        source = SOURCES[script or f"{module.replace('.', '/')}.py"]
        for option in re.findall(r"--[\w-]+", options):
            assert f'"{option}"' in source or option == "--help", f"{module}{script} {option}"
    for option in re.findall(r"`(--[\w-]+)", text):
        known = any(f'"{option}"' in source for source in SOURCES.values())
        assert known or option in ("--help", "--extra-index-url"), option
    for path in re.findall(r"`((?:docs|tests|\.ci)/\w[\w./]*|\w+\.py)`", text):
        assert (ROOT / path).exists() or path in WRITTEN, path


def test_chinese_readme_has_the_commands_of_the_readme() -> None:
    for language in ("sh", "text", "python"):
        assert blocks(CHINESE, language) == blocks(README, language)
    for file in FILES:
        assert f"`{file}`" in CHINESE


def test_readme_is_finished_and_has_at_most_110_lines() -> None:
    assert not re.findall(r"@[A-Z]+@", "".join(PAGES.values()))
    assert README.count("\n") <= 110


def test_readme_shows_what_the_check_says_of_a_forgotten_mask(tmp_path: Path) -> None:
    right = 'return grad_y * (self.memory["x"] > 0)'
    assert right in SOURCES["numpy_fnn.py"]
    for file in ("numpy_mnist.py", "utils.py", "tests/__init__.py", "tests/check.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(SOURCES[file], encoding="utf-8")
    wrong = SOURCES["numpy_fnn.py"].replace(right, "return grad_y")
    (tmp_path / "numpy_fnn.py").write_text(wrong, encoding="utf-8")
    (command,) = re.findall(r"python (-m tests\.check.*)", "".join(blocks(README, "sh")))
    run = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    blank = re.compile(r"\d\.\de-\d\d|0\.0e\+00")  # the rounding errors depend on the CPU
    shown = blocks(README, "text")[1]
    assert blank.sub("", run.stdout).split() == blank.sub("", shown).split()


def test_program_of_the_readme_does_what_the_command_does(data_dir: Path) -> None:
    (program,) = blocks(README, "python")
    outputs = []
    for arguments in ([str(ROOT / "numpy_mnist.py")], ["-c", program]):
        run = subprocess.run(
            [sys.executable, *arguments],
            cwd=data_dir.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        (data_dir.parent / "loss.png").unlink()
        outputs.append(run.stdout)
    accuracies = [re.findall(r"^\[\d\] Accuracy.*", output, re.MULTILINE) for output in outputs]
    assert len(accuracies[0]) == 3
    assert accuracies[1] == accuracies[0]
    probabilities = re.findall(r"\d\.\d*", outputs[1].splitlines()[-1])
    assert len(probabilities) == 10
    assert sum(map(float, probabilities)) == pytest.approx(1, abs=0.01)
