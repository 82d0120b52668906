"""Do all hosts run the same thing? Asked before the model is loaded, and reported by name.

Launchers start a command on each host and compare nothing: a host with an older release, another
copy of the data or an argument that its shell changed would train along and corrupt the run
silently.
"""

import dataclasses
import hashlib
import logging
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PretrainedConfig

from trainer import __version__
from trainer.checkpoint.differences import differences
from trainer.data.sources import Source
from trainer.distributed.group import Ranks
from trainer.errors import HostError
from trainer.recipe.adapter_folder import find_adapter_folder
from trainer.recipe.schema import ModelRecipe, Recipe

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "deepspeed", "transformers", "peft", "tokenizers", "numpy")
"""Whose releases shape the numbers or the messages between ranks."""
HEAD_BYTES = 1 << 20
"""Of a weight file that are read whole: names and shapes are there."""
SAMPLES, SAMPLE_BYTES = 64, 1 << 12
"""Pieces of the rest, evenly spread, and their size: other weights differ nearly everywhere."""
WEIGHTS = ("*.safetensors", "*.bin")
"""Files that hold weights."""
ADVICE = {
    "version": "Install the same releases on all hosts.",
    "recipe": "Give all hosts the same recipe and the same overrides; a remote shell may change "
    "quotes, braces and dollar signs, so write such values into the recipe.",
    "data": "Copy the same files to all hosts, or use a file system that they share.",
    "base": "Copy the same model to all hosts.",
}
"""What to do about a difference, by its kind."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a rank is about to run, in values that travel."""

    host: str
    """Name of its host."""
    version: Mapping[str, str]
    """Releases of the project, Python and libraries."""
    recipe: Mapping[str, Any]
    """Resolved, plain values."""
    data: Mapping[str, str]
    """Fingerprint of each source."""
    base: Mapping[str, str]
    """Commit of a hub model, or a digest of each file of a folder."""


def check_hosts(
    recipe: Recipe, sources: Sequence[Source], base: Mapping[str, str], ranks: Ranks
) -> None:
    """Compare every rank with the first one; log which host runs which ranks.

    Args:
        recipe: as loaded.
        sources: opened.
        base: from `describe_base`.
        ranks: this process; its group is up.

    Raises:
        HostError: naming each host that differs and in what, on every rank.
    Collective: yes.
    """
    own = Identity(
        host=socket.gethostname(),
        version=_releases(),
        recipe=dataclasses.asdict(recipe),
        data={source.name: source.fingerprint for source in sources},
        base=base,
    )
    found: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(found, own)
    refuse_differences(found)
    for host, members in _by_host(found).items():
        logger.info("host %s: ranks %s of %d", host, _spans(members), len(found))


def describe_base(path: str, config: PretrainedConfig) -> dict[str, str]:
    """What distinguishes a base from another without reading all of it.

    Args:
        path: resolved `model.path`.
        config: loaded from there.
    """
    folder = Path(path)
    if not folder.is_dir():
        return {path: str(config._commit_hash)}
    weights = {file for pattern in WEIGHTS for file in folder.glob(pattern)}
    return {file.name: _sampled(file) for file in sorted({folder / "config.json", *weights})}


def describe_adapter(model: ModelRecipe) -> dict[str, str]:
    """The same of an adapter that training starts from; empty where there is none.

    Args:
        model: the recipe's section.
    """
    found = find_adapter_folder(model.path)
    files = () if found is None else sorted(found.folder.glob("adapter_*"))
    return {file.name: _sampled(file) for file in files if file.is_file()}


def refuse_differences(identities: Sequence[Identity]) -> None:
    """Raise if a rank is about to run something else than the first.

    Args:
        identities: by rank.

    Raises:
        HostError: a line for each host and difference.
    """
    first = identities[0]
    found: dict[tuple[str, str, str], str] = {}
    for rank, other in enumerate(identities):
        for kind, key, expected, got in _differences(first, other):
            # the ranks of a host differ alike: the first of them is named
            found.setdefault(
                (other.host, kind, key),
                f"host {other.host} (rank {rank}): {kind}: {key} = {got!r}; expected {expected!r}, "
                f"as on host {first.host} (rank 0). {ADVICE[kind]}",
            )
    if found:
        raise HostError("\n".join(found.values()))


def _differences(first: Identity, other: Identity) -> Iterator[tuple[str, str, object, object]]:
    """(kind, key, expected, got) of everything that differs but the host's name."""
    for key, expected, got in differences("", first.recipe, other.recipe):
        yield "recipe", key, expected, got
    for kind in ("version", "data", "base"):
        expected_of, got_of = getattr(first, kind), getattr(other, kind)
        for key in sorted({*expected_of, *got_of}):
            if expected_of.get(key) != got_of.get(key):
                yield kind, key, expected_of.get(key), got_of.get(key)


def _releases() -> dict[str, str]:
    """The project's release and those it stands on."""
    known = {"codiemb-trainer": __version__, "python": platform.python_version()}
    return known | {name: version(name) for name in LIBRARIES}


def _sampled(file: Path) -> str:
    """Digest of a file's size, its head and pieces of the rest, hexadecimal."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as content:
        digest.update(content.read(HEAD_BYTES))
        for number in range(SAMPLES):
            content.seek(size * number // SAMPLES)
            digest.update(content.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _by_host(identities: Sequence[Identity]) -> dict[str, list[int]]:
    """Ranks of each host."""
    hosts: dict[str, list[int]] = {}
    for rank, identity in enumerate(identities):
        hosts.setdefault(identity.host, []).append(rank)
    return hosts


def _spans(ranks: Sequence[int]) -> str:
    """Ranks in few characters: `0-7, 12`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in spans)
