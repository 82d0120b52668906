"""Labelled texts: rows of every layout, the index by label, draws, batches, and bad input."""

import dataclasses
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.both_modes import assert_stored_alike
from tests.support.data_files import (
    all_records,
    byte_tokenizer,
    data_recipe,
    labels_source,
    write_jsonl,
)
from trainer.data import label_source
from trainer.data.batch import LabelsBatch
from trainer.data.collate import make_batch
from trainer.data.known_positives import ABSENT
from trainer.data.label_source import LabelledSource
from trainer.data.labels import check_labels, draw
from trainer.data.planned import plan_of
from trainer.data.sources import open_source, open_sources
from trainer.data.tokens import make_encoder
from trainer.errors import DataError, RecipeError
from trainer.recipe.labels import LabelsRecipe, LabelTextsRecipe
from trainer.recipe.schema import Recipe

COLOURS = {"red": 6, "green": 4, "blue": 2}
"""Labels and how many texts each has."""


def coloured() -> list[dict[str, str]]:
    return [
        {"text": f"{label} {n}", "label": label} for label, size in COLOURS.items() for n in
        range(size)
    ]  # fmt: skip


def opened(path: Path, **changes: Any) -> LabelledSource:
    source = open_source(labels_source(path, **changes), ".")
    assert isinstance(source, LabelledSource)
    return source


def pairs(source: LabelledSource) -> list[tuple[str, tuple[str, ...]]]:
    found = [source.record(row) for row in range(len(source))]
    return [(one.text, one.labels) for one in found]


LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "own": [{"text": "a", "label": 0}, {"text": "b", "label": 0}, {"text": "c", "label": 1},
            {"text": "d", "label": 1}],
    "sentence": [{"sentence": "a", "label": 0}, {"sentence": "b", "label": 0},
                 {"sentence": "c", "label": 1}, {"sentence": "d", "label": 1}],
    "both labels": [{"text": "a", "label": 0, "label_text": "x"},
                    {"text": "b", "label": 0, "label_text": "x"},
                    {"text": "c", "label": 1, "label_text": "y"},
                    {"text": "d", "label": 1, "label_text": "y"}],
    "label_text": [{"text": "a", "label_text": "0"}, {"text": "b", "label_text": "0"},
                   {"text": "c", "label_text": "1"}, {"text": "d", "label_text": "1"}],
    "lists": [{"text": "a", "labels": [0]}, {"text": "b", "labels": [0, 0]},
              {"text": "c", "labels": [1]}, {"text": "d", "labels": [1]}],
    "mteb": [{"sentences": ["a", "b", "c"], "labels": [0, 0, 1]},
             {"sentences": ["d"], "labels": [1]}],
}  # fmt: skip


