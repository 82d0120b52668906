"""From a resolved recipe to a DeepSpeed engine and the passes that drive it."""

import logging
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from peft import PeftModel
from torch import nn

from trainer.distributed.group import Ranks
from trainer.engine.grad_cache import GradCache, StepGradCache
from trainer.engine.hooked_grad_cache import ChunkGradCache, LayerGradCache
from trainer.engine.materialise import torch_seed
from trainer.engine.replica import Replica
from trainer.engine.start_adapter import load_adapter
from trainer.errors import RecipeError
from trainer.model.adapters import add_lora
from trainer.model.backbone import DTYPES, attention_kernel, load_backbone, load_config
from trainer.model.cpu_products import use_cpu_products
from trainer.model.embedder import Embedder
from trainer.model.fused_kernels import use_fused_kernels
from trainer.model.kinds import skeleton_of
from trainer.model.layer_major import LayerMajorEmbedder, supports_layer_major
from trainer.model.prefix_support import share_where_exact
from trainer.model.projection import make_projection, make_teacher_layer, place_of_modules
from trainer.recipe.adapter_folder import find_adapter_folder
from trainer.recipe.deepspeed_file import offloads
from trainer.recipe.schema import AUTO, EngineRecipe, Gather, ModelRecipe, Recipe, TrainRecipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """What training needs of the model."""

    engine: deepspeed.DeepSpeedEngine
    """Owns parameters, gradients and optimizer; its module is an `Embedder`."""
    grad_cache: GradCache
    """Runs chunks through it."""
    gather: Gather
    """How the passes gather parameters; never `auto`."""
    replica: Replica
    """The same model without hooks."""

    @property
    def shares_in_training(self) -> bool:
        """Whether texts may share their first tokens in a step."""
        prefix = self.engine.module.prefix
        return prefix is not None and prefix.in_training


def build(
    recipe: Recipe,
    *,
    model_path: str,
    config: dict[str, Any],
    gather: Gather,
    ranks: Ranks,
    keep_graph_tokens: int | None = None,
    whole_graphs: bool = False,
    teacher_size: int | None = None,
) -> Built:
    """Load the model, sharded from the start under ZeRO-3, and wrap it.

    Args:
        recipe: as loaded.
        model_path: resolved `model.path`.
        config: the whole DeepSpeed dict.
        gather: `step`, `layer` or `chunk`.
        ranks: this process; its group is up.
        keep_graph_tokens: what is kept where the recipe leaves it to the memory plan; None: what
            costs no memory.
        whole_graphs: with `step`, run without `model.gradient_checkpointing` until memory runs out.
        teacher_size: elements of the vectors that a layer brings the model's to; None: no layer.

    Raises:
        RecipeError: the model cannot be loaded, or `gather: layer` does not suit it.
    Collective: yes.
    """
    keep = _kept_tokens(recipe.engine, gather, keep_graph_tokens)
    if gather == "step" or (gather == "layer" and not keep):
        config = _with_plain_linear(config)
    embedder = load_embedder(
        recipe, model_path=model_path, config=config, ranks=ranks, teacher_size=teacher_size
    )
    if recipe.engine.share_prefix == "auto":
        share_where_exact(embedder)
    replica = Replica(embedder)
    if gather == "layer":
        embedder = _layer_major(embedder, recipe)
    optimizer = make_optimizer(embedder, recipe.train, config, ranks)
    engine, *_ = deepspeed.initialize(model=embedder, optimizer=optimizer, config=config)
    if gather == "step":
        passes: GradCache = StepGradCache(
            engine, replica, keep_graph_tokens=keep, whole_graphs=whole_graphs
        )
    elif gather == "layer":
        passes = LayerGradCache(engine, keep_graph_tokens=keep)
    else:
        passes = ChunkGradCache(engine, keep_graph_tokens=keep)
    return Built(engine, passes, gather, replica)


def _kept_tokens(recipe: EngineRecipe, gather: Gather, planned: int | None) -> int:
    """The recipe's number, else the plan's, else what costs no memory.

    A chunk's graph is held at some time anyway, but one layer after another with `layer`.
    """
    found = recipe.keep_graph_tokens
    if found == AUTO:
        found = planned
    if found is not None:
        return found
    return 0 if gather == "layer" else recipe.max_tokens_per_chunk


