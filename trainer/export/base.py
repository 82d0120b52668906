"""Where the files of the trained model's base lie on this machine; it downloads nothing."""

from pathlib import Path


def folder_of_base(path: str, revision: str | None) -> Path | None:
    """Folder of a base, whose config, tokenizer and licence an export looks at.

    Args:
        path: folder or hub id.
        revision: commit of a hub model.

    Returns:
        The folder, or the hub's cache of it; None where neither is there.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
