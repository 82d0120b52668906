"""The small files that make a folder of weights a loadable embedder; it writes no weights.

The sentence-transformers files keep the names that every release of that library reads.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.prompts import prompt_prefix
from trainer.recipe.kind import Side
from trainer.recipe.schema import Pooling, Recipe, SourceRecipe
from trainer.recipe.tasks import TASKS

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

POOLING_KEYS: dict[Pooling, str] = {
    "last": "pooling_mode_lasttoken",
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
}
"""The recipe's word for a pooling and the key of sentence-transformers."""

MODULES = (
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {
        "idx": 2,
        "name": "2",
        "path": "2_Normalize",
        "type": "sentence_transformers.models.Normalize",
    },
)
"""Backbone, pooling, unit norm."""


def prompts_of(recipe: Recipe) -> dict[str, str]:
    """Prompts by name, each that of the first source whose task has it, such as `query`.

    Sources with other instructions add `<source>-query` and `<source>-document`.
    """
    prompts: dict[str, str] = {}
    for source in recipe.data.sources:
        query = prompt_prefix(recipe.data.prompt_template, source.query_instruction)
        passage = prompt_prefix(recipe.data.prompt_template, source.passage_instruction)
        for name, prompt in _named(source, query, passage).items():
            if prompts.setdefault(name, prompt) != prompt:
                prompts[f"{source.name}-{name}"] = prompt
    # retrieval clients ask for these two by name
    return {"query": "", "document": ""} | prompts


def _named(source: SourceRecipe, query: str, passage: str) -> dict[str, str]:
    """The prompts of a source under the names of its task."""
    of_side: dict[Side, str] = {"query": query, "passage": passage}
    return {name: of_side[side] for name, side in TASKS[source.task].prompts.items()}


def max_tokens(recipe: Recipe) -> int:
    """Longest text of the exported model: the longer of the recipe's two limits."""
    return max(recipe.data.query_max_tokens, recipe.data.passage_max_tokens)


def write_embedder_files(
    folder: Path,
    recipe: Recipe,
    *,
    config: "PretrainedConfig",
    tokenizer: "PreTrainedTokenizerFast",
) -> None:
    """Write config, tokenizer, pooling, normalisation, prompts and maximum length.

    Args:
        folder: exists.
        recipe: pooling, prompts and limits.
        config: of the backbone; its size becomes the vector size.
        tokenizer: the one that the trainer used.
    """
    config.save_pretrained(folder)
    tokenizer.model_max_length = max_tokens(recipe)
    tokenizer.save_pretrained(folder)
    size = int(config.hidden_size)
    pooling = {key: name == recipe.model.pooling for name, key in POOLING_KEYS.items()}
    for name, content in {
        "modules.json": list(MODULES),
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
            "include_prompt": recipe.data.pool_instruction or recipe.model.pooling != "mean",
        },
    }.items():
        write_json(folder / name, content)
    (folder / "2_Normalize").mkdir(exist_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Indented JSON with a final newline; makes the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