def _with_plain_linear(config: dict[str, Any]) -> dict[str, Any]:
    """The DeepSpeed dict without ZeRO-3's own linear function, unless it says otherwise.

    That one keeps a forward's graph from holding gathered weights. A replica has them all anyway,
    and a layer run over all chunks without keeping graphs has its weights back before it is
    recomputed; it costs time for every chunk.
    """
    zero = config["zero_optimization"]
    if zero["stage"] != 3:
        return config
    return config | {"zero_optimization": {"memory_efficient_linear": False} | zero}


def load_embedder(
    recipe: Recipe,
    *,
    model_path: str,
    config: dict[str, Any],
    ranks: Ranks,
    teacher_size: int | None = None,
) -> Embedder:
    """The recipe's model: adapters, pooling, dense layers. Collective: yes under ZeRO-3."""
    stage3 = config["zero_optimization"]["stage"] == 3
    skeleton = skeleton_of(load_config(recipe.model, model_path), recipe.model)
    kernel = attention_kernel(
        recipe.engine.attention_kernel,
        dtype=DTYPES[recipe.model.dtype],
        device_type=ranks.device.type,
        model=type(skeleton),
    )
    # new adapter weights must not depend on what drew random numbers before
    torch.manual_seed(torch_seed(recipe.seed))
    backbone = load_backbone(
        recipe.model, model_path, kernel=kernel, zero3_config=config if stage3 else None
    )
    use_fused_kernels(backbone, choice=recipe.engine.kernels, device_type=ranks.device.type)
    use_cpu_products(recipe.engine.kernels, device_type=ranks.device.type)
    if recipe.model.lora is not None:
        torch.manual_seed(torch_seed(recipe.seed))
        backbone = add_lora(backbone, recipe.model.lora)
        _start_from(backbone, recipe.model)
    torch.manual_seed(torch_seed(recipe.seed))
    config_of: Any = backbone
    hidden_size = int(config_of.config.hidden_size)
    projection = make_projection(
        recipe.model, place_of_modules(recipe.model, model_path), hidden_size=hidden_size
    )
    teacher_layer = None
    if teacher_size is not None:
        size = hidden_size if projection is None else projection.size
        # drawn after the projection, so that the projection's start does not depend on it
        teacher_layer = make_teacher_layer(
            recipe.model, vector_size=size, teacher_size=teacher_size
        )
    return Embedder(
        backbone,
        projection=projection,
        teacher_layer=teacher_layer,
        pooling=recipe.model.pooling,
        attention=recipe.model.attention,
        packed=kernel == "flash_attention_2" and supports_layer_major(backbone),
    )


def _start_from(backbone: PeftModel, recipe: ModelRecipe) -> None:
    """Give adapters the weights of the folder that is trained on. Collective: as the caller."""
    found = find_adapter_folder(recipe.path)
    if found is not None and recipe.adapter == "continue":
        load_adapter(backbone, found.folder)


def _layer_major(embedder: Embedder, recipe: Recipe) -> LayerMajorEmbedder:
    """Turn the embedder layer-major where its backbone allows."""
    if not supports_layer_major(embedder.backbone):
        raise RecipeError(
            f"recipe: engine.gather = layer; expected a Llama-style decoder with full attention in "
            f"every layer, got {type(embedder.backbone).__name__}. Use `step` or `chunk`."
        )
    if recipe.model.dtype == "bfloat16":
        for parameter in embedder.parameters():
            if parameter.requires_grad:
                parameter.grad_dtype = torch.float32
    return LayerMajorEmbedder.adopt(embedder)


def make_optimizer(
    embedder: nn.Module, recipe: TrainRecipe, config: dict[str, Any], ranks: Ranks
) -> torch.optim.Optimizer:
    """AdamW or SGD over the trainable parameters; no decay on one-dimensional ones.

    The rate is set before each step from `trainer.engine.lr`.
    """
    trainable = [p for p in embedder.parameters() if p.requires_grad]
    matrices = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) > 1]
    others = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate)
    settings: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "betas": recipe.betas,
        "eps": recipe.epsilon,
    }
    if offloads(config, "offload_optimizer") and ranks.device.type == "cuda":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, **settings)
        return optimizer
    # in one pass over its state, also on a CPU
    return torch.optim.AdamW(groups, **settings, fused=True)
