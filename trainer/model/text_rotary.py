"""Rotary frequencies that depend on the length of a text, and not on who shares its chunk.

With the rope types `dynamic` and `longrope` transformers takes the longest text of a batch and
scales all of the batch by it. Here each text is scaled by its own length, as if it were alone.

Letters: B texts, L tokens, T packed tokens, K different scalings, R rotary size.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


@dataclass
class TextLengths:
    """Lengths of the texts of a chunk; set before each forward."""

    lengths_B: Tensor | None = None
    """Real tokens of each text [B], int64; None leaves the scaling to transformers."""
    packed: bool = False
    """Whether the texts lie end to end in one row."""


class TextRotary(nn.Module):
    """Mixin before a rotary module's class."""

    texts: TextLengths

    def forward(self, x: Tensor, position_ids: Tensor, *layer_type: Any, **named: Any) -> Any:
        """Cosines and sines [B, L, R] or [1, T, R] of positions [1 or B, L] or [1, T]."""
        lengths_B = self.texts.lengths_B
        if lengths_B is None or lengths_B.is_meta or position_ids.dim() != 2:
            return super().forward(x, position_ids, *layer_type, **named)
        kind = layer_type[0] if layer_type else named.get("layer_type")
        spans = _spans(self, kind, lengths_B.tolist())
        if spans is None:
            return super().forward(x, position_ids, *layer_type, **named)
        tables = []
        different = sorted(set(spans))
        for span in different:
            _forget_growth(self, kind)
            # transformers scales by the largest position: none but padding lies beyond the span
            clamped = position_ids.clamp(max=span - 1)
            tables.append(super().forward(x, clamped, *layer_type, **named))
        index_B = torch.tensor([different.index(span) for span in spans], device=x.device)
        if isinstance(tables[0], tuple):
            return tuple(self._by_text(list(parts), index_B) for parts in zip(*tables, strict=True))
        return self._by_text(tables, index_B)

    def _by_text(self, tables: list[Tensor], index_B: Tensor) -> Tensor:
        """The table of each text: K of [1 or B, L, R] -> [B, L, R], of [1, T, R] -> [1, T, R]."""
        if len(tables) == 1:
            return tables[0]
        tables_KBLR = torch.stack(tables)
        if self.texts.packed:
            assert self.texts.lengths_B is not None
            index_T = index_B.repeat_interleave(self.texts.lengths_B)
            token_T = torch.arange(len(index_T), device=index_B.device)
            # [K, 1, T, R] -> [1, T, R]
            return tables_KBLR[index_T, 0, token_T][None]
        row_B = torch.arange(len(index_B), device=index_B.device)
        if tables_KBLR.shape[1] == 1:
            row_B = torch.zeros_like(row_B)
        return tables_KBLR[index_B, row_B]


def scale_by_text(backbone: nn.Module) -> TextLengths | None:
    """Change the classes of rotary modules whose scaling depends on lengths, in place.

    Args:
        backbone: whole or partitioned; rotary modules have no parameters.

    Returns:
        Where to say how long the texts are; None where no scaling depends on it.
    """
    texts = TextLengths()
    found = [module for module in backbone.modules() if _depends_on_length(module)]
    for module in found:
        kind = type(module)
        module.__class__ = type(f"Text{kind.__name__}", (TextRotary, kind), {})
        module.texts = texts  # type: ignore[assignment]
    if found:
        logger.info(
            "rope type %s: each text is scaled by its own length; libraries that scale a batch by "
            "its longest text agree where texts are embedded one by one",
            ", ".join(sorted(set(_rope_types(found[0]).values()))),
        )
    return texts if found else None


def _rope_types(module: nn.Module) -> dict[str | None, str]:
    """The rope type of each kind of layer, or of all under None."""
    rope_type = getattr(module, "rope_type", None)
    if isinstance(rope_type, dict):
        return rope_type
    return {None: rope_type} if isinstance(rope_type, str) else {}


def _depends_on_length(module: nn.Module) -> bool:
    return hasattr(module, "config") and any(
        "dynamic" in rope_type or rope_type == "longrope"
        for rope_type in _rope_types(module).values()
    )


def _spans(module: Any, kind: str | None, lengths: list[int]) -> list[int] | None:
    """The length by which each text is scaled; texts that are scaled alike have the same one."""
    rope_type = _rope_types(module)[kind]
    if "dynamic" in rope_type:
        return [max(length, module.original_max_seq_len) for length in lengths]
    if rope_type != "longrope":
        return None
    parameters = module.config.rope_parameters
    parameters = parameters if kind is None else parameters[kind]
    original = int(parameters["original_max_position_embeddings"])
    longest = max(lengths)
    return [original if length <= original else longest for length in lengths]


def _forget_growth(module: Any, kind: str | None) -> None:
    """Undo what earlier, longer texts left in a module of the `dynamic` type."""
    if "dynamic" not in _rope_types(module)[kind]:
        return
    prefix = "" if kind is None else f"{kind}_"
    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
    original = getattr(module, f"{prefix}original_inv_freq")
    setattr(module, f"{prefix}inv_freq", original.to(getattr(module, f"{prefix}inv_freq").device))
