"""A teacher scores pairs, filters by its margin, and says the same on any number of ranks."""

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.data_files import write_jsonl
from tests.support.hashed import embedder
from tests.support.ranks import run_ranks
from tools import mine as command
from trainer.data.sources import open_source
from trainer.distributed.group import Ranks
from trainer.errors import DataError, RecipeError
from trainer.mining.choose import MiningSettings
from trainer.mining.mine import SCORE_BLOCK, Mining
from trainer.mining.selected import Candidates, Selection, Selector, scored_pairs
from trainer.mining.tally import Tally
from trainer.mining.teacher import cosines_of, find_cross_encoder
from trainer.mining.texts import Queries
from trainer.recipe.schema import SourceRecipe

NUM_ROWS = SCORE_BLOCK + 76
"""More than one block of scores."""
OWN, TEACHER = embedder(1), embedder(2)
PLAIN = MiningSettings(num_negatives=3, relative_margin=0.98)
FILTERED = MiningSettings(num_negatives=3, relative_margin=0.98, guide_margin=0.0)
SHARE = 0.98


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries with a positive that shares most of their words; every tenth has two."""
    rng = random.Random(5)
    words = [f"w{number}" for number in range(60)]

    def text() -> list[str]:
        return rng.choices(words, k=5)

    def near(query: list[str]) -> str:
        return " ".join([*query[:3], *rng.choices(words, k=2)])

    made = [
        {"query": " ".join(query), "positives": [near(query) for _ in range(1 + (n % 10 == 0))]}
        for n, query in enumerate(text() for _ in range(NUM_ROWS))
    ]
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", made)


def source_of(file: Path) -> Any:
    return open_source(SourceRecipe(name="a", task="ir", path=str(file)), ".")


def mining(rank: int, world: int, rows: Path, output: Path, **changes: Any) -> Mining:
    ranks = Ranks(rank=rank, world_size=world, device=torch.device("cpu"))
    given = {"settings": PLAIN, "teacher": cosines_of(TEACHER)} | changes
    return Mining(source=source_of(rows), embed=OWN, output=output, provenance={},
                  ranks=ranks, **given)  # fmt: skip


def mine_all(rank: int, world: int, rows: Path, folder: Path) -> dict[str, Any]:
    """Three minings of the same rows: plain, filtered, and one whose teacher fails once."""
    records = {
        "plain": mining(rank, world, rows, folder / "plain").run(),
        "filtered": mining(rank, world, rows, folder / "filtered", settings=FILTERED).run(),
    }
    good, units = cosines_of(TEACHER), []

    def failing(queries: Any, passages: Any, pairs: Any) -> np.ndarray:
        units.append(len(queries))
        # the second block of scores has one unit, which is the first rank's
        return good(queries, passages, pairs) * (np.nan if len(queries) == 76 else 1)

    interrupted = mining(rank, world, rows, folder / "interrupted", teacher=failing)
    with pytest.raises(DataError, match="score = nan; expected finite numbers"):
        interrupted.run()
    before = len(units)

    def again(queries: Any, passages: Any, pairs: Any) -> np.ndarray:
        units.append(len(queries))
        return good(queries, passages, pairs)

    mining(rank, world, rows, folder / "interrupted", teacher=again).run()
    records["units"] = {"before": before, "after": len(units) - before}
    return records


def mined(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def expected(rows: Path, margin: float | None) -> list[dict[str, Any]]:
    """All similarities of both models at once."""
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    passages = [*dict.fromkeys(text for line in lines for text in line["positives"])]
    queries = [*dict.fromkeys(line["query"] for line in lines)]
    own, teacher = (
        dict(zip(queries, (one(queries, "") @ one(passages, "").T).numpy(), strict=True))
        for one in (OWN, TEACHER)
    )
    place = {text: number for number, text in enumerate(passages)}
    answers: dict[str, set[str]] = {query: set() for query in queries}
    for line in lines:
        answers[line["query"]] |= set(line["positives"])
    # skipped, ten for each negative, and as many as answer a query twice
    depth = 30 + 2 * max(map(len, answers.values()))
    made = []
    for line in lines:
        query = line["query"]
        scores, given = own[query], teacher[query]
        known = [place[text] for text in answers[query]]
        left = [
            number
            for number in np.argsort(-scores, kind="stable")[:depth].tolist()
            if number not in known
            and passages[number] != query
            and scores[number] <= SHARE * scores[known].min()
            and (margin is None or given[number] <= given[known].min() - margin)
        ][:3]
        made.append({
            "negatives": [passages[number] for number in left],
            "negative_scores": given[left].tolist(),
            "positive_scores": given[[place[text] for text in line["positives"]]].tolist(),
        })  # fmt: skip
    return made


def candidates(rng: np.random.Generator) -> tuple[Candidates, dict[int, float]]:
    """What was found for query 0 of `one_query`, and a teacher's scores."""
    scores = np.sort(rng.uniform(0, 1, 12).astype(np.float32))[::-1]
    passages = rng.permutation(20)[:12].astype(np.int64)
    answers = np.array([2, 5], np.int64)
    teacher = dict(enumerate(rng.uniform(-3, 3, 20).astype(np.float32).tolist()))
    one = Candidates(
        query=0, passages=passages, scores=scores.copy(), known=frozenset({2, 5, 7}),
        answers=answers, cosines=rng.uniform(0.5, 1, 2).astype(np.float32),
    )  # fmt: skip
    return one, teacher


