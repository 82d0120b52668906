"""The small files that make a folder of weights a loadable embedder; it writes no weights.

The sentence-transformers files keep the names that every release of that library reads.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken

from trainer.checkpoint.json_files import read_object, save_tokenizer, write_json
from trainer.export.complete import CONFIG, complete_folder
from trainer.export.dims import with_dims
from trainer.export.prompts import prompts_of
from trainer.export.sentence_files import OLDER_TYPES
from trainer.model.projection import dense_config
from trainer.recipe.schema import MEANS, Pooling, ProjectionRecipe, Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

POOLING_KEYS: dict[Pooling, str] = {
    "last": "pooling_mode_lasttoken",
    "mean": "pooling_mode_mean_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "cls": "pooling_mode_cls_token",
}
"""The recipe's word for a pooling and the key of sentence-transformers."""

DENSE_FOLDER = "2_Dense"
"""Where the dense layer behind the pooling lies."""


def modules_of(projection: ProjectionRecipe | None) -> list[dict[str, object]]:
    """Content of modules.json: backbone, pooling, the dense layer if there is one, unit norm."""
    kinds = ["Transformer", "Pooling", *(["Dense"] if projection else []), "Normalize"]
    return [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": OLDER_TYPES + kind,
        }
        for number, kind in enumerate(kinds)
    ]


def max_tokens(recipe: Recipe) -> int:
    """Longest text of the exported model, tokens with prompt and end token."""
    longest = max(recipe.data.query_max_tokens, recipe.data.passage_max_tokens)
    return longest if recipe.export.max_tokens is None else recipe.export.max_tokens


def write_embedder_files(
    folder: Path,
    recipe: Recipe,
    *,
    config: "PretrainedConfig",
    tokenizer: "PreTrainedTokenizerFast",
    base: Path | None = None,
    architecture: str | None = None,
) -> None:
    """Write config, tokenizer, pooling, projection, normalisation, prompts and maximum length.

    Args:
        folder: exists.
        recipe: pooling, prompts, limits and prefixes.
        config: of the backbone; its size is that of pooled states. It stays as it is.
        tokenizer: the one that the trainer used; it stays as it is.
        base: folder of the model that was trained, for its own settings and its licence; None
            where it is not on this machine.
        architecture: name of the backbone's class; None for what the config says.
    """
    text_config = config.get_text_config()
    written = copy.deepcopy(config)
    if architecture is not None:
        written.architectures = [architecture]
    written.save_pretrained(folder)
    _allow_dims(folder / CONFIG, recipe)
    saved = padding_copy(tokenizer, num_rows=int(text_config.vocab_size))
    saved.model_max_length = max_tokens(recipe)
    save_tokenizer(saved, folder)
    size, modules = int(text_config.hidden_size), modules_of(recipe.model.projection)
    pooling = {key: name == recipe.model.pooling for name, key in POOLING_KEYS.items()}
    for name, content in {
        "modules.json": modules,
        "sentence_bert_config.json": {
            "max_seq_length": max_tokens(recipe),
            "do_lower_case": False,
        },
        "config_sentence_transformers.json": {
            "prompts": prompts_of(recipe),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": size,
            **pooling,
            "include_prompt": recipe.data.pool_instruction or recipe.model.pooling not in MEANS,
        },
    }.items():
        write_json(folder / name, content)
    if recipe.model.projection is not None:
        write_json(folder / DENSE_FOLDER / CONFIG, dense_config(recipe.model.projection, size))
    (folder / str(modules[-1]["path"])).mkdir(exist_ok=True)
    complete_folder(folder, base=base)


def _allow_dims(path: Path, recipe: Recipe) -> None:
    """Name the trained prefixes in config.json, and none that the base promises."""
    matryoshka = recipe.model.matryoshka
    old = read_object(path)
    new = with_dims(old, () if matryoshka is None else matryoshka.dims)
    if new != old:
        write_json(path, new)


def padding_copy(
    tokenizer: "PreTrainedTokenizerFast", *, num_rows: int
) -> "PreTrainedTokenizerFast":
    """A copy of a tokenizer that pads with a token which the embedding matrix has.

    The trainer pads no text, so that it needs no such token; those who load the export do, and any
    will do, as padding is masked. Texts give the same tokens as before.

    Args:
        tokenizer: with or without a token for padding.
        num_rows: of the embedding matrix.
    """
    copied = copy.deepcopy(tokenizer)
    if copied.pad_token_id is None or copied.pad_token_id >= num_rows:
        token = next(_padding_tokens(copied, num_rows))
        copied.add_special_tokens({"pad_token": token})
    return copied


def _padding_tokens(tokenizer: "PreTrainedTokenizerFast", num_rows: int) -> Iterator[AddedToken]:
    """Tokens that may pad, best first."""
    added = tokenizer.added_tokens_decoder
    special = [i for i in tokenizer.all_special_ids if i in added]
    # found in texts already, so that nothing changes by naming it again
    yield from (added[i] for i in dict.fromkeys([*special, *sorted(added)]) if i < num_rows)
    names = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = [name for name, i in names if i < num_rows]
    # a token that is named becomes one that is looked for in texts: take one that none holds as it
    # is written, because blanks are coded in it, or else one that stands for that word alone
    hidden = (name for name in words if tokenizer.tokenize(name) != [name])
    yield from (AddedToken(name, normalized=False) for name in hidden)
    yield from (AddedToken(name, normalized=False, single_word=True) for name in words)
