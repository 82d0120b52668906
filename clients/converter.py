"""Teach llama.cpp's converter the vocabularies of the matrix: `python -m clients.converter --help`.

The converter knows a byte-level vocabulary by a hash of what it makes of one text, and refuses
others: whoever has a vocabulary of their own adds its hash to the converter's table. This module
does so in a copy, in the environment of llama.cpp. It must not change how anything is converted.
"""

import argparse
import re
import shutil
import tarfile
from importlib import import_module
from pathlib import Path

from clients.families import FAMILIES
from clients.forms import FORMS
from clients.gguf import Heard, import_converter

SCRIPT = "convert_hf_to_gguf.py"
"""Of llama.cpp."""
PARTS = ("conversion", "gguf-py", SCRIPT)
"""What the converter consists of."""
KINDS = {"qwen": "qwen2", "llama3": "llama-bpe", "modernbert": "modern-bert"}
"""The converter's names of byte-level vocabularies; it has none for that of Gemma 3."""
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
            parts = Path(place).parts
            content = archive.extractfile(member) if member.isfile() else None
            # written by hand, as Python before 3.11.4 has no safe way to extract
            if content is not None and parts[:1] and parts[0] in PARTS and ".." not in parts:
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                with (folder / place).open("wb") as file:
                    shutil.copyfileobj(content, file)
    return folder / SCRIPT


def teach(script: Path, exports: Path) -> None:
    """Add vocabularies to the table of a converter.

    Args:
        script: from `unpack`; its table grows.
        exports: folder of exports.
    """
    table = script.parent / "conversion" / "base.py"
    before, ends, after = table.read_text(encoding="utf-8").rpartition(TABLE_ENDS)
    for form in FORMS:
        kind, folder = KINDS.get(FAMILIES[form.family].vocabulary), exports / form.name
        if kind is None or form.weights == "adapter" or not folder.is_dir():
            continue
        unknown = refused_hash(script, folder)
        if unknown is not None and unknown not in before:
            before += f'        if chkhsh == "{unknown}":\n            res = "{kind}"\n'
    table.write_text(before + ends + after, encoding="utf-8")


def refused_hash(script: Path, folder: Path) -> str | None:
    """The hash for which the converter refuses a tokenizer; None where it knows it.

    Args:
        script: the converter.
        folder: with a tokenizer.
    """
    from transformers import AutoTokenizer

    logger, heard = import_converter(script), Heard()
    logger.addHandler(heard)
    model = import_module("conversion.base").TextModel
    try:
        model.get_vocab_base_pre(None, AutoTokenizer.from_pretrained(folder))
    except NotImplementedError:
        return next(found[1] for line in heard.lines if (found := HASH.search(line)))
    finally:
        logger.removeHandler(heard)
    return None


def main() -> None:
    """Teach a converter the vocabularies of all exports."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("script", type=Path, help="the copy of the converter")
    parser.add_argument("exports", type=Path, help="folder of exports")
    arguments = parser.parse_args()
    teach(arguments.script, arguments.exports)


if __name__ == "__main__":
    main()
