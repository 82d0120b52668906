"""Trained tokens: some rows of a frozen embedding table, as peft's `trainable_token_indices`.

peft writes the rows into a copy of the whole table at each forward, and its gradient is a table of
full size. Here the tokens of a chunk are looked up in the table and in the few rows. It must not
know the engine or tokenizers.

Letters: V rows of the table, R trained ones, H hidden size.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import deepspeed
import torch
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import set_additional_trainable_modules
from torch import Tensor, nn

from trainer.errors import RecipeError
from trainer.recipe.schema import LoraRecipe

KEY = "model.lora.trainable_tokens"


class TokenRows(TrainableTokensLayer):
    """peft's layer, whose forward reads as many rows as there are tokens."""

    def keep_places(self, adapter: str) -> None:
        """Note where each id's row is [V], int64; -1 for an id that is not trained."""
        table = self.get_base_layer()
        place_V = torch.full((table.num_embeddings,), -1, device=table.weight.device)
        ids_R = torch.tensor(self.token_indices[adapter], device=place_V.device)
        place_V[ids_R] = torch.arange(len(ids_R), device=place_V.device)
        self.register_buffer("place_V", place_V, persistent=False)

    def forward(self, ids: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """States of ids [..., H]."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            states: Tensor = super().forward(ids, *arguments, **options)
            return states
        states = self.base_layer(ids, *arguments, **options)
        row = self.place_V[ids]
        row_RH = self.trainable_tokens_delta[self.active_adapters[0]].to(states.dtype)
        trained = nn.functional.embedding(row.clamp_min(0), row_RH)
        scale = self._get_embed_scale()
        if scale is not None:
            trained = trained * scale.to(states.dtype)
        return torch.where((row >= 0)[..., None], trained, states)


def add_token_rows(model: nn.Module, ids: Sequence[int], *, adapter: str, wide: bool) -> PeftModel:
    """Train some rows of a model's embedding table; the table stays as it is.

    Args:
        model: with adapters, which are trained too, or without; whole, or partitioned by
            `zero.Init`. What holds its adapters is changed in place.
        ids: rows of the table, from `check_tokens`.
        adapter: peft's name of the adapter.
        wide: whether the rows are float32 whatever the table's dtype.

    Collective: yes under ZeRO-3.
    """
    backbone: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    table = backbone.get_input_embeddings()
    # peft's own way to read rows of a sharded table works on CUDA alone
    with deepspeed.zero.GatheredParameters([table.weight], enabled=hasattr(table.weight, "ds_id")):
        wrapped = _added(model, backbone, list(ids), adapter)
    for layer in list(wrapped.modules()):
        if isinstance(layer, TrainableTokensLayer):
            if wide:
                delta = layer.trainable_tokens_delta
                delta[adapter] = nn.Parameter(delta[adapter].detach().float())
            if _is_ordinary(table):
                layer.__class__ = TokenRows
                layer.keep_places(adapter)
    return wrapped


def _added(model: nn.Module, backbone: Any, ids: list[int], adapter: str) -> PeftModel:
    """The model with peft's layers, beside its adapters or alone."""
    if isinstance(model, PeftModel):
        config = LoraConfig(trainable_token_indices=ids)
        set_additional_trainable_modules(backbone, config, {}, adapter)
        model.peft_config[adapter].trainable_token_indices = ids
        return model
    named = [name for name, one in backbone.named_modules() if one is input_table(backbone)]
    alone = TrainableTokensConfig(
        token_indices=ids, target_modules=named, task_type="FEATURE_EXTRACTION"
    )
    wrapped = get_peft_model(backbone, alone, adapter_name=adapter, autocast_adapter_dtype=False)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def trained_id(model: nn.Module) -> int:
    """The id of a token through whose state gradients reach all that is trained.

    Args:
        model: with or without adapters.
    """
    layers = [one for one in model.modules() if isinstance(one, TrainableTokensLayer)]
    ids = [number for one in layers for rows in one.token_indices.values() for number in rows]
    return ids[0] if ids else 1


def input_table(backbone: nn.Module) -> nn.Embedding | None:
    """The table that token ids are looked up in; None where there is none."""
    model: Any = backbone
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return table if isinstance(table, nn.Embedding) else None


def check_tokens(
    backbone: nn.Module, recipe: LoraRecipe, adapted: Mapping[str, nn.Module], whole: Sequence[str]
) -> None:
    """Refuse tokens that cannot be trained beside what else is; texts are left to the tokenizer.

    Args:
        backbone: whole, partitioned, or on the meta device; without adapters.
        recipe: its `trainable_tokens`.
        adapted: modules with an adapter, by name.
        whole: names of modules that are trained whole.

    Raises:
        RecipeError: an id that the table lacks, or whose row gets no gradient; a table that is
            adapted or trained whole; or a model without one.
    """
    if not recipe.trainable_tokens:
        return
    table, shown = input_table(backbone), ", ".join(map(str, recipe.trainable_tokens))
    start = f"recipe: {KEY} = {shown:.60}; expected"
    if table is None:
        raise RecipeError(f"{start} none, as the model has no table of embeddings. Remove it.")
    name = next(name for name, module in backbone.named_modules() if module is table)
    both = "targets" if name in adapted else None
    if any(f"{name}.".startswith(f"{one}.") for one in whole):
        both = "modules_to_save"
    if both is not None:
        raise RecipeError(
            f"{start} none beside model.lora.{both}, which train {name} already. Remove it from "
            "one of the two."
        )
    for token in recipe.trainable_tokens:
        check_id(token, token, table.num_embeddings, table.padding_idx)


def check_id(token: str | int, number: str | int, num_ids: int, padding: int | None) -> None:
    """Refuse a token that has no row, or whose row gets no gradient.

    Args:
        token: as the recipe has it.
        number: its id, or a text whose id is not known yet.
        num_ids: rows of the table.
        padding: id of the row that is all padding; None where there is none.

    Raises:
        RecipeError: naming it.
    """
    if isinstance(number, str):
        return
    if not 0 <= number < num_ids:
        raise RecipeError(
            f"recipe: {KEY} = {token} (id {number}); expected ids of 0 to {num_ids - 1}, the rows "
            "of the model's table of embeddings. Correct it."
        )
    if number == padding:
        raise RecipeError(
            f"recipe: {KEY} = {token} (id {number}); expected tokens whose rows get gradients: "
            "this is padding by the model's config. Remove it."
        )


def with_placeholders(recipe: LoraRecipe, backbone: nn.Module) -> LoraRecipe:
    """Adapters with some id for each token that is named by its text: as large, to be measured.

    Args:
        recipe: `trainable_tokens` may hold texts.
        backbone: without adapters.
    """
    table = input_table(backbone)
    taken = {None if table is None else table.padding_idx, *recipe.trainable_tokens}
    free = (number for number in itertools.count() if number not in taken)
    ids = tuple(t if isinstance(t, int) else next(free) for t in recipe.trainable_tokens)
    return replace(recipe, trainable_tokens=ids)


def _is_ordinary(table: nn.Embedding) -> bool:
    """Whether a row depends on nothing but its id."""
    return table.max_norm is None and not table.scale_grad_by_freq and not table.sparse
