"""Make the base model of each family as its publishers made it: `python -m clients.bases FOLDER`.

It runs under transformers 4, so that configs and tokenizers have the form of published ones; it
must import nothing of the trainer.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clients.families import FAMILIES, SHAPE, Family
from clients.vocabularies import SAVE, num_tokens

SPREAD = 0.08
"""Standard deviation of random weights: large enough for positions to weigh in the attention (at
another theta a vector's cosine is 0.98 or less), and small enough for the rounding of 8-bit weights
to stay small from layer to layer (0.9992 or more)."""


def save_base(folder: Path, family: Family) -> None:
    """Write tokenizer, config and random weights of a base model; what is there is kept.

    Args:
        folder: made where it is not there.
        family: what is made.
    """
    if (folder / "model.safetensors").exists():
        return
    import transformers
    from transformers import AutoConfig

    folder.mkdir(parents=True, exist_ok=True)
    SAVE[family.vocabulary](folder)
    config = AutoConfig.for_model(
        family.model_type,
        **(SHAPE | dict(family.settings)),
        **_token_ids(folder, family),
        vocab_size=-(-num_tokens(folder) // 32) * 32,
    )
    model = getattr(transformers, family.published)(config)
    randomize(model.parameters())
    model.save_pretrained(folder)


def _token_ids(folder: Path, family: Family) -> dict[str, Any]:
    """The config's ids of special tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    roles = ("bos", "eos", "pad", "cls", "sep")
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in roles}
    if family.end_tokens:
        ids["eos_token_id"] = tokenizer.convert_tokens_to_ids(list(family.end_tokens))
    named = ("cls", "sep") if family.model_type == "modernbert" else ()
    return {
        key: value
        for key, value in ids.items()
        if key.split("_", 1)[0] in ("bos", "eos", "pad", *named)
    }


def randomize(parameters: Iterable[Any]) -> None:
    """Set parameters to seeded random values; those of one dimension stay near what they are.

    Args:
        parameters: of a module of torch.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator) * SPREAD
        with torch.no_grad():
            parameter.copy_(noise + parameter if parameter.dim() == 1 else noise)


def main() -> None:
    """Make all bases in a folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for family in FAMILIES.values():
        save_base(folder / family.model_type, family)
        print(folder / family.model_type)


if __name__ == "__main__":
    main()
