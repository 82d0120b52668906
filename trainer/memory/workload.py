"""What the memory plan reads of a recipe, a model and a ds_config, worked out once.

Letters: P all parameters, T trained ones, W ranks, b bytes of `model.dtype`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.memory.loss_temporaries import num_cuts, temporary_bytes
from trainer.memory.shapes import ModelShape
from trainer.recipe.embedding_distillation import embedding_distillation, is_projected
from trainer.recipe.per_source import step_kinds
from trainer.recipe.resolve import longest_text, row_texts
from trainer.recipe.schema import Recipe
from trainer.recipe.tasks import TASKS

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
"""b."""
VECTOR_COPIES = 3
"""Copies of all embeddings on a rank: gathered values, their gradients, and those being reduced."""
TEACHER_COPIES = 5
"""Arrays of a rank's share of the texts beside a teacher's vectors: these, both sides at norm 1,
their products, and a gradient."""

GUIDE_COPIES = 3
"""Copies of a guide's vectors of all texts: as they come, at norm 1, and in the order of rows."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the formulas read, worked out once."""

    recipe: Recipe
    shape: ModelShape
    zero: Mapping[str, Any]
    """`zero_optimization` of the resolved dict."""
    world_size: int
    on_gpu: bool
    """Buffers that a CPU only promises are taken at once on a GPU; there AdamW is fused."""

    @property
    def stage(self) -> int:
        """ZeRO stage."""
        return int(self.zero["stage"])

    @property
    def width(self) -> int:
        """Bytes of `model.dtype`, b."""
        return DTYPE_BYTES[self.recipe.model.dtype]

    @property
    def gradients(self) -> int:
        """Float32 gradients of all that is trained, 4 T."""
        return 4 * self.shape.num_trainable

    @property
    def own(self) -> int:
        """A rank's share of a float32 copy of what is trained, 4 T / W."""
        return math.ceil(self.gradients / self.world_size)

    @property
    def bucket(self) -> int:
        """Elements of a full reduction bucket: no more than are trained."""
        return min(int(self.zero.get("reduce_bucket_size", 5e8)), self.shape.num_trainable)

    @property
    def bucket_taken(self) -> int:
        """Bytes of the bucket itself, in float32; a CPU gives only the pages that are written."""
        whole = int(self.zero.get("reduce_bucket_size", 5e8))
        return 4 * (whole if self.on_gpu else self.bucket)

    @property
    def share(self) -> int:
        """Tokens of a rank in a step, at most."""
        return math.ceil(max(step_tokens(self.recipe).values(), default=0) / self.world_size)

    @property
    def chunk(self) -> int:
        """Tokens of a chunk: whole texts of the greatest length, one at least."""
        longest = longest_text(self.recipe)
        texts = max(1, self.recipe.engine.max_tokens_per_chunk // longest)
        return min(texts * longest, max(longest, self.share))

    @property
    def embedding_gradient(self) -> int:
        """Bytes of a new gradient of the table of embeddings and of its float32 form."""
        if not self.shape.embedding_trained:
            return 0
        return (self.width + (4 if self.width < 4 else 0)) * self.shape.embedding_parameters


def step_tokens(recipe: Recipe) -> dict[str, int]:
    """Tokens of a step of each kind over all ranks if every text has its greatest length."""
    return {
        kind.name: kind.settings.global_batch_size
        * sum(number * tokens for number, tokens in row_texts(recipe, kind))
        for kind in step_kinds(recipe)
    }


def _cut_size(recipe: Recipe, shape: ModelShape) -> int:
    """Dimensions of all leading parts of a vector that are trained beside the whole."""
    matryoshka = recipe.model.matryoshka
    dims = () if matryoshka is None else matryoshka.dims
    return sum(dim for dim in dims if dim < shape.vector_size)


def loss_bytes(recipe: Recipe, shape: ModelShape, *, world_size: int) -> int:
    """Float32 embeddings of all ranks with their gradients, and what the loss holds besides."""
    sizes = [0]
    for kind in step_kinds(recipe):
        layers = len({"last", *(term.layer for term in TASKS[kind.task].terms.values())})
        texts_per_row = sum(number for number, _ in row_texts(recipe, kind))
        texts = kind.settings.global_batch_size * texts_per_row
        # the middle layer's vectors are not projected
        elements = shape.vector_size + (layers - 1) * shape.hidden_size
        taught_size = shape.vector_size
        if is_projected(kind.settings):
            taught_size = shape.teacher_size
            elements += taught_size
        vectors = VECTOR_COPIES * 4 * texts * elements
        cut = _cut_size(recipe, shape) * num_cuts(kind.settings)
        # a copy and its gradient
        vectors += 2 * 4 * layers * texts * cut
        if embedding_distillation(kind.settings) is not None:
            own = math.ceil(texts / world_size)
            vectors += TEACHER_COPIES * 4 * own * taught_size
        has_vectors = any(source.teacher_embeddings for source in kind.sources)
        if has_vectors and TASKS[kind.task].is_guided(kind.settings):
            # all texts, and again as queries and passages; of a guide as wide as the model
            vectors += GUIDE_COPIES * 4 * texts * shape.vector_size
        sizes.append(vectors + temporary_bytes(kind.task, kind.settings))
    return max(sizes)
