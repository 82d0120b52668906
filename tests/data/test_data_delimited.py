"""Quotes in comma-separated files: texts may hold line breaks, and no row is lost in another."""

import csv
import random
from pathlib import Path

import pytest

from trainer.data.records import IrRecord
from trainer.data.sources import open_source
from trainer.errors import DataError
from trainer.recipe.schema import SourceRecipe

HEADER = "anchor,positive\n"
SWALLOWED = {
    "two": ('q0,p0\n"Never again,p1\nHe said no",p2\nq3,p3\n', "3 to 4"),
    "four": ('q0,p0\nq1,"p1\nq2,p2\nq3,p3\nq4,p4"\nq5,p5\n', "3 to 6"),
    "a blank line among them": ('q1,"p1\n\nq2,p2"\n', "2 to 4"),
    "in the first and the last row": ('"q0,p0\nq1,p1"\nq2,p2\n', "2 to 3"),
    "no end": ('q0,p0\n"Never again,p1\nq2,p2\nq3,p3\n', "3 to 5"),
    "an end within a text": ('q0,p0\n"Never again,p1\n"No", he said\nq3,p3\n', "3 to 4"),
    "one line malformed": (
        'q0,"p0\n' + "q,p\n" * 10 + "Yes, he said, and left\n" + "q,p\n" * 10 + 'q9,p9"\n',
        "2 to 24",
    ),
}


def texts_of(path: Path, text: str, *, skip: bool = False) -> list[tuple[str, ...]]:
    """Query and positives of each record."""
    path.write_text(text, encoding="utf-8", newline="")
    source = open_source(SourceRecipe(name="set", task="ir", path=str(path)), ".", skip=skip)
    records = [source.record(row) for row in range(len(source))]
    return [(one.query, *one.positives) for one in records if isinstance(one, IrRecord)]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("delimiter", [",", ";", "|"])
@pytest.mark.parametrize(("body", "lines"), SWALLOWED.values(), ids=SWALLOWED)
def test_lone_quotes_swallow_no_rows(
    tmp_path: Path, body: str, lines: str, delimiter: str, skip: bool
) -> None:
    text = (HEADER + body).replace(",", delimiter)
    message = rf"a\.csv: lines {lines} = .*; expected lines that are either one row .*\.jsonl, or"
    with pytest.raises(DataError, match=message):
        texts_of(tmp_path / "a.csv", text, skip=skip)
    with pytest.raises(DataError, match=message):
        texts_of(tmp_path / "a.csv", text.replace("\n", "\r\n"), skip=skip)


def test_a_quote_without_an_end_is_refused_in_quoted_files_too(tmp_path: Path) -> None:
    body = '"a, b",c\n' * 200 + '"Never again,p1\nq2,p2\n'
    with pytest.raises(DataError, match=r"a\.csv: lines 202 to 203 = "):
        texts_of(tmp_path / "a.csv", HEADER + body, skip=True)


QUOTED = {
    "line breaks": 'q0,"first\nsecond"\n',
    "line breaks and delimiters": 'q0,"First, this.\nThen, that."\nq1,"a, b"\n',
    "lines of which most are full rows": 'q0,"x\ny\nz,w"\n',
    "full rows beside a quoted delimiter": '"Oh, no",p\nq1,"p1\nq2,p2"\n',
    "full rows beside a line that is none": 'q1,"p1\nq2,p2"\nq3,"one\ntwo"\n',
    "all quoted": '"q0","a ""b""\n\nc"\n"q1","d"\n',
}


@pytest.mark.parametrize("body", QUOTED.values(), ids=QUOTED)
def test_quoted_texts_keep_their_line_breaks(tmp_path: Path, body: str) -> None:
    expected = list(csv.reader(body.splitlines(keepends=True)))
    assert texts_of(tmp_path / "a.csv", HEADER + body) == list(map(tuple, expected))


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_python_writes_is_read_back(tmp_path: Path, quoting: int) -> None:
    draw = random.Random(0)
    signs = ["word", "a, b", "\n", '"', "two\nlines", ";", "|", "\r\n"]
    rows = [[f"{n} {' '.join(draw.choices(signs, k=6))} end" for _ in range(2)] for n in range(300)]
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=quoting).writerows([["anchor", "positive"], *rows])  # type: ignore[arg-type]
    assert texts_of(path, path.read_bytes().decode()) == list(map(tuple, rows))
