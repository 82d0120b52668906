"""A source is mined: equal to all similarities at once, on any number of ranks, through kills."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import exported
from tests.support.data_files import write_beir, write_jsonl, write_qrels
from tests.support.forked import finish_forked, forked
from tools import mine as command
from trainer.data.sources import open_source
from trainer.distributed.group import Ranks
from trainer.errors import DataError, RecipeError
from trainer.mining.choose import MiningSettings
from trainer.mining.mine import Mining
from trainer.mining.texts import passages_like, read_texts
from trainer.recipe.schema import SourceRecipe

pytestmark = pytest.mark.dist

WORDS = [
    "red",
    "green",
    "blue",
    "round",
    "square",
    "heavy",
    "light",
    "old",
    "new",
    "small",
    "large",
    "cold",
    "warm",
    "dry",
    "wet",
]
MARGIN = ("--relative-margin", "0.98")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return exported.make_export(exported.make_base(folder / "base"), folder / "model")


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=4))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 rows; some queries stand twice, some have two positives, one is its own passage."""
    rng = random.Random(1)
    made: list[dict[str, Any]] = [
        {"query": text(rng), "positives": [text(rng) for _ in range(rng.choice([1, 1, 2]))],
         "negatives": [text(rng)]}
        for _ in range(60)
    ]  # fmt: skip
    made[7]["query"] = made[3]["query"]
    made[11]["negatives"] = [made[11]["query"]]
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", made)


