"""Write the trained model as a folder that transformers and sentence-transformers load.

Parameters are gathered one by one and written shard by shard, so that no rank holds a model of
several shards.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.checkpoint.json_files import write_json
from trainer.checkpoint.names import ORIGINAL
from trainer.checkpoint.replace import replace_folder, restore_replaced
from trainer.checkpoint.safetensors_file import PLAIN
from trainer.distributed.agree import on_first_rank
from trainer.distributed.group import Ranks
from trainer.errors import CheckpointError
from trainer.export.adapter import AdapterBase, merged_tensors, own_name, write_adapter
from trainer.export.base import folder_of_base
from trainer.export.complete import complete_folder, open_to_readers, weights_format
from trainer.export.embedder_files import DENSE_FOLDER
from trainer.model.projection import WEIGHTS, Projection
from trainer.recipe.checkpoint import Export

SHARD_BYTES = 4 * 2**30
"""Size at which a weight file is closed."""
ADAPTER_FOLDER = "adapter"
"""Where `both` puts the adapter, inside the folder of merged weights."""


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What is written, and where its base is found."""

    kind: Export
    """Of an adapter run: `merged` weights, the `adapter` alone, or both. Others ignore it."""
    base: AdapterBase | None
    """What an adapter belongs to; None where all parameters are trained."""
    projection: Projection | None = None
    """The dense layer behind the pooling, whole or partitioned."""
    write_embedder: Callable[[Path], None]
    """Writes config, tokenizer and pooling files into a folder; called on the first rank."""
    write_card: Callable[[Path], None] = lambda folder: None
    """Writes the model card into a folder that has all else; called on the first rank."""
    shard_bytes: int = SHARD_BYTES
    """A weight file takes tensors until it has so many bytes: it is larger by less than its last
    tensor, and the first rank holds as much."""


def export_model(backbone: nn.Module, folder: Path, request: ExportRequest, ranks: Ranks) -> None:
    """Write `folder` as a whole: beside it first, renamed when complete.

    Args:
        backbone: whole or partitioned.
        folder: replaced if it exists; `both` puts the adapter into its subfolder `adapter`.
        request: see its fields.
        ranks: this process.

    Raises:
        CheckpointError: what was written is not what was meant.
    Collective: yes.
    """
    partial = folder.with_name(f".partial-{folder.name}")
    if ranks.is_first:
        restore_replaced(folder.parent)
        shutil.rmtree(partial, ignore_errors=True)
    if not isinstance(backbone, PeftModel) or request.kind != "adapter":
        _export_weights(backbone, partial, request, ranks)
    if isinstance(backbone, PeftModel) and request.kind != "merged":
        place = partial if request.kind == "adapter" else partial / ADAPTER_FOLDER
        _export_adapter(backbone, place, request, ranks)
    on_first_rank(lambda: replace_folder(partial, folder), ranks)


def _export_weights(
    backbone: nn.Module, folder: Path, request: ExportRequest, ranks: Ranks
) -> None:
    """A folder of whole weights, adapters merged."""
    _start_folder(folder, request, ranks)
    shapes = _write_weights(backbone, folder, ranks, request.shard_bytes)
    _write_projection(request.projection, folder, ranks)
    on_first_rank(lambda: _finish(folder, shapes, request), ranks)


def _export_adapter(
    backbone: PeftModel, folder: Path, request: ExportRequest, ranks: Ranks
) -> None:
    """A folder of the adapter alone."""
    _start_folder(folder, request, ranks)
    if ranks.is_first:
        # transformers takes a folder with a config for a whole model, and looks for weights in it.
        # Other ranks are ahead: one of them would remove it while it is still read here.
        (folder / "config.json").unlink(missing_ok=True)
    assert request.base is not None
    shapes = write_adapter(backbone, folder, request.base, ranks)
    _write_projection(request.projection, folder, ranks)
    base = folder_of_base(request.base.place, request.base.revision)
    # once more: what the folder's tokenizer must say depends on the adapter's base
    on_first_rank(lambda: complete_folder(folder, base=base), ranks)
    on_first_rank(lambda: _finish(folder, shapes, request), ranks)


