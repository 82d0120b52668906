"""Retrieval in the data room: slots drawn and masks found for a batch, and held-out queries.

Letters: G queries, P positives and N negatives per query.
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np

from trainer.data.batch import IrBatch, StepPlan
from trainer.data.beir import BeirFolder, open_folder, read_gains
from trainer.data.columns import Columns
from trainer.data.held_out_source import folder_of, origin_of, owner_of
from trainer.data.layouts import SetFolder, is_beir_folder
from trainer.data.records import IrRecord
from trainer.data.text_table import ABSENT, TextTable
from trainer.errors import DataError
from trainer.recipe.ir import EVAL_KIND, IrRecipe
from trainer.recipe.schema import DataRecipe, EvalSetRecipe

Item = TypeVar("Item")


class Passage(NamedTuple):
    """What fills a slot."""

    text: str
    """Without instruction."""
    score: float | None
    """A teacher's; None where the record has none."""


def collate(
    plan: StepPlan, records: Sequence[IrRecord], table: TextTable, settings: IrRecipe, seed: int
) -> IrBatch:
    """The batch of queries with the passages that fill their slots."""
    drawn = [
        draw_passages(record, settings, f"{seed}/{plan.source}/{plan.step}/{row}")
        for record, row in zip(records, plan.rows.tolist(), strict=True)
    ]
    query = table.add_queries([record.query for record in records])
    slots = [slot for row in drawn for slot in row]
    flat = np.full(len(slots), ABSENT, np.int64)
    present = np.array([slot is not None for slot in slots])
    flat[present] = table.add_passages([slot.text for slot in slots if slot is not None])
    passages = flat.reshape(len(records), -1)
    has_teacher = any(record.has_teacher for record in records)
    masked: Iterable[tuple[int, int]] = ()
    if settings.mask != "none":
        found = table.find_passages(text for record in records for text in record.positives)
        known = [[found[text] for text in record.positives] for record in records]
        masked = known_positives(query, known, passages, num_positives=settings.positives)
    return IrBatch(
        plan=plan,
        texts=table.texts(),
        query=query,
        passages=passages,
        masked=np.array(list(masked), np.int64).reshape(-1, 2),
        teacher=_scores(slots).reshape(passages.shape) if has_teacher else None,
    )


def _scores(slots: Sequence[Passage | None]) -> np.ndarray:
    """A teacher's score of each slot, NaN where there is none, float32."""
    scores = (None if slot is None else slot.score for slot in slots)
    return np.array([math.nan if score is None else score for score in scores], np.float32)


def draw_passages(record: IrRecord, ir: IrRecipe, key: str) -> list[Passage | None]:
    """P positives and N negatives of a record; all negatives are None if it has none.

    Args:
        record: one query.
        ir: slots per query.
        key: seeds the choice.
    """
    choice = random.Random(key)
    negatives: list[Passage | None] = [None] * ir.negatives
    if record.negatives:
        scored = _passages(record.negatives, record.negative_scores)
        negatives = [*_draw(scored, ir.negatives, choice)]
    scored = _passages(record.positives, record.positive_scores)
    return [*_draw(scored, ir.positives, choice), *negatives]


def _passages(texts: Sequence[str], scores: Sequence[float] | None) -> list[Passage]:
    """Texts with their scores, where a teacher gave some."""
    return [*map(Passage, texts, [None] * len(texts) if scores is None else scores)]


def _draw(items: Sequence[Item], count: int, choice: random.Random) -> list[Item]:
    """A choice without repeats where there are enough; else all, and the rest drawn again."""
    repeats, rest = divmod(count, len(items))
    return [*items] * repeats + choice.sample(items, rest)


def known_positives(
    query: np.ndarray,
    positives: Sequence[Sequence[int]],
    passages: np.ndarray,
    *,
    num_positives: int,
) -> Iterator[tuple[int, int]]:
    """Candidates that are known positives of a query, by what is embedded of them.

    Known is any positive of the record, drawn or not, or of another record of the batch whose query
    is the same. The query's own positive slots, which are its targets, are left alone. All indices
    are those of distinct token sequences: texts that are cut or normalised to the same are equal.

    Args:
        query: the queries [G].
        positives: all positives of each record; ABSENT for those that no slot equals.
        passages: the slots of each query [G, P + N]; ABSENT where empty.
        num_positives: P.

    Yields:
        (query row, flat passage column of G * (P + N)).
    """
    num_slots = passages.shape[1]
    columns: dict[int, list[int]] = {}
    for column, index in enumerate(passages.flatten().tolist()):
        columns.setdefault(index, []).append(column)
    # absent slots are no candidates, and absent positives equal none
    columns.pop(ABSENT, None)
    known: dict[int, dict[int, None]] = {}
    for number, indices in zip(query.tolist(), positives, strict=True):
        known.setdefault(number, {}).update(dict.fromkeys(indices))
    for row, number in enumerate(query.tolist()):
        for index in known[number]:
            for column in columns.get(index, ()):
                if not 0 <= column - row * num_slots < num_positives:
                    yield row, column


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

    kind: ClassVar[str] = EVAL_KIND.name
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

    def asked(self) -> Iterator[str]:
        """See `EvalSet.asked`."""
        return iter(self.queries)


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


def open_eval_set(recipe: EvalSetRecipe, data: DataRecipe) -> IrEvalSet:
    """Held-out queries of a BEIR folder, every row checked.

    Raises:
        DataError: if there is no such folder, or a row is malformed; names file and line.
    """
    skip = data.on_bad_row == "skip"
    folder = folder_of(recipe, data)
    if folder is None or not _has_corpus(recipe, folder):
        expected = "a BEIR folder (corpus.jsonl, queries.jsonl, qrels/)"
        raise DataError(
            f"{owner_of(recipe)}: {origin_of(recipe)}; expected {expected}. Change path or task."
        )
    Columns(recipe.columns).refuse(owner=owner_of(recipe))
    beir = open_folder(folder, recipe.split, skip=skip)
    return ir_eval_set(beir, read_gains(beir, recipe.split, skip=skip))


def _has_corpus(recipe: EvalSetRecipe, folder: SetFolder) -> bool:
    """Whether a folder is taken for one of BEIR; a set of the hub is, whatever it lacks."""
    if recipe.format == "beir" or recipe.hub is not None:
        return True
    return recipe.format is None and is_beir_folder(folder.path)
