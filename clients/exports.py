"""Export every form of the matrix by the trainer's own code: `python -m clients.exports --help`.

All in one process, and untrained. Vectors of `parity.json` come from the model in memory, before
anything is written. It must not read an export back.
"""

import argparse
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerFast

from clients.bases import randomize
from clients.families import FAMILIES
from clients.forms import FORMS, REFUSED, Form
from trainer.checkpoint.base_identity import identify_base
from trainer.data.tokens import load_tokenizer, make_encoder
from trainer.distributed.group import Ranks, joined
from trainer.errors import RecipeError
from trainer.export.adapter import AdapterBase, check_exportable
from trainer.export.embedder_files import max_tokens, write_embedder_files
from trainer.export.folder import ExportRequest, export_model
from trainer.export.from_folder import CHUNK_TOKENS, PlainModel
from trainer.export.parity_file import Parity, write_parity
from trainer.export.parity_make import ParityModel, make_parity
from trainer.export.prompts import prompts_of
from trainer.export.sentence_files import with_benchmark_names
from trainer.model.adapters import add_lora
from trainer.model.backbone import load_backbone, load_config
from trainer.model.embedder import Embedder
from trainer.recipe.checkpoint import CheckpointRecipe
from trainer.recipe.ir import IrRecipe
from trainer.recipe.schema import (
    DataRecipe,
    LoraRecipe,
    ModelRecipe,
    Recipe,
    SourceRecipe,
    TrainRecipe,
)
from trainer.recipe.sts import StsRecipe

MAX_TOKENS = 64
"""Longest text: four windows, and twice the positions at which Llama's scaling begins."""


def recipe_of(form: Form, base: Path) -> Recipe:
    """What a run would have been told.

    Args:
        form: what is exported.
        base: folder of its base.
    """
    sources = (
        SourceRecipe(name="questions", task="ir", path="unused", query_instruction="query: "),
        SourceRecipe(name="pairs", task="sts", path="unused", query_instruction="similar: "),
    )
    return Recipe(
        name=form.name,
        output_dir="unused",
        model=ModelRecipe(
            path=str(base),
            pooling=form.pooling,
            attention=form.attention,
            lora=None if form.weights == "full" else LoraRecipe(rank=4, alpha=8.0),
        ),
        data=DataRecipe(
            sources=sources, query_max_tokens=MAX_TOKENS, passage_max_tokens=MAX_TOKENS
        ),
        tasks={"ir": IrRecipe(global_batch_size=1), "sts": StsRecipe(global_batch_size=2)},
        train=TrainRecipe(max_steps=1),
        checkpoint=CheckpointRecipe(export="adapter" if form.weights == "adapter" else "merged"),
    )


def export_form(form: Form, base: Path, folder: Path, ranks: Ranks) -> None:
    """Export one form, with `parity.json`.

    Args:
        form: what is exported.
        base: folder of its base.
        folder: replaced if it exists.
        ranks: the only process.

    Raises:
        RecipeError: a form that the trainer does not export.
    """
    recipe = recipe_of(form, base)
    if recipe.model.lora is not None:
        check_exportable(recipe, load_config(recipe.model, str(base)))
    backbone = open_backbone(recipe)
    tokenizer = load_tokenizer(str(base), pooling=recipe.model.pooling)
    parity = parity_of(recipe, backbone, tokenizer, ranks)
    own: Any = backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone

    def write(place: Path) -> None:
        write_embedder_files(
            place,
            recipe,
            config=own.config,
            tokenizer=tokenizer,
            base=base,
            architecture=type(own).__name__,
        )
        write_parity(place, parity)

    request = ExportRequest(
        kind=recipe.checkpoint.export,
        base=None if own is backbone else _base_of(base, ranks),
        write_embedder=write,
    )
    export_model(backbone, folder, request, ranks)


def _base_of(base: Path, ranks: Ranks) -> AdapterBase:
    """What an adapter says of its base."""
    identity = identify_base(str(base), str(base), ranks)
    return AdapterBase(place=str(base), revision=None, identity=identity)


def open_backbone(recipe: Recipe) -> Any:
    """The base as the trainer loads it, with adapters that are not zero where it trains some."""
    model = recipe.model
    backbone = load_backbone(model, model.path, kernel="sdpa", zero3_config=None)
    if model.lora is not None:
        backbone = add_lora(backbone, model.lora)
        randomize(parameter for parameter in backbone.parameters() if parameter.requires_grad)
    return backbone.eval()


def parity_of(
    recipe: Recipe, backbone: nn.Module, tokenizer: PreTrainedTokenizerFast, ranks: Ranks
) -> Parity:
    """Ids and vectors of the model in memory."""
    model = recipe.model
    made_of = ParityModel(
        prompts=with_benchmark_names(prompts_of(recipe)),
        encoder=make_encoder(tokenizer, recipe.data, pooling=model.pooling),
        max_tokens=max_tokens(recipe),
        pooling=model.pooling,
        attention=model.attention,
        dtype=model.dtype,
    )
    embedder = Embedder(backbone, pooling=model.pooling, attention=model.attention)
    parity = make_parity(made_of, PlainModel(embedder), ranks, chunk_tokens=CHUNK_TOKENS)
    assert parity is not None, "the vocabularies have bytes or an unknown token for every text"
    return parity


def make_exports(bases: Path, output: Path, wanted: Collection[Form] = FORMS) -> None:
    """Export forms into a folder each; those that the trainer refuses go into one file.

    Args:
        bases: folders by model type, from `clients.bases`.
        output: replaced form by form.
        wanted: some of `FORMS`.
    """
    refused: dict[str, str] = {}
    output.mkdir(parents=True, exist_ok=True)
    with joined(timeout_minutes=5) as ranks:
        for form in wanted:
            base = (bases / FAMILIES[form.family].model_type).resolve()
            try:
                export_form(form, base, output / form.name, ranks)
            except RecipeError as error:
                refused[form.name] = str(error)
    (output / REFUSED).write_text(json.dumps(refused, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Export all forms."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("bases", type=Path, help="folder that clients.bases has written")
    parser.add_argument("output", type=Path, help="gets a folder for each form")
    arguments = parser.parse_args()
    make_exports(arguments.bases, arguments.output)


if __name__ == "__main__":
    main()
