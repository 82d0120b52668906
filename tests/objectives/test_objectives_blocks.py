"""Every direction, mask, weighting and prefix of InfoNCE equals a float64 loop, in any mixture."""

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode, mm_flop

from tests.objectives.test_objectives_contrastive import embeddings, grads
from trainer.errors import ObjectiveError
from trainer.objectives import tiles
from trainer.objectives.blocks import Guide
from trainer.objectives.contrastive import info_nce
from trainer.objectives.prefixes import Prefix

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


@dataclass(frozen=True)
class Naive:
    """The loss as its docstring says it, one candidate at a time."""

    queries: Tensor
    passages: Tensor
    num_positives: int
    temperature: float
    known: frozenset[tuple[int, int, int]] = frozenset()
    absent: Tensor | None = None
    margin: float | None = None
    margin_of: str = "best"
    directions: tuple[str, ...] = ("query_to_doc",)
    in_batch: bool | str = True
    hardness: float = 0.0
    hardness_of: str = "all"
    prefixes: tuple[Prefix, ...] = field(default=(Prefix(None),))
    guide: Guide | None = None

    def losses(self) -> Tensor:
        """Cross-entropies [G, P] summed over prefixes."""
        total = torch.zeros(len(self.queries), self.num_positives, dtype=torch.float64)
        for prefix in self.prefixes:
            queries, passages = self.queries, self.passages
            if prefix.size is not None and prefix.size < queries.shape[1]:
                queries = normalize(queries[:, : prefix.size], dim=-1)
                passages = normalize(passages[..., : prefix.size], dim=-1)
            rows = [
                [self.one(queries, passages, i, j) for j in range(self.num_positives)]
                for i in range(len(queries))
            ]
            total = total + prefix.weight * torch.stack([torch.stack(row) for row in rows])
        return total

    def one(self, queries: Tensor, passages: Tensor, i: int, j: int) -> Tensor:
        """The cross-entropy of slot j of query i."""
        target = queries[i] @ passages[i, j]
        exponents = [target / self.temperature]
        ceiling = None
        if self.margin is not None:
            best = [queries[i] @ passages[i, s] for s in range(self.num_positives)]
            positive = target if self.margin_of == "own" else max(best)
            ceiling = float(positive.detach()) + self.margin
        likely = [] if self.guide is None else self.guided(i, j)
        for number, (score, alpha) in enumerate(self.candidates(queries, passages, i, j)):
            if likely and likely[number]:
                continue
            if ceiling is None or float(score.detach()) <= ceiling:
                exponents.append(score / self.temperature + alpha * score.detach())
        if "doc_to_query" in self.directions:
            # the pair itself, whatever is left out
            exponents.append(target / self.temperature)
        return torch.stack(exponents).logsumexp(0) - target / self.temperature

    def guided(self, i: int, j: int) -> list[bool]:
        """Which candidates a guide finds nearer than the best positive, in their order."""
        assert self.guide is not None
        queries, passages = self.guide.queries, self.guide.passages
        best = max(float(queries[i] @ passages[i, s]) for s in range(self.num_positives))
        return [float(score) > best for score, _ in self.candidates(queries, passages, i, j)]

    def candidates(self, queries: Tensor, passages: Tensor, i: int, j: int) -> Any:
        """(score, hardness) of everything that is compared with the target."""
        num_groups, num_slots = passages.shape[:2]
        slots = [j, *range(self.num_positives, num_slots)]
        if self.in_batch == "positives_only":
            slots = [j]
        for k, s in itertools.product(range(num_groups), slots):
            is_absent = self.absent is not None and bool(self.absent[k, s])
            if is_absent or (i, k, s) in self.known or (k, s) == (i, j):
                continue
            lent = self.in_batch is True or (self.in_batch is not False and s == j)
            if lent or k == i:
                harder = self.hardness_of in ("all", "hard" if k == i else "in_batch")
                yield queries[i] @ passages[k, s], self.hardness * harder
            if "doc_to_doc" in self.directions and k != i and lent:
                yield passages[i, j] @ passages[k, s], 0.0
        for k in set(range(num_groups)) - {i}:
            alike = any((i, k, s) in self.known for s in range(self.num_positives))
            if "query_to_query" in self.directions and not alike:
                yield queries[i] @ queries[k], 0.0
            if "doc_to_query" in self.directions and (k, i, j) not in self.known:
                yield passages[i, j] @ queries[k], 0.0


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes and options of one loss."""
    num_groups, num_positives = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    num_negatives = draw(st.integers(0, 3))
    directions = ("query_to_doc", *draw(st.sets(st.sampled_from(DIRECTIONS[1:]))))
    in_batch = draw(st.sampled_from([True, True, "positives", "positives_only", False]))
    return {
        "shape": (num_groups, num_positives, num_negatives),
        "seed": draw(st.integers(0, 2**16)),
        "known": draw(st.sampled_from([0.0, 0.2])),
        "absent": draw(st.sampled_from([0.0, 0.3])),
        "guide": draw(st.sampled_from([None, None, 3, 9])),
        "options": {
            "margin": draw(st.sampled_from([None, 0.0, 0.1, -0.2])),
            "margin_of": draw(st.sampled_from(["own", "best"])),
            "directions": directions[:1] if in_batch is False else directions,
            "in_batch": in_batch,
            "hardness": draw(st.sampled_from([0.0, 5.0])),
            "hardness_of": draw(st.sampled_from(["all", "in_batch", "hard"])),
            "prefixes": draw(
                st.sampled_from(
                    [(Prefix(None),), (Prefix(6), Prefix(4, 0.5)), (Prefix(3, 2.0), Prefix(2))]
                )
            ),
        },
    }


def inputs_of(call: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, passages, known pairs and absent flags of a call."""
    num_groups, num_positives, num_negatives = call["shape"]
    num_slots, seed = num_positives + num_negatives, call["seed"]
    queries = embeddings(num_groups, 6, seed=seed)
    passages = embeddings(num_groups, num_slots, 6, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(num_groups, num_groups, num_slots, generator=generator) < call["known"]
    absent = torch.rand(num_groups, num_slots, generator=generator) < call["absent"]
    absent[:, :num_positives] = False
    return queries, passages, known, absent


def share_of(guide: Guide | None, rows: slice) -> Guide | None:
    """A guide as the rank of some queries has it."""
    if guide is None:
        return None
    return replace(guide, queries=guide.queries[rows], all_queries=guide.queries)


def guide_of(call: dict[str, Any]) -> Guide | None:
    """Vectors of a guide of another size."""
    num_groups, num_positives, num_negatives = call["shape"]
    size, seed = call["guide"], call["seed"]
    if size is None:
        return None
    queries = embeddings(num_groups, size, seed=seed + 2).detach()
    passages = embeddings(num_groups, num_positives + num_negatives, size, seed=seed + 3).detach()
    return Guide(queries=queries, passages=passages)


@given(call=calls(), tile_bytes=st.sampled_from([1, 150, 2**20]), cut=st.integers(0, 5))
@settings(max_examples=120)
def test_any_mixture_equals_the_loop(call: dict[str, Any], tile_bytes: int, cut: int) -> None:
    queries, passages, known, absent = inputs_of(call)
    num_groups, num_positives, _ = call["shape"]
    options = {"num_positives": num_positives, "temperature": 0.1, "absent": absent}
    options |= call["options"]
    guide = guide_of(call)
    naive = Naive(
        queries,
        passages,
        guide=guide,
        known=frozenset(map(tuple, known.nonzero().tolist())),
        **options,
    )
    want = naive.losses().mean()
    whole = tiles.TILE_BYTES
    tiles.TILE_BYTES = tile_bytes
    try:
        got = info_nce(queries, passages, mask=known, guide=guide, **options)
        found = [got, *grads(got, queries, passages)]
        # shares of two ranks: the mask counts all queries, as each rank reads them
        total, stop = torch.zeros((), dtype=torch.float64), min(cut, num_groups)
        flat = known.flatten(1).nonzero()
        for rows in (slice(0, stop), slice(stop, num_groups)):
            part = info_nce(
                queries[rows], passages, mask=flat, all_queries=queries,
                first_row=rows.start, guide=share_of(guide, rows), **options,
            )  # fmt: skip
            total = total + part * (rows.stop - rows.start) / num_groups
        found_in_shares = [total, *grads(total, queries, passages)]
    finally:
        tiles.TILE_BYTES = whole
    expected = [want, *grads(want, queries, passages)]
    for ours in (found, found_in_shares):
        for left, right in zip(ours, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("margin_of", ["own", "best"])
def test_all_together_in_float32_and_gradcheck(margin_of: str) -> None:
    queries, passages = embeddings(4, 6), embeddings(4, 4, 6, seed=1)
    options: dict[str, Any] = {
        "num_positives": 2, "temperature": 0.3, "margin": 0.1, "margin_of": margin_of,
        "directions": DIRECTIONS, "hardness": 0.0, "prefixes": (Prefix(6), Prefix(3, 0.5)),
    }  # fmt: skip
    assert torch.autograd.gradcheck(lambda q, p: info_nce(q, p, **options), (queries, passages))
    exact = info_nce(queries, passages, **options)
    short = info_nce(queries.float(), passages.float(), **options)
    torch.testing.assert_close(short.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tile_bytes", [150, 2**20])
@pytest.mark.parametrize("in_batch", [True, False])
def test_a_candidate_as_near_as_the_positive_stays_under_a_margin_of_zero(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tile_bytes: int, in_batch: bool
) -> None:
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    queries, passages = embeddings(8, 64).to(dtype), embeddings(8, 2, 64, seed=1).to(dtype)
    passages = passages.detach().clone()
    passages[:, 0] = passages[0, 0]  # one passage answers all
    passages[:, 1] = passages[0, 0]
    queries = queries.detach()
    loss = info_nce(
        queries, passages, num_positives=1, temperature=0.1, margin=0.0, in_batch=in_batch
    )
    # as many equal logits as there are candidates
    torch.testing.assert_close(loss, torch.tensor(16.0 if in_batch else 2.0, dtype=dtype).log())


def test_a_prefix_without_a_direction_is_divided_by_a_constant() -> None:
    queries, passages = embeddings(3, 8), embeddings(3, 2, 8, seed=1)
    with torch.no_grad():
        queries[0, :4] *= 1e-13
        queries[1, :4] = 0.0
        passages[2, 0, :4] *= 1e-14
    prefixes = (Prefix(8), Prefix(4))
    got = info_nce(queries, passages, num_positives=1, temperature=0.1, prefixes=prefixes)
    naive = Naive(queries, passages, num_positives=1, temperature=0.1, prefixes=prefixes)
    want = naive.losses().mean()
    torch.testing.assert_close(got, want)
    pairs = zip(grads(got, queries, passages), grads(want, queries, passages), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_own_candidates_in_half_precision_have_gradients_that_are_rounded_once() -> None:
    queries, passages = embeddings(4, 32), embeddings(4, 3, 32, seed=1)
    prefixes = tuple(Prefix(size) for size in (32, 28, 24, 20, 16, 12, 8))

    def found(dtype: torch.dtype) -> list[Tensor]:
        leaves = [one.detach().to(dtype).requires_grad_() for one in halves]
        loss = info_nce(
            *leaves, num_positives=1, temperature=0.1, in_batch=False, prefixes=prefixes
        )
        return grads(loss, *leaves)

    halves = [one.detach().bfloat16() for one in (queries, passages)]
    for ours, exact in zip(found(torch.bfloat16), found(torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-6)


def test_hardness_moves_the_weights_and_not_the_slope() -> None:
    # one query, one negative: loss = log(1 + exp((n - p) / t + a n)), its slope in n without a
    query = embeddings(1, 6)
    passages = embeddings(1, 2, 6, seed=1)
    loss = info_nce(query, passages, num_positives=1, temperature=0.5, hardness=3.0)
    positive, negative = (query @ passages[0].T).detach()[0]
    exponent = (negative - positive) / 0.5 + 3 * negative
    torch.testing.assert_close(loss.detach(), exponent.exp().log1p())
    want = exponent.sigmoid() / 0.5 * query.detach()[0]
    torch.testing.assert_close(grads(loss, passages)[0][0, 1], want)


def test_prefixes_cost_no_products_beyond_the_whole_vector() -> None:
    def flops(*prefixes: Prefix) -> int:
        # what adds in place it does not know by itself
        in_place = {torch.ops.aten.addmm_: lambda _, left, right, **__: mm_flop(left, right)}
        counter = FlopCounterMode(display=False, custom_mapping=in_place)
        queries, passages = embeddings(8, 16), embeddings(8, 3, 16, seed=1)
        with counter:
            info_nce(
                queries, passages, num_positives=1, temperature=0.1, directions=DIRECTIONS,
                prefixes=prefixes,
            ).backward()  # fmt: skip
        return int(counter.get_total_flops())

    # forward, recomputed, to the left and to the right; of 16 numbers, two flops each; 3 blocks of
    # queries with passages, 3 of passages with passages and 2 with queries, each 8 by 8
    whole = 4 * 2 * 16 * 8 * (8 * 8)
    assert flops(Prefix(16)) == whole
    assert flops(Prefix(16), Prefix(8), Prefix(4, 0.5), Prefix(4)) == whole


BAD_CALLS = [
    ({"directions": ()}, "directions = .*expected some of query_to_doc"),
    ({"directions": ("doc_to_doc",)}, "query_to_doc among them"),
    ({"directions": ("query_to_doc", "query_to_doc")}, "Name each once"),
    ({"directions": ("query_to_doc", "doc_to_word")}, "doc_to_word"),
    ({"in_batch": "negatives"}, "in_batch = negatives; expected True, False, positives or pos"),
    ({"in_batch": 1}, "in_batch = 1; expected True"),
    ({"in_batch": False, "directions": DIRECTIONS}, "query_to_doc alone where in_batch is False"),
    ({"hardness": -1.0}, "hardness = -1.0; expected at least 0"),
    ({"hardness": float("nan")}, "hardness = nan"),
    ({"margin_of": "worst"}, "margin_of = worst; expected one of own, best"),
    ({"hardness_of": "none"}, "hardness_of = none; expected one of all, in_batch, hard"),
    (
        {"guide": Guide(queries=torch.zeros(4, 5), passages=torch.zeros(4, 2, 6))},
        r"guide = \[\[4, 5\], \[4, 2, 6\], None\]; expected \[\[4, 5\], \[4, 2, 5\], None\]",
    ),
    ({"directions": DIRECTIONS, "queries": torch.zeros(2, 3)}, "all 4 queries, or all_queries"),
    ({"all_queries": torch.zeros(3, 3)}, r"all_queries = \[3, 3\]; expected \[4, 3\]"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CALLS)
def test_choices_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {
        "queries": torch.zeros(4, 3), "passages": torch.zeros(4, 2, 3), "num_positives": 1,
        "temperature": 0.1,
    }  # fmt: skip
    with pytest.raises(ObjectiveError, match=message):
        info_nce(**(call | change))
