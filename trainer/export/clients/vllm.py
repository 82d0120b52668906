"""vLLM's pooling models; its releases run on transformers 4 and 5, so both must read alike."""

from collections.abc import Iterator

from trainer.export.clients.attention import CAUSAL, OPEN, attention_by
from trainer.export.clients.finding import Client, Finding
from trainer.export.clients.folder import MODULES, SENTENCE, ExportFolder
from trainer.export.clients.rope import by_any_form
from trainer.export.clients.sentence_files import (
    OLD_TYPE,
    dense_type,
    no_weighted_mean,
    pooling_booleans,
    pooling_mode,
    prompt_is_pooled,
)
from trainer.export.clients.tokens import by_transformers_4, by_transformers_5, lower_case
from trainer.export.clients.weights import readable, right_class

DEFAULT = "last"
"""How it pools decoders where it finds no pooling."""
OPENED = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), CAUSAL) | {"gemma3_text": OPEN}


def pooling_module(folder: ExportFolder) -> Iterator[Finding]:
    """The pooling module is found by its first name; without it a default is taken."""
    types = [str(module.get("type")) for module in folder.modules]
    if f"{OLD_TYPE}Pooling" not in types and folder.trained.pooling != DEFAULT:
        yield Finding(
            file=MODULES, field="type", found=", ".join(types), expected=f"{OLD_TYPE}Pooling",
            why="It finds no pooling and takes its default.",
        )  # fmt: skip


def limit(folder: ExportFolder) -> Iterator[Finding]:
    """The limit is read from a file that holds both of its keys, else the model's is taken."""
    least = folder.trained.max_tokens
    found = folder.sentence.get("max_seq_length")
    if least is None:
        return
    if "do_lower_case" not in folder.sentence:
        yield Finding(
            file=SENTENCE, field="do_lower_case", found=None, expected=False,
            why="It ignores the file without this key, and its limit with it.",
        )  # fmt: skip
    elif not isinstance(found, int) or found < least:
        yield Finding(
            file=SENTENCE, field="max_seq_length", found=found, expected=least,
            why="Texts are cut elsewhere than in training.",
        )  # fmt: skip


VLLM = Client(
    name="vllm",
    version="",
    rules=(
        right_class(
            "It loads the class that is named, and stops at other tensors.", with_head=True
        ),
        readable,
        by_any_form,
        attention_by(OPENED, others=None),
        pooling_module,
        pooling_booleans("different", "It reads no pooling from other keys."),
        no_weighted_mean("It stops at a pooling that it does not have."),
        pooling_mode,
        dense_type,
        prompt_is_pooled,
        by_transformers_4,
        by_transformers_5,
        limit,
        lower_case,
    ),
)
