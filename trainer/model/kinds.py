"""What kind of model a config describes, and whether it can embed texts; it must not read weights.

A model is judged by its class and its code's parts, never by its name: a skeleton on the meta
device has every module and every shape of the model, and no storage.
"""

import inspect
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, Gemma3TextConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
)

from trainer.errors import RecipeError
from trainer.recipe.schema import ModelRecipe

META = torch.device("meta")
WRONG_CONFIG = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What the constructor of a model raises for a config that it cannot be built from."""
TEXT_INPUTS = ("input_ids", "attention_mask")
"""What the forward of a backbone is given."""
PADDING_COUNTS = {
    "convbert": "whose convolutions mix padding into the tokens before it",
    "canine": "whose convolutions mix padding into the tokens before it",
    "nystromformer": "whose attention is to means over parts of the padded text",
    "yoso": "whose attention is drawn by chance",
    "mra": "whose attention has kernels of its own and none on CPUs",
}
"""Models by whose code a text alone has another vector than beside a longer one, and why."""
OWN_MASKS = ("gpt_neo", "llama4_text", "mpt")
"""Decoders that make a causal mask in all or most layers whatever the config says; MPT's code fails
without one."""

Kind = Literal["encoder", "decoder"]


def text_part(config: PretrainedConfig, recipe: ModelRecipe) -> PretrainedConfig:
    """The config of the part that reads texts: all of a text model, one part of a multimodal one.

    Args:
        config: of the whole model.
        recipe: names the model in messages.

    Raises:
        RecipeError: an encoder-decoder, quantised weights, or no part that reads texts.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise refused(
            recipe, f"{config.model_type} with quantised weights",
            "weights in float32, bfloat16 or float16", "Take the model that was quantised.",
        )  # fmt: skip
    if getattr(config, "is_encoder_decoder", False):
        raise _encoder_decoder(config, recipe)
    try:
        part = config.get_text_config()
    except ValueError as error:  # several parts read texts
        raise _no_text(config, recipe) from error
    if part is config:
        return config
    if type(part) not in MODEL_MAPPING:
        raise refused(
            recipe, f"{config.model_type}, whose text part is {part.model_type}",
            "a text part that transformers can load by itself", "Use a model for texts.",
        )  # fmt: skip
    # known of hub models alone
    part._commit_hash = getattr(config, "_commit_hash", None)
    return part


def skeleton_of(config: PretrainedConfig, recipe: ModelRecipe) -> nn.Module:
    """The model's modules and shapes without storage.

    Args:
        config: of a text model; not changed.
        recipe: whether code that comes with the model may run.

    Raises:
        RecipeError: no model can be built from the config.
    """
    try:
        with META:
            skeleton: nn.Module = AutoModel.from_config(
                config, attn_implementation="eager", trust_remote_code=recipe.trust_remote_code
            )
    except WRONG_CONFIG as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise refused(
            recipe, f"{config.model_type}: {line}", "a config to build a model from",
            "Correct its config.json, or use another model.",
        ) from error  # fmt: skip
    return skeleton


def check_kind(skeleton: nn.Module, recipe: ModelRecipe, *, is_part: bool) -> None:
    """Refuse a model that does not read texts, and a mask that it does not have.

    Args:
        skeleton: from `skeleton_of`.
        recipe: its `attention`.
        is_part: whether the model is one part of a multimodal one.

    Raises:
        RecipeError: an encoder-decoder; a model of pictures or sound; one that cannot leave out
            padding; `attention: causal` for an encoder; `attention: bidirectional` for a decoder
            whose code has no other mask.
    """
    config: Any = skeleton.config
    parameters = inspect.signature(skeleton.forward).parameters
    if "decoder_input_ids" in parameters:
        raise _encoder_decoder(config, recipe)
    if getattr(skeleton, "main_input_name", "input_ids") != "input_ids" or _others(parameters):
        raise _no_text(config, recipe)
    # code that comes with a model may hand its arguments on
    if "attention_mask" not in parameters and not recipe.trust_remote_code:
        raise refused(
            recipe, f"{config.model_type}, which takes no attention mask",
            "a model that leaves padding out", "Use another model.",
        )  # fmt: skip
    if is_part and not _is_language_model(skeleton):
        raise _no_text(config, recipe)
    if config.model_type in PADDING_COUNTS:
        raise refused(
            recipe, f"{config.model_type}, {PADDING_COUNTS[config.model_type]}",
            "a model whose vectors do not depend on the texts beside them", "Use another model.",
        )  # fmt: skip
    if recipe.attention == "bidirectional" and not _can_open(skeleton):
        raise RecipeError(
            f"recipe: model.attention = bidirectional; expected causal: {config.model_type} "
            f"(model.path = {recipe.path}) has no other mask in its code. Set "
            "model.attention=causal, or use another model."
        )
    if recipe.attention == "causal" and kind_of(skeleton) == "encoder":
        raise RecipeError(
            f"recipe: model.attention = causal; expected bidirectional: {config.model_type} is an "
            f"encoder. Set model.attention=bidirectional."
        )


