"""settings.toml is obeyed whole or refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote.settings import SETTINGS, load_settings
from runner.errors import UsageError


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    assert settings.text("launch.python") == "python3"
    assert {key: settings[key] for key in SETTINGS} == {key: s.default for key, s in SETTINGS.items()}


def test_what_is_written_is_in_force(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('[launch]\npython = "/opt/conda/bin/python"\ngrace = 30\n')
    settings = load_settings(tmp_path)
    assert settings.text("launch.python") == "/opt/conda/bin/python"
    assert settings.number("launch.grace") == 30.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[launch]\npyton = "x"\n', ["line 2", "launch.pyton", "Did you mean 'launch.python'"]),
        ("[launch]\n\npython = 3\n", ["line 3", "text in quotes", "not 3"]),
        ("[watch]\nfront = -1\n", ["line 2", "more than 0"]),
        ("[watch]\nfront = true\n", ["a number"]),
        ('other = "x"\n', ["line 1", "'other'"]),
        ("[launch\n", ["not TOML", "line 1"]),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(UsageError) as told:
        load_settings(tmp_path)
    for word in words:
        assert word in str(told.value)
