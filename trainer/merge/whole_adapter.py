"""Does an adapter have weights for all modules that its config names? It must not read tensors.

What its file lacks would count as unchanged. Which modules a config names is peft's to say, and
which a base has is transformers': where a layer looks forgotten, a process of its own asks them, as
they would take more memory than a merge may.
"""

import json
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from trainer.checkpoint.json_files import read_object
from trainer.checkpoint.open import ADAPTER_CONFIG
from trainer.errors import CheckpointError
from trainer.merge.expected import IN_LAYER, TIMEOUT_SEC
from trainer.recipe.unused_modules import UNUSED

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""Of a layer, or of one expert, in a module's name."""
PEFT_TYPES = ("LORA", "IA3")
"""Types of adapters whose config names modules."""


def check_whole_adapter(
    path: Path, adapted: Collection[str], modules: Sequence[str], *, prefix: str, base: Path | None
) -> None:
    """Refuse an adapter whose file lacks a module that its config names.

    Args:
        path: peft folder.
        adapted: modules that the file has an adapter of, under the base's names.
        modules: those of the base's backbone that have a matrix, in its order.
        prefix: what the adapter puts before the base's names.
        base: folder with the base's config.json, if there is one.

    Raises:
        CheckpointError: naming the first such module.
    """
    asked = questions(adapted, modules, prefix)
    targets = read_object(path / ADAPTER_CONFIG).get("target_modules")
    if isinstance(targets, list):
        # most are told from the names alone, without seconds of imports
        ends = tuple(f".{target}" for target in targets)
        asked = [one for one in asked if f".{one[1]}".endswith(ends)]
    lost = _ask(path, base, asked) if asked else []
    if lost:
        raise CheckpointError(
            f"{path}: adapter of {lost[0]} = absent ({len(lost)} such modules beside "
            f"{len(adapted)} adapted ones); expected one of each module that {ADAPTER_CONFIG} "
            "names. Save the adapter again, or copy its whole file."
        )


def check_whole_modules(path: Path, saved: Collection[str], names: Sequence[str]) -> None:
    """Refuse an adapter whose file lacks a tensor of a module that was trained in full beside it.

    Args:
        path: peft folder.
        saved: tensors that the file has whole, under the base's names.
        names: tensors of the base's backbone.

    Raises:
        CheckpointError: naming the first such tensor.
    """
    modules = read_object(path / ADAPTER_CONFIG).get("modules_to_save")
    # peft takes every module whose name ends so, with all that is in it
    parts = [f".{one}." for one in modules] if isinstance(modules, list) else []
    lost = [
        name for name in names if name not in saved and any(part in f".{name}" for part in parts)
    ]
    if lost:
        raise CheckpointError(
            f"{path}: {lost[0]} = absent ({len(lost)} such tensors); expected all of the modules "
            f"that modules_to_save in {ADAPTER_CONFIG} names. Save the adapter again, or copy its "
            "whole file."
        )


def questions(
    adapted: Collection[str], modules: Sequence[str], prefix: str
) -> list[tuple[str, str, bool]]:
    """Modules without an adapter in the stacks of layers that have some, or beside these.

    Args:
        adapted: as `check_whole_adapter`.
        modules: likewise.
        prefix: likewise.

    Returns:
        Of each its name, the name that peft knew it by, and whether another layer's has an adapter.
    """
    alike = {NUMBER.sub("*", name) for name in adapted}
    stacks = {match["stack"] for match in filter(None, map(IN_LAYER.fullmatch, adapted))}
    asked = []
    for name in modules:
        match, is_alike = IN_LAYER.fullmatch(name), NUMBER.sub("*", name) in alike
        # experts are modules of their own on disk and one parameter in memory
        in_stack = match and match["stack"] in stacks and not NUMBER.search(match["rest"])
        is_suspect = is_alike or in_stack or "." not in name
        if is_suspect and name not in adapted and not name.startswith(UNUSED):
            asked.append((name, prefix + name, is_alike))
    return asked


def _ask(path: Path, base: Path | None, asked: Sequence[tuple[str, str, bool]]) -> list[str]:
    """As `named_ones`, in a process of its own; none where peft does not know the config."""
    command = [sys.executable, "-m", __name__, str(path), "" if base is None else str(base)]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, check=True,
            timeout=TIMEOUT_SEC,
        )  # fmt: skip
        return list(json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, OSError, ValueError, LookupError):
        return []


def _linear_modules(base: str) -> set[str] | None:
    """Names of the modules of an architecture that can be adapted; None where it is not known."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModel
    from transformers.pytorch_utils import Conv1D

    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    kinds = (nn.Linear, nn.Embedding, Conv1D)
    return {name for name, one in model.named_modules() if isinstance(one, kinds)}


def named_ones(path: str, base: str, asked: Sequence[tuple[str, str, bool]]) -> list[str]:
    """Those modules that the config of a peft folder names, and the base has.

    Args:
        path: peft folder.
        base: folder with the base's config.json; empty where there is none.
        asked: from `questions`.
    """
    from peft import PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config: Any = PeftConfig.from_pretrained(path)
    # the base's layers have other numbers where some were repeated
    if config.peft_type not in PEFT_TYPES or getattr(config, "layer_replication", None):
        return []
    if not config.target_modules:
        return []
    if config.target_modules == "all-linear":
        # which others are linear is not asked of files
        config.target_modules, asked = ".*", [one for one in asked if one[2]]
    named = [name for name, full, _ in asked if check_target_module_exists(config, full)]
    known = _linear_modules(base) if named and base else None
    return [name for name in named if known is None or name in known]


def main(path: str, base: str) -> None:
    """Print which of the modules on stdin an adapter's config names, as JSON."""
    sys.stdout.write(json.dumps(named_ones(path, base, json.load(sys.stdin))) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
