"""Measure merging: against mergekit, and against only reading and writing the same bytes.

Models are made of random bfloat16 numbers in the shape of Qwen2.5; two checkpoints lie near their
base. Memory is the anonymous memory of the whole process tree, sampled while it runs.

  python tools/bench/merge.py --workdir /scratch --mergekit /venv/bin/mergekit-yaml
  python tools/bench/merge.py --workdir /scratch --sizes 0.5B 1.5B 7B --parts io

Disk needed: 13 GB for 1.5B, 26 GB more with `zero`, 46 GB for 7B, whose second checkpoint is a
link to the first.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.safetensors_file import encode_header

ROOT = Path(__file__).parents[2]
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 256, "inner": 768, "layers": 4, "kv": 64, "vocab": 20_000},
    "0.5B": {"hidden": 896, "inner": 4864, "layers": 24, "kv": 128, "vocab": 151_936},
    "1.5B": {"hidden": 1536, "inner": 8960, "layers": 28, "kv": 256, "vocab": 151_936},
    "7B": {"hidden": 3584, "inner": 18_944, "layers": 28, "kv": 512, "vocab": 152_064},
}
"""Sizes of Qwen2.5; the 7B shape has an output head of its own, as there."""
SHARD_BYTES = 4_000_000_000
CHUNK_BYTES = 8 << 20
NUM_RANKS = 4
NOISE = 1 << 24


@dataclass(frozen=True)
class Run:
    """What a command took."""

    seconds: float
    """Wall-clock time."""
    peak_bytes: int
    """Largest anonymous memory of the process tree."""


def tensor_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Qwen2.5 of this size, as its causal language model is saved."""
    s = SHAPES[size]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (s["vocab"], s["hidden"])}
    for i in range(s["layers"]):
        for name, shape in _layer_shapes(s).items():
            shapes[f"model.layers.{i}.{name}"] = shape
    shapes["model.norm.weight"] = (s["hidden"],)
    if size == "7B":
        shapes["lm_head.weight"] = (s["vocab"], s["hidden"])
    return shapes


def _layer_shapes(s: dict[str, int]) -> dict[str, tuple[int, ...]]:
    return {
        "input_layernorm.weight": (s["hidden"],),
        "mlp.down_proj.weight": (s["hidden"], s["inner"]),
        "mlp.gate_proj.weight": (s["inner"], s["hidden"]),
        "mlp.up_proj.weight": (s["inner"], s["hidden"]),
        "post_attention_layernorm.weight": (s["hidden"],),
        "self_attn.k_proj.bias": (s["kv"],),
        "self_attn.k_proj.weight": (s["kv"], s["hidden"]),
        "self_attn.o_proj.weight": (s["hidden"], s["hidden"]),
        "self_attn.q_proj.bias": (s["hidden"],),
        "self_attn.q_proj.weight": (s["hidden"], s["hidden"]),
        "self_attn.v_proj.bias": (s["kv"],),
        "self_attn.v_proj.weight": (s["kv"], s["hidden"]),
    }


def make_model(folder: Path, size: str, seed: int) -> None:
    """Write a model: the base for seed 0, else the base with small changes."""
    folder.mkdir(parents=True)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    used = 0
    for name, shape in tensor_shapes(size).items():
        num_bytes = 2 * torch.Size(shape).numel()
        if shards[-1] and used + num_bytes > SHARD_BYTES:
            shards.append([])
            used = 0
        shards[-1].append((name, shape))
        used += num_bytes
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys((name for name, _ in shard), file)
        _write_shard(folder / file, shard, seed)
    index_file = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    (folder / "config.json").write_text(json.dumps(config(size)))


def config(size: str) -> dict[str, Any]:
    """Content of config.json."""
    s = SHAPES[size]
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": s["hidden"],
        "intermediate_size": s["inner"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["hidden"] // 64 if s["hidden"] < 1536 else s["hidden"] // 128,
        "num_key_value_heads": s["kv"] // (64 if s["hidden"] < 1536 else 128),
        "vocab_size": s["vocab"],
        "tie_word_embeddings": size != "7B",
        "torch_dtype": "bfloat16",
    }


