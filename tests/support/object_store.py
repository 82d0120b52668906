"""An object store of S3's kind on this machine: moto's server, with faults that a test asks for.

Nothing of it stands in for this project or for s3fs. It answers whatever the real clients ask.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from werkzeug.serving import make_server

BUCKET = "data"


@dataclass
class Faults:
    """What goes wrong from now on, and what was asked until now."""

    num_broken: int = 0
    """Contents that break off in the middle before one comes whole."""
    sent_share: float = 0.5
    """How much of a content that breaks off is sent."""
    refuses: bool = False
    """Whether every request is answered with 403."""
    num_unavailable: int = 0
    """Requests that are answered with 503."""
    hides_versions: bool = False
    """Whether answers say nothing of when or whether a file changed."""
    at_get: "list[Any]" = field(default_factory=list)
    """Functions, each called once before one content is sent."""
    ranges: list[str] = field(default_factory=list)
    """Ranges of all contents that were asked for; empty texts: all of it."""


@dataclass(frozen=True)
class Store:
    """A running store."""

    url: str
    """Its endpoint."""
    faults: Faults
    """Of its own."""

    def put(self, key: str, content: bytes) -> str:
        """Write an object that all may read, whatever its name; its address."""
        from moto.s3.models import get_canned_acl

        _backend().put_object(BUCKET, key, content).set_acl(get_canned_acl("public-read"))
        return f"s3://{BUCKET}/{key}"

    def remove(self, key: str) -> None:
        """Delete an object."""
        _backend().delete_object(BUCKET, key)

    def put_folder(self, prefix: str, folder: Path) -> str:
        """Write all files below a folder; the address of the prefix."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def environment(self) -> dict[str, str]:
        """How a user says where the store is and who may read it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "reader",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
            "AWS_CONFIG_FILE": "/nonexistent",
        }


def _backend() -> Any:
    """What moto's server answers from, in this process."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    return s3_backends[DEFAULT_ACCOUNT_ID]["aws"]


@dataclass
class _Faulty:
    """An application of WSGI before which faults stand."""

    application: Any
    faults: Faults

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if self.faults.refuses:
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return []
        if self.faults.num_unavailable:
            self.faults.num_unavailable -= 1
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return []
        is_content = environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].count("/") > 1
        if is_content:
            self.faults.ranges.append(environ.get("HTTP_RANGE", ""))
            if self.faults.at_get:
                self.faults.at_get.pop(0)()
        body = b"".join(self.application(environ, partial(self._start, start)))
        if is_content and self.faults.num_broken:
            self.faults.num_broken -= 1
            body = body[: int(len(body) * self.faults.sent_share)]
        return [body]

    def _start(self, start: Any, status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
        """Begin an answer, without the headers that are hidden."""
        if self.faults.hides_versions:
            hidden = ("etag", "last-modified")
            headers = [(name, value) for name, value in headers if name.lower() not in hidden]
        return start(status, headers, *more)


@contextmanager
def serving_store() -> Iterator[Store]:
    """A store with one empty bucket, on a free port."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    _backend().reset()
    faults = Faults()
    application = _Faulty(DomainDispatcherApplication(create_backend_app), faults)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    store = Store(f"http://127.0.0.1:{server.server_port}", faults)
    try:
        requests.put(f"{store.url}/{BUCKET}", timeout=30).raise_for_status()
        yield store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def store_in_reach() -> Iterator[Store]:
    """A store that this process finds by its environment, whose client tries each request once."""
    import s3fs

    with serving_store() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        yield store
        s3fs.S3FileSystem.clear_instance_cache()
