"""What crosses the door from data to evaluation: held-out pairs, or queries with a corpus."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from trainer.data.beir import BeirFolder


@dataclass(frozen=True, kw_only=True)
class StsEvalSet:
    """Held-out pairs."""

    text1: tuple[str, ...]
    """First texts [n]."""
    text2: tuple[str, ...]
    """Second texts [n]."""
    score: tuple[float, ...]
    """Gold similarity, 0..1 [n]."""


@dataclass(frozen=True)
class Corpus:
    """Ids and texts of a corpus, read from disk when asked for."""

    beir: BeirFolder
    """Where they are."""
    rows: np.ndarray
    """Corpus rows in order [n], int64."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:
        return self.beir.document(int(self.rows[index]))

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def identifier(self, index: int) -> str:
        """Id of a document."""
        return self.beir.documents.identifier(int(self.rows[index]))


@dataclass(frozen=True, kw_only=True)
class IrEvalSet:
    """Held-out queries, the corpus they search, and graded judgements."""

    query_ids: tuple[str, ...]
    """The judged queries [n]."""
    queries: tuple[str, ...]
    """Their texts [n]."""
    corpus_ids: tuple[str, ...]
    """All documents [m]."""
    corpus: Corpus
    """Their texts [m], read when asked for; has `len`, indexing and iteration."""
    qrels: Mapping[str, Mapping[str, int]]
    """Query id to document id to gain; a document not named has gain 0."""


def ir_eval_set(beir: BeirFolder, gains: Mapping[str, Mapping[str, int]]) -> IrEvalSet:
    """The judged queries of a folder with its whole corpus."""
    corpus = Corpus(beir, np.sort(beir.corpus_ids.rows))
    rows, _ = beir.query_ids.find(tuple(gains))
    return IrEvalSet(
        query_ids=tuple(gains),
        queries=tuple(map(beir.query, rows.tolist())),
        corpus_ids=tuple(corpus.identifier(index) for index in range(len(corpus))),
        corpus=corpus,
        qrels=gains,
    )
