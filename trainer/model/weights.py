"""Are a model's weights where transformers looks for them? Told from names and shapes alone.

transformers initialises at random what it does not find and goes on. Here its own loading runs
first with tensors that have shapes and no storage, so renaming, merging and splitting of tensors
are its own, and nothing is read but the headers of the files. It must not load a weight.
"""

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils import logging as library_logging
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from trainer.errors import RecipeError
from trainer.recipe.schema import ModelRecipe
from trainer.recipe.unused_modules import UNUSED

logger = logging.getLogger(__name__)

NAMES = ("model.safetensors", "model.safetensors.index.json",
         "pytorch_model.bin", "pytorch_model.bin.index.json")  # fmt: skip
"""Names under which transformers looks for weights, in its order."""
ADAPTER = "adapter_config.json"
"""Beside it transformers takes the weights of another model and puts an adapter on them."""
COMPUTED = re.compile(r"(.*\.)?(position_ids|token_type_ids|inv_freq|masked_bias|attn_bias)")
"""Buffers that a model computes when it is built; only older savings hold them."""
UNREADABLE = (OSError, ValueError, RuntimeError, EOFError, KeyError, UnpicklingError,
              SafetensorError)  # fmt: skip
"""What the libraries raise for a damaged file of weights."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What became of the tensors of a model."""

    num_expected: int
    """Tensors that the model needs."""
    missing: tuple[str, ...]
    """Those that are not in the files, in the model's order."""
    unexpected: tuple[str, ...]
    """Names in the files that the model has no tensor for."""
    mismatched: tuple[tuple[str, Sequence[int], Sequence[int]], ...]
    """Name, shape in the file and shape in the model of those that do not fit."""


def weight_files(
    path: str, recipe: ModelRecipe, config: PretrainedConfig, *, download: bool
) -> list[Path] | None:
    """The files that transformers will read.

    Args:
        path: resolved folder or hub id.
        recipe: its revision.
        config: may name the file itself.
        download: whether files of a hub model may be fetched.

    Returns:
        None where there are none, or none yet.

    Raises:
        RecipeError: a folder that holds an adapter, or as `weights_in`.
    """
    if model_file(path, ADAPTER, recipe, download=download) is not None:
        raise RecipeError(
            f"recipe: model.path = {recipe.path} (an adapter: {ADAPTER}); expected a whole model, "
            "or an adapter in a folder of this machine. Download it, and name the folder."
        )
    return weights_in(path, recipe, config, download=download)


def weights_in(
    path: str, recipe: ModelRecipe, config: PretrainedConfig, *, download: bool
) -> list[Path] | None:
    """As `weight_files`, of a model that may have an adapter beside its weights.

    Raises:
        RecipeError: a folder that lacks a file that its index names.
    """
    own = getattr(config, "transformers_weights", None)
    for name in (own,) if own else NAMES:
        found = model_file(path, name, recipe, download=download)
        if found is None:
            continue
        if not name.endswith(".index.json"):
            return [found]
        try:
            shards, _ = get_checkpoint_shard_files(
                path, str(found), revision=recipe.revision, local_files_only=not download
            )
        except (OSError, ValueError, LookupError) as error:
            if not Path(path).is_dir() and not download:
                return None
            raise _unreadable(recipe, error) from error
        return [Path(shard) for shard in sorted(shards)]
    return None


