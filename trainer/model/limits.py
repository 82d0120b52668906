"""How long a text may be and which token ids a model has rows for; it must not read weights."""

import json
import logging
import re
from typing import TYPE_CHECKING, Any

from torch import nn

from trainer.errors import RecipeError
from trainer.recipe.schema import Recipe
from trainer.recipe.sides import sides_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

TABLE = re.compile(
    r"(.*\.)?(wpe|positions_embed|embed_positions|pos_encoding|\w*position_embeddings?)"
)
"""Modules and buffers that hold a row for each position."""


def num_positions(skeleton: nn.Module) -> int | None:
    """Tokens of the longest text that a model has positions for; None where it has no table.

    Some tables keep rows for something else: OPT's first two, and in RoBERTa's kind those up to
    the padding token's.

    Args:
        skeleton: the model on any device.
    """
    config: Any = skeleton.config
    if hasattr(skeleton, "build_mpt_alibi_tensor"):
        return int(config.max_seq_len)
    sizes = [
        _rows(module)
        for name, module in skeleton.named_modules()
        if TABLE.fullmatch(name) and hasattr(module, "weight")
    ]
    buffers = skeleton.named_buffers()
    sizes += [len(table) for name, table in buffers if TABLE.fullmatch(name) and table.dim() > 1]
    if not sizes:
        return None
    # some tables are longer than the positions that the model's code counts
    stated = getattr(config, "max_position_embeddings", None)
    return min(sizes) if stated is None else min(*sizes, int(stated))


def _rows(table: Any) -> int:
    """Rows of a table of positions that texts can use."""
    padding = getattr(table, "padding_idx", None)
    reserved = getattr(table, "offset", 0) if padding is None else padding + 1
    return len(table.weight) - int(reserved)


def check_lengths(recipe: Recipe, skeleton: nn.Module) -> None:
    """Refuse limits on texts beyond the model's positions.

    Args:
        recipe: its limits count the instruction and the end token.
        skeleton: the model on any device.

    Raises:
        RecipeError: naming the key and the largest number.
    """
    most = num_positions(skeleton)
    if most is None:
        return
    data = recipe.data
    limits = {"query_max_tokens": data.query_max_tokens}
    if "passage" in sides_of(recipe):
        limits["passage_max_tokens"] = data.passage_max_tokens
    too_long = {key: value for key, value in limits.items() if value > most}
    if not too_long and (recipe.export.max_tokens or 0) > most:
        raise RecipeError(
            f"recipe: export.max_tokens = {recipe.export.max_tokens}; expected at most {most}, the "
            f"positions of the model. Set export.max_tokens={most}."
        )
    if too_long:
        keys, values = ", data.".join(too_long), ", ".join(map(str, too_long.values()))
        advice = " ".join(f"data.{key}={most}" for key in too_long)
        raise RecipeError(
            f"recipe: data.{keys} = {values}; expected at most {most}, the positions of the model. "
            f"Set {advice}."
        )


def check_dims(recipe: Recipe, skeleton: nn.Module) -> None:
    """Refuse leading parts that are longer than the model's vectors.

    Args:
        recipe: `model.matryoshka`.
        skeleton: the model on any device.

    Raises:
        RecipeError: naming the largest part and the size of a vector.
    """
    matryoshka = recipe.model.matryoshka
    if matryoshka is None:
        return
    config: Any = skeleton.config
    projection, longest = recipe.model.projection, matryoshka.dims[0]
    size = int(config.hidden_size) if projection is None else projection.size
    if longest > size:
        raise RecipeError(
            f"recipe: model.matryoshka.dims = {list(matryoshka.dims)}; expected at most {size}, "
            f"the size of the model's vectors. Start the list with {size}."
        )
    if longest < size:
        logger.warning(
            "model.matryoshka.dims: the whole vector, %d, is not among them: dimensions from %d on "
            "are not trained, and an export is only good when it is cut",
            size, longest,
        )  # fmt: skip


def num_token_ids(skeleton: nn.Module) -> int | None:
    """Rows of the embedding matrix; None for a model that has no such matrix."""
    model: Any = skeleton
    try:
        matrix = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    weight = getattr(matrix, "weight", None)
    return None if weight is None else len(weight)


def fit_tokenizer(tokenizer: "PreTrainedTokenizerFast", num_ids: int | None, place: str) -> None:
    """Refuse a tokenizer that makes ids which the matrix lacks; in place, give it a fitting pad.

    Padding is never embedded here, but who loads the exported model embeds it. A special token
    that no text needs may lie beyond the matrix; a text that names it is refused when it comes.

    Args:
        tokenizer: from `load_tokenizer`; its pad token may be changed.
        num_ids: from `num_token_ids`.
        place: `model.path` of the recipe.

    Raises:
        RecipeError: naming the first token that is beyond the matrix.
    """
    if num_ids is None:
        return
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= num_ids}
    if not beyond:
        return
    _fit_pad_token(tokenizer, num_ids)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    needed = {*tokenizer("a")["input_ids"]}
    if _has_unknown(tokenizer):
        needed.add(tokenizer.unk_token_id)
    for token, i in sorted(beyond.items(), key=lambda item: item[1]):
        if i in needed or i not in special:
            raise RecipeError(
                f"recipe: model.path = {place}: the tokenizer has id {i} ({token}); expected ids "
                f"below {num_ids}, the rows of the embedding matrix. Resize the matrix with "
                "transformers, or take the tokenizer that belongs to the model."
            )
    logger.warning(
        "model.path = %s: %d special tokens of the tokenizer have no row in the embedding matrix "
        "(first: %s); a text with one of them is refused",
        place, len(beyond), min(beyond, key=beyond.__getitem__),
    )  # fmt: skip


def _has_unknown(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether a text can have parts that the tokenizer does not know.

    Those that split texts into bytes know all, also where transformers gives them an unknown token.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return any(model.get(key) is not None for key in ("unk_token", "unk_id"))


def _fit_pad_token(tokenizer: "PreTrainedTokenizerFast", num_ids: int) -> None:
    """Take another token for padding where the matrix has no row for it."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id < num_ids:
        return
    others = (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, 0)
    fitting = next(i for i in others if i is not None and i < num_ids)
    was, tokenizer.pad_token = tokenizer.pad_token, tokenizer.convert_ids_to_tokens(fitting)
    logger.warning(
        "tokenizer: the pad token %s has no row in the embedding matrix; %s is used and exported",
        was, tokenizer.pad_token,
    )  # fmt: skip
