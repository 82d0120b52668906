"""LoRA adapters as changes of whole weights; it must not read tensors, only arrange them.

Formulas: W + s B A with s = alpha / rank (Hu et al. 2021, arXiv:2106.09685, section 4.1), or
alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732); DoRA as in `LowRankTensor`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.checkpoint.json_files import read_object
from trainer.checkpoint.tensors import LowRankTensor, SlicedTensor, numel
from trainer.errors import CheckpointError

QUANTIFIER = re.compile(r"(?<!\()[*+?{]")
REPEATED_GROUP = re.compile(r"\)\s*[*+{]")
MAX_QUANTIFIERS = 3
MAX_PATTERN_CHARS = 500
MAX_MODULE_CHARS = 200
"""Limits to the work of a regular expression that a stranger wrote: without repeated groups it
grows with the length of the name to the power of the quantifiers."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """How a checkpoint's adapters apply."""

    path: Path
    """File that says so, for messages."""
    alpha: float
    """Numerator of the scale."""
    rslora: bool = False
    """Divide by the square root of the rank."""
    dora: bool = False
    """Adapters carry magnitudes."""
    transposed: bool = False
    """Weights are stored [in, out], as GPT-2's."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Other alphas by regular expression on the end of a module's name."""

    def scale(self, module: str, rank: int) -> float:
        """Factor of B A for a module, no unit.

        Raises:
            CheckpointError: if its name is too long to match regular expressions with it.
        """
        alpha = self.alpha
        if self.alpha_pattern and len(module) > MAX_MODULE_CHARS:
            expected = f"names of at most {MAX_MODULE_CHARS} with alpha_pattern"
            raise _wrong(self, f"{module[:60]}...", f"a name of {len(module)} characters", expected)
        for pattern, other in self.alpha_pattern.items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                alpha = other
                break
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def settings_from_peft(path: Path) -> LoraSettings:
    """Read peft's `adapter_config.json`.

    Raises:
        CheckpointError: if it is damaged, or of an adapter that is not LoRA without extras.
    """
    config = read_object(path)
    kind, alpha = config.get("peft_type"), _number(path, "lora_alpha", config.get("lora_alpha"))
    extras = {"peft_type": kind != "LORA", "lora_bias": config.get("lora_bias"),
              "use_bdlora": config.get("use_bdlora"),
              "bias": config.get("bias", "none") != "none"}  # fmt: skip
    for name, present in extras.items():
        if present:
            raise CheckpointError(
                f"{path}: {name} = {config.get(name)!r:.60}; expected LoRA or DoRA without trained "
                "biases. Merge the adapter into its base with peft first."
            )
    return LoraSettings(
        path=path,
        alpha=alpha,
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        transposed=bool(config.get("fan_in_fan_out")),
        alpha_pattern=_patterns(path, config.get("alpha_pattern") or {}),
    )


def _number(path: Path, name: str, value: Any) -> float:
    """A finite number.

    Raises:
        CheckpointError: it is something else.
    """
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise CheckpointError(
            f"{path}: {name} = {value!r:.60}; expected a finite number. The file is damaged or of "
            "another adapter; merge the adapter into its base with peft first."
        )
    return number


def _patterns(path: Path, value: Any) -> dict[str, float]:
    """Alphas by regular expression, each one that is matched in little time.

    Raises:
        CheckpointError: it is no object, a number is none, or an expression is wrong or repeats a
            group, which may take longer than anyone waits.
    """
    patterns = value if isinstance(value, dict) else {"": value}
    for pattern, alpha in patterns.items():
        _number(path, "alpha_pattern", alpha)
        try:
            re.compile(pattern)
            is_slow = len(QUANTIFIER.findall(pattern)) > MAX_QUANTIFIERS
        except (re.error, RecursionError, OverflowError):
            is_slow = True
        if is_slow or REPEATED_GROUP.search(pattern) or len(pattern) > MAX_PATTERN_CHARS:
            raise CheckpointError(
                f"{path}: alpha_pattern = {pattern!r:.60}; expected a module's name, or a regular "
                f"expression with at most {MAX_QUANTIFIERS} repeats and none of a group. Merge the "
                "adapter into its base with peft first."
            )
    return {pattern: float(alpha) for pattern, alpha in patterns.items()}


