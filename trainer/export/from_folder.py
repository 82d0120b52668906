"""Make `parity.json` of an exported folder by the trainer's own code, on one process.

For merged models, which no process held as a whole, and for exports that have no such file. It
must not change the folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from trainer.data.tokens import load_tokenizer, make_encoder
from trainer.distributed.group import Ranks
from trainer.engine.start_adapter import PEFT
from trainer.errors import CheckpointError
from trainer.export.clients.folder import MODULES, POOLING, ExportFolder, read_files
from trainer.export.parity_file import Parity
from trainer.export.parity_make import ParityModel, make_parity
from trainer.model.adapters import ADAPTER
from trainer.model.backbone import DTYPES, attention_kernel, load_backbone, load_config
from trainer.model.embedder import Chunk, Embedder
from trainer.model.kinds import kind_of, skeleton_of
from trainer.model.projection import make_projection, recipe_of_dense
from trainer.model.weights import missing_tensors
from trainer.recipe.schema import DataRecipe, ModelRecipe, Pooling, ProjectionRecipe

CHUNK_TOKENS = 4096
"""Padded tokens of one forward."""
TRAINED: dict[str, Pooling] = {word: word for word in get_args(Pooling)}
"""Poolings that the trainer has."""


class PlainModel:
    """An embedder that no engine wraps."""

    shares_prefix = False
    """Its vectors are those that others are compared with."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder.eval()

    def embed(self, chunks: Sequence[Chunk]) -> Tensor:
        """Vectors of all texts of the chunks, in order [n, H], float32."""
        with torch.no_grad():
            return torch.cat([self.embedder(chunk)[0] for chunk in chunks if chunk.num_texts])


def parity_of_folder(path: Path) -> Parity:
    """Token ids and vectors of the texts by the model of a folder.

    Its files say how it was trained: pooling, attention, prompts and limit.

    Args:
        path: an exported folder.

    Raises:
        CheckpointError: no exported folder, a pooling that the trainer has not, a tokenizer that
            takes none of the texts, or an adapter without some of its weights.
        RecipeError: a model that the trainer cannot load.
        DataError: a tokenizer that the trainer cannot load.
    """
    folder = read_files(path)
    recipe = _recipe(folder)
    ranks = Ranks(rank=0, world_size=1, device=torch.device(_device()))
    backbone = _backbone(folder, recipe)
    size = int(backbone.config.hidden_size)
    embedder = Embedder(
        backbone,
        projection=make_projection(recipe, str(path), hidden_size=size),
        pooling=recipe.pooling,
        attention=recipe.attention,
    ).to(ranks.device)
    parity = make_parity(
        _made_of(folder, recipe), PlainModel(embedder), ranks, chunk_tokens=CHUNK_TOKENS
    )
    if parity is None:
        raise CheckpointError(
            f"{path}: tokenizer = no tokens for any text of parity.json; expected a tokenizer of "
            "texts. Check tokenizer.json."
        )
    return parity


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _made_of(folder: ExportFolder, recipe: ModelRecipe) -> ParityModel:
    """Prompts, tokenizer and limit of a folder."""
    limit = folder.sentence.get("max_seq_length")
    if not isinstance(limit, int):
        raise CheckpointError(
            f"{folder.path}/sentence_bert_config.json: max_seq_length = {limit}; expected a number "
            "of tokens. Write it, as sentence-transformers cuts texts there."
        )
    data = DataRecipe(
        sources=(), pool_instruction=folder.pooling.get("include_prompt") is not False
    )
    tokenizer = load_tokenizer(str(folder.path), pooling=recipe.pooling)
    return ParityModel(
        prompts=folder.prompts,
        encoder=make_encoder(tokenizer, data, pooling=recipe.pooling),
        max_tokens=limit,
        pooling=recipe.pooling,
        attention=recipe.attention,
        dtype=recipe.dtype,
    )


def _recipe(folder: ExportFolder) -> ModelRecipe:
    """The model section of a recipe that would have trained this folder."""
    pooling = TRAINED.get(folder.poolings[0]) if len(folder.poolings) == 1 else None
    if pooling is None:
        raise CheckpointError(
            f"{folder.path}/{POOLING}: pooling = {', '.join(folder.poolings) or 'none'}; expected "
            f"one of {', '.join(TRAINED)}. The trainer has no other pooling."
        )
    written = str(folder.config.get("dtype") or folder.config.get("torch_dtype"))
    draft = ModelRecipe(
        path=_weights_of(folder),
        pooling=pooling,
        attention="bidirectional" if folder.trained.opened else "causal",
        dtype="bfloat16" if written == "bfloat16" else "float32",
        projection=_projection(folder),
    )
    if kind_of(skeleton_of(load_config(draft, draft.path), draft)) == "encoder":
        return ModelRecipe(**{**vars(draft), "attention": "bidirectional"})
    return draft


def _projection(folder: ExportFolder) -> ProjectionRecipe | None:
    """The dense layer behind the pooling, as a recipe would ask for it."""
    if folder.dense is None:
        return None
    projection = recipe_of_dense(folder.dense)
    if projection is None:
        raise CheckpointError(
            f"{folder.path}/{MODULES}: dense layer = {dict(folder.dense)}; expected a size and "
            "activation Identity or Tanh. The trainer has no other layer behind the pooling."
        )
    return projection


def _weights_of(folder: ExportFolder) -> str:
    """The folder or hub id of the whole weights: an adapter names its base."""
    if folder.adapter is None:
        return str(folder.path)
    return str(folder.adapter.get("base_model_name_or_path"))


def _backbone(folder: ExportFolder, recipe: ModelRecipe) -> Any:
    """Base and adapter as the trainer has them, or whole weights."""
    skeleton = skeleton_of(load_config(recipe, recipe.path), recipe)
    kernel = attention_kernel(
        "auto", dtype=DTYPES[recipe.dtype], device_type=_device(), model=type(skeleton)
    )
    backbone: Any = load_backbone(recipe, recipe.path, kernel=kernel, zero3_config=None)
    if folder.adapter is not None:
        backbone = PeftModel.from_pretrained(backbone, str(folder.path), adapter_name=ADAPTER)
        _refuse_lost_weights(backbone, folder.path)
    return backbone


def _refuse_lost_weights(model: Any, path: Path) -> None:
    """Refuse an adapter's file that lacks tensors of its modules; peft gives them their start."""
    # only a second reading of the file says what was not found
    found = model.load_adapter(str(path), adapter_name=ADAPTER)
    missing, unknown = (
        [name.replace(f".{ADAPTER}", "").removeprefix(PEFT) for name in names]
        for names in (found.missing_keys, found.unexpected_keys)
    )
    if missing:
        num_expected = len(
            get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
        )
        raise CheckpointError(
            f"{path}: adapter = lacks weights; expected those of all modules that "
            f"adapter_config.json names: {missing_tensors(missing, num_expected, unknown)}"
        )
