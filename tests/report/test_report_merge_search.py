"""The page on a search over merges."""

import json
from pathlib import Path

import pytest

from trainer.errors import DataError
from trainer.report.merge_search import front, write_search_page

RECORD = {
    "base": "models/base",
    "checkpoints": ["runs/a", "runs/<b>"],
    "kinds": {"docs": "ir", "pairs": "sts"},
    "best": "uniform",
    "tried": [
        {"name": "base", "value": 0.3, "seconds": 4.2,
         "sets": {"docs": {"ndcg_at_10": 0.1}, "pairs": {"spearman": 0.5}}},
        {"name": "uniform", "value": 0.6, "seconds": 5.0,
         "sets": {"docs": {"ndcg_at_10": 0.5}, "pairs": {"spearman": 0.7}}},
        {"name": "slerp", "value": None, "seconds": 5.0,
         "sets": {"docs": {"ndcg_at_10": 0.6}, "pairs": {"spearman": None}}},
    ],
}  # fmt: skip


def test_the_page_shows_every_candidate_best_first(tmp_path: Path) -> None:
    (tmp_path / "search.json").write_text(json.dumps(RECORD))
    text = write_search_page(tmp_path).read_text()
    assert text.index('<td class="left">uniform') < text.index('<td class="left">base')
    assert "not defined" in text
    assert "<b>uniform</b>, the best of 3" in text
    assert "runs/&lt;b&gt;" in text
    assert "sts against ir: uniform" in text


def test_one_kind_has_no_trade_off(tmp_path: Path) -> None:
    one = {**RECORD, "kinds": {"docs": "ir"}}
    (tmp_path / "search.json").write_text(json.dumps(one))
    assert "<svg" not in write_search_page(tmp_path).read_text()


@pytest.mark.parametrize("content", ["", "{}", "[1]"])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "search.json").write_text(content)
    with pytest.raises(DataError, match=r"search\.json: content = unreadable"):
        write_search_page(tmp_path)


def test_the_front_is_of_those_that_no_other_beats() -> None:
    points = {"a": (0.1, 0.9), "b": (0.5, 0.5), "c": (0.4, 0.4), "d": (0.5, 0.2), "e": (0.5, 0.5)}
    assert front(points) == ["a", "b", "e"]
