"""Adapters as a folder for peft, and merged into their base one weight at a time.

It writes no embedder files and does not know how a folder becomes visible.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.trainable_tokens import TrainableTokensLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from trainer.checkpoint.json_files import write_json
from trainer.checkpoint.manifest import BaseIdentity
from trainer.checkpoint.names import ADAPTER_PART, ORIGINAL, REPLACED, adapter_part
from trainer.checkpoint.open import ADAPTER_BASE, ADAPTER_WEIGHTS
from trainer.checkpoint.tensors import LowRankTensor, StoredTensor
from trainer.distributed.group import Ranks
from trainer.errors import RecipeError
from trainer.model.adapters import ADAPTER
from trainer.recipe.schema import Recipe

BASE = re.compile(r"(\.token_adapter)?(\.base_layer)+(?=\.|$)")
"""What peft puts into the name of an adapted module's own parameters, once for each adapter."""
OF_ADAPTER = f".{ADAPTER}"
"""What peft puts behind the name of trained tokens in a model, and leaves out in files."""
MERGE_ELEMENTS = 2**24
"""Elements of a weight that are merged at once, in float64."""


def check_exportable(recipe: Recipe, config: PretrainedConfig) -> None:
    """Refuse an export that would embed otherwise than the trainer.

    A peft folder leaves the config to its base, so loaders would close a decoder's attention again.

    Args:
        recipe: of an adapter run.
        config: of the backbone.

    Raises:
        RecipeError: an adapter alone of a decoder that was trained with open attention.
    """
    if recipe.model.attention != "bidirectional" or recipe.checkpoint.export == "merged":
        return
    with torch.device("meta"):
        plain = AutoModel.from_config(config)
    if any(getattr(module, "is_causal", False) is True for module in plain.modules()):
        raise RecipeError(
            f"recipe: checkpoint.export = {recipe.checkpoint.export}; expected merged where a "
            f"decoder is trained with model.attention bidirectional: an adapter's folder cannot "
            f"say so. Set it to merged."
        )


def merged_tensors(model: PeftModel, ranks: Ranks) -> Iterator[tuple[str, Tensor]]:
    """The base's parameters by their own names, adapters added where there are some.

    One weight is gathered at a time, with its factors. The sum is computed on the first rank, of a
    matrix in float64, rounded once to the weight's dtype; other ranks get the weight as it is.

    Args:
        model: whole or partitioned.
        ranks: this process.

    Collective: yes under ZeRO-3.
    """
    base, merged = model.get_base_model(), set()
    for module_name, module in base.named_modules():
        if isinstance(module, TrainableTokensLayer):
            merged.add(name := own_name(f"{module_name}.base_layer.weight"))
            yield name, _with_rows(module, ranks)
        if not isinstance(module, LoraLayer):
            continue
        leaf = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
        merged.add(name := f"{own_name(module_name)}.{leaf}")
        merge = _merged_stack if isinstance(module, ParamWrapper) else _merged_weight
        yield name, merge(module, ranks)
    for full, parameter in base.named_parameters():
        if adapter_part(full) or ORIGINAL.fullmatch(full) or own_name(full) in merged:
            continue
        with deepspeed.zero.GatheredParameters([parameter]):
            yield own_name(full), parameter.detach()


def own_name(name: str) -> str:
    """The base's name of a tensor that peft has wrapped.

    A copy that is trained whole has the name of what it replaces.

    Args:
        name: without the prefix of peft's model.
    """
    whole = REPLACED.fullmatch(name)
    return BASE.sub("", name if whole is None else f"{whole['module']}.{whole['leaf']}")


def _with_rows(layer: Any, ranks: Ranks) -> Tensor:
    """A table of embeddings [V, H] with its trained rows in it."""
    weight, row_RH = layer.get_base_layer().weight, layer.trainable_tokens_delta[ADAPTER]
    with deepspeed.zero.GatheredParameters([weight, row_RH]), torch.no_grad():
        if not ranks.is_first:
            return weight.detach()
        whole = weight.detach().to("cpu", copy=True)
        whole[layer.token_indices[ADAPTER]] = row_RH.detach().cpu().to(whole.dtype)
        return whole


