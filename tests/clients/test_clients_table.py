"""The matrix of clients: its rows are complete, and the table says what was found."""

from pathlib import Path

import pytest

from clients.families import FAMILIES
from clients.forms import FORMS, Form
from clients.table import BEGIN, END, Cell, grouped, table_of, write_table
from tests.support.pages import ROOT

EQUAL = Cell("equal", 0.99999987, None)


def form(weights: str = "full", pooling: str = "last") -> Form:
    return next(
        one
        for one in FORMS
        if (one.family, one.attention, one.weights, one.pooling)
        == ("Qwen3", "causal", weights, pooling)
    )


def test_every_family_is_there_in_every_form() -> None:
    decoders = [name for name, family in FAMILIES.items() if family.is_decoder]
    assert len(FORMS) == len({one.name for one in FORMS})
    assert len(FORMS) == len(decoders) * 2 * 2 * 3 + (len(FAMILIES) - len(decoders)) * 2 * 3
    for one in FORMS:
        assert FAMILIES[one.family].is_decoder or one.attention == "bidirectional"


def test_forms_that_are_read_alike_share_a_row_with_the_least_cosine() -> None:
    rows = {
        form(): [EQUAL],
        form("merged"): [Cell("equal", 0.9999995, None)],
        form("adapter"): [Cell("refused", None, "No adapters.")],
    }
    assert grouped(rows) == [
        ([form(), form("merged")], [Cell("equal", 0.9999995, None)]),
        ([form("adapter")], [Cell("refused", None, "No adapters.")]),
    ]


def test_a_row_has_all_pairs_that_it_names() -> None:
    refused = Cell("refused", None, "A reason.")
    rows = {
        form("full", "last"): [EQUAL],
        form("full", "mean"): [EQUAL],
        form("merged", "last"): [EQUAL],
        form("merged", "mean"): [refused],
    }
    named = [[one.name for one in forms] for forms, _ in grouped(rows)]
    assert named == [
        [form("full", "last").name, form("full", "mean").name],
        [form("merged", "last").name],
        [form("merged", "mean").name],
    ]


def test_cosines_are_cut_and_reasons_told_once() -> None:
    refused = Cell("refused", None, "It has no such class.")
    rows = {form(): [EQUAL, refused], form("merged"): [refused, EQUAL]}
    text = table_of(["one 1.0", "two 2.0"], rows)
    assert "| Qwen3 | causal | last | full | 0.999999 | refused (1) |\n" in text
    assert "| Qwen3 | causal | last | merged | refused (1) | 0.999999 |\n" in text
    assert text.endswith("\n\n1. It has no such class.\n")


def test_a_difference_is_never_shown_as_a_cosine() -> None:
    rows = {form(): [Cell("different", 0.99995, "Another end token.")]}
    assert "| different (1) |" in table_of(["one"], rows)


def test_table_is_put_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_table(page, "new\n")
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="expected the marks"):
        write_table(page, "new\n")


def test_page_on_serving_has_a_place_for_the_table() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


def test_page_on_serving_holds_the_whole_matrix() -> None:
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    table = text.partition(BEGIN)[2].partition(END)[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    shown = [
        (row[0].removeprefix("| "), row[1], pooling, weights)
        for row in rows[1:]
        for pooling in row[2].split(", ")
        for weights in row[3].split(", ")
    ]
    wanted = [(one.family, one.attention, one.pooling, one.weights) for one in FORMS]
    assert sorted(shown) == sorted(wanted)
    assert {len(row) for row in rows} == {4 + 8}
    assert "different (" not in table
