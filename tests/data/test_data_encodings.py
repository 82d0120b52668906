"""Files as spreadsheets and other systems write them: encodings, delimiters, suffixes, numbers."""

import codecs
import gzip
import json
from pathlib import Path

import pytest

from tests.data.test_data_formats import caches as caches  # a fixture: caches of each test alone
from tests.data.test_data_formats import records_of, write_as
from trainer.data.records import StsRecord
from trainer.data.sources import open_source
from trainer.errors import DataError
from trainer.recipe.schema import SourceRecipe

ROWS = [
    {"text1": "a, b\u00fc", "text2": "c\n\u6f22", "score": 0.5},
    {"text1": "d", "text2": "e", "score": 1},
]
RECORDS = [
    StsRecord(text1="a, b\u00fc", text2="c\n\u6f22", score=0.5),
    StsRecord(text1="d", text2="e", score=1.0),
]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-8"])
def test_a_byte_order_mark_says_the_encoding(tmp_path: Path, kind: str, encoding: str) -> None:
    path = write_as(kind, tmp_path, ROWS)
    text = path.read_bytes().decode()
    path.write_bytes(("\ufeff" + text).encode(encoding))
    assert records_of(path, "sts") == RECORDS


def test_utf_16_without_a_mark_and_cut_off_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text1,text2,score\na,b,1\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"a\.csv: content = zero bytes.*iconv -f UTF-16LE"):
        records_of(tmp_path / "a.csv", "sts")
    (tmp_path / "b.csv").write_bytes(codecs.BOM_UTF16_LE + b"a\0b")
    with pytest.raises(DataError, match=r"b\.csv: content = .*; expected whole UTF-16"):
        records_of(tmp_path / "b.csv", "sts")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_the_header_says_the_delimiter_of_a_csv(tmp_path: Path, delimiter: str) -> None:
    lines = ["text1,text2,score", '"a, bü","c\n漢",0.5', "d,e,1"]
    body = "\n".join(lines).replace('",', f'"{delimiter}').replace("1,t", f"1{delimiter}t")
    body = body.replace("2,s", f"2{delimiter}s").replace("d,e,1", delimiter.join("de1"))
    (tmp_path / "a.csv").write_text(body + "\n", encoding="utf-8")
    assert records_of(tmp_path / "a.csv", "sts") == RECORDS


def test_a_decimal_comma_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text1;text2;score\na;b;1\nc;d;4,5\n")
    with pytest.raises(
        DataError, match=r'a\.csv:3: score = "4,5"; expected .* point, such as 4\.5'
    ):
        records_of(tmp_path / "a.csv", "sts")


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".json"])
def test_suffixes_may_be_in_capitals(tmp_path: Path, kind: str) -> None:
    path = write_as(kind, tmp_path, ROWS)
    for name in (f"x{kind.upper()}", f"y{kind.title()}"):
        path = path.rename(tmp_path / name)
        assert records_of(path, "sts") == RECORDS
    packed = tmp_path / f"z{kind.upper()}.GZ"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert records_of(packed, "sts") == RECORDS


def test_a_folder_holds_files_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    write_as(".jsonl", tmp_path, ROWS).rename(tmp_path / "a.JSONL")
    write_as(".jsonl", tmp_path, ROWS).rename(tmp_path / "b.jsonl")
    assert records_of(tmp_path, "sts") == RECORDS * 2


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
@pytest.mark.parametrize("text", ["0.5", " 0.5 ", "5e-1", "+.5", "0.50"])
def test_numbers_may_be_written_as_texts(tmp_path: Path, kind: str, text: str) -> None:
    rows = [{**row, "score": str(row["score"])} for row in ROWS]
    path = write_as(kind, tmp_path, [{**rows[0], "score": text}, rows[1]])
    assert records_of(path, "sts") == RECORDS


@pytest.mark.parametrize(
    "text", ["", "high", "1_0", "0x1", "\uff15", "1e", "5 of 5", "9" * 99999 + "x"]
)
def test_texts_that_are_no_numbers_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({**ROWS[0], "score": text}))
    with pytest.raises(DataError, match=r"a\.jsonl:1: score = .*; expected a number"):
        open_source(SourceRecipe(name="x", task="sts", path=str(tmp_path / "a.jsonl")), ".")