def _write_shard(path: Path, shard: Sequence[tuple[str, tuple[int, ...]]], seed: int) -> None:
    with path.open("wb") as file:
        file.write(encode_header([(name, torch.bfloat16, shape) for name, shape in shard]))
        for name, shape in shard:
            for block in numbers(name, torch.Size(shape).numel(), seed):
                file.write(block.bfloat16().view(torch.uint8).numpy().data)


def numbers(name: str, count: int, seed: int) -> Iterator[Tensor]:
    """A tensor's values in blocks, float32; seed 0 is the base that others lie near."""
    start = sum(name.encode()) * 7919
    while count > 0:
        block = _noise(0).roll(start)[: min(count, NOISE)] * 0.02
        if seed:
            block = block + _noise(seed).roll(start)[: len(block)] * 0.001
        yield block
        count -= len(block)
        start += 104_729


_NOISE: dict[int, Tensor] = {}


def _noise(seed: int) -> Tensor:
    if seed not in _NOISE:
        _NOISE[seed] = torch.randn(NOISE, generator=torch.Generator().manual_seed(seed))
    return _NOISE[seed]


def make_zero3(folder: Path, size: str, seed: int) -> None:
    """Write the float32 masters of a checkpoint as ZeRO-3 shards of four ranks."""
    tag = folder / "step-1"
    tag.mkdir(parents=True)
    (folder / "latest").write_text("step-1")
    shapes = {f"backbone.{name.removeprefix('model.')}": torch.Size(shape) for name, shape in
              tensor_shapes(size).items() if name != "lm_head.weight"}  # fmt: skip
    groups = [dict(list(shapes.items())[i::3]) for i in range(3)]
    for rank in range(NUM_RANKS):
        flats = [_rank_slice(group, rank, seed) for group in groups]
        state = {"zero_stage": 3, "partition_count": NUM_RANKS, "fp32_flat_groups": flats}
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save({"optimizer_state_dict": state}, tag / f"bf16_{name}_optim_states.pt")
        model = {"module": {}, "buffer_names": [], "param_shapes": groups, "shared_params": {},
                 "frozen_param_shapes": {}, "frozen_param_fragments": {}, "ds_version": "0.19.8",
                 "dp_world_size": NUM_RANKS, "global_steps": 1}  # fmt: skip
        torch.save(model, tag / f"{name}_model_states.pt")


def _rank_slice(group: dict[str, torch.Size], rank: int, seed: int) -> Tensor:
    parts = []
    for name, shape in group.items():
        width = -(-shape.numel() // NUM_RANKS)
        parts.append(torch.cat(list(numbers(f"{name}{rank}", width, seed))))
    return torch.cat(parts)


def measure(command: Sequence[str], log: Path) -> Run:
    """Run a command to its end; its output goes to `log`.

    Raises:
        SystemExit: if it fails.
    """
    begun = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _tree_bytes(process.pid))
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{log.read_text()[-3000:]}")
    return Run(time.perf_counter() - begun, peak)


