"""Dropout whose mask belongs to the text, not to the batch it happens to lie in.

`torch.nn.Dropout` draws from a generator, so its mask depends on which texts share a chunk and on
which rank. Here the mask is a hash of (seed, step, module, text, token, feature): the two passes of
the gradient cache, recomputation under checkpointing, any chunking and any number of ranks agree
by construction, and there is no random state to save.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Odd constants of the 32-bit finaliser "lowbias32" (Chris Wellons, public domain).
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)


@dataclass
class DropoutKeys:
    """What the modules of one model read before each forward; set by the engine."""

    text_B: Tensor | None = None
    """Key of each text of the chunk [B], int64; the same text has the same key everywhere."""
    position_B: Tensor | None = None
    """Where activations are packed [1, B, ...], one row per token: its position in its text [B],
    int64; text_B is then the key of each token's text."""
    step_key: int = 0
    """Seed and step, mixed."""


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int32 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Scramble int32 values so that neighbours become independent; wraps on overflow."""
    x = (x ^ _shift_right(x, 16)) * _MULTIPLIERS[0]
    x = (x ^ _shift_right(x, 15)) * _MULTIPLIERS[1]
    return x ^ _shift_right(x, 16)


def to_int32(value: int) -> int:
    """The low 32 bits of an integer as a signed number."""
    return (value + 2**31) % 2**32 - 2**31


class KeyedDropout(nn.Module):
    """Drop-in for `nn.Dropout` on activations [B, ...]; see the module's docstring.

    Outside of training, and for inputs without a batch of known texts, it does nothing.
    """

    def __init__(self, p: float, index: int, keys: DropoutKeys) -> None:
        super().__init__()
        self.p = p
        self.index = index
        self.keys = keys

    def forward(self, x: Tensor) -> Tensor:
        """Zero each element with probability p and scale the rest by 1 / (1 - p) [B, ...]."""
        if not self.training or self.keys.text_B is None:
            return x
        return x * self._scale(x)

    def _scale(self, x: Tensor) -> Tensor:
        """0 or 1 / (1 - p) for each element of x [B, ...], dtype of x."""
        keys = self.keys
        assert keys.text_B is not None
        salt = to_int32(keys.step_key * 0x9E3779B1 + self.index * 0x85EBCA77)
        hashed = mix(keys.text_B.to(torch.int32) ^ salt)
        if keys.position_B is None:
            hashed, hashed_dims = hashed.view(-1, *[1] * (x.dim() - 1)), 1
        else:
            hashed = mix(hashed + keys.position_B.to(torch.int32))
            hashed, hashed_dims = hashed.view(1, -1, *[1] * (x.dim() - 2)), 2
        for dim in range(hashed_dims, x.dim()):
            place = torch.arange(x.shape[dim], device=x.device, dtype=torch.int32)
            # one axis of places, broadcast over the others
            hashed = mix(hashed + place.view(*[-1 if d == dim else 1 for d in range(x.dim())]))
        threshold = to_int32(round(self.p * 2**32) - 2**31)
        return (hashed >= threshold).to(x.dtype) / (1.0 - self.p)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"p={self.p}, index={self.index}"


def leave_attention_whole(model: nn.Module) -> bool:
    """Set dropout within attention to 0, whose masks belong to a chunk; says whether there was any.

    Modules of attention, by the names of transformers' classes, keep it as a number or as a dropout
    of their own; those of what comes out of attention are set to 0 with them.
    """
    found = False
    for module in model.modules():
        if "Attention" not in type(module).__name__:
            continue
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                found = True
        for child in module.children():
            if isinstance(child, KeyedDropout | nn.Dropout) and child.p > 0:
                child.p, found = 0.0, True
    return found


def key_dropouts(model: nn.Module) -> DropoutKeys:
    """Replace every active `nn.Dropout` of a model by a `KeyedDropout`; return the shared keys."""
    keys = DropoutKeys()
    index = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and child.p > 0:
                setattr(parent, name, KeyedDropout(child.p, index, keys))
                index += 1
    return keys
