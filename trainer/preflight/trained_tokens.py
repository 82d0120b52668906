"""The ids of the tokens that a recipe trains; it must not load weights."""

import dataclasses
import difflib

from transformers import PreTrainedTokenizerFast

from trainer.errors import RecipeError
from trainer.model.token_rows import KEY, check_id
from trainer.recipe.adapter_folder import find_adapter_folder, tokens_of
from trainer.recipe.schema import Recipe


def with_token_ids(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, *, num_ids: int | None
) -> Recipe:
    """The recipe whose trained tokens are all named by their ids.

    Args:
        recipe: with `adapter` filled in.
        tokenizer: of the base.
        num_ids: rows of its table of embeddings, where they are known.

    Raises:
        RecipeError: a text that is no token, a token twice, one without a row, or others than
            those of an adapter that is trained on.
    """
    lora = recipe.model.lora
    if lora is None or not lora.trainable_tokens:
        return recipe
    ids: dict[int, str | int] = {}
    for token in lora.trainable_tokens:
        number = token if isinstance(token, int) else _id_of(token, tokenizer)
        check_id(token, number, len(tokenizer) if num_ids is None else num_ids, None)
        if number in ids:
            raise RecipeError(
                f"recipe: {KEY} = {ids[number]} and {token} (both id {number}); expected each "
                "token once. Remove one of the two."
            )
        ids[number] = token
    _check_same(recipe, tuple(ids))
    changed = dataclasses.replace(lora, trainable_tokens=tuple(ids))
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, lora=changed))


def _id_of(token: str, tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of a token as the tokenizer has it, or of a text that is one token."""
    known = tokenizer.get_vocab()
    if token in known:
        return int(known[token])
    made = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(made) == 1 and made[0] != tokenizer.unk_token_id:
        return int(made[0])
    parts = ", ".join(map(str, tokenizer.convert_ids_to_tokens(made)[:8]))
    near = difflib.get_close_matches(token, tokenizer.get_added_vocab(), n=1)
    advice = f"Did you mean {near[0]}?" if near else "Name tokens as the tokenizer has them."
    raise RecipeError(
        f"recipe: {KEY} = {token} (no token; as a text it is {parts or 'nothing'}); expected a "
        f"token of the model's tokenizer, or its id. {advice}"
    )


def _check_same(recipe: Recipe, ids: tuple[int, ...]) -> None:
    """Refuse other rows than those of the adapter whose training goes on."""
    found = find_adapter_folder(recipe.model.path)
    if found is None or recipe.model.adapter != "continue":
        return
    own = tokens_of(found)
    if own != ids:
        raise RecipeError(
            f"recipe: {KEY} = {_listed(ids)}; expected {_listed(own)}, as {found.tokens_key} of "
            f"{found.file}. Set it so, leave model.lora out, or set model.adapter to merge."
        )


def _listed(ids: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, ids[:8]))
    return f"{shown}, ... ({len(ids)})" if len(ids) > 8 else shown or "none"
