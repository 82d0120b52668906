"""An exported model that embeds: found, loaded and used with its own prompts.

sentence-transformers is imported when a model is loaded, so that mistakes in paths are reported
first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import RecipeError
from trainer.export.dims import dims_of
from trainer.recipe.eval_kinds import EVAL_KINDS
from trainer.recipe.kind import Side
from trainer.recipe.load import load_recipe
from trainer.recipe.model_path import resolve_model_path
from trainer.recipe.schema import EvalKindName
from trainer.run_folder.layout import RunFolder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Longest texts of each side, tokens; None: as the model says."""

    query: int | None = None
    passage: int | None = None


@dataclass(frozen=True)
class ExportedEmbedder:
    """Embeds with a sentence-transformers model and its own prompts."""

    model: "SentenceTransformer"
    kind: EvalKindName
    limits: Limits

    def __call__(self, texts: Sequence[str], *, side: Side) -> "Tensor":
        """Vectors [n, D], float32, norm 1."""
        limit = self.limits.query if side == "query" else self.limits.passage
        if limit is not None:
            self.model.max_seq_length = limit
        prompts = self.model.prompts
        named = (name for name in EVAL_KINDS[self.kind].prompts[side] if name in prompts)
        return self.model.encode(
            list(texts),
            prompt=prompts.get(next(named, "")),
            convert_to_tensor=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        ).float()


def find_model(path: str, *, option: str = "--model") -> tuple[str, Limits]:
    """Where the model lies and how long its texts are.

    Args:
        path: folder of a model or of a run, hub id, or `package:NAME/FOLDER`.
        option: which the user gave it with.

    Raises:
        RecipeError: if a folder holds neither a run with an exported model nor a model, or there is
            no such package.
    """
    if path.startswith("package:"):
        path = resolve_model_path(path)
    folder = Path(path).expanduser()
    if not folder.exists():
        return path, Limits()  # a hub id, or a mistake that the hub client reports
    if (folder / "modules.json").is_file():
        return str(folder), Limits()
    run = RunFolder(folder)
    if (run.model / "modules.json").is_file() and run.recipe.is_file():
        data = load_recipe(run.recipe).data
        limits = Limits(query=data.query_max_tokens, passage=data.passage_max_tokens)
        return str(run.model), limits
    raise RecipeError(
        f"{folder}: modules.json = missing; expected a sentence-transformers folder, or the "
        f"output folder of a finished run. Give another {option}."
    )


def trained_dims(path: str, model: "SentenceTransformer") -> tuple[int, ...]:
    """Sizes of the prefixes that a model was trained on, as far as it says so.

    Args:
        path: as `find_model` takes it; a run says so in its recipe.
        model: loaded from there; any other model says so in config.json.
    """
    recipe = RunFolder(Path(path).expanduser()).recipe
    if recipe.is_file():
        matryoshka = load_recipe(recipe).model.matryoshka
        return () if matryoshka is None else matryoshka.dims
    from transformers import PretrainedConfig

    # the first module, which need not be a transformer
    config = getattr(next(iter(model), None), "config", None)
    return dims_of(config.to_dict()) if isinstance(config, PretrainedConfig) else ()


def check_dims(dims: Sequence[int], model: "SentenceTransformer", path: str) -> None:
    """Refuse prefixes that are longer than the vectors.

    Args:
        dims: asked for with `--dims`.
        model: what embeds.
        path: of the model.

    Raises:
        RecipeError: naming the largest of them.
    """
    size = model.get_embedding_dimension()
    if size is not None and max(dims, default=0) > size:
        raise RecipeError(
            f"--dims: {max(dims)} = more than the vectors of {path} have; expected at most {size}. "
            "Leave it out."
        )


def load_model(path: str, *, option: str = "--model") -> "SentenceTransformer":
    """The model of a folder or hub id.

    Args:
        path: from `find_model`.
        option: which the user gave it with.

    Raises:
        RecipeError: if there is none, or its files lack some of its weights.
    """
    # Heavy: mistakes in paths and rows are reported before these are imported.
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    from trainer.evaluation.exported_weights import refuse_random
    from trainer.model.cpu_products import use_cpu_products

    disable_progress_bar()
    try:
        model = SentenceTransformer(path)
    except Exception as error:
        found = "not found" if isinstance(error, OSError) else "not loaded"
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"{option}: {path} = {found} ({problem}); expected a sentence-transformers folder or a "
            "hub id. Check the path and its files."
        ) from error
    refuse_random(model, path, option=option)
    use_cpu_products("auto", device_type=model.device.type)
    return model
