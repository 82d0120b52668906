"""The negatives of all queries, from what was found and scored; it must not search or embed.

Letters: q queries, b queries of a block, k candidates, m pairs of a query and a passage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.scan import text_key
from trainer.data.sources import Source
from trainer.mining.choose import Chosen, MiningSettings, allowed, take
from trainer.mining.search import NO_PASSAGE, Nearest
from trainer.mining.tally import Tally
from trainer.mining.texts import Passages, Queries

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What was found for one query."""

    query: int
    """Its number."""
    passages: Ints
    """Best first [k]."""
    scores: Floats
    """Their cosines [k]."""
    known: frozenset[int]
    """Passages that answer it, and its own text."""
    answers: Ints
    """Passages that answer it, ascending."""
    cosines: Floats
    """Of those."""

    def allowed(self, settings: MiningSettings) -> tuple[Ints, dict[str, int]]:
        """Places that no filter by cosine leaves out, and what the filters left out."""
        return allowed(
            self.passages, self.scores, known=self.known, positive=float(self.cosines.min()),
            settings=settings,
        )  # fmt: skip


def candidates_of(
    found: Nearest, first: int, members: range, queries: Queries, alike: dict[int, int]
) -> Iterator[Candidates]:
    """What was found for some queries of a block, in order.

    Args:
        found: of the block.
        first: the block's first query.
        members: queries of the block.
        queries: all.
        alike: the passage that is a query's own text, by query.
    """
    base = int(queries.starts[first])
    for query in members:
        place = query - first
        answers = queries.positives_of(query)
        start = int(queries.starts[query]) - base
        is_there = found.passages[place] != NO_PASSAGE
        own = [alike[query]] if query in alike else []
        yield Candidates(
            query=query,
            passages=found.passages[place][is_there],
            scores=found.scores[place][is_there],
            known=frozenset([*answers.tolist(), *own]),
            answers=answers,
            cosines=found.positives[start : start + len(answers)],
        )


