"""Global batches: slots, deduplication and masks, as worked out by hand."""

import dataclasses

import numpy as np
import pytest
from tokenizers import normalizers

from tests.support.both_modes import assert_stored_alike
from tests.support.data_files import byte_tokenizer, data_recipe, write_jsonl
from trainer.data.batch import IrBatch, StsBatch
from trainer.data.ir import draw_passages
from trainer.data.known_positives import ABSENT, known_positives
from trainer.data.loader import batches
from trainer.data.plan import make_plan
from trainer.data.records import IrRecord
from trainer.data.sources import open_sources
from trainer.data.tokens import make_encoder
from trainer.recipe.ir import IrRecipe
from trainer.recipe.schema import Recipe, SourceRecipe


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def first_batch(recipe: Recipe, tokenizer, step: int = 0):
    sources = open_sources(recipe.data)
    plan = make_plan(recipe, {source.name: len(source) for source in sources})
    encoder = make_encoder(tokenizer, recipe.data, pooling=recipe.model.pooling)
    batch = next(batches(plan, sources, encoder, recipe, step, step + 1))
    source = next(one for one in sources if one.name == batch.plan.source)
    assert_stored_alike(batch, source, encoder, recipe)
    return batch


def decoded(batch, tokenizer) -> list[str]:
    return [tokenizer.decode(ids) for ids in batch.texts.token_ids]


def ir_recipe(tmp_path, rows: list[dict[str, object]], **ir: object) -> Recipe:
    path = write_jsonl(tmp_path / "ir.jsonl", rows)
    source = SourceRecipe(
        name="ir", task="ir", path=str(path), query_instruction="Q:", passage_instruction="P:"
    )
    return data_recipe([source], ir={"global_batch_size": len(rows)} | ir, pooling="mean")


def test_an_ir_batch_holds_each_text_once_and_points_to_it(tmp_path, tokenizer):
    rows = [
        {"query": "cat", "positives": ["mat"], "negatives": ["dog"]},
        {"query": "sat", "positives": ["ran"], "negatives": ["mat"]},
    ]
    recipe = ir_recipe(tmp_path, rows)
    batch = first_batch(recipe, tokenizer)
    assert isinstance(batch, IrBatch)
    texts = decoded(batch, tokenizer)
    assert len(texts) == len(set(texts)) == 5
    for row, number in enumerate(batch.plan.rows):
        assert texts[batch.query[row]] == "Q:" + rows[number]["query"]
        expected = ["P:" + rows[number]["positives"][0], "P:" + rows[number]["negatives"][0]]
        assert [texts[index] for index in batch.passages[row]] == expected
    assert batch.passages.dtype == batch.query.dtype == batch.masked.dtype == np.int64
    # "mat", the positive of "cat", is the negative of "sat": masked for "cat" alone.
    cat = [texts[index] for index in batch.query].index("Q:cat")
    assert batch.masked.tolist() == [[cat, 2 * (1 - cat) + 1]]


def test_mask_none_masks_nothing(tmp_path, tokenizer):
    rows = [{"query": "q", "positives": ["p"]}, {"query": "r", "positives": ["p"]}]
    recipe = ir_recipe(tmp_path, rows, mask="none")
    assert first_batch(recipe, tokenizer).masked.shape == (0, 2)


def test_known_positives_worked_out_by_hand():
    query = np.array([20, 21, 20, 22])  # the first and the third are the same
    positives = np.array([1, 2, 3, 4, 5, ABSENT, 3])
    counts = np.array([3, 1, 2, 1])
    passages = np.array([[1, 9, 2], [4, 1, 8], [5, 7, 3], [3, 6, ABSENT]])
    # Known of query 20: 1, 2, 3 and 5, through both records; own slot 0 stays a target.
    expected = {
        (0, 2),  # its own negative is one of its positives
        (0, 4),  # 1 as negative of 21
        (0, 6),  # 5, positive of the other record of 20
        (0, 8),  # 3, not drawn, as negative of the other 20
        (0, 9),  # 3 as positive of 22
        (2, 0),
        (2, 2),
        (2, 4),
        (2, 8),
        (2, 9),
        (3, 8),
    }
    found = known_positives(query, positives, counts, passages, num_positives=1).tolist()
    assert set(map(tuple, found)) == expected
    assert len(found) == len(expected)


