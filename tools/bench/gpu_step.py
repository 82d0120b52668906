"""Measure training steps of a 7B decoder on one GPU: speed, utilisation, memory.

    python tools/bench/gpu_step.py             # one GPU of 80 GB, 40 GB of disk, half an hour
    python tools/bench/gpu_step.py --json      # the last line is one JSON object
    python tools/bench/gpu_step.py --layers 2  # a small part of the model, to see that it runs

The model has the shape of Qwen2.5-7B and random weights; the texts are docstrings. Measured are
LoRA, and all parameters with parameters and optimizer offloaded to the host; chunks of several
sizes; each attention kernel that is installed; Liger's fused modules where they are installed, with
one size of chunks; and sentence-transformers' CachedMultipleNegativesRankingLoss on the same
batches. Model FLOPs utilisation counts real tokens
and one forward and backward: padding and second forwards earn nothing.

Exits with 2 where there is no GPU.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.docs import collect_pairs, save_random_model, write_pairs
from bench.jobs import OursJob, PeerJob, Work
from bench.turns import Outcome, Variant, take_turns
from demo.data import train_tokenizer

GIB = 2**30
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bfloat16 FLOP/s by a word of the device's name, from the makers' data sheets."""
CHUNKS = (4096, 8192, 16384, 32768)
"""Our chunk budgets, tokens."""
ONE_CHUNK = 16384
"""The budget with which fused modules are measured."""
PEER_ROWS = (16, 32)
"""The peer's `mini_batch_size`."""
PEER_TOKENS = (8192,)
"""The peer's `mini_batch_num_tokens`."""
LORA_RANK = 32


def model_config(num_layers: int) -> Any:
    """Qwen2.5-7B, or its first layers."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=num_layers,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        use_cache=False,
        eos_token_id=0,
        pad_token_id=0,
    )


def step_flops(config: Any, lengths: Sequence[int], *, lora: bool) -> float:
    """Floating-point operations that a step on texts of these lengths needs.

    Two for each weight of a linear map and token in the forward pass; as many again for the
    gradient of the activations, and for that of the weights, which LoRA does not need but for its
    adapters, left out here. A causal token attends to half of the text on average.
    """
    head_size = config.hidden_size // config.num_attention_heads
    attention = config.hidden_size * (2 * config.hidden_size)
    attention += 2 * config.hidden_size * config.num_key_value_heads * head_size
    weights = config.num_hidden_layers * (
        attention + 3 * config.hidden_size * config.intermediate_size
    )
    tokens = sum(lengths)
    # scores and sums of values, 2 operations each, over half of L * L positions
    positions = sum(length * length for length in lengths) / 2
    scores = config.num_hidden_layers * 4.0 * positions * config.hidden_size
    return (2 if lora else 3) * 2.0 * weights * tokens + 3 * scores


def kernels() -> list[str]:
    """Attention implementations to measure."""
    found = importlib.util.find_spec("flash_attn") is not None
    return ["sdpa", "flash_attention_2"] if found else ["sdpa"]


def changes(job: OursJob) -> dict[str, OursJob]:
    """Other modules of the layers, by what a row of the table says of them."""
    found = importlib.util.find_spec("liger_kernel") is not None
    return {"Liger": replace(job, kernels="auto")} if found else {}


def variants(work: Work) -> list[Variant]:
    """All that is measured on one kind of training; `work` says which."""
    full = work.lora_rank == 0
    deepspeed = "zero3_offload_bf16.json" if full else "zero1_bf16.json"
    found = []
    for kernel in kernels():
        on = replace(work, kernel=kernel)
        kind = f"{'full' if full else 'LoRA'}, {kernel}"
        for tokens in CHUNKS:
            for gather in ("step", "layer") if full else ("step",):
                job = OursJob(
                    work=on, deepspeed=deepspeed, gather=gather, chunk_tokens=tokens, kernels="none"
                )
                found.append(Variant(name=f"ours {kind}, {gather}, {tokens} tokens", job=job))
        job = OursJob(work=on, deepspeed=deepspeed, chunk_tokens=ONE_CHUNK, kernels="none")
        for name, changed in changes(job).items():
            found.append(Variant(name=f"ours {kind}, step, {name}", job=changed))
        for rows in PEER_ROWS:
            peer = PeerJob(work=on, mini_batch_size=rows)
            found.append(Variant(name=f"peer {kind}, {rows} texts", job=peer))
        for tokens in PEER_TOKENS:
            peer = PeerJob(work=on, mini_batch_tokens=tokens)
            found.append(Variant(name=f"peer {kind}, {tokens} tokens", job=peer))
    return found


def measure(variant: Variant, *, num_steps: int, logs: Path) -> Outcome | None:
    """One variant alone on the GPU; None where it fails, which is reported."""
    try:
        return take_turns([variant], num_steps=num_steps, logs=logs, start="spawn")[variant.name]
    except SystemExit as error:
        lines = str(error).strip().splitlines()
        print(f"{variant.name}: failed: {lines[-1]}", flush=True)
        return None


def prepare(folder: Path, args: argparse.Namespace) -> Work:
    """Make model, tokenizer and texts."""
    pairs = collect_pairs(args.batch * args.steps)
    base = folder / "base"
    base.mkdir()
    train_tokenizer((text for pair in pairs for text in pair), base)
    save_random_model(model_config(args.layers), base, dtype="bfloat16")
    write_pairs(folder / "pairs.jsonl", pairs)
    return Work(
        model=base,
        pairs=folder / "pairs.jsonl",
        batch_size=args.batch,
        max_tokens=args.max_tokens,
        dtype="bfloat16",
        checkpointing=True,
    )


def text_lengths(work: Work, index: int) -> list[int]:
    """Real tokens of each text of a step, cut as both contestants cut them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work.model / "tokenizer.json"))
    rows = [json.loads(line) for line in work.pairs.read_text(encoding="utf-8").splitlines()]
    batch = rows[index * work.batch_size : (index + 1) * work.batch_size]
    texts = [text for row in batch for text in (row["query"], row["positives"][0])]
    return [min(len(e.ids), work.max_tokens) for e in tokenizer.encode_batch(texts)]


