"""InfoNCE over a query's own positives and own hard negatives; it must not call a collective.

Letters as in `trainer.objectives.contrastive`.
"""

import math

import torch
from torch import Tensor

from trainer.objectives.arguments import compute_dtype
from trainer.objectives.blocks import GUIDE_TOLERANCE, Guide, Job, rounding
from trainer.objectives.prefixes import cut


def own_candidates(queries: Tensor, passages: Tensor, job: Job) -> Tensor:
    """Cross-entropies [B, P] in which no passage of another query is a candidate.

    Args:
        queries: rows first_row .. first_row + B of the G queries [B, D].
        passages: passages of all G queries [G, P + N, D].
        job: of `info_nce`; its prefixes are summed.
    """
    dtype = compute_dtype((queries, passages))
    # before prefixes are cut, so that their gradients are summed in the wider dtype
    own = passages[job.first_row : job.first_row + len(queries)].to(dtype)
    queries = queries.to(dtype)
    left_out = _left_out(job, own)
    if job.guide is not None:
        left_out |= _likely(job, job.guide)
    losses = []
    with torch.autocast(queries.device.type, enabled=False):
        for prefix in job.compared.prefixes:
            query, passage = (cut(table, prefix) for table in (queries, own))
            # [B, P + N, D] . [B, D] -> [B, P + N]
            scores = (passage @ query[:, :, None]).squeeze(2)
            losses.append(prefix.weight * _losses(scores, left_out, job))
    return torch.stack(losses).sum(0)


def _losses(scores: Tensor, left_out: Tensor, job: Job) -> Tensor:
    """Cross-entropies [B, P] of cosines [B, P + N]."""
    positives, negatives = scores.split(
        [job.num_positives, scores.shape[1] - job.num_positives], dim=1
    )
    targets = positives / job.temperature
    harder = job.compared.factor(job.temperature, is_own=True) - 1 / job.temperature
    logits = negatives / job.temperature + harder * negatives.detach()
    # [B, P, N]: what is left out may differ between slots
    out = left_out[:, None, job.num_positives :].expand(-1, job.num_positives, -1)
    if job.margin is not None:
        best = positives if job.compared.margin_of == "own" else positives.amax(1, keepdim=True)
        limit = best.detach() + job.margin + rounding(best.dtype)
        out = out | (negatives[:, None] > limit[:, :, None])
    logits = logits[:, None].expand_as(out).masked_fill(out, -math.inf)
    totals = torch.cat([targets[:, :, None], logits], dim=2).logsumexp(2)
    return totals - targets


def _likely(job: Job, guide: Guide) -> Tensor:
    """Which own passages a guide finds nearer than the best positive [B, P + N], bool."""
    dtype = compute_dtype((guide.queries, guide.passages))
    mine = guide.passages[job.first_row : job.first_row + len(guide.queries)].to(dtype)
    scores = (mine @ guide.queries.to(dtype)[:, :, None]).squeeze(2)
    best = scores[:, : job.num_positives].amax(1, keepdim=True)
    return scores > best + GUIDE_TOLERANCE


def _left_out(job: Job, own: Tensor) -> Tensor:
    """Which of a query's own passages [B, P + N, D] are masked or absent [B, P + N], bool."""
    num_rows = len(own)
    mine = torch.arange(num_rows) + job.first_row
    out = torch.zeros(own.shape[:2], dtype=torch.bool)
    if job.dense is not None:
        out |= job.dense.cpu()[torch.arange(num_rows), mine]
    if job.absent is not None:
        out |= job.absent.cpu()[mine]
    if job.pairs is not None:
        query, group, slot = job.pairs.cpu().unbind(1)
        here = (query == group) & (query >= job.first_row) & (query < job.first_row + num_rows)
        out[query[here] - job.first_row, slot[here]] = True
    return out.to(own.device)
