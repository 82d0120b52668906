"""Mine hard negatives of a source: `python tools/mine.py --model DIR --source PATH --output FILE`.

On several ranks: `torchrun --nproc-per-node 8 tools/mine.py ...` or `deepspeed tools/mine.py ...`.
The source is a file of any retrieval format or a BEIR folder, in whose corpus is searched; of a
file, all its passages are. Every row gets the nearest passages that no filter leaves out. What
answers a query, and its own text, is always left out. Interrupted, the same command continues.
Beside FILE stand FILE.json, which says what was done, and FILE.html to look at.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer.cli import ending_with_code, is_first_rank, let_idle_threads_sleep, set_up_logging
from trainer.data.sources import Source, open_source
from trainer.errors import DataError, RecipeError
from trainer.evaluation.exported import ExportedEmbedder, find_model, load_model
from trainer.mining.choose import MiningSettings, check_settings
from trainer.mining.limits import EXACT_UP_TO, check_exact_up_to, check_index
from trainer.mining.teacher import find_cross_encoder
from trainer.mining.texts import read_texts
from trainer.recipe.schema import SourceRecipe

if TYPE_CHECKING:
    from torch import Tensor, device

    from trainer.mining.teacher import Embed, Score

logger = logging.getLogger(__name__)


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--model", required=True, help="folder, run folder, hub id or package:NAME/FOLDER")
    add("--source", required=True, help="file or BEIR folder")
    add("--output", required=True, type=Path, help="file of rows to make, JSON lines")
    add("--split", default="train", help="which qrels of a BEIR folder")
    add("--format", help="of the source's rows; default: found")
    add("--num-negatives", type=int, default=4, help="of each query at most (default: 4)")
    add("--skip-top", type=int, default=0, help="nearest passages to leave out (default: 0)")
    add("--max-score", type=float, help="highest cosine of a negative")
    add("--relative-margin", type=float, metavar="SHARE",
        help="highest cosine of a negative as a share of the positive's, such as 0.95")  # fmt: skip
    add("--absolute-margin", type=float, help="cosine by which it must stay below the positive's")
    add("--guide", metavar="MODEL",
        help="another embedder, whose cosines are written along for distillation")  # fmt: skip
    add("--cross-encoder", metavar="MODEL", help="likewise, whose logits are written along")
    add("--guide-margin", type=float, metavar="SCORE",
        help="score of one of these by which a negative must stay below the positive's, such as 0"
    )  # fmt: skip
    add("--sampling", choices=("hardest", "random"), default="hardest")
    add("--depth", type=int, help="passages that are considered; default: enough for the filters")
    add("--exact-up-to", type=int, default=EXACT_UP_TO, metavar="PASSAGES",
        help=f"more are searched by an index of compressed vectors (default: {EXACT_UP_TO:,})"
    )  # fmt: skip
    add("--seed", type=int, default=42, help="of --sampling random")
    add("--dry-run", action="store_true", help="check everything, say what would be done, stop")
    add("--json", action="store_true", help="one JSON object as the last line")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def settings_of(arguments: argparse.Namespace) -> MiningSettings:
    """How negatives are chosen.

    Raises:
        RecipeError: if a number is out of bounds, or the teacher of a margin is missing.
    """
    if arguments.guide is not None and arguments.cross_encoder is not None:
        raise RecipeError(
            "--cross-encoder: given beside --guide; expected one of them, as a row has one score "
            "of each passage. Leave one out."
        )
    if arguments.guide_margin is not None and arguments.guide == arguments.cross_encoder:
        raise RecipeError(
            f"--guide-margin: {arguments.guide_margin} = without a model that scores; expected "
            "--guide or --cross-encoder beside it. Give one, or leave the margin out."
        )
    settings = MiningSettings(
        num_negatives=arguments.num_negatives,
        skip_top=arguments.skip_top,
        max_score=arguments.max_score,
        relative_margin=arguments.relative_margin,
        absolute_margin=arguments.absolute_margin,
        guide_margin=arguments.guide_margin,
        sampling=arguments.sampling,
        depth=arguments.depth,
        seed=arguments.seed,
    )
    check_settings(settings)
    check_exact_up_to(arguments.exact_up_to)
    return settings


def source_of(arguments: argparse.Namespace) -> Source:
    """The source, every row checked.

    Raises:
        DataError: if it is missing or a row is malformed.
    """
    if not Path(arguments.source).expanduser().exists():
        raise DataError(
            f"--source: {arguments.source} = missing; expected a file or a BEIR folder. Check the "
            "path."
        )
    recipe = SourceRecipe(
        name="source",
        task="ir",
        path=str(Path(arguments.source).expanduser().absolute()),
        split=arguments.split,
        format=arguments.format,
    )
    return open_source(recipe, ".")


def check_output(output: Path) -> None:
    """Refuse a place that cannot be written to, before hours are spent.

    Raises:
        RecipeError: naming it.
    """
    parent = output.expanduser().absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RecipeError(
            f"--output: {output} = in no folder that can be written to; expected one. Make "
            f"{parent}, or give another."
        )
    if output.exists():
        raise RecipeError(
            f"--output: {output} = exists; expected a new file. Give another, or remove it."
        )


def check_models(arguments: argparse.Namespace) -> None:
    """Refuse folders that hold no model, before the source is read.

    Raises:
        RecipeError: naming the first.
    """
    find_model(arguments.model)
    if arguments.guide is not None:
        find_model(arguments.guide, option="--guide")
    if arguments.cross_encoder is not None:
        find_cross_encoder(arguments.cross_encoder)


def load_embedder(path: str, option: str, where: "device") -> "Embed":
    """The embedder of an option.

    Raises:
        RecipeError: if there is none.
    """
    place, limits = find_model(path, option=option)
    embedder = ExportedEmbedder(load_model(place, option=option).to(where), "ir", limits)

    def embed(texts: Sequence[str], side: str) -> "Tensor":
        return embedder(texts, side="query" if side == "query" else "passage")

    return embed


def load_teacher(arguments: argparse.Namespace, where: "device") -> "Score | None":
    """What scores pairs, if something does.

    Raises:
        RecipeError: if there is no such model.
    """
    from trainer.mining.teacher import cosines_of, load_cross_encoder

    if arguments.guide is not None:
        return cosines_of(load_embedder(arguments.guide, "--guide", where))
    if arguments.cross_encoder is not None:
        return load_cross_encoder(arguments.cross_encoder, where)
    return None


def provenance_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Models and source, for the record."""
    from trainer.mining.mine import model_identity

    made: dict[str, Any] = {
        "model": arguments.model,
        "model_sha256": model_identity(find_model(arguments.model)[0]),
        "source_path": arguments.source,
    }
    if arguments.guide is not None:
        made |= {"guide": arguments.guide}
        made |= {"guide_sha256": model_identity(find_model(arguments.guide, option="--guide")[0])}
    if arguments.cross_encoder is not None:
        place = find_cross_encoder(arguments.cross_encoder)
        made |= {"cross_encoder": arguments.cross_encoder}
        made |= {"cross_encoder_sha256": model_identity(place)}
    return made


