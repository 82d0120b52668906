"""Texts that share their first tokens get the vectors and gradients of texts that do not."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, GPT2Config, MistralConfig, Qwen3Config

from tests.support import tiny
from trainer.data.batch import Texts
from trainer.engine.materialise import make_chunks
from trainer.model.adapters import add_lora
from trainer.model.backbone import load_backbone
from trainer.model.embedder import Chunk, Embedder
from trainer.model.layer_major import LayerMajorEmbedder
from trainer.model.prefix_support import reason_against, share_where_exact
from trainer.recipe.schema import LoraRecipe, ModelRecipe, Pooling
from trainer.session.selfcheck import worst_error

LIMIT = 1e-5
"""Of the norm of the vectors, or of a parameter's gradient: float32 sums in another order."""
LORA = LoraRecipe(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tiny.qwen3_config(), tmp_path_factory.mktemp("model"))


def chunk_behind(num_shared: int, own_lengths: list[int], *, prompt: int = 0) -> Chunk:
    """Texts whose first tokens are the same, as a chunk in which nothing is shared."""
    rng = np.random.default_rng(num_shared)
    first = rng.integers(1, tiny.VOCABULARY, size=num_shared)
    ids = tuple(
        np.concatenate([first, rng.integers(1, tiny.VOCABULARY, size=own)]).astype(np.int32)
        for own in own_lengths
    )
    texts = Texts(token_ids=ids, num_prompt_tokens=np.full(len(ids), prompt))
    (chunk,) = make_chunks(texts, [np.arange(len(ids))], key=1, device=torch.device("cpu"))
    return chunk


def embedder_of(
    model: Path,
    *,
    pooling: Pooling = "last",
    checkpointing: bool = False,
    lora: LoraRecipe | None = None,
) -> Embedder:
    """The tiny decoder in training."""
    recipe = ModelRecipe(path=str(model), gradient_checkpointing=checkpointing)
    backbone = load_backbone(recipe, str(model), kernel="sdpa", zero3_config=None)
    if lora is not None:
        torch.manual_seed(1)
        backbone = add_lora(backbone, lora)
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.2)
    return Embedder(backbone, pooling=pooling, attention="causal").train()


def run(embedder: Embedder, chunks: list[Chunk]) -> tuple[Tensor, dict[str, Tensor]]:
    """Last and middle vectors, and the gradients of a fixed linear function of them."""
    if isinstance(embedder, LayerMajorEmbedder):
        outputs = [embedder(chunks, step_key=5, middle=True)]
    else:
        outputs = []
        for chunk in chunks:
            embedder.begin(chunk, 5)
            outputs.append(embedder(chunk, middle=True))
    vectors = torch.cat([torch.cat(output, dim=1) for output in outputs])
    weights = torch.linspace(-1, 1, vectors.numel()).view_as(vectors)
    # newest graph last: what is recomputed reads the state of its own chunk
    starts = np.cumsum([0, *(chunk.num_texts for chunk in chunks)])
    if isinstance(embedder, LayerMajorEmbedder):
        (vectors * weights).sum().backward()
    else:
        for i, chunk in enumerate(chunks):
            embedder.begin(chunk, 5)
            part = slice(int(starts[i]), int(starts[i + 1]))
            (torch.cat(outputs[i], dim=1) * weights[part]).sum().backward()
    gradients = {n: p.grad for n, p in embedder.named_parameters() if p.grad is not None}
    return vectors.detach(), gradients


def check_equal(
    got: tuple[Tensor, dict[str, Tensor]],
    want: tuple[Tensor, dict[str, Tensor]],
    limit: float = LIMIT,
) -> None:
    assert got[1].keys() == want[1].keys()
    error, name = worst_error({"vectors": got[0], **got[1]}, {"vectors": want[0], **want[1]})
    assert error < limit, f"{name} differs by {error:.1e} of its norm"


def compare(
    make: Callable[[], Embedder], chunk: Chunk, num_shared: int, *, layered: bool = False
) -> None:
    """Run a chunk with and without sharing, beside another chunk that never shares."""
    other = chunk_behind(0, [5, 3])
    found = []
    for shared in (num_shared, 0):
        embedder = make()
        share_where_exact(embedder)
        assert embedder.prefix is not None
        if layered:
            embedder = LayerMajorEmbedder.adopt(embedder)
        found.append(run(embedder, [replace(chunk, num_shared=shared), other]))
    check_equal(*found)


SHAPES = {
    "short texts": (9, [5, 4, 4, 1]),
    "long texts": (3, [12, 12, 9, 6]),
    "one shared token": (1, [4, 3]),
    "all the same": (7, [1, 1, 1]),
    "without padding": (6, [4, 4, 4]),
    "two texts": (8, [3, 2]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layered", [False, True])
def test_vectors_and_gradients_of_each_shape(model: Path, shape: str, layered: bool) -> None:
    num_shared, own = SHAPES[shape]
    chunk = chunk_behind(num_shared, own)
    compare(lambda: embedder_of(model), chunk, num_shared, layered=layered)


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "cls"])
@pytest.mark.parametrize("layered", [False, True])
def test_each_pooling_with_and_without_the_prompt(
    model: Path, pooling: Pooling, layered: bool
) -> None:
    for prompt in (0, 4, 6):
        chunk = chunk_behind(6, [5, 3, 1], prompt=prompt)
        compare(lambda: embedder_of(model, pooling=pooling), chunk, 6, layered=layered)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("num_shared", [3, 8])
