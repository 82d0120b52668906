"""Liger's kernels: where they are taken, what they change, and that they compute the same."""

import copy
import importlib.util
import logging
import sys
from typing import Any

import pytest
import torch
from transformers import AutoModel, Gemma2Config, PretrainedConfig

from tests.support import tiny
from trainer.model import fused_kernels
from trainer.model.embedder import Chunk, Embedder
from trainer.model.fused_kernels import fuse, reason_against, use_fused_kernels

HAS_LIGER = importlib.util.find_spec(fused_kernels.PACKAGE) is not None
needs_liger = pytest.mark.skipif(not HAS_LIGER, reason="needs the package liger-kernel")


def backbone_of(config: PretrainedConfig) -> Any:
    """Random seeded weights."""
    torch.manual_seed(0)
    return AutoModel.from_config(config)


def kinds(model: Any) -> list[type]:
    """The class of each module."""
    return [type(module) for module in model.modules()]


@pytest.mark.parametrize(
    ("choice", "device", "reason"),
    [("none", "cuda", "the recipe says so"), ("auto", "cpu", "there is no GPU")],
)
def test_nothing_changes_where_they_are_not_taken(
    choice: Any, device: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = backbone_of(tiny.qwen3_config())
    file = sys.modules[type(model).__module__]
    before, names = kinds(model), dict(vars(file))
    use_fused_kernels(model, choice=choice, device_type=device)
    assert kinds(model) == before
    assert vars(file) == names
    assert f"engine.kernels = {choice}: those of transformers, as {reason}" in caplog.text


@pytest.mark.skipif(HAS_LIGER, reason="needs an environment without liger-kernel")
def test_a_missing_package_is_said() -> None:
    reason = reason_against(backbone_of(tiny.qwen3_config()), choice="auto", on_gpu=True)
    assert reason == "the package liger-kernel is not installed (extra `gpu`)"


@needs_liger
def test_a_model_that_liger_does_not_know_stays_as_it_is() -> None:
    model = backbone_of(tiny.bert_config())
    assert reason_against(model, choice="auto", on_gpu=True) == "Liger does not know bert"
    assert reason_against(backbone_of(tiny.qwen3_config()), choice="auto", on_gpu=True) is None


@needs_liger
def test_norm_rotary_and_swiglu_are_replaced_and_nothing_else() -> None:
    model = backbone_of(tiny.qwen3_config(num_hidden_layers=3))
    file, names = sys.modules[type(model).__module__], [n for n, _ in model.named_parameters()]
    before = dict(vars(file))
    # two of each layer, two of its attention, and the last one
    found = fuse(model)
    assert found == {"Qwen3RMSNorm": 3 * 4 + 1, "Qwen3MLP": 3, "rotary embedding": 1}
    assert [name for name, _ in model.named_parameters()] == names
    assert {n for n in before if vars(file)[n] is not before[n]} <= {fused_kernels.ROTARY}
    # models that are made later have transformers' own modules, and rotate as before on a CPU
    assert not any("Fused" in kind.__name__ for kind in kinds(backbone_of(tiny.qwen3_config())))
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    angles = torch.randn(1, 5, 8)
    rotated = vars(file)[fused_kernels.ROTARY](query, key, angles.cos(), angles.sin())
    want = before[fused_kernels.ROTARY](query, key, angles.cos(), angles.sin())
    assert all(map(torch.equal, rotated, want))


@needs_liger
def test_another_activation_is_not_taken_for_swiglu() -> None:
    config = Gemma2Config(
        vocab_size=tiny.VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    assert "Gemma2MLP" not in fuse(backbone_of(config))
    gelu = backbone_of(tiny.qwen3_config(hidden_act="gelu"))
    assert "Qwen3MLP" not in fuse(gelu)


@needs_liger
def test_the_last_layer_is_narrowed_and_copied_as_before() -> None:
    model = backbone_of(tiny.qwen3_config())
    fuse(model)
    embedder = copy.deepcopy(Embedder(model, pooling="last", attention="causal"))
    layers: Any = embedder.backbone.layers
    assert type(layers[-1].mlp).__name__ == "PooledFusedQwen3MLP"
    assert type(layers[0].mlp).__name__ == "FusedQwen3MLP"
    # bound to the copy
    assert layers[0].mlp.forward.__self__ is layers[0].mlp


@needs_liger
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_vectors_and_gradients_are_those_of_transformers(pooling: Any) -> None:
    device = torch.device("cuda")
    lengths = torch.tensor([9, 4, 7], device=device)
    chunk = Chunk(
        input_ids=torch.randint(1, tiny.VOCABULARY, (3, 9), device=device),
        lengths=lengths,
        prompt_lengths=torch.zeros_like(lengths),
        text_keys=torch.arange(3, device=device),
        random_seed=0,
        has_padding=True,
    )
    found = []
    for fused in (False, True):
        model = backbone_of(tiny.qwen3_config()).to(device)
        if fused:
            fuse(model)
        embedder = Embedder(model, pooling=pooling, attention="causal").train()
        embedder.begin(chunk, 1)
        (vectors,) = embedder(chunk)
        vectors.backward(vectors.cos())
        found.append((vectors, {n: p.grad for n, p in embedder.named_parameters()}))
    (want, want_grads), (got, got_grads) = found
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for name, gradient in want_grads.items():
        torch.testing.assert_close(got_grads[name], gradient, rtol=1e-3, atol=1e-4)
