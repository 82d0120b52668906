"""Adapters as changes of whole weights; it must not read tensors, only arrange them.

Formulas: W + s B A with s = alpha / rank (Hu et al. 2021, arXiv:2106.09685, section 4.1), or
alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732); DoRA as in `LowRankTensor`. A bias of B
adds s times itself to the module's. IA3 multiplies the outputs of a module, or in a feed-forward
block its inputs, by a vector (Liu et al. 2022, arXiv:2205.05638, section 3.3). Trained tokens are
rows of the embedding as they stand.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.checkpoint.json_files import read_object
from trainer.checkpoint.tensors import (
    LowRankTensor,
    ReplacedRows,
    ScaledTensor,
    ShiftedTensor,
    SlicedTensor,
    numel,
)
from trainer.errors import CheckpointError
from trainer.recipe.adapter_folder import why_no_sum

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
    alpha: float = 1.0
    """Numerator of the scale; of no use to adapters without one."""
    rslora: bool = False
    """Divide by the square root of the rank."""
    dora: bool = False
    """Adapters carry magnitudes."""
    transposed: bool = False
    """Weights are stored [in, out], as GPT-2's."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Other alphas by regular expression on the end of a module's name."""
    token_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Rows that trained tokens replace, by the end of a module's name; "" is any module."""

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
        CheckpointError: if it is damaged, or of an adapter of a kind that cannot be merged or that
            has another base than it names.
    """
    config = read_object(path)
    kind = config.get("peft_type")
    if kind == "IA3":
        return LoraSettings(path=path, transposed=bool(config.get("fan_in_fan_out")))
    if kind == "TRAINABLE_TOKENS":
        rows = _token_rows(path, "token_indices", config.get("token_indices"))
        return LoraSettings(path=path, token_rows=rows)
    if kind != "LORA":
        raise CheckpointError(
            f"{path}: peft_type = {kind!r:.60}; expected LORA, with or without DoRA, IA3 or "
            "TRAINABLE_TOKENS. Merge the adapter into its base with peft first."
        )
    reason = why_no_sum(config)
    if reason is not None:
        raise CheckpointError(f"{path}: {reason}")
    name = "trainable_token_indices"
    return LoraSettings(
        path=path,
        alpha=_number(path, "lora_alpha", config.get("lora_alpha")),
        token_rows=_token_rows(path, name, config.get(name)),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        transposed=bool(config.get("fan_in_fan_out")),
        alpha_pattern=_patterns(path, config.get("alpha_pattern") or {}),
    )


def _token_rows(path: Path, name: str, value: Any) -> dict[str, tuple[int, ...]]:
    """Rows of trained tokens by module; a list is that of the one module which has such tokens.

    Raises:
        CheckpointError: they are no numbers of rows, or a row stands there twice.
    """
    given = value if isinstance(value, dict) else {} if value is None else {"": value}
    for rows in given.values():
        is_whole = isinstance(rows, list) and all(type(row) is int and row >= 0 for row in rows)
        if not is_whole or len(set(rows)) < len(rows):
            raise CheckpointError(
                f"{path}: {name} = {rows!r:.60}; expected numbers of tokens, each once. The file "
                "is damaged; save the adapter again."
            )
    return {str(module): tuple(rows) for module, rows in given.items()}


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
        tensors |= _changed(module, weights, parts, settings)
    return tensors


def _changed(
    module: str,
    weights: Mapping[str, SlicedTensor],
    parts: Mapping[str, SlicedTensor],
    settings: LoraSettings,
) -> dict[str, SlicedTensor]:
    """The tensors of a module that its adapter changes."""
    name, bias = f"{module}.weight", f"{module}.bias"
    if set(parts) == {"tokens"}:
        return {name: _with_tokens(module, weights[name], parts["tokens"], settings)}
    if set(parts) == {"ia3"}:
        return _scaled(module, weights, parts["ia3"], settings)
    shift = parts.get("B_bias")
    own = {part: tensor for part, tensor in parts.items() if part != "B_bias"}
    changed: dict[str, SlicedTensor] = {name: _apply(module, weights[name], own, settings)}
    if shift is not None:
        if bias not in weights or numel(weights[bias].shape) != numel(shift.shape):
            raise _wrong(settings, module, "a bias of lora_B", "a bias of its size in the base")
        scale = settings.scale(module, own["A"].shape[0])
        changed[bias] = ShiftedTensor(weights[bias], shift, scale)
    return changed


def _with_tokens(
    module: str, weight: SlicedTensor, values: SlicedTensor, settings: LoraSettings
) -> ReplacedRows:
    """An embedding with trained tokens in it."""
    ends = [end for end in settings.token_rows if f".{module}".endswith(f".{end}") or not end]
    rows = settings.token_rows[ends[0]] if ends else ()
    if len(weight.shape) != 2 or tuple(values.shape) != (len(rows), weight.shape[1]):
        found = f"trained tokens of shape {tuple(values.shape)}"
        raise _wrong(settings, module, found, f"a row of {weight.shape} for each of {len(rows)}")
    if max(rows, default=0) >= weight.shape[0]:
        raise _wrong(settings, module, f"token {max(rows)}", f"one below {weight.shape[0]}")
    return ReplacedRows(weight, rows, values)


def _scaled(
    module: str,
    weights: Mapping[str, SlicedTensor],
    factor: SlicedTensor,
    settings: LoraSettings,
) -> dict[str, SlicedTensor]:
    """A module whose outputs [out, 1], or inputs [1, in], are scaled; outputs with their bias."""
    name, bias = f"{module}.weight", f"{module}.bias"
    weight = weights[name]
    if len(weight.shape) != 2 or len(factor.shape) != 2 or 1 not in factor.shape:
        raise _wrong(settings, module, f"factors {factor.shape} on {weight.shape}", "a vector")
    of_outputs = factor.shape[1] == 1
    by_row = of_outputs != settings.transposed
    if numel(factor.shape) != weight.shape[0 if by_row else 1]:
        raise _wrong(settings, module, f"factors {factor.shape}", f"one for each of {weight.shape}")
    changed: dict[str, SlicedTensor] = {name: ScaledTensor(weight, factor, by_row)}
    if of_outputs and bias in weights:
        changed[bias] = ScaledTensor(weights[bias], factor, by_row=True)
    return changed


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
    if (magnitude is not None) != settings.dora:
        raise _wrong(settings, module, f"parts {sorted(parts)}", f"DoRA = {settings.dora}")
    num_outputs = weight.shape[1 if transposed else 0]
    if magnitude is not None and numel(magnitude.shape) != num_outputs:
        raise _wrong(settings, module, f"magnitudes {magnitude.shape}", f"{num_outputs} of them")
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
