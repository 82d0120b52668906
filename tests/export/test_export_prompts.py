"""Which prompts an export has, and that mteb and the trainer put the same ones before texts."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

from tests.support.data_files import data_recipe, write_beir, write_jsonl, write_qrels
from tests.support.exported import make_base, make_export
from tests.support.held_out_sets import KINDS, opened, write_sets
from trainer.evaluation.evaluate import evaluate_set
from trainer.evaluation.exported import ExportedEmbedder, Limits
from trainer.export.prompts import prompts_of, replaced_prompts
from trainer.export.sentence_files import with_benchmark_names
from trainer.recipe.eval_kinds import EVAL_KINDS
from trainer.recipe.schema import EvalRecipe, EvalSetRecipe, Recipe, SourceRecipe


def source(name: str, task: str, query: str = "", passage: str = "") -> SourceRecipe:
    return SourceRecipe(
        name=name, task=task, path="x", query_instruction=query, passage_instruction=passage
    )


def held_out(name: str, kind: str, query: str = "", passage: str = "") -> EvalSetRecipe:
    return EvalSetRecipe(
        name=name, task=kind, path="x", query_instruction=query, passage_instruction=passage
    )


def recipe_of(sources: Sequence[SourceRecipe], sets: Sequence[EvalSetRecipe]) -> Recipe:
    data = {"prompt_template": "<{instruction}>{text}"}
    return replace(data_recipe(sources, data=data), eval=EvalRecipe(sets=tuple(sets)))


TRAINED = (source("docs", "ir", "find", "page"), source("pairs", "sts", "same"))
OF_TASKS = {"query": "<find>", "document": "<page>", "sts": "<same>"}

CASES: dict[str, tuple[Sequence[EvalSetRecipe], dict[str, str]]] = {
    "sets as trained, or without an instruction, add nothing": (
        [held_out("a", "ir", "find", "page"), held_out("b", "sts", "same"), held_out("c", "ir"),
         held_out("d", "reranking", "find", "page"), held_out("e", "clustering")],
        {},
    ),
    "a kind that is no task has the prompt of its first set": (
        [held_out("a", "classification", "sort"), held_out("b", "classification", "sort"),
         held_out("c", "clustering", "group"), held_out("d", "pair_classification", "twin"),
         held_out("e", "bitext", "translate")],
        {"Classification": "<sort>", "Clustering": "<group>", "PairClassification": "<twin>",
         "BitextMining": "<translate>"},
    ),
    "candidates have two sides": (
        [held_out("a", "reranking", "rank", "page"), held_out("b", "reranking", "rank", "leaf")],
        {"Reranking-query": "<rank>", "b-document": "<leaf>"},
    ),
    "a further instruction of a kind stands under the name of its set": (
        [held_out("Banking77Classification", "classification", "intent"),
         held_out("ImdbClassification", "classification", "mood"),
         held_out("SciFact", "ir", "claim", "page"), held_out("STS22", "sts", "news")],
        {"Classification": "<intent>", "ImdbClassification": "<mood>", "SciFact-query": "<claim>",
         "STS22": "<news>"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_sets_add_prompts_under_names_that_mteb_looks_for(case: str) -> None:
    sets, added = CASES[case]
    assert prompts_of(recipe_of(TRAINED, sets)) == OF_TASKS | added


def test_a_kind_that_was_not_trained_has_names_of_its_own() -> None:
    sets = [held_out("docs", "ir", "find"), held_out("pairs", "sts", "same")]
    trained_on = [source("docs", "ir", "find")]
    none = {"query": "", "document": ""}
    assert prompts_of(recipe_of([source("pairs", "sts", "same")], sets)) == {
        **none, "sts": "<same>", "Retrieval-query": "<find>",
    }  # fmt: skip
    assert prompts_of(recipe_of(trained_on, sets)) == {
        **none, "query": "<find>", "STS": "<same>",
    }  # fmt: skip


LABELLED = (source("a", "labels", "sort"), source("b", "labels", "group"))
Sets = Sequence[EvalSetRecipe]
OF_LABELS: dict[str, tuple[Sequence[SourceRecipe], Sets, dict[str, str], int]] = {
    "sets without an instruction leave what was trained": (
        LABELLED, [held_out("c", "classification"), held_out("d", "clustering")],
        {"Classification": "<sort>", "Clustering": "<sort>"}, 0,
    ),
    "each kind has that of its set": (
        LABELLED, [held_out("c", "classification", "sort"), held_out("d", "clustering", "group"),
                   held_out("e", "clustering", "gather")],
        {"Classification": "<sort>", "Clustering": "<group>", "e": "<gather>"}, 0,
    ),
    "the first set of a kind decides, also against what was trained": (
        LABELLED[:1],
        [held_out("c", "classification", "sort"), held_out("d", "clustering", "group"),
         held_out("e", "classification", "label")],
        {"Classification": "<sort>", "Clustering": "<group>", "e": "<label>"}, 1,
    ),
    "a source without an instruction": (
        [source("a", "labels")],
        [held_out("c", "classification", "sort"), held_out("d", "clustering", "group")],
        {"Classification": "<sort>", "Clustering": "<group>"}, 2,
    ),
}  # fmt: skip
"""Sources, sets, the prompts of both kinds, and how many of them were not trained."""


@pytest.mark.parametrize("case", OF_LABELS)
def test_labelled_sources_give_the_prompts_that_no_set_gives(case: str) -> None:
    sources, sets, expected, num_replaced = OF_LABELS[case]
    recipe = recipe_of(sources, sets)
    found = with_benchmark_names(prompts_of(recipe))
    of_sources = {"query", "document", "labels", "b-labels"}
    assert {name: found[name] for name in found if name not in of_sources} == expected
    assert len(list(replaced_prompts(recipe))) == num_replaced


def test_a_prompt_that_was_not_trained_is_told() -> None:
    recipe = recipe_of(LABELLED, [held_out("d", "clustering", "gather")])
    assert list(replaced_prompts(recipe)) == [
        "the export's prompt Clustering is '<gather>', as eval.sets have it; the sources of task "
        "labels are trained with '<sort>', '<group>'"
    ]
    assert not list(replaced_prompts(recipe_of(TRAINED, [held_out("d", "sts", "other")])))


INSTRUCTIONS = {kind: f"{kind} of: " for kind in KINDS}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    sets = [held_out(kind, kind, INSTRUCTIONS[kind]) for kind in KINDS]
    return make_export(make_base(folder / "base"), folder / "model", sets=sets)


def test_the_folder_has_them(exported: Path) -> None:
    settings = json.loads((exported / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == {
        "query": "find: ", "document": "", "sts": "same: ", "STS": "same: ",
        "Classification": "classification of: ", "Clustering": "clustering of: ",
        "PairClassification": "pair_classification of: ", "Reranking-query": "reranking of: ",
        "BitextMining": "bitext of: ",
    }  # fmt: skip


@contextmanager
def encoded(model: SentenceTransformer) -> Iterator[list[str]]:
    """Texts as the model's first module gets them, prompts included."""
    texts: list[str] = []

    def note(module: Any, arguments: Any) -> None:
        rows, masks = arguments[0]["input_ids"], arguments[0]["attention_mask"]
        for ids, mask in zip(rows, masks, strict=True):
            texts.append(model.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True))

    hook = model[0].register_forward_pre_hook(note)
    yield texts
    hook.remove()


