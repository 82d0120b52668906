"""llama.cpp's converter, taught the vocabularies of the matrix; runs where it is installed.

The converter knows a byte-level vocabulary by a hash of what it makes of one text, and refuses
others: whoever has a vocabulary of their own adds its hash to the converter's table. This module
does so in a copy. It must not change how anything is converted.
"""

import logging
import re
import shutil
import sys
import tarfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

PARTS = ("conversion", "gguf-py", "convert_hf_to_gguf.py")
"""What the converter consists of."""
TABLE_ENDS = "        if res is None:\n"
"""Line of the converter behind its table."""
HASH = re.compile(r"chkhsh:\s+(\w{64})")
"""The hash, in the message of a refusal."""


def unpack(source: Path, folder: Path) -> Path:
    """Take the converter out of the source package of llama-cpp-python.

    Args:
        source: the package, a `.tar.gz`.
        folder: replaced.

    Returns:
        The script.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(source) as archive:
        for member in archive:
            place = member.name.partition("/vendor/llama.cpp/")[2]
            if place.split("/", 1)[0] in PARTS and member.isfile():
                member.name = place
                archive.extract(member, folder, filter="data")
    return folder / PARTS[-1]


def teach(script: Path, vocabularies: Mapping[str, Path]) -> None:
    """Add vocabularies to the table of a converter.

    Args:
        script: from `unpack`; its table grows.
        vocabularies: the converter's names of kinds of vocabularies, and folders with tokenizers.
    """
    table = script.parent / "conversion" / "base.py"
    before, ends, after = table.read_text(encoding="utf-8").rpartition(TABLE_ENDS)
    for kind, folder in vocabularies.items():
        known = refused_hash(script, folder)
        if known is not None and known not in before:
            before += f'        if chkhsh == "{known}":\n            res = "{kind}"\n'
    table.write_text(before + ends + after, encoding="utf-8")


class _Heard(logging.Handler):
    """Keeps what a logger says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())


def refused_hash(script: Path, folder: Path) -> str | None:
    """The hash for which the converter refuses a tokenizer; None where it knows it.

    Args:
        script: the converter.
        folder: with a tokenizer.
    """
    from transformers import AutoTokenizer

    for path in (script.parent, script.parent / "gguf-py"):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    base = import_module("conversion.base")
    heard = _Heard()
    base.logger.addHandler(heard)
    try:
        base.TextModel.get_vocab_base_pre(None, AutoTokenizer.from_pretrained(folder))
    except NotImplementedError:
        return next(found[1] for line in heard.lines if (found := HASH.search(line)))
    finally:
        base.logger.removeHandler(heard)
    return None
