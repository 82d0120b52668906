"""Examine a model on pairs that belong together or not, and on translations.

Letters: n pairs, D embedding size.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.metrics import average_precision_score, f1_score
from sklearn.metrics.pairwise import paired_cosine_distances
from torch import Tensor

from trainer.data.held_out_records import TextPair
from trainer.data.paired import Bitext, PairSet
from trainer.evaluation.examine import (
    BLOCK_TEXTS,
    FiniteEmbed,
    SetReport,
    crossed,
    prefixes_only,
    spread,
)
from trainer.evaluation.geometry import describe_geometry
from trainer.evaluation.search import TopK
from trainer.objectives.prefixes import Prefix, cut

NEIGHBOURS = 2
"""Translations kept for a text: the nearest, and one more, as the nearest may be its own."""


def examine_pair_classification(held_out: PairSet, embed: FiniteEmbed) -> SetReport:
    """Average precision of pairs in the order of their cosines; blocks of pairs are held."""
    truth = np.array([pair.label for pair in held_out.pairs])
    cosines: dict[int, list[np.ndarray]] = {}
    chosen, kept = set(spread(len(truth)).tolist()), dict[str, Tensor]()
    for start, pairs in _blocks(held_out.pairs):
        first, second = _pair_vectors(pairs, embed)
        for size in embed.sizes(first):
            found = cosines_of_pairs(cut(first, Prefix(size)), cut(second, Prefix(size)))
            cosines.setdefault(size, []).append(found)
        for row, pair in enumerate(pairs):
            if start + row in chosen:
                kept.setdefault(pair.text1, first[row])
    values = {size: np.concatenate(found) for size, found in cosines.items()}
    metrics = {
        size: {"average_precision": float(average_precision_score(truth, found))}
        for size, found in values.items()
    }
    whole = max(values)
    cosine, sample = torch.from_numpy(values[whole]), torch.stack(list(kept.values()))
    geometry = describe_geometry(
        sample,
        positive=cosine[torch.from_numpy(truth == 1)],
        negative=cosine[torch.from_numpy(truth == 0)],
        random=crossed(sample, sample),
    )
    return SetReport(metrics[whole], geometry, prefixes_only(metrics))


def cosines_of_pairs(first: Tensor, second: Tensor) -> np.ndarray:
    """Cosines of the rows of two matrices, by the formula with which MTEB computes them.

    Equal vectors have exactly 1, so that equal pairs are tied.

    Args:
        first: vectors of norm 1 or 0 [n, D], float32.
        second: the same.

    Returns:
        [n], float32; 0 where either vector is 0.
    """
    cosines = 1 - paired_cosine_distances(first.cpu().numpy(), second.cpu().numpy())
    present = (first.any(dim=1) & second.any(dim=1)).cpu().numpy()
    return np.where(present, cosines, np.float32(0))


def _blocks(pairs: Sequence[TextPair]) -> Iterator[tuple[int, Sequence[TextPair]]]:
    """First row and pairs of consecutive blocks."""
    for start in range(0, len(pairs), BLOCK_TEXTS // 2):
        yield start, pairs[start : start + BLOCK_TEXTS // 2]


def _pair_vectors(pairs: Sequence[TextPair], embed: FiniteEmbed) -> tuple[Tensor, Tensor]:
    """Vectors of the first and of the second texts [n, D]; equal texts are embedded once."""
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.text1, pair.text2)))
    place = {text: index for index, text in enumerate(texts)}
    vectors = embed(texts, side="query")
    return vectors[[place[pair.text1] for pair in pairs]], vectors[
        [place[pair.text2] for pair in pairs]
    ]


def examine_bitext(held_out: Bitext, embed: FiniteEmbed) -> SetReport:
    """F1 of the nearest second text of each first text, by exact search of all second texts.

    Held are the vectors of the first texts and a block of the second ones.
    """
    pairs, blocks = held_out.pairs, list(_blocks(held_out.pairs))
    texts = torch.cat([embed([p.text1 for p in block], side="query") for _, block in blocks])
    sizes, num_pairs = embed.sizes(texts), len(pairs)
    searches = {size: TopK(cut(texts, Prefix(size)), NEIGHBOURS) for size in sizes}
    own, kept, chosen = [], [], spread(num_pairs)
    for start, block in blocks:
        others = embed([pair.text2 for pair in block], side="query")
        for size, search in searches.items():
            search.add(cut(others, Prefix(size)))
        own.append((texts[start : start + len(block)] * others).sum(dim=1))
        inside = chosen[(chosen >= start) & (chosen < start + len(block))] - start
        kept.append(others[torch.from_numpy(inside).to(others.device)])
    found = {size: search.best() for size, search in searches.items()}
    metrics = {size: _matched(rows[:, 0].cpu().numpy()) for size, (_, rows) in found.items()}
    scores, rows = found[sizes[0]]
    wrong = rows != torch.arange(num_pairs, device=rows.device)[:, None]
    sample = texts[torch.from_numpy(chosen).to(texts.device)]
    geometry = describe_geometry(
        sample,
        positive=torch.cat(own),
        negative=scores[wrong],
        random=crossed(sample, torch.cat(kept)),
    )
    return SetReport(metrics[sizes[0]], geometry, prefixes_only(metrics))


def _matched(nearest: np.ndarray) -> dict[str, float]:
    """`f1` of the rows that were found for rows 0, 1, ..., weighted by how often each is right."""
    f1 = f1_score(np.arange(len(nearest)), nearest, average="weighted", zero_division=0)
    return {"f1": float(f1)}
