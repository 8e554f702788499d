"""The report: what it quotes is what the code says, and one command refreshes the rest."""

import re
from pathlib import Path

import numpy as np
import pytest

import numpy_fnn
from docs import experiments
from numpy_fnn import NumpyModel

CODE = Path(numpy_fnn.__file__).read_text(encoding="utf-8")
REPORT = experiments.REPORT.read_text(encoding="utf-8")


def test_quoted_code_is_the_code() -> None:
    quotes = re.findall(r"```python\n(.*?)```", REPORT, re.DOTALL)
    lines = [line.strip() for line in CODE.splitlines()]
    assert len(quotes) >= 13
    for quote in quotes:
        wanted = [line.strip() for line in quote.splitlines()]
        assert any(lines[i : i + len(wanted)] == wanted for i in range(len(lines))), quote


def test_every_formula_that_the_code_cites_is_in_the_report() -> None:
    cited = set(re.findall(r"\((\d\.\d)\)", CODE))
    assert cited >= {"1.1", "1.4", "1.5", "2.1", "2.4", "3.1", "3.4", "4.1", "4.3", "5.1", "5.2"}
    assert cited <= set(re.findall(r"\\tag\{(\d\.\d)\}", REPORT))


def test_every_picture_of_the_report_is_there_and_shown() -> None:
    shown = set(re.findall(r"\(figures/([^)]+)\)", REPORT))
    assert shown | {"loss.png"} == {path.name for path in experiments.FIGURES.iterdir()}


def test_one_command_refreshes_tables_and_figures(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "REPORT", tmp_path / "report.md")
    monkeypatch.setattr(experiments, "FIGURES", tmp_path / "figures")
    for number, experiment in experiments.EXPERIMENTS.items():
        monkeypatch.setitem(experiments.EXPERIMENTS, number, experiment._replace(original=experiment.original[:4]))
    marks = re.sub(r"(<!-- begin [^>]*-->\n).*?(<!-- end)", r"\1\2", REPORT, flags=re.DOTALL)
    assert "Accuracy" not in marks
    (tmp_path / "report.md").write_text(marks, encoding="utf-8")
    for _ in range(2):  # a refresh of a refreshed report replaces what was there
        experiments.main(["--data-dir", str(data_dir), "--seeds", "2"])
        text = (tmp_path / "report.md").read_text(encoding="utf-8")
        assert text.count("[0] Accuracy: 0.") == 4
        assert text.count("\n[3] Accuracy: 0.") == text.count(": 4 epochs, ") == 3
        assert text.count("<!-- begin") == text.count("<!-- end") == 6
        assert len(re.findall(r"It (holds|holds partly|does not hold)\.\*\*", text)) == 5
        assert "runs with the unstable forms" in text
    names = {"comparison.png", "mistakes.png", *(f"experiment_{number}.png" for number in (1, 2, 3, 4))}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == names


def test_a_figure_is_positive_where_its_mean_is_two_standard_errors_above_0() -> None:
    assert experiments.positive("", np.array([1.0, 2.0, 3.0])).as_concluded
    assert not experiments.positive("", np.array([-1.0, 0.0, 4.0])).as_concluded
    assert not experiments.positive("", np.array([-1.0, -2.0, -3.0])).as_concluded


def test_first_below_counts_steps_epochs_and_seconds() -> None:
    losses = np.repeat([[1.0, 0.0]], 200, axis=1).reshape(1, 400)
    result = experiments.Result(losses, np.ones((1, 4)), np.full((1, 4), 0.5), "", NumpyModel())
    steps, epochs, seconds = experiments.first_below(result, 0.5)
    assert steps[0] == pytest.approx(200, abs=1)
    assert epochs[0] == pytest.approx(2, abs=0.01)
    assert seconds[0] == pytest.approx(1, abs=0.01)
    assert experiments.first_below(result, -1)[0][0] == 400


def test_fluctuation_is_the_deviation_around_the_moving_average() -> None:
    steps = np.arange(400)
    noise = np.where(steps % 2, 0.1, -0.1)
    losses = (3 - steps / 400 + noise)[None]
    assert experiments.fluctuation(losses, 1, 2)[0] == pytest.approx(0.1, rel=1e-2)
    assert experiments.epoch_loss(losses, 1, 2)[0] == pytest.approx(2.25, rel=1e-2)