def settings_from_recipe(path: Path, lora: Mapping[str, Any]) -> LoraSettings:
    """Take the settings from the recipe in a manifest.

    Args:
        path: the manifest, for messages.
        lora: `model.lora` of the resolved recipe.

    Raises:
        CheckpointError: if it has no alpha.
    """
    return LoraSettings(
        path=path,
        alpha=_number(path, "recipe.model.lora.alpha", lora.get("alpha")),
        rslora=bool(lora.get("rslora")),
        dora=bool(lora.get("dora")),
    )


def adapted(
    weights: Mapping[str, SlicedTensor],
    adapters: Mapping[str, Mapping[str, SlicedTensor]],
    settings: LoraSettings,
) -> dict[str, SlicedTensor]:
    """Weights with their adapters applied.

    Args:
        weights: all tensors of the model by name.
        adapters: parts by module name; the module's weight is `<module>.weight`.
        settings: how they apply.

    Raises:
        CheckpointError: if an adapter has no weight, lacks a part, or does not fit.
    """
    tensors = dict(weights)
    for module, parts in adapters.items():
        name = f"{module}.weight"
        if name not in weights:
            raise _wrong(settings, module, "an adapter", "a weight of that name in the base")
        tensors[name] = _apply(module, weights[name], parts, settings)
    return tensors


def _apply(
    module: str,
    weight: SlicedTensor,
    parts: Mapping[str, SlicedTensor],
    settings: LoraSettings,
) -> LowRankTensor:
    names = set(parts) - {"magnitude_vector"}
    if names not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
        raise _wrong(settings, module, f"parts {sorted(parts)}", "lora_A and lora_B")
    embedding = "embedding_A" in names
    a, b = (parts["embedding_A"], parts["embedding_B"]) if embedding else (parts["A"], parts["B"])
    # B A is [out, in]; an embedding and GPT-2's layers keep their weight the other way round
    transposed = embedding or settings.transposed
    left, right = (a, b) if transposed else (b, a)
    if 0 in a.shape:
        raise _wrong(settings, module, f"shape {tuple(a.shape)}", "a rank of at least 1")
    _check_fit(module, weight, left, right, settings, transposed=transposed)
    magnitude = parts.get("magnitude_vector")
    if (magnitude is not None) != settings.dora or (magnitude is not None and transposed):
        raise _wrong(settings, module, f"parts {sorted(parts)}", f"DoRA = {settings.dora}")
    if magnitude is not None and numel(magnitude.shape) != weight.shape[0]:
        raise _wrong(
            settings, module, f"magnitudes {magnitude.shape}", f"{weight.shape[0]} of them"
        )
    scale = settings.scale(module, a.shape[0])
    return LowRankTensor(weight, left, right, scale, transposed=transposed, magnitude=magnitude)


def _check_fit(
    module: str,
    weight: SlicedTensor,
    left: SlicedTensor,
    right: SlicedTensor,
    settings: LoraSettings,
    *,
    transposed: bool,
) -> None:
    shapes = [left.shape, right.shape]
    if any(len(shape) != 2 for shape in (*shapes, weight.shape)):
        raise _wrong(settings, module, f"shapes {shapes} on {weight.shape}", "matrices")
    (rows, rank), (other_rank, columns) = (
        (left.shape[::-1], right.shape[::-1]) if transposed else (left.shape, right.shape)
    )
    if (rows, columns) != tuple(weight.shape) or rank != other_rank:
        raise _wrong(settings, module, f"shapes {shapes}", f"factors of {weight.shape}")


def _wrong(settings: LoraSettings, module: str, found: str, wanted: str) -> CheckpointError:
    return CheckpointError(
        f"{settings.path}: {module} = {found}; expected {wanted}. Is this adapter of another base?"
    )
