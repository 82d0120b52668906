"""Losses that sentence-transformers has too give its values and gradients on the same vectors."""

from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer import losses
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from tests.support.peer_losses import check, raw, unit
from trainer.objectives.blocks import Guide
from trainer.objectives.contrastive import info_nce
from trainer.objectives.distillation import kl_loss, margin_mse_loss
from trainer.objectives.prefixes import Prefix
from trainer.objectives.ranking import angle_loss
from trainer.objectives.regularisers import spread_out

TEMPERATURE = 0.05
ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


class Vectors(nn.Module):
    """Stands for a model whose texts are embedded already."""

    def __init__(self, size: int, key: str = "vectors") -> None:
        super().__init__()
        self.size = size
        self.key = key

    def get_embedding_dimension(self) -> int:
        return self.size

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features[self.key]}


def columns(queries: Tensor, passages: Tensor) -> list[Tensor]:
    """As its losses take them: anchors, positives, negatives."""
    return [queries, *passages.unbind(1)]


@pytest.mark.parametrize("directions", [ALL[:1], ALL[:2], ALL[:3], ALL, (ALL[0], ALL[2])])
@pytest.mark.parametrize("num_negatives", [0, 2])
def test_directions(directions: tuple[str, ...], num_negatives: int) -> None:
    queries, passages = raw(6, 8), raw(6, 1 + num_negatives, 8, seed=1)
    peer = losses.MultipleNegativesRankingLoss(
        Vectors(8), scale=1 / TEMPERATURE, directions=directions
    )
    ours = info_nce(
        unit(queries),
        unit(passages),
        num_positives=1,
        temperature=TEMPERATURE,
        directions=directions,
    )
    theirs = peer.compute_loss_from_embeddings(columns(queries, passages), None)
    check(ours, theirs, queries, passages)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("all", "all_negatives"), ("in_batch", "in_batch_negatives"), ("hard", "hard_negatives")],
)
def test_hardness(ours: str, theirs: str) -> None:
    queries, passages = raw(6, 8), raw(6, 3, 8, seed=1)
    peer = losses.MultipleNegativesRankingLoss(
        Vectors(8), scale=1 / TEMPERATURE, hardness_mode=theirs, hardness_strength=5.0,
        directions=ALL,
    )  # fmt: skip
    got = info_nce(
        unit(queries), unit(passages), num_positives=1, temperature=TEMPERATURE, hardness=5.0,
        hardness_of=ours, directions=ALL,
    )  # fmt: skip
    expected = peer.compute_loss_from_embeddings(columns(queries, passages), None)
    check(got, expected, queries, passages)


def test_prefixes() -> None:
    queries, passages = raw(6, 8), raw(6, 3, 8, seed=1)
    peer = losses.MatryoshkaLoss(
        Vectors(8),
        losses.MultipleNegativesRankingLoss(Vectors(8), scale=1 / TEMPERATURE),
        matryoshka_dims=[8, 4, 3],
        matryoshka_weights=[1.0, 0.5, 2.0],
    )
    # its model is shared by both losses, as a trainer has it
    peer.loss.model = peer.model
    got = info_nce(
        unit(queries), unit(passages), num_positives=1, temperature=TEMPERATURE,
        prefixes=[Prefix(8), Prefix(4, 0.5), Prefix(3, 2.0)],
    )  # fmt: skip
    features = [{"vectors": vectors} for vectors in columns(queries, passages)]
    check(got, peer(features, None), queries, passages)


GUIDED = [
    (ALL[:1], 0, False, False),
    ((ALL[0], ALL[1], ALL[3]), 0, True, True),
    (ALL[:2], 1, True, False),
]


