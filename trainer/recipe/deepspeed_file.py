"""Find and check a ds_config file; it must not import DeepSpeed, which takes seconds.

DeepSpeed ignores a top-level key that it does not know, so a misspelt one would silently do
nothing: only the keys listed here are accepted.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trainer.errors import RecipeError
from trainer.recipe.schema import DType

Offload = Literal["offload_param", "offload_optimizer"]
"""Sections that say what leaves the GPU."""
OLD_OFFLOADS = {"offload_param": "cpu_offload_param", "offload_optimizer": "cpu_offload"}
"""Flags that DeepSpeed still takes in their place."""
TRUE_WORDS = ("true", "1", "yes", "y", "on", "t")
"""How DeepSpeed lets a flag be written."""
CONFIG_FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"
"""The files that come with the project."""

OWNERS = {
    "train_batch_size": "tasks.ir.global_batch_size and tasks.sts.global_batch_size",
    "train_micro_batch_size_per_gpu": "engine.max_tokens_per_chunk",
    "gradient_accumulation_steps": "engine.max_tokens_per_chunk",
    "managed_gradient_accumulation": "engine.gather",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.optimizer, train.learning_rate, train.betas and train.weight_decay",
    "scheduler": "train.schedule and train.warmup_ratio",
    "zero_allow_untested_optimizer": "train.optimizer",
    "amp": "model.dtype",
    "fp16": "model.dtype",
    "torch_autocast": "model.dtype",
}
"""Keys of DeepSpeed that a ds_config must not set, with the recipe keys that do."""

ACCEPTED = (
    "zero_optimization",
    "bf16",
    "data_types",
    "communication_data_type",
    "zero_force_ds_cpu_optimizer",
    "aio",
    "prescale_gradients",
    "gradient_predivide_factor",
    "disable_allgather",
    "disable_python_gc",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "steps_per_print",
    "timers",
    "checkpoint",
    "log_level",
)
"""Keys of DeepSpeed that a ds_config may set."""


def read_deepspeed_file(name: str, *, dtype: DType) -> dict[str, Any]:
    """Read a ds_config and refuse what the recipe owns.

    Args:
        name: a path, or the name of a file in `ds_configs/`.
        dtype: `model.dtype`, which the file's precision must match.

    Raises:
        RecipeError: if there is no such file, it is not a JSON object, holds a key twice, an
            unknown one, one that the recipe owns or the value "auto", its stage is not 1, 2 or 3,
            its precision is not that of `model.dtype`, or it lets gradients pass unchecked.
    """
    path = find_deepspeed_file(name)
    config = _parse(path)
    _refuse_keys(path, config)
    _refuse_auto(path, config, "")
    _check_zero(path, config)
    _check_precision(path, config, dtype)
    return config


def find_deepspeed_file(name: str) -> Path:
    """The file of that path or, failing that, of that name in the project's `ds_configs/`.

    Raises:
        RecipeError: if there is neither; the message lists what the project has.
    """
    for candidate in (Path(name).expanduser(), CONFIG_FOLDER / name):
        if candidate.is_file():
            return candidate
    shipped = sorted(file.name for file in CONFIG_FOLDER.glob("*.json"))
    nearest = difflib.get_close_matches(name, shipped, n=1)
    raise RecipeError(
        f"recipe: engine.deepspeed = {name}; expected the path of a file, or one of "
        f"{', '.join(shipped)}. {f'Did you mean {nearest[0]}?' if nearest else 'Name one of them.'}"
    )


def _parse(path: Path) -> dict[str, Any]:
    """The file's JSON object, no key given twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise _error(path, key, "given twice", "each key once", "Remove one of them.")
        return dict(pairs)

    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (OSError, ValueError, RecursionError) as error:
        expected = "a JSON object, without comments or trailing commas"
        raise _error(path, "content", f"not JSON ({error})", expected, "Fix it.") from error
    if not isinstance(config, dict):
        got = type(config).__name__
        raise _error(path, "content", got, "a JSON object", "Write { ... }.")
    return config


def _refuse_keys(path: Path, config: dict[str, Any]) -> None:
    for key, value in config.items():
        if key in OWNERS:
            advice = f"Remove {key} from the file and set {OWNERS[key]} in the recipe."
            raise _error(path, key, json.dumps(value), "no key that the recipe owns", advice)
        if key not in ACCEPTED:
            nearest = difflib.get_close_matches(key, ACCEPTED, n=1)
            advice = f"Did you mean {nearest[0]}?" if nearest else "Remove it."
            raise _error(path, key, json.dumps(value), f"one of {', '.join(ACCEPTED)}", advice)


def _refuse_auto(path: Path, value: Any, where: str) -> None:
    """Only transformers' own trainer resolves "auto"; DeepSpeed itself does not."""
    if value == "auto":
        raise _error(path, where, '"auto"', "a value", "Write the number.")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_auto(path, item, f"{where}.{key}" if where else key)


def _check_zero(path: Path, config: dict[str, Any]) -> None:
    zero = config.get("zero_optimization")
    if not isinstance(zero, dict) or zero.get("stage") not in (1, 2, 3) or zero["stage"] is True:
        got = json.dumps(zero.get("stage") if isinstance(zero, dict) else zero)
        raise _error(path, "zero_optimization.stage", got, "1, 2 or 3", "Choose a ZeRO stage.")
    if offloads(config, "offload_param") and zero["stage"] != 3:
        expected = "stage 3 where parameters are offloaded"
        advice = "Remove zero_optimization.offload_param, or use stage 3."
        raise _error(path, "zero_optimization.stage", str(zero["stage"]), expected, advice)


def _check_precision(path: Path, config: dict[str, Any], dtype: DType) -> None:
    section = config.get("bf16", {})
    has_bf16 = isinstance(section, dict) and section.get("enabled") is True
    if has_bf16 != (dtype == "bfloat16"):
        expected = f"{'true' if dtype == 'bfloat16' else 'false'}, as model.dtype is {dtype}"
        advice = "Set model.dtype and engine.deepspeed to the same precision (_bf16 or _fp32)."
        raise _error(path, "bf16.enabled", json.dumps(has_bf16), expected, advice)
    if isinstance(section, dict) and section.get("check_grad_overflow", True) is not True:
        expected = "true: without it a gradient that is not finite reaches the weights"
        got = json.dumps(section["check_grad_overflow"])
        raise _error(path, "bf16.check_grad_overflow", got, expected, "Remove the key.")


def offloads(config: Mapping[str, Any], section: Offload) -> bool:
    """Whether a ds_config moves parameters or the optimizer off the GPU, in any way it can say so.

    A section may be there and move nothing: null, empty, or with the device `none`.
    """
    zero = config["zero_optimization"]
    target = zero.get(section)
    named = isinstance(target, dict) and target.get("device") in ("cpu", "nvme")
    return named or str(zero.get(OLD_OFFLOADS[section])).lower() in TRUE_WORDS


def _error(path: Path, key: str, got: str, expected: str, advice: str) -> RecipeError:
    return RecipeError(f"{path}: {key} = {got}; expected {expected}. {advice}")
