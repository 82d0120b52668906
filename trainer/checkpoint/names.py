"""Which tensor is which across wrappers, adapters and heads, by name; it must not read files."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from trainer.checkpoint.tensors import SlicedTensor
from trainer.errors import CheckpointError

WRAPPERS = ("module.", "_orig_mod.", "backbone.", "base_model.model.")
"""Prefixes of modules that hold the backbone: data parallelism, torch.compile, the trainer's
embedder, peft. They are taken off outside in, where all names of a checkpoint carry them."""

BACKBONE_PREFIXES = ("model.", "transformer.", "bert.", "roberta.", "gpt_neox.", "electra.",
                     "deberta.", "distilbert.", "albert.", "mpnet.")  # fmt: skip
"""Attribute under which transformers' models with a head keep the backbone."""

HEADS = ("lm_head.", "score.", "classifier.", "cls.", "qa_outputs.", "embed_out.", "lm_head",
         "vocab_transform.", "vocab_projector.", "vocab_layer_norm.", "generator_")  # fmt: skip
"""Beginnings of names outside the backbone that an embedder does not have."""

ADAPTER_PART = re.compile(
    r"(?P<module>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(\.default)?(\.weight)?"
)
OTHER_PARTS = {
    "B_bias": re.compile(r"(?P<module>.+)\.lora_B(\.default)?\.bias"),
    "tokens": re.compile(r"(?P<module>.+?)(\.token_adapter)?\.trainable_tokens_delta(\.default)?"),
    "ia3": re.compile(r"(?P<module>.+)\.ia3_l(\.default)?"),
}
"""Parts of adapters of strangers, which can be merged and are not trained here."""
REPLACED = re.compile(r"(?P<module>.+)\.modules_to_save\.default\.(?P<leaf>.+)")
ORIGINAL = re.compile(r".+\.original_module\..+")
BASE_LAYER = re.compile(r"(?P<module>.+)\.base_layer\.(?P<leaf>.+)")
FOREIGN_PART = re.compile(
    r".*\.(lora_|modules_to_save\.|ia3_|hada_|lokr_|vera_|oft_|boft_|trainable_tokens|"
    r"token_adapter|prompt_encoder).*"
)

COMPUTED = re.compile(
    r"(.*\.)?(position_ids|token_type_ids|inv_freq|masked_bias|cos_cached|sin_cached)"
)
"""Buffers that a model computes when it is built; only older savings hold them."""

PROJECTION = re.compile(r"((module|_orig_mod)\.)*(?P<name>projection\.linear\.(weight|bias))")
"""Tensors of the dense layer behind the pooling, which stands beside the backbone."""

TEACHER_LAYER = re.compile(r"((module|_orig_mod)\.)*teacher_layer\.weight")
"""The layer to a teacher's size: trained beside the model, and no part of it."""

HALF_PAIR = re.compile("[\ud800-\udfff]")
"""JSON and pickles can hold it, no file and no hash can."""

T = TypeVar("T")


@dataclass(frozen=True)
class Named(Generic[T]):
    """The tensors of a checkpoint under the backbone's own names."""

    plain: dict[str, T]
    """Whole tensors."""
    adapters: dict[str, dict[str, T]]
    """Parts of the adapter of each module, by module name: A, B, embedding_A, embedding_B,
    magnitude_vector, and those of `OTHER_PARTS`."""


def sort_names(path: Path, tensors: Mapping[str, T]) -> Named[T]:
    """Take wrappers off and separate whole tensors from parts of adapters.

    Args:
        path: whose names they are, for messages.
        tensors: anything by name; what is no part of the model is left out.

    Raises:
        CheckpointError: if a name is no valid Unicode or belongs to an adapter of a kind that
            cannot be merged, or if two names mean the same tensor.
    """
    plain: dict[str, T] = {}
    adapters: dict[str, dict[str, T]] = {}
    tensors = of_model(tensors)
    wrapper = common_wrapper(tensors)
    for full, tensor in tensors.items():
        if HALF_PAIR.search(full):
            raise CheckpointError(
                f"{path}: tensor = {full!a:.80}; expected a name in valid Unicode (half of a "
                "surrogate pair found). Save the checkpoint again."
            )
        name = projection_name(full) or full.removeprefix(wrapper)
        part = adapter_part(name)
        if part is not None:
            module, kind = part
            adapters.setdefault(module, {})[kind] = tensor
        elif not ORIGINAL.fullmatch(name):
            plain_name = _plain_name(path, name)
            if plain_name in plain:
                raise CheckpointError(
                    f"{path}: {full} = a second {plain_name}; expected each tensor once. Save the "
                    "checkpoint with one adapter."
                )
            plain[plain_name] = tensor
    return Named(plain, adapters)


