"""Make real DeepSpeed checkpoints of tiny models, with the truth about their weights beside them.

The truth is read from the live engine, so that readers of the files are tested against another
road to the same numbers.
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.ranks import run_ranks
from trainer.distributed.group import join


@dataclass(frozen=True, kw_only=True)
class ZeroSpec:
    """One checkpoint to write."""

    name: str
    """Folder below the launch's folder; files lie in `<name>/step-2/`."""
    stage: int
    """ZeRO stage, 1 to 3."""
    dtype: str = "float32"
    """`float32` or `bfloat16`."""
    lora: bool = False
    """Adapters on the linear modules, base frozen."""
    dora: bool = False
    """Adapters with learned magnitudes."""
    drop_frozen: bool = False
    """Leave frozen weights out of the checkpoint."""


class Wrapped(nn.Module):
    """The trainer's wrapper as far as names go: the backbone is an attribute."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("counter", torch.zeros(3), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.backbone(input_ids=input_ids).last_hidden_state.float()


def tiny_config(**changes: Any) -> Any:
    """A Qwen2 of about 10,000 parameters whose sizes divide by neither 2 nor 3 everywhere."""
    from transformers import Qwen2Config

    sizes = {
        "vocab_size": 101,
        "hidden_size": 25,
        "intermediate_size": 37,
        "head_dim": 6,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    return Qwen2Config(**{**sizes, **changes})


def write_base(folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
    """Save a tiny pre-trained model as `AutoModel` writes it."""
    from transformers import Qwen2Model

    torch.manual_seed(seed)
    Qwen2Model(tiny_config()).to(dtype).save_pretrained(folder)


def write_zero_checkpoints(
    rank: int, world_size: int, base: Path, folder: Path, specs: list[ZeroSpec]
) -> None:
    """Train each spec two steps from `base` and save it; runs on every rank of a launch.

    Args:
        rank: this process.
        world_size: number of processes.
        base: folder that `write_base` wrote.
        folder: gets `<spec.name>/step-2/`, `<spec.name>/latest` and `<spec.name>/truth.pt`.
        specs: what to write, one after the other.
    Collective: yes.
    """
    join(timeout_minutes=5)
    for index, spec in enumerate(specs):
        _write_one(rank, base, folder / spec.name, spec, seed=10 * world_size + index)


def _write_one(rank: int, base: Path, folder: Path, spec: ZeroSpec, *, seed: int) -> None:
    import deepspeed

    torch.manual_seed(seed)
    model = Wrapped(_backbone(base, spec))
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": trainable[::2]}, {"params": trainable[1::2], "weight_decay": 0.1}]
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(groups, lr=0.01), config=_ds_config(spec)
    )
    for step in range(2):
        torch.manual_seed(100 * seed + 10 * step + rank)
        engine.backward((engine(torch.randint(0, 101, (2, 5))) - 1).square().mean())
        engine.step()
    engine.save_checkpoint(str(folder), tag="step-2", exclude_frozen_parameters=spec.drop_frozen)
    if spec.lora and rank == 0:
        model.backbone.peft_config["default"].save_pretrained(folder / "step-2" / "embedder")
    _save_truth(rank, engine, folder)
    engine.destroy()


def _backbone(base: Path, spec: ZeroSpec) -> nn.Module:
    from transformers import AutoModel

    backbone: nn.Module = AutoModel.from_pretrained(base, dtype=getattr(torch, spec.dtype))
    if not spec.lora:
        return backbone
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", use_dora=spec.dora)
    adapted = get_peft_model(backbone, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return adapted


def _ds_config(spec: ZeroSpec) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": spec.dtype == "bfloat16"},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        # small groups, so that parameters fall into several of them
        "zero_optimization": {"stage": spec.stage, "sub_group_size": 1500},
    }


def _save_truth(rank: int, engine: Any, folder: Path) -> None:
    """Save float32 masters (frozen weights in the model's dtype) under the module's names."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    truth = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            truth[name] = safe_get_full_fp32_param(parameter).detach().clone()
            continue
        with GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            truth[name] = parameter.detach().clone()
    if rank == 0:
        torch.save(truth, folder / "truth.pt")


SETS = {
    1: [
        ZeroSpec(name="w1-z3-fp32", stage=3),
        ZeroSpec(name="w1-z2-bf16", stage=2, dtype="bfloat16"),
    ],
    2: [
        ZeroSpec(name="w2-z3-fp32", stage=3),
        ZeroSpec(name="w2-z3-bf16", stage=3, dtype="bfloat16"),
        ZeroSpec(name="w2-z2-fp32", stage=2),
        ZeroSpec(name="w2-z1-bf16", stage=1, dtype="bfloat16"),
        ZeroSpec(name="w2-z3-bf16-lora", stage=3, dtype="bfloat16", lora=True),
        ZeroSpec(name="w2-z1-fp32-lora", stage=1, lora=True),
        ZeroSpec(name="w2-z3-fp32-dora", stage=3, lora=True, dora=True),
        ZeroSpec(name="w2-z3-fp32-lora-only", stage=3, lora=True, drop_frozen=True),
    ],
    3: [
        ZeroSpec(name="w3-z3-bf16", stage=3, dtype="bfloat16"),
        ZeroSpec(name="w3-z1-fp32", stage=1),
        ZeroSpec(name="w3-z2-fp32-lora", stage=2, lora=True),
    ],
}
"""What `make_checkpoint_set` writes, by number of ranks."""


def make_checkpoint_set(factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and all of `SETS`; nobody may change what is in it.

    It is made once, also where several processes run tests, which have a folder each below that of
    all of them.
    """
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, done = shared / "zero", shared / "zero.done"
    with (shared / "zero.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            write_base(folder / "base")
            for ranks, specs in SETS.items():
                job = (folder / "base", folder, specs)
                run_ranks(write_zero_checkpoints, ranks, *job, timeout_sec=240)
            done.touch()
    return folder
