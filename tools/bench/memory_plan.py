"""Compare the memory plan with measured peaks: two ranks on the CPU, one row for each way to train.

    python tools/bench/memory_plan.py                    # everything: about half an hour
    python tools/bench/memory_plan.py --sizes small --stages 3 --kinds lora
    python tools/bench/memory_plan.py --rows rows.jsonl  # in pieces: what is there is not repeated
    python tools/bench/memory_plan.py --json             # the last line is one object

Each row is a run in processes of its own: load a decoder with random weights, take a step to warm
up, then one measured step for each chunk budget, and one that keeps graphs. Measured is the
anonymous memory of the first rank at its highest, above what it held before the model was loaded,
after a tiny model had made it load its libraries. Predicted is what `--dry-run` prints for the same
recipe.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.memory import Peak
from tools.bench.lora_memory import CHECKOUT, HEAD_SIZE, make_batch

TOLERANCE = 0.15
"""Share of the measured peak by which the plan may be off."""
SIZES = {"tiny": (128, 2), "small": (512, 12), "large": (1024, 12)}
"""Hidden size and layers of decoders: 54 and 184 million parameters; `tiny` warms up."""
VOCABULARY = 32_000
RANKS = 2
TOKENS = 32
"""Of each text."""
QUERIES = 12
"""Of a step over all ranks, with one passage each: 512 tokens a rank."""
BUDGETS = (96, 192, 576)
"""Tokens of a chunk: four, two and one chunk."""
ROOM = 1.3
"""Of the least that the smallest chunks need: the memory that kept graphs may fill."""
AUTO = "auto"
"""Stands for the smallest chunks with as many graphs as fit that room."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Makes glibc return all but small blocks at once, so that resident pages are memory in use."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train: a run of its own."""

    size: str
    """Key of `SIZES`."""
    kind: str
    """`full` or `lora`."""
    stage: int
    """ZeRO stage."""
    gather: Any
    """`step`, `layer` or `chunk`."""
    dtype: Any
    """`float32` or `bfloat16`."""

    @property
    def name(self) -> str:
        """In a row of the table."""
        return f"{self.size:<6} {self.kind:<5} ZeRO-{self.stage} {self.gather:<6} {self.dtype}"


def make_recipe(way: Way, model: Path, budget: int) -> Any:
    """The recipe of a row."""
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

    suffix = "bf16" if way.dtype == "bfloat16" else "fp32"
    return Recipe(
        name="memory plan",
        output_dir="unused",
        model=ModelRecipe(
            path=str(model),
            dtype=way.dtype,
            lora=LoraRecipe() if way.kind == "lora" else None,
        ),
        data=DataRecipe(
            sources=(SourceRecipe(name="ids", task="ir", path="unused"),),
            query_max_tokens=TOKENS,
            passage_max_tokens=TOKENS,
        ),
        tasks={"ir": IrRecipe(global_batch_size=QUERIES)},
        train=TrainRecipe(max_steps=2 + len(BUDGETS)),
        engine=EngineRecipe(
            deepspeed=f"zero{way.stage}_{suffix}.json",
            gather=way.gather,
            max_tokens_per_chunk=budget,
        ),
    )


def predict(way: Way, model: Path) -> tuple[dict[str, int], int]:
    """Peak bytes by the memory plan for each budget, and the tokens that are kept in `ROOM`."""
    from trainer.memory.estimate import MemoryPlan, plan_memory, with_budget
    from trainer.memory.shapes import measure_model
    from trainer.model.backbone import load_config
    from trainer.recipe.resolve import resolve

    recipe = make_recipe(way, model, BUDGETS[0])
    shape = measure_model(load_config(recipe.model, str(model)), recipe)
    config = resolve(recipe, world_size=RANKS).deepspeed

    def planned(budget: int, usable_bytes: int | None = None) -> MemoryPlan:
        return plan_memory(
            with_budget(recipe, budget),
            shape,
            deepspeed=config,
            world_size=RANKS,
            usable_bytes=usable_bytes,
            on_gpu=False,
        )

    totals = {str(budget): planned(budget).total(way.gather) for budget in BUDGETS}
    filled = planned(BUDGETS[0], round(ROOM * totals[str(BUDGETS[0])]))
    return totals | {AUTO: filled.total(way.gather)}, filled.kept[way.gather]


def make_decoder(size: str, folder: Path) -> None:
    """Write a decoder with random weights, in half precision as they are published.

    Weights in the dtype of the run would be mapped from their file, which is the system's memory.
    """
    from transformers import AutoModel, Qwen3Config

    hidden, layers = SIZES[size]
    heads = hidden // HEAD_SIZE
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        head_dim=HEAD_SIZE,
    )
    AutoModel.from_config(config).half().save_pretrained(folder)


def measure(way: Way, kept: int, folder: Path, out: Path) -> None:
    """Body of a rank: warm up, then load and take a step for each budget; write the peaks."""
    from trainer.distributed.group import join, leave

    ranks = join(timeout_minutes=10)
    for _ in train(way, kept, folder / "tiny", ranks):
        pass
    gc.collect()
    peaks: dict[str, int] = {}
    with Peak() as memory:
        for name in train(way, kept, folder / way.size, ranks):
            peaks[name] = memory.above
            memory.bytes = 0
    if ranks.is_first:
        out.write_text(json.dumps(peaks), encoding="utf-8")
    leave()


def train(way: Way, kept: int, model: Path, ranks: Any) -> Iterator[str]:
    """Load and step; says what was just done. `kept` are the tokens that the last step keeps."""
    from trainer.engine.build import build
    from trainer.engine.step import Stepper
    from trainer.recipe.resolve import resolve

    recipe = make_recipe(way, model, BUDGETS[0])
    config = dict(resolve(recipe, world_size=ranks.world_size).deepspeed)
    built = build(
        recipe,
        model_path=str(model),
        config=config,
        gather=way.gather,
        ranks=ranks,
        keep_graph_tokens=kept,
    )
    yield "load"
    plain = [("first step", BUDGETS[0]), *((str(budget), budget) for budget in BUDGETS)]
    # what costs no memory
    steps = [(name, budget, 0 if way.gather == "layer" else budget) for name, budget in plain]
    steps.append((AUTO, BUDGETS[0], kept))
    for step, (name, budget, keep) in enumerate(steps):
        recipe = make_recipe(way, model, budget)
        built.grad_cache.keep_graph_tokens = keep
        stepper = Stepper(recipe, built, ranks, num_steps=9, warmup_steps=0)
        batch = argparse.Namespace(batch=QUERIES, tokens=TOKENS, vocabulary=VOCABULARY)
        stepper.run(make_batch(batch, step))
        yield name
    built.engine.destroy()


def run(way: Way, kept: int, folder: Path) -> dict[str, int]:
    """Measure one way in processes of its own; peaks in bytes by budget."""
    out = folder / "peaks.json"
    flags = [f"--measure={json.dumps(asdict(way))}", f"--folder={folder}", f"--out={out}"]
    flags.append(f"--kept={kept}")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    finished = subprocess.run(
        [sys.executable, *launcher, __file__, *flags],
        cwd=CHECKOUT,
        env={**os.environ, **ALLOCATOR, "PYTHONPATH": str(CHECKOUT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise SystemExit(finished.stdout + finished.stderr)
    peaks: dict[str, int] = json.loads(out.read_text(encoding="utf-8"))
    return peaks


def ways(arguments: argparse.Namespace) -> list[Way]:
    """Every combination that was asked for."""
    return [
        Way(size=size, kind=kind, stage=stage, gather=gather, dtype=dtype)
        for dtype in arguments.dtypes
        for size in arguments.sizes
        for kind in arguments.kinds
        for stage in arguments.stages
        for gather in arguments.gathers
    ]


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Predict each way, and measure those that are not in the file of rows; prints a table."""
    chunks = ", ".join(map(str, BUDGETS))
    print(f"peak of a rank of {RANKS}, MiB; chunks of {chunks} tokens, and of {BUDGETS[0]} with")
    print(f"graphs kept in {ROOM} times the least memory")
    print(f"{'':<38}{'measured':>24}{'predicted':>28}{'off by':>32}{'seconds':>9}")
    known = read_rows(arguments.rows)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in sorted({"tiny", *arguments.sizes}):
            make_decoder(size, folder / size)
        for way in ways(arguments):
            started = time.perf_counter()
            predicted, kept = predict(way, folder / way.size)
            measured = known.get((way.name, kept)) or run(way, kept, folder)
            found = {name: (measured[name], plan) for name, plan in predicted.items()}
            peaks, plans = zip(*found.values(), strict=True)
            errors = "".join(f"{plan / peak - 1:>+8.1%}" for peak, plan in found.values())
            seconds = f"{time.perf_counter() - started:>9.0f}"
            print(f"{way.name:<38}{listed(peaks)}{listed(plans)}{errors}{seconds}", flush=True)
            new = [
                {**asdict(way), "budget": name, "kept": kept, "measured": peak, "predicted": plan}
                for name, (peak, plan) in found.items()
            ]
            if arguments.rows is not None and (way.name, kept) not in known:
                with arguments.rows.open("a", encoding="utf-8") as file:
                    file.writelines(f"{json.dumps(row)}\n" for row in new)
            rows += new
    return rows


