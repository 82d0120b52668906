"""Rotary parameters in two forms: transformers reads the same from one, the other, and both."""

import json
from typing import Any

import pytest

from tests.support.bases import LLAMA3, SIZES
from trainer.export.rope import PARAMETERS, both_forms, canonical, read_config, read_rope

HALVES = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
OLDER: dict[str, dict[str, Any]] = {
    "qwen2": {"rope_theta": 1e6},
    "qwen3": {"rope_theta": 1e6},
    "llama": {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    "mistral": {"rope_theta": 1e6, "sliding_window": 16},
    "gemma2": {},
    "gemma3_text": {
        "rope_theta": 2e6,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "modernbert": {"global_rope_theta": 8e4, "local_rope_theta": 9e3},
    "gpt_neox": {"rotary_emb_base": 20000, "rotary_pct": 0.5},
    "phi": {"rope_theta": 2e4, "partial_rotary_factor": 0.5},
    "phi3": {
        "rope_theta": 2e4,
        "original_max_position_embeddings": 32,
        "rope_scaling": {"type": "longrope"} | HALVES,
    },
    "stablelm": {"rope_theta": 2e4, "partial_rotary_factor": 0.25},
    "olmo3": {"rope_theta": 5e5},
    "falcon": {"rope_theta": 2e6, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
}
"""What a config of transformers 4 says of its positions."""
IDS = {"vocab_size": 99, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def older(kind: str) -> dict[str, Any]:
    """A whole config of transformers 4."""
    return {"model_type": kind, "num_key_value_heads": 4} | SIZES | IDS | OLDER[kind]


def newer(kind: str) -> dict[str, Any]:
    """The same as transformers 5 writes it."""
    read = read_config(older(kind))
    assert read is not None
    content: dict[str, Any] = json.loads(read.to_json_string())
    return content


@pytest.mark.parametrize("kind", OLDER)
@pytest.mark.parametrize("written_by", ["release 4", "release 5"])
def test_either_form_and_both_say_the_same(kind: str, written_by: str) -> None:
    config = older(kind) if written_by == "release 4" else newer(kind)
    before = json.dumps(config)
    both = both_forms(config)
    assert json.dumps(config) == before
    want = canonical(read_rope(older(kind)))
    assert canonical(read_rope(both)) == want
    only_older = {key: value for key, value in both.items() if key != PARAMETERS}
    assert canonical(read_rope(only_older)) == want
    assert canonical(both[PARAMETERS]) == want
    given = {key: value for key, value in OLDER[kind].items() if key != "rope_scaling"}
    assert {key: both[key] for key in given} == given
    scaling = OLDER[kind].get("rope_scaling", {})
    assert {**(both.get("rope_scaling") or {}), **scaling} == (both.get("rope_scaling") or {})
    assert both_forms(both) == both


def test_phi3_scales_by_three_keys_alone() -> None:
    scaling = both_forms(newer("phi3"))["rope_scaling"]
    assert scaling.keys() == {"type", "short_factor", "long_factor"}


def test_what_transformers_5_reads_is_right_where_the_forms_differ() -> None:
    both = both_forms(newer("qwen3") | {"rope_theta": 10000.0})
    assert both["rope_theta"] == 1e6


def test_layers_that_older_keys_cannot_tell_apart_get_none() -> None:
    config = newer("olmo3")
    config[PARAMETERS]["sliding_attention"]["rope_theta"] = 7.0
    both = both_forms(config | {"rope_theta": 5e5})
    assert "rope_theta" not in both
    assert canonical(both[PARAMETERS]) == canonical(config[PARAMETERS])


@pytest.mark.parametrize("config", [{"model_type": "bert"}, {"model_type": "none such"}, {}])
def test_other_models_stay_as_they_are(config: dict[str, Any]) -> None:
    assert both_forms(config) == config
