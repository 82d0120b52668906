"""llama.cpp, by what its converter makes of a folder."""

from collections.abc import Iterator

from trainer.export.clients.finding import Client, Finding
from trainer.export.clients.folder import CONFIG, TOKENIZER, TOKENIZER_CONFIG, ExportFolder
from trainer.export.clients.rope import FULL, trained_rope
from trainer.export.clients.sentence_files import (
    no_dense,
    no_weighted_mean,
    pooling_mode,
    prompt_is_pooled,
)
from trainer.export.clients.tokens import by_transformers_5, id_of
from trainer.export.clients.weights import architecture, right_class, whole_weights

NAME = "llama.cpp"
CLASSES = frozenset(
    [
        "BertModel",
        "CamembertModel",
        "DistilBertModel",
        "EuroBertModel",
        "Gemma3TextModel",
        "LlamaModel",
        "ModernBertModel",
        "NomicBertModel",
        "Qwen2Model",
        "Qwen3Model",
        "RobertaModel",
        "XLMRobertaModel",
    ]
)
"""Classes without a head that the converter knows."""
ROPE_TYPES = frozenset(("default", "linear", "yarn", "longrope", "su", "dynamic", "llama3"))
"""Types of scaling that the converter writes; of others it warns only."""
QWEN = ("qwen2", "qwen3", "qwen3_moe")
KNOWN_END = "<|endoftext|>"
"""With this end token the vocabulary of Qwen is one that the converter knows."""


def known_class(folder: ExportFolder) -> Iterator[Finding]:
    """The converter has code for the class."""
    found = architecture(folder)
    if folder.adapter is None and found is not None and found not in CLASSES:
        yield Finding(
            file=CONFIG, field="architectures", found=found,
            expected=f"one of {', '.join(sorted(CLASSES))}", why="The converter does not know it.",
            effect="refused",
        )  # fmt: skip


def pre_tokenizer(folder: ExportFolder) -> Iterator[Finding]:
    """The converter knows byte-level vocabularies by a hash of ids, the end token among them."""
    if not folder.is_decoder or not _is_byte_level(folder):
        return
    if (folder.path / "tokenizer.model").is_file():
        return
    end = folder.trained.end_token
    appended = end is not None and end == id_of(folder, "eos_token")
    content = _content(folder, end)
    if appended and not (folder.model_type in QWEN and content == KNOWN_END):
        yield Finding(
            file=TOKENIZER, field="post_processor", found=f"ends texts in {content}",
            expected=f"{KNOWN_END} of Qwen, or a vocabulary that was added to the converter",
            why="The converter does not recognise the pre-tokenizer.", effect="refused",
        )  # fmt: skip


def _is_byte_level(folder: ExportFolder) -> bool:
    model = folder.tokenizer.get("model") or {}
    return model.get("type") == "BPE" and not model.get("byte_fallback")


def _content(folder: ExportFolder, token: int | None) -> str | None:
    """The token's text, where it is an added one."""
    added = folder.tokenizer.get("added_tokens") or []
    return next((entry["content"] for entry in added if entry.get("id") == token), None)


def gemma(folder: ExportFolder) -> Iterator[Finding]:
    """Gemma 3 without a head is taken for EmbeddingGemma, which sees both ways."""
    if folder.model_type != "gemma3_text" or architecture(folder) != "Gemma3TextModel":
        return
    if not (folder.path / "tokenizer.model").is_file():
        yield Finding(
            file="tokenizer.model", field="file", found=None, expected="the base's",
            why="Without it the converter does not recognise the pre-tokenizer.", effect="refused",
        )  # fmt: skip
    elif not folder.trained.opened:
        yield Finding(
            file=CONFIG, field="architectures", found="Gemma3TextModel",
            expected="a model that was trained with bidirectional attention",
            why="It takes the class for EmbeddingGemma, whose tokens see both ways.",
        )  # fmt: skip


def attention(folder: ExportFolder) -> Iterator[Finding]:
    """The converter reads `is_causal` of every decoder."""
    value, opened = folder.config.get("is_causal"), folder.trained.opened
    if folder.is_decoder and folder.model_type != "gemma3_text" and (value is False) != opened:
        yield Finding(
            file=CONFIG, field="is_causal", found=value, expected=not opened,
            why=f"It lets tokens see {'both ways' if value is False else 'backwards only'}.",
        )  # fmt: skip


def rope(folder: ExportFolder) -> Iterator[Finding]:
    """The converter writes the type of scaling."""
    trained = trained_rope(folder.config) or {}
    kind = trained.get(FULL, {}).get("rope_type", "default")
    if kind not in ROPE_TYPES:
        yield Finding(
            file=CONFIG, field="rope_parameters", found=kind,
            expected=f"one of {', '.join(sorted(ROPE_TYPES))}",
            why="The converter warns and leaves the scaling out.",
        )  # fmt: skip


def scaled_llama(folder: ExportFolder) -> Iterator[Finding]:
    """The converter gives Llama's scaling a name that it does not know, without a head."""
    trained = trained_rope(folder.config) or {}
    kind = trained.get(FULL, {}).get("rope_type", "default")
    if architecture(folder) == "LlamaModel" and kind == "llama3":
        yield Finding(
            file=CONFIG, field="rope_parameters", found=kind, expected="default or linear",
            why="The converter cannot map the scaling of a Llama without a head.",
            effect="refused",
        )  # fmt: skip


def blanks(folder: ExportFolder) -> Iterator[Finding]:
    """The converter learns from a key on decoding whether blanks in a row are one."""
    pieces = folder.tokenizer.get("pre_tokenizer") or {}
    kinds = [part.get("type") for part in pieces.get("pretokenizers", [pieces])]
    is_unigram = (folder.tokenizer.get("model") or {}).get("type") == "Unigram"
    if not is_unigram or "WhitespaceSplit" not in kinds:
        return
    found = folder.tokenizer_config.get("clean_up_tokenization_spaces")
    if found is not True and not (folder.path / "sentencepiece.bpe.model").is_file():
        yield Finding(
            file=TOKENIZER_CONFIG, field="clean_up_tokenization_spaces", found=found,
            expected=True, why="It keeps blanks in a row apart, which makes other tokens.",
        )  # fmt: skip


LLAMA_CPP = Client(
    name=NAME,
    version="",
    rules=(
        whole_weights,
        known_class,
        right_class("The converter cannot map the tensors.", with_head=False),
        pre_tokenizer,
        gemma,
        attention,
        rope,
        scaled_llama,
        blanks,
        no_weighted_mean("The converter writes no such pooling, and stops."),
        pooling_mode,
        no_dense("The converter writes no dense layer."),
        prompt_is_pooled,
        by_transformers_5,
    ),
)
