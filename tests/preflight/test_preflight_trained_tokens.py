"""Trained tokens are named by id or as the tokenizer has them; what is none is named."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from tests.support import corpus, tiny
from trainer.data.tokens import load_tokenizer
from trainer.errors import RecipeError
from trainer.preflight.trained_tokens import with_token_ids
from trainer.recipe.schema import LoraRecipe, ModelRecipe, Recipe

NUM_IDS = 97


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tiny.save_model(tiny.qwen3_config(), tmp_path_factory.mktemp("model"))
    corpus.save_tokenizer(folder)
    return load_tokenizer(
        str(folder), pooling="last", end_token=None, revision=None, trust_remote_code=False
    )


def recipe_of(*tokens: str | int, **model: Any) -> Recipe:
    lora = LoraRecipe(rank=4, trainable_tokens=tokens)
    settings = {"path": "unused", "lora": lora} | model
    return tiny.make_recipe(Path("unused"), model=ModelRecipe(**settings))


def test_texts_become_the_ids_of_their_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = (tokenizer.convert_tokens_to_ids(one) for one in ("w3", "w1"))
    asked = recipe_of("w3", 9, "w1")
    found = with_token_ids(asked, tokenizer, num_ids=NUM_IDS)
    assert found.model.lora == LoraRecipe(rank=4, trainable_tokens=(first, 9, second))
    assert dataclasses.replace(found, model=asked.model) == asked
    # a text that is one token counts, too
    (spaced,) = tokenizer(" w3", add_special_tokens=False)["input_ids"]
    made = with_token_ids(recipe_of(" w3"), tokenizer, num_ids=NUM_IDS).model.lora
    assert made is not None
    assert made.trainable_tokens == (spaced,)


def test_recipes_without_tokens_are_left_as_they_are(tokenizer: PreTrainedTokenizerFast) -> None:
    for recipe in (recipe_of(), recipe_of(lora=None)):
        assert with_token_ids(recipe, tokenizer, num_ids=NUM_IDS) is recipe


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("w1 w2",), r"trainable_tokens = w1 w2 \(no token; as a text it is w1, w2\); expected a "
                     r"token of the model's tokenizer, or its id\. Name tokens as"),
        (("<end",), r"trainable_tokens = <end \(no token; .*\. Did you mean <end>\?"),
        (("gone",), r"trainable_tokens = gone \(no token; as a text it is <unk>\); expected"),
        ((97,), r"trainable_tokens = 97 \(id 97\); expected ids of 0 to 96"),
        ((-2,), r"trainable_tokens = -2 \(id -2\); expected ids of 0 to 96"),
    ],
)  # fmt: skip
def test_what_is_no_token_is_named(
    tokenizer: PreTrainedTokenizerFast, tokens: tuple[str | int, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        with_token_ids(recipe_of(*tokens), tokenizer, num_ids=NUM_IDS)


def test_a_token_named_twice_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    number = tokenizer.convert_tokens_to_ids("w3")
    with pytest.raises(RecipeError, match=rf"= w3 and {number} \(both id {number}\); expected ea"):
        with_token_ids(recipe_of("w3", number), tokenizer, num_ids=NUM_IDS)


def test_an_adapter_goes_on_with_its_own_tokens(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    own = [9, tokenizer.convert_tokens_to_ids("w3")]
    settings = {
        "peft_type": "LORA", "base_model_name_or_path": "base", "trainable_token_indices": own,
    }  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    going_on = {"path": str(tmp_path), "adapter": "continue"}

    def recipe(*tokens: str | int) -> Recipe:
        return recipe_of(lora=LoraRecipe(trainable_tokens=tokens), **going_on)

    found = with_token_ids(recipe(9, "w3"), tokenizer, num_ids=NUM_IDS).model.lora
    assert found is not None
    assert found.trainable_tokens == tuple(own)
    # rows lie in the order of their tokens
    with pytest.raises(RecipeError, match=rf"expected 9, {own[1]}, as trainable_token_indices of"):
        with_token_ids(recipe("w3", 9), tokenizer, num_ids=NUM_IDS)
