"""Adapters through peft, and tokens; the base stays frozen. It must not know engine or files.

Dtypes, as measured with DeepSpeed 0.19.8 and peft 0.21.2 on a bfloat16 base: peft makes adapters
float32. ZeRO-3 leaves them so (parameters, gradients, masters), as it casts nothing in a model that
was sharded while it was loaded; the adapter's branch is computed in float32 and its result cast to
the base's dtype. ZeRO-1 and 2 cast them to bfloat16 and train float32 masters. So does ZeRO-3 here
beside `modules_to_save`, whose copies have the base's dtype.
"""

from collections.abc import Iterable, Mapping

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from trainer.errors import RecipeError
from trainer.model.backbone import sharded_loading
from trainer.model.token_rows import add_token_rows, check_tokens
from trainer.recipe.schema import LoraRecipe
from trainer.recipe.unused_modules import UNUSED

ADAPTER = "default"
"""peft's name of the one adapter."""
ALL_LINEAR = "all-linear"
LINEAR = (nn.Linear, Conv1D)
"""Linear modules; the second keeps its weight as [in, out], as GPT-2 does."""


def add_lora(backbone: nn.Module, recipe: LoraRecipe) -> PeftModel:
    """Wrap a backbone with adapters; only they, and what is trained beside them, require grad.

    Args:
        backbone: a transformers model, whole or partitioned by `zero.Init`.
        recipe: rank, alpha, dropout, the names of the modules that get an adapter or are trained
            whole, and ids of trained tokens.

    Raises:
        RecipeError: as `check_targets`, or settings that peft has not for the kind of module that
            is adapted, as dropout and DoRA for experts in one parameter.
    Collective: yes under ZeRO-3 with DoRA, whose magnitudes start as norms of the base's rows, or
        with `modules_to_save` and `trainable_tokens`, whose copies start as the base's.
    """
    check_targets(backbone, recipe)
    # copies of whole modules have the base's dtype, and ZeRO-3 takes trained parameters of one
    wide, tokens = not recipe.modules_to_save, [int(one) for one in recipe.trainable_tokens]
    wrapped: nn.Module = _with_lora(backbone, recipe, wide=wide) if recipe.targets else backbone
    if tokens:
        wrapped = add_token_rows(wrapped, tokens, adapter=ADAPTER, wide=wide)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def _with_lora(backbone: nn.Module, recipe: LoraRecipe, *, wide: bool) -> PeftModel:
    """The backbone with adapters, `wide` ones in float32, and copies of whole modules."""
    adapted = adapted_modules(backbone, recipe)
    targets = recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # peft divides by the rank
        lora_dropout=recipe.dropout,
        target_modules=targets,
        exclude_modules=_unused(backbone, recipe) or None,
        modules_to_save=list(recipe.modules_to_save) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in adapted.values()),
        use_rslora=recipe.rslora,
        use_dora=recipe.dora,
        task_type="FEATURE_EXTRACTION",
    )
    sharded = any(hasattr(parameter, "ds_id") for parameter in backbone.parameters())
    # peft gathers what it reads of a sharded base only while this notice is alive
    with sharded_loading({"zero_optimization": {"stage": 3}} if sharded else None):
        try:
            wrapped = get_peft_model(
                backbone,
                config,
                adapter_name=ADAPTER,
                autocast_adapter_dtype=wide,
            )
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
        RecipeError: naming the targets that match nothing, or only what the vector does not pass
            through; settings that an adapted module has not; modules that are both adapted and
            trained whole; or as `check_tokens`.
    """
    known = dict(_adaptable(backbone))
    used = {name: module for name, module in known.items() if _is_used(name)}
    targets = () if isinstance(recipe.targets, str) else recipe.targets
    for target in targets:
        if not _matching(used, target) and _matching(known, target):
            raise RecipeError(
                f"recipe: model.lora.targets = {target}; expected modules that the vector passes "
                f"through: it is taken before {UNUSED[0].rstrip('.')}. Remove it."
            )
    unknown = [target for target in targets if not _matching(used, target)]
    has_linear = any(isinstance(module, LINEAR) for module in used.values())
    if unknown or not (has_linear or targets or recipe.trainable_tokens):
        names = sorted({name.rsplit(".", 1)[-1] for name in used})
        raise RecipeError(
            f"recipe: model.lora.targets = {', '.join(unknown) or ALL_LINEAR} (matches nothing); "
            f"expected names of linear modules or embeddings of the backbone: "
            f"{', '.join(names) or 'none'}. Use some of these, or {ALL_LINEAR}."
        )
    adapted = adapted_modules(backbone, recipe)
    _check_layouts(adapted)
    _check_whole(backbone, adapted, recipe)
    whole = [name for one in recipe.modules_to_save for name in whole_modules(backbone, one)]
    check_tokens(backbone, recipe, adapted, whole)


def adapted_modules(backbone: nn.Module, recipe: LoraRecipe) -> Mapping[str, nn.Module]:
    """The modules that get an adapter, by name.

    Args:
        backbone: without adapters.
        recipe: its `targets`.
    """
    used = {name: module for name, module in _adaptable(backbone) if _is_used(name)}
    if isinstance(recipe.targets, str):
        return {name: module for name, module in used.items() if isinstance(module, LINEAR)}
    return {
        name: module
        for name, module in used.items()
        if any(_ends_in(name, target) for target in recipe.targets)
    }


def _adaptable(backbone: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    for name, module in backbone.named_modules():
        if isinstance(module, (*LINEAR, nn.Embedding)):
            yield name, module


def _unused(backbone: nn.Module, recipe: LoraRecipe) -> list[str]:
    """Modules that the targets match and that no vector passes through."""
    targets = None if isinstance(recipe.targets, str) else recipe.targets
    return [
        name
        for name, module in _adaptable(backbone)
        if not _is_used(name)
        and (
            isinstance(module, LINEAR)
            if targets is None
            else any(_ends_in(name, target) for target in targets)
        )
    ]


def _is_used(name: str) -> bool:
    """Whether the vector may pass through a module."""
    return not f"{name}.".startswith(UNUSED)


def _matching(modules: Iterable[str], target: str) -> bool:
    return any(_ends_in(name, target) for name in modules)


def _ends_in(name: str, target: str) -> bool:
    """Whether peft finds a module by this target."""
    return f".{name}".endswith(f".{target}")


def _check_layouts(adapted: Mapping[str, nn.Module]) -> None:
    """Refuse weights that lie both ways round."""
    both = {isinstance(m, Conv1D): name for name, m in adapted.items() if isinstance(m, LINEAR)}
    if len(both) == 2:
        raise RecipeError(
            f"recipe: model.lora.targets = {both[False]} and {both[True]}; expected modules of one "
            "kind, nn.Linear or Conv1D, as an adapter's folder names one layout. Name one kind."
        )


def _check_whole(backbone: nn.Module, adapted: Mapping[str, nn.Module], recipe: LoraRecipe) -> None:
    """Refuse `modules_to_save` that match nothing, what no vector reads, or what is adapted too."""
    modules = {name: module for name, module in backbone.named_modules() if name}
    for whole in recipe.modules_to_save:
        found = whole_modules(backbone, whole)
        start = f"recipe: model.lora.modules_to_save = {whole}"
        if not any(list(modules[name].parameters()) for name in found):
            called = [name for name in modules if not name.rsplit(".", 1)[-1].isdecimal()]
            leaves = sorted({name.rsplit(".", 1)[-1] for name in called})
            raise RecipeError(
                f"{start} (matches nothing with weights); expected ends of names of modules of the "
                f"backbone: {', '.join(leaves)}. Use some of these."
            )
        unused = [name for name in found if not _is_used(name)]
        if unused:
            raise RecipeError(
                f"{start} (matches {unused[0]}); expected modules that the vector passes through: "
                "it is taken before that one. Write more of the names that are meant."
            )
        inside = [one for one in adapted if any(f"{one}.".startswith(f"{n}.") for n in found)]
        if inside:
            raise RecipeError(
                f"{start}; expected modules without an adapter: {inside[0]} is one of "
                "model.lora.targets. Remove it from one of the two."
            )
        if isinstance(modules[found[0]], nn.ModuleList | nn.ModuleDict):
            raise RecipeError(
                f"{start} (a list of modules); expected modules that are called. Name its members, "
                f"such as {found[0]}.0."
            )


def whole_modules(backbone: nn.Module, whole: str) -> list[str]:
    """Names of the modules that peft trains whole for one of `modules_to_save`: any such ending.

    Args:
        backbone: without adapters.
        whole: the ending, with or without a point before it.
    """
    return [name for name, _ in backbone.named_modules() if name and name.endswith(whole)]