def _finish(folder: Path, shapes: dict[str, torch.Size], request: ExportRequest) -> None:
    """Check the weights, describe what is there, and let others read it."""
    check_written(folder, shapes)
    if request.projection is not None:
        wanted = {
            name: torch.Size(getattr(one, "ds_shape", one.shape))
            for name, one in request.projection.named_parameters()
        }
        check_written(folder / DENSE_FOLDER, wanted)
    request.write_card(folder)
    open_to_readers(folder)


def _start_folder(folder: Path, request: ExportRequest, ranks: Ranks) -> None:
    """Make a folder with everything but weights."""
    if ranks.is_first:
        folder.mkdir(parents=True)
        request.write_embedder(folder)


def full_tensors(backbone: nn.Module, ranks: Ranks) -> Iterator[tuple[str, Tensor]]:
    """Each parameter and persistent buffer once, by the bare backbone's name.

    A parameter is gathered while it is looked at; adapters are merged on the first rank.

    Collective: yes under ZeRO-3.
    """
    if isinstance(backbone, PeftModel):
        yield from merged_tensors(backbone, ranks)
        backbone = backbone.get_base_model()
    else:
        for name, parameter in backbone.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                yield name, parameter.detach()
    persistent = backbone.state_dict().keys()
    for name, buffer in backbone.named_buffers():
        if name in persistent and not ORIGINAL.fullmatch(name):
            yield own_name(name), buffer


def _write_weights(
    backbone: nn.Module, folder: Path, ranks: Ranks, shard_bytes: int
) -> dict[str, torch.Size]:
    """Write all tensors on the first rank; returns their shapes."""
    shapes: dict[str, torch.Size] = {}
    files: list[list[str]] = []
    held: dict[str, Tensor] = {}
    held_bytes = 0
    for name, tensor in full_tensors(backbone, ranks):
        shapes[name] = tensor.shape
        if not ranks.is_first:
            continue
        held[name] = tensor.to("cpu", copy=True).contiguous()
        held_bytes += tensor.nbytes
        if held_bytes >= shard_bytes:
            files.append(_write_shard(folder, len(files), held))
            held, held_bytes = {}, 0
    if held:
        files.append(_write_shard(folder, len(files), held))
    if ranks.is_first:
        _name_shards(folder, files)
    return shapes


def _write_projection(projection: Projection | None, folder: Path, ranks: Ranks) -> None:
    """Write the dense layer's weights on the first rank, where its config is already."""
    if projection is None:
        return
    named = dict(projection.named_parameters())
    with deepspeed.zero.GatheredParameters(list(named.values())):
        if ranks.is_first:
            tensors = {
                name: one.detach().to("cpu", copy=True).contiguous() for name, one in named.items()
            }
            save_file(tensors, folder / DENSE_FOLDER / WEIGHTS, metadata={"format": PLAIN})


def _write_shard(folder: Path, number: int, tensors: dict[str, Tensor]) -> list[str]:
    """Write one weight file under a provisional name; returns the names in it."""
    metadata = {"format": weights_format(folder)}
    save_file(tensors, folder / f"{number}.safetensors", metadata=metadata)
    return list(tensors)


def _name_shards(folder: Path, files: list[list[str]]) -> None:
    """Give weight files the names that transformers looks for, with an index for several."""
    if len(files) == 1:
        (folder / "0.safetensors").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):
        final = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (folder / f"{number}.safetensors").rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def check_written(folder: Path, shapes: dict[str, torch.Size]) -> None:
    """Reopen the weight files and compare names and shapes.

    Raises:
        CheckpointError: a tensor is missing, empty or of another shape.
    """
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                found[name] = tuple(file.get_slice(name).get_shape())
    expected = {name: tuple(shape) for name, shape in shapes.items()}
    if found != expected:
        wrong = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
        raise CheckpointError(
            f"{folder}: {wrong[0]} = {found.get(wrong[0])}; expected {expected.get(wrong[0])}. "
            f"{len(wrong)} tensors differ; the export is incomplete."
        )
