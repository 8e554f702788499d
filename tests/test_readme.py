"""README and its Chinese translation: their commands, links and snippet."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "docs" / "README.zh.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_commands_in_chinese_are_those_of_the_readme() -> None:
    commands = "".join(blocks(CHINESE, "sh")).splitlines()
    assert len(commands) >= 10
    for command in commands:
        assert command in README
    assert blocks(CHINESE, "text") == blocks(README, "text")[:1]


def test_links_lead_somewhere() -> None:
    for folder, text in ((ROOT, README), (ROOT / "docs", CHINESE)):
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
        assert len(links) >= 1
        for link in links:
            assert (folder / link).exists(), link


def test_readme_is_finished_and_short() -> None:
    assert not re.findall(r"@[A-Z]+@", README)
    assert README.count("\n") <= 110
    for name in re.findall(r"`((?:docs|tests|\.ci)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name


def test_snippet_trains_plots_and_prints_ten_probabilities(data_dir: Path) -> None:
    (snippet,) = blocks(README, "python")
    assert snippet.count("\n") <= 8
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{snippet}"]
    run = subprocess.run(command, cwd=data_dir.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    probabilities = re.findall(r"\d\.\d*", run.stdout.splitlines()[-1])
    assert len(probabilities) == 10
    assert abs(sum(map(float, probabilities)) - 1) < 0.01
    assert (data_dir.parent / "loss.png").exists()
