"""The benchmark of what comes after a first training: its models, and what the table says."""

import json
from pathlib import Path

import pytest

from bench.ablation_runs import Setup
from bench.ablation_table import UNTOUCHED
from tools.bench import after

SETS = ("sts_general", "sts_news", "medquad", "squad", "scifact")


def scores(*values: float, **chosen: float) -> dict[str, float]:
    return {**dict(zip(SETS, values, strict=True)), **chosen}


def test_each_seed_of_a_merge_is_set_beside_its_own_run() -> None:
    chosen = {after.LAMBDA: 0.75, after.FIRST: 2.0, after.LAST: 0.0}
    results = {
        UNTOUCHED: {0: scores(0.8, 0.6, 0.7, 0.7, 0.9)},
        after.TRAINED: {1: scores(0.8, 0.6, 0.8, 0.8, 0.9), 2: scores(0.9, 0.8, 0.9, 0.7, 0.8)},
        after.MERGED: {2: scores(0.9, 0.7, 0.8, 0.75, 0.91, **chosen)},
    }
    head, line = after.shares(results, Setup(folder=Path("unused")).held_out).splitlines()
    assert " ".join(head.split()) == "seed lambda by depth STS kept IR in kept out of domain"
    # gains of 0.10 of 0.15 and of 0.075 of 0.10
    assert line.split() == ["2", "0.75", "2", "to", "0", "67%", "75%", "+1.00"]


def test_results_of_a_variant_depend_on_the_recipe_and_its_changes(tmp_path: Path) -> None:
    setup = Setup(folder=tmp_path)
    longer = Setup(folder=tmp_path, overrides=("train.max_steps=9",))
    sources = {name: after.made_from(name, setup) for name in (UNTOUCHED, *after.VARIANTS)}
    assert len({tuple(source) for source in sources.values()}) == len(sources)
    assert all(after.made_from(name, longer) != source for name, source in sources.items())


def test_a_model_for_whole_texts_differs_in_their_length_alone(tmp_path: Path) -> None:
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    config = {"max_seq_length": 40, "do_lower_case": False}
    (model / "sentence_bert_config.json").write_text(json.dumps(config))
    (model / "model.safetensors").write_bytes(b"weights")
    copy = after.of_whole_texts(model, Setup(folder=tmp_path))
    assert json.loads((copy / "sentence_bert_config.json").read_text()) == {
        **config, "max_seq_length": 256
    }  # fmt: skip
    assert (copy / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((model / "sentence_bert_config.json").read_text()) == config


def test_mined_rows_are_made_once_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(folder=tmp_path)
    mined, trained = [], []

    def run(script: str, words: list[str], log: Path, what: str) -> None:
        mined.append(words)
        Path(words[words.index("--output") + 1]).write_text("rows")

    monkeypatch.setattr(after, "run_logged", run)
    monkeypatch.setattr(after, "train_ours", lambda *found: trained.append(found) or tmp_path)
    monkeypatch.setattr(after, "score", lambda model, _: scores(*[0.5] * 5))
    setup.data.mkdir()
    work = after.Work(data=tmp_path, setup=setup)
    for seed in (1, 2):
        assert work(after.MINED, seed) == scores(*[0.5] * 5)
    assert [words[words.index("--source") + 1] for words in mined] == [
        str(setup.data / f"{name}.train.jsonl") for name in ("medquad", "squad")
    ]
    for style, seed, own in trained:
        assert style == "codiemb"
        assert set(own.overrides) == {
            f"data.sources.{name}.path={setup.data / name}.mined.jsonl"
            for name in ("medquad", "squad")
        }
        # beside the runs with the other negatives
        assert own.run_folder(style, seed) != setup.run_folder(style, seed)
