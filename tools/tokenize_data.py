"""Tokenise the sources of a recipe ahead, for example on a machine without a GPU.

python tools/tokenize_data.py --recipe recipes/minilm.yaml
python tools/tokenize_data.py --recipe recipes/minilm.yaml data.passage_max_tokens=256 --processes 8
python tools/tokenize_data.py --recipe recipes/minilm.yaml --check

Tokens lie in the cache, in a folder whose name follows from their content alone: the tokenizer, the
limits, the instructions, and the content of the data files. A run of the same recipe finds them
there. Several machines that share the cache can work at once, each started with the same command.
What is interrupted goes on where it was.

Exit codes: 0 done, 2 a mistake.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import replace

from tqdm import tqdm

from trainer.cli import ending_with_code
from trainer.data.evalsets import open_eval_sets
from trainer.data.overlap import screen_of
from trainer.data.row_settings import with_row_settings
from trainer.data.sources import open_sources
from trainer.data.token_making import Making, disk_refusing
from trainer.data.token_pieces import TokenJob, check_piece
from trainer.data.token_store import TokenStore, check_index, open_store, piece_path
from trainer.data.tokens_ahead import announce, token_jobs
from trainer.errors import DataError
from trainer.recipe.adapter_folder import with_adapter
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import Recipe

TURN_SEC = 0.5
"""Between two moves of the progress bar."""


def jobs_of(recipe: Recipe) -> Iterable[TokenJob]:
    """The stores of all sources of a recipe, with the encoder that a run of it would have.

    Args:
        recipe: with what rows set, see `with_row_settings`.

    Raises:
        RecipeError: if the model or a task does not fit.
        DataError: if a row is malformed, or there is no fast tokenizer.
    """
    # heavy
    from trainer.merge.model_place import place_of_model
    from trainer.model.backbone import check_backbone, load_config
    from trainer.model.limits import num_token_ids
    from trainer.preflight.encoder import open_encoder

    # rows that a run drops have no tokens in its store
    held_out = open_eval_sets(recipe) if recipe.data.overlap == "drop" else {}
    sources = open_sources(recipe.data, screen_of(recipe.data, held_out))
    path = place_of_model(recipe.model)
    config = load_config(recipe.model, path)
    num_ids = num_token_ids(check_backbone(recipe, path, config, download=True))
    _, encoder = open_encoder(recipe, path, num_ids=num_ids)
    return token_jobs(recipe, sources, encoder, num_ranks=1).values()


def make(job: TokenJob, processes: int) -> TokenStore:
    """Make a store that is not there, with a bar.

    Raises:
        DataError: if a text has no tokens, or the disk is full.
        StepError: if a maker died.
    """
    found = open_store(job.folder)
    if found is not None:
        return found
    count = min(processes, job.num_pieces)
    with disk_refusing(job):
        announce(job, num_processes=count)
    bar = tqdm(total=job.num_pieces, desc=f"tokenising {job.source.name}", unit="piece",
               disable=None)  # fmt: skip
    with bar, Making(job, count) as making:
        while found is None:
            found = making.advance(TURN_SEC)
            bar.update(making.num_made() - bar.n)
    return found


def check(job: TokenJob) -> TokenStore:
    """Read all of a store and compare its hashes.

    Raises:
        DataError: if it is missing or damaged.
    """
    found = open_store(job.folder)
    if found is None:
        raise DataError(
            f"{job.folder}: tokens of source {job.source.name} = missing; expected finished ones. "
            "Make them with the same command without --check."
        )
    facts = check_index(job.folder)
    for number in tqdm(range(job.num_pieces), desc=f"checking {job.source.name}", disable=None):
        check_piece(piece_path(job.folder, number), facts["pieces"][number]["sha256"])
    return found


def run(arguments: argparse.Namespace) -> int:
    """Make or check all stores, and say where they are."""
    recipe = with_row_settings(with_adapter(load_recipe(arguments.recipe, arguments.overrides)))
    recipe = replace(recipe, data=replace(recipe.data, tokens="ahead"))
    for job in jobs_of(recipe):
        store = check(job) if arguments.check else make(job, arguments.processes)
        lengths = store.arrays["lengths"]
        print(
            f"{job.source.name}: {len(store):,} rows, {len(lengths):,} texts, "
            f"{int(lengths.sum(dtype='int64')):,} tokens in {job.folder}"
        )
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--recipe", metavar="FILE", required=True, help="what will be trained, a YAML file")
    add("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe")
    cores = len(os.sched_getaffinity(0))
    add("--processes", type=_count, default=cores, metavar="N", help="makers, one a core if absent")
    add("--check", action="store_true", help="read what is there and compare its hashes")
    return made


def _count(text: str) -> int:
    """A number of processes."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number above 0")
    return int(text)


def main() -> int:
    """Do what the command line says; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    arguments = parser().parse_intermixed_args()
    return ending_with_code(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
