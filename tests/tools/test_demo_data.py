"""The demo's data: split, leaks, scores and files, from a small package written on the spot."""

import json
from pathlib import Path
from typing import Any

import pytest

from demo import data as demo_data
from demo import split
from demo.docs import Doc, is_usable, read_docs, split_docstring
from demo.kinds import candidate_rows, pair_rows, translation_rows
from demo.sts import place_score, silver_pairs
from trainer.data.evalsets import open_eval_set
from trainer.data.sources import open_source
from trainer.evaluation.metrics import ranking_metrics
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import DataRecipe, EvalSetRecipe, SourceRecipe

FILLER = "It goes on with enough words to count as a text that somebody may want to look for: "


def doc(module: str, name: str, summary: str, text: str, owner: str = "") -> Doc:
    return Doc(
        package=module.split(".")[0],
        module=module,
        owner=owner,
        name=name,
        parameters=("first", "second"),
        summary=summary,
        text=text,
    )


def letters(number: int) -> str:
    """A word of its own for each number; digits do not tell texts apart."""
    return "word" + "".join("abcdefghij"[int(digit)] for digit in str(number))


def many_docs(num_modules: int = 60) -> list[Doc]:
    """Three docs a module, each with words of its own."""
    return [
        doc(
            f"{package}.part{number % 4}.mod{number}",
            f"fn{at}",
            f"Compute {package} quantity {letters(number)} of the {'xyz'[at]} kind.",
            f"{FILLER}{package} {letters(number % 8)} {'uvw'[at]}unit {letters(number)}.",
            owner="Thing" if at < 2 else "",
        )
        for package in ("alpha", "beta")
        for number in range(num_modules)
        for at in range(3)
    ]


def test_docstring_is_cut_after_its_first_sentence() -> None:
    summary, text = split_docstring("Add two\n    numbers. They may be large.\n\nReturns: a sum.")
    assert summary == "Add two numbers."
    assert text == "They may be large.\n\nReturns: a sum."


def test_abbreviations_before_small_letters_do_not_end_a_sentence() -> None:
    assert split_docstring("Sort e.g. a list.\n\nFast.") == ("Sort e.g. a list.", "Fast.")


@pytest.mark.parametrize(
    "summary",
    ["Too short.", "input_ids (`torch.Tensor` of shape): Indices.", "word " * 41],
    ids=["short", "argument list", "long"],
)
def test_what_is_no_summary_is_left_out(summary: str) -> None:
    assert not is_usable(summary, FILLER)
    assert is_usable("Return the sum.", FILLER)


def test_docs_are_read_without_running_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mod.py"
    file.write_text(
        "raise SystemExit('imported')\n"
        "class A:\n"
        "    def add(self, x, *, y=1):\n"
        f"        '''Return the sum. {FILLER}'''\n"
        "    def silent(self): ...\n"
    )
    (found,) = read_docs(("p", "p.mod", file))
    assert found.location == "p.mod.A.add"
    assert found.parameters == ("x", "y")
    assert found.summary == "Return the sum."


def test_a_file_of_another_language_version_has_no_docs(tmp_path: Path) -> None:
    file = tmp_path / "old.py"
    file.write_text("print 'two'\n")
    assert read_docs(("p", "p.old", file)) == []


def test_nothing_held_out_is_trained_on() -> None:
    docs = many_docs()
    held = next(d for d in docs if split.is_held_out(d.module))
    module = next(d.module for d in docs if not split.is_held_out(d.module))
    same_text = doc(module, "copy", "Say something else here.", held.text.upper())
    same_summary = doc(module, "replica", held.summary + "!", FILLER + "another text")
    train, held_out = split.split_docs([*docs, same_text, same_summary])
    assert train
    assert held_out
    assert not {d.module for d in train} & {d.module for d in held_out}
    assert same_text not in train
    assert same_summary not in train
    for part in ("summary", "text"):
        kept = {split.likeness(getattr(d, part)) for d in train}
        assert not kept & {split.likeness(getattr(d, part)) for d in held_out}


def test_ir_records_carry_all_answers_and_siblings_only() -> None:
    docs = [
        doc("p.a", "one", "Open the door.", "text one"),
        doc("p.a", "two", "Close the door.", "text two"),
        doc("p.b", "three", "Open the door.", "text three"),
    ]
    records = {record["query"]: record for record in demo_data.ir_records(docs, seed=0)}
    assert records["Open the door."]["positives"] == ["text one", "text three"]
    assert records["Open the door."]["negatives"] == ["text two"]
    assert records["Close the door."]["negatives"] == ["text one"]


@pytest.mark.parametrize(
    ("other", "score"),
    [
        (doc("p.a.m", "g", "s", "t", owner="C"), 1.0),
        (doc("p.a.m", "g", "s", "t"), 0.75),
        (doc("p.a.n", "g", "s", "t", owner="C"), 0.5),
        (doc("p.b.n", "g", "s", "t"), 0.25),
        (doc("q.a.m", "g", "s", "t", owner="C"), 0.0),
    ],
)
def test_place_counts_what_two_docs_share(other: Doc, score: float) -> None:
    assert place_score(doc("p.a.m", "f", "s", "t", owner="C"), other) == score