def read_rows(file: Path | None) -> dict[tuple[str, int], dict[str, int]]:
    """Peaks that were measured before, by the way and what its last step keeps."""
    if file is None or not file.exists():
        return {}
    found: dict[tuple[str, int], dict[str, int]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        way = Way(**{field.name: row[field.name] for field in fields(Way)})
        found.setdefault((way.name, row["kept"]), {})[row["budget"]] = row["measured"]
    return found


def listed(sizes: Sequence[int]) -> str:
    """Bytes as columns of MiB; one that is missing is blank."""
    cells = "".join(f"{size / 2**20:>7,.0f}" for size in sizes)
    return f"{cells:<{7 * (len(BUDGETS) + 1)}}"


def main() -> int:
    """Read the command line, compare, print; 1 if the plan is off by more than it promises."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["small", "large"], choices=list(SIZES))
    parser.add_argument("--kinds", nargs="+", default=["full", "lora"], choices=("full", "lora"))
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 3], choices=(1, 2, 3))
    parser.add_argument("--gathers", nargs="+", default=["step", "layer"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument(
        "--rows", type=Path, help="JSONL of rows measured before, to which new ones are added"
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    for internal in ("--measure", "--kept", "--folder", "--out"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        way = Way(**json.loads(arguments.measure))
        measure(way, int(arguments.kept), Path(arguments.folder), Path(arguments.out))
        return 0
    rows = compare(arguments)
    worst = max(abs(row["predicted"] / row["measured"] - 1) for row in rows)
    print(f"{len(rows)} rows; off by {worst:.1%} at most; promised: {TOLERANCE:.0%}")
    if arguments.json:
        print(json.dumps({"rows": rows, "max_relative_error": worst}))
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
