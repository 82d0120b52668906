"""Examine a model on scored pairs: correlations of cosines with gold scores."""

import torch

from trainer.data.sts import StsEvalSet
from trainer.evaluation.examine import Embed, SetReport, crossed, spread
from trainer.evaluation.geometry import describe_geometry
from trainer.evaluation.metrics import pearson, spearman

SIMILAR, DISSIMILAR = 0.8, 0.2
"""Gold scores from which on, and up to which, pairs are drawn as positive and negative."""


def examine_pairs(held_out: StsEvalSet, embed: Embed) -> SetReport:
    """Correlations of cosine with the gold score; texts that occur twice are embedded once."""
    texts = list(dict.fromkeys([*held_out.text1, *held_out.text2]))
    place = {text: index for index, text in enumerate(texts)}
    distinct = embed(texts, side="query")
    first = distinct[[place[text] for text in held_out.text1]]
    second = distinct[[place[text] for text in held_out.text2]]
    cosine = (first * second).sum(dim=1)
    values, gold = cosine.cpu().numpy(), torch.tensor(held_out.score, device=cosine.device)
    sample = distinct[spread(len(distinct))]
    geometry = describe_geometry(
        sample,
        positive=cosine[gold >= SIMILAR],
        negative=cosine[gold <= DISSIMILAR],
        random=crossed(sample, sample),
    )
    metrics = {
        "spearman": spearman(values, held_out.score),
        "pearson": pearson(values, held_out.score),
    }
    return SetReport(metrics, geometry)
