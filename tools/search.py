"""Search a corpus with an exported model: `python tools/search.py --model DIR "a question"`.

Without `--corpus` it searches the docs that stand beside a demo's model. Vectors of a corpus are
kept beside the model, so that only the first search takes long.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.cli import ending_with_code
from trainer.data.array_files import save_array
from trainer.errors import DataError, RecipeError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SHOWN_CHARS = 100
"""Characters of a document that a hit shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text to be found."""

    identifier: str
    """Where it stands; shown with a hit."""
    title: str
    """Its title or first sentence; may be empty."""
    text: str
    """The rest."""

    @property
    def shown(self) -> str:
        """One line for a person."""
        line = " ".join((self.title or self.text).split())
        return line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 3] + "..."

    @property
    def embedded(self) -> str:
        """What the model reads."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A document found."""

    document: Document
    score: float
    """Cosine similarity to the query."""


def read_corpus(path: Path) -> list[Document]:
    """Documents of a JSONL file with `text` and, where there, `_id` and `summary` or `title`.

    Raises:
        DataError: if the file is missing or empty, or a row is no such object.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: file = missing; expected JSON lines with a field text. "
            "Give the file with --corpus."
        )
    documents = []
    for number, line in enumerate(path.open(encoding="utf-8"), start=1):
        documents.append(_document(line, f"{path}:{number}", number))
    if not documents:
        raise DataError(f"{path}: rows = 0; expected at least 1. Give another file.")
    return documents


def _document(line: str, place: str, number: int) -> Document:
    """A document from a line of JSON."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: row = not JSON ({error}); expected an object. Fix it.") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(f"{place}: text = nothing; expected a text. Fix the row or remove it.")
    return Document(
        identifier=str(row.get("_id", number)),
        title=str(row.get("summary") or row.get("title") or ""),
        text=row["text"],
    )


def vectors_of(
    model: "SentenceTransformer", folder: Path, documents: Sequence[Document]
) -> np.ndarray:
    """Vectors of all documents [n, D], float32, norm 1; from the cache where they are known.

    Args:
        model: loaded from `folder`.
        folder: of the model; the cache stands beside it, in `search_cache/`.
        documents: n documents.
    """
    cache = folder.parent / "search_cache" / f"{cache_key(folder, documents)}.npy"
    if cache.is_file():
        return np.asarray(np.load(cache))
    print(f"Embedding {len(documents)} documents, once...", file=sys.stderr)
    texts = [document.embedded for document in documents]
    vectors = np.asarray(model.encode_document(texts, batch_size=64, normalize_embeddings=True))
    _keep(vectors, cache)
    return vectors


def _keep(vectors: np.ndarray, cache: Path) -> None:
    """Write the cache, whole or not at all; without it the next search embeds again."""
    partial = cache.with_suffix(".partial.npy")
    try:
        cache.parent.mkdir(exist_ok=True)
        with partial.open("wb") as stream:
            save_array(stream, vectors)
        partial.rename(cache)
    except OSError as error:
        print(f"{cache}: not written ({error.strerror}); they are not kept", file=sys.stderr)
        with contextlib.suppress(OSError):
            partial.unlink()


def cache_key(folder: Path, documents: Sequence[Document]) -> str:
    """Differs when a text, or a file of the model, does."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        state = file.stat()
        digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    for document in documents:
        digest.update(document.embedded.encode() + b"\0")
    return digest.hexdigest()[:16]


def search(
    model: "SentenceTransformer", folder: Path, documents: Sequence[Document], query: str, top: int
) -> list[Hit]:
    """The documents nearest to a query, best first."""
    vectors = vectors_of(model, folder, documents)
    question = np.asarray(model.encode_query([query], normalize_embeddings=True))[0]
    # [n, D] @ [D] -> [n]
    scores = vectors @ question
    best = np.argsort(-scores, kind="stable")[:top]
    return [Hit(document=documents[row], score=float(scores[row])) for row in best]


def load_model(folder: Path) -> "SentenceTransformer":
    """The model of a folder.

    Raises:
        RecipeError: if the folder holds no exported model, or lacks some of its weights.
    """
    if not (folder / "modules.json").is_file():
        raise RecipeError(
            f"{folder}: modules.json = missing; expected a sentence-transformers folder. "
            "Give the model/ of a finished run with --model; `make demo` makes one."
        )
    # Heavy: a wrong path is reported before it is imported.
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    from trainer.evaluation.exported_weights import refuse_random
    from trainer.model.cpu_products import use_cpu_products

    disable_progress_bar()
    model = SentenceTransformer(str(folder), local_files_only=True)
    refuse_random(model, str(folder))
    use_cpu_products("auto", device_type=model.device.type)
    return model


def main() -> int:
    """Print the best hits of a query."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("query", help="what to look for")
    parser.add_argument("--model", type=Path, default=Path("runs/demo/model"), help="its folder")
    parser.add_argument("--corpus", type=Path, help="JSON lines; default: data/docs.jsonl beside")
    parser.add_argument("--top", type=int, default=5, help="how many to show")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    # Read when torch is loaded: idle threads sleep, which costs nothing on a free machine and saves
    # most of the time on a busy one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    folder: Path = arguments.model.expanduser()
    corpus = arguments.corpus or folder.parent / "data" / "docs.jsonl"
    documents = read_corpus(corpus)
    hits = search(load_model(folder), folder, documents, arguments.query, arguments.top)
    print(f'"{arguments.query}" in {len(documents)} documents of {corpus}:\n')
    for rank, hit in enumerate(hits, start=1):
        print(f"{rank:2}. {hit.score:.3f}  {hit.document.identifier}")
        print(f"           {hit.document.shown}")
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
