"""The last layer's MLP, run on the pooled tokens alone.

With last-token pooling nothing reads what the last MLP makes of the other tokens: after it come
only operations on each token by itself. Values and gradients stay the same; one layer of all saves
two thirds of its work and the activations that go with it. In training alone: outside of it, who
calls the backbone gets all tokens. It must not touch any other layer.

Letters: B texts, L tokens, T packed tokens, H hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.model.dropout import DropoutKeys

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""What a Llama-style MLP consists of, by which it is known."""


@dataclass
class PooledTokens:
    """Where the pooled token of each text lies; set before each forward and each backward."""

    row_B: Tensor | None = None
    """Row of the activations [B], int64; None lets all tokens through."""
    column_B: Tensor | None = None
    """Place in that row [B], int64."""
    text_B: Tensor | None = None
    """Key of each text [B], int64; keys dropout."""


class PooledMlp(nn.Module):
    """Mixin before an MLP's class; in training, zeros stand in for what is not computed."""

    pooled: PooledTokens
    keys: DropoutKeys

    def forward(self, hidden: Tensor) -> Tensor:
        """The MLP of the pooled tokens, 0 for all others, [B, L, H] or [1, T, H]."""
        row, column = self.pooled.row_B, self.pooled.column_B
        if row is None or not self.training:
            return super().forward(hidden)
        # [B, H] -> [B, 1, H]
        chosen = hidden[row, column][:, None]
        # of the packed form, dropout would expect a key for each token
        text_B, position_B = self.keys.text_B, self.keys.position_B
        self.keys.text_B, self.keys.position_B = self.pooled.text_B, None
        output = super().forward(chosen)
        self.keys.text_B, self.keys.position_B = text_B, position_B
        return torch.zeros_like(hidden).index_put((row, column), output[:, 0])


def narrow_last_mlp(backbone: nn.Module, keys: DropoutKeys) -> PooledTokens | None:
    """Change the class of the last layer's MLP, in place; names of parameters stay.

    Args:
        backbone: a model without a head; peft may have wrapped its linear maps.
        keys: of the backbone's dropouts.

    Returns:
        Where to say which tokens are pooled; None where the backbone has no Llama-style MLP.
    """
    mlp = _last_mlp(backbone)
    if mlp is None:
        return None
    pooled = PooledTokens()
    mlp.__class__ = type(f"Pooled{type(mlp).__name__}", (PooledMlp, type(mlp)), {})
    mlp.pooled, mlp.keys = pooled, keys  # type: ignore[assignment]
    return pooled


def _last_mlp(backbone: nn.Module) -> nn.Module | None:
    """The MLP of the last decoder layer, if it is one that is known to be position-wise."""
    for module in backbone.modules():
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            mlp = getattr(layers[-1], "mlp", None)
            known = all(isinstance(getattr(mlp, name, None), nn.Module) for name in PROJECTIONS)
            return mlp if known else None
    return None
