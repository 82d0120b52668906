"""Rows that were added to a source are told from rows that are others."""

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.data_files import (
    GOOD_IR,
    all_records,
    ir_source,
    sts_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from trainer.data.growth import (
    JOINED_OTHERS,
    OTHERS,
    FileState,
    SourceState,
    added_rows,
    all_added_rows,
    read_state,
    state_of,
)
from trainer.data.sources import Source, open_source
from trainer.recipe.schema import SourceRecipe


def rows(first: int, end: int) -> list[dict[str, object]]:
    return [GOOD_IR | {"query": f"q{n}"} for n in range(first, end)]


def opened(path: Path, **changes: object) -> Source:
    return open_source(ir_source(path, **changes), ".")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "x.jsonl", rows(0, 9))


def test_state_holds_files_rows_and_how_they_are_read(path: Path) -> None:
    source = opened(path)
    state = state_of(source)
    (file,) = state.files
    assert (state.fingerprint, state.num_rows) == (source.fingerprint, 9)
    assert (file.size, file.num_rows, file.is_quoted) == (path.stat().st_size, 9, True)
    assert state.reading == "records 0..1"
    plain = {"fingerprint": "f", "num_rows": 3, "reading": "r", "files": [
        {"sha256": "s", "size": 1, "num_rows": 3, "is_quoted": False}]}  # fmt: skip
    assert read_state(plain).files == (FileState(sha256="s", size=1, num_rows=3, is_quoted=False),)


def test_the_same_rows_are_no_change(path: Path) -> None:
    assert added_rows(state_of(opened(path)), opened(path)) == 0


def test_lines_at_the_end_are_added_rows(path: Path) -> None:
    before = state_of(opened(path))
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows(9, 13)))
    assert added_rows(before, opened(path)) == 4
    assert all_added_rows({"set": before, "gone": before}, [opened(path)]) == {"set": 4}
    # an older one is not what a longer one begins with
    longer = state_of(opened(path))
    assert added_rows(longer, opened(write_jsonl(path, rows(0, 9)))) == "there are only 9 now"


def test_a_file_without_a_last_line_break_may_grow(path: Path) -> None:
    whole = path.read_text()
    path.write_text(whole.rstrip("\n"))
    before = state_of(opened(path))
    path.write_text(whole + json.dumps(rows(9, 10)[0]))
    assert added_rows(before, opened(path)) == 1


def test_a_last_row_that_goes_on_is_another_row(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("query,positive\nq0,p0\nq1,p1")
    before = state_of(opened(path))
    path.write_text("query,positive\nq0,p0\nq1,p1 and more\nq2,p2\n")
    assert added_rows(before, opened(path)) == OTHERS
    path.write_text("query,positive\nq0,p0\nq1,p1\nq2,p2\n")
    assert added_rows(before, opened(path)) == 1


@pytest.mark.parametrize("place", [0, 4, 8])
def test_another_row_among_the_first_is_no_addition(path: Path, place: int) -> None:
    before = state_of(opened(path))
    changed = rows(0, 12)
    changed[place] = GOOD_IR | {"query": "another"}
    assert added_rows(before, opened(write_jsonl(path, changed))) == OTHERS


def test_files_are_added_behind_the_others(tmp_path: Path) -> None:
    for number in (1, 2):
        write_jsonl(tmp_path / f"part{number}.jsonl", rows(5 * number, 5 * number + 5))
    before = state_of(opened(tmp_path / "part*.jsonl"))
    write_jsonl(tmp_path / "part3.jsonl", rows(0, 2))
    assert added_rows(before, opened(tmp_path / "part*.jsonl")) == 2
    # one that sorts before them moves their rows
    write_jsonl(tmp_path / "part0.jsonl", rows(0, 2))
    assert added_rows(before, opened(tmp_path / "part*.jsonl")) == OTHERS
    (tmp_path / "part0.jsonl").unlink()
    write_jsonl(tmp_path / "part1.jsonl", rows(5, 11))
    assert added_rows(before, opened(tmp_path / "part*.jsonl")) == OTHERS


def test_a_packed_file_is_told_by_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    lines = [json.dumps(row) + "\n" for row in rows(0, 6)]
    path.write_bytes(gzip.compress("".join(lines[:4]).encode()))
    before = state_of(opened(path))
    path.write_bytes(gzip.compress("".join(lines).encode()))
    assert added_rows(before, opened(path)) == 2


def test_scores_on_another_scale_are_other_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"

    def scored(*scores: float) -> Source:
        write_jsonl(path, [{"text1": "a", "text2": "b", "score": one} for one in scores])
        return open_source(sts_source(path), ".")

    before = state_of(scored(0.0, 0.5))
    assert added_rows(before, scored(0.0, 0.5, 1.0)) == 1
    # the first rows would be 0 and 0.1
    why = "they are read as records 0..5, and were read as records 0..1"
    assert added_rows(before, scored(0.0, 0.5, 5.0)) == why


def test_what_cannot_be_cut_after_a_row_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows(0, 4)))
    before = state_of(opened(path))
    path.write_text(json.dumps(rows(0, 6)))
    assert added_rows(before, opened(path)) == OTHERS


