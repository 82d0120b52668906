"""Does a base have the tensors that its config.json promises? It must not read tensors.

Inputs that agree with each other may all lack a tensor, or carry a prefix that no reader knows; the
result would then be loaded with random values in their place. Names that look odd are compared with
those of the architecture, which a process of its own asks transformers for: it would take more
memory than a merge may.
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

from trainer.checkpoint.names import likely_prefix
from trainer.errors import CheckpointError
from trainer.recipe.unused_modules import UNUSED

IN_LAYER = re.compile(r"(?P<stack>.*?)\.(?P<index>\d+)\.(?P<rest>.+)")
STACKS = frozenset({"layers", "h", "layer", "blocks", "block", "encoder.layer", "encoder.layers",
                    "encoder.block", "decoder.layers", "decoder.block", "transformer.layer",
                    "transformer.blocks", "encoder.albert_layer_groups"})  # fmt: skip
"""Where a bare backbone keeps its layers."""
TIMEOUT_SEC = 300
MAX_NAMED = 5


def check_expected(path: Path, names: Collection[str], folders: Iterable[Path]) -> None:
    """Refuse a base that lacks tensors of its architecture, or keeps them under other names.

    Args:
        path: of the base, for messages.
        names: of its backbone, without a known prefix.
        folders: that may hold its config.json.

    Raises:
        CheckpointError: naming the tensors, and the likely prefix.
    """
    config = next((one for one in folders if (one / "config.json").is_file()), None)
    if config is None or not looks_odd(names):
        return
    expected = _names_of(config)
    own = set(names)
    missing = [name for name in expected if name not in own]
    prefix = likely_prefix(expected, names)
    # on disk a name may be another than the model's own, but not where a layer beside has it
    known = _places(own)
    lost = missing if prefix else [name for name in missing if _place(name) in known]
    if lost:
        more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
        advice = "Save it whole."
        if prefix:
            advice = f"Save it without the prefix {prefix} that it puts before their names."
        raise CheckpointError(
            f"{path}: {', '.join(lost[:MAX_NAMED])}{more} = missing ({len(lost)} of the "
            f"{len(expected)} tensors of its config.json; the first that it has is "
            f"{next(iter(names))}); expected all of them. {advice}"
        )


def looks_odd(names: Iterable[str]) -> bool:
    """Whether a backbone's layers lie in an unusual place, or are not all alike.

    Args:
        names: without a known prefix.
    """
    layers: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for match in filter(None, map(IN_LAYER.fullmatch, names)):
        layers[match["stack"]][int(match["index"])].add(match["rest"])
    return any(
        stack not in STACKS
        or sorted(rests) != list(range(len(rests)))
        or any(one != rests[0] for one in rests.values())
        for stack, rests in layers.items()
    )


def _place(name: str) -> tuple[str, str] | None:
    """Stack and name within its layer, whichever layer; None outside of layers."""
    match = IN_LAYER.fullmatch(name)
    return (match["stack"], match["rest"]) if match else None


def _places(names: Iterable[str]) -> set[tuple[str, str]]:
    return set(filter(None, map(_place, names)))


def _names_of(folder: Path) -> list[str]:
    """Names of an architecture's tensors; empty where transformers does not know it."""
    command = [sys.executable, "-m", __name__, str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SEC, check=True
        )
        return list(json.loads(done.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, OSError, ValueError, LookupError):
        return []


def main(folder: str) -> None:
    """Print the names of the tensors that an embedder of this config needs, as JSON."""
    import torch
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=False)
    names = [name for name, _ in model.named_parameters() if not name.startswith(UNUSED)]
    sys.stdout.write(json.dumps(names) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
