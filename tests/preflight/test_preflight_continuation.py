"""What a run may not go on with is refused by the command at once, and nothing is altered."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.data_files import write_jsonl
from tests.test_run_cli import HEAVY, edit, run, snapshot
from tests.test_run_cli import project as project  # a fixture: a right recipe with its data
from trainer.checkpoint.changes import named_keys
from trainer.checkpoint.compare import next_stretches
from trainer.checkpoint.manifest import Manifest, write_manifest
from trainer.data.growth import state_of
from trainer.data.sources import open_sources
from trainer.data.stretch import Stretch
from trainer.errors import CheckpointError
from trainer.preflight.continuation import continued_recipe, continued_run
from trainer.recipe.load import load_recipe, plain_recipe
from trainer.recipe.schema import Recipe
from trainer.run_folder.facts import RunFacts, write_run_facts


@pytest.fixture
def begun(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with a run that has a checkpoint, as far as it is looked at before torch is."""
    monkeypatch.chdir(project)
    record(project, 2, stretch_of(load_recipe("small.yaml")))
    return project


def stretch_of(recipe: Recipe) -> Stretch:
    """A run's first stretch, as it would be recorded now."""
    states = {source.name: state_of(source) for source in open_sources(recipe.data)}
    return Stretch(first_step=0, recipe=plain_recipe(recipe), sources=states)


def record(project: Path, step: int, *stretches: Stretch) -> None:
    """Write the manifest of a checkpoint, and what the run says of itself."""
    folder = project / "out" / "checkpoints" / f"step-{step}"
    folder.mkdir(parents=True)
    last = stretches[-1]
    sources = {name: state.fingerprint for name, state in last.sources.items()}
    manifest = Manifest(
        step=step, world_size=1, recipe=last.recipe, sources=sources, versions={}, files={},
        stretches=tuple(one for one in stretches if one.first_step < step),
    )  # fmt: skip
    write_manifest(folder, manifest)
    facts = RunFacts(num_ranks=1, device="cpu", num_steps=9, exposure=(), scored_rows={},
                     libraries={}, stretches=stretches)  # fmt: skip
    write_run_facts(project / "out", facts)


def resumed(*changes: str) -> Recipe:
    """The recipe that `--resume --change` goes on with, its data checked."""
    recipe = load_recipe("small.yaml", (), tuple(one for one in changes if "=" in one))
    named = named_keys(changes, recipe)
    recipe = continued_recipe(recipe, named)
    continued_run(recipe, open_sources(recipe.data), named)
    return recipe


Change = Callable[[Path], object]


def nothing(project: Path) -> None:
    """The project as it is."""


def more_docs(project: Path) -> None:
    with (project / "docs.jsonl").open("a") as file:
        file.write('{"query": "q 8", "positives": ["p"]}\n' * 4)


def other_docs(project: Path) -> None:
    lines = (project / "docs.jsonl").read_text().splitlines()
    write_jsonl(project / "docs.jsonl", map(json.loads, reversed(lines)))


ADD = ("--change", "data.sources.docs")


