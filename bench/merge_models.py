"""Make models of random bfloat16 numbers in the shape of Qwen2.5, for `merge.py` to measure.

  python bench/merge_models.py model FOLDER --size 1.5B --seed 1
  python bench/merge_models.py zero3 FOLDER --size 1.5B --seed 1

Seed 0 is the base; others lie near it. `zero3` writes float32 masters as the shards of four ranks.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.checkpoint.safetensors_file import encode_header

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden": 256, "inner": 768, "layers": 4, "kv": 64, "vocab": 20_000},
    "0.5B": {"hidden": 896, "inner": 4864, "layers": 24, "kv": 128, "vocab": 151_936},
    "1.5B": {"hidden": 1536, "inner": 8960, "layers": 28, "kv": 256, "vocab": 151_936},
    "7B": {"hidden": 3584, "inner": 18_944, "layers": 28, "kv": 512, "vocab": 152_064},
}
"""Sizes of Qwen2.5; the 7B shape has an output head of its own, as there."""
SHARD_BYTES = 4_000_000_000
NUM_RANKS = 4
NOISE = 1 << 24
"""Random numbers that are drawn; tensors take them from changing places."""


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


@cache
def _noise(seed: int) -> Tensor:
    return torch.randn(NOISE, generator=torch.Generator().manual_seed(seed))


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


def main() -> None:
    """Make one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("model", "zero3"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=list(SHAPES), required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    maker = make_model if arguments.kind == "model" else make_zero3
    maker(arguments.folder, arguments.size, arguments.seed)


if __name__ == "__main__":
    main()
