"""What is said of a file that was changed; it must not change one."""

import json
from collections.abc import Mapping
from typing import Any

REASONS = {
    "rope_theta": "transformers 4 reads it",
    "rope_scaling": "transformers 4 reads it",
    "rope_local_base_freq": "transformers 4 reads it",
    "global_rope_theta": "transformers 4 reads it",
    "local_rope_theta": "transformers 4 reads it",
    "rotary_emb_base": "transformers 4 reads it",
    "rotary_pct": "transformers 4 reads it",
    "partial_rotary_factor": "transformers 4 reads it",
    "rope_parameters": "transformers 5 reads it",
    "torch_dtype": "older releases read it",
    "use_bidirectional_attention": "servers read it besides is_causal",
    "use_cache": "it was a setting of the training",
    "architectures": "the class whose tensors are in the file",
    "eos_token_id": "servers read one number",
    "tokenizer_class": "the releases that read this folder alike know it",
    "clean_up_tokenization_spaces": "llama.cpp's converter takes blanks in a row for one by it",
    "extra_special_tokens": "transformers 4 takes it for a mapping",
    "additional_special_tokens": "the name that all releases read",
    "backend": "only transformers 5 knows it",
    "is_local": "it says where the tokenizer was loaded once",
    "local_files_only": "it says how the tokenizer was loaded once",
    "add_bos_token": "transformers 4 makes the template from it",
    "add_eos_token": "transformers 4 makes the template from it",
    "padding_side": "the side of the training",
    "truncation_side": "the side of the training",
}
"""Why a key is changed, by its name."""
SHOWN = 60
"""Characters of a value in a sentence."""


def differences(file: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A sentence for each top-level key of a JSON object that differs.

    Args:
        file: its name.
        old: as it was.
        new: as it is.
    """
    sentences = []
    for key in sorted({*old, *new}):
        if key in old and key in new and _same(old[key], new[key]):
            continue
        reason = f" ({REASONS[key]})" if key in REASONS else ""
        if key not in new:
            sentences.append(f"{file}: {key} removed, was {_shown(old[key])}{reason}")
        elif key not in old:
            sentences.append(f"{file}: {key} = {_shown(new[key])} added{reason}")
        else:
            was = _shown(old[key])
            sentences.append(f"{file}: {key} = {_shown(new[key])}, was {was}{reason}")
    return sentences


def _same(one: object, other: object) -> bool:
    """Equal as JSON: true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _shown(value: object) -> str:
    """A value in few characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
