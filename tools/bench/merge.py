"""Measure merging: against mergekit, and against only reading and writing the same bytes.

Models are made by `bench/merge_models.py`: random bfloat16 numbers in the shape of Qwen2.5, two
checkpoints near their base. Memory is the anonymous memory of the whole process tree, sampled
while it runs. A first merge, which compiles loops for about a second, is not measured.

  python tools/bench/merge.py --workdir /scratch --mergekit /venv/bin/mergekit-yaml
  python tools/bench/merge.py --workdir /scratch --sizes 0.5B 1.5B 7B --parts io

Disk needed: 13 GB for 1.5B, 26 GB more with `zero`, 46 GB for 7B, whose second checkpoint is a
link to the first.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.memory import anonymous_bytes, children

ROOT = Path(__file__).parents[2]
SIZES = ("tiny", "0.5B", "1.5B", "7B")
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Run:
    """What a command took."""

    seconds: float
    """Wall-clock time."""
    cpu_seconds: float
    """Processor time of it and its children: what other work on the machine changes least."""
    peak_bytes: int
    """Largest anonymous memory of the process tree."""


def make(kind: str, folder: Path, size: str, seed: int) -> None:
    """Make a model or a ZeRO-3 checkpoint, in a process of its own so that its memory goes."""
    script = str(ROOT / "bench" / "merge_models.py")
    command = [sys.executable, script, kind, str(folder), "--size", size, "--seed", str(seed)]
    subprocess.run(command, check=True)


def measure(command: Sequence[str], log: Path) -> Run:
    """Run a command to its end; its output goes to `log`.

    Raises:
        SystemExit: if it fails.
    """
    begun, cpu_before = time.perf_counter(), _cpu_seconds()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        peak = 0
        while process.poll() is None:
            family = (process.pid, *children(process.pid))
            peak = max(peak, sum(map(anonymous_bytes, family)))
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{log.read_text()[-3000:]}")
    return Run(time.perf_counter() - begun, _cpu_seconds() - cpu_before, peak)


def _cpu_seconds() -> float:
    """Processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def merge_command(folder: Path, checkpoints: Sequence[str], output: Path) -> list[str]:
    """Our command with its defaults."""
    script = str(ROOT / "tools" / "delta_merge.py")
    return [sys.executable, script, "--base", str(folder / "base"), "--checkpoints",
            *(str(folder / name) for name in checkpoints), "--output", str(output)]  # fmt: skip


def ours(folder: Path, *options: str, checkpoints: Sequence[str] = ("a", "b")) -> Run:
    """Merge, measure, and remove the result."""
    command = [*merge_command(folder, checkpoints, folder / "out"), *options]
    run = measure(command, folder / "ours.log")
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
    """The same merge from safetensors in the page cache; best of each.

    A linear merge with equal weights is our `uniform`; ours by deviations is timed as well. They
    take turns in a changing order: what ran before leaves memory in another state.
    """
    mine, by_norm, theirs = [], [], []
    turns = [
        lambda: theirs.append(mergekit(program, [folder / "a", folder / "b"], folder)),
        # mergekit does not wait for the disk either
        lambda: mine.append(ours(folder, "--no-sync", "--method", "uniform")),
        lambda: by_norm.append(ours(folder, "--no-sync", "--method", "delta")),
    ]
    for round_ in range(repeats):
        first = round_ % len(turns)
        for turn in turns[first:] + turns[:first]:
            turn()
    mine_sec, their_sec = min(r.seconds for r in mine), min(r.seconds for r in theirs)
    mine_peak, their_peak = max(r.peak_bytes for r in mine), max(r.peak_bytes for r in theirs)
    return {
        "ours_sec": mine_sec,
        "delta_sec": min(r.seconds for r in by_norm),
        "mergekit_sec": their_sec,
        "ours_cpu_sec": min(r.cpu_seconds for r in mine),
        "mergekit_cpu_sec": min(r.cpu_seconds for r in theirs),
        "ours_all_sec": [r.seconds for r in mine],
        "delta_all_sec": [r.seconds for r in by_norm],
        "mergekit_all_sec": [r.seconds for r in theirs],
        "mergekit_peak_bytes": their_peak,
        "peak_anon_bytes": mine_peak,
        "speedup": their_sec / mine_sec,
        "delta_speedup": their_sec / min(r.seconds for r in by_norm),
        "anon_memory_ratio": mine_peak / their_peak,
    }


def versus_zero_to_fp32(folder: Path, size: str, program: Path) -> dict[str, Any]:
    """Ours from ZeRO-3 shards against DeepSpeed's converter for each, then mergekit."""
    for seed, name in ((1, "zero_a"), (2, "zero_b")):
        make("zero3", folder / name, size, seed)
    mine = ours(folder, "--no-sync", checkpoints=("zero_a", "zero_b"))
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


def compile_loops(folder: Path) -> None:
    """A first small merge, unmeasured: it compiles what later ones find compiled."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for seed, name in enumerate(("base", "a", "b")):
            make("model", folder / name, "tiny", seed)
        ours(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def bench_size(size: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """All parts that were asked for, on one size."""
    folder = arguments.workdir / f"merge-bench-{size}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        make("model", folder / "base", size, 0)
        make("model", folder / "a", size, 1)
        if size == "7B":
            # one checkpoint under two names, so that the disk holds it once
            shutil.copytree(folder / "a", folder / "b", copy_function=os.link)
        else:
            make("model", folder / "b", size, 2)
        return _parts(size, folder, arguments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parts(size: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    stored = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
    result: dict[str, Any] = {"base_bytes": stored}
    if "merge" in arguments.parts:
        run = ours(folder)
        result |= {"merge_sec": run.seconds, "merge_peak_anon_bytes": run.peak_bytes}
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
    add("--sizes", nargs="+", choices=SIZES, default=["1.5B"])
    add("--parts", nargs="+", choices=["merge", "mergekit", "io", "zero"],
        default=["merge", "mergekit", "io"])  # fmt: skip
    add("--mergekit", type=Path, help="mergekit-yaml of an environment that has it")
    add("--repeats", type=int, default=3, help="runs of each; the best counts")
    add("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    compile_loops(arguments.workdir / "merge-bench-first")
    results = {size: bench_size(size, arguments) for size in arguments.sizes}
    show(results)
    if arguments.json:
        print(json.dumps(summary(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
