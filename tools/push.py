"""Upload an exported model to the Hugging Face hub.

python tools/push.py runs/helpdesk/model OWNER/helpdesk --private
python tools/push.py runs/helpdesk/model OWNER/helpdesk --dry-run

FOLDER is an export: `model/` or `merged/` of a finished run, or the output of
tools/delta_merge.py. It is checked before anything is sent, and all of it becomes one commit. In
the card, the folder's path is replaced by the name on the hub. The token is that of the hub's own
command line: HF_TOKEN, or what `hf auth login` stored.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.cli import ending_with_code
from trainer.export.upload import UploadRequest, check_repo, export_files, local_base, upload
from trainer.report.card import CARD, card_for_hub

MESSAGE = "Upload the model"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="an exported model")
    add("repo", metavar="REPO", help="OWNER/NAME; made where there is none")
    add("--private", action="store_true", help="only you and your organisation may read it")
    add("--revision", metavar="BRANCH", help="commit to this branch (default: main)")
    add("--message", default=MESSAGE, help=f"of the commit (default: {MESSAGE})")
    add("--dry-run", action="store_true", help="check and list the files, send nothing")
    add("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def push(arguments: argparse.Namespace) -> dict[str, Any]:
    """Check the folder and send it, unless it is a dry run.

    Returns:
        What was, or would be, done.

    Raises:
        TrainerError: the folder is no complete export, or the hub did not take it.
    """
    folder = arguments.folder.expanduser()
    check_repo(arguments.repo)
    files = export_files(folder)
    names = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    result: dict[str, Any] = {"repo": arguments.repo, "files": names, "commit": None, "removed": []}
    if arguments.dry_run:
        return result
    request = UploadRequest(
        repo=arguments.repo,
        private=arguments.private,
        revision=arguments.revision,
        message=arguments.message,
    )
    done = upload(folder, request, lambda repo: cards_for_hub(folder, names, repo))
    return result | {"repo": done.repo, "commit": done.commit, "removed": list(done.removed)}


def cards_for_hub(folder: Path, names: Iterable[str], repo: str) -> dict[str, bytes]:
    """Cards that name the model as the hub does; one of a folder inside keeps that folder's name.

    Args:
        folder: of the export.
        names: its files.
        repo: `OWNER/NAME`.
    """
    cards = [Path(name) for name in names if Path(name).name == CARD]
    places = {card: repo if card == Path(CARD) else f"./{card.parent}" for card in cards}
    return {
        card.as_posix(): card_for_hub(folder / card, place).encode()
        for card, place in places.items()
    }


def warnings_for(folder: Path) -> Iterator[str]:
    """What others will miss."""
    if not (folder / CARD).is_file():
        yield f"no {CARD}; the hub will show no card"
    base = local_base(folder)
    if base is not None:
        yield f"the adapter's base is {base}, a folder of this machine; nobody else can load it"


def show(result: dict[str, Any]) -> None:
    """Print what was done for a person."""
    for name, size in result["files"].items():
        print(f"{size:>16,}  {name}")
    for name in result["removed"]:
        print(f"{'removed':>16}  {name}")
    total = f"{len(result['files'])} files, {sum(result['files'].values()) / 1e6:,.1f} MB"
    print(f"{total}: {result['commit'] or 'nothing sent'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    arguments = parse_arguments(argv)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    result = push(arguments)
    for warning in warnings_for(arguments.folder.expanduser()):
        print(f"{arguments.folder}: {warning}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
