"""Tiny Llamas as GGUF files, written by the package gguf the way that llama.cpp lays them out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.bases import byte_level

END = "<|im_end|>"
HEADS, KEY_HEADS, LAYERS, WIDTH = 4, 2, 2, 32
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
AROUND = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
Changes = Mapping[str, np.ndarray | None]


def gguf_name(name: str) -> str:
    """What llama.cpp calls a weight of transformers' Llama."""
    stem = name.removesuffix(".weight")
    if stem in AROUND:
        return f"{AROUND[stem]}.weight"
    layer, _, inner = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{IN_LAYER[inner]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head with its two halves in turn, which is llama.cpp's order of rotary pairs."""
    halves = weight.reshape(heads, 2, -1, weight.shape[-1])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


def make_llama(*, tied: bool = True) -> LlamaForCausalLM:
    """Two layers of random weights, norms included."""
    config = LlamaConfig(
        vocab_size=byte_level(END).get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4},
        rms_norm_eps=2.0**-17,
        tie_word_embeddings=tied,
        initializer_range=0.15,
    )
    torch.manual_seed(3)
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    *,
    kind: str = "F32",
    architecture: str = "llama",
    changes: Changes | None = None,
    **metadata: Any,
) -> Path:
    """Write a model as one GGUF file.

    Args:
        path: of the file.
        model: from `make_llama`.
        kind: of the matrices; norms are F32.
        architecture: what the file says of itself.
        changes: tensors by llama.cpp's name that replace those of the model, or go if None.
        metadata: more keys, `__` for each dot: texts, numbers or lists of texts.
    """
    writer = GGUFWriter(path, architecture)
    _add_sizes(writer, model.config)
    _add_tokenizer(writer)
    for key, value in metadata.items():
        name = key.replace("__", ".")
        add = writer.add_array if isinstance(value, list) else _adder(writer, value)
        add(name, value)
    tied = model.config.tie_word_embeddings
    weights = {
        gguf_name(name): _stored(name, weight.numpy())
        for name, weight in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    for name, weight in (weights | dict(changes or {})).items():
        if weight is not None:
            _add_weight(writer, name, weight, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _adder(writer: GGUFWriter, value: object) -> Any:
    return writer.add_string if isinstance(value, str) else writer.add_uint32


def _stored(name: str, weight: np.ndarray) -> np.ndarray:
    for part, heads in (("q_proj", HEADS), ("k_proj", KEY_HEADS)):
        if part in name:
            return interleaved(weight, heads)
    return weight


def _add_weight(writer: GGUFWriter, name: str, weight: np.ndarray, kind: str) -> None:
    if weight.ndim == 1 or weight.dtype != np.float32:
        writer.add_tensor(name, weight)
        return
    dtype = GGMLQuantizationType[kind]
    writer.add_tensor(name, quantize(weight, dtype), raw_dtype=dtype)


def _add_sizes(writer: GGUFWriter, config: LlamaConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: GGUFWriter) -> None:
    model = json.loads(byte_level(END).to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    # 3 is a control token, 1 any other
    writer.add_token_types([3 if token == END else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(model["vocab"][END])
    writer.add_chat_template("{% for one in messages %}user: {{ one.content }}{% endfor %}")
