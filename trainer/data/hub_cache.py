"""Where the client of the Hugging Face hub keeps the files of sets; it downloads nothing."""

from pathlib import Path


def cached_snapshot(identifier: str) -> Path | None:
    """The folder of a set's files in the cache, as far as they were downloaded; None: none were.

    Args:
        identifier: `organisation/set`.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(identifier, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):
        return None
