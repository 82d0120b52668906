"""A teacher's vectors: found by text, checked with the source, and beside the texts of a batch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny
from tests.support.both_modes import assert_stored_alike
from tests.support.data_files import (
    byte_tokenizer,
    data_recipe,
    ir_source,
    sts_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from trainer.data import table_scan, teacher, teacher_vectors
from trainer.data.batch import Batch
from trainer.data.loader import batches
from trainer.data.plan import make_plan
from trainer.data.sources import Source, open_source, open_sources
from trainer.data.teacher import (
    check_negatives,
    check_teacher_vectors,
    check_teachers,
    check_widths,
    taught_sources,
    teacher_size,
)
from trainer.data.teacher_vectors import NO_ROW, open_teacher_vectors
from trainer.data.tokens import make_encoder
from trainer.errors import DataError
from trainer.recipe.embedding_distillation import EmbeddingDistillationRecipe
from trainer.recipe.ir import IrRecipe, MaskRecipe
from trainer.recipe.schema import DataRecipe, ProjectionRecipe, Recipe, SourceRecipe

ROWS = [
    {"query": "one", "positives": ["two", "six"], "negatives": ["three"]},
    {"query": "four", "positives": ["two"], "negatives": ["five", "one"]},
]
PAIRS = [
    {"text1": "one", "text2": "two", "score": 1.0},
    {"text1": "three", "text2": "four", "score": 0.0},
]
TEXTS = ["six", "one", "two", "three", "four", "five"]
SIZE = 4


def vector_of(text: str) -> np.ndarray:
    """What the teacher says of a text [SIZE], the same in both dtypes."""
    return np.array([len(text), *map(ord, text.ljust(2)[:2]), -1], np.float32)


def write_teacher(folder: Path, texts: list[str] = TEXTS, dtype: Any = np.float16) -> Path:
    """Vectors and texts as a user writes them."""
    write_jsonl(folder / "texts.jsonl", texts)
    np.save(folder / "embeddings.npy", np.stack([*map(vector_of, texts)]).astype(dtype))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_teacher(tmp_path / "teacher")


def ir_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


def taught(tmp_path: Path, folder: Path) -> SourceRecipe:
    return ir_source(ir_file(tmp_path), teacher_embeddings=str(folder))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_vectors_are_found_by_text_and_stay_on_disk(tmp_path: Path, dtype: Any) -> None:
    texts = [*TEXTS, 'caf\u00e9 "\\n', "one", ""]
    write_teacher(tmp_path / "data" / "teacher", texts, dtype)
    found = open_teacher_vectors("teacher", str(tmp_path / "data"), owner="x")
    assert (len(found), found.size) == (9, SIZE)
    assert isinstance(found.vectors, np.memmap)
    # of equal texts the first row counts
    wanted = ["two", "one", 'caf\u00e9 "\\n', "seven", "", "one "]
    assert found.find(wanted).tolist() == [2, 1, 6, NO_ROW, 8, NO_ROW]
    assert found.find([]).tolist() == []
    got = found.of(["five", "two", "five"])
    assert got.dtype == dtype
    assert np.array_equal(got, np.stack([*map(vector_of, ["five", "two", "five"])]))


def test_large_folders_are_checked_once(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    small = open_teacher_vectors(str(folder), ".", owner="x")
    monkeypatch.setattr(teacher_vectors, "CACHE_FROM_BYTES", 0)
    first = open_teacher_vectors(str(folder), ".", owner="x")
    with monkeypatch.context() as patch:
        patch.setattr(teacher_vectors, "_check_numbers", None)
        second = open_teacher_vectors(str(folder), ".", owner="x")
    assert isinstance(second.keys, np.memmap)
    for found in (first, second):
        assert found.sha256 == small.sha256
        assert found.find(TEXTS).tolist() == small.find(TEXTS).tolist() == list(range(6))
    write_teacher(folder, TEXTS[::-1])
    assert (
        open_teacher_vectors(str(folder), ".", owner="x").find(TEXTS).tolist() == [*range(6)][::-1]
    )


def replaced(row: int, value: float) -> np.ndarray:
    """Good vectors but for one number, or for all of one row."""
    vectors = np.stack([*map(vector_of, TEXTS)])
    vectors[row] = value
    return vectors


GOOD = replaced(0, 1.0)
WRONG: dict[str, tuple[np.ndarray, str]] = {
    "too few": (GOOD[:5], r"texts\.jsonl: lines = 6; expected 5, one for each row of embeddings"),
    "one dimension": (
        GOOD[0],
        r"embeddings\.npy: content = \[4\] of float32; expected an array \[",
    ),
    "three": (GOOD[None], r"embeddings\.npy: content = \[1, 6, 4\] of float32; expected an array"),
    "float64": (GOOD.astype(float), r"content = \[6, 4\] of float64; .* of float16 or float32"),
    "integers": (GOOD.astype(np.int16), r"content = \[6, 4\] of int16; expected an array"),
    "other byte order": (GOOD.astype(">f4"), r"content = \[6, 4\] of >f4; expected an array"),
    "objects": (GOOD.astype(object), r"content = unreadable \(Array can't be memory-mapped: P"),
    "no width": (GOOD[:, :0], r"embeddings\.npy: content = (\[6, 0\] of float32|unreadable)"),
    "nan": (
        replaced(3, np.nan),
        r"embeddings\.npy: norm of row 3 = nan; expected a finite number above 0\. Embed the text "
        r"of .*texts\.jsonl:4 again\.",
    ),
    "infinity": (replaced(5, np.inf), r"embeddings\.npy: norm of row 5 = inf; expected a finite"),
    "zero": (replaced(0, 0), r"norm of row 0 = 0; expected a finite number above 0.*jsonl:1 again"),
}


@pytest.mark.parametrize(("vectors", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_wrong_vectors_are_refused(
    folder: Path, vectors: np.ndarray, message: str, block: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(teacher_vectors, "BLOCK_NUMBERS", block)
    np.save(folder / "embeddings.npy", vectors)
    with pytest.raises(DataError, match=message):
        open_teacher_vectors(str(folder), ".", owner="x")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "unreadable"),
        (b"no array", "unreadable"),
        (b"PK\x03\x04 an archive", "unreadable"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((", "unreadable"),
    ],
)
def test_files_that_are_no_arrays_are_refused(folder: Path, content: bytes, got: str) -> None:
    (folder / "embeddings.npy").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"embeddings\.npy: content = {got} \(.*\); expected an arr"
    ):
        open_teacher_vectors(str(folder), ".", owner="x")


def test_an_array_that_was_cut_off_is_refused(folder: Path) -> None:
    path = folder / "embeddings.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"embeddings\.npy: content = unreadable \(mmap length is"):
        open_teacher_vectors(str(folder), ".", owner="x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("three", r"texts\.jsonl:4: row = \"three\"; expected JSON \(.*\)\. Correct the line\."),
        ("3", r"texts\.jsonl:4: row = 3; expected a JSON string, the text of a row of the vectors"),
        ('{"text": "three"}', r"texts\.jsonl:4: row = .*; expected a JSON string"),
        ('"\\ud800"', r"texts\.jsonl:4: row = .*; expected valid Unicode"),
    ],
)
def test_lines_that_are_no_texts_are_refused(folder: Path, line: str, message: str) -> None:
    lines = [json.dumps(text) for text in TEXTS]
    lines[3] = line
    (folder / "texts.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        open_teacher_vectors(str(folder), ".", owner="x")


@pytest.mark.parametrize("name", ["embeddings.npy", "texts.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, folder: Path, name: str) -> None:
    (folder / name).unlink()
    message = (
        rf"data\.sources\.set: teacher_embeddings = .*teacher; expected a folder .*{name} is mis"
    )
    with pytest.raises(DataError, match=message):
        open_source(taught(tmp_path, folder), ".")


def test_a_source_has_its_vectors_and_watches_their_files(tmp_path: Path, folder: Path) -> None:
    bare = open_source(ir_source(ir_file(tmp_path)), ".")
    source = open_source(taught(tmp_path, folder), ".")
    assert bare.teacher_vectors is None
    assert source.teacher_vectors is not None
    assert [source.record(row) for row in range(2)] == [bare.record(row) for row in range(2)]
    check_teacher_vectors([bare, source])
    source.check_files()
    # other vectors are other data, which a run is not resumed with
    prints = {bare.fingerprint, source.fingerprint}
    for name in ("embeddings.npy", "texts.jsonl"):
        content = (folder / name).read_bytes()
        changed = content.replace(vector_of("six").astype(np.float16).tobytes(), b"\0\x3c" * SIZE)
        (folder / name).write_bytes(changed.replace(b"six", b"sax"))
        prints.add(open_source(taught(tmp_path, folder), ".").fingerprint)
        with pytest.raises(
            DataError, match=rf"{name}: content = another content than when the run"
        ):
            source.check_files()
        (folder / name).write_bytes(content)
    assert len(prints) == 4


@pytest.mark.parametrize("cached_from", [0, 100])
@pytest.mark.parametrize(("missing", "line"), [("six", 1), ("five", 2), ("one", 1)])
def test_a_text_without_a_vector_is_named_with_its_row(
    tmp_path: Path, monkeypatch: Any, missing: str, line: int, cached_from: int
) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(teacher, "CACHE_FROM_ROWS", cached_from)
    monkeypatch.setattr(table_scan, "CACHE_FROM_ROWS", cached_from)
    folder = write_teacher(tmp_path / "teacher", [text for text in TEXTS if text != missing])
    message = (
        rf'rows\.jsonl:{line}: text = "{missing}"; expected a text of .*teacher/texts\.jsonl, the '
        r"5 texts with vectors in data\.sources\.set\.teacher_embeddings\. Embed it too"
    )
    with pytest.raises(DataError, match=message):
        check_teacher_vectors([open_source(taught(tmp_path, folder), ".")])
    write_teacher(folder)
    for _ in range(2):
        check_teacher_vectors([open_source(taught(tmp_path, folder), ".")])


def test_rows_are_looked_up_block_by_block(tmp_path: Path, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(teacher, "BLOCK_ROWS", 3)
    rows = [*[ROWS[0]] * 7, {"query": "nine", "positives": ["two"]}]
    path = write_jsonl(tmp_path / "many.jsonl", rows)
    source = open_source(ir_source(path, teacher_embeddings=str(folder)), ".")
    with pytest.raises(DataError, match=r'many\.jsonl:8: text = "nine"'):
        check_teacher_vectors([source])


def test_pairs_and_corpora_are_covered_too(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "teacher", TEXTS[1:5])
    pairs = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    corpus = {"a": "two", "b": "three"}
    beir = write_beir(tmp_path / "beir", corpus=corpus, queries={"q": "one", "r": "four"})
    write_qrels(beir, "train", [("q", "a", 1), ("r", "b", 1)])
    both = [
        sts_source(pairs, teacher_embeddings=str(folder)),
        ir_source(beir, teacher_embeddings=str(folder)),
    ]
    sources = [open_source(one, ".") for one in both]
    check_teacher_vectors(sources)
    assert len({source.fingerprint for source in sources}) == 2
    assert sources[1].fingerprint != open_source(ir_source(beir), ".").fingerprint
    write_teacher(folder, ["one", "two", "four"])
    sources = [open_source(one, ".") for one in both]
    for source, place in zip(sources, ("pairs", "queries"), strict=True):
        with pytest.raises(DataError, match=rf'{place}\.jsonl:2: text = "three"; expected a text'):
            check_teacher_vectors([source])


def opened(source: SourceRecipe, **data: Any) -> tuple[Recipe, Source]:
    settings = {"embedding_distillation": EmbeddingDistillationRecipe(), "global_batch_size": 2}
    both = {"ir": {"positives": 2, "negatives": 2} | settings, "sts": settings}
    recipe = data_recipe([source], data=data, **both)
    return recipe, open_sources(recipe.data)[0]


def batch_of(source: SourceRecipe, **data: Any) -> Batch:
    """The batch of both rows."""
    recipe, found = opened(source, **data)
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
    plan = make_plan(recipe, {"set": 2})
    batch = next(batches(plan, [found], encoder, recipe, 0, 1))
    assert_stored_alike(batch, found, encoder, recipe)
    return batch


def texts_of(batch: Batch) -> list[str]:
    tokenizer = byte_tokenizer()
    return [tokenizer.decode(ids).removesuffix("</s>") for ids in batch.texts.token_ids]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_text_of_a_batch_has_its_vector(tmp_path: Path, folder: Path, workers: int) -> None:
    pairs = sts_source(write_jsonl(tmp_path / "pairs.jsonl", PAIRS), teacher_embeddings=str(folder))
    for source, num_texts in ((taught(tmp_path, folder), 6), (pairs, 4)):
        batch = batch_of(source, workers=workers)
        vectors, texts = batch.texts.teacher_vectors, texts_of(batch)
        assert vectors is not None
        assert type(vectors) is np.ndarray
        assert (vectors.dtype, vectors.shape) == (np.float16, (num_texts, SIZE))
        assert np.array_equal(vectors, np.stack([*map(vector_of, texts)]))
        bare = batch_of(replace(source, teacher_embeddings=None), workers=workers)
        assert bare.texts.teacher_vectors is None
        # which rows a step has, and what it embeds, does not depend on a teacher
        assert texts_of(bare) == texts
        assert np.array_equal(bare.plan.rows, batch.plan.rows)


def test_an_instruction_is_no_part_of_the_text(tmp_path: Path, folder: Path) -> None:
    source = replace(
        taught(tmp_path, folder), query_instruction="ask: ", passage_instruction="say: "
    )
    batch = batch_of(source)
    texts = [text.partition(": ")[2] for text in texts_of(batch)]
    # a query and a passage of one text are two texts to the model, of one vector
    assert sorted(texts) == sorted([*TEXTS, "one"])
    assert np.array_equal(batch.texts.teacher_vectors, np.stack([*map(vector_of, texts)]))


def test_of_texts_cut_to_the_same_tokens_the_first_counts(tmp_path: Path) -> None:
    rows = [{"query": "cat", "positives": ["dog and the one", "dog and the two"]}] * 2
    folder = write_teacher(tmp_path / "teacher", ["cat", "dog and the one", "dog and the two"])
    np.save(folder / "embeddings.npy", np.eye(3, SIZE, dtype=np.float32))
    source = ir_source(write_jsonl(tmp_path / "a.jsonl", rows), teacher_embeddings=str(folder))
    batch = batch_of(source, passage_max_tokens=3)
    assert len(batch.texts.token_ids) == 2
    assert batch.texts.teacher_vectors is not None
    assert batch.texts.teacher_vectors[0].tolist() == [1, 0, 0, 0]
    assert batch.texts.teacher_vectors[1].tolist() in ([0, 1, 0, 0], [0, 0, 1, 0])
    assert np.array_equal(
        batch_of(source, passage_max_tokens=3).texts.teacher_vectors, batch.texts.teacher_vectors
    )


def test_a_guide_may_have_any_size_and_does_for_scores(tmp_path: Path, folder: Path) -> None:
    guided = IrRecipe(global_batch_size=2, positives=2, negatives=0, mask=MaskRecipe(guide=True))
    source = taught(tmp_path, folder)
    recipe = tiny.make_recipe(tmp_path, data=DataRecipe(sources=(source,)), tasks={"ir": guided})
    found = [open_source(source, ".")]
    check_widths(found, recipe, hidden_size=8)
    check_teachers(found, recipe)
    check_negatives(found, recipe)
    bare = [open_source(replace(source, teacher_embeddings=None), ".")]
    with pytest.raises(DataError, match=r"at least one for tasks\.ir\.mask\.guide"):
        check_teachers(bare, recipe)


def test_another_size_than_the_models_is_refused(tmp_path: Path, folder: Path) -> None:
    recipe, source = opened(taught(tmp_path, folder))
    check_widths([source], recipe, hidden_size=SIZE)
    message = (
        r"data\.sources\.set: size of the vectors of teacher_embeddings = 4; expected 8, the size "
        r"of the model's vectors\. Set tasks\.ir\.embedding_distillation\.projection=true, or "
        r"model\.projection\.size=4, or take a teacher of 8 dimensions"
    )
    with pytest.raises(DataError, match=message):
        check_widths([source], recipe, hidden_size=8)
    for size, hidden in ((SIZE, 8), (8, SIZE)):
        projected = replace(recipe.model, projection=ProjectionRecipe(size=size))
        changed = replace(recipe, model=projected)
        if size == SIZE:
            check_widths([source], changed, hidden_size=hidden)
        else:
            with pytest.raises(DataError, match=message):
                check_widths([source], changed, hidden_size=hidden)


LAYER = EmbeddingDistillationRecipe(projection=True)


def with_layer(recipe: Recipe, *tasks: str) -> Recipe:
    """The recipe with a layer to the teacher's size for some tasks."""
    changed = {
        name: replace(one, embedding_distillation=LAYER) if name in tasks else one  # type: ignore[type-var]
        for name, one in recipe.tasks.items()
    }
    return replace(recipe, tasks=changed)


