"""Exported folders of tiny models, made by the trainer's own parts without a training run."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.support import corpus, tiny
from trainer.recipe.labels import LabelsRecipe
from trainer.recipe.schema import (
    DataRecipe,
    EvalRecipe,
    EvalSetRecipe,
    ModelRecipe,
    Recipe,
    SourceRecipe,
)

MAX_TOKENS = 40
"""Longest text of the exports."""
VOCABULARY = 320
ROPE = {"rope_type": "default", "rope_theta": 70.0}
"""Far from all defaults."""


def make_base(folder: Path, **changes: Any) -> Path:
    """A Qwen3 base with a byte-level tokenizer and positions of its own."""
    config = tiny.qwen3_config(
        vocab_size=VOCABULARY, eos_token_id=2, pad_token_id=0, rope_parameters=ROPE, **changes
    )
    tiny.save_model(config, folder)
    corpus.save_byte_tokenizer(folder, VOCABULARY)
    return folder


def recipe_for(base: Path, **model: Any) -> Recipe:
    """A recipe with prompts for both tasks."""
    sources = (
        SourceRecipe(name="ir", task="ir", path="unused", query_instruction="find: "),
        SourceRecipe(name="sts", task="sts", path="unused", query_instruction="same: "),
    )
    data = DataRecipe(sources=sources, query_max_tokens=24, passage_max_tokens=MAX_TOKENS)
    return tiny.make_recipe(base, model=ModelRecipe(path=str(base), **model), data=data)


def with_labels(recipe: Recipe, instruction: str) -> Recipe:
    """The same with a source of labelled texts."""
    labels = SourceRecipe(
        name="labels", task="labels", path="unused", query_instruction=instruction
    )
    return replace(
        recipe,
        data=replace(recipe.data, sources=(*recipe.data.sources, labels)),
        tasks={**recipe.tasks, "labels": LabelsRecipe(global_batch_size=8)},
    )


def make_export(
    base: Path,
    folder: Path,
    *,
    sets: Sequence[EvalSetRecipe] = (),
    labelled: str | None = None,
    **model: Any,
) -> Path:
    """A folder as the trainer writes it, with `parity.json`, from the base's own weights.

    Args:
        base: from `make_base`.
        folder: is made.
        sets: held-out sets of the recipe.
        labelled: instruction of a source of labelled texts; None: there is none.
        model: settings of the recipe's model section.
    """
    from trainer.data.tokens import load_tokenizer
    from trainer.export.complete import complete_folder, weights_format
    from trainer.export.embedder_files import write_embedder_files
    from trainer.export.from_folder import parity_of_folder
    from trainer.export.parity_file import write_parity
    from trainer.model.backbone import load_config
    from trainer.model.projection import make_projection

    recipe = replace(recipe_for(base, **model), eval=EvalRecipe(sets=tuple(sets)))
    recipe = recipe if labelled is None else with_labels(recipe, labelled)
    folder.mkdir(parents=True)
    write_embedder_files(
        folder,
        recipe,
        config=load_config(recipe.model, str(base)),
        tokenizer=load_tokenizer(str(base), pooling=recipe.model.pooling),
    )
    tensors = load_file(base / "model.safetensors")
    metadata = {"format": weights_format(folder)}
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    projection = make_projection(
        recipe.model, str(base), hidden_size=tiny.qwen3_config().hidden_size
    )
    if projection is not None:
        dense = {name: one.detach() for name, one in projection.named_parameters()}
        save_file(dense, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    complete_folder(folder, base=base)
    write_parity(folder, parity_of_folder(folder))
    return folder


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
