"""Merge checkpoints of one model by how far each moved, straight from ZeRO shards, on a CPU.

It must not compute or open anything itself: it reads arguments, shows progress, and calls
`trainer.merge`.
"""

import argparse
import gc
import json
import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer.cli import size_in_bytes
from trainer.errors import TrainerError
from trainer.recipe.model_path import PACKAGE, is_gguf
from trainer.unpack.cached import place_of_base

DESCRIPTION = """\
Merge checkpoints of one base model into a folder that transformers and sentence-transformers load.

Inputs, mixed freely: Hugging Face folders (safetensors), DeepSpeed ZeRO-1/2/3 checkpoints (a tag
folder, a `checkpoints` folder, a whole run folder) of any world size, full or LoRA, and PEFT
adapters. Tensors stream through a few megabytes; sums run in float64 and are rounded once.

With theta0 the base, theta_k a checkpoint and D_k = theta_k - theta0, per tensor:
  delta            theta0 + lambda * sum_k w_k D_k,  w_k = ||D_k||^alpha / sum_j ||D_j||^alpha
  uniform          theta0 + lambda * sum_k D_k / K
  task_arithmetic  theta0 + lambda * sum_k weight_k D_k
  ties             theta0 + lambda * mean of the trimmed D_k that agree with the elected sign
of whole tensors, u_k = theta_k / ||theta_k||, as mergekit has them:
  slerp            from theta_1 to theta_2 along the great circle, up to t
  multi_slerp      direction of sum_k weight_k u_k, norm sum_k weight_k ||theta_k||
  karcher          direction of the least squared angles to all u_k, norm the mean of ||theta_k||
The weights of `delta` follow the idea of CoDiEmb's abstract (arXiv 2508.11442), which gives no
formula; this one is ours. A tensor that no checkpoint moved keeps the base's bits.
"""
EPILOG = """\
examples:
  python tools/delta_merge.py --base B --checkpoints run/checkpoints/step-800 run --output O
  python tools/delta_merge.py --base B --checkpoints A C --output O --method ties --density 0.3
  python tools/delta_merge.py --base B --checkpoints A C --output O --granularity row --alpha 2
  python tools/delta_merge.py --base B --checkpoints A C --output O --search DEV.jsonl BEIR_FOLDER
  python tools/delta_merge.py --base B --checkpoints A C --output O --dry-run

exit codes: 0 done, 1 a fault, 2 a mistake in arguments or inputs (nothing is left), 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_inputs(parser)
    _add_method(parser)
    _add_search(parser)
    _add_limits(parser)
    return parser


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--base",
        required=True,
        help="pre-trained model, theta0: a folder, or package:NAME/FOLDER of a Python package",
    )
    add(
        "--checkpoints",
        type=Path,
        nargs="+",
        required=True,
        metavar="CHECKPOINT",
        help="theta_1 .. theta_K, e.g. --checkpoints run_a run_b/checkpoints/step-800",
    )
    add("--output", type=Path, required=True,
        help="folder to make; it appears complete and checked, or not at all")  # fmt: skip
    add(
        "--as",
        dest="result",
        choices=("model", "adapter"),
        default="model",
        help="model: whole weights, adapters added in; adapter: all checkpoints are LoRA, and the "
        "result is one PEFT adapter of their summed rank, exactly (default: model)",
    )


def _add_method(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    methods = ("delta", "uniform", "task_arithmetic", "ties", "slerp", "multi_slerp", "karcher")
    add("--method", choices=methods, default="delta", help="formula, see above (default: delta)")
    add(
        "--granularity",
        choices=("tensor", "row", "element"),
        default="tensor",
        help="what shares a weight under delta: w_k from ||D_k|| of the tensor, of each row of its "
        "first dimension, or |D_k| of each scalar; methods that add changes give the same at any "
        "(default: tensor)",
    )
    add(
        "--alpha",
        type=float,
        default=1.0,
        help="exponent in w_k ~ ||D_k||^alpha; 0: uniform; below 0: who moved least wins, and "
        "who did not move at all takes everything (default: 1)",
    )
    add(
        "--lambda",
        dest="lambda_",
        type=float,
        default=1.0,
        help="factor of the summed change: theta0 + lambda * (...); 0.5 goes half the way "
        "(default: 1)",
    )
    add(
        "--by-depth",
        type=float,
        nargs="+",
        metavar="FACTOR",
        help="factors of lambda, spread evenly from the first layer to the last and linear in "
        "between: 1.5 0.5 goes further in early layers and less far in late ones; embeddings are "
        "with the first layer, all else with the last (default: 1)",
    )
    add(
        "--weights",
        type=float,
        nargs="+",
        help="weight_k of task_arithmetic, one per checkpoint, e.g. --weights 0.7 0.3; of "
        "multi_slerp, where they are divided by their sum (default: 1 each)",
    )
    add("--t", type=float, help="slerp: 0 is the first checkpoint, 1 the second (default: 0.5)")
    add(
        "--density",
        type=float,
        default=0.2,
        help="ties: keep the largest |D_k| of each tensor, this share of its scalars, "
        "at least one (default: 0.2)",
    )
    add(
        "--dtype",
        choices=("base", "bfloat16", "float32"),
        default="base",
        help="of the result's floating-point tensors (default: that of each in the base)",
    )
    add("--allow-nan", action="store_true",
        help="go on where a checkpoint holds NaN or infinity; such scalars stay so")  # fmt: skip


def _add_search(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--search",
        nargs="+",
        metavar="PATH[:KIND]",
        help="choose method, weights and lambda by these held-out sets (see tools/evaluate.py); "
        "each candidate is merged and loaded whole",
    )
    add("--keep-base", action="store_true",
        help="--search: choose among merges that score below the base on no set")  # fmt: skip
    add("--split", help="of the sets of --search (default: test of classification, else dev)")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--max-shard-size",
        type=size_in_bytes,
        default="5GB",
        help="largest file of weights; a tensor is never split (default: 5GB)",
    )
    add(
        "--memory-budget",
        type=size_in_bytes,
        default="512MiB",
        help="largest anonymous memory of the process; does not grow with the model "
        "(default: 512MiB)",
    )
    add(
        "--workers",
        type=int,
        default=3,
        help="threads; one computes while another waits for the disk (default: 3)",
    )
    add("--dry-run", action="store_true",
        help="check everything, print what would be done, and stop")  # fmt: skip
    add(
        "--resume",
        action="store_true",
        help="continue an interrupted merge of the same inputs, settings and output",
    )
    add(
        "--no-sync",
        action="store_false",
        dest="durable",
        help="leave the result in the page cache for the system to bring to disk: sooner done, but "
        "a power cut in the next seconds may corrupt it",
    )
    add(
        "--hash",
        action="store_true",
        dest="hash_files",
        help="read all inputs and outputs whole: put their sha256 into merge.json, and compare "
        "outputs with what was written (else both ends of each tensor are)",
    )
    add("--json", action="store_true", help="print one JSON object as the last line")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.result == "adapter" and (arguments.dry_run or arguments.resume):
        parser.error("--dry-run and --resume are for --as model; an adapter is merged in seconds")
    _check_search(parser, arguments)
    try:
        result = _asked(arguments)
    except TrainerError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; --resume continues", file=sys.stderr)
        return 130
    if arguments.json:
        print(json.dumps(result))
    return 0


def _check_search(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse beside `--search` what it chooses, and without it what is its own."""
    if arguments.search is None:
        for name in ("split", "keep_base"):
            if getattr(arguments, name) != parser.get_default(name):
                parser.error(f"--{name.replace('_', '-')} is for the sets of --search")
        return
    if arguments.result == "adapter":
        parser.error("--search merges whole models; leave --as adapter out")
    for name in ("method", "granularity", "lambda_", "by_depth", "weights", "t"):
        if getattr(arguments, name) != parser.get_default(name):
            option = name.rstrip("_").replace("_", "-")
            parser.error(f"--{option} is what --search chooses; leave one of them out")


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what the arguments say; gives what `--json` prints."""
    if arguments.dry_run:
        return _dry_run(arguments)
    return _merge(arguments) if arguments.search is None else _search(arguments)


def _search(arguments: argparse.Namespace) -> dict[str, Any]:
    """Choose a merge by held-out sets."""
    from tools.evaluate import checked_sets, evaluate
    from trainer.data.held_out_source import split_of
    from trainer.merge.search import MergeSearch

    sets = checked_sets(arguments.search, arguments.split)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for library in ("transformers", "sentence_transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    search = MergeSearch(
        base=_base_folder(arguments.base),
        checkpoints=arguments.checkpoints,
        output=arguments.output,
        settings=_settings(arguments),
        kinds={one.name: one.task for one in sets},
        score=lambda folder: evaluate(str(folder), sets),
        sets=[f"{one.hub or Path(one.path or '').absolute()} {split_of(one)}" for one in sets],
        keep_base=arguments.keep_base,
        resume=arguments.resume,
        finish=partial(_write_pages, arguments.output),
    )
    report = search.run()
    best, tried = report.best, report.tried
    print(f"{arguments.output}: {best.candidate.name}, {best.value:.4f}, of {len(tried)}")
    return {"output": str(arguments.output), **search.record(tried, best)}


def _settings(arguments: argparse.Namespace) -> Any:
    from trainer.merge import MergeSettings

    return MergeSettings(
        method=arguments.method,
        granularity=arguments.granularity,
        alpha=arguments.alpha,
        lambda_=arguments.lambda_,
        by_depth=None if arguments.by_depth is None else tuple(arguments.by_depth),
        weights=None if arguments.weights is None else tuple(arguments.weights),
        density=arguments.density,
        t=arguments.t,
        dtype=arguments.dtype,
        max_shard_bytes=arguments.max_shard_size,
        memory_budget_bytes=arguments.memory_budget,
        num_workers=arguments.workers,
        allow_nan=arguments.allow_nan,
        durable=arguments.durable,
        hash_files=arguments.hash_files,
    )


def _base_folder(base: str) -> Path:
    """A folder as it is; one inside a package, or a GGUF file, is found as a recipe's base is."""
    found = base.startswith(PACKAGE) or is_gguf(base)
    return Path(place_of_base(base, "float32") if found else base)


