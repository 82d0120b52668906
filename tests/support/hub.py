"""A stand-in for the hub's HTTP API, as far as an upload asks it; nothing else is a stand-in.

It keeps what arrives, so that a test compares bytes. Small files come inside the commit, others
by the LFS protocol, in parts where they are larger than one.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import yaml

from tests.support.served import served

TOKEN = "hf_test"
READ_ONLY = "hf_reader"
"""A token that may not write."""
PART_BYTES = 5_000_000
FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
TEXTS = ("library_name", "pipeline_tag", "base_model_relation", "license")
LISTS = ("tags", "datasets", "language", "model-index")


@dataclass
class Repo:
    """A repository."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    """Files by branch and path."""
    messages: list[str] = field(default_factory=list)
    """Of its commits."""


@dataclass
class Hub:
    """Everything that the stand-in knows."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Large files by sha256."""
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """Of large files that are on their way."""
    requests: list[str] = field(default_factory=list)
    """Method and path of each request."""


@contextmanager
def serving() -> Iterator[Hub]:
    """A running stand-in on a free port."""
    hub = Hub()
    with served(type("Handler", (_Handler,), {"hub": hub})) as hub.url:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    ROUTES = (
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/repos/create", "create"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<branch>[^/]+)", "tree"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)", "branch"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<branch>[^/]+)", "preupload"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)/(?P<part>\d+)", "put"),
        ("POST", r"/lfs/(?P<oid>\w+)/complete", "complete"),
        ("POST", r"/lfs/(?P<oid>\w+)/verify", "verify"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<branch>[^/]+)", "commit"),
    )
    OPEN = ("validate", "put", "complete", "verify")
    """Routes without a token: storage has signed addresses."""

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def log_message(self, format: str, *args: Any) -> None:
        """Tests have no use for a log."""

    def answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{method} {path}")
        for wanted, pattern, name in self.ROUTES:
            found = re.fullmatch(pattern, path)
            if wanted == method and found:
                refusal = None if name in self.OPEN else self.refused(name, **found.groupdict())
                self.reply(*(refusal or getattr(self, name)(body, **found.groupdict())))
                return
        self.reply(404, {"error": f"no route {method} {path}"})

    def refused(
        self, name: str, repo: str | None = None, branch: str | None = None
    ) -> tuple[int, Any] | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_ONLY):
            return 401, {"error": "Invalid username or password."}
        if token == READ_ONLY and name != "info":
            return 403, {"error": "You do not have the required permissions."}
        if repo is not None and repo not in self.hub.repos:
            return 404, {"error": "Repository not found"}
        if branch and name != "branch" and branch not in self.hub.repos[repo or ""].branches:
            return 404, {"error": "Invalid rev id"}
        return None

    def reply(self, status: int, content: Any, etag: str | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if etag is not None:
            self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(data)

    def validate(self, body: bytes) -> tuple[int, Any]:
        problems = card_problems(json.loads(body)["content"])
        errors = [{"message": problem} for problem in problems]
        return (400 if errors else 200), {"errors": errors, "warnings": []}

    def create(self, body: bytes) -> tuple[int, Any]:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        known = name in self.hub.repos
        self.hub.repos.setdefault(name, Repo(private=asked.get("visibility") == "private"))
        return (409 if known else 200), {"url": f"{self.hub.url}/{name}"}

    def info(self, body: bytes, repo: str) -> tuple[int, Any]:
        private = self.hub.repos[repo].private
        return 200, {"id": repo, "private": private, "sha": "0" * 40, "tags": [], "siblings": []}

    def tree(self, body: bytes, repo: str, branch: str) -> tuple[int, Any]:
        files = self.hub.repos[repo].branches[branch]
        return 200, [
            {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
            for path, data in files.items()
        ]

    def branch(self, body: bytes, repo: str, branch: str) -> tuple[int, Any]:
        branches = self.hub.repos[repo].branches
        known = branch in branches
        branches.setdefault(branch, dict(branches["main"]))
        return (409 if known else 200), {}

    def preupload(self, body: bytes, repo: str, branch: str) -> tuple[int, Any]:
        return 200, {
            "files": [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for one in json.loads(body)["files"]
            ]
        }

    def batch(self, body: bytes, repo: str) -> tuple[int, Any]:
        objects = [self.action(one) for one in json.loads(body)["objects"]]
        return 200, {"transfer": "basic", "objects": objects}

    def action(self, one: dict[str, Any]) -> dict[str, Any]:
        """Where a large file goes, in parts if it is larger than one."""
        if one["oid"] in self.hub.blobs:
            return one
        place = f"{self.hub.url}/lfs/{one['oid']}"
        upload: dict[str, Any] = {"href": f"{place}/0"}
        if one["size"] > PART_BYTES:
            count = -(-one["size"] // PART_BYTES)
            parts = {str(part): f"{place}/{part}" for part in range(1, count + 1)}
            header = {"chunk_size": str(PART_BYTES), **parts}
            upload = {"href": f"{place}/complete", "header": header}
        return one | {"actions": {"upload": upload, "verify": {"href": f"{place}/verify"}}}

    def put(self, body: bytes, oid: str, part: str) -> tuple[int, Any, str]:
        self.hub.parts.setdefault(oid, {})[int(part)] = body
        if part == "0":
            self.keep(oid)
        return 200, {}, f'"{part}"'

    def keep(self, oid: str) -> None:
        parts = self.hub.parts.pop(oid)
        self.hub.blobs[oid] = b"".join(parts[number] for number in sorted(parts))

    def complete(self, body: bytes, oid: str) -> tuple[int, Any]:
        assert json.loads(body)["oid"] == oid
        self.keep(oid)
        return 200, {}

    def verify(self, body: bytes, oid: str) -> tuple[int, Any]:
        data = self.hub.blobs[oid]
        asked = json.loads(body)
        same = (hashlib.sha256(data).hexdigest(), len(data)) == (asked["oid"], asked["size"])
        return (200 if same else 400), {}

    def commit(self, body: bytes, repo: str, branch: str) -> tuple[int, Any]:
        files = self.hub.repos[repo].branches[branch]
        for line in body.splitlines():
            key, value = (json.loads(line)[name] for name in ("key", "value"))
            if key == "header":
                self.hub.repos[repo].messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(body, usedforsecurity=False).hexdigest()
        return 200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid}


def card_problems(content: str) -> list[str]:
    """What the hub's documented rules say against the front matter of a card."""
    found = FRONT_MATTER.match(content)
    data = yaml.safe_load(found[1]) if found else None
    if not isinstance(data, dict):
        return ["no front matter"]
    problems = [f"{key}: no text" for key in TEXTS if not isinstance(data.get(key, ""), str)]
    problems += [f"{key}: no list" for key in LISTS if not isinstance(data.get(key, []), list)]
    relations = ("finetune", "adapter", "merge", "quantized")
    if data.get("base_model_relation", "finetune") not in relations:
        problems.append("base_model_relation: unknown")
    problems += [f"datasets: {one}" for one in data.get("datasets", ()) if ":" in one]
    for model in data.get("model-index", ()):
        for result in model["results"]:
            for part, keys in {"task": ("type",), "dataset": ("type", "name")}.items():
                problems += [f"{part}.{key}" for key in keys if not result[part].get(key)]
            problems += [
                f"metric {one}"
                for one in result["metrics"]
                if not one.get("type") or not isinstance(one.get("value"), int | float)
            ]
    return problems
