"""A stand-in for the hub's HTTP API, as far as reading a data set asks it; nothing else is one.

It serves the files of a folder as one set, at commits that a test names.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.served import served

SET = "team/docs"


@dataclass
class SetHub:
    """What is served."""

    folder: Path
    """Its files."""
    url: str = ""
    commit: str = "1" * 40
    """Where `main` is."""
    refused: set[str] = field(default_factory=set)
    """Files whose content is refused, so that clients do not try for long."""
    read: list[str] = field(default_factory=list)
    """Files whose content was asked for."""

    def environment(self, home: Path) -> dict[str, str]:
        """How a user says where the hub is, and where its caches are."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}


@contextmanager
def serving_sets(folder: Path) -> Iterator[SetHub]:
    """A running stand-in on a free port."""
    hub = SetHub(folder)
    with served(type("Handler", (_Handler,), {"hub": hub})) as hub.url:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    hub: SetHub

    def log_message(self, format: str, *args: Any) -> None:
        """Tests have no use for a log."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if re.fullmatch(rf"/api/datasets/{SET}(/revision/.+)?", path):
            names = [{"rfilename": name} for name in self.names()]
            self.reply({"id": SET, "sha": self.hub.commit, "siblings": names, "tags": []})
        elif re.match(rf"/api/datasets/{SET}/tree/", path):
            self.reply([self.info(name) for name in self.names()])
        elif found := re.fullmatch(rf"/datasets/{SET}/resolve/[^/]+/(.+)", path):
            self.content(found[1])
        else:
            self.refuse()

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if not re.match(rf"/api/datasets/{SET}/paths-info/", unquote(self.path)):
            self.refuse()
            return
        asked = re.findall(r"paths=([^&]*)", body)
        names = set(map(unquote, asked)) & set(self.names())
        self.reply([self.info(name) for name in sorted(names)])

    def names(self) -> list[str]:
        files = sorted(file for file in self.hub.folder.rglob("*") if file.is_file())
        return [file.relative_to(self.hub.folder).as_posix() for file in files]

    def info(self, name: str) -> dict[str, Any]:
        data = (self.hub.folder / name).read_bytes()
        oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        return {"type": "file", "path": name, "size": len(data), "oid": oid}

    def refuse(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def reply(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def content(self, name: str) -> None:
        """A file, or a range of it."""
        if name not in self.names():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", self.hub.commit)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if name in self.hub.refused and self.command == "GET":
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = (self.hub.folder / name).read_bytes()
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(span[1]) if span else 0
        end = min(int(span[2]) + 1, len(data)) if span and span[2] else len(data)
        self.send_response(206 if span else 200)
        self.send_header("ETag", f'"{self.info(name)["oid"]}"')
        self.send_header("X-Repo-Commit", self.hub.commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.read.append(name)
        self.wfile.write(data[start:end])
