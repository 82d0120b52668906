"""text-embeddings-inference, of which this reads what its candle backends read."""

from collections.abc import Iterator

from trainer.export.clients.attention import CAUSAL, OPEN, attention_by
from trainer.export.clients.finding import Client, Finding
from trainer.export.clients.folder import CONFIG, SENTENCE, ExportFolder
from trainer.export.clients.rope import FULL, SLIDING, scaling_of, trained_rope
from trainer.export.clients.sentence_files import (
    dense_type,
    no_weighted_mean,
    pooling_booleans,
    pooling_mode,
    prompt_is_pooled,
    prompts,
)
from trainer.export.clients.tokens import by_json
from trainer.export.clients.weights import known_types, needed_keys, readable, whole_weights

TYPES = frozenset(
    [
        "bert",
        "camembert",
        "deberta-v2",
        "distilbert",
        "gemma3_text",
        "gte",
        "llama",
        "mistral",
        "modernbert",
        "mpnet",
        "new",
        "nomic_bert",
        "qwen2",
        "qwen3",
        "roberta",
        "xlm-roberta",
    ]
)
"""Model types that it has code for."""
SCALED = ("llama", "mistral")
"""Families whose frequencies it scales, by the top-level key."""
NUMBER = ("llama", "modernbert", "qwen3")
"""Families whose `eos_token_id` must be one number."""
NEEDED: dict[str, tuple[str, ...]] = {
    "gemma3_text": (
        "rope_local_base_freq", "_sliding_window_pattern", "query_pre_attn_scalar",
        "hidden_activation", "pad_token_id",
    ),
    "llama": ("initializer_range",),
    "mistral": ("initializer_range",),
    "modernbert": (
        "global_rope_theta", "local_rope_theta", "global_attn_every_n_layers", "local_attention",
    ),
    "qwen2": ("rms_norm_eps",),
    "qwen3": ("rms_norm_eps", "eos_token_id"),
}  # fmt: skip
"""Keys of config.json without which it cannot parse the file."""


def end_is_a_number(folder: ExportFolder) -> Iterator[Finding]:
    """A list of end tokens does not parse."""
    found = folder.config.get("eos_token_id")
    if folder.model_type in NUMBER and isinstance(found, list):
        yield Finding(
            file=CONFIG, field="eos_token_id", found=found, expected="one number",
            why="It cannot parse a list.", effect="refused",
        )  # fmt: skip


def rope(folder: ExportFolder) -> Iterator[Finding]:
    """Theta is read from either form, scaling for two families and from the top-level key."""
    trained = trained_rope(folder.config)
    if trained is None or FULL not in trained or SLIDING in trained:
        return
    wanted = scaling_of(trained[FULL])
    read = folder.config.get("rope_scaling") if folder.model_type in SCALED else None
    kind = (read or {}).get("rope_type", (read or {}).get("type"))
    if wanted and kind != "llama3":
        yield Finding(
            file=CONFIG, field="rope_scaling", found=read, expected=wanted,
            why="It scales no frequencies here, or by another formula.",
        )  # fmt: skip


def window(folder: ExportFolder) -> Iterator[Finding]:
    """It has no sliding window for Qwen."""
    if folder.model_type in ("qwen2", "qwen3") and folder.config.get("use_sliding_window") is True:
        yield Finding(
            file=CONFIG, field="use_sliding_window", found=True, expected=False,
            why="It has no sliding window for this family.", effect="refused",
        )  # fmt: skip


def last_of_encoders(folder: ExportFolder) -> Iterator[Finding]:
    """It pools no last token of ModernBERT."""
    if folder.model_type == "modernbert" and folder.trained.pooling == "last":
        yield Finding(
            file=CONFIG, field="model_type", found="modernbert", expected="pooling mean or cls",
            why="It pools no last token for this family.", effect="refused",
        )  # fmt: skip


def classifier(folder: ExportFolder) -> Iterator[Finding]:
    """A class that ends in Classification is served as a classifier."""
    for name in folder.config.get("architectures") or ():
        if str(name).endswith("Classification"):
            yield Finding(
                file=CONFIG, field="architectures", found=name, expected="a class without a head",
                why="It serves a classifier.", effect="refused",
            )  # fmt: skip


def limit(folder: ExportFolder) -> Iterator[Finding]:
    """It cuts texts at `max_seq_length`, which must be there wherever the file is."""
    found, least = folder.sentence.get("max_seq_length"), folder.trained.max_tokens
    if folder.sentence and not isinstance(found, int):
        yield Finding(
            file=SENTENCE, field="max_seq_length", found=found, expected="a number",
            why="It cannot parse the file.", effect="refused",
        )  # fmt: skip
    elif least is not None and (not isinstance(found, int) or found < least):
        yield Finding(
            file=SENTENCE, field="max_seq_length", found=found, expected=least,
            why="Texts are cut elsewhere than in training.",
        )  # fmt: skip


TEI = Client(
    name="tei",
    version="",
    rules=(
        whole_weights,
        known_types(TYPES),
        needed_keys(NEEDED),
        classifier,
        end_is_a_number,
        window,
        last_of_encoders,
        pooling_booleans(
            "refused",
            "It cannot parse the file.",
            needed=("pooling_mode_cls_token", "pooling_mode_mean_tokens"),
        ),
        readable,
        rope,
        attention_by({"qwen2": CAUSAL}, others=OPEN),
        no_weighted_mean("It stops at a pooling that it does not have."),
        pooling_mode,
        dense_type,
        prompt_is_pooled,
        prompts,
        by_json,
        limit,
    ),
)
