"""With rope types that scale by length, a text has one vector whoever shares its chunk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, Gemma3TextConfig, LlamaConfig, Phi3Config, PretrainedConfig

from trainer.model.embedder import Chunk, Embedder
from trainer.model.layer_major import LayerMajorEmbedder

SIZES: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.15,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4, "original_max_position_embeddings": 12,
}  # fmt: skip
LENGTHS = [5, 30, 12, 21, 13, 30, 1]
"""Some within 12 positions and some beyond, in an order that grows and shrinks."""


def config_of(kind: str) -> PretrainedConfig:
    if kind == "dynamic":
        return LlamaConfig(**SIZES, max_position_embeddings=12, rope_parameters=DYNAMIC)
    if kind == "longrope":
        return Phi3Config(
            **SIZES, max_position_embeddings=48, original_max_position_embeddings=12,
            rope_parameters=LONG,
        )  # fmt: skip
    by_layer = {
        "full_attention": DYNAMIC,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    return Gemma3TextConfig(
        **SIZES, head_dim=8, max_position_embeddings=12, rope_parameters=by_layer,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip


def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 97, (length,), generator=generator) for length in LENGTHS]


def chunk_of(ids: list[Tensor]) -> Chunk:
    lengths = torch.tensor([len(text) for text in ids])
    return Chunk(
        input_ids=torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        lengths=lengths,
        prompt_lengths=torch.zeros_like(lengths),
        text_keys=torch.arange(len(ids)),
        random_seed=0,
        has_padding=len(set(lengths.tolist())) > 1,
    )


def alone_in_transformers(config: PretrainedConfig) -> np.ndarray:
    """Each text by itself, each time with a new model that remembers no other text."""
    vectors = []
    for text in texts():
        torch.manual_seed(0)
        backbone = AutoModel.from_config(config).eval()
        with torch.no_grad():
            vectors.append(backbone(input_ids=text[None])[0][0, -1])
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1).numpy()


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "by layer"])
def test_vector_is_that_of_the_text_alone(kind: str) -> None:
    config = config_of(kind)
    expected = alone_in_transformers(config)
    torch.manual_seed(0)
    backbone = AutoModel.from_config(config).eval()
    embedder = Embedder(backbone, pooling="last", attention="causal").eval()
    with torch.no_grad():
        for _ in range(2):
            together = embedder(chunk_of(texts()))[0].numpy()
            assert np.abs(together - expected).max() < 1e-5
        pairs = [embedder(chunk_of(texts()[i : i + 2]))[0] for i in range(0, len(LENGTHS), 2)]
    assert np.abs(torch.cat(pairs).numpy() - expected).max() < 1e-5


def test_layer_by_layer_as_well() -> None:
    config = config_of("dynamic")
    torch.manual_seed(0)
    backbone = AutoModel.from_config(config).eval()
    embedder = Embedder(backbone, pooling="last", attention="causal").eval()
    layered = LayerMajorEmbedder.adopt(embedder)
    chunks = [chunk_of(texts()[:3]), chunk_of(texts()[3:])]
    with torch.no_grad():
        found = layered(chunks, step_key=0, middle=False)[0].numpy()
    assert np.abs(found - alone_in_transformers(config)).max() < 1e-5


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_tables_of_packed_texts_are_those_of_padded_ones(kind: str) -> None:
    torch.manual_seed(0)
    backbone: Any = AutoModel.from_config(config_of(kind)).eval()
    embedder = Embedder(backbone, pooling="last", attention="causal")
    state = embedder.text_lengths
    assert state is not None
    state.lengths_B = torch.tensor(LENGTHS)
    position_L = torch.arange(max(LENGTHS))
    x = torch.zeros(1, 1, 32)
    padded = backbone.rotary_emb(x, position_L[None])
    state.packed = True
    packed = backbone.rotary_emb(x, torch.cat([position_L[:n] for n in LENGTHS])[None])
    real_BL = position_L < state.lengths_B[:, None]
    for padded_BLR, packed_1TR in zip(padded, packed, strict=True):
        torch.testing.assert_close(padded_BLR[real_BL], packed_1TR[0], rtol=0, atol=0)


def test_ordinary_rotary_modules_stay_as_they_are(tmp_path: Path) -> None:
    backbone = AutoModel.from_config(LlamaConfig(**SIZES))
    assert Embedder(backbone, pooling="mean", attention="causal").text_lengths is None
