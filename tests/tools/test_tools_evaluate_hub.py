"""Sets of the hub's cache through the commands: the dry run, and an embedder scored by them."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import corpus
from tests.support.exported import make_base, make_export
from tests.support.held_out_sets import write_sets
from tests.support.launched import BIN, by_python, finish
from tests.support.mteb_folders import WRITERS, in_cache, write_rows
from tools import evaluate
from trainer.cli import ending_with_code
from trainer.errors import DataError

BARE = {f"of {name}".translate(str.maketrans(" .,", "___")): kind
        for name, (kind, _) in WRITERS.items()}  # fmt: skip
"""Kind of each set of the cache, by its name there."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a set of every layout, in folders and in a cache of the hub."""
    folder = tmp_path_factory.mktemp("hub")
    corpus.make_workspace(folder)
    own = write_sets(folder / "own", labels=corpus.WORDS[:4], words=corpus.WORDS[4:])
    for name, (kind, write) in zip(BARE, WRITERS.values(), strict=True):
        suffix = "-00000-of-00001.parquet"
        place = in_cache(folder / "cache", f"mteb/{name}")
        write(place if name == "of_reranking" else place / "data", own[kind], suffix)
        write(folder / "folders" / name, own[kind], ".jsonl")
    rows = [json.loads(line) for line in own["clustering"].read_text().splitlines()]
    write_rows(in_cache(folder / "cache", "mteb/topics") / "train.jsonl", rows)
    return folder


def run(project: Path, *command: str) -> tuple[int, str, str]:
    """A command that finds the cache, without a network."""
    ended = finish(
        project, list(command), HF_HUB_CACHE=str(project / "cache"), HF_HUB_OFFLINE="1",
        HF_DATASETS_CACHE=str(project / "datasets"), TRAINER_CACHE_DIR=str(project / "trainer"),
    )  # fmt: skip
    return ended.code, ended.out, ended.err


@pytest.mark.slow
def test_the_dry_run_opens_sets_of_every_layout(project: Path) -> None:
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    recipe["eval"]["sets"] += [
        {"name": f"{name}-{place}", "task": kind, "split": "test", key: f"{start}/{name}"}
        for place, key, start in (("hub", "hub", "mteb"), ("folder", "path", "folders"))
        for name, kind in BARE.items()
    ]
    (project / "all.yaml").write_text(yaml.safe_dump(recipe))
    command = [*by_python(), "--recipe", str(project / "all.yaml"), "--dry-run"]
    code, out, err = run(project, *command)
    assert code == 0, err
    assert "Dry run of tiny, 1 ranks" in out.splitlines()
    # a set that is on this machine is checked, one that is not waits for the training
    code, _, err = run(project, *command, "eval.sets.of_classification-hub.hub=mteb/of_clustering")
    assert code == 2
    assert "eval.sets.of_classification-hub: hub = mteb/of_clustering, without train.jsonl" in err
    code, _, err = run(project, *command, "eval.sets.of_classification-hub.hub=mteb/far_away")
    assert code == 0, err


@pytest.mark.slow
def test_an_embedder_is_scored_on_the_hub_as_on_files(project: Path) -> None:
    model = make_export(make_base(project / "base"), project / "export")
    script = [str(BIN / "python"), "tools/evaluate.py", "--model", str(model), "--split", "test"]
    own = {
        "classification": "classes", "clustering": "clusters.jsonl", "bitext": "bitext.jsonl",
        "pair_classification": "pairs.jsonl", "reranking": "candidates.jsonl",
    }  # fmt: skip
    files = [f"{project}/own/{file}:{kind}" for kind, file in own.items()]
    hubs = [f"hub:mteb/{name}:{kind}" for name, kind in BARE.items()]
    code, out, err = run(project, *script, "--json", "--sets", *files, *hubs)
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    for name, kind in BARE.items():
        expected = found[own[kind].removesuffix(".jsonl")]
        # candidates of a folder are embedded in another order
        assert found[name] == pytest.approx(expected, abs=1e-6), name


def test_a_set_of_the_hub_is_read_from_its_words() -> None:
    found = evaluate.read_set("hub:mteb/massive:de:classification", "test")
    assert (found.name, found.hub, found.path) == ("massive-de", "mteb/massive:de", None)
    assert (found.task, found.split) == ("classification", "test")
    for text in ("hub:mteb/massive", "hub:mteb/massive:de", "hub::sts", "hub:"):
        with pytest.raises(DataError, match=r"--sets: hub:.* = no \w+; expected hub:ORG/SET:KIND"):
            evaluate.read_set(text, "test")


def test_a_set_of_the_hub_that_is_not_there_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "modules.json").write_text("[]")
    arguments = ["--model", str(tmp_path), "--sets", "hub:mteb/none:clustering"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    assert ending_with_code(evaluate.main) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len([line for line in shown.err.splitlines() if line]) == 1
    assert "eval.sets.none: hub = mteb/none; expected a set of the hub" in shown.err