def add(path: Path, *rows: dict[str, object]) -> None:
    """Lines at the end of a file."""
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = write_beir(
        tmp_path / "beir",
        corpus={"d1": "one", "d2": "two", "d3": "three"},
        queries={"q1": "first", "q2": "second", "q3": "third"},
    )
    write_qrels(folder, "train", [("q1", "d1", 1), ("q2", "d2", 1)])
    write_jsonl(folder / "hard_negatives.train.jsonl", [{"query_id": "q1", "negatives": ["d3"]}])
    return folder


def judge(folder: Path, *lines: str) -> None:
    with (folder / "qrels" / "train.tsv").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_a_beir_folder_grows_by_queries_that_were_not_judged(beir: Path) -> None:
    before, records = state_of(opened(beir)), all_records(ir_source(beir))
    assert read_state(json.loads(json.dumps(dataclasses.asdict(before)))) == before
    add(beir / "corpus.jsonl", {"_id": "d4", "title": "", "text": "four"})
    # a document that nothing names adds no record, and is not another row
    assert added_rows(before, opened(beir)) == 0
    add(beir / "queries.jsonl", {"_id": "q4", "text": "fourth"})
    add(beir / "hard_negatives.train.jsonl", {"query_id": "q4", "negatives": ["d1"]})
    judge(beir, "q4\td4\t1", "q3\td1\t1")
    assert added_rows(before, opened(beir)) == 2
    grown = all_records(ir_source(beir))
    assert grown[: len(records)] == records
    assert grown[2].positives == ("four",)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: judge(folder, "q1\td2\t1"),
        lambda folder: add(
            folder / "hard_negatives.train.jsonl", {"query_id": "q2", "negatives": ["d1"]}
        ),
        lambda folder: write_qrels(folder, "train", [("q2", "d2", 1), ("q1", "d1", 1)]),
        lambda folder: (folder / "hard_negatives.train.jsonl").unlink(),
    ],
    ids=["judgement", "negatives", "order", "no negatives"],
)
def test_records_of_a_beir_folder_that_are_made_of_others_are_told(
    beir: Path, change: Callable[[Path], object]
) -> None:
    before = state_of(opened(beir))
    change(beir)
    assert added_rows(before, opened(beir)) == JOINED_OTHERS


def test_a_judgement_less_is_told_by_the_number(beir: Path) -> None:
    before = state_of(opened(beir))
    write_qrels(beir, "train", [("q1", "d1", 1)])
    assert added_rows(before, opened(beir)) == "there are only 1 now"