@pytest.mark.parametrize(
    ("change", "arguments", "parts"),
    [
        (nothing, ["model.pooling=mean"], ["model.pooling = 'mean' (was 'last')", "cannot change"]),
        (nothing, ["--change", "model.pooling=mean"], ["model.pooling cannot change: the param"]),
        (nothing, ["--change", "data.query_max_tokens=9"], ["data.query_max_tokens cannot change"]),
        (
            nothing,
            ["--change", "data.sources.docs.query_instruction=Find"],
            ["data.sources.docs.query_instruction = 'Find' (was '')", "to read its texts in this"],
        ),
        (nothing, ["seed=9"], ["seed = 9 (was 42)", "name it (--resume --change seed)"]),
        (nothing, ["train.max_steps=9"], ["= 9 (was 2)", "(--resume --change train.max_steps)"]),
        (
            edit("max_steps: 2", "max_steps: 9, learning_rate: 1e-4"),
            ["--change", "train.max_steps"],
            ["train.learning_rate = 0.0001 (was 1e-05)", "(--resume --change train.learning_rate)"],
        ),
        (
            edit("tasks:", "    - {name: more, task: ir, path: docs.jsonl}\ntasks:"),
            [],
            ["data.sources.more = a further source", "(--resume --change data.sources.more)"],
        ),
        (
            edit("    - {name: docs, task: ir, path: docs.jsonl}\n", ""),
            ["--change", "data.sources"],
            ["data.sources.docs = (missing) (was there)", "the run trains on this source"],
        ),
        (
            more_docs,
            [],
            ["rows were added to source docs: 4 after the 8 that the run began with; name the "
             "source in --change to train on them"],
        ),
        (other_docs, list(ADD), ["data of source docs = other rows (was 8 rows that must stay"]),
        (
            nothing,
            ["--change", "train.max_steps=9", "seed=1", "train.max_steps=8"],
            ["--change train.max_steps: value = '9' and '8'; expected one value of each key"],
        ),
        (nothing, ["--change", "train.max_stepz"], ["--change train.max_stepz: key = (missing)"]),
        (nothing, ["--change", "data.sources.new.path=docs.jsonl"], ["data.sources.2.task"]),
    ],
)  # fmt: skip
def test_refused_by_name_with_the_reason(
    begun: Path, change: Change, arguments: list[str], parts: list[str]
) -> None:
    change(begun)
    before = snapshot(begun)
    ended = run(begun, "--recipe", "small.yaml", "--resume", *arguments)
    assert ended.code == 2, ended
    assert len(ended.message.splitlines()) == 1, ended.message
    for part in parts:
        assert part in ended.message
    assert not ended.imported & set(HEAVY)
    assert snapshot(begun) == before


def test_change_is_for_a_run_that_is_continued(begun: Path) -> None:
    for arguments in (["--change", "seed=1"], ["--resume", "--selfcheck", "--change", "seed=1"]):
        ended = run(begun, "--recipe", "small.yaml", *arguments)
        assert ended.code == 2
        assert "--change says what a run goes on with; give it with --resume" in ended.message


def test_named_changes_pass(begun: Path) -> None:
    recipe = resumed("train.max_steps=9", "train.learning_rate=1e-4", "seed=3")
    assert (recipe.train.max_steps, recipe.train.learning_rate, recipe.seed) == (9, 1e-4, 3)
    more_docs(begun)
    assert resumed("data.sources.docs") == load_recipe("small.yaml")
    (begun / "docs.jsonl").rename(begun / "longer.jsonl")
    assert resumed("data.sources.docs.path=longer.jsonl").data.sources[1].path == "longer.jsonl"


def test_a_run_that_patience_ended_goes_on_by_a_longer_one_alone(begun: Path) -> None:
    edit("eval:\n", "eval:\n  best_metric: held_out.spearman\n  patience: 1\n")(begun)
    with (begun / "out" / "eval.jsonl").open("w") as file:
        for step, value in ((0, 0.1), (1, 0.5), (2, 0.4), (3, 0.9)):
            line = {"step": step, "sets": {"held_out": {"spearman": value}}}
            file.write(json.dumps(line) + "\n")
        file.write('{"step": 2, "se')
    before = snapshot(begun)
    longer = ("train.max_steps=9", "train.learning_rate=1e-4")
    for command in (["--dry-run", "--resume"], ["--resume"]):
        ended = run(begun, "--recipe", "small.yaml", *command, "--change", *longer)
        assert ended.code == 2, ended
        for part in (
            "checkpoint step-2: eval.patience = 1, which ended the run at step 2; expected one ",
            "changes (train.learning_rate, train.max_steps). Add eval.patience=null or "
            "eval.patience=2 to --change",
        ):
            assert part in ended.message
    assert not ended.imported & set(HEAVY)
    with pytest.raises(CheckpointError, match=r"eval\.patience = 1, which ended the run at step 2"):
        resumed("checkpoint.keep=5")
    assert snapshot(begun) == before
    # without a change it ends again; with more patience it goes on
    assert resumed().train.max_steps == 2
    for patience in (None, 2):
        recipe = resumed(*longer, f"eval.patience={json.dumps(patience)}")
        assert (recipe.train.max_steps, recipe.eval.patience) == (9, patience)


