"""mteb's own files of results: what stands in them, and under which prompts texts were embedded."""

import importlib.util
import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer

from tests.evaluation.test_evaluation_mteb import CLOSE
from tests.support.exported import make_base, make_export
from tests.support.held_out_sets import KINDS, opened, write_sets
from trainer.errors import RecipeError
from trainer.evaluation.evaluate import evaluate_set
from trainer.evaluation.exported import ExportedEmbedder, Limits
from trainer.evaluation.mteb_tasks import (
    MetaFacts,
    TrainedEncoder,
    check_mteb,
    find_tasks,
    model_meta,
    prompt_uses,
    results_folder,
    score_tasks,
)
from trainer.export.clients.mteb import SIDES, TYPES, PromptUse, prompt_use, type_uses
from trainer.recipe.eval_kinds import EVAL_KINDS

HAS_MTEB = importlib.util.find_spec("mteb") is not None
PROMPTS = {"query": "find: ", "document": "", "STS": "same: ", "Classification": "sort: ",
           "Classification-document": "name: ", "Reranking-query": "rank: ",
           "SciFact-query": "claim: ", "Banking77Classification": "intent: "}  # fmt: skip


def use(
    names: str, found: str | None, prompt: str, *, task: str | None, kind: str, side: str | None
) -> PromptUse:
    names_ = tuple(names.split())
    return PromptUse(task=task, kind=kind, side=side, names=names_, found=found, prompt=prompt)


def test_the_prompt_of_the_task_comes_first_then_that_of_its_type_then_the_sides() -> None:
    task, kind = "SciFact", "Retrieval"
    found = [prompt_use(PROMPTS, task=task, kind=kind, side=side) for side in SIDES]
    assert found == [
        use("SciFact-query SciFact Retrieval-query Retrieval query", "SciFact-query", "claim: ",
            task=task, kind=kind, side="query"),
        use("SciFact-document SciFact Retrieval-document Retrieval document", "document", "",
            task=task, kind=kind, side="document"),
    ]  # fmt: skip
    task, kind = "ImdbClassification", "Classification"
    assert prompt_use(PROMPTS, task=task, kind=kind, side=None) == use(
        "ImdbClassification Classification", "Classification", "sort: ",
        task=task, kind=kind, side=None,
    )  # fmt: skip
    assert prompt_use(PROMPTS, task=None, kind="Clustering", side=None) == use(
        "Clustering", None, "", task=None, kind="Clustering", side=None
    )


def test_every_type_is_listed_with_its_sides() -> None:
    uses = type_uses(PROMPTS)
    assert {one.kind for one in uses} == set(TYPES)
    found = {(one.kind, one.side): one.found for one in uses}
    assert found["Reranking", "query"] == "Reranking-query"
    assert found["Retrieval", "document"] == "document"
    assert found["STS", None] == "STS"
    assert ("STS", "query") not in found


def test_the_package_is_asked_for_where_it_is_missing() -> None:
    if HAS_MTEB:
        pytest.skip("the package mteb is installed")
    for ask in (check_mteb, lambda: find_tasks(["SciFact"])):
        with pytest.raises(RecipeError, match=r"package mteb = not installed; .*\[mteb\]"):
            ask()


def test_results_lie_where_mteb_has_them(tmp_path: Path) -> None:
    facts = MetaFacts(name="org/model", revision="abc")
    assert results_folder(tmp_path, facts) == tmp_path / "results" / "org__model" / "abc"


class Noting:
    """What mteb's wrapper is to `TrainedEncoder`, as far as lengths are concerned."""

    def __init__(self) -> None:
        self.model = type("Model", (), {"max_seq_length": 512})()
        self.seen: list[tuple[Any, int]] = []

    def encode(self, inputs: Any, *, prompt_type: Any, **_: Any) -> Any:
        self.seen.append((prompt_type, self.model.max_seq_length))
        return inputs


def test_texts_of_each_side_are_cut_as_in_training() -> None:
    wrapped = Noting()
    encoder = TrainedEncoder(wrapped, None, Limits(query=12, passage=16))
    for side in ("query", "document", None):
        assert encoder.encode(["a"], prompt_type=side, hf_split="test") == ["a"]
    assert wrapped.seen == [("query", 12), ("document", 16), (None, 12)]
    unlimited = Noting()
    TrainedEncoder(unlimited, None).encode([], prompt_type="document")
    assert unlimited.seen == [("document", 512)]


