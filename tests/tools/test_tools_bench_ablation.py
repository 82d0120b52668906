"""The ablation: fair recipes, data without leaks, results that are kept, and the table."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.ablation_data import GENRES, QUICK, Genre, held_out_sets, prepare
from bench.ablation_runs import RECIPES, Setup
from bench.ablation_table import render
from tools.bench import ablation
from trainer.data.evalsets import open_eval_set
from trainer.data.sources import open_sources
from trainer.errors import DataError, RecipeError
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import DataRecipe


def write(file: Path, rows: list[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sets of the shapes that the ablation reads, of made-up texts."""
    folder = tmp_path / "public"
    for split, count in (("train", 2500), ("dev", 1050)):
        pairs = [
            {"text1": f"{split} {i}", "text2": f"{split} {i} too", "score": i % 6}
            for i in range(count)
        ]
        write(folder / f"stsb_en.{split}.jsonl", pairs)
    for name in ("medquad", "squad_sent", "scifact"):
        texts = [{"_id": f"d{i}", "title": "t", "text": f"{name} answer {i}"} for i in range(40)]
        queries = [{"_id": f"q{i}", "text": f"{name} question {i}"} for i in range(20)]
        write(folder / name / "corpus.jsonl", texts)
        write(folder / name / "queries.jsonl", queries)
        mined = [{"query_id": f"q{i}", "negatives": ["d39", f"d{i}"]} for i in range(10)]
        write(folder / name / "hard_negatives.train.jsonl", mined)
        for split, rows in (("train", range(10)), ("dev", range(10, 20))):
            lines = "".join(f"q{i}\td{i}\t1\n" for i in rows)
            (folder / name / "qrels").mkdir(exist_ok=True)
            file = folder / name / "qrels" / f"{split}.tsv"
            file.write_text("query-id\tcorpus-id\tscore\n" + lines)
    return folder


def test_variants_differ_in_nothing_but_their_losses_and_pools() -> None:
    recipes = {file.stem: load_recipe(file) for file in sorted(RECIPES.glob("*.yaml"))}
    del recipes["smollm2"]  # another backbone, which tools/bench/llm.py trains
    assert recipes.keys() == set(ablation.TRAINED) - {"sentence_transformers"}
    first = recipes["codiemb"]
    for name, recipe in recipes.items():
        assert recipe.name == name
        assert asdict(recipe.train) == asdict(first.train)
        assert recipe.model == first.model
        assert recipe.tasks["ir"] == first.tasks["ir"]
        assert "sts" not in recipe.tasks or recipe.tasks["sts"].global_batch_size == 32
        header = "".join(line for line in (RECIPES / f"{name}.yaml").open() if line[0] == "#")
        assert f"--recipe recipes/ablations/{name}.yaml" in header
    assert first.train.max_steps == 300
    # five checkpoints to merge, and four of them for the rows of single ones
    assert first.checkpoint.every_steps == 60
    assert first.checkpoint.keep == 5


@pytest.mark.parametrize("left_out", GENRES)
def test_data_opens_and_held_out_texts_are_not_trained_on(
    left_out: Genre, data: Path, tmp_path: Path
) -> None:
    work = tmp_path / "data"
    prepare(data, work, QUICK, left_out)
    trained = set()
    for file in RECIPES.glob("*.yaml"):
        recipe = load_recipe(file, [f"data.root={work}"])
        assert all(len(source) > 0 for source in open_sources(recipe.data))
    for file in work.glob("*.train.jsonl"):
        trained |= {line for line in file.read_text().splitlines()}
    everything = "".join(trained)
    pairs = set(range(2500))
    unseen = set(range(2500)[GENRES[left_out]["train"]])
    assert {i for i in pairs if f'"train {i}"' in everything} == pairs - unseen
    # d39 is a mined negative; a judged document is not, though it was mined
    assert '"negatives": ["t medquad answer 39"]' in everything
    for one in held_out_sets(left_out):
        opened = open_eval_set(one.recipe(work / "held_out"), DataRecipe(sources=()))
        queries = opened.text1 if one.task == "sts" else opened.queries
        assert queries
        assert not any(f'"{query}"' in everything for query in queries)
        if one.task == "sts":
            apart = {f"dev {i}" for i in range(1050)[GENRES[left_out]["dev"]]}
            assert set(queries) <= apart if one.domain == "out" else apart.isdisjoint(queries)
    before = {file: file.read_bytes() for file in work.rglob("*.*") if file.is_file()}
    (changed := work / "held_out" / "sts_general.jsonl").write_text("")
    times = {file: file.stat().st_mtime_ns for file in before}
    prepare(data, work, QUICK, left_out)
    assert before == {file: file.read_bytes() for file in work.rglob("*.*") if file.is_file()}
    # a run on another core may be reading what was there
    assert {one for one in before if one.stat().st_mtime_ns != times[one]} == {changed}


