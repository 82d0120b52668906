"""Results of long work, a file each, so that a table can be made in pieces."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.json_files import write_json


@dataclass(frozen=True)
class Kept:
    """The results in one folder."""

    folder: Path

    def get(self, name: str, made_from: Sequence[str]) -> Any | None:
        """A result, unless there is none or it was made from something else.

        Args:
            name: of the piece of work.
            made_from: what it depends on besides the program, such as recipe and arguments.
        """
        file = self.folder / f"{name}.json"
        if not file.is_file():
            return None
        kept = json.loads(file.read_text(encoding="utf-8"))
        return kept["result"] if kept["made_from"] == _digest(made_from) else None

    def make(self, name: str, made_from: Sequence[str], work: Callable[[], Any]) -> Any:
        """Do a piece of work and keep its result, whole or not at all; arguments as of `get`."""
        begun = time.monotonic()
        result = work()
        kept = {
            "made_from": _digest(made_from),
            "seconds": round(time.monotonic() - begun),
            "result": result,
        }
        write_json(self.folder / f"{name}.json", kept)
        return result


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()
