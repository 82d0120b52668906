"""A recipe's names for the columns of a file, and what is said of columns that are missing."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data.test_data_formats import caches as caches  # a fixture: caches of each test alone
from tests.data.test_data_formats import records_of, write_as
from tests.support.data_files import (
    all_records,
    ir_source,
    labels_source,
    sts_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from trainer.data import label_source, overlap, premise_source, table_scan
from trainer.data.evalsets import open_eval_set
from trainer.data.label_source import LabelledSource
from trainer.data.overlap import screen_of
from trainer.data.records import IrRecord, StsRecord
from trainer.data.sources import open_source
from trainer.errors import DataError, RecipeError
from trainer.recipe.load import dump_recipe, load_recipe
from trainer.recipe.schema import DataRecipe, EvalSetRecipe

ROWS = [
    {"id": "1", "left": "a", "right": "b", "similarity_rating": "0.5", "score": "9"},
    {"id": "2", "left": "c", "right": "d", "similarity_rating": "1", "score": "9"},
]
NAMES = {"sentence1": "left", "sentence2": "right", "score": "similarity_rating"}
PAIRS = [
    StsRecord(text1="a", text2="b", score=0.5),
    StsRecord(text1="c", text2="d", score=1.0),
]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"])
def test_names_are_mapped_in_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    path = write_as(kind, tmp_path, ROWS)
    assert records_of(path, "sts", columns=NAMES) == PAIRS


def test_a_spreadsheet_of_semicolons_in_utf_16_is_mapped_too(tmp_path: Path) -> None:
    path = tmp_path / "pairs.CSV"
    with path.open("w", encoding="utf-16", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerows([["left", "right", "similarity_rating"], ["a", "b", "0.5"]])
        writer.writerow(["c", "d", " 1.0 "])
    assert records_of(path, "sts", columns=NAMES) == PAIRS


def test_names_of_retrieval_are_mapped_with_numbered_negatives(tmp_path: Path) -> None:
    row = {"question": "q", "good": "p", "bad": "n", "worse": ["m"], "label": [0.5, 0.1]}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    names = {"anchor": "question", "positive": "good", "negative_1": "bad", "negative_2": "worse"}
    (record,) = all_records(ir_source(path, columns=names))
    assert record == IrRecord(
        query="q",
        positives=("p",),
        negatives=("n", "m"),
        positive_scores=(0.0,),
        negative_scores=(-0.5, -0.1),
    )


def test_names_may_be_swapped_and_a_column_may_have_two(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "answer", "positive": "question"}])
    swapped = {"query": "positive", "positive": "query"}
    assert all_records(ir_source(path, columns=swapped)) == [
        IrRecord(query="question", positives=("answer",))
    ]
    twice = {"anchor": "query", "positive": "query"}
    assert all_records(ir_source(path, columns=twice)) == [
        IrRecord(query="answer", positives=("answer",))
    ]


def test_the_score_of_columns_by_order_is_mapped(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"x": "a", "rating": 0.5, "y": "b"}])
    source = sts_source(path, format="by-order", columns={"score": "rating"})
    assert all_records(source) == PAIRS[:1]
    unread = sts_source(path, format="by-order", columns={"query": "x", "score": "rating"})
    with pytest.raises(DataError, match=r"columns\.query = x; expected a name that a format reads"):
        all_records(unread)


def test_a_held_out_set_is_mapped(tmp_path: Path) -> None:
    write_as(".csv", tmp_path, ROWS)
    held_out = EvalSetRecipe(name="dev", task="sts", path="rows.csv", columns=NAMES)
    found = open_eval_set(held_out, DataRecipe(sources=(), root=str(tmp_path)))
    assert (found.text1, found.text2, found.score) == (("a", "c"), ("b", "d"), (0.5, 1.0))
    wrong = EvalSetRecipe(name="dev", task="sts", path="rows.csv", columns={"score": "nope"})
    with pytest.raises(DataError, match=r"eval\.sets\.dev\.columns\.score = \"nope\""):
        open_eval_set(wrong, DataRecipe(sources=(), root=str(tmp_path)))


def test_a_cached_check_of_a_large_table_follows_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_scan, "CACHE_FROM_ROWS", 1)
    rows = [{"text1": "a", "text2": "b", "score": 1, "other": 0.5}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    first = open_source(sts_source(path), ".")
    second = open_source(sts_source(path, columns={"score": "other"}), ".")
    assert [source.record(0).score for source in (first, second)] == [1.0, 0.5]


def test_what_is_kept_of_large_tables_follows_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    for module in (table_scan, label_source, premise_source, overlap):
        monkeypatch.setattr(module, "CACHE_FROM_ROWS", 1)
    labels = [{"text": f"t{i}", "other": f"o{i}", "label": i % 2, "kind": i // 2} for i in range(4)]
    path = write_jsonl(tmp_path / "labels.jsonl", labels)
    indexes = []
    for names in ({}, {"label": "kind"}):
        source = open_source(labels_source(path, columns=names), ".")
        assert isinstance(source, LabelledSource)
        indexes.append({name: array.tolist() for name, array in source.index.arrays.items()})
    assert indexes[0] != indexes[1]
    pairs = [
        {"premise": "p", "hypothesis": "h", "label": 0, "first": "f"},
        {"premise": "p", "hypothesis": "k", "label": 0, "first": "g"},
    ]
    path = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    found = [all_records(ir_source(path, columns=names)) for names in ({}, {"premise": "first"})]
    assert found == [
        [IrRecord(query="p", positives=("h", "k"))],
        [IrRecord(query="f", positives=("h",)), IrRecord(query="g", positives=("k",))],
    ]
    rows = [{"query": f"q{i}", "positive": f"p{i}", "asked": f"o{i}"} for i in range(3)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    held_out = write_beir(tmp_path / "held", corpus={"d": "x"}, queries={"q": "o1"})
    write_qrels(held_out, "dev", [("q", "d", 1)])
    recipe = DataRecipe(sources=(), root=str(tmp_path), overlap="drop")
    held = open_eval_set(EvalSetRecipe(name="dev", task="ir", path="held"), recipe)
    screen = screen_of(recipe, {"dev": held})
    kept = [
        len(open_source(ir_source(path, columns=names), ".", screen=screen))
        for names in ({}, {"query": "asked"})
    ]
    assert kept == [3, 2]
    # rows that are left out are in no index either
    labels = [{"text": f"t{i}", "other": f"o{i}", "label": i % 2} for i in range(6)]
    path = write_jsonl(tmp_path / "labels.jsonl", labels)
    names = {"text": "other"}
    sources = [
        open_source(labels_source(path, columns=names), ".", screen=one) for one in (None, screen)
    ]
    assert [len(source) for source in sources] == [6, 5]
    for source in sources:
        assert isinstance(source, LabelledSource)
        assert len(source.index.arrays["texts"]) == len(source)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {**NAMES, "score": "similarity_ratin"},
            r"data\.sources\.set\.columns\.score = \"similarity_ratin\"; expected a column of the "
            r"file, which has id, left, right, score, similarity_rating\. Did you mean "
            r"similarity_rating\?",
        ),
        (
            {**NAMES, "sentance1": "left"},
            r"data\.sources\.set\.columns\.sentance1 = left; expected a name that a format reads "
            r".*Did you mean sentence1\?",
        ),
        # known to another format than the one that the columns then have
        (
            {**NAMES, "negative_scores": "id"},
            r"columns\.negative_scores = id; expected a name that a format reads "
            r"\(sentence-transformers\): sentence1",
        ),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(
    tmp_path: Path, names: dict[str, str], message: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match=message):
        open_source(sts_source(path, columns=names), ".")


def test_a_malformed_row_is_named_with_the_column_of_the_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], {**ROWS[1], "similarity_rating": "4,5"}])
    message = r'a\.jsonl:2: score \(column similarity_rating\) = "4,5"; expected a number with a '
    with pytest.raises(DataError, match=message):
        open_source(sts_source(path, columns=NAMES), ".")


def test_a_beir_folder_takes_no_names(tmp_path: Path) -> None:
    write_beir(tmp_path, corpus={"d": "text"}, queries={"q": "text"})
    with pytest.raises(DataError, match=r"data\.sources\.set\.columns = .*BEIR folder"):
        open_source(ir_source(tmp_path, columns={"query": "text"}), ".")
    held_out = EvalSetRecipe(name="dev", task="ir", path=str(tmp_path), columns={"query": "text"})
    with pytest.raises(DataError, match=r"eval\.sets\.dev\.columns = .*BEIR folder"):
        open_eval_set(held_out, DataRecipe(sources=()))


def message_of(path: Path, task: str, *, skip: bool = False, **changes: Any) -> str:
    source = (ir_source if task == "ir" else sts_source)(path, **changes)
    with pytest.raises(DataError) as caught:
        open_source(source, ".", skip=skip)
    return str(caught.value)


def test_a_missing_score_is_said_once_even_where_rows_may_be_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"sentence1": "a", "sentence2": "b", "sim": 1}] * 200)
    for skip in (False, True):
        assert message_of(path, "sts", skip=skip) == (
            f"{path}:1: columns = sentence1, sentence2, sim; expected score (or label, scores, "
            "labels, similarity, similarity_score, relatedness_score, is_duplicate, Quality) of "
            "format sentence-transformers. Name the file's own columns with "
            "data.sources.set.columns: {score: COLUMN}, or correct format."
        )
    assert "skipped" not in caplog.text


def test_a_missing_column_of_a_named_format_is_said_with_the_format_that_fits(
    tmp_path: Path,
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"query": "q", "pos": ["p"]}])
    assert message_of(path, "ir", format="sentence-transformers") == (
        f"{path}:1: columns = pos, query; expected positive of format sentence-transformers. "
        "They are all that format flag-embedding needs. Name the file's own columns with "
        "data.sources.set.columns: {positive: pos}, or correct format."
    )


def test_unknown_columns_are_said_with_the_nearest_format(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "answers": "p"}])
    assert (
        "Nearest is sentence-transformers, which also needs answer. Name the file's own columns "
        "with data.sources.set.columns: {answer: answers}, or set task or format"
    ) in message_of(path, "ir")
    write_jsonl(path, [{"left": "a", "right": "b", "similarity_score": 1}])
    assert (
        "Nearest is sentence-transformers, which also needs sentence1 and sentence2. Name the "
        "file's own columns with data.sources.set.columns: {sentence1: COLUMN, sentence2: COLUMN}, "
    ) in message_of(path, "sts")


@pytest.mark.parametrize(
    ("task", "needs"),
    [("ir", ("anchor", "positive")), ("sts", ("sentence1", "sentence2", "score"))],
)
def test_columns_that_no_format_comes_near_are_mapped_too(
    tmp_path: Path, task: str, needs: tuple[str, ...]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"colour": "red", "kind": "x", "size": 1}])
    pairs = ", ".join(f"{name}: COLUMN" for name in needs)
    assert (
        f"None comes near; sentence-transformers needs {' and '.join(needs)}. Name the file's own "
        f"columns with data.sources.set.columns: {{{pairs}}}, or set task or format"
    ) in message_of(path, task)


def test_an_advised_mapping_can_be_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"#1 String": "a", "2nd: String": "b", "label": 1}])
    message = message_of(path, "sts")
    mapping = message.split("data.sources.set.columns: ")[1].split(", or set task")[0]
    assert yaml.safe_load(mapping) == {"#2 String": "2nd: String"}
    assert all_records(sts_source(path, columns=yaml.safe_load(mapping))) == [
        StsRecord(text1="a", text2="b", score=1.0)
    ]


def test_no_column_is_advised_twice(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"sentence_fra": "b", "sentence_eng": "a"}])
    held_out = EvalSetRecipe(name="dev", task="bitext", path=str(path))
    said = r"eval\.sets\.dev\.columns: \{sentence1: sentence_eng, sentence2: sentence_fra\}"
    with pytest.raises(DataError, match=said):
        open_eval_set(held_out, DataRecipe(sources=()))


def test_skipping_is_advised_only_where_it_helps(tmp_path: Path) -> None:
    mixed = [{"text": f"t{n}", "label": n % 2} for n in range(4)] + [{"text": "a", "label": "x"}]
    high = [{"text1": "a", "text2": "b", "score": score} for score in (1, 9)]
    for source, said in (
        (labels_source(write_jsonl(tmp_path / "a.jsonl", mixed)),
         r"a\.jsonl:5: label = \"x\"; .* is\. Write all labels of a source alike\.$"),
        (sts_source(write_jsonl(tmp_path / "b.jsonl", high)),
         r"b\.jsonl:2: score = 9; .* in the recipe\. Correct the row, or set score_range\.$"),
    ):  # fmt: skip
        for skip in (False, True):
            with pytest.raises(DataError, match=said):
                open_source(source, ".", skip=skip)


def test_a_recipe_says_names_as_texts_and_keeps_them(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    text = Path("recipes/demo.yaml").read_text()
    recipe.write_text(text)
    first = load_recipe(recipe).data.sources[0].name
    key = f"data.sources.{first}.columns"
    loaded = load_recipe(recipe, [f"{key}={{query: question, positive: 'the answer'}}"])
    assert loaded.data.sources[0].columns == {"query": "question", "positive": "the answer"}
    recipe.write_text(dump_recipe(loaded))
    assert load_recipe(recipe) == loaded
    with pytest.raises(RecipeError, match=r"columns = \['question'\]; expected `key: value` pairs"):
        load_recipe(recipe, [f"{key}=[question]"])
