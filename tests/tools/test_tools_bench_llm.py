"""The benchmark of a real decoder: its models, its peer, and what a result depends on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.ablation_runs import ROOT, Setup, peer_sets
from bench.ablation_table import UNTOUCHED
from bench.llm import SMOLLM2
from bench.llm_peer import SECONDS, TURNS
from tools.bench import llm
from trainer.errors import RecipeError
from trainer.recipe.load import load_recipe
from trainer.run_folder.layout import RunFolder


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(folder=tmp_path, overrides=("train.max_steps=40",))


def write_run(work: llm.Work, name: str, *, ours: list[float] | None, theirs: float = 0.0) -> Path:
    """A run of seed 1 with the seconds of its steps."""
    run = work.run_folder(name, 1)
    (run / "model").mkdir(parents=True)
    run.with_suffix(".peak").write_text("1234")
    if ours is None:
        (run / SECONDS).write_text(str(theirs))
    else:
        lines = (json.dumps({"seconds": one}) + "\n" for one in ours)
        RunFolder(run).metrics.write_text("".join(lines))
    return run


def test_each_result_depends_on_the_recipe_and_its_own_changes(setup: Setup) -> None:
    names = (UNTOUCHED, *llm.VARIANTS)
    shorter = Setup(folder=setup.folder, overrides=("train.max_steps=9",))
    sources = {name: tuple(llm.made_from(name, setup)) for name in names}
    assert len(set(sources.values())) == len(names)
    assert all(tuple(llm.made_from(name, shorter)) != sources[name] for name in names)
    # a merge is made of its runs
    assert set(llm.CHANGES["mostly ir"]) < set(sources["pair: slerp"])


def test_its_recipe_is_the_shipped_one_on_other_sets() -> None:
    shipped = load_recipe(ROOT / "recipes" / "smollm2.yaml")
    own = load_recipe(llm.RECIPE)
    assert own.model == shipped.model
    assert own.tasks == shipped.tasks
    assert own.train.learning_rate == shipped.train.learning_rate
    assert own.data.pattern == shipped.data.pattern
    lora = load_recipe(llm.RECIPE, llm.CHANGES["lora"])
    shipped = load_recipe(ROOT / "recipes" / "smollm2_lora.yaml")
    assert lora.model == shipped.model
    assert lora.train.learning_rate == shipped.train.learning_rate
    assert all(load_recipe(llm.RECIPE, changes) for changes in llm.CHANGES.values())


def test_a_peer_of_equal_time_takes_the_steps_that_fit(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = llm.Work(setup=setup)
    write_run(work, llm.CODIEMB, ours=[3.0] * 40)
    with pytest.raises(RecipeError, match="'peer, as long' needs 'peer' of seed 1; make it too"):
        work(llm.PEER_AS_LONG, 1)
    write_run(work, llm.PEER, ours=None, theirs=5.0)
    started = []

    def run(command: list[str], run: Path, what: str) -> None:
        started.append(command)
        write_run(work, llm.PEER_AS_LONG, ours=None, theirs=5.5)

    monkeypatch.setattr(llm, "run_measured", run)
    monkeypatch.setattr(llm, "score", lambda model, _: {"medquad": 0.5})
    scores = work(llm.PEER_AS_LONG, 1)
    (command,) = started
    assert command[command.index("--steps") + 1] == "24"
    assert command[-1] == "train.max_steps=40"
    assert scores == {"medquad": 0.5, "seconds": 5.5, "peak_mib": 1234.0}


def test_a_run_of_ours_has_its_changes_and_keeps_checkpoints_where_they_are_merged(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = llm.Work(setup=setup)
    trained: dict[str, Setup] = {}

    def train(style: str, seed: int, own: Setup) -> Path:
        name = llm.CODIEMB if len(trained) == 0 else "bidirectional"
        trained[name] = own
        return write_run(work, name, ours=[1.0, 2.0]) / "model"

    monkeypatch.setattr(llm, "train_ours", train)
    monkeypatch.setattr(llm, "score", lambda model, _: {"medquad": 0.5})
    assert work(llm.CODIEMB, 1)["seconds"] == 1.5
    assert work("bidirectional", 1)["peak_mib"] == 1234.0
    assert trained[llm.CODIEMB].overrides == setup.overrides
    assert trained["bidirectional"].overrides == (
        *llm.CHANGES["bidirectional"], "checkpoint.every_steps=null", *setup.overrides
    )  # fmt: skip


def test_costs_are_those_of_the_fastest_and_of_the_largest_run() -> None:
    runs = [{"seconds": 9.0, "peak_mib": 700.0}, {"seconds": 5.0, "peak_mib": 800.0}]
    text = llm.costs({UNTOUCHED: [{"squad": 0.2}], llm.CODIEMB: runs})
    assert UNTOUCHED not in text
    assert text.splitlines()[-1].split() == ["codiemb", "5.00", "800"]


def test_merges_take_the_checkpoints_of_their_runs(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = llm.Work(setup=setup)
    started = []
    monkeypatch.setattr(llm, "run_logged", lambda script, words, log, what: started.append(words))
    monkeypatch.setattr(llm, "place_of_base", lambda name, dtype: f"{name}, unpacked")
    monkeypatch.setattr(llm, "score", lambda model, _: {})
    with pytest.raises(RecipeError, match="'own: delta' needs 'codiemb' of seed 1; make it too"):
        work("own: delta", 1)
    own = write_run(work, llm.CODIEMB, ours=[1.0])
    for step in (10, 5):
        (own / "checkpoints" / f"step-{step}").mkdir(parents=True)
    pair = [write_run(work, name, ours=[1.0]) for name in ("mostly ir", "mostly sts")]
    work("own: delta", 1)
    other_base = replace(setup, overrides=(*setup.overrides, "model.path=other.gguf"))
    llm.Work(setup=other_base)("pair: slerp", 1)
    first, second = started
    assert [words[1] for words in started] == [f"{SMOLLM2}, unpacked", "other.gguf, unpacked"]
    steps = [str(own / "checkpoints" / f"step-{step}") for step in (5, 10)]
    assert first[-5:] == ["--checkpoints", *steps, "--method", "delta"]
    assert second[-7:] == ["--checkpoints", *map(str, pair), "--method", "slerp", "--t", "0.5"]


def test_the_peer_has_one_batch_of_pairs_to_one_of_retrieval(tmp_path: Path) -> None:
    pairs = [{"text1": f"a{i}", "text2": f"b{i}", "score": i} for i in range(5)]
    (tmp_path / "stsb.train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))
    for name in ("medquad", "squad"):
        row = {"query": name, "positives": ["p", "q"], "negatives": []}
        (tmp_path / f"{name}.train.jsonl").write_text(json.dumps(row) + "\n")
    sets = peer_sets(tmp_path, 1, TURNS, negatives=False)
    assert list(sets) == ["medquad", "stsb_0", "squad", "stsb_1"]
    assert sets["medquad"].column_names == ["anchor", "positive"]
    assert sets["stsb_0"]["score"] == [0.0, 0.4, 0.8]
    assert sets["stsb_1"]["score"] == [0.2, 0.6]
