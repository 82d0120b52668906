"""Seeds of any size reach torch's generator: those of old runs unchanged, large ones apart."""

import numpy as np
import pytest
import torch

from tests.support import tiny
from trainer.engine.materialise import make_chunks, step_key, torch_seed
from trainer.model.backbone import load_backbone
from trainer.model.dropout import DropoutKeys, KeyedDropout
from trainer.model.embedder import Chunk, Embedder
from trainer.recipe.schema import ModelRecipe

LARGE = (281_469_838, 20_261_129 * 100, 1_796_000_000, 1_796_000_000_000, 2**32, 2**62, 2**63 - 1)
"""The first seed whose numbers pass 64 bits, times in s and ms, powers and the greatest of all."""


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = str(tiny.save_model(tiny.qwen3_config(), tmp_path_factory.mktemp("model")))
    backbone = load_backbone(ModelRecipe(path=folder), folder, kernel="sdpa", zero3_config=None)
    return Embedder(backbone, pooling="last", attention="causal")


def chunk_of(seed: int, step: int) -> Chunk:
    texts = tiny.make_texts([3, 5, 4], seed=0)
    key = step_key(seed, step)
    (chunk,) = make_chunks(texts, [np.array([2, 0])], key=key, device=torch.device("cpu"))
    return chunk


@pytest.mark.parametrize("seed", LARGE)
@pytest.mark.parametrize("step", [0, 10**9])
def test_any_seed_begins_any_step_and_layer(embedder: Embedder, seed: int, step: int) -> None:
    for depth in (0, 1, 200):
        embedder.begin(chunk_of(seed, step), step_key(seed, step), depth=depth)


def test_seeds_that_always_worked_give_the_numbers_they_gave(embedder: Embedder) -> None:
    embedder.begin(chunk_of(42, 7), step_key(42, 7), depth=3)
    # 42 * 1,000,003 + 7 is the key of the step; the first text of the chunk is number 2
    assert step_key(42, 7) == 42_000_133
    assert torch.initial_seed() == 42_000_133 * 65_537 + 2 + 3
    assert torch_seed(281_469_837) == 281_469_837


def test_large_seeds_draw_other_numbers_than_small_ones(embedder: Embedder) -> None:
    # a generator on a CPU takes in 32 bits, and so do the masks of dropout
    seeds = (0, 1, *LARGE)
    drawn, masks = set(), set()
    for seed in seeds:
        embedder.begin(chunk_of(seed, 0), step_key(seed, 0))
        drawn.add(float(torch.rand((), dtype=torch.float64)))
        keys = DropoutKeys(text_B=torch.arange(2), step_key=step_key(seed, 0))
        masks.add(tuple(KeyedDropout(0.5, 0, keys)(torch.ones(2, 32)).flatten().tolist()))
    assert len(drawn) == len(masks) == len({torch_seed(seed) for seed in seeds}) == len(seeds)