def scored_pairs(one: Candidates, salt: int, settings: MiningSettings) -> Ints:
    """The passages of a query that a teacher scores [m]: its positives, and then negatives.

    These are the chosen ones, or all that the teacher's margin may leave out.
    """
    places, left_out = one.allowed(settings)
    if settings.guide_margin is None:
        chosen = take(
            one.passages, one.scores, places, left_out=left_out, settings=settings, salt=salt
        )
        return np.concatenate([one.answers, chosen.passages])
    return np.concatenate([one.answers, one.passages[places]])


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A teacher's scores of pairs of a query and a passage."""

    pairs: Ints
    """Query and passage [m, 2], by query."""
    scores: Floats
    """Of each pair [m]."""

    def of(self, query: int) -> dict[int, float]:
        """The scores of a query's passages."""
        start, stop = np.searchsorted(self.pairs[:, 0], (query, query + 1))
        passages, scores = self.pairs[start:stop, 1], self.scores[start:stop]
        return dict(zip(passages.tolist(), scores.tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The negatives of all queries."""

    negatives: Ints
    """NO_PASSAGE where there are fewer than asked for [q, n]."""
    cosines: Floats
    """Theirs [q, n]."""
    by_teacher: Floats | None
    """A teacher's scores of them [q, n]; None: there is none."""
    answers_by_teacher: Floats | None
    """Its scores of what answers the queries, as `Queries.positives` has it; None: likewise."""

    @classmethod
    def empty(cls, queries: Queries, num_negatives: int, *, is_scored: bool) -> "Selection":
        """Room for the negatives of all queries."""
        shape = (len(queries), num_negatives)
        return cls(
            negatives=np.full(shape, NO_PASSAGE, np.int64),
            cosines=np.zeros(shape, np.float32),
            by_teacher=np.zeros(shape, np.float32) if is_scored else None,
            answers_by_teacher=np.zeros(len(queries.positives), np.float32) if is_scored else None,
        )

    def add(self, one: Candidates, chosen: Chosen) -> None:
        """Keep the negatives of one query."""
        self.negatives[one.query, : len(chosen.passages)] = chosen.passages
        self.cosines[one.query, : len(chosen.scores)] = chosen.scores

    def add_teacher(self, query: int, negatives: Floats, answers: Floats, start: int) -> None:
        """Keep a teacher's scores of one query, whose positives begin at `start`."""
        if self.by_teacher is not None and self.answers_by_teacher is not None:
            self.by_teacher[query, : len(negatives)] = negatives
            self.answers_by_teacher[start : start + len(answers)] = answers


@dataclass(frozen=True, kw_only=True)
class Selector:
    """Chooses the negatives of queries, one after the other, and counts them."""

    queries: Queries
    settings: MiningSettings
    selection: Selection
    tally: Tally

    def add(self, one: Candidates, teacher: dict[int, float] | None) -> None:
        """Choose for one query.

        Args:
            one: what was found.
            teacher: scores of its positives and of what may be chosen, by passage; None: there
                is no teacher.
        """
        places, left_out = one.allowed(self.settings)
        if teacher is not None:
            answers = np.array([teacher[int(number)] for number in one.answers], np.float32)
            places, counted = self._by_margin(one, places, teacher, float(answers.min()))
            left_out |= counted
        chosen = take(
            one.passages, one.scores, places, left_out=left_out, settings=self.settings,
            salt=int(self.queries.keys[one.query]),
        )  # fmt: skip
        self.selection.add(one, chosen)
        self.tally.add(chosen, one.cosines, self.settings.num_negatives)
        if teacher is not None:
            scores = np.array([teacher[int(number)] for number in chosen.passages], np.float32)
            start = int(self.queries.starts[one.query])
            self.selection.add_teacher(one.query, scores, answers, start)
            self.tally.add_teacher(scores, answers)

    def _by_margin(
        self, one: Candidates, places: Ints, teacher: dict[int, float], positive: float
    ) -> tuple[Ints, dict[str, int]]:
        """The places that the teacher's margin leaves, and how many it left out."""
        margin = self.settings.guide_margin
        if margin is None:
            return places, {}
        scores = np.array([teacher[int(one.passages[place])] for place in places], np.float32)
        stays = scores <= np.float32(positive - margin)
        return places[stays], {"guide_margin": int((~stays).sum())}


@dataclass(frozen=True, kw_only=True)
class Lines:
    """Rows of the output, in the project's own format."""

    source: Source
    passages: Passages
    queries: Queries
    selection: Selection

    def line(self, row: int) -> dict[str, Any]:
        """The output's row for a row of the source."""
        record = self.source.record(row)
        query = int(self.queries.query_of_row[row])
        numbers = [one for one in self.selection.negatives[query].tolist() if one != NO_PASSAGE]
        line = {
            "query": record.query,
            "positives": list(record.positives),
            "negatives": [self.passages.text(number) for number in numbers],
            "mined_scores": _rounded(self.selection.cosines[query, : len(numbers)]),
        }
        if self.passages.id_at is not None:
            line["negative_ids"] = [self.passages.identifier(number) for number in numbers]
        return line | self._teacher(query, record.positives, len(numbers))

    def _teacher(self, query: int, positives: tuple[str, ...], count: int) -> dict[str, Any]:
        """What a teacher says of a row, where `tasks.ir.distillation` reads it."""
        selection = self.selection
        if selection.by_teacher is None or selection.answers_by_teacher is None:
            return {}
        start, stop = self.queries.starts[query : query + 2]
        keys = self.passages.keys[self.queries.positives[start:stop]].tolist()
        scores = dict(zip(keys, selection.answers_by_teacher[start:stop], strict=True))
        return {
            "positive_scores": _rounded(
                np.array([scores[text_key(text)] for text in positives], np.float32)
            ),
            "negative_scores": _rounded(selection.by_teacher[query, :count]),
        }


def _rounded(scores: Floats) -> list[float]:
    return [round(float(score), 6) for score in scores]
