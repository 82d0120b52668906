"""InfoNCE over blocks of candidates, in tiles; it must not call a collective.

Which similarities stand in a denominator, which are left out and which count for more is said here;
`trainer.objectives.tiles` sums them. Letters: G queries of the global batch, B of them in this
call, P positive slots, N negatives per query, D embedding size, n pairs.

The target of slot j of query i is its positive d_ij. Candidates, all in one denominator, are by
direction:

- `query_to_doc`: q_i with the slot-j positives of all queries and all hard negatives;
- `query_to_query`: q_i with the queries of the other records;
- `doc_to_query`: d_ij with the queries of all records, its own among them: the pair then counts
  twice, as in the formula of GTE and in sentence-transformers;
- `doc_to_doc`: d_ij with the slot-j positives and the hard negatives of the other records.

Known pairs say that a passage answers a query and is no negative of it. They are left out of
`query_to_doc` and `doc_to_doc` of the query and of `doc_to_query` of the passage; `query_to_query`
leaves out queries one of whose positive slots is known to the query. A query's own positive slots
stay in. A guide leaves out what it finds nearer to its side of a similarity than the query to its
best positive, in every direction.

References: van den Oord et al. 2018, arXiv:1807.03748, eq. 4, with cosine in place of a bilinear
score; the slots are those of CoDiEmb, arXiv:2508.11442; directions: Li et al. 2023 (GTE),
arXiv:2308.03281, eq. 2; margin of the own positive: Zhang et al. 2025 (Qwen3 Embedding),
arXiv:2506.05176, eq. 1; hardness: Lan et al. 2025, arXiv:2503.04812, eq. 5, and of hard negatives
alone Schechter Vera et al. 2025 (EmbeddingGemma), arXiv:2509.20354; guide: Solatorio 2024
(GISTEmbed), arXiv:2402.16829.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from trainer.objectives.arguments import require, require_temperature, shape
from trainer.objectives.blocks import Compared, Direction, Guide, HardnessOf, Job
from trainer.objectives.own_candidates import own_candidates
from trainer.objectives.tiles import TiledInfoNCE


def info_nce(
    queries: Tensor,
    passages: Tensor,
    *,
    num_positives: int,
    temperature: float,
    mask: Tensor | None = None,
    absent: Tensor | None = None,
    margin: float | None = None,
    first_row: int = 0,
    all_queries: Tensor | None = None,
    guide: Guide | None = None,
    **options: Any,
) -> Tensor:
    """Multi-positive InfoNCE: one cross-entropy per query and positive slot, as this module says.

    Computed in float32, or in float64 if an input is float64, whatever autocast says. Gradients are
    exact and recomputed tile by tile; there is no second derivative. Embeddings are taken as given:
    for cosine similarity the caller gives them unit norm.

    Args:
        queries: rows first_row .. first_row + B of the G queries [B, D].
        passages: passages of all G queries [G, P + N, D], the P positive slots first; any strides.
        num_positives: P, at least 1.
        temperature: divides the dot product; no unit, greater than 0.
        mask: known pairs: bool [B, G, P + N] or [B, G * (P + N)], or int64 [M, 2] of (row, flat
            column), on the CPU. Rows are these B, or all G where `all_queries` is given.
        absent: passages that do not exist, bool [G, P + N], left out for every query.
        margin: candidates whose score is above the positive's by more than this are left out, as
            likely false negatives; a constant for the gradient. None: none.
        first_row: global row of the first query.
        all_queries: all G queries [G, D], where `queries` are a share and a direction reads all.
        guide: another model's vectors; leaves out what it finds nearer than the best positive.
        **options: `directions`, `in_batch`, `margin_of`, `hardness`, `hardness_of` and `prefixes`,
            as `Compared` has them.

    Returns:
        Mean over the B queries and P slots, scalar [], in nats; a connected 0 if B = 0. The loss
        of the global batch is the mean of the ranks' values weighted by their B.

    Raises:
        ObjectiveError: if an argument does not fit the others.

    Collective: no.
    """
    _check(queries, passages, num_positives, first_row)
    require_temperature(temperature, "info_nce")
    _check_compared(compared := Compared(**options))
    others = _read_queries(queries, passages, all_queries, compared.directions)
    _check_guide(guide, queries, passages, others)
    job = Job(
        num_positives=num_positives, temperature=temperature, first_row=first_row, absent=absent,
        margin=margin, guide=guide, compared=compared,
    )  # fmt: skip
    job = _with_mask(job, mask, len(queries) if others is None else None, passages)
    if compared.in_batch is False:
        losses = own_candidates(queries, passages, job)
    else:
        losses = TiledInfoNCE.apply(queries, others, passages, job)
    return losses.sum() / max(1, losses.numel())


def paired_info_nce(
    first: Tensor, second: Tensor, positive: Tensor, *, temperature: float
) -> Tensor:
    """InfoNCE within scored pairs: the first text of each positive pair against all second texts.

    One direction only, first to second, as a query meets passages in `info_nce`. The second texts
    of the other pairs are negatives, also where they repeat a text or belong to a positive pair.

    Args:
        first: embeddings of the first texts [n, D], unit norm for cosine similarity.
        second: embeddings of the second texts [n, D].
        positive: which pairs are positives [n], bool.
        temperature: divides the dot product; no unit, greater than 0.

    Returns:
        Mean over the positive pairs, scalar [], in nats, float32 (float64 if an input is); a
        connected 0 if no pair is positive or n < 2.

    Raises:
        ObjectiveError: if the shapes do not agree or the temperature is not above 0.

    Collective: no.
    Reference: the auxiliary term of CoDiEmb, arXiv:2508.11442.
    """
    advice = "Give both sides [n, D] and one flag per pair."
    got = [shape(first), shape(second), shape(positive)]
    holds = first.ndim == 2 and first.shape == second.shape and positive.shape == first.shape[:1]
    require(holds, "paired_info_nce: shapes", got, "[n, D], [n, D] and [n]", advice)
    require_temperature(temperature, "paired_info_nce")
    # [n, D] -> [n, 1, D]: one positive slot and no hard negatives
    job = Job(num_positives=1, temperature=temperature)
    losses: Tensor = TiledInfoNCE.apply(first, None, second.unsqueeze(1), job)
    chosen = positive.to(losses.dtype)
    return (losses[:, 0] * chosen).sum() / chosen.sum().clamp_min(1)


def _check(queries: Tensor, passages: Tensor, num_positives: int, first_row: int) -> None:
    advice = "Give queries [B, D] and the passages of all G queries [G, P + N, D]."
    got = [shape(queries), shape(passages)]
    ranks = (queries.ndim, passages.ndim)
    require(ranks == (2, 3), "info_nce: queries, passages", got, "[B, D], [G, P + N, D]", advice)
    same_size = queries.shape[1] == passages.shape[2]
    require(same_size, "info_nce: embedding sizes", got, "equal D", advice)
    num_slots = passages.shape[1]
    advice = "Count the positive slots, which come first in passages."
    holds = 1 <= num_positives <= num_slots
    require(holds, "info_nce: num_positives", num_positives, f"1 to {num_slots}", advice)
    last = passages.shape[0] - queries.shape[0]
    advice = "The queries must be rows first_row .. first_row + B of the G."
    require(0 <= first_row <= last, "info_nce: first_row", first_row, f"0 to {last}", advice)


def _check_absent(absent: Tensor, passages: Tensor) -> None:
    fits = absent.dtype == torch.bool and absent.shape == passages.shape[:2]
    got, expected = [absent.dtype, shape(absent)], f"bool {shape(passages)[:2]}"
    require(fits, "info_nce: absent", got, expected, "Give one flag per passage.")


def _check_guide(
    guide: Guide | None, queries: Tensor, passages: Tensor, others: Tensor | None
) -> None:
    if guide is None:
        return
    size = guide.queries.shape[-1]
    found = [guide.queries, guide.passages, guide.all_queries]
    shaped = [queries, passages, others]
    got = [None if one is None else shape(one) for one in found]
    expected = [None if one is None else [*shape(one)[:-1], size] for one in shaped]
    advice = "Give the guide's vectors of the same texts."
    require(got == expected, "info_nce: guide", got, str(expected), advice)


def _check_compared(compared: Compared) -> None:
    directions, in_batch, hardness = compared.directions, compared.in_batch, compared.hardness
    known = get_args(Direction)
    advice = "Name each once, query_to_doc among them."
    holds = "query_to_doc" in directions and len(set(directions)) == len(directions)
    holds = holds and not set(directions) - set(known)
    expected = f"some of {', '.join(known)}"
    require(holds, "info_nce: directions", list(directions), expected, advice)
    holds = isinstance(in_batch, bool) or in_batch in ("positives", "positives_only")
    advice = "Choose one."
    require(
        holds, "info_nce: in_batch", in_batch, "True, False, positives or positives_only", advice
    )
    alone = in_batch is not False or len(directions) == 1
    advice = "The other directions compare records of a batch."
    expected = "query_to_doc alone where in_batch is False"
    require(alone, "info_nce: directions", list(directions), expected, advice)
    holds = 0 <= hardness < math.inf
    require(holds, "info_nce: hardness", hardness, "at least 0", "Give 0 for none.")
    for name, value, choices in (
        ("margin_of", compared.margin_of, ("own", "best")),
        ("hardness_of", compared.hardness_of, get_args(HardnessOf)),
    ):
        expected = f"one of {', '.join(choices)}"
        require(value in choices, f"info_nce: {name}", value, expected, "Choose one.")


def _read_queries(
    queries: Tensor, passages: Tensor, all_queries: Tensor | None, directions: Sequence[str]
) -> Tensor | None:
    """All G queries where `queries` are a share of them and another direction reads them."""
    if all_queries is None:
        holds = len(directions) == 1 or len(queries) == len(passages)
        got, expected = shape(queries), f"all {len(passages)} queries, or all_queries beside them"
        advice = "Other directions than query_to_doc compare with the queries of all records."
        require(holds, "info_nce: queries", got, expected, advice)
        return None
    expected = str([len(passages), queries.shape[1]])
    holds = shape(all_queries) == [len(passages), queries.shape[1]]
    advice = "Give the queries of all records, own ones among them."
    require(holds, "info_nce: all_queries", shape(all_queries), expected, advice)
    return all_queries


def _with_mask(job: Job, mask: Tensor | None, num_own: int | None, passages: Tensor) -> Job:
    """The job with its known pairs, and with what is absent checked.

    Args:
        job: what else is given.
        mask: as `info_nce` takes it.
        num_own: B where rows of the mask count these; None where they count all queries.
        passages: [G, P + N, D].
    """
    if job.absent is not None:
        _check_absent(job.absent, passages)
    num_groups, num_slots = passages.shape[:2]
    num_rows = num_groups if num_own is None else num_own
    dense, pairs = _read_mask(mask, num_rows, num_groups, num_slots)
    if dense is not None and (len(job.compared.directions) > 1 or num_own is None):
        pairs, dense = dense.nonzero(), None
    if pairs is not None and num_own is not None:
        pairs = pairs + pairs.new_tensor([job.first_row, 0, 0])
    return replace(job, dense=dense, pairs=pairs)


def _read_mask(
    mask: Tensor | None, num_rows: int, num_groups: int, num_slots: int
) -> tuple[Tensor | None, Tensor | None]:
    """The dense mask [B, G, P + N] or the triples (row, group, slot) [M, 3]; one is None."""
    if mask is None:
        return None, None
    num_columns = num_groups * num_slots
    if mask.dtype == torch.bool:
        fits = shape(mask) in ([num_rows, num_groups, num_slots], [num_rows, num_columns])
        expected = f"[{num_rows}, {num_groups}, {num_slots}] or [{num_rows}, {num_columns}]"
        advice = "Give one flag per query of this call and candidate."
        require(fits, "info_nce: bool mask", shape(mask), expected, advice)
        return mask.reshape(num_rows, num_groups, num_slots), None
    pairs = mask.dtype == torch.int64 and mask.ndim == 2 and mask.shape[1] == 2
    advice = "Give a bool mask, or int64 pairs (row, column)."
    require(pairs, "info_nce: mask", [mask.dtype, shape(mask)], "bool or int64 [M, 2]", advice)
    bound = mask.new_tensor([num_rows, num_columns])
    inside = bool(((mask >= 0) & (mask < bound)).all())
    advice = "Count rows within this call's queries and columns over all G * (P + N)."
    expected = f"rows below {num_rows}, columns below {num_columns}"
    require(inside, "info_nce: mask pairs", "a pair outside", expected, advice)
    row, column = mask.unbind(1)
    return None, torch.stack([row, column // num_slots, column % num_slots], dim=1)
