"""Tab-separated files: one row a line with plain quotes, or quoted as CSV is; no row is lost."""

from pathlib import Path

import pytest

from trainer.data.records import StsRecord
from trainer.data.sources import open_source
from trainer.errors import DataError
from trainer.recipe.schema import SourceRecipe

HEADER = "sentence1\tsentence2\tscore\n"
PLAIN = "".join(f"Row {n} here.\tRow {n}.\t{n % 6}\n" for n in range(8))


def texts_of(path: Path, body: str, *, skip: bool = False) -> list[tuple[str, str]]:
    """Both texts of each record of a file with a header."""
    path.write_text(HEADER + body, encoding="utf-8", newline="")
    source = open_source(SourceRecipe(name="set", task="sts", path=str(path)), ".", skip=skip)
    records = [source.record(row) for row in range(len(source))]
    return [(one.text1, one.text2) for one in records if isinstance(one, StsRecord)]


def test_quotes_that_would_join_two_rows_are_plain_characters(tmp_path: Path) -> None:
    body = '"Never again, she said\tShe refused\t4.0\nHe called it a win"\tHe won\t0.5\n'
    assert texts_of(tmp_path / "a.tsv", PLAIN + body)[8:] == [
        ('"Never again, she said', "She refused"),
        ('He called it a win"', "He won"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        '"Never again," she said.',
        'She said "never again".',
        '"',
        'Two "" of them',
        '"Odd" and "odd"',
        '12" vinyl',
    ],
)
def test_unescaped_quotes_stay_in_the_text(tmp_path: Path, text: str) -> None:
    body = f"{text}\tShe refused.\t4.0\nThe dog ran.\t{text}\t4.0\n"
    found = texts_of(tmp_path / "a.tsv", PLAIN + body)
    assert found[8:] == [(text, "She refused."), ("The dog ran.", text)]
    assert len(found) == 10


def test_an_unclosed_quote_swallows_nothing(tmp_path: Path) -> None:
    found = texts_of(tmp_path / "a.tsv", '"Never again\tShe refused.\t4.0\n' + PLAIN)
    assert len(found) == 9
    assert found[0] == ('"Never again', "She refused.")


def test_one_lone_quote_far_down_decides_for_the_whole_file(tmp_path: Path) -> None:
    quoted = '"Whole field."\tRow.\t1\n'
    assert texts_of(tmp_path / "a.tsv", quoted + PLAIN)[0] == ("Whole field.", "Row.")
    late = quoted + PLAIN * 50 + 'A 5" nail\tNail\t2\n'
    assert texts_of(tmp_path / "b.tsv", late)[0] == ('"Whole field."', "Row.")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_fields_quoted_as_csv_may_hold_tabs_and_line_breaks(tmp_path: Path, end: str) -> None:
    body = f'"a\tb"\t"c ""d"" e"\t1{end}"first{end}second"\tf\t"2"{end}g\t"h{end}{end}i"\t3{end}'
    assert texts_of(tmp_path / "a.tsv", body) == [
        ("a\tb", 'c "d" e'),
        (f"first{end}second", "f"),
        ("g", f"h{end}{end}i"),
    ]


def test_a_quoted_last_column_may_hold_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('score\ttext1\ttext2\n1\ta\t"b\nc\nd"\n2\te\tf\n')
    source = open_source(SourceRecipe(name="x", task="sts", path=str(tmp_path / "a.tsv")), ".")
    assert len(source) == 2
    assert source.record(0) == StsRecord(text1="a", text2="b\nc\nd", score=0.2)


def test_lines_that_are_one_row_or_two_are_refused(tmp_path: Path) -> None:
    body = '"a\tb"\tc\t1\n"Never again\tShe refused\t4.0\nHe called it a win"\tHe won\t0.5\n'
    with pytest.raises(DataError, match=r"a\.tsv: lines 3 to 4 = .*; expected lines that are eith"):
        texts_of(tmp_path / "a.tsv", body)


def test_lines_of_another_length_are_named_and_never_joined(tmp_path: Path) -> None:
    body = PLAIN + '"Never again\tShe refused.\nHe said "no"\tHe won\t0.5\n'
    with pytest.raises(DataError, match=r"a\.tsv:10: row = 2 fields; expected 3: sentence1, .*one"):
        texts_of(tmp_path / "a.tsv", body)
    many = texts_of(tmp_path / "a.tsv", PLAIN * 20 + body, skip=True)
    assert many[168:] == [('He said "no"', "He won")]


def test_quoted_files_keep_their_malformed_rows_apart(tmp_path: Path) -> None:
    body = PLAIN * 20 + '"a\nb"\tc\t1\n"a\nb"\tc\n"d\ne"\tf\t2\n'
    with pytest.raises(DataError, match=r"a\.tsv:164: row = 2 fields; expected 3: sentence1"):
        texts_of(tmp_path / "a.tsv", body)
    assert texts_of(tmp_path / "a.tsv", body, skip=True)[160:] == [("a\nb", "c"), ("d\ne", "f")]


def test_mrpc_and_qqp_are_read_as_they_are_published(tmp_path: Path) -> None:
    mrpc = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    (tmp_path / "mrpc.txt.tsv").write_text(
        mrpc + '1\t7\t8\tHe said "no\tHe refused\n0\t7\t8\ta\tb\n'
    )
    qqp = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    (tmp_path / "qqp.tsv").write_text(qqp + '0\t1\t2\t"Why"?\tWhy?\t1\n1\t3\t4\ta\tb\t0\n')
    for name, first in (("mrpc.txt.tsv", 'He said "no'), ("qqp.tsv", '"Why"?')):
        source = open_source(SourceRecipe(name="x", task="sts", path=str(tmp_path / name)), ".")
        record = source.record(0)
        assert isinstance(record, StsRecord)
        assert (len(source), record.text1, record.score) == (2, first, 1.0)


def test_carriage_returns_alone_are_no_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text1\ttext2\tscore\ra\tb\t1\r", newline="")
    with pytest.raises(DataError, match=r"a\.tsv:1: header = .*; expected a line break"):
        open_source(SourceRecipe(name="x", task="sts", path=str(tmp_path / "a.tsv")), ".")
