"""Export every form of the matrix with the trainer's own code, in one process and untrained.

Vectors of `parity.json` come from the model in memory, before anything is written. It must not
read an export back.
"""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerFast

from clients.bases import randomize
from clients.forms import FORMS, Form
from clients.families import FAMILIES
from trainer.checkpoint.base_identity import identify_base
from trainer.data.tokens import load_tokenizer
from trainer.distributed.group import Ranks, joined
from trainer.errors import RecipeError
from trainer.export.adapter import AdapterBase, check_exportable
from trainer.export.embedder_files import write_embedder_files
from trainer.export.folder import ExportRequest, export_model
from trainer.model.adapters import add_lora
from trainer.model.backbone import load_backbone, load_config
from trainer.recipe.ir import IrRecipe
from trainer.recipe.schema import (
    CheckpointRecipe,
    DataRecipe,
    LoraRecipe,
    ModelRecipe,
    Recipe,
    SourceRecipe,
    TrainRecipe,
)
from trainer.recipe.sts import StsRecipe

logger = logging.getLogger(__name__)

MAX_TOKENS = 64
"""Longest text; four windows."""
REFUSALS = "refused.json"
"""Forms that the trainer does not export, with its reasons."""


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
        checkpoint=CheckpointRecipe(
            export="adapter" if form.weights == "adapter" else "merged"
        ),
    )


def export_form(form: Form, base: Path, folder: Path, ranks: Ranks) -> None:
    """Export one form.

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
    identity = None
    if isinstance(backbone, PeftModel):
        identity = identify_base(str(base), str(base), ranks)
    request = ExportRequest(
        kind=recipe.checkpoint.export,
        base=identity and AdapterBase(place=str(base), revision=None, identity=identity),
        write_embedder=partial(
            write_embedder_files, recipe=recipe, config=backbone.config, tokenizer=tokenizer
        ),
    )
    parity = golden(recipe, backbone, tokenizer)
    export_model(backbone, folder, request, ranks)
    (folder / "parity.json").write_text(json.dumps(parity))


def open_backbone(recipe: Recipe) -> nn.Module:
    """The base as the trainer loads it, with adapters that are not zero where it trains some."""
    model = recipe.model
    backbone = load_backbone(model, model.path, kernel="sdpa", zero3_config=None)
    if model.lora is not None:
        backbone = add_lora(backbone, model.lora)
        randomize([p for p in backbone.parameters() if p.requires_grad])
    return backbone.eval()


TEXTS = [
    "A short text.", "a", "  ", "1234567 + 89.5 = 1234656.5", "naïve café Grüße", "東京と京都 🙂",
    "line one\nline two\tand a tab\n\n", "def f(x): return x ** 2  # comment", "<|endoftext|> </s> [SEP] <eos>",
    " ".join(["The quick brown fox jumps over the lazy dog and decimal numbers are json."] * 1),
    " ".join(["Return a list of the best matches which is the largest of the heap"] * 2),
    " ".join(["Return a list of the best matches which is the largest of the heap"] * 30),
]


def golden(recipe, backbone, tokenizer):
    from trainer.data.batch import Texts
    from trainer.data.tokens import make_encoder
    from trainer.data.prompts import prompt_prefix
    from trainer.engine.materialise import make_chunks
    from trainer.export.embedder_files import prompts_of
    from trainer.model.embedder import Embedder
    import numpy as np

    embedder = Embedder(backbone, pooling=recipe.model.pooling, attention=recipe.model.attention).eval()
    encoder = make_encoder(tokenizer, recipe.data, pooling=recipe.model.pooling)
    rows = []
    for name, prompt in [(None, ""), ('query', 'query: ')]:
        for text in TEXTS:
            encoded = encoder.encode([text], instruction=prompt, max_tokens=MAX_TOKENS)
            texts = Texts(token_ids=tuple(encoded.token_ids), num_prompt_tokens=np.array([encoded.num_prompt_tokens]))
            chunk = make_chunks(texts, [np.array([0])], key=0, device=torch.device("cpu"))[0]
            with torch.no_grad():
                (vector,) = embedder(chunk)
            rows.append(dict(prompt_name=name, prompt=prompt, text=text, token_ids=encoded.token_ids[0].tolist(), vector=vector[0].tolist()))
    return {"version": 1, "settings": dict(pooling=recipe.model.pooling, normalize=True, max_tokens=MAX_TOKENS, attention=recipe.model.attention), "texts": rows}


def make_exports(bases: Path, output: Path, wanted) -> None:
    """Export all forms.

    Args:
        bases: folders by model type, from `clients.bases`.
        output: gets a folder for each form.
        wanted: forms.
    """
    refused: dict[str, str] = {}
    output.mkdir(parents=True, exist_ok=True)
    with joined(5.0) as ranks:
        for form in wanted:
            if (output / form.name).exists():
                continue
            base = (bases / FAMILIES[form.family].model_type).resolve()
            try:
                export_form(form, base, output / form.name, ranks)
            except RecipeError as error:
                refused[form.name] = str(error)
            print(form.name, refused.get(form.name, ""), flush=True)
    (output / REFUSALS).write_text(json.dumps(refused, indent=2))


if __name__ == "__main__":
    import sys
    make_exports(Path(sys.argv[1]), Path(sys.argv[2]), [f for f in FORMS if not sys.argv[3:] or sys.argv[3] in f.name])
