"""JSON files beside weights, checked for the form that readers count on; it knows no tensors."""

import json
import os
import re
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError

PARTIAL = ".partial-"
"""Before the name of a file that is not whole yet."""
REFUSED = re.compile(r"\(os error (\d+)\)")
"""How the library of tokenizers tells what a disk refused: in a plain Exception."""


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        CheckpointError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: content = not JSON ({error}); expected JSON. Copy the file again."
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """Content of a file that holds a JSON object.

    Raises:
        CheckpointError: if it is not JSON, or something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: content = {content!r:.60}; expected a JSON object. Copy the file again."
        )
    return content


def write_json(path: Path, content: Any) -> None:
    """Indented JSON with a final newline, whole or not at all; makes the parent folder."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """A file of text, whole or not at all; makes the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL + path.name)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def read_modules(path: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers model, at least one.

    Raises:
        CheckpointError: if the file is no list of objects, or a module lies outside the folder.
    """
    content = read_json(path)
    modules = content if isinstance(content, list) else []
    if not modules or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(
            f"{path}: content = {content!r:.60}; expected a list of modules. Copy the file again."
        )
    for module in modules:
        place = Path(module_path(module))
        if place.is_absolute() or ".." in place.parts:
            raise CheckpointError(
                f"{path}: path = {place}; expected a folder inside this one. Do not use this model "
                "unless you know who made it."
            )
    return modules


def module_path(module: dict[str, Any]) -> str:
    """Where a module's files lie, relative to the folder; empty for the folder itself."""
    return str(module.get("path", ""))


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the files of a tokenizer, as `save_pretrained` does.

    Raises:
        OSError: if the disk refuses them.
    """
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:
        refused = REFUSED.search(str(error))
        if refused is None:
            raise
        number = int(refused[1])
        raise OSError(number, os.strerror(number), str(folder)) from error