def mine(arguments: argparse.Namespace, settings: MiningSettings, source: Source) -> dict[str, Any]:
    """Mine on all ranks; gives the record."""
    # heavy: mistakes in paths and rows are reported before these are imported
    from trainer.distributed.group import joined
    from trainer.mining.mine import Mining

    with joined(timeout_minutes=60) as ranks:
        mining = Mining(
            source=source,
            embed=load_embedder(arguments.model, "--model", ranks.device),
            settings=settings,
            output=arguments.output.expanduser().absolute(),
            provenance=provenance_of(arguments),
            ranks=ranks,
            exact_up_to=arguments.exact_up_to,
            teacher=load_teacher(arguments, ranks.device),
            progress=lambda what, done, total: logger.info("%s: %d of %d", what, done, total),
        )
        return mining.run()


def say_plan(arguments: argparse.Namespace, settings: MiningSettings, source: Source) -> None:
    """Log what would be done.

    Raises:
        DataError: if there are too few passages.
        RecipeError: if there are so many that a package is needed which is missing.
    """
    passages, queries = read_texts(source)
    check_index(len(passages), arguments.exact_up_to)
    logger.info("source: %s", source.describe)
    how = "exactly" if len(passages) <= arguments.exact_up_to else "by an index"
    logger.info("searches %d passages for %d queries, %s", len(passages), len(queries), how)
    logger.info("considers %d passages for each query", settings.considered)
    teacher = arguments.guide or arguments.cross_encoder
    if teacher is not None:
        logger.info("scores pairs by %s", teacher)


def index_said(way: dict[str, Any]) -> str:
    """What an index may have missed, if there was one."""
    if way["exact"]:
        return ""
    return (
        f"; the index finds {way['recall']:.1%} of the nearest {way['recall_depth']} passages of "
        f"{way['recall_queries']} queries"
    )


def said(record: dict[str, Any], output: Path) -> str:
    """What was done, for a person."""
    count = sum(record["negatives"])
    information = record["effective_contrastive_information"]["mean_nats"]
    return (
        f"{output}: {record['rows']} rows, {count} negatives of {record['queries']} queries among "
        f"{record['passages']} passages; {record['queries_with_fewer']} queries have fewer than "
        f"asked for, {record['queries_without']} have none; {record['above_positive']} negatives "
        "are nearer than a positive and so likely false; effective contrastive information "
        f"{information:.3f} nats{index_said(record['search'])}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code."""
    arguments = read_arguments(argv)
    set_up_logging()
    let_idle_threads_sleep()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    settings = settings_of(arguments)
    check_output(arguments.output)
    check_models(arguments)
    source = source_of(arguments)
    if arguments.dry_run:
        say_plan(arguments, settings, source)
        return 0
    record = mine(arguments, settings, source)
    if is_first_rank():
        from trainer.report.mining import write_mining_page

        write_mining_page(arguments.output.expanduser())
        print(said(record, arguments.output))
        if arguments.json:
            kept = {name: one for name, one in record.items() if name not in ("examples", "bins")}
            print(json.dumps(kept))
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