def peak_flops(name: str, given: float | None) -> float:
    """FLOP/s of a device in dense bfloat16.

    Raises:
        SystemExit: if it is neither given nor known.
    """
    if given is not None:
        return given * 1e12
    for word, flops in PEAK_FLOPS.items():
        if word in name:
            return flops
    known = ", ".join(PEAK_FLOPS)
    raise SystemExit(f"gpu_step: device = {name}; expected one of {known}. Give --peak-tflops.")


def main() -> None:
    """Measure, print a table, and with --json one object as the last line."""
    args = parse_arguments()
    import torch

    if not torch.cuda.is_available():
        sys.stderr.write(
            "gpu_step: CUDA devices = 0; expected one GPU. Nothing was measured: a 7B model cannot "
            "be timed on a CPU. For the CPU's numbers run tools/bench/step.py.\n"
        )
        sys.exit(2)
    device = torch.cuda.get_device_name()
    limit = peak_flops(device, args.peak_tflops)
    config = model_config(args.layers)
    print(f"{device}, {args.layers} layers, batch {args.batch}, up to {args.max_tokens} tokens")
    print(ROW.format("variant", "s/step", "tokens/s", "MFU", "peak GiB", "loss"), flush=True)
    report: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as name:
        work = prepare(Path(name), args)
        lengths = text_lengths(work, args.steps - 1)
        for rank in (LORA_RANK, 0):
            flops = step_flops(config, lengths, lora=rank > 0)
            for variant in variants(replace(work, lora_rank=rank)):
                outcome = measure(variant, num_steps=args.steps, logs=Path(name))
                if outcome is not None:
                    report[variant.name] = numbers(outcome, sum(lengths), flops / limit)
                    show(variant.name, report[variant.name])
    if args.json:
        sys.stdout.write(json.dumps(report) + "\n")


ROW = "{:<42} {:>8} {:>9} {:>7} {:>9} {:>9}"


def numbers(outcome: Outcome, num_tokens: int, least_sec: float) -> dict[str, float]:
    """What is reported of a variant.

    Args:
        outcome: as measured.
        num_tokens: real tokens of its last step, which is the one that counts.
        least_sec: time of that step on a GPU that wastes nothing.
    """
    seconds = outcome.seconds[-1]
    return {
        "seconds": seconds,
        "tokens_per_sec": num_tokens / seconds,
        "mfu": least_sec / seconds,
        "peak_gib": outcome.total_bytes / GIB,
        "loss": outcome.losses[-1],
    }


def show(name: str, found: dict[str, float]) -> None:
    """A line of the table."""
    print(
        ROW.format(
            name,
            f"{found['seconds']:.2f}",
            f"{found['tokens_per_sec']:.0f}",
            f"{found['mfu']:.1%}",
            f"{found['peak_gib']:.1f}",
            f"{found['loss']:.4f}",
        ),
        flush=True,
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=28, help="decoder layers; 28 is the 7B")
    parser.add_argument("--batch", type=int, default=256, help="queries of a step")
    parser.add_argument("--max-tokens", type=int, default=512, help="longest text")
    parser.add_argument(
        "--steps", type=int, default=3, help="steps of each variant; the last counts"
    )
    parser.add_argument("--peak-tflops", type=float, help="dense bfloat16 TFLOP/s of the GPU")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    return parser.parse_args()


if __name__ == "__main__":
    main()