def _merged_stack(layer: Any, ranks: Ranks) -> Tensor:
    """A parameter that stacks the matrices of several experts [E, ., .], their adapters added.

    peft lays its factors out by its own rule, and computes the sum here.
    """
    parameter = layer.get_param()
    factors = [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
    with deepspeed.zero.GatheredParameters([parameter, *factors]), torch.no_grad():
        if not ranks.is_first:
            return parameter.detach()
        return parameter + layer.get_delta_weight(ADAPTER)


def _merged_weight(layer: Any, ranks: Ranks) -> Tensor:
    """W + scale B A of one adapted module [out, in], DoRA's magnitudes applied.

    Embeddings, and GPT-2's linear modules, keep W and the sum as [in, out].
    """
    base = layer.get_base_layer()
    is_table = isinstance(base, nn.Embedding)
    parts = (
        {"A": layer.lora_embedding_A[ADAPTER], "B": layer.lora_embedding_B[ADAPTER]}
        if is_table
        else {"A": layer.lora_A[ADAPTER].weight, "B": layer.lora_B[ADAPTER].weight}
    )
    transposed = is_table or isinstance(base, Conv1D)
    if ADAPTER in layer.lora_magnitude_vector:
        parts["magnitude"] = layer.lora_magnitude_vector[ADAPTER].weight
    with deepspeed.zero.GatheredParameters([base.weight, *parts.values()]):
        if not ranks.is_first:
            return base.weight.detach()
        stored = {name: _stored(parameter) for name, parameter in parts.items()}
        merged = LowRankTensor(
            _stored(base.weight),
            stored["A" if transposed else "B"],
            stored["B" if transposed else "A"],
            layer.scaling[ADAPTER],
            transposed=transposed,
            magnitude=stored.get("magnitude"),
        )
        return _computed(merged)


def _stored(parameter: nn.Parameter) -> StoredTensor:
    """A gathered parameter on the CPU, as the merge's arithmetic takes it."""
    return StoredTensor(tuple(parameter.shape), (parameter.detach().cpu().reshape(-1),))


def _computed(tensor: LowRankTensor) -> Tensor:
    """All elements, in the dtype of the weight."""
    whole = torch.empty(tensor.shape, dtype=tensor.dtype)
    read = tensor.open()
    for start in range(0, whole.numel(), MERGE_ELEMENTS):
        read(start, whole.view(-1)[start : start + MERGE_ELEMENTS])
    return whole


def _file_name(full: str) -> str | None:
    """Name of an adapter's tensor in its file; None for a tensor of the base."""
    whole, part = REPLACED.fullmatch(full), ADAPTER_PART.fullmatch(full)
    if whole is not None:
        return f"{whole['module']}.{whole['leaf']}"
    if part is None:
        return full.removesuffix(OF_ADAPTER) if adapter_part(full) is not None else None
    # `.weight` also for magnitudes, which peft saves without: transformers needs it
    ending = "" if part["part"].startswith("embedding") else ".weight"
    return f"{part['module']}.lora_{part['part']}{ending}"


@dataclass(frozen=True, kw_only=True)
class AdapterBase:
    """What an exported adapter says of its base."""

    place: str
    """Folder or hub id under which loaders find it."""
    revision: str | None
    """Of a hub model."""
    identity: BaseIdentity
    """Hashes of its files."""


def write_adapter(
    model: PeftModel, folder: Path, base: AdapterBase, ranks: Ranks
) -> dict[str, torch.Size]:
    """Write weights and config of the adapter, gathered one parameter at a time.

    Args:
        model: whole or partitioned.
        folder: exists.
        base: named in peft's config; its identity goes into a file beside it.
        ranks: this process.

    Returns:
        Shapes by the names in the file.
    Collective: yes under ZeRO-3.
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, torch.Size] = {}
    for full, parameter in model.named_parameters():
        name = _file_name(full)
        if name is None:
            continue
        with deepspeed.zero.GatheredParameters([parameter]):
            shapes[name] = parameter.shape
            if ranks.is_first:
                tensors[name] = parameter.detach().to("cpu", copy=True).contiguous()
    if ranks.is_first:
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_adapter_config(model, folder, base)
        write_json(folder / ADAPTER_BASE, asdict(base.identity))
    return shapes


def write_adapter_config(model: PeftModel, folder: Path, base: AdapterBase) -> None:
    """Write peft's config of the adapter.

    Args:
        model: whole or partitioned.
        folder: exists.
        base: named in it.
    """
    config = copy.copy(model.peft_config[ADAPTER])
    config.inference_mode = True
    config.base_model_name_or_path = base.place
    config.revision = base.revision
    config.save_pretrained(str(folder))
