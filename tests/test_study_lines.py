"""The results of the study at the end of a demo in a terminal."""

from __future__ import annotations

from pathlib import Path

from runner.report import Report, read_report
from tui.study_lines import study_lines

ROOT = Path(__file__).parent.parent


def test_the_results_fit_eighty_columns_and_say_every_stage_delta_and_the_end() -> None:
    lines = study_lines(read_report([ROOT / "runs" / "sample"]))
    assert all(len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    for words in ("stage1", "stage2", "stage4", "non_prefill", "damage", "gain", "side effect", "retention", "plateau"):
        assert words in text
    assert "not measured" not in text


def test_a_stage_that_was_not_measured_is_said_to_be_missing() -> None:
    text = "\n".join(study_lines(Report()))
    assert text.count("not measured") == 4
    assert "–  retention" in text
