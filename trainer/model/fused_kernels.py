"""Liger's fused norm, rotary embedding and SwiGLU in place of transformers' own, on a GPU.

Fewer launches and fewer activations, the same mathematics. Liger's losses are never used. It must
not change a model that Liger does not know, nor models that are made later.
"""

import importlib.util
import inspect
import logging
import sys
from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import Tensor, nn

from trainer.errors import RecipeError
from trainer.recipe.schema import Kernels

logger = logging.getLogger(__name__)

PACKAGE = "liger_kernel"
PARTS = ("rope", "rms_norm", "swiglu")
"""What is taken of Liger, as it calls them; all else that it offers is left out."""
ROTARY = "apply_rotary_pos_emb"
"""The function of a modeling file that Liger replaces for `rope`."""
SWISH = ("silu", "swish")
"""Names of the activation that SwiGLU has; Liger takes it for granted."""

Rotary = Callable[..., tuple[Tensor, Tensor]]
"""Rotates queries and keys; the first argument are the queries."""


def use_fused_kernels(backbone: nn.Module, *, choice: Kernels, device_type: str) -> None:
    """Put Liger's modules into a backbone, in place, where they can run; the log says what is done.

    Args:
        backbone: as transformers makes it, before adapters; names of parameters stay.
        choice: `engine.kernels`.
        device_type: `cuda` or `cpu`.

    Raises:
        RecipeError: if this version of Liger cannot change the model.
    """
    against = reason_against(backbone, choice=choice, on_gpu=device_type == "cuda")
    if against is not None:
        logger.info("engine.kernels = %s: those of transformers, as %s", choice, against)
        return
    try:
        fused = fuse(backbone)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise RecipeError(
            "recipe: engine.kernels = auto; expected a liger-kernel that fits transformers' "
            f"{type(backbone).__name__} ({type(error).__name__}: {error}). Set engine.kernels=none."
        ) from error
    listed = ", ".join(f"{number} {name}" for name, number in fused.items())
    logger.info("engine.kernels = auto: Liger's for %s", listed)


def reason_against(backbone: nn.Module, *, choice: Kernels, on_gpu: bool) -> str | None:
    """Why a model runs with transformers' own modules, in words; None where it runs with Liger's.

    Args:
        backbone: with or without weights.
        choice: `engine.kernels`.
        on_gpu: whether it runs on a GPU.
    """
    if choice == "none":
        return "the recipe says so"
    if not on_gpu:
        return "there is no GPU"
    if importlib.util.find_spec(PACKAGE) is None:
        return "the package liger-kernel is not installed (extra `gpu`)"
    if not type(backbone).__module__.startswith("transformers."):
        return f"the code of {type(backbone).__name__} is its own"
    config: Any = backbone.config
    return None if config.model_type in _known() else f"Liger does not know {config.model_type}"


def _known() -> dict[str, Callable[..., None]]:
    """From the types of models to Liger's functions that change one."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    found: dict[str, Callable[..., None]] = MODEL_TYPE_TO_APPLY_LIGER_FN
    return found


def fuse(backbone: nn.Module) -> dict[str, int]:
    """Change the classes of a backbone's modules, and its rotary function.

    Liger changes the modeling file as well, for models that are made later; that is taken back,
    for these may run where its kernels cannot. The rotary function belongs to the file: there
    Liger's runs on GPUs, and the plain one elsewhere.

    Args:
        backbone: of a type that Liger knows.

    Returns:
        How many modules of each class were changed, and `rotary embedding` as one.
    """
    config: Any = backbone.config
    apply = _known()[config.model_type]
    file = sys.modules[type(backbone).__module__]
    before = dict(vars(file))
    apply(model=backbone, **_settings(apply, config))
    rotary = vars(file).get(ROTARY)
    for name, value in before.items():
        setattr(file, name, value)
    changed = Counter(
        _lift(module)
        for module in backbone.modules()
        if isinstance(module.__dict__.get("forward"), MethodType)
    )
    plain = before.get(ROTARY)
    if plain is not None and rotary is not plain:
        setattr(file, ROTARY, by_device(plain, rotary))
        changed["rotary embedding"] += 1
    return dict(changed)


def _settings(apply: Callable[..., None], config: Any) -> dict[str, bool]:
    """What a function of Liger's is told: yes to `PARTS`, no to all else that it offers."""
    parts = set(PARTS)
    if getattr(config, "hidden_act", None) not in SWISH:
        parts.remove("swiglu")
    return {
        name: name in parts
        for name, parameter in inspect.signature(apply).parameters.items()
        if isinstance(parameter.default, bool)
    }


def _lift(module: nn.Module) -> str:
    """Turn a forward that was bound to a module into one of its class, whose old name is returned.

    A bound one would hide those of classes that are put before a module's own later.
    """
    kind, forward = type(module), module.__dict__.pop("forward").__func__
    for name in ("_get_name", "extra_repr"):
        module.__dict__.pop(name, None)
    module.__class__ = type(f"Fused{kind.__name__}", (kind,), {"forward": forward})
    return kind.__name__


def by_device(plain: Rotary, fused: Any) -> Rotary:
    """A rotary function that runs fused on GPUs alone."""

    def rotate(query: Tensor, *args: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        rotated: tuple[Tensor, Tensor] = (fused if query.is_cuda else plain)(
            query, *args, **settings
        )
        return rotated

    return rotate