def test_a_source_may_be_added_on_the_command_line(begun: Path) -> None:
    key = "data.sources.new"
    recipe = resumed(f"{key}.path=docs.jsonl", f"{key}.task=ir", f"{key}.weight=2")
    assert [source.name for source in recipe.data.sources] == ["pairs", "docs", "new"]
    assert recipe.data.sources[2].weight == 2.0


def test_a_plain_resume_goes_on_with_the_stretch_that_was_begun(begun: Path) -> None:
    """Killed before its first checkpoint: `run.json` alone knows of it."""
    first = stretch_of(load_recipe("small.yaml"))
    more_docs(begun)
    longer = dataclasses.replace(
        stretch_of(load_recipe("small.yaml", ["train.max_steps=9"])), changed=()
    )
    keys = ["train.max_steps", "data.sources.docs.path"]
    both = next_stretches([first], 2, longer, keys)
    (begun / "out" / "checkpoints" / "step-2").rename(begun / "old")
    record(begun, 2, *both)
    assert resumed().train.max_steps == 9
    # the same command again begins nothing, and is not refused, nor is a value that stands twice
    assert resumed("train.max_steps=9", "train.max_steps=9", "data.sources.docs").seed == 42
    assert resumed("train.max_steps=9", "data.sources.docs").train.max_steps == 9
    # a record that does not fit the checkpoint does not count
    other = dataclasses.replace(first, recipe={**first.recipe, "seed": 9})
    (begun / "out" / "checkpoints" / "step-2").rename(begun / "older")
    record(begun, 2, other, both[1])
    (begun / "out" / "checkpoints" / "step-2").rename(begun / "oldest")
    (begun / "old").rename(begun / "out" / "checkpoints" / "step-2")
    with pytest.raises(CheckpointError, match="rows were added to source docs: 4 after the 8"):
        resumed()


def test_an_older_release_kept_no_rows(begun: Path) -> None:
    path = begun / "out" / "checkpoints" / "step-2" / "manifest.json"
    content = json.loads(path.read_text())
    del content["stretches"], content["sha256"]
    path.write_text(json.dumps(content))
    (begun / "out" / "run.json").write_text("{}")
    assert resumed() == load_recipe("small.yaml")
    assert resumed("train.max_steps=9").train.max_steps == 9
    more_docs(begun)
    with pytest.raises(CheckpointError, match=r"docs = other rows \(was rows that must stay"):
        resumed("data.sources.docs")


def test_records_without_a_recipe_are_refused_or_passed_over(begun: Path) -> None:
    facts = begun / "out" / "run.json"
    content = json.loads(facts.read_text())
    content["stretches"][0]["recipe"] = {"data": 1}
    facts.write_text(json.dumps(content))
    assert resumed() == load_recipe("small.yaml")
    path = begun / "out" / "checkpoints" / "step-2" / "manifest.json"
    saved = json.loads(path.read_text())
    saved["stretches"][0]["recipe"] = {}
    del saved["sha256"]
    path.write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="step-2: recipe = not one of this project; expected"):
        resumed()
    # a manifest that cannot be read is left to those who look for a valid checkpoint
    path.write_text("{")
    assert resumed("train.max_steps=9").train.max_steps == 9


def test_a_folder_without_a_checkpoint_is_no_run_to_compare_with(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert resumed("train.max_steps=9").train.max_steps == 9
