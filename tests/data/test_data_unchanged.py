"""Data files are those that were checked, for as long as a run reads them."""

import os
from pathlib import Path

import pytest

from tests.support.data_files import (
    GOOD_IR,
    ir_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from trainer.data.sources import Source, open_source
from trainer.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "x.jsonl", [GOOD_IR | {"query": f"q{n}"} for n in range(9)])


@pytest.fixture
def source(path: Path) -> Source:
    return open_source(ir_source(path), ".")


def test_untouched_and_touched_files_pass(path: Path, source: Source) -> None:
    source.check_files()
    os.utime(path, ns=(1, 1))
    source.check_files()
    source.check_files()


def test_removed_file_is_named(path: Path, source: Source) -> None:
    path.unlink()
    with pytest.raises(DataError, match=r"x\.jsonl: content = No such file or directory; expected"):
        source.check_files()


def test_longer_file_is_named(path: Path, source: Source) -> None:
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match=r"x\.jsonl: content = \d+ bytes, \d+ when the run began"):
        source.check_files()


def test_other_content_of_the_same_size_is_named(path: Path, source: Source) -> None:
    path.write_text(path.read_text().replace("q3", "q7"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match=r"x\.jsonl: content = another content than when"):
        source.check_files()


def test_row_beyond_the_end_of_a_cut_file_is_an_error_not_a_crash(
    path: Path, source: Source
) -> None:
    assert source.record(8)
    os.truncate(path, 10)
    with pytest.raises(DataError, match="file = 10 bytes; expected"):
        source.record(8)


def test_corpus_of_a_beir_folder_is_watched(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "beir", corpus={"d1": "text"}, queries={"q1": "query"})
    write_qrels(folder, "train", [("q1", "d1", 1)])
    source = open_source(ir_source(folder), ".")
    source.check_files()
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"corpus\.jsonl: content = No such file"):
        source.check_files()
