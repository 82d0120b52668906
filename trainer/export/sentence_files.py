"""The files of sentence-transformers in the form that all its releases and servers read.

Release 6 itself writes other names for the modules and another form of pooling, which servers do
not take. It must not choose a pooling or a prompt: it says what is there in other words.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer.checkpoint.json_files import read_modules, read_object, write_json
from trainer.export.changes import differences
from trainer.recipe.tasks import TASKS

SETTINGS = "config_sentence_transformers.json"
MODULES_FILE = "modules.json"
POOLING_FILE = "1_Pooling/config.json"
BACKBONE_FILE = "sentence_bert_config.json"
OLDER_TYPES = "sentence_transformers.models."
"""Where every release finds the classes of modules."""
MOVED_TYPES = ("Transformer", "Pooling", "Normalize", "Dense")
POOLING_MODES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
    "weightedmean": "pooling_mode_weightedmean_tokens",
}
"""The newer word for a pooling, and the switch of older releases."""
LIBRARIES = {"sentence_transformers": "sentence-transformers", "transformers": "transformers",
             "pytorch": "torch"}  # fmt: skip
"""Names in the block of versions, and the packages."""


def complete_sentence_files(folder: Path) -> list[str]:
    """Complete the files of sentence-transformers; says what was changed.

    Args:
        folder: may have none of them.

    Raises:
        CheckpointError: if one is no JSON of its form.
    """
    if not (folder / MODULES_FILE).is_file():
        return []
    changes = _modules(folder / MODULES_FILE)
    for name, complete in (
        (SETTINGS, _settings),
        (POOLING_FILE, _pooling),
        (BACKBONE_FILE, _backbone),
    ):
        path = folder / name
        old = read_object(path) if path.is_file() else {}
        new = complete(dict(old))
        found = differences(name, old, new)
        if found:
            write_json(path, new)
        changes += found
    return changes


def _modules(path: Path) -> list[str]:
    """The types of modules under the names of older releases."""
    old, new = read_modules(path), read_modules(path)
    for module in new:
        place, _, name = str(module.get("type", "")).rpartition(".")
        if name in MOVED_TYPES and place.startswith("sentence_transformers"):
            module["type"] = OLDER_TYPES + name
    if old == new:
        return []
    write_json(path, new)
    return [f"{MODULES_FILE}: types of modules under {OLDER_TYPES[:-1]}, which all releases read"]


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Prompts under the names of benchmarks too, and which releases wrote the folder."""
    prompts = with_benchmark_names(settings.get("prompts") or {})
    added = {"model_type": "SentenceTransformer", "__version__": _versions()}
    return added | settings | {"prompts": prompts}


def with_benchmark_names(prompts: Mapping[str, str]) -> dict[str, str]:
    """Prompts by name, those of tasks under the names of benchmarks too."""
    named = dict(prompts)
    for kind in TASKS.values():
        for name, own in kind.benchmark_prompts.items():
            if own in named:
                named.setdefault(name, named[own])
    return named


def _versions() -> dict[str, str]:
    """Releases of the libraries, of those that are installed."""
    found = {}
    for name, package in LIBRARIES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _pooling(pooling: dict[str, Any]) -> dict[str, Any]:
    """Switches for a word, where there is one word alone."""
    mode = pooling.get("pooling_mode")
    if not isinstance(mode, str) or mode not in POOLING_MODES:
        return pooling
    kept = {key: value for key, value in pooling.items()
            if key not in ("pooling_mode", "embedding_dimension")}  # fmt: skip
    size = pooling.get("embedding_dimension")
    switches = {switch: name == mode for name, switch in POOLING_MODES.items()}
    return ({} if size is None else {"word_embedding_dimension": size}) | switches | kept


def _backbone(settings: dict[str, Any]) -> dict[str, Any]:
    """With the key by which vLLM knows the file."""
    return settings | {"do_lower_case": bool(settings.get("do_lower_case"))}