@pytest.mark.slow
@pytest.mark.mteb
@pytest.mark.parametrize("kind", TYPES)
def test_mteb_chooses_the_same_prompts(kind: str) -> None:
    from mteb.models.abs_encoder import get_prompt_name
    from mteb.types import PromptType

    names = ("Some", kind, f"{kind}-query", f"{kind}-document", "query", "document", "Some-query")
    task = type("Task", (), {"name": "Some", "type": kind})()
    for chosen in product((False, True), repeat=len(names)):
        prompts = {name: name for name, is_there in zip(names, chosen, strict=True) if is_there}
        for side in (None, *SIDES):
            theirs = get_prompt_name(prompts, task, PromptType(side) if side else None)
            assert prompt_use(prompts, task="Some", kind=kind, side=side).found == theirs


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    return make_export(make_base(folder / "base"), folder / "model")


FACTS = MetaFacts(
    name="org/tiny",
    revision="0123",
    adapted_from="Qwen/Qwen3-0.6B",
    licence="apache-2.0",
    sources={"tickets": None, "far": "mteb/banking77"},
    dims=(32, 8),
)


@pytest.mark.slow
@pytest.mark.mteb
def test_results_and_meta_are_written_as_mteb_reads_them(exported: Path, tmp_path: Path) -> None:
    import mteb
    from mteb.models import ModelMeta

    from tests.support.mteb_tasks import TYPES as OF_KIND
    from tests.support.mteb_tasks import local_task

    sets = write_sets(tmp_path / "sets")
    tasks = [local_task(kind, sets[kind]) for kind in KINDS]
    model, limits = SentenceTransformer(str(exported)), Limits(query=16, passage=24)
    scores = score_tasks(model, tasks, FACTS, limits=limits, output=tmp_path / "out")
    folder = results_folder(tmp_path / "out", FACTS)
    cache = mteb.ResultCache(tmp_path / "out")
    known = ModelMeta.create_empty(overwrites={"name": FACTS.name, "revision": FACTS.revision})
    for kind in KINDS:
        name = f"Local{OF_KIND[kind][0]}"
        ours = evaluate_set(opened(kind, sets[kind]), ExportedEmbedder(model, kind, limits))
        main = ours[EVAL_KINDS[kind].main_metric]
        # mteb rounds some of its means to five digits
        assert scores[name]["main_score"] == pytest.approx(main, abs=CLOSE + 6e-6)
        content = json.loads((folder / f"{name}.json").read_text())
        assert content["task_name"] == name
        (entry,) = content["scores"]["test"]
        assert entry["main_score"] == pytest.approx(scores[name]["main_score"])
        loaded = cache.load_task_result(name, known)
        assert loaded is not None
    meta = json.loads((folder / "model_meta.json").read_text())
    expected = {
        "name": "org/tiny", "revision": "0123", "license": "apache-2.0", "max_tokens": 24,
        "adapted_from": "Qwen/Qwen3-0.6B", "embed_dim": 32, "use_instructions": True,
        "similarity_fn_name": "cosine", "loader": "SentenceTransformerEncoderWrapper",
        "framework": ["Sentence Transformers", "PyTorch"], "languages": None,
        "n_parameters": sum(one.numel() for one in model.parameters()),
    }  # fmt: skip
    assert {key: meta[key] for key in expected} == expected
    assert "tickets" in meta["training_datasets"]
    assert any("Banking77" in name for name in meta["training_datasets"])
    # what is there is not scored again
    before = (folder / "LocalClustering.json").stat().st_mtime_ns
    again = score_tasks(model, tasks[1:2], FACTS, limits=limits, output=tmp_path / "out")
    # five digits are written
    assert again["LocalClustering"] == pytest.approx(scores["LocalClustering"], abs=6e-6)
    assert again.keys() == {"LocalClustering"}
    assert (folder / "LocalClustering.json").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.mteb
def test_the_prompts_of_tasks_are_listed(tmp_path: Path) -> None:
    from tests.support.mteb_tasks import local_task

    sets = write_sets(tmp_path)
    tasks = [local_task(kind, sets[kind]) for kind in ("classification", "reranking")]
    found = [(one.task, one.side, one.found) for one in prompt_uses(PROMPTS, tasks)]
    assert found == [
        ("LocalClassification", None, "Classification"),
        ("LocalReranking", "query", "Reranking-query"),
        ("LocalReranking", "document", "document"),
    ]


@pytest.mark.slow
@pytest.mark.mteb
@pytest.mark.parametrize(
    ("licence", "known"),
    [("apache-2.0", "apache-2.0"), ("llama3.1", None), (None, None),
     ("https://a.org/licence", "https://a.org/licence")],
)  # fmt: skip
def test_a_licence_that_mteb_does_not_know_is_left_out(
    licence: str | None, known: str | None, exported: Path
) -> None:
    facts = MetaFacts(name="a/b", revision="1", licence=licence)
    meta = model_meta(SentenceTransformer(str(exported)), facts, Limits())
    assert meta.license == known
    assert meta.training_datasets is None
