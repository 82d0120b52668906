"""A source mined during a run: what `tools/mine.py` finds with the same vectors, as places."""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.data_files import write_beir, write_jsonl, write_qrels
from tests.support.ranks import run_ranks
from trainer.data.mined import NO_PLACE, with_mined
from trainer.data.sources import Source, open_source
from trainer.distributed.group import Ranks
from trainer.errors import DataError
from trainer.mining.again import SourceMining
from trainer.mining.choose import MiningSettings
from trainer.mining.mine import Mining
from trainer.recipe.schema import SourceRecipe

WORDS = ["red", "green", "blue", "round", "square", "heavy", "light", "old", "new", "small"]
SETTINGS = (
    MiningSettings(num_negatives=3),
    MiningSettings(num_negatives=3, relative_margin=0.9, skip_top=1),
    MiningSettings(num_negatives=2, absolute_margin=0.05, max_score=0.7, depth=9),
    MiningSettings(num_negatives=4, sampling="random", seed=3),
)


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=4))


def embed(texts: Sequence[str], side: str) -> Tensor:
    """A vector a text, whatever stands beside it: its words', later ones weighing more."""
    rows = []
    for one in texts:
        seeds = [int(hashlib.sha256(word.encode()).hexdigest()[:8], 16) for word in one.split()]
        words = [np.random.default_rng(seed).normal(size=8) for seed in seeds]
        # no two texts of the same words have vectors that differ by rounding alone
        rows.append(np.average(words, axis=0, weights=range(1, len(words) + 1)))
    found = torch.tensor(np.array(rows), dtype=torch.float32)
    return torch.nn.functional.normalize(found, dim=1)


def save_sources(folder: Path) -> None:
    """Rows, two of which have one query, and a corpus."""
    rng = random.Random(1)
    rows: list[dict[str, Any]] = [
        {"query": text(rng), "positives": [text(rng) for _ in range(rng.choice([1, 1, 2]))],
         "negatives": [text(rng)]}
        for _ in range(30)
    ]  # fmt: skip
    rows[7]["query"] = rows[3]["query"]
    rows[11]["negatives"] = [rows[11]["query"]]
    write_jsonl(folder / "rows.jsonl", rows)
    beir = write_beir(
        folder / "beir",
        corpus={f"d{number}": text(rng) for number in range(25)},
        queries={f"q{number}": text(rng) for number in range(9)},
    )
    write_qrels(beir, "train", [(f"q{n}", f"d{(n + i) % 25}", 1) for n in range(9) for i in (0, 9)])


def opened(folder: Path, name: str) -> Source:
    return open_source(SourceRecipe(name="set", task="ir", path=str(folder / name)), ".")


def mined_texts(
    source: Source, folder: Path, settings: MiningSettings, ranks: Ranks, rows: np.ndarray
) -> tuple[list[tuple[str, ...]], dict[str, Any]]:
    """Negatives of all rows, their own where nothing was mined, and the numbers."""
    mining = SourceMining(
        source=source, embed=embed, settings=settings, rows=rows, work=folder, ranks=ranks,
        # several blocks of each kind, on each rank
        is_keeper=ranks.is_first, block_texts=12, query_block=6,
    )  # fmt: skip
    found = mining.run()
    assert found is not None
    (mined,) = with_mined([source], {"set": mining.places})
    return [mined.record(row).negatives for row in range(len(source))], found


def body(rank: int, world_size: int, folder: Path, chosen: Sequence[int]) -> int:
    """Compare for some of the settings; gives how many negatives were."""
    ranks = Ranks(rank=rank, world_size=world_size, device=torch.device("cpu"))
    num_compared = 0
    for name in ("rows.jsonl", "beir"):
        source = opened(folder, name)
        for number in chosen:
            settings = SETTINGS[number]
            work = folder / f"{name}-{number}"
            output = folder / f"{name}-{number}.out"
            record = Mining(source=source, embed=embed, settings=settings, output=output,
                            provenance={}, ranks=ranks).run()  # fmt: skip
            want = [
                tuple(json.loads(line)["negatives"]) for line in output.read_text().splitlines()
            ]
            every = np.arange(len(source))
            got, found = mined_texts(source, work, settings, ranks, every)
            own = [source.record(row).negatives for row in range(len(source))]
            assert got == [a or b for a, b in zip(want, own, strict=True)], (name, settings)
            num_compared += sum(map(len, want))
            if ranks.is_first:
                assert found["left_out"] == record["left_out"]
                assert found["queries_without"] == record["queries_without"]
                assert found["passages"] == record["passages"]
            some = every[::3]
            part, found = mined_texts(source, folder / f"{name}-{number}-part", settings, ranks,
                                      some)  # fmt: skip
            assert found["rows"] == len(some)
            assert part == [got[row] if row in some else own[row] for row in every]
    stopped = SourceMining(
        source=source, embed=embed, settings=SETTINGS[0], rows=every, work=folder / "stopped",
        ranks=ranks, is_keeper=ranks.is_first, goes_on=lambda: False,
    )  # fmt: skip
    assert stopped.run() is None
    return num_compared


@pytest.fixture
def group_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the only rank."""
    # a host name need not resolve to an address of this host
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    meeting = f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_the_choice_is_that_of_the_command(tmp_path: Path) -> None:
    save_sources(tmp_path)
    assert body(0, 1, tmp_path, (0, 3)) > 100
    places = np.load(tmp_path / "beir-0" / "places.npy")
    assert places.shape == (9, 3)
    assert places.dtype == np.int64
    assert places.min() > NO_PLACE
    assert places.max() < 25


@pytest.mark.dist
@pytest.mark.slow
def test_two_ranks_choose_as_one(tmp_path: Path) -> None:
    save_sources(tmp_path)
    first, second = run_ranks(body, 2, tmp_path, range(len(SETTINGS)))
    assert first == second > 200


def test_a_source_of_one_passage_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"query": "a", "positives": ["b"]}])
    with pytest.raises(DataError, match=r"data\.sources\.set: passages = 1; expected at least 2"):
        SourceMining(
            source=opened(path.parent, path.name), embed=embed, settings=SETTINGS[0],
            rows=np.arange(1), work=tmp_path / "work",
            ranks=Ranks(rank=0, world_size=1, device=torch.device("cpu")), is_keeper=True,
        ).run()  # fmt: skip
