"""Steps whose texts share their first tokens give the parameters that one plain process gives.

Batches, steps and tolerance are those of `test_engine_equality`, behind instructions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.test_engine_equality import Variant, check, plain_reference, recipe_of
from tests.support import tiny
from tests.support.ranks import run_ranks
from trainer.data.batch import Texts
from trainer.distributed.group import Ranks, join
from trainer.engine.build import Built, build
from trainer.engine.embed import embed_tokens
from trainer.engine.step import Stepper
from trainer.recipe.resolve import resolve
from trainer.recipe.schema import LoraRecipe, Recipe

pytestmark = pytest.mark.dist

LORA = LoraRecipe(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))
FULL = [
    Variant("zero1", deepspeed="zero1_fp32.json"),
    Variant("zero2, nothing kept", deepspeed="zero2_fp32.json", keep=0),
    Variant("zero3, small chunks", max_tokens=40),
    Variant("zero3, one chunk a group, checkpointing", max_tokens=640, checkpointing=True),
    Variant("layer", gather="layer"),
    Variant("chunk, checkpointing", gather="chunk", checkpointing=True),
    Variant("layer, some kept", gather="layer", max_tokens=40, keep=100),
    Variant("chunk, some kept, checkpointing", gather="chunk", max_tokens=40, keep=100,
            checkpointing=True),
]  # fmt: skip
ADAPTED = [
    Variant("lora, step, checkpointing", checkpointing=True),
    Variant("lora, layer", gather="layer"),
    Variant("lora, chunk", gather="chunk"),
]
COMPOSED = [
    Variant("composed, step", composed=True),
    Variant("composed, layer", gather="layer", composed=True),
]


@dataclass(frozen=True)
class Trained:
    """What a variant left."""

    final: dict[str, torch.Tensor]
    losses: list[float]
    shared: list[float]
    """Share of the tokens of each step that did not run."""


def built_of(recipe: Recipe, gather: Any, ranks: Ranks) -> Built:
    config = dict(resolve(recipe, world_size=ranks.world_size).deepspeed)
    path = recipe.model.path
    return build(recipe, model_path=path, config=config, gather=gather, ranks=ranks)


def train(recipe: Recipe, gather: Any, ranks: Ranks) -> Trained:
    """Three steps through DeepSpeed."""
    import deepspeed

    built = built_of(recipe, gather, ranks)
    stepper = Stepper(recipe, built, ranks, num_steps=3, warmup_steps=0)
    reports = [stepper.run(batch) for batch in tiny.instructed_batches()]
    final = {}
    for name, parameter in built.engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            final[name] = parameter.detach().clone()
    built.engine.destroy()
    return Trained(
        final, [report.loss for report in reports], [report.shared_fraction for report in reports]
    )


def train_all(
    rank: int, world_size: int, model: Path, variants: Sequence[Variant]
) -> dict[str, Trained]:
    """Body of a rank: each variant in turn."""
    ranks = join(timeout_minutes=2)
    return {v.name: train(recipe_of(v, model, _lora(v)), v.gather, ranks) for v in variants}


def _lora(variant: Variant) -> LoraRecipe | None:
    return LORA if variant.name.startswith("lora") else None


def references(rank: int, world_size: int, model: Path) -> dict[str, Any]:
    """What one plain process makes of each kind of model."""
    kinds = {"full": (None, False), "lora": (LORA, False), "composed": (None, True)}
    return {
        name: plain_reference(0, 1, model, lora, composed, make_batches=tiny.instructed_batches)
        for name, (lora, composed) in kinds.items()
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tiny.qwen3_config(num_hidden_layers=3), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, Any]:
    (found,) = run_ranks(references, 1, model)
    return found


def compare(results: list[dict[str, Trained]], expected: dict[str, Any]) -> None:
    """All variants hold their reference's parameters, and shared tokens on the way."""
    for result in results:
        for name, trained in result.items():
            kind = next((kind for kind in expected if name.startswith(kind)), "full")
            check([{name: (trained.final, trained.losses)}], expected[kind])
            assert min(trained.shared) > 0.02, name


def test_two_ranks_share(model: Path, expected: dict[str, Any]) -> None:
    variants = [FULL[2], FULL[4], ADAPTED[2], COMPOSED[0]]
    compare(run_ranks(train_all, 2, model, variants, timeout_sec=300), expected)


@pytest.mark.slow
def test_two_ranks_share_in_every_way(model: Path, expected: dict[str, Any]) -> None:
    variants = [*FULL, *ADAPTED, *COMPOSED]
    compare(run_ranks(train_all, 2, model, variants, timeout_sec=300), expected)


@pytest.mark.slow
def test_one_rank_shares_in_every_way(model: Path, expected: dict[str, Any]) -> None:
    variants = [FULL[0], FULL[2], FULL[4], FULL[5], ADAPTED[0], COMPOSED[0]]
    compare(run_ranks(train_all, 1, model, variants, timeout_sec=180), expected)


def watch(rank: int, world_size: int, model: Path) -> dict[str, Any]:
    """Tokens through the first layer and vectors in evaluation, with sharing on and off."""
    ranks = join(timeout_minutes=2)
    found: dict[str, Any] = {}
    ids = tuple(np.concatenate([np.arange(1, 21), [30 + i, 31 + i]]) for i in range(40))
    texts = Texts(token_ids=tuple(i.astype(np.int32) for i in ids),
                  num_prompt_tokens=np.zeros(40, np.int64))  # fmt: skip
    dropped = replace(LORA, dropout=0.1)
    for name, share, lora in (
        ("on", "auto", None),
        ("off", "off", None),
        ("drop", "auto", dropped),
    ):
        for gather in ("step", "layer", "chunk"):
            recipe = recipe_of(Variant(name, max_tokens=256), model, lora)
            recipe = replace(recipe, engine=replace(recipe.engine, share_prefix=share))
            built = built_of(recipe, gather, ranks)
            tokens = []

            def note(module: Any, inputs: Any, output: Any, tokens: list[int] = tokens) -> None:
                tokens.append(output.shape[:-1].numel())

            for owner in (built.engine.module, built.replica._module):
                layer = next(m for n, m in owner.named_modules() if n.endswith("layers.0.mlp"))
                layer.register_forward_hook(note)
            vectors = embed_tokens(texts, model=built.grad_cache, ranks=ranks, chunk_tokens=256)
            embedded = sum(tokens)
            stepper = Stepper(recipe, built, ranks, num_steps=3, warmup_steps=0)
            report = stepper.run(tiny.instructed_batches()[0])
            found[f"{name}, {gather}"] = (embedded, vectors, report)
            built.engine.destroy()
    return found


def test_evaluation_shares_too_and_dropout_keeps_it_from_steps(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (found,) = run_ranks(watch, 1, model, timeout_sec=180)
    for gather in ("step", "layer", "chunk"):
        on, off, drop = (found[f"{name}, {gather}"] for name in ("on", "off", "drop"))
        # 40 texts of 22 tokens; 20 are shared by the texts of each chunk
        assert off[0] == 40 * 22
        assert on[0] == drop[0] < 40 * 2 + 5 * 20
        torch.testing.assert_close(on[1], off[1], rtol=1e-5, atol=1e-6)
        assert on[2].shared_fraction > 0.2
        assert off[2].shared_fraction == drop[2].shared_fraction == 0
        assert on[2].tokens == off[2].tokens
        assert on[2].loss == pytest.approx(off[2].loss, rel=1e-5)
