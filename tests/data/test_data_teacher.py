"""A teacher's scores: read from every format that has them, kept by slots, counted, required."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import tiny
from tests.support.both_modes import assert_stored_alike
from tests.support.data_files import byte_tokenizer, data_recipe, ir_source, write_jsonl
from trainer.data import table_scan
from trainer.data.batch import IrBatch
from trainer.data.ir import draw_passages
from trainer.data.loader import batches
from trainer.data.plan import make_plan
from trainer.data.records import IrRecord
from trainer.data.sources import open_source, open_sources
from trainer.data.teacher import (
    check_negatives,
    check_teachers,
    require_teacher,
    scored_rows,
)
from trainer.data.tokens import make_encoder
from trainer.errors import DataError
from trainer.recipe.ir import DistillationRecipe, IrRecipe, MaskRecipe
from trainer.recipe.schema import DataRecipe

OWN = {"query": "q", "positives": ["p", "r"], "negatives": ["n", "m"]}
FLAG = {"query": "q", "pos": ["p", "r"], "neg": ["n", "m"]}
MINED = {"anchor": "q", "positive": "p", "negative_1": "n", "negative_2": "m"}
TRIPLET = {"query": "q", "answer": "p", "negative": "n"}


def tevatron(*scores: object) -> dict[str, Any]:
    """A row whose passages have these scores, that of the one positive first."""
    passages = [
        {"docid": str(i), "text": text, "score": score}
        for i, (text, score) in enumerate(zip("pnm", scores, strict=True))
    ]
    return {"query": "q", "positive_passages": passages[:1], "negative_passages": passages[1:]}


Scores = tuple[tuple[float, ...], tuple[float, ...]] | None
READ: dict[str, tuple[dict[str, Any], Scores]] = {
    "records": (
        OWN | {"positive_scores": [1, 0.5], "negative_scores": [-3, 2e3]},
        ((1, 0.5), (-3, 2000)),
    ),
    "records of positives alone": (
        {"query": "q", "positives": ["p"], "positive_scores": [7]},
        ((7,), ()),
    ),
    "records, no negatives and none of their scores": (
        {"query": "q", "positives": ["p"], "positive_scores": [7], "negative_scores": []},
        ((7,), ()),
    ),
    "records without": (OWN, None),
    "records, null": (OWN | {"positive_scores": None, "negative_scores": None}, None),
    "records, empty": (OWN | {"positive_scores": [], "negative_scores": []}, None),
    "flag-embedding": (FLAG | {"pos_scores": [9, 8], "neg_scores": [1, 2]}, ((9, 8), (1, 2))),
    "flag-embedding, one negative": (
        FLAG | {"pos_scores": [9, 8], "neg_scores": [1, 2], "type": "only_1neg"},
        ((9, 8), (1,)),
    ),
    "tevatron": (tevatron(1, 0.25, -2), ((1,), (0.25, -2))),
    "tevatron without": (tevatron(None, None, None), None),
    "a margin": (TRIPLET | {"label": 2.5}, ((0,), (-2.5,))),
    "a margin in text, as delimited files have it": (TRIPLET | {"score": "2.5"}, ((0,), (-2.5,))),
    "two margins": (MINED | {"label": [2, -1]}, ((0,), (-2, 1))),
    "three scores": (MINED | {"scores": [5, 3, 6]}, ((5,), (3, 6))),
    "two scores": (TRIPLET | {"score": [5, 3]}, ((5,), (3,))),
    "scores before a label": (TRIPLET | {"label": 1, "scores": [5, 3]}, ((5,), (3,))),
    "scores of lists": (
        {"query": "q", "positive": ["p", "r"], "negatives": ["n"], "scores": [3, 2, 1]},
        ((3, 2), (1,)),
    ),
    "labels and scores": (
        {"query": "q", "document": ["n", "p", "m"], "labels": [0, 1, 0], "scores": [1, 9, 2]},
        ((9,), (1, 2)),
    ),
    "scores of a sure teacher": (MINED | {"scores": [1.0, 0.0, 0.0]}, ((1,), (0, 0))),
    "the score of a sure teacher": (TRIPLET | {"score": [1, 0]}, ((1,), (0,))),
    "labels of 1 and 0": (MINED | {"labels": [1, 0, 0]}, None),
    "texts in order of their labels": (
        {"query": "q", "docs": ["p", "n", "m"], "labels": [0.9, 0.2, 0.1]},
        ((0.9,), (0.2, 0.1)),
    ),
    "grades": (
        {"query": "q", "document": ["n", "p", "r", "m"], "labels": [1, 3, 3, 0]},
        ((3, 3), (1, 0)),
    ),
    "logits as labels": (
        {"query": "q", "docs": ["n", "p"], "labels": [-4.5, -1]},
        ((-1,), (-4.5,)),
    ),
    "grades and scores": (
        {"query": "q", "docs": ["n", "p", "m"], "labels": [1, 2, 0], "scores": [5, 9, 2]},
        ((9,), (5, 2)),
    ),
    "docs with labels of 1 and 0": ({"query": "q", "docs": ["n", "p"], "labels": [0, 1]}, None),
    "a number beside two negatives is no margin": (MINED | {"label": 1}, None),
    "a label of a pair": ({"query": "q", "answer": "p", "label": 1}, None),
    "the score of a pair": ({"query": "q", "answer": "p", "scores": [4]}, ((4,), ())),
}


def scores_of(record: IrRecord) -> Scores:
    if record.positive_scores is None or record.negative_scores is None:
        assert record.positive_scores is record.negative_scores
        return None
    assert len(record.positive_scores) == len(record.positives)
    assert len(record.negative_scores) == len(record.negatives)
    return record.positive_scores, record.negative_scores


@pytest.mark.parametrize(("row", "expected"), READ.values(), ids=READ)
def test_scores_are_read(tmp_path: Path, row: dict[str, Any], expected: Scores) -> None:
    source = open_source(ir_source(write_jsonl(tmp_path / "a.jsonl", [row])), ".")
    record = source.record(0)
    assert record.query == "q"
    assert scores_of(record) == expected
    assert source.num_scored == int(expected is not None)
    assert source.teacher_columns


def test_columns_in_order_carry_margins(tmp_path: Path) -> None:
    rows = [{"text1": "q", "text2": "p", "text3": "n", "text4": "m", "label": [1, 2]}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    source = open_source(ir_source(path, format="by-order"), ".")
    assert scores_of(source.record(0)) == ((0,), (-1, -2))


def test_margins_and_scores_have_the_same_differences(tmp_path: Path) -> None:
    rows = [MINED | {"scores": [5, 3, 6]}, MINED | {"scores": [2, -1]}]
    source = open_source(ir_source(write_jsonl(tmp_path / "a.jsonl", rows)), ".")
    one, other = (scores_of(source.record(row)) for row in range(2))
    assert one is not None
    assert other is not None
    assert [one[0][0] - score for score in one[1]] == [other[0][0] - score for score in other[1]]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_delimited_files_carry_a_margin(tmp_path: Path, kind: str) -> None:
    rows = [("query", "positive", "negative", "score"), ("q", "p", "n", "-0.5")]
    path = tmp_path / f"a.{kind}"
    path.write_text("\n".join(("," if kind == "csv" else "\t").join(row) for row in rows))
    assert scores_of(open_source(ir_source(path), ".").record(0)) == ((0,), (0.5,))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("name", ["records", "flag-embedding", "tevatron", "three scores"])
def test_columnar_files_carry_lists(tmp_path: Path, monkeypatch, kind: str, name: str) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    row, expected = READ[name]
    empty = {key: None if "score" in key else value for key, value in row.items()}
    if name == "tevatron":
        empty = tevatron(None, None, None)
    table = pyarrow.Table.from_pylist([row, empty])
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(str(path), table.schema) as out:
            out.write_table(table)
    source = open_source(ir_source(path), ".")
    assert scores_of(source.record(0)) == expected
    assert scores_of(source.record(1)) is None
    assert source.num_scored == 1


NAN, INF = float("nan"), float("inf")
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "too few": (
        OWN | {"positive_scores": [1], "negative_scores": [1, 2]},
        "positive_scores = a list of length 1; expected a list of length 2, a number for each text",
    ),
    "too many": (
        OWN | {"positive_scores": [1, 2], "negative_scores": [1, 2, 3]},
        "negative_scores = a list of length 3; expected a list of length 2",
    ),
    "positives alone": (OWN | {"positive_scores": [1, 2]}, "negative_scores = nothing; expected"),
    "negatives alone": (FLAG | {"neg_scores": [1, 2]}, "pos_scores = nothing; expected"),
    "empty beside full": (
        FLAG | {"pos_scores": [], "neg_scores": [1, 2]},
        "pos_scores = a list of length 0; expected",
    ),
    "no list": (OWN | {"positive_scores": 3}, "positive_scores = 3; expected a list of length 2"),
    "nan": (FLAG | {"pos_scores": [1, NAN], "neg_scores": [1, 2]}, r"pos_scores\[1\] = nan; exp"),
    "infinity": (FLAG | {"pos_scores": [1, 2], "neg_scores": [-INF, 2]}, r"neg_scores\[0\] = -inf"),
    "more than a float32 holds": (
        FLAG | {"pos_scores": [1, 1e39], "neg_scores": [1, 2]},
        r"pos_scores\[1\] = 1e\+39; expected a finite number",
    ),
    "a very long integer": (
        FLAG | {"pos_scores": [1, 10**400], "neg_scores": [1, 2]},
        r"pos_scores\[1\] = .*; expected a finite number",
    ),
    "text": (FLAG | {"pos_scores": [1, "2"], "neg_scores": [1, 2]}, r'pos_scores\[1\] = "2"; exp'),
    "truth": (FLAG | {"pos_scores": [1, True], "neg_scores": [1, 2]}, r"pos_scores\[1\] = true"),
    "null": (FLAG | {"pos_scores": [1, None], "neg_scores": [1, 2]}, r"pos_scores\[1\] = null"),
    "some passages": (tevatron(1, None, 2), r"negative_passages\[0\].score = null; expected a num"),
    "nan of a passage": (
        tevatron(1, NAN, 2),
        r"negative_passages\[0\].score = nan; expected a fin",
    ),
    "four of three": (
        MINED | {"scores": [1, 2, 3, 4]},
        "scores = a list of length 4; expected a list of length 3, scores of positives first, or "
        "of length 2, margins",
    ),
    "one of three": (
        MINED | {"label": [1]},
        "label = a list of length 1; expected a list of length 3",
    ),
    "no margins over no negatives": (
        {"query": "q", "answer": "p", "scores": [1, 2]},
        "scores = a list of length 2; expected a list of length 1, scores of positives first[.]",
    ),
    "nan as margin": (TRIPLET | {"label": NAN}, "label = nan; expected a finite number"),
    "large margin": (TRIPLET | {"label": 1e200}, r"label = 1e\+200; expected a finite number"),
    "word among scores": (TRIPLET | {"scores": [1, "a"]}, r'scores\[1\] = "a"; expected a number'),
    "labels that are all alike": (
        {"query": "q", "document": ["n", "p"], "labels": [0.5, 0.5]},
        r"labels = \[0.5, 0.5\]; expected one above others",
    ),
    "nan among labels": (
        {"query": "q", "document": ["n", "p"], "labels": [NAN, 0.5]},
        r"labels\[0\] = nan; expected a finite number",
    ),
    "scores of labels": (
        {"query": "q", "document": ["n", "p"], "labels": [0, 1], "scores": [1]},
        "scores = a list of length 1; expected a list of length 2",
    ),
}


@pytest.mark.parametrize(("row", "message"), WRONG.values(), ids=WRONG)
def test_wrong_scores_are_named_or_skipped(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    bare = {key: value for key, value in row.items() if key not in SCORE_KEYS}
    if "positive_passages" in row:
        bare = tevatron(None, None, None)
    if "document" in row:
        bare = row | {"scores": None, "labels": [0, 1]}
    rows = [bare, row, *[bare] * 99]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=rf"a\.jsonl:2: {message}"):
        open_source(ir_source(path), ".")
    source = open_source(ir_source(path), ".", skip=True)
    assert len(source) == 100
    assert source.num_scored == 0


SCORE_KEYS = ("positive_scores", "negative_scores", "pos_scores", "neg_scores", "scores", "label")


@pytest.mark.parametrize(
    "row",
    [
        OWN
        | {"negatives": ["n", " ", "m"], "positive_scores": [9, 8], "negative_scores": [1, 2, 3]},
        FLAG | {"neg": ["n", "", "m"], "pos_scores": [9, 8], "neg_scores": [1, 2, 3]},
        {"query": "q", "positive": ["p", "r"], "negative_1": ["n", ""], "negative_2": "m"}
        | {"scores": [9, 8, 1, 2, 3]},
        {"query": "q", "document": ["", "n", "p", "r", "m"], "labels": [0, 0, 1, 1, 0]}
        | {"scores": [0, 1, 9, 8, 3]},
    ],
)
def test_a_blank_negative_takes_its_score_with_it(tmp_path: Path, row: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    record = open_source(ir_source(path), ".", skip=True).record(0)
    assert record.negatives == ("n", "m")
    assert scores_of(record) == ((9, 8), (1, 3))


names = st.lists(st.integers(0, 50).map(str), min_size=1, max_size=6, unique=True)


@settings(max_examples=100, deadline=None)
@given(names, st.lists(st.integers(60, 99).map(str), max_size=6, unique=True), st.data())
def test_slots_keep_scores_and_draws_stay(
    positives: list[str], negatives: list[str], data: st.DataObject
) -> None:
    settings = IrRecipe(
        global_batch_size=1,
        positives=data.draw(st.integers(1, 8)),
        negatives=data.draw(st.integers(0, 8)),
    )
    key = data.draw(st.text(max_size=5))
    bare = IrRecord(query="q", positives=tuple(positives), negatives=tuple(negatives))
    taught = replace(
        bare,
        positive_scores=tuple(map(float, positives)),
        negative_scores=tuple(map(float, negatives)),
    )
    plain, scored = (draw_passages(record, settings, key) for record in (bare, taught))
    assert [one and one.text for one in plain] == [one and one.text for one in scored]
    assert all(one is None or one.score is None for one in plain)
    assert all(one is None or one.score == float(one.text) for one in scored)
    # the draws of earlier releases, which existing runs must keep
    choice, texts = random.Random(key), []
    for passages, count in ((negatives, settings.negatives), (positives, settings.positives)):
        repeats, rest = divmod(count, len(passages)) if passages else (0, 0)
        texts.append(passages * repeats + choice.sample(passages, rest))
    expected = [*texts[1], *(texts[0] or [None] * settings.negatives)]
    assert [one and one.text for one in scored] == expected


def batch_of(path: Path, workers: int = 0, **ir: int) -> IrBatch:
    """The first batch of all rows of a file."""
    num_rows = len(path.read_text().splitlines())
    recipe = data_recipe(
        [ir_source(path)], ir={"global_batch_size": num_rows} | ir, data={"workers": workers}
    )
    sources = open_sources(recipe.data)
    plan = make_plan(recipe, {source.name: len(source) for source in sources})
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
    batch = next(batches(plan, sources, encoder, recipe, 0, 1))
    assert isinstance(batch, IrBatch)
    assert_stored_alike(batch, sources[0], encoder, recipe)
    return batch


MIXED = [
    {"query": "1", "positives": ["2"], "negatives": ["3", "4"]}
    | {"positive_scores": [2], "negative_scores": [3, 4]},
    {"query": "5", "positives": ["6"], "negatives": ["7"]},
    {"query": "8", "positives": ["9"], "positive_scores": [9]},
]


def test_a_batch_has_the_score_of_each_slot(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", MIXED)
    batch = batch_of(path, positives=2, negatives=3)
    assert batch.teacher is not None
    assert batch.teacher.dtype == np.float32
    assert batch.teacher.shape == batch.passages.shape == (3, 5)
    tokenizer = byte_tokenizer()
    for number, index, passages, scores in zip(
        batch.plan.rows.tolist(), batch.query, batch.passages, batch.teacher, strict=True
    ):
        assert tokenizer.decode(batch.texts.token_ids[index]).startswith(MIXED[number]["query"])
        for slot, score in zip(passages, scores, strict=True):
            if slot < 0 or number == 1:
                assert math.isnan(score)
            else:
                text = tokenizer.decode(batch.texts.token_ids[slot])
                assert score == float(text.removesuffix("</s>"))
    assert np.isnan(batch.teacher[batch.plan.rows.tolist().index(2), 2:]).all()


def test_a_batch_without_scores_has_none_and_is_the_same(tmp_path: Path) -> None:
    scored = batch_of(write_jsonl(tmp_path / "a.jsonl", MIXED), positives=2, negatives=3)
    rows = [
        {key: value for key, value in row.items() if not key.endswith("_scores")} for row in MIXED
    ]
    bare = batch_of(write_jsonl(tmp_path / "b.jsonl", rows), positives=2, negatives=3)
    assert bare.teacher is None
    assert np.array_equal(bare.plan.rows, scored.plan.rows)
    assert np.array_equal(bare.passages, scored.passages)
    assert np.array_equal(bare.masked, scored.masked)


def test_workers_make_the_same_scores(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", MIXED)
    here, there = (batch_of(path, workers, negatives=2) for workers in (0, 2))
    assert here.teacher is not None
    assert there.teacher is not None
    assert np.array_equal(here.teacher, there.teacher, equal_nan=True)


@pytest.mark.parametrize("cached_from", [0, 100])
def test_rows_with_scores_are_counted(tmp_path: Path, monkeypatch, cached_from: int) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(table_scan, "CACHE_FROM_ROWS", cached_from)
    path = write_jsonl(tmp_path / "a.jsonl", MIXED)
    for _ in range(2):
        source = open_source(ir_source(path), ".")
        assert source.num_scored == 2
        assert source.describe == "records, 3 rows in 1 file(s), a teacher's scores in 2"
        assert scored_rows([source]) == {"set": 2}
        require_teacher(source, "tasks.ir.distillation")


NONE = {
    "records": (OWN, r"in positive_scores and negative_scores\. Add them, or remove tasks\.x or"),
    "flag": (FLAG, r"in pos_scores and neg_scores\. Add them"),
    "tevatron": (tevatron(None, None, None), r"in score of each of positive_passages and negative"),
    "mined": (TRIPLET, r"in scores, score, labels, label\. Add them"),
    "dpr": (
        {"question": "q", "positive_ctxs": [{"text": "p"}]},
        r"but its format has none\. Write its rows in a format that has them \(records, tevatron, "
        r"flag-embedding, sentence-transformers, by-order\), or remove tasks\.x",
    ),
}


@pytest.mark.parametrize(("row", "message"), NONE.values(), ids=NONE)
def test_a_source_without_scores_is_refused_where_they_are_needed(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    source = open_source(ir_source(write_jsonl(tmp_path / "a.jsonl", [row, row])), ".")
    assert scored_rows([source]) == {}
    head = r"data\.sources\.set: rows with a teacher's scores = 0 of 2; expected at least one for "
    with pytest.raises(DataError, match=rf"{head}tasks\.x, {message}"):
        require_teacher(source, "tasks.x")


def test_scores_do_not_make_a_row_another(tmp_path: Path) -> None:
    rows = [OWN, OWN | {"positive_scores": [1, 2], "negative_scores": [3, 4]}]
    source = open_source(ir_source(write_jsonl(tmp_path / "a.jsonl", rows)), ".")
    assert "1 repeat the texts of an earlier row" in source.describe
    assert json.loads(json.dumps(source.record(1).positive_scores)) == [1, 2]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"distillation": DistillationRecipe()}, "tasks.ir.distillation"),
        ({"mask": MaskRecipe(guide=True)}, "tasks.ir.mask.guide"),
    ],
)
def test_a_recipe_that_learns_from_a_teacher_needs_one_source_with_scores(
    tmp_path: Path, settings: dict[str, Any], key: str, caplog: pytest.LogCaptureFixture
) -> None:
    scored = OWN | {"positive_scores": [1, 2], "negative_scores": [3, 4]}
    named = [
        replace(ir_source(write_jsonl(tmp_path / f"{name}.jsonl", [row])), name=name)
        for name, row in (("without", OWN), ("with", scored))
    ]
    sources = [open_source(one, ".") for one in named]
    ir = IrRecipe(global_batch_size=1, **settings)
    recipe = tiny.make_recipe(tmp_path, data=DataRecipe(sources=tuple(named)), tasks={"ir": ir})
    with pytest.raises(DataError, match=rf"data.sources.without: .* at least one for {key}"):
        check_teachers(sources[:1], recipe)
    check_teachers(sources, recipe)
    assert f"data.sources.without: no row has a teacher's scores; {key}" in caplog.text
    plain = tiny.make_recipe(tmp_path, data=recipe.data)
    check_teachers(sources[:1], plain)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"in_batch": False}, "tasks.ir.in_batch"),
        ({"weights": {"infonce": 1.0, "hard_negatives": 1.0}}, "tasks.ir.weights.hard_negatives"),
        ({"distillation": DistillationRecipe()}, "tasks.ir.distillation"),
        ({}, None),
    ],
)
def test_a_loss_of_hard_negatives_needs_rows_that_have_some(
    tmp_path: Path, settings: dict[str, Any], key: str | None
) -> None:
    plain = {"query": "q", "positives": ["p"], "positive_scores": [1]}
    one = ir_source(write_jsonl(tmp_path / "a.jsonl", [plain] * 3))
    weights = {"weights": {"infonce": 1.0, "hard_negatives": 0.0}}
    ir = IrRecipe(global_batch_size=1, **(weights | settings))
    recipe = tiny.make_recipe(tmp_path, data=DataRecipe(sources=(one,)), tasks={"ir": ir})
    sources = [open_source(one, ".")]
    if key is None:
        check_negatives(sources, recipe)
        return
    with pytest.raises(DataError, match=rf"hard negatives = 0 of 3 .* expected some for {key}\."):
        check_negatives(sources, recipe)
    with_some = ir_source(write_jsonl(tmp_path / "b.jsonl", [plain, OWN]))
    check_negatives([open_source(with_some, ".")], recipe)


@pytest.mark.parametrize(
    ("in_batch", "said"),
    [
        (False, r"for data\.sources\.set\.in_batch\. Mine negatives, or remove "
                r"data\.sources\.set\.in_batch or the source\.$"),
        (None, r"for data\.sources\.set\.in_batch=false, which path means as it ends in "
               r"no_in_batch_neg\. Mine negatives, set data\.sources\.set\.in_batch=true, or "
               r"remove the source\.$"),
    ],
)  # fmt: skip
def test_the_key_that_needs_negatives_is_one_that_can_be_changed(
    tmp_path: Path, in_batch: bool | None, said: str
) -> None:
    path = write_jsonl(tmp_path / "a-no_in_batch_neg.jsonl", [{"query": "q", "positives": ["p"]}])
    one = ir_source(path, in_batch=in_batch)
    recipe = tiny.make_recipe(tmp_path, data=DataRecipe(sources=(one,)))
    with pytest.raises(DataError, match=said):
        check_negatives([open_source(one, ".")], recipe)


NO_INFONCE = {"infonce": 0.0, "hard_negatives": 0.0}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"weights": {"infonce": 1.0, "hard_negatives": 1.0}}, "tasks.ir.weights.hard_negatives"),
        ({"distillation": DistillationRecipe()}, "tasks.ir.distillation"),
        ({"mask": MaskRecipe(guide=True)}, "tasks.ir.mask.guide"),
    ],
)
@pytest.mark.parametrize("own", [None, 0])
def test_a_source_without_hard_negatives_trains_the_other_terms(
    tmp_path: Path,
    settings: dict[str, Any],
    key: str,
    own: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = {
        "with": OWN | {"positive_scores": [1, 2], "negative_scores": [3, 4]},
        # as many rows: what decides is whether one has hard negatives
        "pairs": {"query": "q", "positives": ["p"], "positive_scores": [1]},
    }
    named = [
        replace(ir_source(write_jsonl(tmp_path / f"{name}.jsonl", [row])), name=name)
        for name, row in rows.items()
    ]
    named[1] = replace(named[1], negatives=own)
    sources = [open_source(one, ".") for one in named]
    ir = IrRecipe(global_batch_size=2, **settings)
    recipe = tiny.make_recipe(tmp_path, data=DataRecipe(sources=tuple(named)), tasks={"ir": ir})
    check_teachers(sources, recipe)
    check_negatives(sources, recipe)
    told = [line for line in caplog.messages if "counts for other sources alone" in line]
    assert told == [
        f"data.sources.pairs: no row has hard negatives; {key} counts for other sources alone"
    ]
    with pytest.raises(DataError, match=rf"data\.sources\.pairs: .*negatives = 0.* for {key}\."):
        check_negatives(sources[1:], recipe)
    alone = replace(named[1], in_batch=False)
    data = DataRecipe(sources=(named[0], alone))
    needs = tiny.make_recipe(tmp_path, data=data, tasks={"ir": ir})
    with pytest.raises(
        DataError, match=r"data\.sources\.pairs: .* for data\.sources\.pairs\.in_batch\."
    ):
        check_negatives(sources, needs)


def test_a_source_without_scores_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scored = OWN | {"positive_scores": [1, 2], "negative_scores": [3, 4]}
    named = [
        replace(ir_source(write_jsonl(tmp_path / f"{name}.jsonl", [row])), name=name)
        for name, row in (("pairs", {"query": "q", "positives": ["p"]}), ("with", scored))
    ]
    sources = [open_source(one, ".") for one in named]
    ir = IrRecipe(global_batch_size=2, distillation=DistillationRecipe())
    recipe = tiny.make_recipe(tmp_path, data=DataRecipe(sources=tuple(named)), tasks={"ir": ir})
    check_teachers(sources, recipe)
    check_negatives(sources, recipe)
    assert [line for line in caplog.messages if "counts for other sources alone" in line] == [
        "data.sources.pairs: no row has a teacher's scores; tasks.ir.distillation counts for other "
        "sources alone"
    ]
    # without InfoNCE its steps have no loss
    bare = replace(ir, weights=NO_INFONCE)
    recipe = tiny.make_recipe(tmp_path, data=recipe.data, tasks={"ir": bare})
    with pytest.raises(DataError, match=r"data\.sources\.pairs: .* for tasks\.ir\.distillation\."):
        check_negatives(sources, recipe)


@pytest.mark.parametrize("label", ["entailment", True, [1, 0]])
def test_labels_are_no_scores(tmp_path: Path, label: object) -> None:
    row = {"anchor": "q", "positive": "p", "negative": "n", "label": label}
    source = open_source(ir_source(write_jsonl(tmp_path / "a.jsonl", [row])), ".")
    assert source.num_scored == 0
    assert source.record(0).positive_scores is None
