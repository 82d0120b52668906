"""From token states to one vector per text; it knows neither models nor recipes.

Letters: B texts, L tokens, H hidden size. Padding is on the right.
"""

import torch
from torch import Tensor
from torch.nn import functional

from trainer.recipe.schema import Pooling


def pool(hidden_BLH: Tensor, lengths_B: Tensor, prompt_lengths_B: Tensor, how: Pooling) -> Tensor:
    """One unit-norm vector per text.

    Args:
        hidden_BLH: token states [B, L, H], any float dtype; text i fills the first lengths_B[i].
        lengths_B: real tokens of each text [B], int64, at least 1.
        prompt_lengths_B: leading tokens that `mean` leaves out [B], int64, less than lengths_B.
        how: `last` real token, `mean` of real tokens, or the first token (`cls`).

    Returns:
        Vectors [B, H], float32, L2 norm 1.
    Collective: no.
    """
    if how == "last":
        rows = torch.arange(hidden_BLH.shape[0], device=hidden_BLH.device)
        vector_BH = hidden_BLH[rows, lengths_B - 1].float()
    elif how == "cls":
        vector_BH = hidden_BLH[:, 0].float()
    else:
        position_L = torch.arange(hidden_BLH.shape[1], device=hidden_BLH.device)
        in_text_BL = (position_L < lengths_B[:, None]) & (position_L >= prompt_lengths_B[:, None])
        weight_BL = in_text_BL.float() / in_text_BL.sum(dim=1, keepdim=True)
        # [B, 1, L] @ [B, L, H] -> [B, H]
        vector_BH = (weight_BL[:, None] @ hidden_BLH.float()).squeeze(1)
    return functional.normalize(vector_BH, dim=-1)
