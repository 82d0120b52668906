"""The tensors of a GGUF file under transformers' names and in its layout, one at a time.

Names and layouts are those of transformers' own reader, whose table and processors are used here;
that reader holds all tensors at once.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from trainer.errors import CheckpointError
from trainer.unpack.gguf_file import MALFORMED, SCALED_POSITIONS, GgufFile, damaged, unreadable

if TYPE_CHECKING:
    from gguf import ReaderTensor


@dataclass(frozen=True, kw_only=True)
class Target:
    """A tensor of the folder and what it is made of."""

    name: str
    """As in the model's state dict."""
    shape: tuple[int, ...]
    """As in the model's state dict."""
    sources: Sequence["ReaderTensor"]
    """Tensors of the file; several where transformers joins them."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the tensors of a file become those of a model."""

    file: GgufFile
    """The file."""
    architecture: str
    """Class of the model."""
    targets: Sequence[Target]
    """In the order of the file."""
    names: Mapping[str, str]
    """transformers' names by those of the file, some without their ending `.weight`."""
    processor: Any
    """transformers' `TensorProcessor` of this architecture."""


def plan_layout(file: GgufFile, config: PretrainedConfig) -> Layout:
    """Find the place of each tensor.

    Args:
        file: opened.
        config: of the same file.

    Raises:
        CheckpointError: if transformers has no such decoder, the file lacks a tensor of the model,
            or has one that the model has no place for.
    """
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=config.to_dict())
    tensors = [one for one in file.tensors if not one.name.startswith(SCALED_POSITIONS)]
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        names = get_gguf_hf_weights_map(_Flat(model), processor)
        if any(_target_of(tensor.name, names) is None for tensor in tensors):
            names = get_gguf_hf_weights_map(model, processor)
    except (*MALFORMED, NotImplementedError) as error:
        raise unreadable(file, error) from error
    sources: dict[str, list[ReaderTensor]] = defaultdict(list)
    for tensor in tensors:
        target = _target_of(tensor.name, names)
        if target is None:
            raise _unknown(tensor.name, file)
        sources[target].append(tensor)
    shapes = _expected(model)
    _compare(file, set(sources), shapes)
    targets = [
        Target(name=name, shape=shapes[name], sources=parts) for name, parts in sources.items()
    ]
    return Layout(
        file=file,
        architecture=type(model).__name__,
        targets=targets,
        names=names,
        processor=processor,
    )


class _Flat:
    """A model that shows no submodules.

    transformers goes through all of them, each with a table of its own, which takes minutes for a
    large model. What they add is needed for files whose names lack the model's first part.
    """

    def __init__(self, model: nn.Module) -> None:
        self.config = model.config
        self.state_dict = model.state_dict

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """None."""
        return iter(())


def _target_of(name: str, names: Mapping[str, str]) -> str | None:
    # experts that are joined stand in transformers' table without their ending
    return names.get(name) or names.get(name.removesuffix(".weight"))


def _unknown(name: str, file: GgufFile) -> CheckpointError:
    return CheckpointError(
        f"{file.path}: tensor {name} = unknown; expected those that transformers reads of "
        f"{file.architecture}. The model would not be the one in the file; take another."
    )


def _expected(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes by name of what a file must give; the output matrix may be that of the inputs."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _compare(file: GgufFile, found: set[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a file without some of the model's tensors."""
    tied = not any(tensor.name == "output.weight" for tensor in file.tensors)
    needed = [name for name in shapes if not (tied and name == "lm_head.weight")]
    missing = [name for name in needed if name not in found]
    if missing:
        raise CheckpointError(
            f"{file.path}: {len(missing)} of {len(needed)} tensors = missing (first: "
            f"{missing[0]}); expected all of {file.architecture}. Copy or download it again."
        )


def tensors_of(layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of the model by its name, float32; only what makes up one is in memory.

    Raises:
        CheckpointError: if a tensor has another shape than the model's, or is not finite.
    """
    for target in layout.targets:
        yield target.name, _tensor_of(target, layout)


def _tensor_of(target: Target, layout: Layout) -> Tensor:
    from gguf import dequantize

    joined: dict[str, Tensor] = {}
    for source in target.sources:
        try:
            result = layout.processor.process(
                weights=dequantize(source.data, source.tensor_type),
                name=source.name,
                tensor_key_mapping=layout.names,
                parsed_parameters={"tensors": joined},
            )
        except MALFORMED as error:
            raise damaged(layout.file.path, f"{source.name}: {error}") from error
        # a name that is gone: the processor has put the values where they belong
        if result.name is not None:
            # copied, as an array of the file itself cannot be written to
            joined[target.name] = torch.tensor(result.weights, dtype=torch.float32)
    tensor = joined.get(target.name)
    shape = None if tensor is None else tuple(tensor.shape)
    if tensor is None or shape != target.shape:
        raise damaged(layout.file.path, f"{target.name} of shape {shape}, not {target.shape}")
    # one pass; a NaN is the least and the greatest
    if not all(torch.isfinite(end) for end in torch.aminmax(tensor)):
        raise damaged(layout.file.path, f"{target.name} with values that are not finite")
    return tensor
