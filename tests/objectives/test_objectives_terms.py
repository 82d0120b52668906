"""Terms are values: recipe and objectives have the same ones; what has a weight is computed."""

import pytest
import torch

from tests.support import tiny
from trainer.distributed.group import Ranks
from trainer.engine.losses.sts import SimilarityLoss
from trainer.engine.losses.task_loss import own_texts
from trainer.errors import ObjectiveError
from trainer.objectives.prefixes import WHOLE
from trainer.objectives.ranking import cosent_loss, pearson_loss, pro_loss, rank_kl_loss
from trainer.objectives.terms import (
    RETRIEVAL_TERMS,
    SIMILARITY_TERMS,
    SUPERVISED_TERMS,
    Term,
    weighted_terms,
)
from trainer.recipe import ir, labels, sts
from trainer.recipe.kind import Terms
from trainer.recipe.sts import StsRecipe, similarity_temperatures, similarity_weights

GOLD = torch.tensor([0.0, 1.0, 0.2, 0.6])
FIRST = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [0.3, 1], [1, -1], [2, 1]]), dim=1)
SECOND = torch.nn.functional.normalize(torch.tensor([[1.0, 1], [0.1, 1], [1, 2], [-1, 0.5]]), dim=1)
COSINES = (FIRST * SECOND).sum(1)
RANKS = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


def terms_of(**weights: float) -> dict[str, torch.Tensor]:
    """The terms of four pairs whose rows are 0..3 and 4..7 of the table."""
    none = {name: 0.0 for name, term in sts.TERMS.items() if not term.has_own_key}
    settings = StsRecipe(
        global_batch_size=4,
        weights=similarity_weights(**none | weights),
        temperatures=similarity_temperatures(pro=0.1),
    )
    loss = SimilarityLoss(
        settings=settings,
        terms=weighted_terms(SIMILARITY_TERMS, settings.weights),
        world_size=RANKS.world_size,
        first=torch.arange(4),
        second=torch.arange(4, 8),
        gold=GOLD,
        texts=own_texts(tiny.make_texts([1] * 8, seed=0), RANKS),
    )
    table = torch.cat([FIRST, SECOND])
    return loss((table, table), (WHOLE,))


@pytest.mark.parametrize(
    ("settings", "functions"),
    [
        (ir.TERMS, RETRIEVAL_TERMS),
        (sts.TERMS, SIMILARITY_TERMS),
        (labels.TERMS, SUPERVISED_TERMS),
    ],
    ids=["retrieval", "similarity", "labels"],
)
def test_every_term_of_a_recipe_has_its_function(
    settings: Terms, functions: dict[str, Term]
) -> None:
    assert list(settings) == list(functions)


def test_terms_are_unweighted_and_zero_weights_left_out() -> None:
    terms = terms_of(pearson=2.0, rank_kl=5.0, pro=0.5)
    loss = terms.pop("loss")
    assert terms == {
        "pearson": pearson_loss(COSINES, GOLD),
        "rank_kl": rank_kl_loss(COSINES, GOLD, temperature=0.05),
        "pro": pro_loss(COSINES, GOLD, temperature=0.1),
    }
    assert loss == 2 * terms["pearson"] + 5 * terms["rank_kl"] + 0.5 * terms["pro"]


def test_cosent_takes_a_temperature_as_the_others() -> None:
    assert terms_of(cosent=1.0)["cosent"] == cosent_loss(COSINES, GOLD, scale=20.0)


def test_every_known_term_is_computed() -> None:
    own_weights = [name for name, term in sts.TERMS.items() if not term.has_own_key]
    assert list(terms_of(**dict.fromkeys(own_weights, 1.0))) == ["loss", *own_weights]


def test_weight_without_a_term_is_refused() -> None:
    with pytest.raises(ObjectiveError, match="weights = arc; expected one of"):
        weighted_terms(SIMILARITY_TERMS, {"arc": 1.0})
