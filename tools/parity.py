"""Compare an exported folder with its parity.json in every client, or say how they read it.

python tools/parity.py runs/a/model                     # installed clients run, others by rules
python tools/parity.py runs/a/model --no-load           # all clients by rules, none runs
python tools/parity.py runs/a/model --url http://localhost:8000 --api openai
python tools/parity.py runs/a/merged --write            # make parity.json by the trainer's code
python tools/parity.py runs/old/model --fix             # files as all clients read them

Exit codes: 0 no client is silently different, 1 one is, 2 a mistake.
"""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from trainer.cli import ending_with_code
from trainer.errors import CheckpointError
from trainer.export.clients.finding import ClientResult
from trainer.export.clients.folder import MODULES, read_export, read_files
from trainer.export.clients.run import check_clients, check_server, least_cosine, loaders
from trainer.export.clients.served import APIS
from trainer.export.clients.table import CLIENTS
from trainer.export.parity_file import ANEW, PARITY, Parity, write_parity

DIFFERENT = 1
"""Exit code where a client embeds otherwise without an error of its own."""
ADAPTER_INSIDE = "adapter"
"""Folder of the adapter, where merged weights and adapter were exported both."""
RUNNABLE = ("onnx",)
"""Clients that no rules are about."""


def change(folder: Path, *, fix: bool, write: bool) -> list[str]:
    """Bring files into the form that all clients read, and make parity.json.

    Args:
        folder: an exported folder, perhaps with that of an adapter inside.
        fix: change files; `parity.json` is made if there is none.
        write: make `parity.json` anew.

    Returns:
        One sentence for each change.

    Raises:
        TrainerError: see `trainer.export.from_folder`.
    """
    changes = []
    for place in (folder, folder / ADAPTER_INSIDE):
        if place == folder or (place / MODULES).is_file():
            prefix = "" if place == folder else f"{ADAPTER_INSIDE}/"
            changes += [f"{prefix}{sentence}" for sentence in _change(place, fix=fix, write=write)]
    return changes


def _change(folder: Path, *, fix: bool, write: bool) -> list[str]:
    """The changes of one folder."""
    changes: list[str] = []
    if fix:
        from trainer.export.complete import complete_folder

        read_files(folder)
        changes += complete_folder(folder)
    if write or (fix and not (folder / PARITY).is_file()):
        # Heavy: needs the trainer's own environment.
        from trainer.export.from_folder import parity_of_folder

        write_parity(folder, parity_of_folder(folder))
        changes.append(f"{PARITY}: made by the model of this folder.")
    return changes


def check(arguments: argparse.Namespace) -> list[ClientResult]:
    """Results of all chosen clients, or of one server.

    Raises:
        CheckpointError: no exported folder, a damaged file, or no server.
    """
    folder = read_export(arguments.folder)
    if arguments.url is not None:
        if folder.parity is None:
            raise _no_parity(arguments.folder)
        least = least_cosine(folder.parity, arguments.min_cosine)
        return [
            check_server(folder, folder.parity, url=arguments.url, api=arguments.api, least=least)
        ]
    if folder.parity is None:
        print(f"{_no_parity(arguments.folder)}", file=sys.stderr)
    running = loaders(arguments.gguf_converter, arguments.gguf_type) if arguments.load else []
    least = _least(folder.parity, arguments.min_cosine)
    return list(check_clients(folder, arguments.clients, running, least))


def _least(parity: Parity | None, given: float | None) -> float:
    """The cosine that is equal enough; any where nothing is compared."""
    return least_cosine(parity, given) if parity is not None else 1.0


def _no_parity(folder: Path) -> CheckpointError:
    return CheckpointError(f"{folder / PARITY}: file = missing; expected texts to compare. {ANEW}")


def outcome_of(results: Sequence[ClientResult]) -> str:
    """`different` if a client is, else `equal`."""
    return "different" if any(r.outcome == "different" for r in results) else "equal"


def table(results: Sequence[ClientResult]) -> str:
    """Results for people: one line a client, the reason below it."""
    width = max((len(result.label) for result in results), default=0)
    lines = []
    for result in results:
        cosine = "" if result.cosine is None else f"  cosine {result.cosine:.7f}"
        lines.append(f"{result.label:{width}}  {result.how:6}  {result.outcome:9}{cosine}".rstrip())
        lines += [f"    {result.reason}"] if result.reason else []
    return "\n".join(lines)


def _clients(text: str) -> list[str]:
    """Names of clients from the command line."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = {c.name for c in CLIENTS} | {c.key for c in CLIENTS} | set(RUNNABLE)
    unknown = sorted(set(names) - known)
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'no client'}; expected some of {', '.join(sorted(known))}"
        )
    return names


def _cosine(text: str) -> float:
    """A cosine from the command line."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}; expected more than 0 and at most 1")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("folder", type=Path, help="an exported model, such as runs/a/model")
    add("--json", action="store_true", help="one JSON object on stdout")
    add("--clients", type=_clients, metavar="A,B", help="such as transformers-4,tei; default: all")
    add("--no-load", dest="load", action="store_false", help="run no client, apply rules only")
    add("--min-cosine", type=_cosine, metavar="C", help="default 0.9999, 0.999 for bfloat16")
    add("--url", help="compare a running server instead")
    add("--api", choices=sorted(APIS), default="openai", help="its interface; default: openai")
    add("--fix", action="store_true", help="bring the files into the form that all clients read")
    add("--write", action="store_true", help="make parity.json anew by the trainer's own code")
    add("--gguf-converter", type=Path, metavar="FILE", help="convert_hf_to_gguf.py: run llama.cpp")
    add("--gguf-type", default="f32", choices=("f32", "q8_0"), help="of the conversion")
    return made


def quiet() -> None:
    """Keep libraries from talking beside the results; before they are imported."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> int:
    """Change what was asked for, compare, and print."""
    arguments = parser().parse_args()
    quiet()
    arguments.folder = arguments.folder.expanduser()
    changes = change(arguments.folder, fix=arguments.fix, write=arguments.write)
    results = check(arguments)
    outcome = outcome_of(results)
    if arguments.json:
        shown = {
            "folder": str(arguments.folder),
            "outcome": outcome,
            "changes": changes,
            "clients": [result.entry for result in results],
        }
        print(json.dumps(shown))
    else:
        print("\n".join([*changes, table(results)]))
    return DIFFERENT if outcome == "different" else 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