def one_query() -> Queries:
    numbers = np.array([0], np.int64)
    return Queries(
        rows=numbers, keys=np.array([9], np.uint64), query_of_row=numbers,
        starts=np.array([0, 2], np.int64), positives=np.array([2, 5], np.int64),
    )  # fmt: skip


@pytest.mark.parametrize("margin", [None, 0.0, 1.5, -0.5])
def test_a_margin_of_the_teacher_equals_a_loop(margin: float | None) -> None:
    how = MiningSettings(num_negatives=3, skip_top=1, relative_margin=0.98, guide_margin=margin)
    queries, rng = one_query(), np.random.default_rng(4)
    for _ in range(100):
        one, teacher = candidates(rng)
        tally = Tally()
        selection = Selection.empty(queries, 3, is_scored=True)
        Selector(queries=queries, settings=how, selection=selection, tally=tally).add(one, teacher)
        limit = one.cosines.min() - abs(one.cosines.min()) * np.float32(0.02)
        lowest = min(teacher[2], teacher[5])
        by_cosine = [
            passage
            for passage, score in zip(one.passages.tolist(), one.scores.tolist(), strict=True)
            if passage not in {2, 5, 7} and score <= limit
        ]
        left = [one for one in by_cosine if margin is None or teacher[one] <= lowest - margin]
        wanted = left[1:4]
        assert selection.negatives[0].tolist() == wanted + [-1] * (3 - len(wanted))
        assert selection.by_teacher is not None
        assert selection.answers_by_teacher is not None
        assert selection.by_teacher[0, : len(wanted)].tolist() == [teacher[n] for n in wanted]
        assert selection.answers_by_teacher.tolist() == [teacher[2], teacher[5]]
        assert tally.left_out["guide_margin"] == len(by_cosine) - len(left)
        assert tally.above_by_teacher == sum(teacher[n] > lowest for n in wanted)
        # no pair is scored that nothing asks for
        pairs = scored_pairs(one, 9, how).tolist()
        assert pairs == [2, 5, *(wanted if margin is None else by_cosine)]


@pytest.mark.slow
@pytest.mark.dist
def test_scores_equal_those_of_all_pairs_on_one_rank_and_on_two(tmp_path: Path, rows: Path) -> None:
    folders = {world: tmp_path / str(world) for world in (1, 2)}
    for world, folder in folders.items():
        folder.mkdir()
        records = run_ranks(mine_all, world, rows, folder)
        # what was scored before the fault is not scored again
        assert records[0]["units"] == {"before": 8 // world + 1, "after": 1}
    for name, margin in (("plain", None), ("filtered", 0.0)):
        found, wanted = mined(folders[1], name), expected(rows, margin)
        for line, one in zip(found, wanted, strict=True):
            assert line["negatives"] == one["negatives"]
            for key in ("positive_scores", "negative_scores"):
                # six decimals are written
                np.testing.assert_allclose(line[key], one[key], atol=1e-6)
        assert (folders[1] / name).read_bytes() == (folders[2] / name).read_bytes()
    assert mined(folders[1], "plain") != mined(folders[1], "filtered")
    for folder in folders.values():
        assert (folder / "interrupted").read_bytes() == (folder / "plain").read_bytes()
    filtered = json.loads((folders[2] / "filtered.json").read_text())
    assert filtered["above_by_teacher"] == 0
    assert filtered["left_out"]["guide_margin"] > 0
    # a recipe takes the file as it is
    (tmp_path / "plain.jsonl").write_bytes((folders[1] / "plain").read_bytes())
    record = source_of(tmp_path / "plain.jsonl").record(0)
    line = mined(folders[1], "plain")[0]
    assert list(record.positive_scores) == line["positive_scores"]
    assert list(record.negative_scores) == line["negative_scores"]


def options_of(folder: Path, rows: Path, *more: str) -> list[str]:
    output = str(folder / "out.jsonl")
    return ["--model", "m", "--source", str(rows), "--output", output, *more]


def test_a_dry_run_says_how_it_would_search(
    tmp_path: Path, rows: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(tmp_path, rows, "--dry-run", "--guide", "g", "--exact-up-to")
    caplog.set_level("INFO")
    assert command.main([*options, "5000"]) == 0
    said = caplog.text
    assert re.search(rf"searches \d+ passages for {NUM_ROWS} queries, exactly", said)
    assert "scores pairs by g" in said
    assert not [*tmp_path.iterdir()]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="expected the package faiss-cpu"):
        command.main([*options, "1000"])


def test_mistakes_end_with_one_message(tmp_path: Path, rows: Path) -> None:
    def options(*more: str) -> list[str]:
        return options_of(tmp_path, rows, *more)

    with pytest.raises(RecipeError, match="--cross-encoder: given beside --guide; expected one"):
        command.main(options("--guide", "a", "--cross-encoder", "b"))
    with pytest.raises(RecipeError, match=r"--guide-margin: 0\.0 = without a model that scores"):
        command.main(options("--guide-margin", "0"))
    with pytest.raises(RecipeError, match="--guide-margin: nan; expected a finite number"):
        command.main(options("--guide", "a", "--guide-margin", "nan"))
    with pytest.raises(RecipeError, match="Give another --guide"):
        command.main(options("--guide", str(tmp_path)))
    with pytest.raises(RecipeError, match=r"config\.json = missing; expected the folder of a cros"):
        find_cross_encoder(str(tmp_path))
    assert find_cross_encoder("owner/model") == "owner/model"
