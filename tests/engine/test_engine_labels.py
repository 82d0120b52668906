"""The loss of labelled texts against the formulas written out, alone and shared between ranks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine.test_engine_equality import Variant, check, recipe_of
from tests.engine.test_engine_losses import embedding_by_hand, random_table
from tests.objectives.test_objectives_supervised import by_hand
from tests.support import tiny
from tests.support.ranks import run_ranks
from trainer.data.batch import LabelsBatch
from trainer.distributed.group import Ranks, join
from trainer.engine.losses.labels import labels_loss
from trainer.objectives.prefixes import Prefix
from trainer.recipe.embedding_distillation import EmbeddingDistillationRecipe
from trainer.recipe.labels import LabelsRecipe
from trainer.recipe.schema import DataRecipe, Recipe, SourceRecipe

CPU = torch.device("cpu")
TAU = 0.2
OBJECTIVES = ("own_negatives", "in_batch", "supcon")


def settings_of(objective: Any, **changes: Any) -> LabelsRecipe:
    return LabelsRecipe(
        global_batch_size=8, positives=2, negatives=2, temperature=TAU, objective=objective,
        **changes,
    )  # fmt: skip


def labels_of(batch: LabelsBatch) -> list[set[int]]:
    found: list[set[int]] = [set() for _ in batch.texts.token_ids]
    for text, label in batch.members.tolist():
        found[text].add(label)
    return found


def infonce_by_hand(batch: LabelsBatch, table: Tensor, *, in_batch: bool) -> Tensor:
    """Each positive slot against what shares no label with the anchor."""
    labels, terms = labels_of(batch), []
    for row, anchor in enumerate(batch.query.tolist()):
        for slot in range(2):
            candidates = [batch.passages[row, slot]]
            for other, slots in enumerate(batch.passages.tolist()):
                taken = [slots[slot], *slots[2:]] if in_batch else slots[2:]
                if in_batch or other == row:
                    own_target = {0} if in_batch and other == row else set()
                    candidates += [
                        text for place, text in enumerate(taken)
                        if place not in own_target and text >= 0
                        and not labels[text] & labels[anchor]
                    ]  # fmt: skip
            logits = table[anchor] @ table[np.array(candidates)].T / TAU
            terms.append(logits.logsumexp(0) - logits[0])
    return torch.stack(terms).mean()


def loss_by_hand(batch: LabelsBatch, table: Tensor, objective: str) -> Tensor:
    if objective == "supcon":
        return by_hand(table, labels_of(batch), TAU)
    return infonce_by_hand(batch, table, in_batch=objective == "in_batch")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_on_any_number_of_ranks_is_the_one_written_out(objective: str) -> None:
    batch, table = tiny.labels_batch(0), random_table(24, 24)
    taught = EmbeddingDistillationRecipe(weight=3.0)
    cut = torch.nn.functional.normalize(table[:, :4], dim=1)
    term = loss_by_hand(batch, table, objective) + 0.5 * loss_by_hand(batch, cut, objective)
    for settings, want in (
        (settings_of(objective), term),
        (settings_of(objective, embedding_distillation=taught),
         term + 3.0 * embedding_by_hand(table, batch.texts)),
    ):  # fmt: skip
        expected = [want, *torch.autograd.grad(want, table, retain_graph=True)]
        for world_size in (1, 2, 3):
            shares = [
                labels_loss(batch, settings, Ranks(rank=rank, world_size=world_size, device=CPU))
                for rank in range(world_size)
            ]
            terms = [share((table,), (Prefix(24), Prefix(4, 0.5))) for share in shares]
            total = torch.stack([found.pop("loss") for found in terms]).sum()
            name = "supcon" if objective == "supcon" else "infonce"
            assert next(iter(terms[0])) == name
            reported = torch.stack([found[name] for found in terms]).sum()
            torch.testing.assert_close(reported, term, rtol=1e-9, atol=1e-9)
            got = [total, *torch.autograd.grad(total, table)]
            for left, right in zip(got, expected, strict=True):
                torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_a_negative_of_the_own_label_is_no_candidate() -> None:
    batch, table = tiny.labels_batch(0), random_table(24, 24)
    without = batch.passages.copy()
    without[2, 2] = -1  # of label 2 as the anchor, by its other label
    values = [
        labels_loss(one, settings_of("own_negatives"), Ranks(rank=0, world_size=1, device=CPU))(
            (table,), (Prefix(None),)
        )["loss"]
        for one in (batch, replace(batch, passages=without))
    ]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)


def recipe_with(model: Path, objective: str) -> Recipe:
    """A recipe with labelled texts alone."""
    made = recipe_of(Variant("labels", max_tokens=16), model, None)
    source = SourceRecipe(name="labels", task="labels", path="unused")
    return replace(
        made, data=DataRecipe(sources=(source,)), tasks={"labels": settings_of(objective)}
    )


def train_all(rank: int, world_size: int, model: Path, objectives: tuple[str, ...]) -> dict:
    """Three steps of each objective; the plain reference is that of one rank and one chunk."""
    import deepspeed

    from trainer.engine.build import build
    from trainer.engine.step import Stepper
    from trainer.recipe.resolve import resolve

    ranks, found = join(timeout_minutes=2), {}
    for objective in objectives:
        recipe = recipe_with(model, objective)
        built = build(
            recipe,
            model_path=str(model),
            config=dict(resolve(recipe, world_size=world_size).deepspeed),
            gather="step",
            ranks=ranks,
        )
        stepper = Stepper(recipe, built, ranks, num_steps=3, warmup_steps=0)
        losses = [stepper.run(tiny.labels_batch(step)).loss for step in range(3)]
        final = {}
        for name, parameter in built.engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                final[name] = parameter.detach().clone()
        built.engine.destroy()
        found[objective] = (final, losses)
    return found


def reference(rank: int, world_size: int, model: Path, objectives: tuple[str, ...]) -> dict:
    """One process without DeepSpeed and without a cache: one forward of everything, SGD."""
    from trainer.engine.build import load_embedder
    from trainer.engine.chunks import plan_chunks
    from trainer.engine.losses.step_loss import whole_loss
    from trainer.engine.materialise import lengths_of, make_chunks, step_key

    ranks, found = Ranks(rank=0, world_size=1, device=CPU), {}
    for objective in objectives:
        recipe = recipe_with(model, objective)
        embedder = load_embedder(
            recipe, model_path=str(model), config={"zero_optimization": {"stage": 0}}, ranks=ranks
        )
        start = {n: p.detach().clone() for n, p in embedder.named_parameters()}
        optimizer = torch.optim.SGD(embedder.parameters(), lr=recipe.train.learning_rate)
        losses = []
        for step in range(3):
            batch = tiny.labels_batch(step)
            plan = plan_chunks(lengths_of(batch.texts), num_ranks=1, max_tokens=10**6)
            key = step_key(recipe.seed, step)
            (chunk,) = make_chunks(batch.texts, plan.ranks[0], key=key, device=CPU)
            embedder.begin(chunk, key)
            loss = whole_loss(batch, recipe.tasks["labels"], plan, CPU)(embedder(chunk))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        final = {n: p.detach().clone() for n, p in embedder.named_parameters()}
        found[objective] = {"start": start, "final": final, "losses": losses}
    return found


@pytest.mark.dist
def test_two_ranks_and_the_gradient_cache_give_what_one_plain_process_gives(
    tmp_path: Path,
) -> None:
    model = tiny.save_model(tiny.qwen3_config(num_hidden_layers=2), tmp_path / "model")
    (expected,) = run_ranks(reference, 1, model, OBJECTIVES)
    results = run_ranks(train_all, 2, model, OBJECTIVES, timeout_sec=240)
    for objective in OBJECTIVES:
        check([{objective: one[objective]} for one in results], expected[objective])
