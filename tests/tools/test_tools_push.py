"""Uploading: what arrives at the hub equals the folder, and what goes wrong is one message."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import hub as stand_in
from tests.support.hub import PART_BYTES, Hub, Repo
from tools import push as push_tool
from trainer.cli import ending_with_code
from trainer.errors import CheckpointError
from trainer.export.embedder_files import modules_of
from trainer.export.upload import export_files
from trainer.recipe.schema import ProjectionRecipe

ROOT = Path(__file__).resolve().parents[2]
CARD = """---
library_name: sentence-transformers
tags: [dense]
---

# a model

`SentenceTransformer("runs/a/model")`, beside `runs/a/model-old`

<!-- place: runs/a/model -->
"""


def safetensors(num_bytes: int, fill: bytes = b"w") -> bytes:
    """A file of one tensor."""
    slot = {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": slot}).encode()
    return struct.pack("<Q", len(header)) + header + fill * num_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export, as far as files go."""
    export = tmp_path / "model"
    (export / "1_Pooling").mkdir(parents=True)
    (export / "2_Normalize").mkdir()
    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
        (export / name).write_text(json.dumps({"name": name, "text": "é"}, ensure_ascii=False))
    (export / "modules.json").write_text(json.dumps(modules_of(None)))
    (export / "model.safetensors").write_bytes(safetensors(100))
    (export / "README.md").write_text(CARD)
    return export


@pytest.fixture(scope="module")
def serving() -> Iterator[Hub]:
    with stand_in.serving() as hub:
        yield hub


@pytest.fixture
def hub(serving: Hub) -> Hub:
    """A hub without anything in it."""
    for content in (serving.repos, serving.blobs, serving.parts, serving.requests):
        content.clear()
    return serving


def push(
    *arguments: object, endpoint: str, token: str | None = stand_in.TOKEN, **changes: str
) -> subprocess.CompletedProcess[str]:
    """The command, with nothing of this machine's own login; large files by LFS."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    login = {} if token is None else {"HF_TOKEN": token}
    settings = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": "/nonexistent"}
    return subprocess.run(
        [sys.executable, "tools/push.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=kept | settings | login | changes,
        timeout=120,
    )


def sent(folder: Path, repo: str) -> dict[str, bytes]:
    """Files of a folder as they should be on the hub."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
             if p.is_file()}  # fmt: skip
    place = b'SentenceTransformer("runs/a/model")'
    card = files["README.md"].replace(place, place.replace(b"runs/a/model", repo.encode()))
    files["README.md"] = card.replace(b"place: runs/a/model", f"place: {repo}".encode())
    return files


def test_what_arrives_equals_the_files(hub: Hub, folder: Path) -> None:
    done = push(folder, "team/helpdesk", endpoint=hub.url)
    assert done.returncode == 0, done.stderr
    repo = hub.repos["team/helpdesk"]
    assert repo.branches == {"main": sent(folder, "team/helpdesk")}
    assert b"runs/a/model-old" in repo.branches["main"]["README.md"]
    assert (repo.messages, repo.private) == (["Upload the model"], False)
    assert (folder / "README.md").read_text() == CARD
    assert done.stdout.splitlines()[-1].startswith(f"6 files, 0.0 MB: {hub.url}/team/helpdesk/")


def test_large_files_arrive_in_parts_on_a_branch_of_a_private_repository(
    hub: Hub, folder: Path
) -> None:
    weights = safetensors(2 * PART_BYTES, b"\x07")
    (folder / "model.safetensors").write_bytes(weights)
    options = ("--private", "--revision", "v2", "--message", "second", "--json")
    done = push(folder, "team/helpdesk", *options, endpoint=hub.url)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    repo = hub.repos["team/helpdesk"]
    assert repo.private
    assert repo.messages == ["second"]
    assert repo.branches == {"main": {}, "v2": sent(folder, "team/helpdesk")}
    assert result["files"]["model.safetensors"] == len(weights)
    assert result["commit"].startswith(hub.url)
    assert sum("PUT" in request for request in hub.requests) == 3


def test_a_card_of_a_folder_inside_names_that_folder(hub: Hub, folder: Path) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "README.md").write_text("load /a/b\n\n<!-- place: /a/b -->\n")
    done = push(folder, "team/x", endpoint=hub.url)
    assert done.returncode == 0, done.stderr
    sent_card = hub.repos["team/x"].branches["main"]["adapter/README.md"]
    assert sent_card == b"load ./adapter\n\n<!-- place: ./adapter -->\n"


def test_weights_of_an_earlier_upload_go(hub: Hub, folder: Path) -> None:
    old = {"adapter_config.json": b"{}", "old.safetensors": b"x", "notes.txt": b"mine"}
    hub.repos["somebody/helpdesk"] = Repo(branches={"main": dict(old)})
    weights = (folder / "model.safetensors").read_bytes()
    hub.blobs[hashlib.sha256(weights).hexdigest()] = weights
    done = push(folder, "helpdesk", "--json", endpoint=hub.url)
    assert done.returncode == 0, done.stderr
    assert not any(request.startswith("PUT") for request in hub.requests)
    assert json.loads(done.stdout)["removed"] == ["adapter_config.json", "old.safetensors"]
    assert json.loads(done.stdout)["repo"] == "somebody/helpdesk"
    expected = sent(folder, "somebody/helpdesk") | {"notes.txt": b"mine"}
    assert hub.repos["somebody/helpdesk"].branches["main"] == expected


