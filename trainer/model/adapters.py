"""LoRA adapters through peft; the base stays frozen. It must not know engine or files.

Dtypes, as measured with DeepSpeed 0.19.8 and peft 0.21.2 on a bfloat16 base: peft makes adapters
float32. ZeRO-3 leaves them so (parameters, gradients, masters), as it casts nothing in a model that
was sharded while it was loaded; the adapter's branch is computed in float32 and its result cast to
the base's dtype. ZeRO-1 and 2 cast them to bfloat16 and train float32 masters.
"""

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from trainer.errors import RecipeError
from trainer.model.backbone import sharded_loading
from trainer.recipe.schema import LoraRecipe

ADAPTER = "default"
"""peft's name of the one adapter."""
ALL_LINEAR = "all-linear"


def add_lora(backbone: nn.Module, recipe: LoraRecipe) -> PeftModel:
    """Wrap a backbone with adapters; only they require grad.

    Args:
        backbone: a transformers model, whole or partitioned by `zero.Init`.
        recipe: rank, alpha, dropout and the names of the modules that get an adapter.

    Raises:
        RecipeError: a target that matches no linear module, or settings that peft has not for the
            kind of module that is adapted, as dropout and DoRA for experts in one parameter.
    Collective: yes under ZeRO-3 with DoRA, whose magnitudes start as norms of the base's rows.
    """
    check_targets(backbone, recipe)
    targets = recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # peft divides by the rank
        lora_dropout=recipe.dropout,
        target_modules=targets,
        use_rslora=recipe.rslora,
        use_dora=recipe.dora,
        task_type="FEATURE_EXTRACTION",
    )
    sharded = any(hasattr(parameter, "ds_id") for parameter in backbone.parameters())
    # peft gathers what it reads of a sharded base only while this notice is alive
    with sharded_loading({"zero_optimization": {"stage": 3}} if sharded else None):
        try:
            wrapped = get_peft_model(backbone, config, adapter_name=ADAPTER)
        except ValueError as error:
            raise RecipeError(
                f"recipe: model.lora = rank {recipe.rank}, dropout {recipe.dropout:g}, dora "
                f"{str(recipe.dora).lower()}, targets {recipe.targets}; expected settings that "
                f"peft has for all modules that it adapts: {str(error).splitlines()[0]} Change "
                "them, or name other modules in model.lora.targets."
            ) from error
    assert isinstance(wrapped, PeftModel)
    return wrapped


def check_targets(backbone: nn.Module, recipe: LoraRecipe) -> None:
    """Refuse targets that peft would skip or cannot adapt; needs no weights.

    Args:
        backbone: whole, partitioned, or on the meta device.
        recipe: its `targets` are `all-linear` or the ends of modules' names.

    Raises:
        RecipeError: naming the targets that match nothing and the modules that there are.
    """
    linear = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    unknown = [
        target
        for target in (recipe.targets if recipe.targets != ALL_LINEAR else ())
        if not any(f".{name}".endswith(f".{target}") for name in linear)
    ]
    if unknown or not linear:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise RecipeError(
            f"recipe: model.lora.targets = {', '.join(unknown) or ALL_LINEAR} (matches nothing); "
            f"expected names of linear modules of the backbone: {', '.join(known) or 'none'}. "
            f"Use some of these, or {ALL_LINEAR}."
        )