@pytest.mark.parametrize(("name", "what"), [("corpus", "documents"), ("queries", "queries")])
def test_another_text_in_a_beir_folder_is_no_addition(beir: Path, name: str, what: str) -> None:
    before = state_of(opened(beir))
    file = beir / f"{name}.jsonl"
    file.write_text(file.read_text().replace("two", "2").replace("second", "2nd"))
    assert added_rows(before, opened(beir)) == f"its {what} are others"


def test_rows_that_name_documents_grow_with_their_documents(tmp_path: Path) -> None:
    folder = tmp_path / "tevatron"
    path, corpus = folder / "train.jsonl", folder / "corpus.jsonl"
    write_jsonl(corpus, [{"docid": n, "text": f"d{n}"} for n in range(3)])
    asked = [{"query_text": f"q{n}", "positive_document_ids": [str(n)]} for n in range(5)]
    write_jsonl(path, asked[:3])
    before = state_of(opened(path))
    add(corpus, {"docid": 3, "text": "d3"}, {"docid": 4, "text": "d4"})
    add(path, *asked[3:])
    assert added_rows(before, opened(path)) == 2
    write_jsonl(corpus, [{"docid": n, "text": f"another {n}"} for n in range(5)])
    assert added_rows(before, opened(path)) == "its documents are others"


def test_inference_rows_grow_by_new_premises(tmp_path: Path) -> None:
    def row(premise: str, hypothesis: str, label: int) -> dict[str, object]:
        return {"premise": premise, "hypothesis": hypothesis, "label": label}

    path = tmp_path / "x.jsonl"
    old = [row("p", "a", 0), row("q", "b", 1), row("p", "c", 2), row("r", "d", 0)]
    write_jsonl(path, old)
    before, records = state_of(opened(path)), all_records(ir_source(path))
    write_jsonl(path, [*old, row("s", "e", 0), row("s", "f", 2), row("p", "neutral", 1)])
    assert added_rows(before, opened(path)) == 1
    assert all_records(ir_source(path))[:2] == records
    write_jsonl(path, [*old, row("p", "g", 0)])
    assert added_rows(before, opened(path)) == JOINED_OTHERS
    # a premise that nothing followed from comes before later ones when something does
    write_jsonl(path, [row("x", "a", 2), *old])
    begun = state_of(opened(path))
    write_jsonl(path, [row("x", "a", 2), *old, row("x", "b", 0)])
    assert added_rows(begun, opened(path)) == JOINED_OTHERS
    write_jsonl(path, [row("p", "A", 0), *old[1:], row("s", "e", 0)])
    assert added_rows(before, opened(path)) == OTHERS


def test_what_cannot_grow_says_why(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "labels.jsonl", [{"text": f"t{n}", "label": n % 2}
                                                   for n in range(6)])  # fmt: skip
    labelled = SourceRecipe(name="set", task="labels", path=str(path))
    before = state_of(open_source(labelled, "."))
    assert before.files == ()
    add(path, {"text": "more", "label": 0})
    why = "texts with labels are drawn beside each other from the whole source"
    assert added_rows(before, open_source(labelled, ".")) == why
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"0": "even", "1": "odd"}))
    named = dataclasses.replace(labelled, label_texts=str(texts))
    begun = open_source(named, ".")
    texts.write_text(json.dumps({"1": "odd", "0": "even", "2": "is on no row"}))
    assert added_rows(state_of(begun), open_source(named, ".")) == 0
    assert open_source(named, ".").identity == begun.identity
    texts.write_text(json.dumps({"0": "even", "1": "not even"}))
    why = "rows and label_texts are drawn from the whole source"
    assert added_rows(state_of(begun), open_source(named, ".")) == why
    assert open_source(named, ".").identity != begun.identity
    # a release that kept no files
    plain = opened(write_jsonl(tmp_path / "x.jsonl", rows(0, 3)))
    older = SourceState(fingerprint="another", num_rows=0)
    assert added_rows(older, plain) == "the release that began the run did not record its files"