def _tree_bytes(pid: int) -> int:
    """Anonymous memory of a process and its children, bytes."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total = int(line.split()[1]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it ended meanwhile
    return total + sum(_tree_bytes(int(child)) for child in children)


def merge_command(folder: Path, checkpoints: Sequence[str], output: Path) -> list[str]:
    """Our command with its defaults."""
    script = str(ROOT / "tools" / "delta_merge.py")
    return [sys.executable, script, "--base", str(folder / "base"), "--checkpoints",
            *(str(folder / name) for name in checkpoints), "--output", str(output)]  # fmt: skip


def ours(folder: Path, checkpoints: Sequence[str] = ("a", "b")) -> Run:
    """Merge, measure, and remove the result."""
    run = measure(merge_command(folder, checkpoints, folder / "out"), folder / "ours.log")
    shutil.rmtree(folder / "out")
    return run


def mergekit(program: Path, models: Sequence[Path], folder: Path) -> Run:
    """Linear merge of models by mergekit, which reads no base."""
    listed = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    recipe = {"models": listed, "merge_method": "linear", "dtype": "bfloat16"}
    (folder / "mergekit.yaml").write_text(json.dumps(recipe))
    command = [str(program), str(folder / "mergekit.yaml"), str(folder / "theirs"),
               "--no-copy-tokenizer", "--quiet"]  # fmt: skip
    run = measure(command, folder / "mergekit.log")
    shutil.rmtree(folder / "theirs")
    return run


def versus_mergekit(folder: Path, program: Path, repeats: int) -> dict[str, Any]:
    """Both from safetensors in the page cache, in turns; best of each."""
    mine, theirs = [], []
    for _ in range(repeats):
        theirs.append(mergekit(program, [folder / "a", folder / "b"], folder))
        mine.append(ours(folder))
    mine_sec, their_sec = min(r.seconds for r in mine), min(r.seconds for r in theirs)
    mine_peak, their_peak = max(r.peak_bytes for r in mine), max(r.peak_bytes for r in theirs)
    return {
        "ours_sec": mine_sec,
        "mergekit_sec": their_sec,
        "ours_all_sec": [r.seconds for r in mine],
        "mergekit_all_sec": [r.seconds for r in theirs],
        "mergekit_peak_bytes": their_peak,
        "peak_anon_bytes": mine_peak,
        "speedup": their_sec / mine_sec,
        "anon_memory_ratio": mine_peak / their_peak,
    }


def versus_zero_to_fp32(folder: Path, size: str, program: Path) -> dict[str, Any]:
    """Ours from ZeRO-3 shards against DeepSpeed's converter for each, then mergekit."""
    for seed, name in ((1, "zero_a"), (2, "zero_b")):
        make_zero3(folder / name, size, seed)
    mine = ours(folder, ("zero_a", "zero_b"))
    theirs = []
    for name in ("zero_a", "zero_b"):
        code = (
            "from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict "
            f"as convert; convert({str(folder / name)!r}, {str(folder / (name + '_fp32'))!r}, "
            "safe_serialization=True)"
        )
        theirs.append(measure([sys.executable, "-c", code], folder / "convert.log"))
        shutil.rmtree(folder / name)
        shutil.copy(folder / "base" / "config.json", folder / f"{name}_fp32")
        _strip_prefix(folder / f"{name}_fp32")
    joined = [folder / "zero_a_fp32", folder / "zero_b_fp32"]
    theirs.append(mergekit(program, joined, folder))
    for path in joined:
        shutil.rmtree(path)
    seconds, peak = sum(r.seconds for r in theirs), max(r.peak_bytes for r in theirs)
    return {
        "zero3_ours_sec": mine.seconds,
        "zero3_theirs_sec": seconds,
        "zero3_speedup": seconds / mine.seconds,
        "zero3_peak_anon_bytes": mine.peak_bytes,
        "zero3_anon_memory_ratio": mine.peak_bytes / peak,
    }


def _strip_prefix(folder: Path) -> None:
    """Rename tensors as mergekit expects them, in the headers alone; not measured."""
    for path in folder.glob("*.safetensors"):
        with path.open("r+b") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length).replace(b'"backbone.', b'"model.')
            file.seek(8)
            file.write(header.ljust(length))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        index.write_text(index.read_text().replace('"backbone.', '"model.'))


