"""Measure what adapters save: peak memory of each rank, full fine-tuning against LoRA, one run.

    python tools/bench/lora_memory.py                               # 308M parameters: ten minutes
    python tools/bench/lora_memory.py --layers 4 --hidden 256       # a minute
    python tools/bench/lora_memory.py --json                        # the last line is one object

Both train the same decoder under ZeRO-3 with the same chunked contrastive steps, in processes of
their own. Memory is the highest from just before the model is loaded to the end, above what the
process held then, after a tiny model had made it load its libraries: on a CPU its own pages (those
mapped from the weights' files are the system's), on a GPU torch's allocator.

DeepSpeed keeps up to a billion gathered parameters alive, which says nothing at this size; here it
lets go of each at once, as it does of most of a model of billions.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.memory import Peak

RATIO_TARGET = 0.35
"""LoRA's peak over full fine-tuning's that the trainer promises at the default size."""
HEAD_SIZE = 64
RELEASE = {
    "stage3_max_live_parameters": 1_000_000,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "reduce_bucket_size": 5_000_000,
}
"""What is changed in zero3_fp32.json: thresholds made for larger models, in elements."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "2"}
"""Makes glibc return large blocks at once, so that resident pages are memory in use."""
CHECKOUT = Path(__file__).parents[2]


def make_model(arguments: argparse.Namespace, folder: Path) -> int:
    """Write a decoder with random weights; returns its parameters."""
    import torch
    from transformers import AutoModel, Qwen3Config

    heads = arguments.hidden // HEAD_SIZE
    torch.manual_seed(0)
    model = AutoModel.from_config(
        Qwen3Config(
            vocab_size=arguments.vocabulary,
            hidden_size=arguments.hidden,
            intermediate_size=3 * arguments.hidden,
            num_hidden_layers=arguments.layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            head_dim=HEAD_SIZE,
        )
    )
    model.save_pretrained(folder, max_shard_size="200MB")
    return int(model.num_parameters())


def make_recipe(arguments: argparse.Namespace) -> Any:
    """The recipe of one of the two runs."""
    from trainer.recipe.ir import IrRecipe
    from trainer.recipe.schema import (
        DataRecipe,
        EngineRecipe,
        LoraRecipe,
        ModelRecipe,
        Recipe,
        SourceRecipe,
        TrainRecipe,
    )

    lora = LoraRecipe(rank=arguments.rank) if arguments.measure == "lora" else None
    return Recipe(
        name="lora memory",
        output_dir="unused",
        model=ModelRecipe(path=arguments.model, gradient_checkpointing=True, lora=lora),
        data=DataRecipe(sources=(SourceRecipe(name="ids", task="ir", path="unused"),)),
        tasks={"ir": IrRecipe(global_batch_size=arguments.batch)},
        train=TrainRecipe(max_steps=arguments.steps),
        engine=EngineRecipe(
            gather=arguments.gather, max_tokens_per_chunk=4 * arguments.tokens, keep_graph_tokens=0
        ),
    )


def make_batch(arguments: argparse.Namespace, step: int) -> Any:
    """Queries with a positive and a hard negative each, all of the same length, random ids."""
    import numpy as np

    from trainer.data.batch import IrBatch, StepPlan, Texts

    rows = np.arange(arguments.batch)
    rng = np.random.default_rng(step)
    ids = rng.integers(1, arguments.vocabulary, size=(3 * len(rows), arguments.tokens))
    return IrBatch(
        plan=StepPlan(step=step, task="ir", source="ids", epoch=0, rows=rows),
        texts=Texts(
            token_ids=tuple(ids.astype(np.int32)), num_prompt_tokens=np.zeros(len(ids), np.int64)
        ),
        query=rows,
        passages=np.stack([rows + len(rows), rows + 2 * len(rows)], axis=1),
        masked=np.zeros((0, 2), np.int64),
    )


