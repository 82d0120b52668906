"""Files to records: every format gives the same records, every malformed row is named."""

import json
import subprocess
import sys

import pytest

from tests.support.data_files import (
    GOOD_IR,
    GOOD_STS,
    all_records,
    ir_source,
    sts_source,
    write_jsonl,
)
from trainer.data.evalsets import open_eval_set
from trainer.data.records import IrRecord, StsRecord
from trainer.data.sources import open_source
from trainer.data.sts import StsEvalSet
from trainer.errors import DataError
from trainer.recipe.schema import DataRecipe, EvalSetRecipe, SourceRecipe


def test_ir_rows_become_records(tmp_path):
    rows = [
        {"query": "q1", "positives": ["a", "b"], "negatives": ["c"]},
        {"task": "ir", "query": "q2", "positives": ["d"]},
        {"query": "q3", "positives": ["e"], "negatives": []},
        {"query": "q4 \u00fc", "positives": ["f"], "negatives": None},
    ]
    assert all_records(ir_source(write_jsonl(tmp_path / "a.jsonl", rows))) == [
        IrRecord(query="q1", positives=("a", "b"), negatives=("c",)),
        IrRecord(query="q2", positives=("d",)),
        IrRecord(query="q3", positives=("e",)),
        IrRecord(query="q4 \u00fc", positives=("f",)),
    ]


@pytest.mark.parametrize(
    ("scores", "score_range", "expected"),
    [
        ([0, 2.5, 5], None, [0, 0.5, 1]),
        ([0, 0.5, 1], None, [0, 0.5, 1]),
        ([1, 3, 5], (1, 5), [0, 0.5, 1]),
        ([0, 50, 100], (0, 100), [0, 0.5, 1]),
        ([-1, 0, 1], (-1, 1), [0, 0.5, 1]),
        ([0, 0.5, 1], (0, 5), [0, 0.1, 0.2]),
    ],
)
def test_scores_are_brought_to_one_scale(tmp_path, scores, score_range, expected):
    rows = [{"text1": "a", "text2": "b", "score": score} for score in scores]
    recipe = sts_source(write_jsonl(tmp_path / "a.jsonl", rows), score_range=score_range)
    assert all_records(recipe) == [
        StsRecord(text1="a", text2="b", score=pytest.approx(score)) for score in expected
    ]


def test_line_ends_marks_and_blank_lines_do_not_matter(tmp_path):
    path = tmp_path / "a.jsonl"
    line = json.dumps(GOOD_IR).encode()
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n   \n" + line + b"\n" + line)
    assert len(all_records(ir_source(path))) == 3
    path.write_bytes(line + b"\r\n\n{broken\n")
    with pytest.raises(DataError, match=r"a\.jsonl:3: row = "):
        open_source(ir_source(path), ".")


def test_a_json_array_gives_the_records_of_its_lines(tmp_path):
    rows = [{"query": 'a "[{\\ b', "positives": ["x]}"], "negatives": []}, GOOD_IR]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=1))
    expected = all_records(ir_source(write_jsonl(tmp_path / "b.jsonl", rows)))
    assert all_records(ir_source(path)) == expected
    path.write_text(json.dumps([*rows, {"query": "x"}], indent=1))
    with pytest.raises(DataError, match=r"a\.json:18: positives = nothing"):
        open_source(ir_source(path), ".")
    path.write_text(json.dumps(rows)[:-1])
    with pytest.raises(DataError, match=r"a\.json: file = an array that does not end"):
        open_source(ir_source(path), ".")
    path.write_text(json.dumps([GOOD_IR, 5, GOOD_IR]))
    with pytest.raises(DataError, match=r'a\.json: file = ", 5," between objects'):
        open_source(ir_source(path), ".")
    path.write_text("[ ]\n")
    with pytest.raises(DataError, match=r"a\.json: rows = 0; expected at least one row"):
        open_source(ir_source(path), ".")


def test_folders_and_globs_join_files_in_name_order(tmp_path):
    for name in ("b", "a", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"query": name, "positives": ["p"]}])
    for path in (tmp_path, tmp_path / "*.jsonl"):
        assert [record.query for record in all_records(ir_source(path))] == ["a", "b", "c"]
    source = open_source(ir_source("a.jsonl"), str(tmp_path))
    assert len(source) == 1
    write_jsonl(tmp_path / "c.jsonl", [{"query": "c"}])
    with pytest.raises(DataError, match=r"c\.jsonl:1: positives = nothing"):
        open_source(ir_source(tmp_path), ".")


