"""Kill, damage and starve a real two-rank ZeRO-3 run by a seeded plan, and prove how it ends.

Run from the project's root: `python tools/chaos.py --kills 20 --seed 1`. A tiny model is made and
trained twice: once undisturbed, once with a SIGKILL in every launch but the last (of the launcher
and all it started, of one rank, of a data worker; some of them inside a save, some before the first
step, some after saves failed on a full disk). In between, bytes of the newest checkpoint are
flipped, files cut or removed, and half a line is added to the metrics. Each time the run goes on
with `--resume`. In the end its weights must be those of the undisturbed run to the bit, and
`metrics.jsonl` must have each step once.
"""

import argparse
import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from chaos.faults import (  # noqa: E402
    TOKEN,
    Event,
    harm,
    make_plan,
    mount_small_disk,
    strike,
    unmount,
)
from chaos.workspace import make_workspace  # noqa: E402

STEPS_PER_KILL = 4
MIN_STEPS = 24
DISK_BYTES = 48 << 20
LIMIT_SEC = 300
CLOCK = ("seconds", "tokens_per_sec")
"""Numbers of a step that no two runs share."""


def main(argv: Sequence[str]) -> int:
    """Run the plan; returns 0 if the end is as it must be, else 1."""
    arguments = _parser().parse_args(argv)
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="chaos-")).resolve()
    steps = max(MIN_STEPS, STEPS_PER_KILL * arguments.kills)
    recipe = make_workspace(folder, seed=arguments.seed, steps=steps)
    _finish(recipe, f"output_dir={folder}/peace")
    can_fill = mount_small_disk(folder / "run", DISK_BYTES)
    try:
        result = _torment(recipe, arguments, steps, can_fill=can_fill)
    finally:
        unmount(folder / "run")
    if arguments.folder is None:
        shutil.rmtree(folder)
    for key, value in result.items():
        print(f"{key:>16}: {value}")
    if arguments.json:
        print(json.dumps(result))
    good = result["bit_identical"] and not result["steps_repeated"] + result["steps_missing"]
    return 0 if good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Torment a run and prove how it ends.")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs, one a launch")
    parser.add_argument("--seed", type=int, default=0, help="of the plan, the model and the data")
    parser.add_argument("--folder", help="work here and keep it; default: a temporary folder")
    parser.add_argument("--json", action="store_true", help="print the result as a last line")
    return parser


def _torment(
    recipe: Path, arguments: argparse.Namespace, steps: int, *, can_fill: bool
) -> dict[str, Any]:
    """The run with all its kills, brought to its end."""
    run, peace = recipe.parent / "run", recipe.parent / "peace"
    rng, begun = random.Random(arguments.seed + 1), time.monotonic()
    plan = make_plan(arguments.seed, arguments.kills, steps, can_fill=can_fill)
    kills = [event for number, event in enumerate(plan, 1) if _one(number, event, recipe, rng)]
    _finish(recipe, "--resume")
    taken = Counter(line["step"] for line in _lines(run))
    return {
        "kills": len(kills),
        "kinds": dict(Counter(event.kill for event in kills)),
        "full_disk": "tried" if can_fill else "not tried: no right to mount a small disk",
        "bit_identical": _same_weights(run, peace) and _same_numbers(run, peace),
        "steps_repeated": sum(count > 1 for count in taken.values()),
        "steps_missing": len(set(range(steps)) - set(taken)),
        "seconds": round(time.monotonic() - begun, 1),
    }


def _one(number: int, event: Event, recipe: Path, rng: random.Random) -> bool:
    """A launch, its kill and the damage after it."""
    token = secrets.token_hex(8)
    with _launch(recipe, "--resume", token=token) as process:
        killed = strike(event, process, recipe.parent / "run", token)
    done = harm(event.damage, recipe.parent / "run", rng)
    what = f"{event.kill} after step {event.step}" if killed else "ended before its kill"
    newest = sorted((recipe.parent / "run" / "checkpoints").glob("step-*"), key=_step)[-1:]
    print(
        f"{number:3d}. {what}; newest: {newest[0].name if newest else 'none'}; {done}", flush=True
    )
    return killed


def _launch(recipe: Path, *arguments: str, token: str = "") -> subprocess.Popen[str]:
    """Start two ranks by DeepSpeed's launcher; their words go to a file beside the recipe."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    scripts = Path(sys.executable).parent
    command = [str(scripts / "deepspeed"), f"--master_port={port}", "--num_accelerators", "2"]
    with (recipe.parent / "log.txt").open("a") as log:
        return subprocess.Popen(
            [*command, "trainer/run.py", "--recipe", str(recipe), *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ
            | {
                "PATH": f"{scripts}:{os.environ['PATH']}",
                "CUDA_VISIBLE_DEVICES": "",
                "OMP_NUM_THREADS": "1",
                TOKEN: token,
            },
        )


def _finish(recipe: Path, *arguments: str) -> None:
    """A launch that must end well."""
    with _launch(recipe, *arguments) as process:
        code = process.wait(timeout=LIMIT_SEC)
    if code:
        tail = (recipe.parent / "log.txt").read_text(errors="replace")[-4000:]
        sys.exit(f"chaos: the run ended with exit code {code}; its last words:\n{tail}")


def _step(tag: Path) -> int:
    return int(tag.name.removeprefix("step-"))


def _lines(run: Path) -> list[dict[str, Any]]:
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _same_weights(run: Path, peace: Path) -> bool:
    """Whether exports agree to the bit, and the masters of the last checkpoints."""
    import torch

    from trainer.checkpoint.tensors import read_whole
    from trainer.checkpoint.zero_format import read_zero

    first, second = (read_zero(max((f / "checkpoints").glob("step-*"), key=_step)).tensors
                     for f in (run, peace))  # fmt: skip
    exports = [(f / "model" / "model.safetensors").read_bytes() for f in (run, peace)]
    return exports[0] == exports[1] and all(
        torch.equal(read_whole(first[name]), read_whole(one)) for name, one in second.items()
    )


def _same_numbers(run: Path, peace: Path) -> bool:
    """Whether the metrics of all steps agree, but for the clock's."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in _lines(run)] == [
        {k: v for k, v in line.items() if k not in CLOCK} for line in _lines(peace)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
