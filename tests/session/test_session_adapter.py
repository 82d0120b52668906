"""A run from an adapter's folder: it goes on with the adapter, or trains the sum of both.

Each way equals the same steps taken by one plain process from what peft itself makes of the folder.
One launch of two ranks tells most of it.
"""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from tests.checkpoint.test_checkpoint_lora import embed
from tests.engine.test_engine_equality import Variant, check, plain_reference, recipe_of, train
from tests.support import corpus, tiny
from tests.support.ranks import run_ranks
from tests.support.sessions import run_of, run_session
from trainer.errors import TrainerError
from trainer.model.embedder import Embedder
from trainer.recipe.adapter_folder import with_adapter
from trainer.recipe.schema import LoraRecipe, Recipe

pytestmark = [pytest.mark.dist, pytest.mark.slow]

LORA = LoraRecipe(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))
DORA = replace(LORA, dora=True)
WAYS = [
    Variant("step"),
    Variant("layer", gather="layer"),
    Variant("chunk", gather="chunk"),
    Variant("zero1", deepspeed="zero1_fp32.json"),
]
PROJECTION = "model.projection={{size: 12}}"
SHORT = ("train.max_steps=2", "checkpoint.every_steps=2")


def make_adapter(base: Path, folder: Path, lora: LoraRecipe) -> Path:
    """An adapter as peft saves it, with a B that is not zero."""
    torch.manual_seed(5)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        use_dora=lora.dora,
        init_lora_weights=False,
    )
    model = get_peft_model(AutoModel.from_pretrained(base, dtype=torch.float32), config)
    assert isinstance(model, PeftModel)
    model.save_pretrained(str(folder))
    merged = model.merge_and_unload()
    merged.save_pretrained(str(folder.with_name(f"{folder.name}-merged")))
    return folder


def take(folder: Path, embedder: Embedder) -> None:
    """Give an embedder's adapters the weights of a folder, by peft itself."""
    state = load_file(folder / "adapter_model.safetensors")
    result = set_peft_model_state_dict(embedder.backbone, state, adapter_name="default")
    assert not result.unexpected_keys


def from_adapter(variant: Variant, adapter: Path, way: Any) -> Recipe:
    recipe = recipe_of(variant, adapter, None)
    return with_adapter(replace(recipe, model=replace(recipe.model, adapter=way)))