def kind_of(skeleton: nn.Module) -> Kind:
    """Whether each token sees all others, or those before it, as the model's own code has it.

    Attention modules say so themselves. Where none does, a model that was made for predicting
    masked words is an encoder; code that comes with a model names its heads in `auto_map`.
    """
    config: Any = skeleton.config
    flags = {
        module.is_causal
        for module in skeleton.modules()
        if isinstance(getattr(module, "is_causal", None), bool)
    }
    if flags:
        return "decoder" if True in flags else "encoder"
    if getattr(config, "is_decoder", False):
        return "decoder"
    heads = getattr(config, "auto_map", None) or {}
    fills_masks = type(config) in MODEL_FOR_MASKED_LM_MAPPING or (
        "AutoModelForMaskedLM" in heads and "AutoModelForCausalLM" not in heads
    )
    # XLNet was trained with permuted masks and is read with none
    return "encoder" if fills_masks or getattr(config, "attn_type", None) == "bi" else "decoder"


def _can_open(skeleton: nn.Module) -> bool:
    """Whether each token can see all others: code of transformers that makes its mask by config.

    Of code that comes with a model nothing is known.
    """
    config: Any = skeleton.config
    if config.model_type in OWN_MASKS:
        return False
    if kind_of(skeleton) == "decoder" and _reads_in_order(skeleton):
        return False
    code = inspect.getmodule(type(skeleton))
    makes_mask = any(name.startswith("create_") and name.endswith("_mask") for name in dir(code))
    of_library = type(skeleton).__module__.startswith("transformers.models.")
    return not of_library or makes_mask or kind_of(skeleton) == "encoder"


def _reads_in_order(skeleton: nn.Module) -> bool:
    """Whether a layer goes through a text from its start, as Mamba and linear attention do.

    Such layers have a short convolution for each channel, or are named in the config; no mask opens
    them.
    """
    types = getattr(skeleton.config, "layer_types", None) or ()
    return "linear_attention" in types or any(
        isinstance(module, nn.Conv1d) and module.groups > 1 for module in skeleton.modules()
    )


def is_open(config: PretrainedConfig) -> bool:
    """Whether a Gemma 3 opens its attention by a key of its own, as EmbeddingGemma does.

    `is_causal` beside it would widen the windows of its layers by one token on each side.
    """
    return isinstance(config, Gemma3TextConfig) and bool(config.use_bidirectional_attention)


def _is_language_model(skeleton: nn.Module) -> bool:
    """Whether a text part was trained as a language model, not beside pictures alone."""
    config: Any = type(skeleton.config)
    return (
        kind_of(skeleton) == "decoder"
        or config in MODEL_FOR_CAUSAL_LM_MAPPING
        or config in MODEL_FOR_MASKED_LM_MAPPING
    )


def _others(parameters: Any) -> list[str]:
    """What a forward needs besides the inputs of a text."""
    fixed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in fixed
        and name not in TEXT_INPUTS
    ]


def _encoder_decoder(config: PretrainedConfig, recipe: ModelRecipe) -> RecipeError:
    return refused(
        recipe, f"{config.model_type}, an encoder-decoder", "a decoder or an encoder",
        "Encoder-decoders are not supported.",
    )  # fmt: skip


def _no_text(config: PretrainedConfig, recipe: ModelRecipe) -> RecipeError:
    return refused(
        recipe, f"{config.model_type}, which does not read texts alone", "a language model",
        "Use a model for texts.",
    )  # fmt: skip


def refused(recipe: ModelRecipe, found: str, expected: str, advice: str) -> RecipeError:
    """The error that a model is of the wrong kind."""
    return RecipeError(
        f"recipe: model.path = {recipe.path} ({found}); expected {expected}. {advice}"
    )
