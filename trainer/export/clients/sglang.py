"""SGLang's embedding models: pooling and attention are those of its code, whatever files say."""

from collections.abc import Iterator

from trainer.export.clients.attention import OPEN, attention_by
from trainer.export.clients.finding import Client, Finding
from trainer.export.clients.folder import POOLING, ExportFolder
from trainer.export.clients.rope import by_any_form
from trainer.export.clients.sentence_files import WEIGHTED, no_dense
from trainer.export.clients.tokens import by_transformers_4, by_transformers_5
from trainer.export.clients.weights import readable, right_class


def last_token(folder: ExportFolder) -> Iterator[Finding]:
    """It pools the last token of every decoder, and weighs the tokens of no encoder."""
    pooling = folder.trained.pooling
    if pooling != "last" if folder.is_decoder else pooling == WEIGHTED:
        yield Finding(
            file=POOLING, field="pooling_mode_lasttoken", found=False, expected=True,
            why="It reads no pooling and takes that of its own code.",
        )  # fmt: skip


def adapter(folder: ExportFolder) -> Iterator[Finding]:
    """It serves the base where an adapter's tensors have other names than its own."""
    if folder.adapter is not None:
        yield Finding(
            file="adapter_model.safetensors", field="names of tensors",
            found="base_model.model.layers...", expected="merged weights",
            why="It leaves out tensors whose names it does not know, and serves the base.",
        )  # fmt: skip


SGLANG = Client(
    name="sglang",
    version="",
    rules=(
        right_class(
            "It loads the class that is named, and stops at other tensors.", with_head=True
        ),
        readable,
        adapter,
        by_any_form,
        attention_by({"gemma3_text": OPEN}, others=None),
        last_token,
        no_dense("It reads no dense layer and takes the pooled state for the vector."),
        by_transformers_4,
        by_transformers_5,
    ),
)
