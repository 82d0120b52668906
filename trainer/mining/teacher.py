"""A second model that scores pairs of a query and a passage: an embedder or a cross-encoder.

sentence-transformers is imported when a model is loaded. Letters: m pairs, n texts, D size.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import RecipeError
from trainer.recipe.model_path import PACKAGE, resolve_model_path

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder
    from torch import device

CROSS_ENCODER = "--cross-encoder"
"""Option that names one."""

Embed = Callable[[Sequence[str], str], Any]
"""From texts and their side (`query`, `passage`) to a tensor of vectors [n, D], norm 1."""
Score = Callable[[Sequence[str], Sequence[str], NDArray[np.int64]], NDArray[np.float32]]
"""From queries, passages and pairs of their numbers [m, 2] to a score of each pair [m]."""


def find_cross_encoder(path: str) -> str:
    """Where a cross-encoder lies.

    Args:
        path: folder, hub id, or `package:NAME/FOLDER`.

    Raises:
        RecipeError: if a folder has no config.json, or there is no such package.
    """
    if path.startswith(PACKAGE):
        path = resolve_model_path(path)
    folder = Path(path).expanduser()
    if folder.exists() and not (folder / "config.json").is_file():
        raise RecipeError(
            f"{folder}: config.json = missing; expected the folder of a cross-encoder. Give "
            f"another {CROSS_ENCODER}."
        )
    return str(folder) if folder.exists() else path


def cosines_of(embed: Embed) -> Score:
    """The cosines of an embedder, as scores of pairs."""

    def score(
        queries: Sequence[str], passages: Sequence[str], pairs: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        asked, answers = (
            embed(texts, side).float().cpu().numpy()
            for texts, side in ((queries, "query"), (passages, "passage"))
        )
        scores: NDArray[np.float32] = np.einsum(
            "md,md->m", asked[pairs[:, 0]], answers[pairs[:, 1]]
        )
        return scores

    return score


def load_cross_encoder(path: str, where: "device") -> Score:
    """The logits of a cross-encoder with one label.

    Args:
        path: as `find_cross_encoder` takes it.
        where: it computes.

    Raises:
        RecipeError: if there is no such model, it has several labels, or its files lack weights.
    """
    model = _cross_encoder(find_cross_encoder(path)).to(where)

    def score(
        queries: Sequence[str], passages: Sequence[str], pairs: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        from torch.nn import Identity

        texts = [(queries[query], passages[passage]) for query, passage in pairs.tolist()]
        # a sigmoid would leave no differences among those that are surely right
        logits = model.predict(texts, activation_fn=Identity(), show_progress_bar=False)
        return np.asarray(logits, np.float32).reshape(len(texts))

    return score


def _cross_encoder(path: str) -> "CrossEncoder":
    from sentence_transformers import CrossEncoder

    from trainer.evaluation.exported_weights import refuse_random

    try:
        model = CrossEncoder(path)
    except Exception as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"{CROSS_ENCODER}: {path} = not loaded ({problem}); expected the folder or hub id of "
            "a cross-encoder. Check the path and its files."
        ) from error
    if model.num_labels != 1:
        raise RecipeError(
            f"{CROSS_ENCODER}: {path} = a model with {model.num_labels} labels; expected 1, a "
            "score of how well a passage answers a query. Give another."
        )
    refuse_random(model, path, option=CROSS_ENCODER)
    return model