def test_all_genres_are_trained_on_unless_one_is_left_out(data: Path, tmp_path: Path) -> None:
    prepare(data, tmp_path / "data", QUICK, None)

    lines = (tmp_path / "data" / "stsb.train.jsonl").read_text().splitlines()
    assert len(lines) == 2500
    setups = [Setup(folder=tmp_path, left_out=genre) for genre in (*GENRES, None)]
    assert [setup.held_out[1].name for setup in setups] == [
        "sts_captions", "sts_forums", "sts_news", "sts_news"
    ]  # fmt: skip
    assert [setup.held_out[1].domain for setup in setups] == ["out", "out", "out", "in"]
    piece = next(iter(ablation.pieces(setups[0], [1])))
    assert len({ablation.digest(piece, setup) for setup in setups}) == len(setups)


def test_variants_are_chosen_by_name(tmp_path: Path) -> None:
    everything = tuple(ablation.pieces(Setup(folder=tmp_path), [1, 2]))

    chosen = [piece.name for piece in ablation.choose(everything, ["codiemb + uniform"])]
    assert chosen == ["untouched-0", "codiemb + uniform-1", "codiemb + uniform-2"]
    assert ablation.choose(everything, None) == list(everything)
    with pytest.raises(RecipeError, match="--variants: 'cosent'; expected some of 'untouched'"):
        ablation.choose(everything, ["cosent"])


def test_missing_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stsb_en\.train\.jsonl = missing"):
        prepare(tmp_path, tmp_path / "data", QUICK, None)


def test_results_are_kept_until_the_recipe_changes(tmp_path: Path) -> None:
    setup = Setup(folder=tmp_path)
    piece = next(p for p in ablation.pieces(setup, [1]) if p.variant == "codiemb")
    assert ablation.known(piece, setup) is None
    (tmp_path / "results").mkdir()
    kept = {"digest": ablation.digest(piece, setup), "scores": {"scifact": 0.5}}
    (tmp_path / "results" / "codiemb-1.json").write_text(json.dumps(kept))
    assert ablation.known(piece, setup) == {"scifact": 0.5}
    faster = Setup(folder=tmp_path, overrides=("train.learning_rate=1e-3",))
    assert ablation.known(piece, faster) is None
    assert ablation.known(piece, Setup(folder=tmp_path, size=QUICK)) is None


def test_every_seed_has_every_variant(tmp_path: Path) -> None:
    names = [piece.name for piece in ablation.pieces(Setup(folder=tmp_path), [1, 2, 3])]
    assert len(names) == len(set(names)) == 1 + 3 * (4 + 1 + 5 + 4)


def test_table_shows_changes_with_their_spread() -> None:
    base = {"sts_general": 0.8, "sts_news": 0.6, "medquad": 0.5, "squad": 0.7, "scifact": 0.4}
    better = {**base, "sts_general": 0.9, "scifact": 0.38}
    worse = {**base, "sts_general": 0.86}
    results = {"untouched": [base], "codiemb": [better, worse]}
    text = render(results, held_out_sets("news"))
    first, second = text.splitlines()[1:3]
    # STS in, out and their mean; IR in (mean of two sets), out and their mean
    assert first.split()[2:] == ["80.00", "60.00", "70.00", "60.00", "40.00", "50.00"]
    assert second.split()[:8] == ["codiemb", "2", "+8.00", "+-2.83", "+0.00", "+-0.00", "+4.00",
                                  "+-1.41"]  # fmt: skip
    assert second.split()[-4:] == ["-1.00", "+-1.41", "-0.50", "+-0.71"]
    assert "out of domain: sts_news, scifact" in text
    assert render({}, ()) == "nothing scored yet"
    # STS in is the mean of both sets, and there is no STS out
    first = render(results, held_out_sets(None)).splitlines()[1]
    assert first.split()[2:] == ["70.00", "70.00", "60.00", "40.00", "50.00"]
