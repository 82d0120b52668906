"""Examine a model on scored pairs: correlations of cosines with gold scores."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.data.sts import StsEvalSet
from trainer.evaluation.examine import FiniteEmbed, SetReport, crossed, prefixes_only, spread
from trainer.evaluation.geometry import describe_geometry
from trainer.evaluation.metrics import pearson, spearman
from trainer.objectives.prefixes import Prefix, cut

SIMILAR, DISSIMILAR = 0.8, 0.2
"""Gold scores from which on, and up to which, pairs are drawn as positive and negative."""


def examine_pairs(held_out: StsEvalSet, embed: FiniteEmbed) -> SetReport:
    """Correlations of cosine with the gold score; texts that occur twice are embedded once."""
    texts = list(dict.fromkeys([*held_out.text1, *held_out.text2]))
    place = {text: index for index, text in enumerate(texts)}
    distinct = embed(texts, side="query")
    first = [place[text] for text in held_out.text1]
    second = [place[text] for text in held_out.text2]
    whole, *smaller = embed.sizes(distinct)
    cosine = _cosines(distinct, first, second)
    metrics = {whole: _correlations(cosine, held_out.score)}
    for size in smaller:
        cosines = _cosines(cut(distinct, Prefix(size)), first, second)
        metrics[size] = _correlations(cosines, held_out.score)
    gold = torch.tensor(held_out.score, device=cosine.device)
    sample = distinct[spread(len(distinct))]
    geometry = describe_geometry(
        sample,
        positive=cosine[gold >= SIMILAR],
        negative=cosine[gold <= DISSIMILAR],
        random=crossed(sample, sample),
    )
    return SetReport(metrics[whole], geometry, prefixes_only(metrics))


def _cosines(vectors: Tensor, first: Sequence[int], second: Sequence[int]) -> Tensor:
    """Cosines of the pairs [n] of unit vectors, by their rows."""
    return (vectors[first] * vectors[second]).sum(dim=1)


def _correlations(cosine: Tensor, gold: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The metrics of cosines [n]."""
    values = cosine.cpu().numpy()
    return {"spearman": spearman(values, gold), "pearson": pearson(values, gold)}
