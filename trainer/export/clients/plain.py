"""transformers: `AutoModel` with `AutoTokenizer`, and pooling by the caller."""

from collections.abc import Iterator
from dataclasses import replace

from trainer.export.clients.attention import CAUSAL, EITHER, OPEN, attention_by
from trainer.export.clients.finding import Client, Finding
from trainer.export.clients.folder import ADAPTER, CONFIG, TOKENIZER_CONFIG, ExportFolder
from trainer.export.clients.rope import by_new_form, by_old_form
from trainer.export.clients.tokens import REBUILT, TOKEN_RULES_4, TOKEN_RULES_5, class_of
from trainer.export.clients.weights import CLASSES, architecture

NAME = "transformers"
SINCE_5 = frozenset(
    [
        "afmoe",
        "cohere2_moe",
        "cwm",
        "deepseek_v4",
        "embedding_gemma2_text",
        "eurobert",
        "exaone_moe",
        "gemma4_text",
        "gemma4_unified_text",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "gte",
        "hrm_text",
        "hy_v3",
        "hy_v4",
        "internlm3",
        "jais2",
        "jina_embeddings_v3",
        "kimi_linear",
        "laguna",
        "lfm2_moe",
        "mellum",
        "mimo_v2_flash",
        "minicpm3",
        "minimax_m2",
        "ministral3",
        "mistral4",
        "nanochat",
        "nemotron_h",
        "nomic_bert",
        "olmo_hybrid",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen4_exp_text",
        "solar_open",
        "youtu",
        "zaya",
    ]
)
"""Families of text models that release 5 brought."""

FORMATS = ("pt", "tf", "flax", "mlx")
"""Formats of weight files that releases before 5 load."""
AGAIN = "Nothing beside the weights stops it: export the model again, with weights that it refuses."
"""What remains for whole weights with open attention whose format is one of these."""

closed_in_4 = attention_by({"gemma3_text": OPEN}, others=None)
"""Before release 5 the config can open one family alone."""
attention_of_5 = attention_by({"gemma3_text": EITHER}, others=CAUSAL)


def attention_of_4(folder: ExportFolder) -> Iterator[Finding]:
    """Open attention is read right, or the weights are refused with it."""
    for finding in closed_in_4(folder):
        for name, header in folder.weight_headers.items():
            metadata = header.get("__metadata__") or {}
            if folder.trained.opened and metadata.get("format") not in FORMATS:
                yield Finding(
                    file=name, field="__metadata__.format", found=metadata.get("format"),
                    expected=" or ".join(FORMATS),
                    why="It has no open attention for this family, and stops at this format.",
                    effect="refused",
                )  # fmt: skip
                return
        mendable = folder.trained.opened and folder.adapter is None
        yield replace(finding, why=f"{finding.why} {AGAIN}") if mendable else finding


def known_to_4(folder: ExportFolder) -> Iterator[Finding]:
    """The family is older than release 5."""
    if folder.model_type in SINCE_5:
        yield Finding(
            file=CONFIG, field="model_type", found=folder.model_type,
            expected="a family that releases before 5 have", why="It has no code for it.",
            effect="refused",
        )  # fmt: skip


def gemma_adapter(folder: ExportFolder) -> Iterator[Finding]:
    """Releases before 5 load no Gemma 3 with a head into its class without one."""
    named = architecture(folder) or ""
    if folder.adapter is None or folder.model_type != "gemma3_text" or named in CLASSES.values():
        return
    yield Finding(
        file=ADAPTER, field="base_model_name_or_path",
        found=folder.adapter.get("base_model_name_or_path"), expected="merged weights",
        why=f"It finds no weights of {named} under the names of Gemma3TextModel and makes them up.",
    )  # fmt: skip


def adapter_tokenizer(folder: ExportFolder) -> Iterator[Finding]:
    """Without a config beside it, the tokenizer has the class that its own file names.

    Such a class marks the first word of each text, whatever tokenizer.json says.
    """
    pieces = folder.tokenizer.get("pre_tokenizer") or {}
    marks_first = pieces.get("prepend_scheme", "first") == "first"
    if folder.adapter is not None and class_of(folder) in REBUILT and not marks_first:
        yield Finding(
            file=TOKENIZER_CONFIG, field="tokenizer_class",
            found=folder.tokenizer_config.get("tokenizer_class"),
            expected="PreTrainedTokenizerFast",
            why="In an adapter's folder this class takes the place of tokenizer.json.",
        )  # fmt: skip


RULES_4 = (known_to_4, gemma_adapter, by_old_form, attention_of_4, *TOKEN_RULES_4)
RULES_5 = (by_new_form, adapter_tokenizer, attention_of_5, *TOKEN_RULES_5)
TRANSFORMERS_4 = Client(name=NAME, version="4", rules=RULES_4)
TRANSFORMERS_5 = Client(name=NAME, version="5", rules=RULES_5)
