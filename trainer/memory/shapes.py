"""Sizes of a backbone from its config alone: parameters, and what a token costs in each layer.

The model is built on the meta device, where nothing has storage; it must not load weights.
"""

import copy
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import nn
from transformers import AutoModel, PretrainedConfig

from trainer.errors import TrainerError
from trainer.memory.activations import META, ChunkMemory, measure_chunk, measure_layer, register
from trainer.model.adapters import add_lora
from trainer.model.backbone import DTYPES
from trainer.model.embedder import Embedder
from trainer.model.layer_major import decoder_of, supports_layer_major
from trainer.model.token_rows import with_placeholders
from trainer.recipe.resolve import longest_text, uses_middle_layer
from trainer.recipe.schema import ModelRecipe, Recipe

FEW_TEXTS, MANY_TEXTS = 4, 8
"""Texts of two trials, from which a line through their sizes follows."""
FEW_LAYERS, MANY_LAYERS = 3, 4
"""Layers of two trials, of which the last one of each may differ from the others."""
REPLACED = ".modules_to_save."
"""In the names of peft's copies of modules that are trained whole."""


class PlanError(TrainerError):
    """A backbone cannot be tried without weights."""


@dataclass(frozen=True, kw_only=True)
class LinearBytes:
    """Bytes that grow with the tokens of a chunk."""

    fixed: float
    """Whatever the tokens: gradients of a weight on their way."""
    per_token: float
    """Of each token."""

    def __call__(self, tokens: int) -> int:
        """Bytes for so many tokens."""
        return round(max(0.0, self.fixed) + self.per_token * tokens)


NOTHING = LinearBytes(fixed=0, per_token=0)
"""No bytes for any token."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a backbone."""

    num_parameters: int
    """P, adapters included."""
    num_trainable: int
    """T: P, or those of the adapters."""
    numels: Mapping[int, int]
    """How many parameters there are of each number of elements; shows which stay gathered."""
    layer_parameters: int
    """Parameters of the largest repeated block."""
    layer_trainable: int
    """Those of them that are trained."""
    embedding_parameters: int
    """Of the largest table of embeddings."""
    embedding_trained: bool
    """Whether that table is trained."""
    num_layers: int
    """Repeated blocks."""
    hidden_size: int
    """Elements of a token's hidden state."""
    vector_size: int
    """Elements of a vector: the same without a projection."""
    is_layered: bool
    """Whether chunks can run layer by layer, as `gather: layer` has them."""
    graph: LinearBytes
    """What a chunk leaves for its backward pass, checkpointed or not as the recipe says."""
    backward: LinearBytes
    """What the backward pass holds at its start on top of that."""
    layer: LinearBytes
    """Forward and backward of one layer alone; 0 where `is_layered` is false."""
    layer_graph: LinearBytes
    """What one layer leaves for its backward pass besides its input and its output; likewise."""
    teacher_size: int = 0
    """Size of a teacher's vectors, to which a trained layer brings the model's; 0: none does."""

    @property
    def teacher_parameters(self) -> int:
        """Parameters of that layer, which are in checkpoints and in no export."""
        return self.vector_size * self.teacher_size


def measure_model(
    config: PretrainedConfig, recipe: Recipe, *, teacher_size: int | None = None
) -> ModelShape:
    """Build the model without storage, count, and try a chunk.

    Args:
        config: as transformers reads it; no weights are needed.
        recipe: dtype, adapters, checkpointing, pooling and lengths.
        teacher_size: elements of the vectors that a layer brings the model's to; None: no layer.

    Raises:
        RecipeError: a target of the adapters that matches nothing.
        PlanError: the backbone's code needs real numbers.
    """
    with warnings.catch_warnings():
        # transformers and peft call each other by names that are changing
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return _measured(config, recipe, teacher_size or 0)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            first_line = (str(error).splitlines() or [""])[0]
            raise PlanError(
                f"memory plan: model type = {config.model_type}; expected one that runs on torch's "
                f"meta device ({type(error).__name__}: {first_line}). Its memory is not known."
            ) from error