def masked_by_query(batch, tokenizer) -> dict[str, list[tuple[str, int]]]:
    """Masked candidates of each query: the query they stand beside, and their slot."""
    names = [tokenizer.decode(batch.texts.token_ids[index]) for index in batch.query]
    width = batch.passages.shape[1]
    found = {}
    for row, column in batch.masked.tolist():
        found.setdefault(names[row], []).append((names[column // width], column % width))
    return {name: sorted(places) for name, places in found.items()}


def test_passages_that_are_cut_to_the_same_tokens_are_no_negatives_of_each_other(
    tmp_path, tokenizer
):
    same = "the cat sat on the mat and the dog ran "
    rows = [
        {"query": "a", "positives": [same + "one"], "negatives": [same + "two"]},
        {"query": "b", "positives": [same + "three"], "negatives": ["dog"]},
        {"query": "c", "positives": ["ran"], "negatives": [same + "four"]},
    ]
    recipe = ir_recipe(tmp_path, rows)
    whole = first_batch(recipe, tokenizer)
    assert len(whole.texts.token_ids) == 9
    assert whole.masked.shape == (0, 2)
    data = dataclasses.replace(recipe.data, passage_max_tokens=8)
    cut = first_batch(dataclasses.replace(recipe, data=data), tokenizer)
    assert len(cut.texts.token_ids) == 6  # the four that are now the same are embedded once
    assert masked_by_query(cut, tokenizer) == {
        "Q:a": [("Q:a", 1), ("Q:b", 0), ("Q:c", 1)],
        "Q:b": [("Q:a", 0), ("Q:a", 1), ("Q:c", 1)],
    }


def test_queries_that_are_cut_to_the_same_tokens_share_their_positives(tmp_path, tokenizer):
    same = "the cat sat on the mat and the dog ran "
    rows = [
        {"query": same + "one", "positives": ["mat"], "negatives": ["dog"]},
        {"query": same + "two", "positives": ["ran"], "negatives": ["cat"]},
    ]
    recipe = ir_recipe(tmp_path, rows)
    assert first_batch(recipe, tokenizer).masked.shape == (0, 2)
    data = dataclasses.replace(recipe.data, query_max_tokens=8)
    cut = first_batch(dataclasses.replace(recipe, data=data), tokenizer)
    # each one's positive slot is masked for the other
    assert sorted(cut.masked.tolist()) == [[0, 2], [1, 0]]


def test_texts_that_the_tokenizer_makes_equal_are_equal_in_masks(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase()]
    )
    rows = [
        {"query": "one", "positives": ["the CAT"], "negatives": ["dog"]},
        {"query": "two", "positives": ["ran"], "negatives": ["The \ufb01sh", "The \ufb01sh"]},
        {"query": "ONE", "positives": ["the fish"], "negatives": ["The cat"]},
    ]
    batch = first_batch(ir_recipe(tmp_path, rows), tokenizer)
    assert len(batch.texts.token_ids) == 2 + 4
    names = [["one", "two", "ONE"][row] for row in batch.plan.rows]
    found = sorted((names[row], names[column // 2], column % 2) for row, column in batch.masked)
    assert found == [
        ("ONE", "ONE", 1),
        ("ONE", "one", 0),
        ("ONE", "two", 1),
        ("one", "ONE", 0),
        ("one", "ONE", 1),
        ("one", "two", 1),
    ]


def test_positives_that_were_not_drawn_are_known_by_their_tokens_too(tmp_path, tokenizer):
    same = "the cat sat on the mat and the dog ran "
    rows = [
        {"query": "a", "positives": [same + str(i) for i in range(9)], "negatives": ["dog"]},
        {"query": "b", "positives": ["ran"], "negatives": [same + "else"]},
    ]
    recipe = ir_recipe(tmp_path, rows)
    data = dataclasses.replace(recipe.data, passage_max_tokens=8)
    batch = first_batch(dataclasses.replace(recipe, data=data), tokenizer)
    assert masked_by_query(batch, tokenizer) == {"Q:a": [("Q:b", 1)]}
    # and they are not embedded: there are two queries and three passages
    assert len(batch.texts.token_ids) == 5
    undrawn = [{"query": "a", "positives": ["mat", "MAT"]}, {"query": "b", "positives": ["ran"]}]
    assert len(first_batch(ir_recipe(tmp_path, undrawn), tokenizer).texts.token_ids) == 4


def test_slots_are_filled_by_drawing_again():
    ir = IrRecipe(global_batch_size=1, positives=5, negatives=3)
    record = IrRecord(query="q", positives=("a", "b"), negatives=("x", "y", "z", "w"))
    seen = set()
    for seed in range(20):
        drawn = [slot.text for slot in draw_passages(record, ir, str(seed))]
        assert drawn == [slot.text for slot in draw_passages(record, ir, str(seed))]
        assert sorted(drawn[:5]) in (["a", "a", "a", "b", "b"], ["a", "a", "b", "b", "b"])
        assert len(set(drawn[5:])) == 3
        seen.add(tuple(drawn))
    assert len(seen) > 10


def test_records_without_negatives_leave_their_slots_absent(tmp_path, tokenizer):
    rows = [{"query": "cat", "positives": ["mat"]}, {"query": "dog", "positives": ["ran"]}]
    batch = first_batch(ir_recipe(tmp_path, rows, negatives=2), tokenizer)
    assert (batch.passages[:, 1:] == ABSENT).all()
    assert (batch.passages[:, 0] >= 0).all()
    assert len(batch.texts.token_ids) == 4
    batch = first_batch(ir_recipe(tmp_path, rows, negatives=0), tokenizer)
    assert batch.passages.shape == (2, 1)


def test_an_sts_batch_keeps_pairs_and_scores(tmp_path, tokenizer):
    rows = [{"text1": "cat", "text2": f"dog {i % 3}", "score": i} for i in range(6)]
    path = write_jsonl(tmp_path / "sts.jsonl", rows)
    source = SourceRecipe(name="sts", task="sts", path=str(path), query_instruction="S:")
    batch = first_batch(data_recipe([source], sts={"global_batch_size": 6}), tokenizer)
    assert isinstance(batch, StsBatch)
    texts = decoded(batch, tokenizer)
    assert len(texts) == 4
    for row, number in enumerate(batch.plan.rows):
        assert texts[batch.text1[row]] == "S:cat"
        assert texts[batch.text2[row]] == "S:" + rows[number]["text2"]
    assert batch.score.tolist() == pytest.approx([number / 5 for number in batch.plan.rows])
    assert batch.score.dtype == np.float32


def test_a_row_draws_anew_when_it_comes_again(tmp_path, tokenizer):
    rows = [{"query": "q", "positives": ["p"], "negatives": [f"n{i}" for i in range(50)]}]
    recipe = ir_recipe(tmp_path, rows)
    drawn = {decoded(first_batch(recipe, tokenizer, step), tokenizer)[-1] for step in range(6)}
    assert len(drawn) > 3


def test_a_source_has_slots_and_rows_of_its_own(tmp_path, tokenizer):
    rows = [{"query": f"q {i}", "positives": ["p"], "negatives": ["n", "m"]} for i in range(6)]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    own = {"global_batch_size": 2, "negatives": 5}
    sources = [
        SourceRecipe(name="usual", task="ir", path=path),
        SourceRecipe(name="own", task="ir", path=path, **own),
    ]
    recipe = data_recipe(sources, ir={"global_batch_size": 4, "negatives": 1})
    shapes = {}
    for step in range(2):
        batch = first_batch(recipe, tokenizer, step)
        shapes[batch.plan.source] = batch.passages.shape
        assert len(batch.plan.rows) == len(batch.query)
    assert shapes == {"usual": (4, 2), "own": (2, 6)}
    # what is overridden is what a task would say
    alone = data_recipe(sources[1:], ir=own)
    plain = data_recipe([dataclasses.replace(sources[1], global_batch_size=None, negatives=None)],
                        ir=own)  # fmt: skip
    for step in range(4):
        one, other = (first_batch(recipe, tokenizer, step) for recipe in (alone, plain))
        assert np.array_equal(one.plan.rows, other.plan.rows)
        assert np.array_equal(one.passages, other.passages)
