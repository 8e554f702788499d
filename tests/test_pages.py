"""All pages: links lead somewhere, commands, options and files exist, the snippet does what the command does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils import FILES

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT, ROOT / "docs")
    for path in sorted(path.glob("*.md"))
}
README, CHINESE = PAGES["README.md"], PAGES["docs/README.zh.md"]

all_pages = pytest.mark.parametrize("name", PAGES)


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@all_pages
def test_links_lead_somewhere(name: str) -> None:
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
        path = ROOT / (script or f"{module.replace('.', '/')}.py")
        assert path.exists(), path.name
        for option in re.findall(r"--[\w-]+", options):
            assert f'"{option}"' in path.read_text(encoding="utf-8") or option == "--help", (
                f"{path.name} {option}"
            )
    sources = "".join(
        path.read_text(encoding="utf-8")
        for path in (*ROOT.glob("*.py"), *ROOT.glob("docs/*.py"), *ROOT.glob("tests/*.py"))
    )
    for option in re.findall(r"`(--[\w-]+)", text):
        assert f'"{option}"' in sources or option in ("--help", "--extra-index-url"), option
    for path in re.findall(r"`((?:docs|tests|\.ci)/\w[\w./]*|\w+\.py)`", text):
        assert (ROOT / path).exists() or path in ("photograph.py", "my_digit.py"), path
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in sources, test


def test_commands_in_chinese_are_those_of_the_readme() -> None:
    assert blocks(CHINESE, "sh") == blocks(README, "sh")
    assert blocks(CHINESE, "text") == blocks(README, "text")[:1]
    for file in FILES:
        assert f"`{file}`" in CHINESE


def test_readme_is_finished_and_short() -> None:
    assert not re.findall(r"@[A-Z]+@", README)
    assert README.count("\n") <= 110


def test_snippet_prints_the_accuracies_of_the_command_and_ten_probabilities(data_dir: Path) -> None:
    (snippet,) = blocks(README, "python")
    assert snippet.count("\n") <= 8
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    outputs = []
    for arguments in ([str(ROOT / "numpy_mnist.py")], ["-c", snippet]):
        command = [sys.executable, *arguments]
        run = subprocess.run(
            command,
            cwd=data_dir.parent,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert (data_dir.parent / "loss.png").exists()
        (data_dir.parent / "loss.png").unlink()
        outputs.append(run.stdout)
    accuracies = [re.findall(r"^\[\d\] Accuracy.*", output, re.MULTILINE) for output in outputs]
    assert len(accuracies[0]) == 3
    assert accuracies[1] == accuracies[0]
    probabilities = re.findall(r"\d\.\d*", outputs[1].splitlines()[-1])
    assert len(probabilities) == 10
    assert abs(sum(map(float, probabilities)) - 1) < 0.01