@pytest.mark.parametrize(("directions", "num_negatives", "anchors", "positives"), GUIDED)
def test_guide(
    directions: tuple[str, ...], num_negatives: int, anchors: bool, positives: bool
) -> None:
    queries, passages = raw(6, 8), raw(6, 1 + num_negatives, 8, seed=1)
    guides = [raw(6, 5, seed=2).detach(), raw(6, 1 + num_negatives, 5, seed=3).detach()]
    # some positives that the guide finds near, so that not all is left out
    guides[1][:3, 0] = guides[0][:3] + 0.3 * guides[1][:3, 0]
    peer = gist(anchors=anchors, positives=positives)
    got = info_nce(
        unit(queries), unit(passages), num_positives=1, temperature=TEMPERATURE,
        directions=directions, guide=Guide(queries=unit(guides[0]), passages=unit(guides[1])),
    )  # fmt: skip
    features = [
        {"vectors": ours, "guide": its}
        for ours, its in zip(columns(queries, passages), columns(*guides), strict=True)
    ]
    check(got, peer(features, None), queries, passages)
    plain = info_nce(
        unit(queries), unit(passages), num_positives=1, temperature=TEMPERATURE,
        directions=directions,
    )  # fmt: skip
    assert float(plain.detach()) > float(got.detach())


def gist(*, anchors: bool, positives: bool) -> losses.GISTEmbedLoss:
    """Their loss without the tokenizers that it asks models for."""
    peer = losses.GISTEmbedLoss.__new__(losses.GISTEmbedLoss)
    nn.Module.__init__(peer)
    peer.model, peer.guide = Vectors(8), Vectors(5, key="guide")
    peer.temperature, peer.margin, peer.margin_strategy = TEMPERATURE, 0.0, "absolute"
    peer.similarity_fct, peer.cross_entropy_loss = nn.CosineSimilarity(-1), nn.CrossEntropyLoss()
    peer.contrast_anchors, peer.contrast_positives = anchors, positives
    peer.must_retokenize = peer.gather_across_devices = False
    return peer


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.05, 0.05), (0.1, 2.0)])
def test_kl(temperatures: tuple[float, float]) -> None:
    queries, passages = raw(5, 8), raw(5, 4, 8, seed=1)
    teacher = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours, its = temperatures
    peer = losses.DistillKLDivLoss(
        Vectors(8), student_temperature=ours, teacher_temperature=its,
        similarity_fct=cosines,
    )  # fmt: skip
    got = kl_loss(
        own_scores(unit(queries), unit(passages)),
        teacher,
        temperature=ours,
        teacher_temperature=its,
    )
    expected = peer.compute_loss_from_embeddings(columns(queries, passages), teacher)
    check(got, expected, queries, passages)


def test_margin_mse() -> None:
    queries, passages = raw(5, 8), raw(5, 4, 8, seed=1)
    teacher = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    peer = losses.MarginMSELoss(Vectors(8), similarity_fct=cosines)
    got = margin_mse_loss(own_scores(unit(queries), unit(passages)), teacher, temperature=1.0)
    expected = peer.compute_loss_from_embeddings(columns(queries, passages), teacher)
    check(got, expected, queries, passages)


@pytest.mark.parametrize("size", [8, 7])
def test_angle(size: int) -> None:
    first, second = raw(6, size), raw(6, size, seed=1)
    gold = torch.tensor([0.0, 1, 0.5, 0.5, 0.2, 0.9], dtype=torch.float64)
    peer = losses.AnglELoss(Vectors(size), scale=20.0)
    got = angle_loss(unit(first), unit(second), gold, scale=20.0)
    check(got, peer.compute_loss_from_embeddings([first, second], gold), first, second)


@pytest.mark.parametrize("num_vectors", [4, 30])
def test_spread_out(num_vectors: int) -> None:
    vectors = (raw(num_vectors, 8) + 0.5).detach().requires_grad_()
    peer = losses.GlobalOrthogonalRegularizationLoss(Vectors(8), mean_weight=None)
    (theirs,) = peer.compute_loss_from_embeddings([vectors]).values()
    # it takes off 1 / D, and stops at 0 where the vectors are spread more than that
    got = spread_out(unit(vectors))
    assert float(got.detach()) > 1 / 8
    check(got - 1 / 8, theirs, vectors)


def cosines(first: Tensor, second: Tensor) -> Any:
    return cosine_similarity(first, second, dim=-1)


def own_scores(queries: Tensor, passages: Tensor) -> Tensor:
    """Cosines of each query with its own candidates [B, C]."""
    return (passages @ queries[:, :, None]).squeeze(2)