def _merge(arguments: argparse.Namespace) -> dict[str, Any]:
    from trainer.merge import merge_adapters, merge_checkpoints

    base, settings = _base_folder(arguments.base), _settings(arguments)
    if arguments.result == "adapter":
        report = merge_adapters(base, arguments.checkpoints, arguments.output, settings)
        _write_pages(arguments.output, arguments.output)
    else:
        with _Bar() as bar:
            report = merge_checkpoints(
                base,
                arguments.checkpoints,
                arguments.output,
                settings,
                progress=bar.update,
                resume=arguments.resume,
                finish=partial(_write_pages, arguments.output),
            )
    speed = (report.input_bytes + report.output_bytes) / report.seconds / 1e9
    print(
        f"{arguments.output}: {len(report.outcomes)} tensors, {report.output_bytes / 1e6:,.1f} MB "
        f"in {report.seconds:.1f} s ({speed:.2f} GB/s read and written)"
    )
    return {
        "output": str(report.output),
        "tensors": len(report.outcomes),
        "input_bytes": report.input_bytes,
        "output_bytes": report.output_bytes,
        "seconds": report.seconds,
    }


def _write_pages(output: Path, folder: Path) -> None:
    """Describe a result that gets the name `output`; a fault costs the page and not the merge."""
    from trainer.report.card import write_merge_card
    from trainer.report.merge_search import RECORD, write_search_page

    try:
        write_merge_card(folder, place=output.as_posix())
        if (folder / RECORD).is_file():
            write_search_page(folder)
    except (TrainerError, OSError) as error:
        print(f"a page is missing: {error}", file=sys.stderr)


def _dry_run(arguments: argparse.Namespace) -> dict[str, Any]:
    from trainer.merge.driver import describe

    result = describe(
        _base_folder(arguments.base), arguments.checkpoints, arguments.output, _settings(arguments)
    )
    for name, value in result.items():
        print(f"{name:>18}: {value:,}" if isinstance(value, int) else f"{name:>18}: {value}")
    return result


class _Bar(AbstractContextManager["_Bar"]):
    """Progress on stderr with bytes per second and time left, where stderr is a terminal.

    The total is learned with the first call, because inputs are opened inside the merge.
    """

    def __enter__(self) -> "_Bar":
        from tqdm import tqdm

        self.bar = tqdm(unit="B", unit_scale=True, disable=None, desc="merge", smoothing=0.1)
        return self

    def update(self, done_bytes: int, total_bytes: int) -> None:
        """Take a step."""
        self.bar.total = total_bytes
        self.bar.update(done_bytes)

    def __exit__(self, *_: object) -> None:
        self.bar.close()


if __name__ == "__main__":
    # a short life: what is imported need not be searched for garbage, nor taken apart at the end
    gc.disable()
    code = main()
    gc.freeze()
    sys.exit(code)
