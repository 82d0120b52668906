"""Send an exported folder to the Hugging Face hub in one commit; it must not change the folder.

The folder is checked first, without a network: it must be complete, and hold nothing that training
leaves behind.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.checkpoint.dense_files import dense_folder
from trainer.errors import CheckpointError, TrainerError
from trainer.run_folder.layout import (
    BAD_STEPS,
    BEST,
    CHECKPOINTS,
    EVALUATIONS,
    FACTS,
    FINISHED,
    LATEST,
    METRICS,
    MODEL,
    RECIPE,
    REPORT,
    TENSORBOARD,
)

if TYPE_CHECKING:
    from huggingface_hub import HfApi

INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = ("model.safetensors", INDEX)
ADAPTER_WEIGHTS = ("adapter_model.safetensors",)
OF_TRAINING = (
    *(RECIPE, METRICS, EVALUATIONS, FACTS, FINISHED, REPORT, CHECKPOINTS, BAD_STEPS, TENSORBOARD),
    *(LATEST, BEST, "manifest.json", "global_step*", "*_optim_states.pt", "*_model_states.pt"),
    *("*.pt", "*.pth", "*.ckpt", "*.jsonl", "*.npy", "optimizer*", "events.out.tfevents*"),
    *("*.partial*", ".partial-*", ".journal.jsonl"),
)
"""Names that training, merging and searching leave; no client reads them."""
REPLACED = ("*.safetensors", "*.safetensors.index.json", ADAPTER_CONFIG)
"""What would be loaded besides the new weights if an earlier upload left it."""


@dataclass(frozen=True, kw_only=True)
class UploadRequest:
    """Where a folder goes."""

    repo: str
    """`NAME` or `OWNER/NAME`."""
    private: bool
    """Whether nobody else may read it; a repository that is there must be so already."""
    revision: str | None
    """Branch, made where there is none; None: the main one."""
    message: str
    """Of the commit."""


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """What the hub has now."""

    repo: str
    """`OWNER/NAME`."""
    commit: str
    """Address of the commit."""
    removed: Sequence[str]
    """Weights of an earlier upload that the commit took away."""


class UploadError(TrainerError):
    """The hub did not take the folder."""


def export_files(folder: Path) -> list[Path]:
    """All files of a complete export.

    Args:
        folder: `model/` or `merged/` of a run, or the output of a merge.

    Returns:
        Paths in the folder, sorted; hidden files are left out, `.gitattributes` is not.

    Raises:
        CheckpointError: it is no export, it is incomplete, or it holds files of training.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: folder = missing; expected an export. Check the path.")
    if (folder / RECIPE).is_file():
        raise CheckpointError(
            f"{folder}: {RECIPE} = present; expected an export, not the folder of its run. Give "
            f"{folder / MODEL}."
        )
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    wanted = ["tokenizer.json", ADAPTER_CONFIG if is_adapter else "modules.json"]
    wanted += [] if is_adapter else ["config.json"]
    for name in wanted:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: {name} = missing; expected a complete export. Give the model/ of a "
                "finished run, or export it again."
            )
    _check_weights(folder, ADAPTER_WEIGHTS if is_adapter else WEIGHTS)
    dense = dense_folder(folder)
    if dense is not None:
        _check_weights(dense, WEIGHTS[:1])
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        _refuse_training(folder, path)
    return [path for path in files if not _is_hidden(path.relative_to(folder))]


def local_base(folder: Path) -> str | None:
    """The folder of this machine that an adapter names as its base, if it names one.

    Args:
        folder: as `export_files` takes it.
    """
    file = folder / ADAPTER_CONFIG
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    base = str(config.get("base_model_name_or_path", ""))
    is_local = base.startswith(("/", ".", "~")) or (base and Path(base).is_dir())
    return base if is_local else None


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".gitattributes" for part in path.parts)


def _refuse_training(folder: Path, path: Path) -> None:
    for part in path.relative_to(folder).parts:
        if any(fnmatch(part, pattern) for pattern in OF_TRAINING):
            raise CheckpointError(
                f"{path}: file = left by training; expected an export alone. Move it away, or give "
                "the folder that the trainer exported."
            )


def _check_weights(folder: Path, names: Sequence[str]) -> None:
    """Refuse weights that are missing or cut.

    Args:
        folder: of the export.
        names: of which one must be there.

    Raises:
        CheckpointError: naming the file.
    """
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            f"{folder}: {names[0]} = missing; expected weights. Export the model again."
        )
    shards = [found] if found.name != INDEX else [folder / name for name in _shards(found)]
    for shard in shards:
        # a name that leads elsewhere is of no file of this folder
        size = shard.stat().st_size if shard.parent == folder and shard.is_file() else 0
        wanted = _told_bytes(shard) if size >= 8 else None
        if size != wanted:
            raise CheckpointError(
                f"{shard}: size = {size:,} bytes; expected "
                f"{'a safetensors file' if wanted is None else f'{wanted:,}, as its header says'}. "
                "Export the model again."
            )


