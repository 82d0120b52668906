"""`parity.json`: texts with the token ids and vectors that every reader of a folder must give.

It must not know models. Its imports are light, as it is read in environments that have none of the
trainer's libraries.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint.json_files import read_object
from trainer.errors import CheckpointError

PARITY = "parity.json"
"""Its name inside an exported folder."""
VERSION = 1
"""Of the format."""
UNIT_TOLERANCE = 1e-3
"""How far from 1 the norm of a vector may be: rounding of float32 is far below."""
ANEW = "Make it anew with: python tools/parity.py FOLDER --write"


@dataclass(frozen=True, kw_only=True)
class ParitySettings:
    """How the vectors were made."""

    pooling: str
    """A word of `model.pooling`."""
    attention: str
    """`causal` or `bidirectional`; an encoder's is bidirectional."""
    dtype: str
    """Of the weights during the forward: `float32` or `bfloat16`."""
    max_tokens: int
    """Longest text, special tokens included; longer ones were cut."""
    dimensions: int
    """D."""
    include_prompt: bool
    """Whether a mean includes the prompt's tokens."""
    libraries: Mapping[str, str]
    """Releases by package."""
    end_token: int | None
    """Id of the special token that the tokenizer puts behind each text; None: it puts none."""
    normalize: bool = True
    """Vectors have norm 1."""


@dataclass(frozen=True, kw_only=True)
class ParityText:
    """One text and what the trainer makes of it."""

    prompt_name: str | None
    """Name of the prompt in the exported folder; None: none."""
    prompt: str
    """Stands before the text, may be empty."""
    text: str
    """Without the prompt."""
    token_ids: tuple[int, ...]
    """With prompt and special tokens, cut to `max_tokens`."""
    vector: np.ndarray
    """Unit norm [D], float32."""

    @property
    def whole(self) -> str:
        """What is tokenised."""
        return self.prompt + self.text


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Content of the file."""

    settings: ParitySettings
    """How the vectors were made."""
    texts: tuple[ParityText, ...]
    """At least one; every prompt of the folder is before one of them."""

    @property
    def prompts(self) -> dict[str, str]:
        """Prompts by name."""
        named = (text for text in self.texts if text.prompt_name is not None)
        return {str(text.prompt_name): text.prompt for text in named}

    @property
    def vectors(self) -> np.ndarray:
        """All vectors [n, D], float32."""
        return np.stack([text.vector for text in self.texts])

    def is_cut(self, text: ParityText) -> bool:
        """Whether a text has as many tokens as may be, so that it was probably cut."""
        return len(text.token_ids) >= self.settings.max_tokens


def write_parity(folder: Path, parity: Parity) -> Path:
    """Write the file of a folder, whole or not at all; numbers read back to the same bits."""
    lines = ",\n".join(json.dumps(_text_entry(text)) for text in parity.texts)
    settings = json.dumps({**vars(parity.settings), "libraries": dict(parity.settings.libraries)})
    path = folder / PARITY
    partial = path.with_name(f".partial-{PARITY}")
    partial.write_text(
        f'{{"version": {VERSION},\n"settings": {settings},\n"texts": [\n{lines}\n]}}\n',
        encoding="utf-8",
    )
    os.replace(partial, path)
    return path


def _text_entry(text: ParityText) -> dict[str, Any]:
    # the shortest decimals that are this float32
    vector = [float(str(value)) for value in text.vector.astype(np.float32)]
    return {**vars(text), "token_ids": list(text.token_ids), "vector": vector}


def find_parity(folder: Path) -> Parity | None:
    """The file of a folder, or None where there is none.

    Raises:
        CheckpointError: as `read_parity`.
    """
    return read_parity(folder / PARITY) if (folder / PARITY).is_file() else None


def read_parity(path: Path) -> Parity:
    """Read and check a file.

    Raises:
        CheckpointError: if it is not JSON, of another version, or a value is missing, of another
            type or length, or no number.
    """
    content = read_object(path)
    if content.get("version") != VERSION:
        raise _wrong(path, "version", content.get("version"), str(VERSION))
    settings = _settings(path, content.get("settings"))
    texts = content.get("texts")
    if not isinstance(texts, list) or not texts:
        raise _wrong(path, "texts", texts, "a list of at least one text")
    read = [_text(path, f"texts[{i}]", entry, settings) for i, entry in enumerate(texts)]
    return Parity(settings=settings, texts=tuple(read))


def _settings(path: Path, content: object) -> ParitySettings:
    """The settings, each of its type."""
    kinds: dict[str, type] = {
        "pooling": str, "attention": str, "dtype": str, "max_tokens": int, "dimensions": int,
        "include_prompt": bool, "libraries": dict, "normalize": bool,
    }  # fmt: skip
    if not isinstance(content, dict):
        raise _wrong(path, "settings", content, "an object")
    for name, kind in kinds.items():
        if type(content.get(name)) is not kind:
            raise _wrong(path, f"settings.{name}", content.get(name), f"a value of {kind.__name__}")
    end = content.get("end_token")
    if end is not None and type(end) is not int:
        raise _wrong(path, "settings.end_token", end, "an id or null")
    return ParitySettings(end_token=end, **{name: content[name] for name in kinds})


def _text(path: Path, place: str, entry: object, settings: ParitySettings) -> ParityText:
    """One text, its numbers checked."""
    if not isinstance(entry, dict):
        raise _wrong(path, place, entry, "an object")
    for name in ("prompt", "text"):
        if not isinstance(entry.get(name), str):
            raise _wrong(path, f"{place}.{name}", entry.get(name), "a text")
    prompt_name = entry.get("prompt_name")
    if prompt_name is not None and not isinstance(prompt_name, str):
        raise _wrong(path, f"{place}.prompt_name", prompt_name, "a name or null")
    ids = entry.get("token_ids")
    if not isinstance(ids, list) or not ids or any(type(i) is not int or i < 0 for i in ids):
        raise _wrong(path, f"{place}.token_ids", ids, "a list of ids, at least one")
    return ParityText(
        prompt_name=prompt_name,
        prompt=entry["prompt"],
        text=entry["text"],
        token_ids=tuple(ids),
        vector=_vector(path, f"{place}.vector", entry.get("vector"), settings.dimensions),
    )


def _vector(path: Path, place: str, found: object, dimensions: int) -> np.ndarray:
    """A unit vector [D], float32."""
    if not isinstance(found, list) or len(found) != dimensions:
        size = len(found) if isinstance(found, list) else found
        raise _wrong(path, place, f"{size} numbers", f"{dimensions}, as settings.dimensions says")
    numbers = [n for n in found if type(n) in (int, float) and math.isfinite(n)]
    if len(numbers) != dimensions:
        raise _wrong(path, place, "a value that is no number", "finite numbers")
    vector = np.array(numbers, dtype=np.float32)
    norm = float(np.linalg.norm(vector))
    if not abs(norm - 1) <= UNIT_TOLERANCE:
        raise _wrong(path, place, f"norm {norm:.4f}", "norm 1")
    return vector


def _wrong(path: Path, field: str, found: object, expected: str) -> CheckpointError:
    return CheckpointError(f"{path}: {field} = {found!s:.60}; expected {expected}. {ANEW}")
