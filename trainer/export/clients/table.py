"""All clients that are known by rules, and a folder read by them."""

from collections.abc import Collection
from pathlib import Path

from trainer.export.clients.finding import Client, ClientResult
from trainer.export.clients.folder import read_export
from trainer.export.clients.llama_cpp import LLAMA_CPP
from trainer.export.clients.mteb import MTEB
from trainer.export.clients.plain import TRANSFORMERS_4, TRANSFORMERS_5
from trainer.export.clients.sentence import SENTENCE_3, SENTENCE_5, SENTENCE_6
from trainer.export.clients.sglang import SGLANG
from trainer.export.clients.tei import TEI
from trainer.export.clients.vllm import VLLM

CLIENTS: tuple[Client, ...] = (
    TRANSFORMERS_5, TRANSFORMERS_4, SENTENCE_6, SENTENCE_5, SENTENCE_3, TEI, VLLM, SGLANG,
    LLAMA_CPP, MTEB,
)  # fmt: skip
"""In the order in which they are told."""


def read_clients(path: Path, names: Collection[str] | None = None) -> list[ClientResult]:
    """How each client reads a folder, by the rules alone.

    Args:
        path: an exported folder.
        names: clients, or clients with a release such as `transformers-4`; None: all.

    Raises:
        CheckpointError: see `read_export`.
    """
    folder = read_export(path)
    chosen = [c for c in CLIENTS if names is None or {c.name, c.key} & set(names)]
    return [client.read(folder) for client in chosen]