@pytest.mark.parametrize("rows", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_the_same_texts_and_labels(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    source = opened(write_jsonl(tmp_path / "a.jsonl", rows))
    expected = [("a", ("0",)), ("b", ("0",)), ("c", ("1",)), ("d", ("1",))]
    assert pairs(source) == expected
    assert "4 texts of 2 labels" in source.describe


def test_a_table_of_texts_has_text_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,x\nb,x\nc,y\nd,y\n")
    assert pairs(opened(path))[2] == ("c", ("y",))


def test_rows_of_one_text_are_one_text_with_all_their_labels(tmp_path: Path) -> None:
    rows = [("a", "x"), ("b", "y"), ("a", "y"), ("c", "x"), ("a", "x"), ("d", "z"), ("e", "z")]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": t, "label": label} for t, label in rows])
    source = opened(path)
    assert pairs(source) == [
        ("a", ("x", "y")), ("b", ("y",)), ("c", ("x",)), ("d", ("z",)), ("e", ("z",))
    ]  # fmt: skip
    assert [source.place(row) for row in range(5)] == [f"{path}:{n}" for n in (1, 2, 4, 6, 7)]
    assert [source.index.texts_of(label).tolist() for label in range(3)] == [[0, 2], [0, 1], [3, 4]]
    assert source.index.num_pairs == 6


def test_labels_of_a_single_text_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*coloured(), {"text": "q", "label": "pink"}, {"text": "r", "labels": ["grey", "red"]}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    source = opened(path)
    assert "q" not in dict(pairs(source))
    assert dict(pairs(source))["r"] == ("red", "grey")
    assert (
        'data.sources.set: 2 labels have a single text, so nothing is a positive for it: "pink", '
        '"grey". Texts without another label, 1, are left out' in caplog.text
    )
    # its other label is what positives are drawn of
    assert [source.index.names[label] for label in source.drawable(len(source) - 1)] == ["red"]
    assert len(source.classes()) == 3


def test_an_index_from_the_cache_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", coloured())
    plain = opened(path)
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(label_source, "CACHE_FROM_ROWS", 1)
    for _ in range(2):
        cached = opened(path)
        assert cached.index.names == plain.index.names
        for name, array in plain.index.arrays.items():
            assert np.array_equal(cached.index.arrays[name], array), name
    assert isinstance(cached.index.texts, np.memmap)


def step_of(
    path: Path, *, texts: Any = None, step: int = 0, sampled: Any = None, **settings: Any
) -> tuple[Recipe, LabelledSource, Any]:
    changes = {"query_instruction": "Q:", "passage_instruction": "P:", "label_texts": texts}
    recipe = data_recipe([labels_source(path, **changes)], labels=settings)
    (source,) = open_sources(recipe.data)
    assert isinstance(source, LabelledSource)
    return recipe, source, plan_of(recipe, [source]).at(step)


def label_of(text: str) -> str:
    return text.split()[0]


@pytest.mark.parametrize("balance", ["rows", "classes"])
def test_positives_are_of_the_label_and_negatives_of_others(tmp_path: Path, balance: Any) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", coloured())
    settings = LabelsRecipe(global_batch_size=12, positives=3, negatives=4, balance=balance)
    seen = set()
    for step in range(5):
        _, source, plan = step_of(path, step=step, global_batch_size=12, balance=balance)
        drawn = draw(plan, source, settings, 1)
        assert drawn == draw(plan, source, settings, 1)
        for one in drawn:
            own = label_of(one.anchor.text)
            positives = [sample.text for sample in one.positives]
            assert {label_of(text) for text in positives} == {own}
            assert one.anchor.text not in positives
            others = COLOURS[own] - 1
            assert Counter(Counter(positives).values()) == ({1: 3} if others >= 3 else {3: 1})
            negatives = [sample.text for sample in one.negatives]
            assert len(set(negatives)) == 4
            assert own not in {label_of(text) for text in negatives}
        seen.add(str(drawn))
    assert len(seen) == 5


def test_negatives_share_no_label_and_empty_slots_say_that_there_are_none(tmp_path: Path) -> None:
    rows = [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": ["x", "y"]},
            {"text": "c", "labels": ["x"]}, {"text": "d", "labels": ["z", "y"]},
            {"text": "e", "labels": ["z"]}]  # fmt: skip
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    for balance in ("rows", "classes"):
        settings = {"global_batch_size": 5, "negatives": 3, "balance": balance}
        _, source, plan = step_of(path, **settings)
        drawn = draw(plan, source, LabelsRecipe(**settings), 1)
        found = {one.anchor.text: {sample.text for sample in one.negatives} for one in drawn}
        expected = {"a": {"e"}, "b": {"e"}, "c": {"d", "e"}, "d": {"c"}, "e": {"a", "b", "c"}}
        assert {name: found[name] for name in found} == {name: expected[name] for name in found}


def test_classes_are_drawn_equally_often_and_rows_within_them(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", coloured())
    recipe, source, _ = step_of(path, global_batch_size=6, balance="classes")
    plan = plan_of(recipe, [source])
    steps = [plan.source_step("set", turn, turn).rows for turn in range(12)]
    texts = [source.text(row) for row in np.concatenate(steps).tolist()]
    for first in range(0, 72, 3):
        assert {label_of(text) for text in texts[first : first + 3]} == set(COLOURS)
    counts = Counter(texts)
    for label, times in {"red": [4] * 6, "green": [6] * 4, "blue": [12] * 2}.items():
        assert [counts[f"{label} {n}"] for n in range(COLOURS[label])] == times
    # no step needs the ones before it
    assert [plan.source_step("set", turn, 0).rows.tolist() for turn in (7, 3)] == [
        steps[7].tolist(), steps[3].tolist()
    ]  # fmt: skip


def test_the_exposure_of_classes_is_counted_row_by_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", coloured())
    recipe, source, _ = step_of(path, global_batch_size=5, balance="classes")
    plan = plan_of(recipe, [source])
    for num_steps in range(7):
        rows = [plan.at(step).rows for step in range(num_steps)]
        counts = np.bincount(np.concatenate([*rows, np.empty(0, np.int64)]), minlength=12)
        (seen,) = plan.exposure(num_steps)
        assert (seen.rows_seen, seen.steps) == (5 * num_steps, num_steps)
        assert [seen.never, seen.once, seen.twice, seen.more] == [
            int((counts == 0).sum()), int((counts == 1).sum()), int((counts == 2).sum()),
            int((counts > 2).sum()),
        ]  # fmt: skip


def batch_of(recipe: Recipe, source: LabelledSource, plan: Any) -> tuple[LabelsBatch, list[str]]:
    tokenizer = byte_tokenizer()
    encoder = make_encoder(tokenizer, recipe.data, pooling="last")
    batch = make_batch(plan, source, encoder, recipe)
    assert isinstance(batch, LabelsBatch)
    assert_stored_alike(batch, source, encoder, recipe)
    return batch, [tokenizer.decode(ids) for ids in batch.texts.token_ids]


def test_a_batch_has_texts_on_one_side_and_their_labels(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", coloured())
    recipe, source, plan = step_of(path, global_batch_size=6, positives=2, negatives=3)
    batch, texts = batch_of(recipe, source, plan)
    assert len(set(texts)) == len(texts)
    assert all(text.startswith("Q:") for text in texts)
    assert batch.passages.shape == (6, 5)
    names = source.index.names
    found = {(texts[text].removeprefix("Q:"), names[label]) for text, label in batch.members}
    assert found == {(text.removeprefix("Q:"), label_of(text.removeprefix("Q:"))) for text in texts}
    for row, anchor in enumerate(batch.query):
        colours = [label_of(texts[text]) for text in batch.passages[row]]
        own = label_of(texts[anchor])
        assert colours[:2] == [own] * 2
        assert own not in colours[2:]
    assert batch.num_masked == 0


def test_candidates_of_the_batch_that_share_a_label_are_counted(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", coloured())
    settings = {"global_batch_size": 6, "positives": 1, "negatives": 2}
    recipe, source, plan = step_of(path, **settings, objective="in_batch")
    batch, texts = batch_of(recipe, source, plan)
    expected = sum(
        label_of(texts[anchor]) == label_of(texts[text]) and (row, 0) != (other, slot)
        for row, anchor in enumerate(batch.query)
        for other, slots in enumerate(batch.passages)
        for slot, text in enumerate(slots)
    )
    assert batch.num_masked == expected > 0
    recipe, source, plan = step_of(path, **settings, objective="supcon")
    assert batch_of(recipe, source, plan)[0].num_masked == 0


def test_texts_that_became_the_same_tokens_have_the_labels_of_all(tmp_path: Path) -> None:
    same = "the cat sat on the mat and the dog ran"
    rows = [{"text": f"{same} {n}", "label": n % 2} for n in range(4)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    recipe, source, plan = step_of(path, global_batch_size=4, negatives=1)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, query_max_tokens=8))
    batch, _ = batch_of(recipe, source, plan)
    assert batch.members.tolist() == [[0, 0], [0, 1]]
    # each one's negative is its own tokens
    assert batch.num_masked == 4


def test_label_texts_are_passages(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*coloured(), {"text": "pink 0", "label": "pink"}])
    given = {label: f"of {label}" for label in (*COLOURS, "pink", "unused")}
    file = tmp_path / "texts.json"
    file.write_text(json.dumps(given))
    for texts in (given, str(file)):
        recipe, source, plan = step_of(path, texts=texts, global_batch_size=13, negatives=2)
        batch, decoded = batch_of(recipe, source, plan)
        assert sorted(decoded[index] for index in batch.query) == sorted(
            f"Q:{label} {n}" for label, size in {**COLOURS, "pink": 1}.items() for n in range(size)
        )
        for row, anchor in enumerate(batch.query):
            own = decoded[anchor].removeprefix("Q:").split()[0]
            slots = [decoded[text] for text in batch.passages[row]]
            assert slots[0] == f"P:of {own}"
            assert len(set(slots)) == 3
            assert set(slots) <= {f"P:of {label}" for label in (*COLOURS, "pink")}
        record = source.record(0)
        assert record.texts == ("red 0", "of red")
    both = [{"text": f"t {n}", "labels": ["red", "green"]} for n in range(3)]
    path = write_jsonl(tmp_path / "b.jsonl", [*coloured(), *both])
    for step in range(4):
        settings = {"global_batch_size": 9, "negatives": 2}
        _, source, plan = step_of(path, texts=given, step=step, **settings)
        drawn = draw(plan, source, LabelTextsRecipe(**settings), 1)
        for one in drawn:
            if one.anchor.text.startswith("t "):
                assert one.positives[0].text in ("of red", "of green")
                # blue is the only other label
                assert [sample.text for sample in one.negatives] == ["of blue"]


def test_slots_without_a_negative_are_absent(tmp_path: Path) -> None:
    rows = [{"text": f"{label} {n}", "label": label} for label in "ab" for n in range(2)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    recipe, source, plan = step_of(path, global_batch_size=4, negatives=3)
    batch, _ = batch_of(recipe, source, plan)
    assert (batch.passages[:, 3] == ABSENT).all()
    assert (batch.passages[:, :3] >= 0).all()


BAD_ROWS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "one label": ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}],
                  r'data\.sources\.set: labels = 1 \("x"\); expected at least 2'),
    "one label and single texts": (
        [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}, {"text": "c", "label": "y"}],
        r'labels = 1 \("x"\) beside 1 of a single text; expected at least 2'),
    "only single texts": ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}],
                          r"labels = 0 beside 2 of a single text; expected at least 2"),
    "a label on every text": (
        [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": ["x", "y"]},
         {"text": "c", "labels": ["x", "z"]}, {"text": "d", "labels": ["x", "z"]}],
        r'texts with label "x" = all 4; expected some without it'),
    "two types": ([{"text": "a", "label": 0}, {"text": "b", "label": "x"}],
                  r'a\.jsonl:2: label = "x"; expected a whole number, as 0 of .*a\.jsonl:1 is'),
    "two types in a list": ([{"text": "a", "label": [0, "x"]}],
                            r'a\.jsonl:1: label = \[0, "x"\]; expected whole numbers alone'),
    "a number with a point": ([{"text": "a", "label": 0.5}],
                              r"a\.jsonl:1: label = 0\.5; expected a label: a text or a whole"),
    "a truth value": ([{"text": "a", "label": True}], r"label = true; expected a label: a text"),
    "no label": ([{"text": "a", "label": "x"}, {"text": "b"}],
                 r"a\.jsonl:2: label = nothing; expected a label: a text"),
    "an empty list": ([{"text": "a", "label": []}], r"label = \[\]; expected at least one label"),
    "a blank label": ([{"text": "a", "label": " "}], r"label = \" \"; expected a text that is not"),
    "a blank text": ([{"text": "a", "label": 0}, {"text": " ", "label": 0}],
                     r'a\.jsonl:2: text = " "; expected a text that is not empty'),
    "lists of two lengths": ([{"sentences": ["a", "b"], "labels": [0]}],
                             r"labels = 1 of 2 texts; expected one for each text"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_refused_by_name(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        opened(write_jsonl(tmp_path / "a.jsonl", rows))


BAD_TEXTS: dict[str, tuple[Any, str]] = {
    "missing": ({"red": "r", "blue": "b"},
                r'set\.label_texts: labels without a text = "green" \(1 of 3\); expected a text'),
    "blank": ({"red": "r", "blue": "b", "green": " "}, r'label "green" = " "; expected a text'),
    "twice": ({"red": "r", "blue": "b", "green": "r"},
              r'label "green" = "r"; expected a text that no other label has, and "red" has it'),
    "no file": ("none.json", r"label_texts = none\.json \(No such file or directory\); expected"),
}  # fmt: skip


@pytest.mark.parametrize(("texts", "message"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_label_texts_are_refused_by_name(tmp_path: Path, texts: Any, message: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", coloured())
    with pytest.raises(DataError, match=message):
        opened(path, label_texts=texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]", r"\(\[1\], no object\); expected a JSON file"), ("{", r"\(not JSON \(.*; expected"),
     ('{"red": 3, "green": "g", "blue": "b"}', r'texts\.json: label "red" = 3; expected a text')],
)  # fmt: skip
def test_a_file_of_label_texts_is_checked(tmp_path: Path, content: str, message: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", coloured())
    (tmp_path / "texts.json").write_text(content)
    with pytest.raises(DataError, match=message):
        opened(path, label_texts=str(tmp_path / "texts.json"))


def test_more_negatives_than_other_labels_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", coloured())
    texts = {label: f"of {label}" for label in COLOURS}
    recipe, source, _ = step_of(path, texts=texts, negatives=3)
    with pytest.raises(RecipeError, match=r"tasks\.labels\.negatives = 3; expected at most 2, as"):
        check_labels([source], recipe)
    check_labels([opened(path)], recipe)


def test_fewer_rows_than_a_batch_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", coloured())
    with pytest.raises(RecipeError, match=r"global_batch_size = 13; expected at most 12, the rows"):
        step_of(path, global_batch_size=13)


def test_a_malformed_row_is_left_out_where_the_recipe_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, Any]] = [{"text": f"t {n}", "label": n % 2} for n in range(200)]
    rows[7] = {"text": "", "label": 0}
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        source = open_source(labels_source(path), ".", skip=True)
    assert len(source) == 199
    assert "a.jsonl:8" in caplog.text


def test_records_are_what_the_files_say(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", coloured())
    assert [one.text for one in all_records(labels_source(path))] == [
        row["text"] for row in coloured()
    ]
