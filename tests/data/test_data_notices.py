"""What rows ask for that will not happen is logged; blank negatives are refused or left out."""

from pathlib import Path
from typing import Any

import pytest

from tests.data.test_data_peers import chat
from tests.support.data_files import all_records, ir_source, write_beir, write_jsonl, write_qrels
from trainer.data.records import IrRecord
from trainer.data.sources import open_source
from trainer.errors import DataError

FLAG: dict[str, Any] = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}


@pytest.mark.parametrize("kind", ["symmetric_sts", "symmetric_clustering"])
def test_a_symmetric_type_wants_one_instruction_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**FLAG, "type": kind, "prompt": "same: "}])
    open_source(ir_source(path, query_instruction="same: "), ".")
    assert caplog.text.count(f"rows have type {kind}") == 1
    caplog.clear()
    both = ir_source(path, query_instruction="same: ", passage_instruction="same: ")
    open_source(both, ".")
    assert not caplog.text


@pytest.mark.parametrize(
    "name", ["x_no_in_batch_neg.jsonl", "clusters-no_in_batch_neg/x.jsonl", "x_no_in_batch_neg"]
)
def test_in_batch_negatives_that_the_name_of_one_of_several_files_forbids_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    row = {**FLAG, "type": "symmetric_class"}
    path = tmp_path / name
    write_jsonl(path if path.suffix else path / "part.jsonl", [row, row])
    open_source(ir_source(path), ".")
    assert not caplog.text
    # the name of the file is not in the path of the source
    found = "*.jsonl" if name.count(".") and "/" not in name else "*/*.jsonl"
    open_source(ir_source(tmp_path / found), ".")
    assert caplog.text.count("no_in_batch_neg and path does not") == 1
    assert "set data.sources.set.in_batch=false" in caplog.text
    caplog.clear()
    open_source(ir_source(path, in_batch=False), ".")
    assert not caplog.text


def test_plain_rows_and_names_are_not_remarked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**FLAG, "type": "normal"}])
    open_source(ir_source(path), ".")
    assert not caplog.text


def test_instructions_of_passages_are_compared_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"query": ["find", "q"], "pos": [["read", "p"]]}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    open_source(ir_source(path, query_instruction="find"), ".")
    assert 'carry the instruction "read", which is not used; set passage_instr' in caplog.text
    assert '"find"' not in caplog.text
    row = {"messages": chat("q", "find"), "positive_messages": [chat("p")]}
    open_source(ir_source(write_jsonl(tmp_path / "b.jsonl", [row])), ".")
    assert 'carry the instruction "find", which is not used; set query_instruction' in caplog.text


BLANK: dict[str, tuple[dict[str, Any], str]] = {
    "records": ({"query": "q", "positives": ["p"], "negatives": ["n", " "]}, r"negatives\[1\]"),
    "null": ({"query": "q", "positives": ["p"], "negatives": [None, "n"]}, r"negatives\[0\]"),
    "flag": ({"query": "q", "pos": ["p"], "neg": ["", "n"]}, r"neg\[0\]"),
    "columns": (
        {"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": ""},
        "negative_2",
    ),
    "release": (
        {
            "task_type": "ir",
            "query": ["", "", "q"],
            "positives": [["", "", "p"]],
            "negatives": [["", "", ""], ["", "", "n"]],
        },
        r"negatives\[0\]\[2\]",
    ),
    "tevatron": (
        {
            "query": "q",
            "positive_passages": [{"text": "p"}],
            "negative_passages": [{"text": "n"}, {"title": "t", "text": None}],
        },
        r"negative_passages\[1\]\.text",
    ),
    "gritlm": ({"query": ["", "q"], "pos": [["", "p"]], "neg": [["", ""], ["", "n"]]}, r"neg\[0\]"),
    "swift": (
        {
            "messages": chat("q"),
            "positive_messages": [chat("p")],
            "negative_messages": [chat(" "), chat("n")],
        },
        r"negative_messages\[0\]\.content",
    ),
}


@pytest.mark.parametrize(("row", "field"), BLANK.values(), ids=BLANK)
def test_a_blank_negative_is_named_or_left_out_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any], field: str
) -> None:
    recipe = ir_source(write_jsonl(tmp_path / "a.jsonl", [row]))
    with pytest.raises(DataError, match=rf"a\.jsonl:1: {field}.*leave such negatives out with"):
        open_source(recipe, ".")
    source = open_source(recipe, ".", skip=True)
    assert source.record(0) == IrRecord(query="q", positives=("p",), negatives=("n",))
    assert "1 blank negatives left out" in source.describe
    assert "left out" in caplog.text
    assert "skipped" not in caplog.text


def test_a_negative_that_is_no_text_still_takes_its_row(tmp_path: Path) -> None:
    rows = [{"query": f"q{n}", "positives": ["p"], "negatives": ["n", "m"]} for n in range(100)]
    rows[7] = {"query": "x", "positives": ["p"], "negatives": [3]}
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert len(open_source(ir_source(path), ".", skip=True)) == 99


def test_a_blank_positive_still_takes_its_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "q", "positives": ["p", ""]}])
    with pytest.raises(DataError, match=r"leave such rows out"):
        open_source(ir_source(path), ".")
    with pytest.raises(DataError, match=r"malformed rows = 1 of 1"):
        open_source(ir_source(path), ".", skip=True)


def test_a_mined_document_without_text_is_named_or_left_out(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "b", corpus={"d": "p", "e": " ", "f": "n"}, queries={"q": "q"})
    write_qrels(folder, "train", [("q", "d", 1)])
    mined = [{"query_id": "q", "negatives": ["e", "f"]}]
    write_jsonl(folder / "hard_negatives.train.jsonl", mined)
    with pytest.raises(DataError, match=r'jsonl:1: negatives\[0\] = "e"; expected a document with'):
        all_records(ir_source(folder))
    source = open_source(ir_source(folder), ".", skip=True)
    assert source.record(0) == IrRecord(query="q", positives=("p",), negatives=("n",))
