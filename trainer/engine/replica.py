"""A second copy of the model's code without hooks or weights, lent the engine's parameters.

It must be made before `deepspeed.initialize` registers its hooks.
"""

import contextlib
import copy
from collections.abc import Iterator

import deepspeed
import torch
from torch import Tensor, nn

from trainer.model.embedder import Embedder
from trainer.model.row_gradients import add_gradients_by_row


class Replica:
    """The embedder's structure with empty slots, filled from the engine for a while."""

    def __init__(self, embedder: Embedder) -> None:
        """Copy the module tree; parameters stay with the original.

        Args:
            embedder: whole or partitioned by `zero.Init`, before `deepspeed.initialize`.
        """
        self._parameters = list(embedder.parameters())
        # deepcopy finds each parameter in the memo, so no weight is copied
        memo: dict[int, object] = {id(p): _empty_like(p) for p in self._parameters}
        self._module = copy.deepcopy(embedder, memo)
        add_gradients_by_row(self._module)
        self._slots = [
            (slot, name, parameter, slot._parameters[name])
            for source, slot in zip(embedder.modules(), self._module.modules(), strict=True)
            for name, parameter in source._parameters.items()
            if parameter is not None
        ]
        self._leaves: dict[nn.Parameter, nn.Parameter] = {}

    @contextlib.contextmanager
    def gathered(self) -> Iterator[Embedder]:
        """The replica over full parameters; nested calls share one gathering.

        Collective: yes under ZeRO-3.
        """
        if self._leaves:
            yield self._module
            return
        with deepspeed.zero.GatheredParameters(self._parameters):
            self._leaves = {p: _leaf_over(p) for p in self._parameters}
            for slot, name, parameter, _ in self._slots:
                slot._parameters[name] = self._leaves[parameter]
            try:
                yield self._module
            finally:
                # a slot still filled would keep the full weights alive
                for slot, name, _, empty in self._slots:
                    slot._parameters[name] = empty
                self._leaves = {}

    def gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each trainable parameter with its full local gradient, zeros where none arrived."""
        for parameter, leaf in self._leaves.items():
            if parameter.requires_grad:
                gradient = leaf.grad
                leaf.grad = None
                yield parameter, torch.zeros_like(leaf) if gradient is None else gradient

    def forget_gradients(self) -> None:
        """Drop what backward passes have left since `gathered` began."""
        for leaf in self._leaves.values():
            leaf.grad = None

    def deliver(self, engine: deepspeed.DeepSpeedEngine) -> None:
        """Hand all gradients to the engine, which reduces them once; inside `gathered`.

        Collective: yes.
        """
        with engine.coalesce_grad_reduction():
            for parameter, gradient in self.gradients():
                parameter.grad_dtype = gradient.dtype
                parameter.grad = gradient


def _empty_like(parameter: nn.Parameter) -> nn.Parameter:
    """A stand-in without storage."""
    return nn.Parameter(
        torch.empty(0, dtype=parameter.dtype, device="meta"), requires_grad=parameter.requires_grad
    )


def _leaf_over(parameter: nn.Parameter) -> nn.Parameter:
    """A fresh leaf on the parameter's data whose gradient accumulates in float32."""
    leaf = nn.Parameter(parameter.data, requires_grad=parameter.requires_grad)
    if parameter.requires_grad:
        leaf.grad_dtype = torch.float32
    return leaf
