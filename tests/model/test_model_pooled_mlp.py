"""The narrowed last MLP gives the vectors and gradients of the whole model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, GPT2Config

from tests.support import tiny
from trainer.engine.chunks import plan_chunks
from trainer.engine.materialise import lengths_of, make_chunks
from trainer.model.dropout import DropoutKeys
from trainer.model.embedder import Chunk, Embedder
from trainer.model.pooled_mlp import narrow_last_mlp

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


def test_in_training_only_pooled_tokens_pass_through_the_last_mlp(model: Path) -> None:
    backbone = AutoModel.from_pretrained(model).train()
    seen: list[list[int]] = []
    for layer in backbone.layers:
        layer.mlp.down_proj.register_forward_hook(
            lambda module, inputs, output: seen.append(list(output.shape[:2]))
        )
    chunk = one_chunk([9, 9, 8])
    embedder = Embedder(backbone, pooling="last", attention="causal")
    embedder(chunk)
    assert seen == [[3, 9], [3, 9], [3, 9], [3, 1]]
    embedder.eval()(chunk)
    assert seen[4:] == [[3, 9]] * 4


def test_other_poolings_and_other_backbones_are_left_alone(model: Path) -> None:
    backbone = AutoModel.from_pretrained(model)
    mean = Embedder(backbone, pooling="mean", attention="causal")
    assert mean.pooled_tokens is None
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32)
    assert narrow_last_mlp(AutoModel.from_config(config), DropoutKeys()) is None
