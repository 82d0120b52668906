"""Read all exports by the clients of one environment: `python -m clients.read --help`.

It runs in that environment, which has none of the trainer's libraries; it must import light.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.parity import quiet
from trainer.export.clients.folder import ExportFolder, read_export
from trainer.export.clients.run import Loader, least_cosine, loaders, rules_of, run_client
from trainer.export.parity_file import PARITY

LEAST_8_BIT = 0.999
"""Cosine that is equal enough after 8-bit conversion."""


def read_by(
    loader: Loader, folder: ExportFolder, *, least: float, precision: str
) -> dict[str, Any]:
    """One client's result, with the name of its column and what the rules about it say.

    Args:
        loader: of a client that is installed.
        folder: with its `parity.json`.
        least: cosine that is equal enough.
        precision: of a conversion; the client's own where there is none.
    """
    assert folder.parity is not None
    rules = rules_of(loader.client, loader.version.partition(".")[0])
    result = run_client(
        folder,
        folder.parity,
        loader.run,
        name=(loader.client, loader.version),
        rules=rules,
        how="loaded",
        least=least,
    )
    by_rules = None if rules is None else rules.read(folder).entry
    column = f"{loader.client} {loader.version} {precision}".rstrip()
    return result.entry | {"column": column, "rules": by_rules}


def read_exports(
    folders: Sequence[Path], clients: Sequence[str], *, converter: Path | None, precision: str
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Names of exports with the results of all clients, one export at a time.

    Args:
        folders: exports.
        clients: names, as `tools/parity.py` has them.
        converter: of llama.cpp, where that is a client.
        precision: what it converts to.
    """
    chosen = [loader for loader in loaders(converter, precision) if loader.client in clients]
    for path in folders:
        folder = read_export(path)
        assert folder.parity is not None
        least = least_cosine(folder.parity, LEAST_8_BIT if precision == "q8_0" else None)
        shown = precision if converter is not None else ""
        yield (
            path.name,
            [read_by(loader, folder, least=least, precision=shown) for loader in chosen],
        )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    add = made.add_argument
    add("exports", type=Path, help="folder of exports")
    add("--clients", required=True, type=lambda text: text.split(","), help="names, by commas")
    add("--output", required=True, type=Path, help="JSON file of results by export")
    add("--gguf-converter", type=Path, metavar="FILE", help="of llama.cpp")
    add("--gguf-type", default="f32", help="what it converts to")
    return made


def main() -> None:
    """Read all exports and write the results."""
    given = parser().parse_args()
    quiet()
    folders = sorted(file.parent for file in given.exports.glob(f"*/{PARITY}"))
    found = read_exports(
        folders, given.clients, converter=given.gguf_converter, precision=given.gguf_type
    )
    results = {}
    for name, entries in found:
        results[name] = entries
        given.output.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
