"""Sets of every kind as MTEB publishes them: folders on disk, and the cache of the hub."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_data_formats import caches as caches  # a fixture: caches of each test alone
from tests.support.data_files import write_beir, write_jsonl, write_qrels
from tests.support.held_out_sets import opened, write_sets
from tests.support.mteb_folders import (
    WRITERS,
    in_cache,
    rows_of,
    write_card,
    write_ranked,
    write_rows,
)
from trainer.data.evalsets import EvalSet, open_eval_set
from trainer.data.held_out_records import Candidates
from trainer.data.ir import IrEvalSet
from trainer.data.reranking import RerankingSet
from trainer.data.sources import open_source
from trainer.data.sts import StsEvalSet
from trainer.errors import DataError
from trainer.recipe.schema import DataRecipe, EvalSetRecipe, SourceRecipe

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", "-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sets in this project's own layouts, by kind."""
    return write_sets(tmp_path_factory.mktemp("own"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub, without a network."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def without_gains(found: EvalSet) -> EvalSet:
    """The same with candidates as rows of texts have them: every answer is worth 1."""
    if not isinstance(found, RerankingSet):
        return found
    assert all(set(row.gains) <= {1} and not row.missed for row in found.rows)
    return RerankingSet(rows=tuple(replace(row, gains=()) for row in found.rows))


def of_hub(kind: str, hub: str, split: str = "test") -> EvalSet:
    recipe = EvalSetRecipe(name="far", task=kind, hub=hub, split=split)
    return open_eval_set(recipe, DataRecipe(sources=()))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("layout", WRITERS)
def test_folders_hold_the_same_sets(
    layout: str, suffix: str, own: dict[str, Path], tmp_path: Path
) -> None:
    kind, write = WRITERS[layout]
    write(tmp_path / "set", own[kind], suffix)
    found = opened(kind, tmp_path / "set", split="test")
    assert without_gains(found) == opened(kind, own[kind])


@pytest.mark.parametrize("layout", WRITERS)
def test_the_cache_of_the_hub_holds_the_same_sets(
    layout: str, own: dict[str, Path], cache: Path
) -> None:
    kind, write = WRITERS[layout]
    folder = in_cache(cache, "mteb/some-set")
    # as `datasets` pushes them: in `data`, or a folder for each configuration
    write(
        folder if layout == "reranking" else folder / "data", own[kind], "-00000-of-00001.parquet"
    )
    assert without_gains(of_hub(kind, "mteb/some-set")) == opened(kind, own[kind])


@pytest.mark.parametrize("with_card", [True, False])
def test_a_configuration_is_one_set_of_several(
    with_card: bool, own: dict[str, Path], cache: Path
) -> None:
    folder = in_cache(cache, "mteb/languages")
    rows = rows_of(own["bitext"])
    for name, part in {"de-en": rows[:10], "fr-en": rows[10:]}.items():
        pairs = [{"sentence1": row["text1"], "sentence2": row["text2"]} for row in part]
        place = f"test/{name}.jsonl.gz" if with_card else f"{name}/test.jsonl.gz"
        write_rows(folder / place, pairs)
    if with_card:
        names = ("de-en", "fr-en")
        write_card(folder, {name: {"test": f"test/{name}.jsonl.gz"} for name in names})
    found = of_hub("bitext", "mteb/languages:fr-en")
    assert len(list(found.asked())) == 30
    with pytest.raises(DataError, match=r"hub = mteb/languages:xx; expected a configuration that"):
        of_hub("bitext", "mteb/languages:xx")


def test_configurations_of_a_corpus_have_their_name_before_each_part(
    own: dict[str, Path], cache: Path
) -> None:
    folder = in_cache(cache, "mteb/many")
    write_ranked(folder / "one", own["reranking"], ".parquet")
    for part in ("corpus", "queries", "qrels", "top_ranked"):
        (folder / "one" / part).rename(folder / f"de-{part}")
    assert without_gains(of_hub("reranking", "mteb/many:de")) == opened(
        "reranking", own["reranking"]
    )


def test_retrieval_and_similarity_of_the_hub(cache: Path) -> None:
    folder = in_cache(cache, "mteb/docs")
    corpus, queries = {"d1": "one", "d2": "two"}, {"q1": "first"}
    made = write_beir(folder / "made", corpus=corpus, queries=queries)
    for part in ("corpus", "queries"):
        rows = rows_of(made / f"{part}.jsonl")
        # a part has files of other splits, too
        write_rows(folder / part / "test-00000-of-00001.parquet", rows)
        write_rows(folder / part / "train-00000-of-00001.parquet", rows[:1])
    judged = [{"query-id": "q1", "corpus-id": "d2", "score": 1}]
    write_rows(folder / "data" / "test-00000-of-00001.parquet", judged)
    found = of_hub("ir", "mteb/docs")
    assert isinstance(found, IrEvalSet)
    assert list(found.corpus) == ["one", "two"]
    assert (found.queries, found.qrels) == (("first",), {"q1": {"d2": 1}})
    pairs = [{"sentence1": f"a{n}", "sentence2": f"b{n}", "score": n} for n in (0.0, 5.0)]
    write_rows(in_cache(cache, "mteb/sts") / "data" / "test.jsonl", pairs)
    scored = of_hub("sts", "mteb/sts")
    assert isinstance(scored, StsEvalSet)
    assert (scored.text1, scored.score) == (("a0.0", "a5.0"), (0.0, 1.0))


def test_training_rows_of_the_cache_are_read_without_a_network(
    own: dict[str, Path], cache: Path
) -> None:
    folder = in_cache(cache, "mteb/intents")
    rows = rows_of(own["clustering"])
    write_rows(folder / "train.jsonl", rows)
    recipe = SourceRecipe(name="intents", task="labels", hub="mteb/intents")
    found = open_source(recipe, ".")
    local = open_source(replace(recipe, hub=None, path=str(folder / "train.jsonl")), ".")
    records = [[one.record(row) for row in range(len(one))] for one in (found, local)]
    assert records[0] == records[1]
    assert len(found) == len(rows)


def write_parts(folder: Path, made: Path, prefix: str = "", suffix: str = ".parquet") -> None:
    """Corpus, queries and judgements of two splits as configurations of a set."""
    for part in ("corpus", "queries"):
        write_rows(folder / f"{prefix}{part}" / f"{part}{suffix}", rows_of(made / f"{part}.jsonl"))
    for split in ("train", "test"):
        lines = (made / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]
        judged = [dict(zip(JUDGED, line.split("\t"), strict=True)) for line in lines]
        rows = [row | {"score": int(row["score"])} for row in judged]
        write_rows(folder / f"{prefix}qrels" / f"{split}{suffix}", rows)


JUDGED = ("query-id", "corpus-id", "score")


@pytest.mark.parametrize("suffix", [".jsonl", "-00000-of-00001.parquet"])
@pytest.mark.parametrize("prefix", ["", "de-"])
@pytest.mark.parametrize("how", ["card", "format"])
def test_configurations_of_a_corpus_train(
    how: str, prefix: str, suffix: str, cache: Path, tmp_path: Path
) -> None:
    made = write_beir(
        tmp_path / "made",
        corpus={f"d{i}": f"document {i}" for i in range(6)},
        queries={f"q{i}": f"query {i}" for i in range(3)},
    )
    write_qrels(made, "train", [("q0", "d1", 1), ("q1", "d2", 1), ("q1", "d3", 2), ("q1", "d4", 0)])
    write_qrels(made, "test", [("q2", "d5", 1)])
    folder = in_cache(cache, "team/docs")
    write_parts(folder, made, prefix, suffix)
    if how == "card":
        parts = ("corpus", "queries")
        files = {f"{prefix}{part}": {part: f"{prefix}{part}/*"} for part in parts}
        splits = {split: f"{prefix}qrels/{split}*" for split in ("train", "test")}
        write_card(folder, files | {f"{prefix}qrels" if prefix else "default": splits})
    hub = f"team/docs:{prefix[:-1]}" if prefix else "team/docs"
    named = "beir" if how == "format" else None
    for split, expected in {
        "train": {
            "query 0": ["document 1"],
            "query 1": ["document 2", "document 3"],
        },
        "test": {"query 2": ["document 5"]},
    }.items():
        far = SourceRecipe(name="far", task="ir", hub=hub, split=split, format=named)
        found = open_source(far, ".")
        records = [found.record(row) for row in range(len(found))]
        assert {one.query: list(one.positives) for one in records} == expected
        local = open_source(replace(far, hub=None, path=str(made), format=None), ".")
        assert records == [local.record(row) for row in range(len(local))]
    missing = SourceRecipe(name="far", task="ir", hub=hub, split="dev", format=named)
    with pytest.raises(DataError, match=r"split = dev; expected one of the splits .*: test, train"):
        open_source(missing, ".")
    for task in ("sts", "labels"):
        other = SourceRecipe(name="far", task=task, hub=hub, format="beir")
        with pytest.raises(DataError, match=f"task = {task}; expected ir for a BEIR folder"):
            open_source(other, ".")


def test_rows_of_a_set_that_has_no_corpus_train_as_before(cache: Path) -> None:
    folder = in_cache(cache, "team/pairs")
    rows = [{"anchor": f"a {i}", "positive": f"p {i}"} for i in range(5)]
    write_rows(folder / "pairs" / "train.jsonl", rows)
    write_rows(folder / "queries" / "train.jsonl", rows)
    write_card(folder, {name: {"train": f"{name}/train.jsonl"} for name in ("pairs", "queries")})
    found = open_source(SourceRecipe(name="far", task="ir", hub="team/pairs:pairs"), ".")
    assert [found.record(row).query for row in range(len(found))] == [f"a {i}" for i in range(5)]


def test_a_set_that_is_nowhere_is_named(cache: Path) -> None:
    said = r"eval\.sets\.far: hub = mteb/none; expected a set of the hub that can be downloaded, or"
    with pytest.raises(DataError, match=said):
        of_hub("sts", "mteb/none")


def test_files_that_are_named_by_splits_are_told_apart(tmp_path: Path) -> None:
    for split, label in (("train", 0), ("test", 1), ("validation", 2)):
        rows = [{"text": f"{split} {n}", "label": label + n} for n in range(2)]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    found = opened("clustering", tmp_path, split="test")
    assert found == opened("clustering", tmp_path / "test.jsonl")
    said = r"split = dev; expected one of test, train, validation\. Correct split, or give the path"
    with pytest.raises(DataError, match=said):
        opened("clustering", tmp_path)


RANKED: dict[str, Any] = {
    "corpus": [
        {"_id": "d1", "text": "one"},
        {"_id": "d2", "text": "two"},
        {"_id": "d3", "text": " "},
    ],
    "queries": [{"_id": "q1", "text": "first"}, {"_id": "q2", "text": "second"}],
    "qrels": [{"query-id": "q1", "corpus-id": "d1", "score": 2}],
    "top_ranked": [{"query-id": "q1", "corpus-ids": ["d1", "d2"]}],
}


def ranked(folder: Path, **changes: Any) -> RerankingSet:
    for name, rows in (RANKED | changes).items():
        place = folder / "qrels" / "test.jsonl" if name == "qrels" else folder / f"{name}.jsonl"
        if rows is not None:
            write_jsonl(place, rows)
    found = opened("reranking", folder, split="test")
    assert isinstance(found, RerankingSet)
    return found


def test_candidates_keep_grades_and_what_was_not_ranked(tmp_path: Path) -> None:
    judged = [("d1", 2), ("d2", 0), ("d4", 1)]
    qrels = [{"query-id": "q1", "corpus-id": name, "score": gain} for name, gain in judged]
    # q2 is not judged, and mteb asks only what is
    rows = [*RANKED["top_ranked"], {"query-id": "q2", "corpus-ids": ["d2"]}]
    corpus = [*RANKED["corpus"], {"_id": "d4", "title": "A", "text": "four"}]
    found = ranked(tmp_path, qrels=qrels, top_ranked=rows, corpus=corpus)
    assert found.rows == (Candidates("first", ("one",), ("two",), gains=(2,), missed=(1,)),)


BAD = [
    ({"top_ranked": [{"query-id": "q1", "corpus-ids": ["d1", "d9"]}]},
     r'top_ranked\.jsonl:1: corpus-ids\[1\] = "d9"; expected an _id of corpus\.jsonl\. Correct'),
    ({"top_ranked": [{"query-id": "q1", "corpus-ids": ["d1", "d3"]}]},
     r'top_ranked\.jsonl:1: corpus-ids\[1\] = "d3"; expected a document with text\.'),
    ({"top_ranked": [{"query-id": "q1", "corpus-ids": []}]},
     r"top_ranked\.jsonl:1: corpus-ids = \[\]; expected at least one id\."),
    ({"top_ranked": RANKED["top_ranked"] * 2},
     r'top_ranked\.jsonl:2: query-id = "q1"; expected a new id\.'),
    ({"top_ranked": [{"query-id": "q2", "corpus-ids": ["d1"]}]},
     r'top_ranked\.jsonl: query-id = without "q1"; expected the candidates of every query'),
    ({"top_ranked": [{"query-id": "q1", "corpus-ids": ["d2"]}]},
     r"top_ranked\.jsonl: corpus-ids = none that is judged above 0; expected some candidate"),
    ({"qrels": [{"query-id": "q1", "corpus-id": "d8", "score": 1}]},
     r'qrels/test\.jsonl:1: corpus-id = "d8"; expected an _id of corpus\.jsonl\.'),
    ({"queries": [{"_id": "q1", "text": ""}]},
     r'top_ranked\.jsonl:1: query-id = "q1"; expected a query with text\.'),
    ({"top_ranked": None}, r"without top_ranked; expected the candidates of each query beside its"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), BAD)
def test_candidates_that_are_not_there_are_named(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        ranked(tmp_path, **changes)


@pytest.mark.parametrize(
    "text",
    ["", "# no header", "---\nconfigs: [", "---\n- a\n---\n", "---\nconfigs: {a: b}\n---\n",
     "---\nconfigs: [{data_files: [{split: [a], path: b}, {split: c}, {path: '**a'}, '']}]\n---\n",
     "---\nconfigs: [{config_name: [a]}, {data_dir: {a: b}}, {data_files: /etc/*}]\n---\n",
     "---\nconfigs:\n- 1\n- {config_name: default, data_files: ../../x}\n---\n", "\xff"],
)  # fmt: skip
def test_a_card_that_says_nothing_is_no_card(
    text: str, tmp_path: Path, own: dict[str, Path]
) -> None:
    rows = rows_of(own["clustering"])
    write_rows(tmp_path / "data" / "test.jsonl", rows)
    (tmp_path / "README.md").write_bytes(text.encode("latin-1"))
    found = opened("clustering", tmp_path, split="test")
    assert found == opened("clustering", own["clustering"])


@pytest.mark.parametrize(
    "files",
    ["held/*.jsonl", ["held/*.jsonl"], {"test": "held/*.jsonl"},
     [{"split": "test", "path": ["held/a.jsonl", "held/b.jsonl"]}, {"split": "x", "path": "x"}]],
)  # fmt: skip
def test_a_card_may_name_files_in_every_form(
    files: Any, tmp_path: Path, own: dict[str, Path]
) -> None:
    rows = rows_of(own["clustering"])
    write_rows(tmp_path / "held" / "a.jsonl", rows[:5])
    write_rows(tmp_path / "held" / "b.jsonl", rows[5:])
    header = json.dumps({"configs": [{"config_name": "default", "data_files": files}]})
    (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
    # files without a split are of the only one
    found = opened("clustering", tmp_path, split="test")
    assert found == opened("clustering", own["clustering"])
