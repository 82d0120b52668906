"""From token states to one pooled state per text; it knows no models and does not normalise.

Letters: B texts, L tokens, H hidden size. Padding is on the right.
"""

import torch
from torch import Tensor

from trainer.recipe.schema import Pooling


def pool(hidden_BLH: Tensor, lengths_B: Tensor, prompt_lengths_B: Tensor, how: Pooling) -> Tensor:
    """One pooled state per text.

    Args:
        hidden_BLH: token states [B, L, H], any float dtype; text i fills the first lengths_B[i].
        lengths_B: real tokens of each text [B], int64, at least 1.
        prompt_lengths_B: leading tokens that a mean leaves out [B], int64, less than lengths_B.
        how: `last` real token, `mean` of real tokens, `weighted_mean` of them, or the first token
            (`cls`). Token i of a text weighs i, counted from 1; where the prompt is left out, the
            others keep their weights.

    Returns:
        Pooled states [B, H], float32.
    Collective: no.
    Reference: Muennighoff 2022, arXiv:2202.08904, eq. 2, for `weighted_mean`; which tokens weigh
        what behind a prompt is the rule of sentence-transformers' `weightedmean`.
    """
    if how == "last":
        rows = torch.arange(hidden_BLH.shape[0], device=hidden_BLH.device)
        return hidden_BLH[rows, lengths_B - 1].float()
    if how == "cls":
        return hidden_BLH[:, 0].float()
    position_L = torch.arange(hidden_BLH.shape[1], device=hidden_BLH.device)
    in_text_BL = (position_L < lengths_B[:, None]) & (position_L >= prompt_lengths_B[:, None])
    weight_BL = in_text_BL.float()
    if how == "weighted_mean":
        weight_BL = weight_BL * (position_L + 1)
    weight_BL = weight_BL / weight_BL.sum(dim=1, keepdim=True)
    # [B, 1, L] @ [B, L, H] -> [B, H]
    return (weight_BL[:, None] @ hidden_BLH.float()).squeeze(1)