def test_silver_pairs_are_distinct_scored_and_repeatable() -> None:
    docs = many_docs(12)
    pairs = silver_pairs(docs, 20, seed=1)
    assert pairs == silver_pairs(docs, 20, seed=1)
    assert pairs != silver_pairs(docs, 20, seed=2)
    keys = [(pair.first, pair.second) for pair in pairs]
    assert len(set(keys)) == len(keys)
    assert all(first < second for first, second in keys)
    assert all(0 <= pair.score <= 1 for pair in pairs)
    assert len({pair.score for pair in pairs}) > 5


def test_silver_score_is_the_mean_of_place_and_content() -> None:
    same = FILLER + "same words"
    docs = [doc("p.a", "f", "Say one.", same), doc("q.b", "f", "Say two.", same)]
    docs += many_docs(4)
    pair = next(p for p in silver_pairs(docs, 50, seed=0) if (p.first, p.second) == (0, 1))
    # place 0, content 1; written with four digits
    assert pair.score == pytest.approx(0.5, abs=1e-4)


def test_files_read_back_as_the_trainer_reads_them(tmp_path: Path) -> None:
    docs = many_docs()
    demo_data.write_data(tmp_path, docs)
    train, held_out = split.split_docs(docs)
    root = str(tmp_path)
    ir = open_source(SourceRecipe(name="ir", task="ir", path="train.ir.jsonl"), root)
    sts = open_source(SourceRecipe(name="sts", task="sts", path="train.sts.jsonl"), root)
    assert len(ir) == len({d.summary for d in train})
    assert 0 <= sts.record(0).score <= 1  # type: ignore[union-attr]
    data = DataRecipe(sources=(), root=root)
    found = open_eval_set(EvalSetRecipe(name="d", task="ir", path="held_out"), data)
    assert set(found.corpus_ids) == {d.location for d in held_out}  # type: ignore[union-attr]
    perfect = {query: list(gains) for query, gains in found.qrels.items()}  # type: ignore[union-attr]
    assert ranking_metrics(perfect, found.qrels)["ndcg_at_10"] == 1.0  # type: ignore[union-attr]
    pairs = open_eval_set(EvalSetRecipe(name="s", task="sts", path="held_out.sts.jsonl"), data)
    held_summaries = {d.summary for d in held_out}
    assert set(pairs.text1) | set(pairs.text2) <= held_summaries  # type: ignore[union-attr]


def test_sets_of_the_other_kinds_are_made_of_held_out_docs(tmp_path: Path) -> None:
    docs = many_docs()
    demo_data.write_data(tmp_path, docs)
    _, held_out = split.split_docs(docs)
    by_summary = {d.summary: d for d in held_out}
    data = DataRecipe(sources=(), root=str(tmp_path))
    sets = {"pair_classification": "matches", "reranking": "ranked", "bitext": "code"}
    found: dict[str, Any] = {
        kind: open_eval_set(EvalSetRecipe(name="d", task=kind, path=f"{name}.jsonl"), data)  # type: ignore[arg-type]
        for kind, name in sets.items()
    }
    for pair in found["pair_classification"].pairs:
        one, other = by_summary[pair.text1], by_summary[pair.text2]
        assert one != other
        assert (one.module == other.module) == bool(pair.label)
        assert (one.package == other.package) == bool(pair.label)
    texts = {d.text for d in held_out}
    for row in found["reranking"].rows:
        assert row.positives == (by_summary[row.query].text,)
        assert len(row.negatives) == 9
        assert set(row.negatives) <= texts - {row.positives[0]}
        # those of its own module come first
        own = {d.text for d in held_out if d.module == by_summary[row.query].module}
        assert own - {row.positives[0]} == set(row.negatives[:2])
    codes = [pair.text2 for pair in found["bitext"].pairs]
    assert len(set(codes)) == len(codes)
    assert set(codes) <= {f"fn{n}(first, second)" for n in range(3)}


def test_draws_of_the_other_kinds_can_be_repeated() -> None:
    docs = many_docs(12)
    for draw in (pair_rows, candidate_rows, translation_rows):
        assert draw(docs, 1) == draw(docs, 1)
    assert pair_rows(docs, 1) != pair_rows(docs, 2)
    assert candidate_rows(docs, 1) != candidate_rows(docs, 2)


def test_base_model_is_an_ordinary_folder_and_seeded(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    for name in ("one", "two"):
        demo_data.train_tokenizer((d.text for d in many_docs(8)), tmp_path / name)
        demo_data.make_model(tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    ids = tokenizer("some text")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "some text"
    assert AutoModel.from_pretrained(tmp_path / "one").config.model_type == "qwen3"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_only_a_whole_result_of_the_same_packages_is_kept(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    marker = tmp_path / "data" / "made_from.json"
    assert not demo_data.is_made(tmp_path)
    marker.write_text(json.dumps(demo_data.identity() | {"torch": "0.1"}))
    assert not demo_data.is_made(tmp_path)
    marker.write_text(json.dumps(demo_data.identity()))
    assert demo_data.is_made(tmp_path)


def test_recipe_of_the_demo_uses_what_is_made() -> None:
    recipe = load_recipe(Path(__file__).resolve().parents[2] / "recipes" / "demo.yaml")
    assert recipe.model.path == f"{recipe.output_dir}/base"
    assert recipe.data.root == f"{recipe.output_dir}/data"
    made = {
        "train.ir.jsonl",
        "train.sts.jsonl",
        "held_out",
        "held_out.sts.jsonl",
        "classes",
        "clusters.jsonl",
        "matches.jsonl",
        "ranked.jsonl",
        "code.jsonl",
    }
    assert {s.path for s in (*recipe.data.sources, *recipe.eval.sets)} == made