SPOILED_IR = {
    "not json": ("{not json", r"row = .*; expected JSON"),
    "truncated json": (json.dumps(GOOD_IR)[:-3], r"row = .*; expected JSON"),
    "nested beyond reason": ("[" * 100_000, r"row = .*; expected JSON"),
    "not utf-8": (b'{"query": "\xff"}', r"row = .*; expected UTF-8"),
    "a list": ("[1, 2]", r"row = \[1, 2\]; expected a JSON object"),
    "a number": ("3", r"row = 3; expected a JSON object"),
    "null": ("null", r"row = null; expected a JSON object"),
    "no query": ({"positives": ["p"]}, r"query = nothing; expected a text"),
    "null query": ({**GOOD_IR, "query": None}, r"query = null; expected a text"),
    "empty query": ({**GOOD_IR, "query": ""}, r'query = ""; expected a text that is not empty'),
    "blank query": ({**GOOD_IR, "query": " \n"}, r"query = .*; expected a text that is not empty"),
    "number as query": ({**GOOD_IR, "query": 7}, r"query = 7; expected a text"),
    "list as query": ({**GOOD_IR, "query": ["q"]}, r'query = \["q"\]; expected a text'),
    "object as query": ({**GOOD_IR, "query": {"t": 1}}, r'query = \{"t": 1\}; expected a text'),
    "half a surrogate": ({**GOOD_IR, "query": "a\ud800"}, r"query = .*; expected valid Unicode"),
    "no positives": ({"query": "q"}, r"positives = nothing; expected a list"),
    "null positives": ({**GOOD_IR, "positives": None}, r"positives = null; expected a list"),
    "empty positives": ({**GOOD_IR, "positives": []}, r"positives = \[\]; expected at least one"),
    "text as positives": ({**GOOD_IR, "positives": "p"}, r'positives = "p"; expected a list'),
    "empty positive": ({**GOOD_IR, "positives": ["p", ""]}, r'positives\[1\] = ""; expected'),
    "null positive": ({**GOOD_IR, "positives": [None]}, r"positives\[0\] = null; expected a text"),
    "nested positive": ({**GOOD_IR, "positives": [["p"]]}, r"positives\[0\] = .*expected a text"),
    "text as negatives": ({**GOOD_IR, "negatives": "n"}, r'negatives = "n"; expected a list'),
    "empty negative": ({**GOOD_IR, "negatives": [" "]}, r"negatives\[0\] = .*not empty"),
    "number as negative": ({**GOOD_IR, "negatives": [1]}, r"negatives\[0\] = 1; expected a text"),
}
SPOILED_STS = {
    "no text1": ({"text2": "b", "score": 1}, r"text1 = nothing; expected a text"),
    "empty text2": ({**GOOD_STS, "text2": ""}, r'text2 = ""; expected a text that is not empty'),
    "no score": ({"text1": "a", "text2": "b"}, r"score = nothing; expected a number"),
    "null score": ({**GOOD_STS, "score": None}, r"score = null; expected a number"),
    "word as score": ({**GOOD_STS, "score": "high"}, r'score = "high"; expected a number'),
    "digits of a programmer": ({**GOOD_STS, "score": "1_0"}, r'score = "1_0"; expected a number'),
    "decimal comma": (
        {**GOOD_STS, "score": "4,5"},
        r'score = "4,5"; expected .*point, such as 4\.5',
    ),
    "nan in quotes": ({**GOOD_STS, "score": "nan"}, r"score = nan; expected a finite number"),
    "truth as score": ({**GOOD_STS, "score": True}, r"score = true; expected a number"),
    "nan score": ({**GOOD_STS, "score": float("nan")}, r"score = nan; expected a finite number"),
    "infinite score": ({**GOOD_STS, "score": float("inf")}, r"score = inf; expected a finite"),
    "score above": ({**GOOD_STS, "score": 5.5}, r"score = 5.5; expected a number from 0 to 5"),
    "score below": ({**GOOD_STS, "score": -0.1}, r"score = -0.1; expected a number from 0 to 5"),
}


def spoil(path, good: object, bad: object) -> None:
    """Two good rows, a malformed third, a good fourth."""
    line = bad if isinstance(bad, bytes) else (bad if isinstance(bad, str) else json.dumps(bad))
    fine = json.dumps(good).encode()
    malformed = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"\n".join([fine, fine, malformed, fine]) + b"\n")