def mine(
    folder: Path, model: Path, source: Path, *options: str, ranks: int = 1, output: str = "out"
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and record of a mining that ends well."""
    file = folder / f"{output}.jsonl"
    ended = finish_forked(
        folder, "--model", str(model), "--source", str(source), "--output", str(file), *options,
        script="tools/mine.py", ranks=ranks,
    )  # fmt: skip
    assert ended.code == 0, ended.out + ended.err
    record = json.loads(file.with_name(f"{file.name}.json").read_text())
    return [json.loads(line) for line in file.read_text().splitlines()], record


def expected(model: Path, rows: list[dict[str, Any]], share: float, count: int) -> list[list[str]]:
    """All similarities at once."""
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(str(model), device="cpu")
    passages = [*dict.fromkeys(t for row in rows for t in (*row["positives"], *row["negatives"]))]
    queries = [*dict.fromkeys(row["query"] for row in rows)]
    encode = {"normalize_embeddings": True, "show_progress_bar": False}
    vectors = loaded.encode(passages, prompt_name="document", **encode)
    asked = loaded.encode(queries, prompt_name="query", **encode)
    answers: dict[str, set[str]] = {query: set() for query in queries}
    for row in rows:
        answers[row["query"]] |= set(row["positives"])
    found = {}
    for query, vector in zip(queries, asked, strict=True):
        scores = dict(zip(passages, (vectors @ vector).tolist(), strict=True))
        limit = share * min(scores[one] for one in answers[query])
        allowed = [
            one
            for one, score in sorted(scores.items(), key=lambda item: -item[1])
            if one not in answers[query] and one != query and score <= limit
        ]
        found[query] = allowed[:count]
    return [found[row["query"]] for row in rows]


def test_rows_get_the_nearest_passages_that_answer_nothing(
    tmp_path: Path, model: Path, rows: Path
) -> None:
    depth = ("--depth", "500", "--num-negatives", "3")
    found, record = mine(tmp_path, model, rows, *MARGIN, *depth)
    source = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(row["query"], row["positives"]) for row in found] == [
        (row["query"], row["positives"]) for row in source
    ]
    assert [row["negatives"] for row in found] == expected(model, source, 0.98, 3)
    assert all(len(row["mined_scores"]) == len(row["negatives"]) for row in found)
    assert record["rows"] == 60
    assert record["queries"] == len({row["query"] for row in source})
    assert sum(record["negatives"]) == sum(
        len(row["negatives"]) for row in {row["query"]: row for row in found}.values()
    )
    assert record["above_positive"] == 0
    page = (tmp_path / "out.jsonl.html").read_text()
    assert "negatives for" in page
    assert "<svg" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "err.txt", "out.jsonl", "out.jsonl.html", "out.jsonl.json", "out.txt",
    ]  # fmt: skip
    two, _ = mine(tmp_path, model, rows, *MARGIN, *depth, ranks=2, output="two")
    assert two == found
    # what comes out is what a recipe takes
    opened = open_source(SourceRecipe(name="a", task="ir", path=str(tmp_path / "out.jsonl")), ".")
    assert len(opened) == 60
    assert opened.record(0).negatives == tuple(found[0]["negatives"])


def names_in(folder: Path) -> set[str]:
    """Names of all files below a folder, which may vanish meanwhile."""
    return {name for _, _, names in os.walk(folder) for name in names}


@pytest.mark.slow
def test_a_mining_survives_kills_at_any_moment(tmp_path: Path, model: Path, rows: Path) -> None:
    options = (*MARGIN, "--guide", str(model))
    want, _ = mine(tmp_path, model, rows, *options, output="whole")
    file, chance = tmp_path / "killed.jsonl", random.Random(3)
    work = tmp_path / ".mine-killed.jsonl"
    arguments = ("--model", str(model), "--source", str(rows), "--output", str(file), *options)
    kept = set()
    for _ in range(20):
        with forked(tmp_path, *arguments, script="tools/mine.py", ranks=2) as run:
            # half of them while models are loaded, the others as soon as there is a file to lose
            known, is_early = names_in(work), chance.random() < 0.5
            deadline = time.monotonic() + (chance.uniform(2, 12) if is_early else 60)
            while time.monotonic() < deadline and run.process.poll() is None:
                if not is_early and names_in(work) != known:
                    time.sleep(chance.uniform(0, 0.02))
                    break
                time.sleep(0.001)
        kept |= names_in(work)
        if file.exists():
            assert [json.loads(line) for line in file.read_text().splitlines()] == want
            file.unlink()
    found, _ = mine(tmp_path, model, rows, *options, ranks=2, output="killed")
    assert found == want
    # something of each kind was there to go on with
    assert {"00000000.npy", "found-000000.npz"} <= kept


def test_a_corpus_is_searched_and_its_ids_are_kept(tmp_path: Path, model: Path) -> None:
    rng = random.Random(2)
    corpus = {f"d{number}": text(rng) for number in range(40)}
    queries = {f"q{number}": text(rng) for number in range(10)}
    folder = write_beir(tmp_path / "beir", corpus=corpus, queries=queries)
    write_qrels(folder, "train", [(f"q{n}", f"d{n}", 1) for n in range(10)])
    found, record = mine(tmp_path, model, folder, "--num-negatives", "5", "--skip-top", "1")
    assert record["passages"] == len(set(corpus.values()))
    for number, row in enumerate(found):
        assert row["query"] == queries[f"q{number}"]
        assert [corpus[name] for name in row["negative_ids"]] == row["negatives"]
        assert len(row["negatives"]) == 5
        assert corpus[f"d{number}"] not in row["negatives"]


def test_texts_are_indexed_once(rows: Path) -> None:
    source = open_source(SourceRecipe(name="a", task="ir", path=str(rows)), ".")
    passages, queries = read_texts(source)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    wanted = [*dict.fromkeys(t for row in lines for t in (*row["positives"], *row["negatives"]))]
    assert [passages.text(number) for number in range(len(passages))] == wanted
    asked = [*dict.fromkeys(row["query"] for row in lines)]
    assert [source.record(int(row)).query for row in queries.rows] == asked
    assert queries.query_of_row[7] == queries.query_of_row[3]
    both = {*lines[3]["positives"], *lines[7]["positives"]}
    found = queries.positives_of(int(queries.query_of_row[3]))
    assert {passages.text(int(number)) for number in found} == both
    own = int(queries.query_of_row[11])
    assert passages.text(passages_like(passages, queries)[own]) == lines[11]["query"]
    assert np.array_equal(np.sort(found), found)


def test_mistakes_end_with_one_message(tmp_path: Path, model: Path, rows: Path) -> None:
    def options(**changes: str) -> list[str]:
        given = {"model": str(model), "source": str(rows), "output": str(tmp_path / "o.jsonl")}
        return [part for name, value in (given | changes).items() for part in (f"--{name}", value)]

    with pytest.raises(DataError, match="--source: nowhere = missing; expected a file or a BEIR"):
        command.main(options(source="nowhere"))
    with pytest.raises(RecipeError, match="in no folder that can be written to"):
        command.main(options(output=str(tmp_path / "no" / "o.jsonl")))
    with pytest.raises(RecipeError, match=r"modules\.json = missing"):
        command.main(options(model=str(tmp_path)))
    with pytest.raises(RecipeError, match="--num-negatives: 0; expected at least 1"):
        command.main(options(**{"num-negatives": "0"}))
    (tmp_path / "o.jsonl").write_text("")
    with pytest.raises(RecipeError, match="exists; expected a new file"):
        command.main(options())
    one = write_jsonl(tmp_path / "one.jsonl", [{"query": "a", "positives": ["b"]}])
    with pytest.raises(DataError, match="passages = 1; expected at least 2"):
        read_texts(open_source(SourceRecipe(name="a", task="ir", path=str(one)), "."))


def test_work_of_another_mining_is_not_continued(tmp_path: Path, rows: Path) -> None:
    def mining(**provenance: str) -> Mining:
        return Mining(
            source=open_source(SourceRecipe(name="a", task="ir", path=str(rows)), "."),
            embed=lambda texts, side: None, settings=MiningSettings(),
            output=tmp_path / "o.jsonl", provenance=provenance,
            ranks=Ranks(rank=0, world_size=1, device=torch.device("cpu")),
        )  # fmt: skip

    mining(model="a").begin()
    mining(model="a").begin()
    with pytest.raises(DataError, match="of another model, source or settings; expected those of"):
        mining(model="b").begin()


@pytest.mark.slow
def test_sentence_transformers_mines_the_same(tmp_path: Path, model: Path) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    rng = random.Random(4)
    pairs = [{"query": f"{text(rng)} {n}", "positive": f"{text(rng)} {n}"} for n in range(50)]
    source = write_jsonl(
        tmp_path / "pairs.jsonl",
        [{"query": one["query"], "positives": [one["positive"]]} for one in pairs],
    )
    for number, (ours, theirs) in enumerate(
        [
            ((), {}),
            (("--skip-top", "2"), {"range_min": 2}),
            (("--relative-margin", "0.9"), {"relative_margin": 0.1}),
            (("--absolute-margin", "0.1"), {"absolute_margin": 0.1}),
            (("--max-score", "0.7"), {"max_score": 0.7}),
        ]
    ):
        peer = mine_hard_negatives(
            Dataset.from_list(pairs), SentenceTransformer(str(model), device="cpu"),
            num_negatives=3, sampling_strategy="top", output_format="triplet",
            query_prompt_name="query", corpus_prompt_name="document", verbose=False, **theirs,
        )  # fmt: skip
        wanted: dict[str, list[str]] = {one["query"]: [] for one in pairs}
        for row in peer:
            wanted[row["query"]].append(row["negative"])
        found, _ = mine(tmp_path, model, source, "--num-negatives", "3", *ours, output=f"o{number}")
        assert {row["query"]: row["negatives"] for row in found} == wanted, theirs