def check_prompts(texts: Sequence[str], kind: str) -> None:
    """Every text of a kind begins with its instruction; documents have none."""
    asked = [text for text in texts if text.startswith(INSTRUCTIONS[kind][:20])]
    assert asked
    bare = [text for text in texts if text not in asked]
    assert bool(bare) == (kind == "reranking")
    assert not any(" of:" in text or "find:" in text for text in bare)


@pytest.mark.parametrize("kind", KINDS)
def test_the_trainer_scores_an_export_with_them(kind: str, exported: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(exported))
    found = opened(kind, write_sets(tmp_path)[kind])
    with encoded(model) as texts:
        evaluate_set(found, ExportedEmbedder(model, kind, Limits()))
    check_prompts(texts, kind)


@pytest.mark.slow
@pytest.mark.mteb
@pytest.mark.parametrize("kind", KINDS)
def test_mteb_scores_an_export_with_them(kind: str, exported: Path, tmp_path: Path) -> None:
    import mteb

    from tests.support.mteb_tasks import local_task

    model = SentenceTransformer(str(exported))
    with encoded(model) as texts:
        mteb.evaluate(model, [local_task(kind, write_sets(tmp_path)[kind])], cache=None)
    check_prompts(texts, kind)


def write_trained_sets(folder: Path) -> dict[str, Path]:
    """Sets of the kinds that are tasks too, by kind."""
    texts = {f"d{n}": f"page number {n}" for n in range(6)}
    asked = {f"q{n}": f"what is on page {n}" for n in range(4)}
    beir = write_beir(folder / "beir", corpus=texts, queries=asked)
    write_qrels(beir, "dev", [(f"q{n}", f"d{n}", 1) for n in range(4)])
    pairs = [{"text1": f"one {n}", "text2": f"two {n}", "score": n / 5} for n in range(6)]
    return {"ir": beir, "sts": write_jsonl(folder / "scored.jsonl", pairs)}


SORT = "sort these: "
TRAINED_PROMPTS = {
    "ir": ("find: ", ""), "reranking": ("find: ", ""), "sts": ("same: ",),
    "classification": (SORT,), "clustering": (SORT,), "pair_classification": ("",),
    "bitext": ("",),
}  # fmt: skip
"""Of each side of a kind, where no held-out set gives an instruction."""


@pytest.mark.slow
@pytest.mark.mteb
@pytest.mark.parametrize("kind", EVAL_KINDS)
def test_mteb_scores_an_export_with_the_prompts_that_were_trained(
    kind: str, tmp_path: Path
) -> None:
    import mteb

    from tests.support.mteb_tasks import local_task

    folder = make_export(make_base(tmp_path / "base"), tmp_path / "model", labelled=SORT)
    sets = write_sets(tmp_path) | write_trained_sets(tmp_path)
    model = SentenceTransformer(str(folder))
    with encoded(model) as texts:
        mteb.evaluate(model, [local_task(kind, sets[kind])], cache=None)
    known = ("find: ", "same: ", SORT)
    begun = {next((one for one in known if text.startswith(one)), "") for text in texts}
    assert begun == set(TRAINED_PROMPTS[kind])
