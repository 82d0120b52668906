"""Packed chunks, keyed dropout and poolings of the embedder, against the plain padded form."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support import tiny
from trainer.engine.chunks import plan_chunks
from trainer.engine.materialise import lengths_of, make_chunks
from trainer.model.adapters import add_lora
from trainer.model.backbone import load_backbone
from trainer.model.dropout import KeyedDropout, key_dropouts
from trainer.model.embedder import Chunk, Embedder
from trainer.model.pooling import pool
from trainer.recipe.schema import LoraRecipe, ModelRecipe, Pooling

LORA = LoraRecipe(rank=4, alpha=8, dropout=0.3, targets=("q_proj", "down_proj"))


def chunks_of(lengths: list[int], *, max_tokens: int) -> Iterator[Chunk]:
    texts = tiny.make_texts(lengths, seed=0)
    plan = plan_chunks(lengths_of(texts), num_ranks=1, max_tokens=max_tokens)
    yield from make_chunks(texts, plan.ranks[0], key=3, device=torch.device("cpu"))


def embedder_of(folder: Path, *, packed: bool) -> Embedder:
    """The tiny decoder with adapters whose B is not zero, so that dropout shows."""
    recipe = ModelRecipe(path=str(folder))
    torch.manual_seed(1)
    backbone = add_lora(load_backbone(recipe, str(folder), kernel="sdpa", zero3_config=None), LORA)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return Embedder(backbone, pooling="last", attention="causal", packed=packed).train()


def run(embedder: Embedder, chunks: list[Chunk]) -> tuple[Tensor, dict[str, Tensor]]:
    """Vectors of both outputs in text order, and the gradient of a fixed linear function."""
    parts, keys = [], []
    for chunk in chunks:
        embedder.begin(chunk, 5)
        parts.append(torch.cat(embedder(chunk, middle=True), dim=1))
        keys.append(chunk.text_keys)
    vectors = torch.cat(parts)[torch.cat(keys).argsort()]
    weights = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
    embedder.zero_grad()
    (vectors * weights).sum().backward()
    gradients = {n: p.grad for n, p in embedder.named_parameters() if p.grad is not None}
    return vectors.detach(), gradients


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tiny.qwen3_config(), tmp_path_factory.mktemp("model"))


def test_packed_equals_padded_with_dropout(model: Path) -> None:
    lengths = [9, 1, 13, 4, 4, 1, 7]
    padded, want = run(embedder_of(model, packed=False), list(chunks_of(lengths, max_tokens=999)))
    packed, got = run(embedder_of(model, packed=True), list(chunks_of(lengths, max_tokens=999)))
    assert (padded - packed).abs().max() < 1e-5
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5)


def test_dropout_does_not_depend_on_the_chunk_a_text_lies_in(model: Path) -> None:
    lengths = [9, 1, 13, 4, 4, 1, 7]
    embedder = embedder_of(model, packed=False)
    together, want = run(embedder, list(chunks_of(lengths, max_tokens=999)))
    alone, got = run(embedder, list(chunks_of(lengths, max_tokens=1)))
    assert (together - alone).abs().max() < 1e-5
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5)


def test_dropout_has_its_rate_its_scale_and_independent_masks() -> None:
    module = nn.Sequential(nn.Dropout(0.25), nn.Dropout(0.25), nn.Dropout(0.0))
    keys = key_dropouts(module)
    assert [type(child) for child in module] == [KeyedDropout, KeyedDropout, nn.Dropout]
    ones = torch.ones(8, 64, 128)
    keys.text_B = torch.arange(8)
    first, second = module[0](ones), module[1](ones)
    keys.step_key = 1
    later = module[0](ones)
    for mask in (first, second, later):
        assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
        # 65,536 draws: four standard deviations are 0.7%
        assert (mask == 0).float().mean().item() == pytest.approx(0.25, abs=0.007)
    for one, other in ((first, second), (first, later), (first[:1], first[1:2])):
        both = ((one == 0) & (other == 0)).float().mean().item()
        assert both == pytest.approx(0.0625, abs=0.02)
    module.eval()
    assert torch.equal(module[0](ones), ones)


@pytest.mark.parametrize("how", get_args(Pooling))
def test_pooling_reads_the_tokens_it_names(how: str) -> None:
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    lengths, prompts = np.array([5, 2, 3]), np.array([0, 1, 2])
    got = pool(hidden, torch.from_numpy(lengths), torch.from_numpy(prompts), how)
    for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        want = {
            "last": hidden[row, length - 1],
            "mean": hidden[row, prompt:length].mean(dim=0),
            "weighted_mean": sum((i + 1) * hidden[row, i] for i in range(prompt, length))
            / sum(range(prompt + 1, length + 1)),
            "cls": hidden[row, 0],
        }[how]
        torch.testing.assert_close(got[row], want)