def test_a_dry_run_lists_and_sends_nothing(hub: Hub, folder: Path) -> None:
    done = push(folder, "team/helpdesk", "--dry-run", "--json", endpoint=hub.url, token=None)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["files"].keys() == sent(folder, "team/helpdesk").keys()
    assert result["commit"] is None
    assert hub.requests == []


def test_an_adapter_of_a_local_base_and_a_missing_card_are_warned_of(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = {"base_model_name_or_path": str(folder)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    done = push(folder, "team/x", "--dry-run", endpoint="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        f"{folder}: no README.md; the hub will show no card",
        f"{folder}: the adapter's base is {folder}, a folder of this machine; nobody else can load "
        "it",
    ]
    assert done.stdout.splitlines()[-1].endswith("nothing sent")


REFUSALS: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    "no token": ((), {"token": ""}, "push: token = none; expected one that may write"),
    "a wrong token": ((), {"token": "hf_wrong"}, "team/x = not logged in (401"),
    "a token that may only read": ((), {"token": stand_in.READ_ONLY}, "team/x = not allowed (403"),
    "a reference that is not there": (
        ("--revision", "refs/pr/7"),
        {},
        "team/x = not found (404",
    ),
    "offline": ((), {"HF_HUB_OFFLINE": "1"}, "team/x = not reached ("),
    "nobody there": ((), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "team/x = not reached ("),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_hub_refuses_is_one_message(hub: Hub, folder: Path, name: str) -> None:
    options, changes, message = REFUSALS[name]
    token = changes.pop("token", stand_in.TOKEN) or None
    done = push(folder, "team/x", *options, endpoint=hub.url, token=token, **changes)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert all(not files for repo in hub.repos.values() for files in repo.branches.values())


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub, folder: Path) -> None:
    hub.repos["team/x"] = Repo()
    done = push(folder, "team/x", "--private", endpoint=hub.url)
    assert done.returncode == 2
    assert done.stderr.startswith("push: team/x = public; expected a private repository.")
    assert hub.repos["team/x"].branches == {"main": {}}


def test_a_card_that_the_hub_refuses_stops_the_upload(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text("---\ntags: dense\n---\n")
    done = push(folder, "team/x", endpoint=hub.url)
    assert done.returncode == 2
    assert "tags: no list" in done.stderr
    assert hub.blobs == {}


@pytest.mark.parametrize("repo", ["a/b/c", "team/x y", "team/.x", "team/x--y", ""])
def test_a_malformed_name_is_refused(
    folder: Path, repo: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    arguments = [str(folder), repo, "--dry-run"]
    assert ending_with_code(partial(push_tool.main, arguments)) == 2
    assert capsys.readouterr().err.startswith(f"push: REPO = {repo}; expected OWNER/NAME (")


def damaged(name: str, content: bytes | None) -> Callable[[Path], None]:
    """Writes a file of the export, or takes it away."""

    def damage(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no modules": (damaged("modules.json", None), r"modules\.json = missing; expected a complete"),
    "no config": (damaged("config.json", None), r"config\.json = missing"),
    "no tokenizer": (damaged("tokenizer.json", None), r"tokenizer\.json = missing"),
    "no weights": (damaged("model.safetensors", None), r"model\.safetensors = missing"),
    "empty weights": (damaged("model.safetensors", b""), r"size = 0 bytes; expected a safetens"),
    "cut weights": (
        damaged("model.safetensors", safetensors(100)[:-1]),
        r"size = [\d,]+ bytes; expected [\d,]+, as its header says",
    ),
    "no safetensors": (damaged("model.safetensors", b"x" * 99), "expected a safetensors file"),
    "a checkpoint": (damaged("checkpoints/latest", b"step-1"), "file = left by training"),
    "optimizer": (damaged("zero_pp_rank_0_optim_states.pt", b"x"), "file = left by training"),
    "metrics": (damaged("metrics.jsonl", b"{}"), "file = left by training"),
    "a dense layer without weights": (
        damaged("modules.json", json.dumps(modules_of(ProjectionRecipe(size=3))).encode()),
        r"2_Dense: model\.safetensors = missing; expected weights",
    ),
    "damaged modules": (damaged("modules.json", b"{}"), "expected a list of modules"),
    "a run": (damaged("recipe.yaml", b"{}"), r"not the folder of its run\. Give .*/model/model"),
    "half an adapter": (damaged("adapter_config.json", b"{}"), r"adapter_model\.safetensors = mis"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_no_complete_export_is_refused(folder: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        export_files(folder)


def test_a_dense_layer_is_sent_too(folder: Path) -> None:
    modules = modules_of(ProjectionRecipe(size=3))
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "model.safetensors").write_bytes(safetensors(7))
    assert folder / "2_Dense" / "model.safetensors" in export_files(folder)


def test_every_shard_of_an_index_is_checked(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index.write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    with pytest.raises(CheckpointError, match=r"00002-of-00002.safetensors: size = 0 bytes"):
        export_files(folder)
    (folder / names[1]).write_bytes(safetensors(3))
    assert {path.name for path in export_files(folder)} > set(names)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="content = no index"):
        export_files(folder)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="folder = missing; expected an export"):
        export_files(tmp_path / "nothing")


def test_hidden_files_stay_here(folder: Path) -> None:
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("x")
    (folder / ".README.md").write_text("x")
    names = {path.relative_to(folder).as_posix() for path in export_files(folder)}
    assert ".gitattributes" in names
    assert not names & {".cache/x", ".README.md"}