def test_checkpointing_and_adapters(model: Path, lora: LoraRecipe | None, num_shared: int) -> None:
    chunk = chunk_behind(num_shared, [6, 5, 2])
    compare(lambda: embedder_of(model, checkpointing=True, lora=lora), chunk, num_shared)
    compare(lambda: embedder_of(model, lora=lora), chunk, num_shared, layered=True)


def test_evaluation_with_dropout_in_training(model: Path) -> None:
    embedder = embedder_of(model, lora=replace(LORA, dropout=0.3))
    share_where_exact(embedder)
    assert embedder.prefix is not None
    assert not embedder.prefix.in_training
    chunk = chunk_behind(7, [5, 3, 1])
    embedder.eval()
    with torch.no_grad():
        shared, plain = (embedder(replace(chunk, num_shared=n))[0] for n in (7, 0))
    torch.testing.assert_close(shared, plain, rtol=0, atol=LIMIT)


@pytest.mark.parametrize("num_shared", [3, 9])
def test_shared_tokens_pass_through_the_model_once(model: Path, num_shared: int) -> None:
    embedder = embedder_of(model, pooling="mean")
    share_where_exact(embedder)
    tokens: list[int] = []
    backbone: Any = embedder.backbone
    for layer in backbone.layers:
        layer.mlp.register_forward_hook(
            lambda module, inputs, output: tokens.append(output.shape[:-1].numel())
        )
    chunk = replace(chunk_behind(num_shared, [5, 5, 4, 2]), num_shared=num_shared)
    embedder(chunk)
    assert tokens == [num_shared + 4 * 5] * 4
    assert chunk.run_tokens == num_shared + 4 * 5
    # the copies of their keys and values count an eighth of a token in budgets of memory
    assert chunk.padded_tokens == chunk.run_tokens + -(-4 * num_shared // 8)
    assert backbone.config._attn_implementation == "sdpa"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_vectors_and_gradients_on_a_gpu(model: Path, shape: str, dtype: torch.dtype) -> None:
    num_shared, own = SHAPES[shape]
    plain = chunk_behind(num_shared, own)
    found = []
    for shared in (num_shared, 0):
        embedder = embedder_of(model).to("cuda", dtype)
        share_where_exact(embedder)
        moved = {
            name: value.cuda() for name, value in vars(plain).items() if isinstance(value, Tensor)
        }
        found.append(run(embedder, [replace(plain, num_shared=shared, **moved)]))
    # other kernels sum in another order; bfloat16 has eight bits of mantissa
    limit = 1e-3 if dtype == torch.float32 else 0.1
    check_equal(*found, limit)


def test_places_of_tokens_in_one_row() -> None:
    chunk = replace(chunk_behind(2, [3, 1]), num_shared=2)
    assert chunk.run_positions.tolist() == [0, 1, 2, 3, 4, 2, 3, 4]
    assert chunk.run_ids.tolist() == [
        *chunk.input_ids[0].tolist(),
        *chunk.input_ids[1, 2:].tolist(),
    ]
    assert chunk.last_places.tolist() == [4, 5]
    plain = replace(chunk, num_shared=0)
    assert plain.last_places.tolist() == [4, 7]
    assert plain.first_places.tolist() == [0, 5]
    assert plain.padded_tokens == plain.run_tokens == 10


def test_what_cannot_share_is_left_alone_and_said(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    windowed = MistralConfig(**{**SMALL, "sliding_window": 4})
    scaled = Qwen3Config(
        **SMALL,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
    )
    gpt2 = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32)
    backbones = {
        "MistralModel is no Llama-style decoder": AutoModel.from_config(windowed),
        "GPT2Model is no Llama-style decoder": AutoModel.from_config(gpt2),
        "positions are scaled by the length of a text": AutoModel.from_config(scaled),
        "the attention kernel is eager": AutoModel.from_config(
            Qwen3Config(**SMALL), attn_implementation="eager"
        ),
    }
    embedders = {
        reason: Embedder(backbone, pooling="mean", attention="causal")
        for reason, backbone in backbones.items()
    }
    embedders["with bidirectional attention"] = Embedder(
        AutoModel.from_config(Qwen3Config(**SMALL)), pooling="mean", attention="bidirectional"
    )
    for reason, embedder in embedders.items():
        with caplog.at_level(logging.INFO):
            share_where_exact(embedder)
        assert embedder.prefix is None
        assert f"engine.share_prefix = auto: off, as {reason}" in caplog.text
    assert reason_against(embedder_of(model)) is None


SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
}