def measure(arguments: argparse.Namespace) -> None:
    """Body of a rank: warm up, then load and take steps, and write the peak."""
    from trainer.distributed.group import join, leave

    ranks = join(timeout_minutes=10)
    train(argparse.Namespace(**{**vars(arguments), "model": arguments.warm, "steps": 1}), ranks)
    gc.collect()
    with Peak() as memory:
        trained = train(arguments, ranks)
    result = {"peak": memory.above, "trained": trained}
    Path(arguments.out, f"{ranks.rank}.json").write_text(json.dumps(result), encoding="utf-8")
    leave()


def train(arguments: argparse.Namespace, ranks: Any) -> int:
    """Load a model and take steps; gives the number of trained parameters."""
    from trainer.engine.build import build
    from trainer.engine.step import Stepper
    from trainer.recipe.resolve import resolve

    recipe = make_recipe(arguments)
    config = dict(resolve(recipe, world_size=ranks.world_size).deepspeed)
    config["zero_optimization"] = {**config["zero_optimization"], **RELEASE}
    built = build(
        recipe, model_path=arguments.model, config=config, gather=arguments.gather, ranks=ranks
    )
    stepper = Stepper(recipe, built, ranks, num_steps=arguments.steps, warmup_steps=0)
    for step in range(arguments.steps):
        stepper.run(make_batch(arguments, step))
    trained = sum(p.ds_numel for p in built.engine.module.parameters() if p.requires_grad)
    built.engine.destroy()
    return int(trained)


def run(arguments: argparse.Namespace, kind: str, folder: Path) -> list[dict[str, int]]:
    """Measure one way in processes of its own; what each rank found."""
    out = folder / kind
    out.mkdir()
    places = {"model": folder / "model", "warm": folder / "warm", "out": out}
    options = {**vars(arguments), "measure": kind, **places}
    del options["json"]
    flags = [f"--{name}={value}" for name, value in options.items() if value is not None]
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={arguments.ranks}",
    ]
    finished = subprocess.run(
        [sys.executable, *launcher, __file__, *flags],
        cwd=CHECKOUT,
        env={**os.environ, **ALLOCATOR, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise SystemExit(finished.stdout + finished.stderr)
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.iterdir())]


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the model and measure both ways; prints a table on the way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = {"hidden": 2 * HEAD_SIZE, "layers": 2}
        make_model(argparse.Namespace(**{**vars(arguments), **tiny}), folder / "warm")
        num_parameters = make_model(arguments, folder / "model")
        print(f"decoder of {num_parameters / 1e6:,.0f}M parameters in float32, ZeRO-3 on "
              f"{arguments.ranks} ranks, gather: {arguments.gather}")  # fmt: skip
        print(f"{'':<8}{'peak of a rank, MiB':>20}{'trained':>16}")
        peaks = {}
        for kind in ("full", "lora"):
            ranks = run(arguments, kind, folder)
            peaks[kind] = max(rank["peak"] for rank in ranks)
            print(f"{kind:<8}{peaks[kind] / 2**20:>20,.0f}{ranks[0]['trained']:>16,}", flush=True)
    return {
        "num_parameters": num_parameters,
        "full_peak_bytes": peaks["full"],
        "lora_peak_bytes": peaks["lora"],
        "memory_ratio": peaks["lora"] / peaks["full"],
    }


def main() -> int:
    """Read the command line, measure, print; 1 if the promise is broken at the default size."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=1024, help="multiple of 128")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rank", type=int, default=16, help="of the adapters, on all linear maps")
    parser.add_argument("--ranks", type=int, default=2, help="processes")
    parser.add_argument("--batch", type=int, default=4, help="queries of a step over all ranks")
    parser.add_argument("--tokens", type=int, default=32, help="of each text")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--gather", choices=("layer", "step", "chunk"), default="layer")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    for internal in ("--measure", "--model", "--warm", "--out"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
        return 0
    result = compare(arguments)
    ratio = result["memory_ratio"]
    print(f"LoRA needs {ratio:.3f} of full fine-tuning's peak; promised: {RATIO_TARGET}")
    if arguments.json:
        print(json.dumps(result))
    return int(ratio > RATIO_TARGET)


if __name__ == "__main__":
    sys.exit(main())