def _measured(config: PretrainedConfig, recipe: Recipe, teacher_size: int) -> ModelShape:
    """See `measure_model`."""
    plain = replace(recipe.model, lora=None)
    backbone = _build(config, plain)
    num_layers = max(1, len(_blocks(backbone)))
    everywhere = in_every_layer(recipe.model)
    few, many = (
        _embedder(_with_layers(config, number), everywhere)
        for number in (min(FEW_LAYERS, num_layers), min(MANY_LAYERS, num_layers))
    )
    # adapters of all layers are slow to make: those of a few give the others
    repeats = 1 + max(0, num_layers - MANY_LAYERS)
    added, one_layer = _adapters(many.backbone), _adapters(many.backbone) - _adapters(few.backbone)
    added.update({size: count * (repeats - 1) for size, count in one_layer.items()})
    if everywhere != recipe.model:
        added = _adapters(_build(config, recipe.model))
    hidden_size = int(config.get_text_config().hidden_size)
    projection = recipe.model.projection
    vector_size = hidden_size if projection is None else projection.size
    dense = _projection(recipe.model, hidden_size)
    if teacher_size:
        dense[vector_size * teacher_size] += 1
    table = max(_tables(backbone), key=_count, default=None)
    layered = supports_layer_major(backbone)
    numels = Counter(parameter.numel() for parameter in backbone.parameters()) + added + dense
    length = _trial_length(config, recipe)
    layer, layer_graph = _one_layer(config, recipe, length) if layered else (NOTHING, NOTHING)
    graph, backward = _whole_model(few, many, recipe, num_layers=num_layers, length=length)
    return ModelShape(
        num_parameters=_total(numels),
        num_trainable=_total(dense)
        + (_trained(backbone) if recipe.model.lora is None else _total(added)),
        numels=numels,
        layer_parameters=_count(_block(backbone)) + _total(one_layer),
        layer_trainable=_trained(_block(backbone))
        if recipe.model.lora is None
        else _total(one_layer),
        embedding_parameters=0 if table is None else _count(table),
        embedding_trained=table is not None and _trains_table(many.backbone, recipe.model),
        num_layers=num_layers,
        hidden_size=hidden_size,
        vector_size=vector_size,
        is_layered=layered,
        graph=graph,
        backward=backward,
        layer=layer,
        layer_graph=layer_graph,
        teacher_size=teacher_size,
    )


def _whole_model(
    few: Embedder, many: Embedder, recipe: Recipe, *, num_layers: int, length: int
) -> tuple[LinearBytes, LinearBytes]:
    """Graph and backward of all layers, from models of a few.

    Their tables of embeddings are frozen: gradients of those do not grow with the tokens and are
    counted where they arise.
    """
    middle = uses_middle_layer(recipe)

    def trial(embedder: Embedder, num_texts: int) -> ChunkMemory:
        return measure_chunk(embedder, num_texts=num_texts, length=length, middle=middle)

    deep, further_layers = trial(many, MANY_TEXTS), max(0, num_layers - MANY_LAYERS)
    whole = deep.graph
    if further_layers:
        whole += further_layers * (deep.graph - trial(few, MANY_TEXTS).graph)
    rest = _line(lambda n: _beyond(deep if n == MANY_TEXTS else trial(many, n)), length)
    return LinearBytes(fixed=0, per_token=whole / (MANY_TEXTS * length)), rest


def _one_layer(
    config: PretrainedConfig, recipe: Recipe, length: int
) -> tuple[LinearBytes, LinearBytes]:
    """Forward and backward of a layer by itself, and the graph of one, without its borders."""
    plain = replace(in_every_layer(recipe.model), gradient_checkpointing=False)
    embedder = _embedder(_with_layers(config, 2), plain)
    text_bytes = length * config.get_text_config().hidden_size * DTYPES[plain.dtype].itemsize

    @cache
    def trial(num_texts: int) -> ChunkMemory:
        return measure_layer(embedder, num_texts=num_texts, length=length)

    peak = _line(lambda n: trial(n).peak, length)
    # input and output
    return peak, _line(lambda n: trial(n).graph - 2 * n * text_bytes, length)