def _shards(index: Path) -> list[str]:
    """Names of the files that an index lists."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index}: content = no index ({type(error).__name__}); expected a weight_map. Export "
            "the model again."
        ) from error


def _told_bytes(path: Path) -> int | None:
    """Size of a safetensors file by its own header; None where it has none."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [one["data_offsets"][1] for name, one in header.items() if name[:2] != "__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
    return 8 + length + max(ends, default=0)


def check_repo(repo: str) -> None:
    """Refuse what the hub would not take as a name.

    Raises:
        UploadError: with the rule that it breaks.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UploadError(
            f"push: REPO = {repo}; expected OWNER/NAME ({_line(error)}). Correct it."
        ) from error


def upload(
    folder: Path, request: UploadRequest, changed: Callable[[str], Mapping[str, bytes]]
) -> Uploaded:
    """Make the repository where there is none, and commit all files of the folder.

    Args:
        folder: as `export_files` takes it.
        request: see its fields.
        changed: from `OWNER/NAME` to content, by name in the folder, that goes in place of the
            file's own.

    Returns:
        The commit.

    Raises:
        CheckpointError: see `export_files`.
        UploadError: no token, or the hub or the network refused.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    # what the hub's errors and those of its network have in common
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    check_repo(request.repo)
    files = {path.relative_to(folder).as_posix(): path for path in export_files(folder)}
    if get_token() is None:
        raise UploadError(
            "push: token = none; expected one that may write to the hub. Run `hf auth login`, or "
            "set HF_TOKEN."
        )
    api = HfApi()
    try:
        repo = _open_repo(api, request)
        stale = _stale(api, repo, request.revision, files)
        content: dict[str, Path | bytes] = {**files, **changed(repo)}
        additions = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content[name])
            for name, path in files.items()
        ]
        done = api.create_commit(
            repo,
            [*additions, *(CommitOperationDelete(path_in_repo=name) for name in stale)],
            commit_message=request.message,
            revision=request.revision,
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise UploadError(_refusal(request, error)) from error
    return Uploaded(repo=repo, commit=str(done.commit_url), removed=stale)


def _open_repo(api: "HfApi", request: UploadRequest) -> str:
    """Make repository and branch where they are missing; gives `OWNER/NAME`.

    Raises:
        UploadError: the repository is public and should be private.
    """
    private = True if request.private else None
    repo = api.create_repo(request.repo, private=private, exist_ok=True).repo_id
    if request.private and not api.model_info(repo).private:
        raise UploadError(
            f"push: {repo} = public; expected a private repository. Make it private on the hub, or "
            "leave --private out."
        )
    if request.revision is not None and not request.revision.startswith("refs/"):
        api.create_branch(repo, branch=request.revision, exist_ok=True)
    return repo


def _stale(api: "HfApi", repo: str, revision: str | None, files: Mapping[str, Path]) -> list[str]:
    """Weights in the repository that are not among the new files."""
    there = api.list_repo_files(repo, revision=revision)
    return [
        name
        for name in there
        if name not in files and any(fnmatch(Path(name).name, one) for one in REPLACED)
    ]


def _refusal(request: UploadRequest, error: Exception) -> str:
    """What happened, in one message with what to do."""
    status = next(_statuses(error), None)
    found, advice = {
        401: ("not logged in", "Run `hf auth login` with a token that is valid, or set HF_TOKEN."),
        403: ("not allowed", f"Use a token that may write to {request.repo}."),
        404: ("not found", "Check REPO and --revision, and that the token may see them."),
    }.get(status or 0, ("not taken", "Try again; files that arrived are not sent twice."))
    if status is None and not isinstance(error, ValueError):
        found, advice = "not reached", "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE."
    elif isinstance(error, ValueError) or status == 400:
        advice = "Correct what the hub complains of."
    return f"push: {request.repo} = {found} ({_line(error)}); expected to upload it. {advice}"


def _statuses(error: BaseException | None) -> Iterator[int]:
    """HTTP statuses of an error and of what caused it."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            yield response.status_code
        error = error.__cause__


def _line(error: BaseException) -> str:
    """What the hub said, or else the error's own words, in one line."""
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    status = next(_statuses(cause), None)
    told = getattr(cause, "server_message", None)
    text = f"{status} {told}" if status and told else str(cause)
    return " ".join(text.split())[:300] or type(cause).__name__
