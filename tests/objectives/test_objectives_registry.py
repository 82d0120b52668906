"""The table of STS terms computes what has a weight."""

import pytest
import torch

from trainer.errors import ObjectiveError
from trainer.objectives.ranking import cosent_loss, pearson_loss, pro_loss, rank_kl_loss
from trainer.objectives.registry import STS_TERMS, sts_loss

PRED = torch.tensor([0.2, 0.9, 0.4, -0.1])
GOLD = torch.tensor([0.0, 1.0, 0.2, 0.6])
TEMPERATURES = {"rank_kl": 0.05, "pro": 0.1, "cosent": 0.05}


def test_terms_are_unweighted_and_zero_weights_left_out() -> None:
    weights = {"pearson": 2.0, "rank_kl": 5.0, "pro": 0.5, "cosent": 0.0}
    terms = sts_loss(PRED, GOLD, weights=weights, temperatures=TEMPERATURES)
    assert terms == {
        "pearson": pearson_loss(PRED, GOLD),
        "rank_kl": rank_kl_loss(PRED, GOLD, temperature=0.05),
        "pro": pro_loss(PRED, GOLD, temperature=0.1),
    }


def test_cosent_takes_a_temperature_as_the_others() -> None:
    terms = sts_loss(PRED, GOLD, weights={"cosent": 1.0}, temperatures=TEMPERATURES)
    assert terms["cosent"] == cosent_loss(PRED, GOLD, scale=20.0)


def test_every_known_term_is_computed() -> None:
    weights = dict.fromkeys(STS_TERMS, 1.0)
    assert tuple(sts_loss(PRED, GOLD, weights=weights, temperatures=TEMPERATURES)) == STS_TERMS


def test_unknown_term_is_refused() -> None:
    with pytest.raises(ObjectiveError, match="weights = infonce; expected one of"):
        sts_loss(PRED, GOLD, weights={"infonce": 1.0}, temperatures={})


def test_missing_temperature_is_refused() -> None:
    with pytest.raises(ObjectiveError, match="expected pro among them"):
        sts_loss(PRED, GOLD, weights={"pro": 1.0}, temperatures={"rank_kl": 0.05})
