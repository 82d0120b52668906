"""The command line of `run.py`: arguments in, exit code and one message out.

It must not import torch or the rooms that do: a mistake is reported before anything heavy starts.
"""

import argparse
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.errors import TrainerError
from trainer.recipe.secrets import without_secrets

logger = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
LONGEST_MESSAGE = 3000
"""Characters of a message; names from hostile files can have any length."""
OTHERS_WAIT_SEC = 5.0
"""How long other ranks let the first one speak; launchers end them when it has."""
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
"""Bytes of each unit that an argument may have."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the user asked for."""

    recipe: str
    """Path of the recipe."""
    overrides: tuple[str, ...]
    """`key.path=value`, in order."""
    resume: bool
    """Continue the newest valid checkpoint."""
    changes: tuple[str, ...]
    """`key.path=value` that a run goes on with, or `key.path` of what the recipe has changed."""
    dry_run: bool
    """Check and print everything, train nothing."""
    selfcheck: bool
    """Compare the chunked gradient with the whole batch's, train nothing."""
    gpus: int | None
    """Ranks per host that a dry run plans for; None: the ranks that were started."""
    hosts: int
    """Hosts that a dry run plans for."""
    gpu_memory_bytes: int | None
    """Memory of one GPU that a dry run plans for; None: that of this machine."""

    @property
    def changed_values(self) -> tuple[str, ...]:
        """The changes that bring a value."""
        return tuple(change for change in self.changes if "=" in change)


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Read the command line; a mistake in it ends the process with code 2 and the usage."""
    parser = _parser()
    found = parser.parse_intermixed_args(argv)
    if not found.dry_run and (found.gpus, found.hosts, found.gpu_memory) != (None, 1, None):
        parser.error("--gpus, --hosts and --gpu-memory plan a --dry-run; a run takes what it finds")
    if found.dry_run and found.selfcheck:
        parser.error("choose one of --dry-run and --selfcheck")
    if found.change and (found.selfcheck or not found.resume):
        parser.error("--change says what a run goes on with; give it with --resume")
    return Arguments(
        recipe=found.recipe,
        overrides=tuple(found.overrides),
        resume=found.resume,
        changes=tuple(found.change),
        dry_run=found.dry_run,
        selfcheck=found.selfcheck,
        gpus=found.gpus,
        hosts=found.hosts,
        gpu_memory_bytes=found.gpu_memory,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py",
        allow_abbrev=False,
        description="Train a text embedder as a recipe says: deepspeed trainer/run.py --recipe "
        "recipes/minilm.yaml. Also by torchrun, or by plain python as one process.",
        epilog="Exit codes: 0 done, 2 a mistake of the recipe, the data or the command line, "
        "1 fault, 130 or 143 interrupted.",
    )
    add = parser.add_argument
    add("--recipe", required=True, metavar="FILE", help="what to train, a YAML file")
    add("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe")
    add("--resume", action="store_true", help="continue the newest checkpoint of output_dir")
    add(
        "--change",
        nargs="+",
        action="extend",
        default=[],
        metavar="key.path[=value]",
        help="with --resume: what is changed from here on; without a value: as the recipe has it",
    )
    add("--dry-run", action="store_true", help="check everything, print the plan, train nothing")
    add("--selfcheck", action="store_true", help="compare chunked with whole-batch gradients")
    add("--gpus", type=_count, metavar="N", help="dry run: GPUs per host")
    add("--hosts", type=_count, default=1, metavar="N", help="dry run: hosts")
    add("--gpu-memory", type=size_in_bytes, metavar="80GB", help="dry run: memory of each GPU")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; expected an integer of at least 1")
    return int(text)


def size_in_bytes(text: str) -> int:
    """Bytes of an argument such as `80GB`, `512MiB` or `1000`; any other ends in the usage."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper())
    if match is None or match[2] not in UNITS:
        raise argparse.ArgumentTypeError(f"{text}; expected a size such as 80GB or 141GiB")
    return int(float(match[1]) * UNITS[match[2]])


def launched_ranks() -> int:
    """Processes that the launcher started, over all hosts; 1 under plain python."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Whether this process is the first over all hosts."""
    return int(os.environ.get("RANK", "0")) == 0


def is_speaker() -> bool:
    """Whether this process is the first of its host, which reports what went wrong there."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))) == 0


def let_idle_threads_sleep() -> None:
    """Configure OpenMP not to spin while it waits; before torch is imported.

    On a busy CPU the spinning threads of each small product keep the working one from its core:
    steps were seen to take fifty times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def set_up_logging() -> None:
    """First rank: messages; others: errors. On stdout, as stderr is for what ends the run."""
    level = logging.INFO if is_first_rank() else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    # a log that cannot be written, such as a pipe that was closed, must not end or flood a run
    logging.raiseExceptions = False
    threading.excepthook = _warn_of_thread


def _warn_of_thread(fault: threading.ExceptHookArgs) -> None:
    """A thread that met a full disk, as TensorBoard's does, gets a warning, not a traceback."""
    if isinstance(fault.exc_value, OSError):
        logger.warning("a writer stopped: %s", fault.exc_value)
    else:
        threading.__excepthook__(fault)


def shown(error: TrainerError) -> str:
    """The message in one line, without secrets, with what no terminal can show as escapes."""
    text = "".join(
        character if character.isprintable() else ascii(character)[1:-1]
        for character in without_secrets(str(error))
    )
    if len(text) <= LONGEST_MESSAGE:
        return text
    # the place stands at the beginning, what to do at the end
    half = LONGEST_MESSAGE // 2
    return f"{text[:half]}...{text[-half:]}"


def ending_with_code(command: Callable[[], int]) -> int:
    """Run a command and turn its errors into an exit code and one message.

    All ranks read the same files, so they meet the same mistake. The first of each host reports it;
    the others wait, and speak only if they are still alive because the mistake is theirs alone.
    """
    try:
        return command()
    except TrainerError as error:
        if error.reported or not is_speaker():
            time.sleep(OTHERS_WAIT_SEC)
        if not error.reported:
            sys.stderr.write(f"{shown(error)}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        _let_go_of_stdout()


def _let_go_of_stdout() -> None:
    """Write what is left, or drop it: Python would end with a code of its own over a full disk."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
