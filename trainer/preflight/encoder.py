"""A recipe's tokenizer, looked at before texts go through it; it must not load weights."""

from transformers import PreTrainedTokenizerFast

from trainer.data.tokens import TextEncoder, check_instructions, load_tokenizer, make_encoder
from trainer.model.limits import fit_tokenizer
from trainer.recipe.schema import Recipe


def open_encoder(
    recipe: Recipe, path: str, *, num_ids: int | None
) -> tuple[PreTrainedTokenizerFast, TextEncoder]:
    """The tokenizer of a base, and as the recipe uses it.

    Args:
        recipe: checked.
        path: folder or hub id of the base.
        num_ids: rows of its embedding matrix, where they are known.

    Raises:
        DataError: if there is no fast tokenizer, or an instruction leaves no room for text.
        RecipeError: if the tokenizer lacks what the recipe names.
    """
    tokenizer = load_tokenizer(
        path,
        pooling=recipe.model.pooling,
        end_token=recipe.model.end_token,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    fit_tokenizer(tokenizer, num_ids, recipe.model.path)
    encoder = make_encoder(tokenizer, recipe.data, pooling=recipe.model.pooling, num_ids=num_ids)
    check_instructions(encoder, recipe)
    return tokenizer, encoder
