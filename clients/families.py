"""The families of backbones in the matrix: their configs and vocabularies; light to import.

No setting that decides how a text is read is its class's default, so that one which a client does
not read shows in the vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

WINDOW = 16
"""Tokens of a sliding window, shorter than the long texts."""
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 514,
}
"""Sizes that all families share; rows are multiples of 32, the blocks of 8-bit GGUF."""
DECODER = {"num_key_value_heads": 2, "tie_word_embeddings": False}
"""Settings of all decoders."""
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
"""Scaling that begins at so few positions that short texts meet it."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of backbones."""

    model_type: str
    """As transformers names it."""
    published: str
    """Class whose weights are published: with a head that the trainer leaves out."""
    vocabulary: str
    """Name in `clients.vocabularies.SAVE`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of its config, besides the shape."""
    end_tokens: tuple[str, ...] = ()
    """What `eos_token_id` of the config lists; none leaves it to the tokenizer's end token."""
    is_decoder: bool = True
    """Whether its attention is causal by itself."""


FAMILIES = {
    "Qwen2": Family(
        model_type="qwen2",
        published="Qwen2ForCausalLM",
        vocabulary="qwen",
        settings=DECODER | {"rope_theta": 1e6},
    ),
    "Qwen3": Family(
        model_type="qwen3",
        published="Qwen3ForCausalLM",
        vocabulary="qwen",
        settings=DECODER | {"rope_theta": 5e6, "head_dim": 32},
    ),
    "Llama": Family(
        model_type="llama",
        published="LlamaForCausalLM",
        vocabulary="llama3",
        settings=DECODER | {"rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING},
        end_tokens=("<|end_of_text|>", "<|eot_id|>"),
    ),
    "Mistral": Family(
        model_type="mistral",
        published="MistralForCausalLM",
        vocabulary="mistral",
        settings=DECODER | {"rope_theta": 1e6, "sliding_window": WINDOW},
    ),
    "Gemma 3": Family(
        model_type="gemma3_text",
        published="Gemma3ForCausalLM",
        vocabulary="gemma",
        settings=DECODER
        | {
            "num_hidden_layers": 7,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "rope_theta": 5e5,
            "rope_local_base_freq": 500.0,
            "sliding_window": WINDOW,
        },
    ),
    "XLM-R": Family(
        model_type="xlm-roberta",
        published="XLMRobertaForMaskedLM",
        vocabulary="xlm-roberta",
        settings={"type_vocab_size": 1, "layer_norm_eps": 1e-3},
        is_decoder=False,
    ),
    "ModernBERT": Family(
        model_type="modernbert",
        published="ModernBertForMaskedLM",
        vocabulary="modernbert",
        settings={
            "num_hidden_layers": 4,
            "global_rope_theta": 8e4,
            "local_rope_theta": 500.0,
            "local_attention": WINDOW,
            "layer_norm_eps": 1e-5,
        },
        is_decoder=False,
    ),
}
"""By the names that the table shows."""
