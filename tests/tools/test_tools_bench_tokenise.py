"""The bench of making tokens ahead: both sides tokenise the same texts."""

from pathlib import Path

import pytest

from tools.bench import tokenise


def test_both_sides_make_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tokenise, "ROWS_AT_ONCE", 24)
    monkeypatch.setattr(tokenise, "NUM_WORDS", 2000)
    found = tokenise.measure(tmp_path, 1, None, 2)
    assert found["rows"] % 24 == 0
    assert found["file_bytes"] >= 1_000_000
    assert found["tokens"] == found["alone_tokens"] > found["rows"] * tokenise.WORDS
    assert found["ahead_over_alone"] == found["ahead_seconds"] / found["alone_seconds"]
    assert found["peak_anonymous_bytes"] > 1 << 20
    tokenise.show(found)
    assert "largest process" in capsys.readouterr().out
