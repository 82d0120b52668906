"""Results of long benchmarks, a file each, so that a table can be made in pieces."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
        """Do a piece of work and keep its result; its arguments are those of `get`."""
        begun = time.monotonic()
        result = work()
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = {
            "made_from": _digest(made_from),
            "seconds": round(time.monotonic() - begun),
            "result": result,
        }
        (self.folder / f"{name}.json").write_text(json.dumps(kept), encoding="utf-8")
        return result


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()