@pytest.mark.parametrize(("bad", "message"), SPOILED_IR.values(), ids=SPOILED_IR)
def test_a_spoiled_ir_row_is_named(tmp_path, bad, message):
    spoil(tmp_path / "a.jsonl", GOOD_IR, bad)
    with pytest.raises(DataError, match=r"a\.jsonl:3: " + message):
        open_source(ir_source("a.jsonl"), str(tmp_path))


@pytest.mark.parametrize(("bad", "message"), SPOILED_STS.values(), ids=SPOILED_STS)
def test_a_spoiled_sts_row_is_named(tmp_path, bad, message):
    spoil(tmp_path / "a.jsonl", GOOD_STS, bad)
    with pytest.raises(DataError, match=r"a\.jsonl:3: " + message):
        open_source(sts_source("a.jsonl"), str(tmp_path))


def test_a_score_outside_the_given_range_is_named(tmp_path):
    spoil(tmp_path / "a.jsonl", GOOD_STS, {**GOOD_STS, "score": 3})
    with pytest.raises(DataError, match=r"a\.jsonl:3: score = 3; expected a number from 0 to 2"):
        open_source(sts_source("a.jsonl", score_range=(0, 2)), str(tmp_path))


def test_the_only_row_spoiled_is_named_too(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text1": "a", "text2": "b"}])
    with pytest.raises(DataError, match=r"a\.jsonl:1: columns = text1, text2; expected score \(or"):
        open_source(sts_source(path), ".")
    path.write_text("{}\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1: columns = none; expected those of a format"):
        open_source(sts_source(path), ".")
    path.write_text("{oops\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1: row = "):
        open_source(sts_source(path), ".")


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.sources\.set: path = none\.jsonl; expected a file"):
        open_source(ir_source("none.jsonl"), str(tmp_path))
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match=r"a\.jsonl: size = 0; expected at least one row"):
        open_source(ir_source("a.jsonl"), str(tmp_path))
    (tmp_path / "a.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"a\.jsonl: rows = 0; expected at least one row"):
        open_source(ir_source("a.jsonl"), str(tmp_path))
    with pytest.raises(DataError, match=r"data\.sources\.set: path = null"):
        open_source(SourceRecipe(name="set", task="ir"), ".")


def test_unknown_formats_and_columns_are_told_with_what_is_known(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"colour": "red"}])
    with pytest.raises(DataError, match=r"a\.jsonl:1: columns = colour; expected .*positives"):
        open_source(ir_source(path), ".")
    with pytest.raises(DataError, match=r"format = foo; expected one of codiemb, records, .*beir"):
        open_source(ir_source(path, format="foo"), ".")


def test_spoiled_rows_may_be_skipped_up_to_one_in_a_hundred(tmp_path, caplog):
    rows = [{"query": f"q{i}", "positives": ["p"]} for i in range(200)]
    rows[3] = rows[150] = {"query": "malformed"}
    recipe = ir_source(write_jsonl(tmp_path / "a.jsonl", rows))
    source = open_source(recipe, ".", skip=True)
    assert len(source) == 198
    assert source.record(3).query == "q4"
    assert "2 malformed rows left out" in source.describe
    assert "a.jsonl:4: positives = nothing" in caplog.text
    rows[77] = {"query": "one too many"}
    write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"malformed rows = 3 of 200; expected at most 1%.*:4: "):
        open_source(recipe, ".", skip=True)


def test_duplicates_are_counted_in_either_order(tmp_path):
    rows = [GOOD_STS, {"text1": "b", "text2": "a", "score": 0.0}, {**GOOD_STS, "text2": "c"}]
    source = open_source(sts_source(write_jsonl(tmp_path / "a.jsonl", rows)), ".")
    assert "1 repeat the texts of an earlier row" in source.describe


def test_fingerprints_follow_the_content(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD_IR])
    first = open_source(ir_source(path), ".").fingerprint
    assert open_source(ir_source(path), ".").fingerprint == first
    write_jsonl(path, [{**GOOD_IR, "query": "r"}])
    assert open_source(ir_source(path), ".").fingerprint != first


def test_sts_evaluation_is_normalised(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{**GOOD_STS, "score": 4}, {**GOOD_STS, "score": 1}])
    held_out = EvalSetRecipe(name="dev", task="sts", path="a.jsonl")
    found = open_eval_set(held_out, DataRecipe(sources=(), root=str(tmp_path)))
    assert found == StsEvalSet(text1=("a", "a"), text2=("b", "b"), score=(0.8, 0.2))


def test_checking_data_imports_nothing_heavy():
    code = (
        "import sys, trainer.data.sources, trainer.data.plan, trainer.data.collate\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
