"""Files on object stores, found by the address that a recipe gives; it reads no content.

Whatever fsspec can open may be named: `s3://`, `gs://`, `hf://`, `https://` and others. Endpoint
and credentials are those of fsspec and the package behind it. Importing this module is cheap;
fsspec and such packages are imported when an address is looked at.
"""

import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from trainer.data.fields import shown
from trainer.data.layouts import PART_FOLDERS, is_data_name
from trainer.errors import DataError
from trainer.recipe.secrets import without_secrets

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Protocols whose package an extra of this project installs."""
CHAIN = re.compile(r"::[a-z][a-z0-9+.-]*://")
"""In an address of a file inside another one, as fsspec writes them."""
WILD = re.compile(r"[*?\[]")
QUERY = re.compile(r"(://[^\s'\"?]*)\?[^\s'\"]*")
"""What follows an address on the web, and may be a signature."""
CONTENT_KEYS = ("etag", "blob_id", "md5hash", "content-md5", "digest", "generation", "versionid")
"""What a store says of a file that is another one for another content; the first counts."""
TIME_KEYS = ("mtime", "lastmodified", "last-modified", "last_modified", "modified", "updated",
             "modify", "created")  # fmt: skip
"""When a file was written, where a store says nothing of its content."""
WEAK = "W/"
"""An ETag that begins so may be the same for other bytes."""
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError",
                  "TokenRetrievalError", "ProfileNotFound", "DefaultCredentialsError"}  # fmt: skip
"""Names of errors in packages that may not be installed."""
MOST_TOLD = 200
"""Characters of what an error says that a message has."""
GONE = (404, 410)
"""What a web server answers where there is nothing."""
CUT_OFF = {"ClientConnectionError", "ClientPayloadError", "ConnectionError", "TimeoutError"}
"""Names of errors of a connection, in packages that may not be installed."""
LONGEST_NAME = 255
"""Bytes of the name of a file, on all usual disks."""
HOPELESS = (PermissionError, IsADirectoryError, NotADirectoryError, ValueError,
            TypeError, NotImplementedError, ImportError)  # fmt: skip
"""Errors that come again however often one tries."""


@dataclass(frozen=True)
class RemoteFile:
    """One version of a file."""

    url: str
    """What messages call it: the address without a query and without a password."""
    path: str
    """What the file system calls it."""
    below: PurePosixPath
    """Where it stands below the folder of the address; a relative path."""
    size_bytes: int
    """Length of its content."""
    version: str
    """Another one for another content."""


@dataclass(frozen=True)
class RemoteFiles:
    """The files that an address names."""

    url: str
    """What messages call the address."""
    system: "AbstractFileSystem" = field(repr=False)
    """Reads them."""
    folder: PurePosixPath
    """Protocol, bucket and folder that `below` starts from; a relative path."""
    pattern: str
    """What names the files below the folder: a name, a glob, or nothing for the folder itself."""
    files: tuple[RemoteFile, ...]
    """In the order of their names, at least one."""


def is_remote(path: str) -> bool:
    """Whether a path is an address."""
    return ADDRESS.match(path) is not None


def placed(path: str, root: str) -> str:
    """The address, or the absolute path, of what a recipe names relative to its root."""
    if is_remote(path):
        return path
    if is_remote(root) and not Path(path).expanduser().is_absolute():
        # stores know neither of `.` nor of `..`
        folder, below = root.rstrip("/"), posixpath.normpath(path)
        while below.partition("/")[0] == ".." and "/" in folder.partition("://")[2]:
            folder, below = folder.rpartition("/")[0], below[3:]
        return folder if below in ("", ".") else f"{folder}/{below}"
    return str((Path(root).expanduser() / Path(path).expanduser()).absolute())


def find_remote(address: str, *, owner: str) -> RemoteFiles:
    """Ask a store which files an address names, and which version of each it has.

    Args:
        address: of a file, a folder or a glob.
        owner: recipe keys of the set and of the address, such as `data.sources.NAME: path`.

    Raises:
        DataError: if there is nothing, or it may not be read, the store cannot be reached, the
            package for it is missing, or it does not say which version a file is.
    """
    protocol, _, rest = address.partition("://")
    protocol = protocol.lower()
    # the end of a query may be that of a signature
    address = f"{protocol}://{rest if '?' in rest else rest.rstrip('/')}"
    url = shown_url(address)
    place = f"{owner} = {url}"
    try:
        system, path = _opened(address, place)
        system.invalidate_cache()
        folder, pattern, found = _listed(system, path)
        files = tuple(
            _remote_file(system, name, found[name], folder, place) for name in sorted(found)
        )
    except DataError:
        raise
    except Exception as error:  # the packages have errors of their own
        raise refusal(error, place) from error
    if not files:
        raise refusal(FileNotFoundError(), place)
    start = folder.removeprefix(f"{protocol}://").strip("/")
    return RemoteFiles(
        url=url,
        system=system,
        folder=PurePosixPath(protocol, *_parts(start, place)),
        pattern=pattern,
        files=files,
    )


def version_now(system: "AbstractFileSystem", file: RemoteFile) -> tuple[int | None, str]:
    """Size and version that a file has by now; raises what the package raises."""
    system.invalidate_cache()
    return _identified(system.info(file.path))


def refusal(error: Exception, place: str) -> DataError:
    """What a store or its package refuses, as a message.

    Args:
        error: what was raised.
        place: recipe key and address.
    """
    told = in_words(error.__cause__ or error)
    if _lacks_rights(error):
        got, expected = f"refused ({told})", "an address that may be read"
        advice = (
            "Give credentials as the package for it takes them, for example AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket; or "
            "correct the address."
        )
    elif is_gone(error):
        got = f"nothing there ({told})" if error.__cause__ else "nothing there"
        expected = "a file, a folder with data files or a glob"
        advice = "Correct bucket, path and endpoint."
    else:
        got, expected = told, "a store that can be read"
        advice = "Look at the network and the endpoint."
    return DataError(f"{place}: {got}; expected {expected}. {advice}")


def is_hopeless(error: Exception) -> bool:
    """Whether there is no use in trying again."""
    return isinstance(error, HOPELESS) or is_gone(error) or _lacks_rights(error)


def is_gone(error: Exception) -> bool:
    """Whether a store says that there is no such file.

    Of a web server that says something else, or nothing, fsspec says so too.
    """
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if status is not None:
        return isinstance(error, FileNotFoundError) and status in GONE
    return isinstance(error, FileNotFoundError) and not _names(cause) & CUT_OFF


def in_words(error: BaseException) -> str:
    """The kind of an error and the beginning of what it says, in one line."""
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # fsspec says so of whatever a web server answers
    text = QUERY.sub(r"\1", " ".join(str(error).split()))
    told = text if len(text) <= MOST_TOLD else f"{text[:MOST_TOLD]}..."
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def _lacks_rights(error: Exception) -> bool:
    # whatever a web server answers, fsspec says that there is no such file
    status = getattr(error.__cause__, "status", None)
    is_refused = isinstance(error, PermissionError) or status in (401, 403)
    return is_refused or bool(_names(error) & NO_CREDENTIALS)


def _names(error: BaseException | None) -> set[str]:
    """Of the classes of an error."""
    return {kind.__name__ for kind in type(error).__mro__}


def shown_url(address: str) -> str:
    """An address without its query, which may be a signature, and without a password."""
    is_web = address.partition("://")[0].lower() in ("http", "https")
    return without_secrets(address.partition("?")[0] if is_web else address)


def _opened(address: str, place: str) -> "tuple[AbstractFileSystem, str]":
    """The file system of an address, and the path in it.

    Raises:
        DataError: if the protocol is unknown, or its package is missing.
    """
    import fsspec

    protocol = address.partition("://")[0]
    if protocol not in fsspec.available_protocols():
        raise DataError(
            f"{place}: protocol {protocol}; expected one that fsspec knows, such as s3, gs, hf or "
            "https. Correct the address, or give a path."
        )
    try:
        if CHAIN.search(address):
            return fsspec.url_to_fs(address)
        kind = fsspec.get_filesystem_class(protocol)
        # a name may hold `::`, which fsspec would take for another address
        return kind(**kind._get_kwargs_from_urls(address)), str(kind._strip_protocol(address))
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        advice = f"Run: pip install -e '.[{extra}]'" if extra else "Install it."
        raise DataError(
            f"{place}: not readable ({error}); expected the package that reads {protocol}://. "
            f"{advice}"
        ) from error


def _listed(
    system: "AbstractFileSystem", path: str
) -> tuple[str, str, dict[str, Mapping[str, Any]]]:
    """Folder, pattern below it, and what the store says of each file that is meant."""
    wild = WILD.search(path.partition("?")[0] if "://" in path else path)
    if wild is not None and not (wild.group() == "[" and system.exists(path)):
        folder, _, _ = path[: wild.start()].rpartition("/")
        found = system.glob(path, detail=True)
        # an object whose name ends with a slash stands for a folder
        files = {
            name: info
            for name, info in found.items()
            if info["type"] == "file" and not name.endswith("/")
        }
        return folder, path.removeprefix(folder).lstrip("/"), files
    info = system.info(path)
    if info["type"] != "directory":
        folder, _, name = path.rpartition("/")
        return folder, name.partition("?")[0] if "://" in path else name, {path: info}
    # the store's own name for it: a revision may be left out
    folder = str(info["name"]).rstrip("/")
    below = system.find(folder, maxdepth=2, detail=True)
    return folder, "", {name: one for name, one in below.items() if _is_part(folder, name)}


def _is_part(folder: str, name: str) -> bool:
    """Whether a file below a folder is one of those that are read of folders."""
    *between, last = name.removeprefix(folder).strip("/").split("/")
    return is_data_name(last) and all(part in PART_FOLDERS for part in between)


def _remote_file(
    system: "AbstractFileSystem", name: str, info: Mapping[str, Any], folder: str, place: str
) -> RemoteFile:
    """A file with its size and version.

    Raises:
        DataError: if the store does not say them, or the name is none for a disk.
    """
    size, version = _identified(info)
    if size is None or not version:
        size, version = _identified(system.info(name))
    plain = name.partition("?")[0] if "://" in name else name
    below = PurePosixPath(*_parts(plain.removeprefix(folder).removeprefix("/"), place))
    if size is None or not version:
        raise DataError(
            f"{place}: no size or no version of {below}; expected a server that says how long a "
            "file is and, by ETag or Last-Modified, when it is another one. Download it, and give "
            "its path."
        )
    url = shown_url(str(system.unstrip_protocol(name)))
    return RemoteFile(url=url, path=name, below=below, size_bytes=size, version=version)


def _identified(info: Mapping[str, Any]) -> tuple[int | None, str]:
    """Size in bytes and version of a file; None and nothing where the store does not say them."""
    said = {key.lower(): str(value) for key, value in info.items() if value}
    version = next((f"{key} {said[key]}" for key in CONTENT_KEYS if key in said), "")
    time = next((f"{key} {said[key]}" for key in TIME_KEYS if key in said), "")
    if not version or WEAK in version:
        version = f"{version} {time}".strip()
    size = info.get("size")
    return (None if size is None else int(size)), version


def _parts(path: str, place: str) -> list[str]:
    """The parts of a path, which may be put below a folder of this machine.

    Raises:
        DataError: if one of them is no name on a disk.
    """
    parts = path.split("/") if path else []
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise DataError(
            f"{place}: an object {shown(path)}; expected names between slashes, none of them "
            "empty, '.' or '..'. Rename the object."
        )
    longest = max(parts, key=lambda part: len(os.fsencode(part)), default="")
    if len(os.fsencode(longest)) > LONGEST_NAME:
        raise DataError(
            f"{place}: an object {shown(path)} with a name of {len(os.fsencode(longest))} bytes; "
            f"expected at most {LONGEST_NAME} between slashes. Rename the object."
        )
    return parts
