"""Runs and tools on sources of an object store, as users start them."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.corpus import make_workspace
from tests.support.forked import finish_forked
from tests.support.launched import Ended
from tests.support.object_store import Store, serving_store

pytestmark = pytest.mark.dist

ROOT = "s3://data/set"


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serving_store() as found:
        yield found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, store: Store) -> Path:
    """A recipe whose data lies in the store too."""
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder)
    for name in ("ir.jsonl", "sts.jsonl"):
        store.put(f"set/{name}", (folder / name).read_bytes())
    store.put_folder("set/beir", folder / "beir")
    return folder


def run(workspace: Path, store: Store, *arguments: str, cache: str = "cache", **more: Any) -> Ended:
    variables = store.environment() | {"TRAINER_CACHE_DIR": str(workspace / cache)}
    recipe = ("--recipe", str(workspace / "recipe.yaml"))
    return finish_forked(workspace, *recipe, *arguments, **variables, **more)


def trained(workspace: Path, store: Store, *arguments: str, name: str, **more: Any) -> Ended:
    steps = ("train.max_steps=6", "eval.every_steps=3", "checkpoint.every_steps=3")
    output = f"output_dir={workspace / name}"
    return run(workspace, store, *steps, "data.workers=1", output, *arguments, ranks=2, **more)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """What a run measured, without its clock."""
    files = (folder / "metrics.jsonl", folder / "eval.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(lines) == 6 + 3
    clock = ("seconds", "tokens_per_sec")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def test_a_store_trains_the_same_losses_as_local_files(workspace: Path, store: Store) -> None:
    ended = trained(workspace, store, name="near")
    assert ended.code == 0, ended.out + ended.err
    assert store.faults.ranges == []
    plan = run(workspace, store, f"data.root={ROOT}", "--dry-run", "--gpus", "2")
    assert plan.code == 0, plan.out + plan.err
    rows = re.findall(r"^ *(ir|sts) +(?:ir|sts) +on a store +10 ", plan.out, re.MULTILINE)
    assert rows == ["ir", "sts"]
    assert store.faults.ranges == []
    # more than the client itself tries again
    store.faults.num_broken = 7
    ended = trained(workspace, store, f"data.root={ROOT}", "data.tokens=ahead", name="far")
    assert ended.code == 0, ended.out + ended.err
    assert numbers(workspace / "far") == numbers(workspace / "near")
    weights = [workspace / name / "model" / "model.safetensors" for name in ("near", "far")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    # two sources and three files of a folder, whatever the number of ranks
    assert len(store.faults.ranges) == 7 + 5


def test_tools_read_the_same_rows(workspace: Path, store: Store) -> None:
    for script, arguments in {
        "tools/show_plan.py": ["--json", "--steps", "5"],
        "tools/dedup.py": ["--json"],
        "tools/tokenize_data.py": ["data.tokens=ahead"],
    }.items():
        near, far = (
            run(workspace, store, *arguments, *more, script=script, cache="cache-of-tools")
            for more in ([], [f"data.root={ROOT}"])
        )
        assert near.code == far.code == 0, near.err + far.err
        if script == "tools/tokenize_data.py":
            # the same content has the same tokens, wherever it lies: nothing is made again
            assert near.out.count("once for all runs") == 2
            assert far.out.count("once for all runs") == 0
            stores = list((workspace / "cache-of-tools").glob("*/tokens"))
            assert len(stores) == 2
        else:
            assert near.out.splitlines()[-1] == far.out.splitlines()[-1]


def test_a_resumed_run_refuses_an_object_that_changed(workspace: Path, store: Store) -> None:
    def again() -> Ended:
        steps = ("train.max_steps=6", "eval.every_steps=3", "checkpoint.every_steps=3")
        output = f"output_dir={workspace / 'near'}"
        return run(workspace, store, "--resume", *steps, output, f"data.root={ROOT}")

    # where the same rows lie is no matter
    ended = again()
    assert ended.code == 0, ended.out + ended.err
    changed = (workspace / "sts.jsonl").read_bytes().replace(b"w1", b"w2")
    store.put("set/sts.jsonl", changed)
    shutil.rmtree(workspace / "near" / "checkpoints" / "step-6")
    ended = again()
    assert ended.code == 2
    assert ended.err.startswith("checkpoint step-3: data of source sts = other rows (was 40 rows ")


def test_a_missing_object_ends_with_one_message(workspace: Path, store: Store) -> None:
    ended = run(workspace, store, "data.root=s3://data/sets", f"output_dir={workspace / 'none'}")
    assert ended.code == 2
    assert ended.err == (
        "data.sources.ir: path = s3://data/sets/ir.jsonl: nothing there; expected a file, a folder "
        "with data files or a glob. Correct bucket, path and endpoint.\n"
    )
    assert not (workspace / "none").exists()