def adapter_part(name: str) -> tuple[str, str] | None:
    """The adapted module and which part of its adapter a tensor is; None for any other tensor.

    Args:
        name: without wrappers.
    """
    found = ADAPTER_PART.fullmatch(name)
    if found is not None:
        return found["module"], found["part"]
    for kind, pattern in OTHER_PARTS.items():
        found = pattern.fullmatch(name)
        if found is not None:
            return found["module"], kind
    return None


def _plain_name(path: Path, name: str) -> str:
    for pattern in (REPLACED, BASE_LAYER):
        match = pattern.fullmatch(name)
        if match:
            return f"{match['module']}.{match['leaf']}"
    if FOREIGN_PART.fullmatch(name):
        raise CheckpointError(
            f"{path}: {name} = part of an adapter; expected LoRA, DoRA, IA3 or trained tokens, "
            "named `default`. Merge it into its base with peft first."
        )
    return name


def of_model(tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors that are part of the model that is served."""
    return {name: one for name, one in tensors.items() if not TEACHER_LAYER.fullmatch(name)}


def projection_name(name: str) -> str | None:
    """The bare name of a tensor of the dense layer behind the pooling; None for any other."""
    match = PROJECTION.fullmatch(name)
    return match["name"] if match else None


def common_wrapper(names: Iterable[str]) -> str:
    """The wrappers' prefix that all names of a checkpoint's backbone carry."""
    known, prefix = tuple(name for name in names if projection_name(name) is None), ""
    for wrapper in WRAPPERS:
        if known and all(name.startswith(prefix + wrapper) for name in known):
            prefix += wrapper
    return prefix


def backbone_prefix(names: Iterable[str]) -> str:
    """Prefix under which a model with a head keeps its backbone; empty for a bare backbone.

    Rule: the one of `BACKBONE_PREFIXES` that begins some names, where all others are heads.
    """
    known = tuple(name for name in names if projection_name(name) is None)
    for prefix in BACKBONE_PREFIXES:
        inside = [name for name in known if name.startswith(prefix)]
        outside = [name for name in known if not name.startswith(prefix)]
        if inside and all(name.startswith(HEADS) for name in outside):
            return prefix
    return ""


def likely_prefix(wanted: Iterable[str], found: Iterable[str]) -> str:
    """The prefix that most names carry, of the fewer of two sets; empty where there is none.

    Args:
        wanted: names without it.
        found: names that may carry it.
    """
    names, others = set(wanted), set(found)
    votes: Counter[str] = Counter()
    for name in others:
        parts = name.split(".")
        for i in range(1, len(parts)):
            if parts[i - 1].isdecimal():
                # what stands in one layer is no prefix of a model
                break
            # the longest ending that is wanted
            if ".".join(parts[i:]) in names:
                votes[".".join(parts[:i]) + "."] += 1
                break
    prefix, count = votes.most_common(1)[0] if votes else ("", 0)
    return prefix if 2 * count > min(len(names), len(others)) else ""


def is_head(name: str) -> bool:
    """Whether a tensor lies outside the backbone, by its name without the backbone's prefix."""
    return name.startswith(HEADS)


def is_optional(name: str, tensor: SlicedTensor) -> bool:
    """Whether an embedder is whole without this tensor: heads, and buffers that models compute."""
    computed = COMPUTED.fullmatch(name) or not tensor.dtype.is_floating_point
    return is_head(name) or bool(computed)
