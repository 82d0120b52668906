"""Which prompts an export has, and that mteb and the trainer put the same ones before texts."""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

from tests.support.exported import make_base, make_export
from tests.support.held_out_sets import KINDS, opened, write_sets
from tests.support.tiny import make_recipe
from trainer.evaluation.evaluate import evaluate_set
from trainer.evaluation.exported import ExportedEmbedder, Limits
from trainer.export.prompts import prompts_of
from trainer.recipe.schema import DataRecipe, EvalRecipe, EvalSetRecipe, Recipe, SourceRecipe


def source(name: str, task: str, query: str = "", passage: str = "") -> SourceRecipe:
    return SourceRecipe(
        name=name, task=task, path="x", query_instruction=query, passage_instruction=passage
    )


def held_out(name: str, kind: str, query: str = "", passage: str = "") -> EvalSetRecipe:
    return EvalSetRecipe(
        name=name, task=kind, path="x", query_instruction=query, passage_instruction=passage
    )


def recipe_of(
    tmp_path: Path, sources: Sequence[SourceRecipe], sets: Sequence[EvalSetRecipe]
) -> Recipe:
    data = DataRecipe(sources=tuple(sources), prompt_template="<{instruction}>{text}")
    return make_recipe(tmp_path, data=data, eval=EvalRecipe(sets=tuple(sets)))


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
def test_sets_add_prompts_under_names_that_mteb_looks_for(case: str, tmp_path: Path) -> None:
    sets, added = CASES[case]
    assert prompts_of(recipe_of(tmp_path, TRAINED, sets)) == OF_TASKS | added


def test_a_kind_that_was_not_trained_has_names_of_its_own(tmp_path: Path) -> None:
    sets = [held_out("docs", "ir", "find"), held_out("pairs", "sts", "same")]
    trained_on = [source("docs", "ir", "find")]
    none = {"query": "", "document": ""}
    assert prompts_of(recipe_of(tmp_path, [source("pairs", "sts", "same")], sets)) == {
        **none, "sts": "<same>", "Retrieval-query": "<find>",
    }  # fmt: skip
    assert prompts_of(recipe_of(tmp_path, trained_on, sets)) == {
        **none, "query": "<find>", "STS": "<same>",
    }  # fmt: skip


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
@pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="needs the extra mteb")
@pytest.mark.parametrize("kind", KINDS)
def test_mteb_scores_an_export_with_them(kind: str, exported: Path, tmp_path: Path) -> None:
    import mteb

    from tests.support.mteb_tasks import local_task

    model = SentenceTransformer(str(exported))
    with encoded(model) as texts:
        mteb.evaluate(model, [local_task(kind, write_sets(tmp_path)[kind])], cache=None)
    check_prompts(texts, kind)