def body(rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    """Three steps by every way of gathering, from adapters of peft; then runs of our own."""
    from trainer.distributed.group import join

    os.environ["TRAINER_CACHE_DIR"] = str(folder / "cache")
    ranks = join(timeout_minutes=2)

    def steps(ways: list[Variant], adapter: str, way: str) -> dict[str, Any]:
        recipes = {v.name: (from_adapter(v, folder / adapter, way), v.gather) for v in ways}
        return {name: train(recipe, gather, ranks) for name, (recipe, gather) in recipes.items()}

    return {
        "lora": steps(WAYS, "lora", "continue"),
        "dora": steps(WAYS[:1], "dora", "continue"),
        "merged lora": steps(WAYS[:2], "lora", "merge"),
        "merged dora": steps(WAYS[3:], "dora", "merge"),
        "runs": runs(rank, folder),
    }


def runs(rank: int, folder: Path) -> dict[str, Any]:
    """A run that exports an adapter, and runs that start from it."""
    from torch.distributed import barrier

    first = run_of(folder, "first", "model.lora={{rank: 4, alpha: 8}}", PROJECTION,
                   "checkpoint.export=adapter", *SHORT)  # fmt: skip
    run_session(first, resume=False)
    vectors = {"first": embed(first.session)}
    first.session.built.engine.destroy()
    path = "model.path={folder}/first/model"
    for name, *overrides in (
        ("second", "model.adapter=continue", "checkpoint.export=both"),
        ("third", "model.adapter=merge"),
        ("fourth", "model.adapter=merge", "model.lora={{rank: 2}}", "checkpoint.export=adapter"),
    ):
        run = run_of(folder, name, path, PROJECTION, *overrides, *SHORT)
        vectors[f"{name}, at first"] = embed(run.session)
        run_session(run, resume=False)
        vectors[name] = embed(run.session)
        run.session.built.engine.destroy()
    again = run_of(folder, "second", path, PROJECTION, "model.adapter=continue",
                   "checkpoint.export=both", *SHORT)  # fmt: skip
    assert again.prepare(resume=True) == 2
    vectors["second, resumed"] = embed(again.session)
    again.session.built.engine.destroy()
    weights = folder / "model" / "model.safetensors"
    barrier()
    if rank == 0:
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    barrier()
    mistakes = {}
    for way in ("continue", "merge"):
        with pytest.raises(TrainerError) as caught:
            run_of(folder, "fifth", path, PROJECTION, f"model.adapter={way}", *SHORT)
        mistakes[way] = str(caught.value)
    with pytest.raises(TrainerError) as caught:
        run_of(folder, "fifth", "model.path={folder}/lora", "model.lora={{rank: 4, alpha: 8}}")
    return {"vectors": vectors, "mistakes": mistakes | {"targets": str(caught.value)}}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    corpus.make_workspace(folder)
    tiny.save_model(tiny.qwen3_config(num_hidden_layers=3), folder / "plain")
    corpus.save_tokenizer(folder / "plain")
    make_adapter(folder / "plain", folder / "lora", LORA)
    make_adapter(folder / "plain", folder / "dora", DORA)
    return folder


@pytest.fixture(scope="module")
def told(workspace: Path) -> list[dict[str, Any]]:
    return run_ranks(body, 2, workspace, timeout_sec=400)


@pytest.mark.parametrize(("name", "lora"), [("lora", LORA), ("dora", DORA)])
def test_continued_steps_are_those_of_one_plain_process(
    told: list[dict[str, Any]], workspace: Path, name: str, lora: LoraRecipe
) -> None:
    prepare = partial(take, workspace / name)
    (reference,) = run_ranks(plain_reference, 1, workspace / "plain", lora, False, prepare)
    check([rank[name] for rank in told], reference)


def unit_vectors(model: Path, state: dict[str, Tensor]) -> Tensor:
    """Vectors of some tokens by final parameters of a run, in float64."""
    backbone = AutoModel.from_pretrained(model, dtype=torch.float64)
    own = {name.removeprefix("backbone."): value.double() for name, value in state.items()}
    backbone.load_state_dict(own)
    ids = torch.arange(1, 61).view(6, 10)
    with torch.no_grad():
        states = backbone(input_ids=ids).last_hidden_state[:, -1]
    return torch.nn.functional.normalize(states, dim=-1)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_steps_from_a_sum_are_those_from_the_folder_that_peft_merges(
    told: list[dict[str, Any]], workspace: Path, name: str
) -> None:
    merged = workspace / f"{name}-merged"
    (reference,) = run_ranks(plain_reference, 1, merged, None)
    wanted = unit_vectors(workspace / "plain", reference["final"])
    before = unit_vectors(workspace / "plain", reference["start"])
    for rank in told:
        for way, (final, losses) in rank[f"merged {name}"].items():
            assert losses == pytest.approx(reference["losses"], rel=1e-5), way
            found = unit_vectors(workspace / "plain", final)
            assert (found - wanted).abs().max() < 1e-5, way
    assert (wanted - before).abs().max() > 1e-3


def test_runs_start_with_the_vectors_that_the_adapter_was_exported_with(
    told: list[dict[str, Any]],
) -> None:
    for rank in told:
        vectors = rank["runs"]["vectors"]
        torch.testing.assert_close(vectors["second, at first"], vectors["first"], atol=0, rtol=0)
        for name in ("third", "fourth"):
            torch.testing.assert_close(
                vectors[f"{name}, at first"], vectors["first"], atol=1e-5, rtol=0
            )
            assert (vectors[name] - vectors["first"]).abs().max() > 1e-3
        torch.testing.assert_close(vectors["second, resumed"], vectors["second"], atol=0, rtol=0)
        assert (vectors["second"] - vectors["first"]).abs().max() > 1e-3


def test_exports_name_the_base_and_not_the_adapter_that_they_began_with(
    told: list[dict[str, Any]], workspace: Path
) -> None:
    config = json.loads((workspace / "second/model/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(workspace / "model")
    assert config["r"] == 4
    fourth = json.loads((workspace / "fourth/model/adapter_config.json").read_text())
    assert Path(fourth["base_model_name_or_path"]).is_relative_to(workspace / "cache")
    assert fourth["r"] == 2
    assert (workspace / "third/model/model.safetensors").is_file()


def test_another_base_and_other_modules_are_refused(told: list[dict[str, Any]]) -> None:
    mistakes = told[0]["runs"]["mistakes"]
    for way in ("continue", "merge"):
        assert "first/model/base.json: base = model.safetensors of " in mistakes[way]
        assert "differ from those that the adapter was trained on" in mistakes[way]
    assert "lora/adapter_model.safetensors: tensors = without " in mistakes["targets"]
