"""Held-out sets of kinds that are no task: what is read, and what is said of bad input."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.support.data_files import ir_source, sts_source, write_jsonl
from tests.support.held_out_sets import KINDS, opened, write_sets
from tools import evaluate
from trainer.cli import ending_with_code
from trainer.data.evalsets import open_eval_set
from trainer.data.held_out_records import Candidates, TextPair
from trainer.data.labelled import ClassificationSet, ClusteringSet
from trainer.data.overlap import count_overlaps
from trainer.data.paired import Bitext, PairSet
from trainer.data.reranking import RerankingSet
from trainer.data.sources import open_source
from trainer.errors import DataError
from trainer.recipe.schema import DataRecipe, EvalSetRecipe

RED, BLUE = {"text": "a", "label": "red"}, {"text": "b", "label": "blue"}
TRUE, FALSE = {"text1": "a", "text2": "b", "label": 1}, {"text1": "c", "text2": "d", "label": 0}
RANKED = {"query": "q", "positives": ["p"], "negatives": ["n", "m"]}
MATCH = {"text1": "a", "text2": "b"}


def test_classes_are_two_files_of_a_folder(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [RED, BLUE])
    write_jsonl(tmp_path / "test.jsonl", [BLUE])
    found = opened("classification", tmp_path)
    assert isinstance(found, ClassificationSet)
    assert (found.train.texts, found.train.labels) == (("a", "b"), ("red", "blue"))
    assert (found.test.texts, found.test.labels) == (("b",), ("blue",))
    assert list(found.asked()) == ["b"]


@pytest.mark.parametrize(
    ("split", "scored"),
    [(None, "test"), ("test", "test"), ("validation", "validation"), ("train", "train"),
     ("test_2021", "test_2021")],
)  # fmt: skip
def test_the_split_says_which_classes_are_scored(
    split: str | None, scored: str, tmp_path: Path
) -> None:
    for name in ("train", "validation", "test", "test_2021"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": name, "label": n} for n in range(2)])
    found = opened("classification", tmp_path, **({} if split is None else {"split": split}))
    assert isinstance(found, ClassificationSet)
    assert (found.train.texts[0], found.test.texts[0]) == ("train", scored)


def test_a_split_of_classes_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        write_jsonl(tmp_path / f"{name}.jsonl", [RED, BLUE])
    said = r"without test_2021\.jsonl; expected a folder with train\.jsonl and test_2021\.jsonl of "
    with pytest.raises(DataError, match=said):
        opened("classification", tmp_path, split="test_2021")


def test_labels_may_be_numbers_and_files_tables(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [RED | {"label": 0}, BLUE | {"label": 1}])
    (tmp_path / "test.json").write_text(json.dumps([{"text": "c", "label": 1}]))
    found = opened("classification", tmp_path)
    assert isinstance(found, ClassificationSet)
    assert (found.train.labels, found.test.labels) == ((0, 1), (1,))
    (tmp_path / "clusters.csv").write_text("text,label\na,red\nb,blue\n")
    clusters = opened("clustering", tmp_path / "clusters.csv")
    assert isinstance(clusters, ClusteringSet)
    assert (clusters.rows.texts, clusters.rows.labels) == (("a", "b"), ("red", "blue"))


def test_pairs_candidates_and_translations(tmp_path: Path) -> None:
    pairs = opened("pair_classification", write_jsonl(tmp_path / "a.jsonl", [TRUE, FALSE]))
    assert isinstance(pairs, PairSet)
    assert pairs.pairs == (TextPair("a", "b", 1), TextPair("c", "d", 0))
    (tmp_path / "a.tsv").write_text("text1\ttext2\tlabel\na\tb\t1\nc\td\t0\n")
    assert opened("pair_classification", tmp_path / "a.tsv") == pairs
    ranked = opened("reranking", write_jsonl(tmp_path / "b.jsonl", [RANKED]))
    assert isinstance(ranked, RerankingSet)
    assert ranked.rows == (Candidates("q", ("p",), ("n", "m")),)
    bitext = opened("bitext", write_jsonl(tmp_path / "c.jsonl", [MATCH]))
    assert isinstance(bitext, Bitext)
    assert bitext.pairs == (TextPair("a", "b"),)


BAD: list[tuple[str, dict[str, list[Any]], str]] = [
    ("classification", {"train": [RED, RED], "test": [RED]},
     r'train\.jsonl:1: label = "red", as in all 2 rows; expected at least two labels\. Check'),
    ("classification", {"train": [RED, BLUE, RED | {"label": 3}], "test": [RED]},
     r'train\.jsonl:3: label = 3; expected a text, as "red" at .*train\.jsonl:1 is\. Write all'),
    ("classification", {"train": [RED, BLUE], "test": [RED, RED | {"label": 1}]},
     r'test\.jsonl:2: label = 1; expected a text, as "red" at .*train\.jsonl:1 is\.'),
    ("classification", {"train": [RED, BLUE], "test": [BLUE, RED | {"label": "pink"}]},
     r'test\.jsonl:2: label = "pink"; expected a label that .*train\.jsonl has\. Add rows'),
    ("classification", {"train": [RED, BLUE | {"text": " "}], "test": [RED]},
     r'train\.jsonl:2: text = " "; expected a text that is not empty\. Correct the row'),
    ("classification", {"train": [RED, BLUE], "test": [{"label": "red"}, RED]},
     r"test\.jsonl:1: text = nothing; expected a text \(fields of this row: label\)\. Correct"),
    ("classification", {"test": [RED]},
     r"eval\.sets\.held: path = .*, without train\.jsonl; expected a folder with train\.jsonl and "
     r"test\.jsonl of \{text, label\} \(looked for .*train\.jsonl\)\. Add the file"),
    ("classification", {"train": [RED, BLUE]}, r"without test\.jsonl; expected a folder"),
    ("clustering", {"set": [RED, RED]},
     r'set\.jsonl:1: label = "red", as in all 2 rows; expected at least two labels\.'),
    ("clustering", {"set": [RED | {"label": 1}, BLUE]},
     r'set\.jsonl:2: label = "blue"; expected a whole number, as 1 at .*set\.jsonl:1 is\.'),
    ("clustering", {"set": [RED, BLUE | {"label": 0.5}]},
     r"set\.jsonl:2: label = 0\.5; expected a label: a text or a whole number\."),
    ("clustering", {"set": [RED, BLUE | {"label": True}]},
     r"set\.jsonl:2: label = true; expected a label: a text or a whole number\."),
    ("clustering", {"set": [RED, BLUE | {"label": ""}]},
     r'set\.jsonl:2: label = ""; expected a text that is not empty\.'),
    ("pair_classification", {"set": [TRUE, TRUE]},
     r"set\.jsonl:1: label = 1, as in all 2 rows; expected pairs of label 0 and pairs of "
     r"label 1\."),
    ("pair_classification", {"set": [TRUE, FALSE | {"label": 2}]},
     r"set\.jsonl:2: label = 2; expected 0 or 1\. Correct the row"),
    ("pair_classification", {"set": [TRUE, FALSE | {"label": False}]},
     r"set\.jsonl:2: label = false; expected 0 or 1\."),
    ("pair_classification", {"set": [TRUE, FALSE | {"text2": ""}]},
     r'set\.jsonl:2: text2 = ""; expected a text that is not empty\.'),
    ("reranking", {"set": [RANKED, RANKED | {"positives": []}]},
     r"set\.jsonl:2: positives = \[\]; expected at least one text\."),
    ("reranking", {"set": [RANKED, RANKED | {"negatives": []}]},
     r"set\.jsonl:2: negatives = \[\]; expected at least one text\."),
    ("reranking", {"set": [RANKED, RANKED | {"negatives": ["n", ""]}]},
     r'set\.jsonl:2: negatives\[1\] = ""; expected a text that is not empty\.'),
    ("reranking", {"set": [RANKED, {"positives": ["p"], "negatives": ["n"]}]},
     r"set\.jsonl:2: query = nothing; expected a text"),
    ("bitext", {"set": [MATCH, {"text1": "c"}]},
     r"set\.jsonl:2: text2 = nothing; expected a text \(fields of this row: text1\)\."),
    ("bitext", {"set": [MATCH, MATCH | {"text2": "\t"}]},
     r'set\.jsonl:2: text2 = "\\t"; expected a text that is not empty\.'),
    ("bitext", {"set": [RED, BLUE]},
     r"set\.jsonl:1: columns = label, text; expected those of a format of task bitext \(records: "
     r"text1, text2; mteb: .*\)\. .*, or set task or format\.$"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "files", "said"), BAD)
def test_bad_input_is_one_message_and_code_2(
    kind: str,
    files: dict[str, list[Any]],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, rows in files.items():
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    path = tmp_path if kind == "classification" else tmp_path / "set.jsonl"
    with pytest.raises(DataError, match=said):
        opened(kind, path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "modules.json").write_text("[]")
    arguments = ["--model", str(tmp_path / "model"), "--sets", f"{path}:{kind}"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    assert ending_with_code(evaluate.main) == 2
    shown = capsys.readouterr()
    assert len([line for line in shown.err.splitlines() if line]) == 1
    assert shown.out == ""


MTEB: list[tuple[str, list[Any], list[Any]]] = [
    ("clustering", [{"sentences": "a", "labels": 1}, {"sentences": "b", "labels": 2}],
     [RED | {"label": 1}, BLUE | {"label": 2}]),
    ("clustering", [{"sentences": ["a", "b"], "labels": ["red", "blue"]}], [RED, BLUE]),
    ("pair_classification", [{"sentence1": ["a", "c"], "sentence2": ["b", "d"], "labels": [1, 0]}],
     [TRUE, FALSE]),
    ("pair_classification", [{"sent1": ["a", "c"], "sent2": ["b", "d"], "labels": [1, 0]}],
     [TRUE, FALSE]),
    ("pair_classification", [{"sentence1": "a", "sentence2": "b", "labels": 1},
                             {"sentence1": "c", "sentence2": "d", "labels": 0}], [TRUE, FALSE]),
    ("reranking", [{"query": "q", "positive": ["p"], "negative": ["n", "m"]}], [RANKED]),
    ("bitext", [{"sentence1": "a", "sentence2": "b"}], [MATCH]),
    ("bitext", [{"sentence1": ["a", "c"], "sentence2": ["b", "d"]}],
     [MATCH, {"text1": "c", "text2": "d"}]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "theirs", "ours"), MTEB)
def test_mtebs_own_rows_are_the_same_set(
    kind: str, theirs: list[Any], ours: list[Any], tmp_path: Path
) -> None:
    found = opened(kind, write_jsonl(tmp_path / "theirs.jsonl", theirs))
    assert found == opened(kind, write_jsonl(tmp_path / "ours.jsonl", ours))


def test_rows_with_nothing_to_rank_are_left_out_as_mteb_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = {"query": "q", "positive": ["p"], "negative": ["n", "m"]}
    empty = [whole | {"positive": []}, whole | {"negative": []}]
    found = opened("reranking", write_jsonl(tmp_path / "a.jsonl", [empty[0], whole, empty[1]]))
    assert found == opened("reranking", write_jsonl(tmp_path / "b.jsonl", [RANKED]))
    assert "a.jsonl: left out are 2 rows without a positive or without a negative" in caplog.text
    assert "b.jsonl" not in caplog.text
    with pytest.raises(DataError, match=r"a\.jsonl: all 2 rows are without a positive or "):
        opened("reranking", write_jsonl(tmp_path / "a.jsonl", empty))
    malformed = whole | {"negative": [""]}
    rows = [*[whole] * 200, malformed, empty[0]]
    recipe = EvalSetRecipe(
        name="held", task="reranking", path=str(write_jsonl(tmp_path / "a.jsonl", rows))
    )
    caplog.clear()
    skipped = open_eval_set(recipe, DataRecipe(sources=(), on_bad_row="skip"))
    assert isinstance(skipped, RerankingSet)
    assert len(skipped.rows) == 200
    assert "left out are 1 rows" in caplog.text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"sentences": "a", "labels": ["x", "y"]},
         r'labels = \["x", "y"\]; expected one value alone, as sentences is\.'),
        ({"sentences": ["a", "b"], "labels": "x"},
         r'labels = "x"; expected a list, as sentences is\.'),
        ({"sentences": ["a", "b"], "labels": [["x", "y"], ["x"]]},
         r'labels\[0\] = \["x", "y"\]; expected a label: a text or a whole number'),
    ],
)  # fmt: skip
def test_the_field_that_is_unlike_the_first_is_named(
    row: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        opened("clustering", write_jsonl(tmp_path / "a.jsonl", [row, row]))


def test_candidates_of_a_query_stand_in_one_row(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": "d", "text": "a"}, {"_id": "e", "text": "b"}])
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "c"}])
    judged = {"query-id": "q", "corpus-id": "d", "score": 1}
    write_jsonl(tmp_path / "qrels" / "dev.jsonl", [judged])
    write_jsonl(tmp_path / "top_ranked.jsonl", [{"query-id": "q", "corpus-ids": ["d", "e"]}] * 2)
    said = r'jsonl:2: query-id = "q"; expected a new id\. Write the candidates of a query into one'
    with pytest.raises(DataError, match=said):
        opened("reranking", tmp_path)


def test_mtebs_folders_of_classes_are_read(tmp_path: Path) -> None:
    for name, label in (("train", 0), ("train", 1), ("test", 1)):
        rows = {"text": [f"{name} {label}"], "label": [label], "label_text": ["no"]}
        file = tmp_path / "data" / f"{name}-0000{label}-of-00002.parquet"
        file.parent.mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table(rows), file)
    found = opened("classification", tmp_path / "data")
    assert isinstance(found, ClassificationSet)
    assert (found.train.texts, found.train.labels) == (("train 0", "train 1"), (0, 1))
    assert (found.test.texts, found.test.labels) == (("test 1",), (1,))


def test_lists_of_unlike_length_are_told(tmp_path: Path) -> None:
    rows = [{"sentences": ["a", "b"], "labels": ["x", "y"]}, {"sentences": ["c"], "labels": []}]
    with pytest.raises(
        DataError,
        match=r"a\.jsonl:2: labels = 0 items; expected as many as sentences, at least one",
    ):
        opened("clustering", write_jsonl(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_rows_may_be_left_out(kind: str, tmp_path: Path) -> None:
    path = write_sets(tmp_path)[kind]
    file = path / "train.jsonl" if path.is_dir() else path
    lines = file.read_text().splitlines()
    # one malformed row of over a hundred
    file.write_text("\n".join([*lines * 4, "{}"]) + "\n")
    with pytest.raises(DataError, match=f"{file.name}:{4 * len(lines) + 1}: "):
        opened(kind, path)
    recipe = EvalSetRecipe(name="held", task=kind, path=str(path))
    if 4 * len(lines) >= 100:
        assert open_eval_set(recipe, DataRecipe(sources=(), on_bad_row="skip"))


def test_training_rows_that_ask_the_same_are_counted_whatever_the_kind(tmp_path: Path) -> None:
    scored = [MATCH | {"score": 1}, {"text1": "d", "text2": "c", "score": 0}]
    asked = [{"query": "q", "positives": ["x"]}, {"query": "r", "positives": ["y"]}]
    sources = [
        open_source(source, ".")
        for source in (
            sts_source(write_jsonl(tmp_path / "sts.jsonl", scored)),
            ir_source(write_jsonl(tmp_path / "ir.jsonl", asked)),
        )
    ]
    sets = {
        "pairs": opened("pair_classification", write_jsonl(tmp_path / "a.jsonl", [TRUE, FALSE])),
        "ranked": opened("reranking", write_jsonl(tmp_path / "b.jsonl", [RANKED])),
        "bitext": opened("bitext", write_jsonl(tmp_path / "c.jsonl", [MATCH])),
    }
    for source, counts in zip(sources, ({"pairs": 2, "bitext": 1}, {"ranked": 1}), strict=True):
        assert count_overlaps([source], sets) == {("set", name): n for name, n in counts.items()}
    assert all(isinstance(text, str) for found in sets.values() for text in found.asked())