def test_a_layer_takes_any_size_but_one_size_alone(tmp_path: Path, folder: Path) -> None:
    pairs, other = write_jsonl(tmp_path / "pairs.jsonl", PAIRS), tmp_path / "other"
    write_jsonl(other / "texts.jsonl", TEXTS)
    np.save(other / "embeddings.npy", np.ones((len(TEXTS), 6), np.float32))
    both = [
        replace(taught(tmp_path, folder), name="first"),
        replace(sts_source(pairs), name="second", teacher_embeddings=str(other)),
        replace(sts_source(pairs), name="bare"),
    ]
    settings = {"embedding_distillation": EmbeddingDistillationRecipe(), "global_batch_size": 2}
    recipe = data_recipe(both, ir={"positives": 2, "negatives": 2} | settings, sts=settings)
    sources = open_sources(recipe.data)
    assert teacher_size(sources, recipe) is None
    layered = with_layer(recipe, "ir")
    # the vectors of pairs meet the model's own, which have their size
    check_widths(sources, layered, hidden_size=6)
    assert (teacher_size(sources, layered), teacher_size(sources[1:], layered)) == (SIZE, None)
    with pytest.raises(
        DataError, match=r"data\.sources\.second: size .* = 6; expected 8, the size"
    ):
        check_widths(sources, layered, hidden_size=8)
    message = (
        r"data\.sources\.second: size of the vectors of teacher_embeddings = 6; expected 4, as "
        r"data\.sources\.first has them: tasks\.sts\.embedding_distillation\.projection is one lay"
    )
    with pytest.raises(DataError, match=message):
        teacher_size(sources, with_layer(recipe, "ir", "sts"))


def test_sources_with_and_without_vectors_are_told(tmp_path: Path, folder: Path) -> None:
    recipe, source = opened(taught(tmp_path, folder))
    assert taught_sources([source], recipe) == [
        "a teacher's vectors of 4 dimensions for all texts of set"
    ]
    assert taught_sources([source], with_layer(recipe, "ir")) == [
        "a teacher's vectors of 4 dimensions for all texts of set, to which a layer brings the "
        "model's"
    ]
    bare, other = opened(ir_source(ir_file(tmp_path)))
    assert taught_sources([other], bare) == [
        "no teacher's vectors for set: its steps go without embedding_distillation"
    ]
    plain = data_recipe([ir_source(ir_file(tmp_path))])
    assert taught_sources([other], plain) == []
