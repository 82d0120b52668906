"""LoRA adapters through peft; the base stays frozen."""

from peft import LoraConfig, get_peft_model
from torch import nn

from trainer.errors import RecipeError
from trainer.recipe.schema import LoraRecipe


def add_lora(backbone: nn.Module, recipe: LoraRecipe) -> nn.Module:
    """Wrap a backbone with adapters; only they require grad.

    Args:
        backbone: a transformers model, whole or partitioned by `zero.Init`.
        recipe: rank, alpha, dropout and the names of the modules that get an adapter.

    Raises:
        RecipeError: `targets` match no module, or modules that cannot have an adapter.
    """
    targets = recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets)
    try:
        return get_peft_model(
            backbone,
            LoraConfig(
                r=recipe.rank,
                lora_alpha=recipe.alpha,  # type: ignore[arg-type] # peft divides by the rank
                lora_dropout=recipe.dropout,
                target_modules=targets,
                use_rslora=recipe.rslora,
                use_dora=recipe.dora,
                task_type="FEATURE_EXTRACTION",
            ),
        )
    except ValueError as error:
        linear = sorted(
            {n.rsplit(".", 1)[-1] for n, m in backbone.named_modules() if isinstance(m, nn.Linear)}
        )
        raise RecipeError(
            f"recipe: model.lora.targets = {targets}; expected names of linear modules of the "
            f"backbone: {', '.join(linear)}. Use some of these, or all-linear."
        ) from error
