"""The narrowed last layer gives the vectors and gradients of the whole model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, GPT2Config

from tests.support import tiny
from trainer.engine.chunks import plan_chunks
from trainer.engine.materialise import lengths_of, make_chunks
from trainer.model.backbone import load_backbone
from trainer.model.dropout import DropoutKeys
from trainer.model.embedder import Chunk, Embedder
from trainer.model.pooled_layer import narrow_last_layer
from trainer.recipe.schema import Attention, ModelRecipe

# float32, four layers: sums of a few hundred terms in another order
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


def one_chunk(lengths: list[int]) -> Chunk:
    texts = tiny.make_texts(lengths, seed=0)
    plan = plan_chunks(lengths_of(texts), num_ranks=1, max_tokens=10_000)
    device = torch.device("cpu")
    chunks = make_chunks(texts, plan.ranks[0], key=1, device=device)
    assert len(chunks) == 1
    return chunks[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tiny.qwen3_config(), tmp_path_factory.mktemp("model"))


def plain(backbone: nn.Module, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Last and middle vectors of a backbone as transformers runs it, with a padding mask."""
    position = torch.arange(chunk.input_ids.shape[1])
    mask = (position < chunk.lengths[:, None]).long()
    output = backbone(chunk.input_ids, attention_mask=mask, output_hidden_states=True)
    rows = torch.arange(chunk.num_texts)
    states = (output.last_hidden_state, output.hidden_states[len(output.hidden_states) // 2])
    last, middle = (nn.functional.normalize(s[rows, chunk.lengths - 1], dim=-1) for s in states)
    return last, middle


def gradients(module: nn.Module, outputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Of a fixed linear function of the vectors."""
    weights = torch.linspace(-1, 1, outputs[0].numel()).view_as(outputs[0])
    sum((output * weights).sum() for output in outputs).backward()  # type: ignore[union-attr]
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_vectors_and_gradients_are_those_of_the_whole_model(
    model: Path, checkpointing: bool
) -> None:
    chunk = one_chunk([9, 9, 9, 8, 8, 7])
    whole = AutoModel.from_pretrained(model).train()
    want = plain(whole, chunk)
    narrowed = AutoModel.from_pretrained(model).train()
    if checkpointing:
        narrowed.gradient_checkpointing_enable({"use_reentrant": False})
    embedder = Embedder(narrowed, pooling="last", attention="causal")
    embedder.begin(chunk, 0)
    got = embedder(chunk, middle=True)
    torch.testing.assert_close(got, want, **TOLERANCE)
    expected = gradients(whole, want)
    found = gradients(narrowed, got)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **TOLERANCE)


def test_in_training_only_pooled_tokens_pass_through_the_last_layer(model: Path) -> None:
    backbone = AutoModel.from_pretrained(model).train()
    mlps: list[int] = []
    for layer in backbone.layers:
        layer.mlp.act_fn.register_forward_hook(
            lambda module, inputs, output: mlps.append(output.shape[1])
        )
    chunk = one_chunk([9, 9, 8])
    embedder = Embedder(backbone, pooling="last", attention="causal")
    with recorded_queries() as queries:
        embedder(chunk)
    assert mlps == [9, 9, 9, 1]
    heads = backbone.config.num_attention_heads
    assert queries == [9 * heads, 9 * heads, 9 * heads, heads]
    with recorded_queries() as queries:
        embedder.eval()(chunk)
    assert mlps[4:] == [9] * 4
    assert queries == [9 * heads] * 4
    assert backbone.config._attn_implementation == "sdpa"


@contextlib.contextmanager
def recorded_queries() -> Iterator[list[int]]:
    """Queries of one text, of all heads, in each call of torch's fused attention."""
    found: list[int] = []
    fused = nn.functional.scaled_dot_product_attention

    def spy(query: Tensor, *rest: Any, **settings: Any) -> Tensor:
        found.append(query.shape[1] * query.shape[2])
        return fused(query, *rest, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", spy)
        yield found


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_each_kind_of_attention_keeps_its_gradients_with_padding(
    model: Path, attention: Attention
) -> None:
    chunk = one_chunk([9, 7, 4, 1])
    got, want = (
        vectors_and_gradients(model, chunk, attention, narrow=narrow) for narrow in (True, False)
    )
    torch.testing.assert_close(got[0], want[0], **TOLERANCE)
    assert got[1].keys() == want[1].keys()
    for name, gradient in want[1].items():
        torch.testing.assert_close(got[1][name], gradient, **TOLERANCE)


def vectors_and_gradients(
    model: Path, chunk: Chunk, attention: Attention, *, narrow: bool
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Of an embedder in training, narrowed or with all tokens let through."""
    recipe = ModelRecipe(path=str(model), attention=attention)
    backbone = load_backbone(recipe, str(model), kernel="sdpa", zero3_config=None)
    embedder = Embedder(backbone, pooling="last", attention=attention)
    if not narrow:
        embedder.pooled_tokens = None
    embedder.begin(chunk, 0)
    vectors = embedder(chunk)
    return vectors, gradients(backbone, vectors)


def test_other_poolings_and_other_backbones_are_left_alone(model: Path) -> None:
    backbone = AutoModel.from_pretrained(model)
    mean = Embedder(backbone, pooling="mean", attention="causal")
    assert mean.pooled_tokens is None
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32)
    assert narrow_last_layer(AutoModel.from_config(config), DropoutKeys()) is None