def _line(size: Callable[[int], int], length: int) -> LinearBytes:
    """Through the sizes of two numbers of texts."""
    few, many = size(FEW_TEXTS), size(MANY_TEXTS)
    per_text = (many - few) / (MANY_TEXTS - FEW_TEXTS)
    return LinearBytes(fixed=many - per_text * MANY_TEXTS, per_token=per_text / length)


def _beyond(memory: ChunkMemory) -> int:
    """Peak of a trial over its graph."""
    return memory.peak - memory.graph


def _trial_length(config: PretrainedConfig, recipe: Recipe) -> int:
    """Tokens of the texts of a trial: the longest of a step that the model has places for."""
    places = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = longest_text(recipe)
    return longest if places is None else min(longest, int(places))


def _build(config: PretrainedConfig, recipe: ModelRecipe) -> nn.Module:
    """The backbone with its adapters, without storage."""
    with META:
        backbone: nn.Module = AutoModel.from_config(
            config,
            dtype=DTYPES[recipe.dtype],
            attn_implementation=register(),
            trust_remote_code=recipe.trust_remote_code,
        )
        pooler = getattr(backbone, "pooler", None)
        if isinstance(pooler, nn.Module):
            pooler.requires_grad_(False)
        if recipe.lora is None:
            return backbone
        return add_lora(backbone, with_placeholders(recipe.lora, backbone))


def _embedder(config: PretrainedConfig, recipe: ModelRecipe) -> Embedder:
    """The embedder of a trial, tables of embeddings frozen."""
    backbone = _build(config, recipe)
    for table in _tables(backbone):
        table.requires_grad_(False)
    if recipe.gradient_checkpointing:
        decoder_of(backbone).gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": True}
        )
    # bidirectional: trials are given a mask
    return Embedder(backbone, pooling=recipe.pooling, attention="bidirectional").train()


def _with_layers(config: PretrainedConfig, number: int) -> PretrainedConfig:
    """The config of the same model with fewer layers."""
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    text.num_hidden_layers = number
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = text.layer_types[:number]
    return shallow


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated layers: the longest list of modules in the model."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _block(model: nn.Module) -> nn.Module:
    """The largest of them."""
    return max(_blocks(model), key=_count, default=model)


def _tables(model: nn.Module) -> list[nn.Module]:
    """Tables of embeddings."""
    return [module for module in model.modules() if isinstance(module, nn.Embedding)]


def _adapters(backbone: nn.Module) -> Counter[int]:
    """How many parameters of each size peft has added; none to a plain backbone."""
    if not hasattr(backbone, "peft_config"):
        return Counter()
    # tables that are trained whole are frozen in a trial
    return Counter(
        parameter.numel()
        for name, parameter in backbone.named_parameters()
        if parameter.requires_grad or REPLACED in name
    )


def in_every_layer(recipe: ModelRecipe) -> ModelRecipe:
    """The model section with what it names of single layers named of all: a bound on each layer.

    Args:
        recipe: `lora` may name modules such as `layers.30.self_attn.q_proj`.
    """
    if recipe.lora is None:
        return recipe
    targets = recipe.lora.targets
    lora = replace(
        recipe.lora,
        targets=targets if isinstance(targets, str) else _without_layers(targets),
        modules_to_save=_without_layers(recipe.lora.modules_to_save),
    )
    return replace(recipe, lora=lora)


def _without_layers(names: Sequence[str]) -> tuple[str, ...]:
    """Names of modules without the layer that some stand in, each once."""
    return tuple(dict.fromkeys(re.sub(r"^(.*\.)?\d+\.", "", name) for name in names))


def _trains_table(backbone: nn.Module, recipe: ModelRecipe) -> bool:
    """Whether the table of embeddings is trained, and not only by adapters."""
    whole = (name for name, module in backbone.named_modules() if isinstance(module, nn.Embedding))
    return recipe.lora is None or any(REPLACED in f"{name}." for name in whole)


def _projection(recipe: ModelRecipe, hidden_size: int) -> Counter[int]:
    """How many parameters of each size the dense layer behind the pooling has."""
    layer = recipe.projection
    if layer is None:
        return Counter()
    return Counter([hidden_size * layer.size, *([layer.size] if layer.bias else [])])


def _total(numels: Mapping[int, int]) -> int:
    return sum(size * count for size, count in numels.items())


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _trained(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