def model_file(path: str, name: str, recipe: ModelRecipe, *, download: bool) -> Path | None:
    """A file of a model, or None where it has none."""
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    found = cached_file(
        path,
        name,
        revision=recipe.revision,
        local_files_only=not download,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def read_headers(files: Iterable[Path], recipe: ModelRecipe) -> dict[str, Tensor]:
    """Tensors without storage by their names in the files.

    Raises:
        RecipeError: a damaged file, or a pickle that holds more than tensors.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                tensors |= _safetensors(file)
            else:
                content = torch.load(file, map_location="meta", weights_only=True)
                found = content.items() if isinstance(content, Mapping) else ()
                tensors |= {name: value for name, value in found if isinstance(value, Tensor)}
        except UNREADABLE as error:
            raise _unreadable(recipe, error) from error
    return tensors


def _safetensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as content:
        return {
            name: torch.empty(content.get_slice(name).get_shape(), device="meta")
            for name in content.keys()  # noqa: SIM118 # not a mapping
        }


def part_mapping(skeleton: nn.Module, names: Collection[str]) -> dict[str, str]:
    """The renaming that takes the text part's tensors out of a multimodal model's, as a pattern."""
    prefix = likely_prefix(skeleton.state_dict(), names)
    return {f"^{re.escape(prefix)}": ""} if prefix else {}


def try_loading(
    skeleton: nn.Module, tensors: Mapping[str, Tensor], *, key_mapping: dict[str, str] | None
) -> Loaded:
    """Let transformers load tensors without storage into a model without storage.

    Args:
        skeleton: from `skeleton_of`; not changed.
        tensors: from `read_headers`.
        key_mapping: renamings by pattern.

    Raises:
        RuntimeError: tensors that cannot be merged or split as the model wants them.
    """
    model: Any = type(skeleton)
    with _quiet():
        _, info = model.from_pretrained(
            None,
            config=skeleton.config,
            state_dict=dict(tensors),
            key_mapping=key_mapping,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return outcome(skeleton, info)


def outcome(model: nn.Module, info: Mapping[str, Any]) -> Loaded:
    """What transformers says of a loading, without what an embedding never reads.

    Args:
        model: whose tensors were loaded, or its skeleton.
        info: of `from_pretrained(output_loading_info=True)`.
    """
    expected = [name for name in model.state_dict() if _is_needed(name)]
    return Loaded(
        num_expected=len(expected),
        missing=tuple(name for name in expected if name in info["missing_keys"]),
        unexpected=tuple(sorted(info["unexpected_keys"])),
        mismatched=tuple(
            (name, tuple(found), tuple(wanted))
            for name, found, wanted in sorted(info["mismatched_keys"])
            if _is_needed(name)
        ),
    )


def _is_needed(name: str) -> bool:
    return not name.startswith(UNUSED) and COMPUTED.fullmatch(name) is None


def refuse_unloaded(loaded: Loaded, names: Collection[str], model: nn.Module, place: str) -> None:
    """Refuse a model some of whose weights would be random.

    Args:
        loaded: from `outcome`.
        names: of all tensors in the files; may be empty where they are not known.
        model: or its skeleton.
        place: where the model was named, and how: the beginning of the message.

    Raises:
        RecipeError: naming how many tensors are missing, and the first of each kind.
    """
    config: Any = model.config
    start = f"{place}; expected weights of {config.model_type}: "
    if loaded.missing:
        unknown = [name for name in names if name in loaded.unexpected] or loaded.unexpected
        raise RecipeError(start + missing_tensors(loaded.missing, loaded.num_expected, unknown))
    if loaded.mismatched:
        name, found, wanted = loaded.mismatched[0]
        raise RecipeError(
            f"{start}{len(loaded.mismatched)} of {loaded.num_expected} tensors have another shape "
            f"(first: {name}, {list(found)} in the file, {list(wanted)} by config.json). Give the "
            "config.json that the weights were saved with."
        )


def missing_tensors(missing: Sequence[str], num_expected: int, unknown: Sequence[str]) -> str:
    """The end of a message: how many tensors a file lacks, the first, and what to do.

    Args:
        missing: at least one name, in the model's order.
        num_expected: tensors that the model needs.
        unknown: names in the file that the model has no tensor for.
    """
    message = f"{len(missing)} of {num_expected} tensors are missing (first: {missing[0]})"
    if unknown:
        message += f", and {len(unknown)} of the file are unknown (first: {unknown[0]})"
    return f"{message}. {_advice(missing, unknown)}"


def warn_of_leftovers(loaded: Loaded, model: nn.Module, place: str) -> None:
    """Warn of tensors in the files that look like the backbone's and are not loaded.

    Those are biases that config.json switches off, or layers that it does not count.

    Args:
        loaded: from `outcome`.
        model: or its skeleton.
        place: `model.path` of the recipe.
    """
    own = model.state_dict()
    modules = {name.rpartition(".")[0] for name in own}
    kinds = {_without_numbers(name) for name in own}
    left = [
        name
        for name in loaded.unexpected
        if name.rpartition(".")[0] in modules or _without_numbers(name) in kinds
    ]
    if left:
        logger.warning(
            "model.path = %s: %d tensors of the file are not used (first: %s); expected those that "
            "config.json describes. Check its number of layers and its biases.",
            place, len(left), left[0],
        )  # fmt: skip


def _without_numbers(name: str) -> str:
    """A name whose numbers of layers are left open."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _advice(missing: Collection[str], unknown: Collection[str]) -> str:
    """What to do about missing tensors."""
    extra = likely_prefix(missing, unknown)
    if extra:
        return f"Save them without the prefix {extra} that the file puts before their names."
    lacking = likely_prefix(unknown, missing)
    if lacking:
        return f"Save them with the prefix {lacking} that the file's names lack."
    return "Download or save the model again; what is missing would have random values."


def likely_prefix(wanted: Iterable[str], found: Iterable[str]) -> str:
    """The prefix behind which most of the wanted names are found, or an empty string.

    Args:
        wanted: names without it.
        found: names that may carry it.
    """
    names = set(wanted)
    votes: Counter[str] = Counter()
    for name in found:
        # the longest ending that is a wanted name
        for place in (dot.end() for dot in re.finditer(r"\.", name)):
            if name[place:] in names:
                votes[name[:place]] += 1
                break
    prefix, count = max(votes.items(), key=lambda vote: vote[1], default=("", 0))
    return prefix if 2 * count > len(names) else ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No table and no progress bar of transformers for a loading that is only a trial."""
    verbosity, bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(verbosity)
        if bars:
            library_logging.enable_progress_bar()


def _unreadable(recipe: ModelRecipe, error: Exception) -> RecipeError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RecipeError(
        f"recipe: model.path = {recipe.path}; expected weights that transformers can load. {line}"
    )
