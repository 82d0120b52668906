"""The supervised contrastive loss against the formula written out, text by text, in float64."""

import math

import pytest
import torch
from torch import Tensor

from trainer.errors import ObjectiveError
from trainer.objectives import supervised
from trainer.objectives.prefixes import Prefix
from trainer.objectives.supervised import supcon

LABELS = [{0}, {0}, {0}, {1}, {1}, {2}, {0, 1}]
"""The sixth is alone, the last has two."""


def unit(num: int, size: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num, size, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=1).requires_grad_()


def positives(labels: list[set[int]]) -> Tensor:
    return torch.tensor([[bool(a & b) for b in labels] for a in labels])


def by_hand(vectors: Tensor, labels: list[set[int]], temperature: float) -> Tensor:
    """Equation 2 of the paper, its mean over the texts that have a positive."""
    terms = []
    for i, own in enumerate(labels):
        others = [a for a in range(len(labels)) if a != i]
        alike = [p for p in others if own & labels[p]]
        if not alike:
            continue
        total = sum((vectors[i] @ vectors[a] / temperature).exp() for a in others)
        logs = [((vectors[i] @ vectors[p] / temperature).exp() / total).log() for p in alike]
        terms.append(-sum(logs) / len(alike))
    return sum(terms) / len(terms)


def compare(got: Tensor, want: Tensor, vectors: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    slopes = [torch.autograd.grad(value, vectors)[0] for value in (got, want)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tile", [1, 1 << 24], ids=["one anchor at a time", "all at once"])
def test_it_is_the_formula_written_out(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(supervised, "TILE_BYTES", tile)
    vectors = unit(len(LABELS))
    got = supcon(vectors, vectors, positives(LABELS), temperature=0.1)
    compare(got, by_hand(vectors, LABELS, 0.1), vectors)


def test_shares_of_anchors_add_up_to_the_whole() -> None:
    vectors, flags = unit(len(LABELS)), positives(LABELS)
    parts = []
    for rows in (slice(0, 3), slice(3, 7)):
        # all but the sixth have a positive
        weight = len([i for i in range(rows.start, rows.stop) if i != 5]) / 6
        part = supcon(vectors[rows], vectors, flags[rows], temperature=0.1, first_row=rows.start)
        parts.append(weight * part)
    compare(sum(parts), by_hand(vectors, LABELS, 0.1), vectors)


def test_leading_parts_are_normalised_and_weighted() -> None:
    vectors = unit(len(LABELS))
    prefixes = (Prefix(6), Prefix(2, 0.5))
    got = supcon(vectors, vectors, positives(LABELS), temperature=0.1, prefixes=prefixes)
    cut = torch.nn.functional.normalize(vectors[:, :2], dim=1)
    want = by_hand(vectors, LABELS, 0.1) + 0.5 * by_hand(cut, LABELS, 0.1)
    compare(got, want, vectors)


def test_texts_of_one_label_alone_share_the_probability() -> None:
    vectors = torch.eye(3, 4, dtype=torch.float64).requires_grad_()
    value = supcon(vectors, vectors, torch.ones(3, 3, dtype=torch.bool), temperature=1.0)
    assert value.item() == pytest.approx(math.log(2))


def test_no_positive_gives_a_connected_zero() -> None:
    vectors = unit(1)
    value = supcon(vectors, vectors, torch.ones(1, 1, dtype=torch.bool), temperature=0.1)
    assert value.item() == 0
    assert torch.autograd.grad(value, vectors)[0].tolist() == [[0.0] * 6]
    none = supcon(vectors[:0], vectors, torch.ones(0, 1, dtype=torch.bool), temperature=0.1)
    assert none.item() == 0
    assert none.requires_grad


def test_gradients_pass_gradcheck() -> None:
    flags = positives(LABELS)
    assert torch.autograd.gradcheck(
        lambda v: supcon(v, v, flags, temperature=0.5), unit(len(LABELS))
    )


def test_half_precision_is_computed_in_float32() -> None:
    vectors = unit(len(LABELS)).detach().to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = supcon(vectors, vectors, positives(LABELS), temperature=0.1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(
        got, by_hand(vectors.double(), LABELS, 0.1).float(), rtol=1e-5, atol=1e-5
    )


def test_arguments_that_do_not_fit_are_refused() -> None:
    vectors, flags = unit(3), torch.ones(3, 3, dtype=torch.bool)
    with pytest.raises(ObjectiveError, match=r"supcon: shapes = \[\[3, 6\], \[3, 6\], \[2, 3\]\]"):
        supcon(vectors, vectors, flags[:2], temperature=0.1)
    with pytest.raises(ObjectiveError, match=r"supcon: first_row = 1; expected 0 to 0"):
        supcon(vectors, vectors, flags, temperature=0.1, first_row=1)
    with pytest.raises(ObjectiveError, match=r"supcon: temperature = 0; expected above 0"):
        supcon(vectors, vectors, flags, temperature=0)
