"""Compare an unpacked folder with transformers' own reading of its GGUF file; it must not write."""

import gc
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from trainer.errors import CheckpointError

TEXTS = (
    "The capital of France is",
    "def area(radius: float) -> float:\n    return 3.14159 * radius**2",
    "In 2024, 1,234 texts had two  spaces\n\nor \u00fcnusual letters: \u4e2d\u6587.",
)
MOST_DIFFERENCE = 1e-5
"""Between two logits, which have no unit."""


def check_logits(source: Path, folder: Path, *, dtype: torch.dtype) -> float:
    """Compare token ids and logits of a few texts. The whole model is in memory, twice in turn.

    Args:
        source: the GGUF file.
        folder: unpacked from it.
        dtype: of the folder's weights; both models are rounded to it and compute in it.

    Returns:
        The largest difference between two logits.

    Raises:
        CheckpointError: if ids differ, or logits by more than `MOST_DIFFERENCE`.
    """
    place = {"gguf_file": source.name}
    theirs = AutoTokenizer.from_pretrained(source.parent, **place)
    ours = AutoTokenizer.from_pretrained(folder)
    ids = [_ids(text, theirs, ours, folder) for text in TEXTS]
    expected = _logits(
        AutoModelForCausalLM.from_pretrained(source.parent, **place, dtype=dtype), ids
    )
    gc.collect()
    found = _logits(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), ids)
    difference = max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))
    if not difference <= MOST_DIFFERENCE:
        raise CheckpointError(
            f"{source}: logits = {difference:.3g} from those of transformers' own reading; "
            f"expected at most {MOST_DIFFERENCE:g}. Take a release of gguf that transformers knows."
        )
    return difference


def _ids(
    text: str, theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase, folder: Path
) -> Tensor:
    """Token ids [1, L]."""
    expected, found = theirs(text)["input_ids"], ours(text)["input_ids"]
    if found != expected:
        raise CheckpointError(
            f"{folder}: token ids of {text!a} = {found}; expected {expected}, as transformers' own "
            "reading has them. Take another release of transformers."
        )
    return torch.tensor([found])


@torch.no_grad()
def _logits(model: nn.Module, ids: Sequence[Tensor]) -> list[Tensor]:
    """Logits [1, L, V] of each text, float32."""
    model = model.eval()
    return [model(input_ids=one).logits.float() for one in ids]
