"""A corpus beyond the bound is searched by an index, whose candidates true vectors score."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.data_files import write_jsonl
from tests.support.hashed import embedder
from tests.support.ranks import run_ranks
from trainer.data.sources import open_source
from trainer.distributed.group import Ranks
from trainer.errors import RecipeError
from trainer.mining.choose import MiningSettings
from trainer.mining.limits import EXACT_UP_TO, check_exact_up_to, check_index
from trainer.mining.mine import Mining
from trainer.recipe.schema import SourceRecipe

NUM_QUERIES, NUM_PASSAGES = 150, 9000
OWN = embedder(1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(6)

    def text() -> str:
        return " ".join(f"w{rng.randrange(50)}" for _ in range(6))

    made = [
        {"query": text(), "positives": [text()],
         "negatives": [text() for _ in range(NUM_PASSAGES // NUM_QUERIES - 1)]}
        for _ in range(NUM_QUERIES)
    ]  # fmt: skip
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", made)


def mine(rank: int, world: int, rows: Path, output: Path, exact_up_to: int) -> dict[str, Any]:
    return Mining(
        source=open_source(SourceRecipe(name="a", task="ir", path=str(rows)), "."), embed=OWN,
        settings=MiningSettings(num_negatives=5), output=output, provenance={},
        ranks=Ranks(rank=rank, world_size=world, device=torch.device("cpu")),
        exact_up_to=exact_up_to,
    ).run()  # fmt: skip


def mine_both(rank: int, world: int, rows: Path, folder: Path) -> list[dict[str, Any]]:
    """By an index and exactly."""
    return [
        mine(rank, world, rows, folder / f"index-{world}", 1000),
        mine(rank, world, rows, folder / f"exact-{world}", EXACT_UP_TO),
    ]


@pytest.mark.slow
@pytest.mark.dist
def test_an_index_finds_what_a_search_of_all_does(tmp_path: Path, rows: Path) -> None:
    pytest.importorskip("faiss", reason="needs the package faiss-cpu")
    found = {world: run_ranks(mine_both, world, rows, tmp_path)[0] for world in (1, 2)}
    for name in ("index", "exact"):
        assert (tmp_path / f"{name}-1").read_bytes() == (tmp_path / f"{name}-2").read_bytes()
    by_index, exact = found[1]
    assert exact["search"] == {"exact": True}
    way = by_index["search"]
    assert (way["exact"], way["code_bytes"]) == (False, 16)
    assert (way["recall_queries"], way["recall_depth"]) == (100, 5)
    # a vector of 16 numbers loses little in 16 bytes; what is lost lies in lists not looked into
    assert 0.5 < way["recall"] < 1
    lines = [[json.loads(line) for line in (tmp_path / f"{name}-1").read_text().splitlines()]
             for name in ("index", "exact")]  # fmt: skip
    shares = []
    for mine_line, true_line in zip(*lines, strict=True):
        cosines = (OWN([mine_line["query"]], "") @ OWN(mine_line["negatives"], "").T)[0].tolist()
        # true vectors give the scores and the order; six decimals are written
        np.testing.assert_allclose(mine_line["mined_scores"], cosines, atol=1e-6)
        assert sorted(cosines, reverse=True) == pytest.approx(cosines, abs=1e-6)
        wanted = true_line["negatives"]
        shares.append(len({*wanted} & {*mine_line["negatives"]}) / len(wanted))
    # 100 of the queries are the sample, and what answers a query counts there
    assert np.mean(shares) == pytest.approx(way["recall"], abs=0.05)


def test_what_an_index_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    check_exact_up_to(1000)
    with pytest.raises(RecipeError, match="--exact-up-to: 999; expected at least 1000"):
        check_exact_up_to(999)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_index(2000, 2000)
    with pytest.raises(RecipeError, match=r"2000 = less than the 2001 passages; .*faiss-cpu"):
        check_index(2001, 2000)