def versus_io(folder: Path, repeats: int) -> dict[str, Any]:
    """Ours against only reading the inputs and writing as many bytes, caches empty for both."""
    models = ("base", "a", "b")
    files = [path for name in models for path in sorted((folder / name).glob("*.safetensors"))]
    output_bytes = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
    mine, plain = [], []
    for _ in range(repeats):
        _empty_cache(files)
        plain.append(_read_and_write(files, output_bytes, folder / "plain.bin"))
        _empty_cache(files)
        mine.append(ours(folder))
    return {
        "io_ours_sec": [r.seconds for r in mine],
        "io_plain_sec": plain,
        "io_ratio": min(r.seconds for r in mine) / min(plain),
        "io_peak_anon_bytes": max(r.peak_bytes for r in mine),
    }


def _empty_cache(files: Sequence[Path]) -> None:
    """Bring everything to disk and drop these files from the page cache."""
    os.sync()
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _read_and_write(files: Sequence[Path], output_bytes: int, target: Path) -> float:
    """Read files one after the other while a thread writes and syncs `output_bytes`; seconds."""
    begun = time.perf_counter()
    writer = threading.Thread(target=_write, args=(target, output_bytes))
    writer.start()
    buffer = bytearray(CHUNK_BYTES)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    writer.join()
    seconds = time.perf_counter() - begun
    target.unlink()
    return seconds


def _write(target: Path, num_bytes: int) -> None:
    block = os.urandom(CHUNK_BYTES)
    with target.open("wb", buffering=0) as file:
        for start in range(0, num_bytes, CHUNK_BYTES):
            file.write(block[: num_bytes - start])
        os.fsync(file.fileno())


def bench_size(size: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts that were asked for, on one size."""
    folder = arguments.workdir / f"merge-bench-{size}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        make_model(folder / "base", size, 0)
        make_model(folder / "a", size, 1)
        if size == "7B":
            # one checkpoint under two names, so that the disk holds it once
            shutil.copytree(folder / "a", folder / "b", copy_function=os.link)
        else:
            make_model(folder / "b", size, 2)
        _NOISE.clear()
        return _parts(size, folder, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parts(size: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"parameters": sum(
        torch.Size(shape).numel() for shape in tensor_shapes(size).values())}  # fmt: skip
    if "merge" in arguments.parts:
        result["merge_peak_anon_bytes"] = ours(folder).peak_bytes
    if "mergekit" in arguments.parts and arguments.mergekit:
        result |= versus_mergekit(folder, arguments.mergekit, arguments.repeats)
    if "io" in arguments.parts:
        result |= versus_io(folder, arguments.repeats)
    if "zero" in arguments.parts and arguments.mergekit:
        result |= versus_zero_to_fp32(folder, size, arguments.mergekit)
    return result


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print a table."""
    for size, result in results.items():
        print(f"\n{size}")
        for name, value in result.items():
            unit = value / 2**20 if name.endswith("bytes") else value
            text = f"{unit:,.1f} MiB" if name.endswith("bytes") else _number(unit)
            print(f"  {name:<26} {text}")


def _number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The keys that others read, each from the largest size that measured it, and all numbers."""
    keys = ("speedup", "anon_memory_ratio", "io_ratio", "zero3_speedup", "zero3_anon_memory_ratio")
    best = {key: result[key] for result in results.values() for key in keys if key in result}
    peaks = {size: max(value for key, value in result.items() if key.endswith("peak_anon_bytes"))
             for size, result in results.items()}  # fmt: skip
    return {**best, "peak_anon_bytes": max(peaks.values()), "peaks": peaks, "sizes": results}


def main() -> int:
    """Run the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="scratch folder; what is made is removed")
    add("--sizes", nargs="+", choices=list(SHAPES), default=["1.5B"])
    add("--parts", nargs="+", choices=["merge", "mergekit", "io", "zero"],
        default=["merge", "mergekit", "io"])  # fmt: skip
    add("--mergekit", type=Path, help="mergekit-yaml of an environment that has it")
    add("--repeats", type=int, default=2, help="runs of each; the best counts")
    add("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    results = {size: bench_size(size, arguments) for size in arguments.sizes}
    show(results)
    if arguments.json:
        print(json.dumps(summary(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
