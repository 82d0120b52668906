"""Retrieval in the data room: slots drawn and masks found for a batch, and held-out queries.

Letters: G queries, P positives and N negatives per query.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from trainer.data.batch import IrBatch, StepPlan
from trainer.data.beir import BeirFolder, open_folder, read_gains
from trainer.data.header import refuse_row_keys
from trainer.data.held_out_source import folder_of, origin_of, owner_of, split_of
from trainer.data.known_positives import (
    ABSENT,
    NO_PAIRS,
    known_positives,
    repeated_positives,
    spread,
)
from trainer.data.layouts import SetFolder, is_beir_folder
from trainer.data.mined import MinedSlots, mined_slots
from trainer.data.records import IrRecord
from trainer.data.row_texts import RowTexts
from trainer.data.slot_table import SlotTable, is_repeated
from trainer.data.sources import StepSource
from trainer.data.text_table import TextTable
from trainer.errors import DataError
from trainer.recipe.ir import EVAL_KIND, IrRecipe
from trainer.recipe.schema import DataRecipe, EvalSetRecipe


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
        draw_passages(record, settings, _key(plan, seed, row))
        for record, row in zip(records, plan.rows.tolist(), strict=True)
    ]
    query = table.add_queries([record.query for record in records], plan.owners)
    slots = [slot for row in drawn for slot in row]
    flat = np.full(len(slots), ABSENT, np.int64)
    present = np.array([slot is not None for slot in slots])
    flat[present] = table.add_passages([slot.text for slot in slots if slot is not None])
    passages = flat.reshape(len(records), -1)
    has_teacher = any(record.has_teacher for record in records)
    masked = NO_PAIRS
    if settings.mask != "none":
        found = table.find_passages(text for record in records for text in record.positives)
        known = [found[text] for record in records for text in record.positives]
        counts = [len(record.positives) for record in records]
        masked = known_positives(
            query, np.array(known), np.array(counts), passages, num_positives=settings.positives
        )
    return IrBatch(
        plan=plan,
        texts=table.texts(),
        query=query,
        passages=passages,
        masked=masked,
        teacher=_scores(slots).reshape(passages.shape) if has_teacher else None,
    )


def row_texts(record: IrRecord) -> RowTexts:
    """The query, and all passages with their scores."""
    scores: tuple[float, ...] = ()
    if record.positive_scores is not None and record.negative_scores is not None:
        scores = (math.nan, *record.positive_scores, *record.negative_scores)
    return RowTexts(
        queries=(record.query,),
        passages=(*record.positives, *record.negatives),
        num_positives=len(record.positives),
        scores=scores,
    )


def collate_stored(
    plan: StepPlan, source: StepSource, table: SlotTable, settings: IrRecipe, seed: int
) -> tuple[IrBatch, np.ndarray]:
    """As `collate`, and the slot of each text, from tokens that were made ahead."""
    store, width = table.store, settings.positives + settings.negatives
    starts, num_slots = store.spans(plan.rows)
    num_positives = store.num_positives(plan.rows)
    num_negatives = num_slots - 1 - num_positives
    mined = mined_slots(source, store, plan.rows)
    if mined is not None:
        num_negatives = np.where(mined.counts, mined.counts, num_negatives)
    drawn = draw_numbers(
        num_positives, num_negatives, settings, lambda row: _key(plan, seed, int(plan.rows[row]))
    )
    present = None if num_negatives.all() or not settings.negatives else drawn != ABSENT
    # a row whose positives are its targets, each in one slot, and whose negatives are too
    once = (num_positives == settings.positives) & ~is_repeated(plan.rows)
    once &= (num_negatives >= settings.negatives) | (num_negatives == 0)
    # what was mined may stand in several rows of the step, as another one's positive too
    once &= mined is None
    # the first slot of a record is its query, positives follow
    slots = drawn
    slots += (starts + 1)[:, None]
    if mined is not None:
        slots = _with_mined(slots, slots - (starts + 1 + num_positives)[:, None], mined)
    has_mask = settings.mask != "none"
    is_asked = ~once & has_mask
    found = table.distinct(
        np.concatenate([starts, slots.reshape(-1) if present is None else slots[present]]),
        spread(starts[is_asked] + 1, num_positives[is_asked]),
        twice=_of_slots(~once, width, present),
        num_queries=len(starts),
    )
    query, passages = found.added[: len(starts)], found.added[len(starts) :]
    passages = _in_slots(passages, (len(starts), width), present)
    teacher = None
    if store.has_scores:
        teacher = _stored_scores(table, starts + 1, slots, present, mined)
    masked = NO_PAIRS
    if has_mask and found.several.any():
        targets = passages[once, : settings.positives].reshape(-1)
        known = _merged(np.repeat(once, num_positives), targets, found.asked)
        known = repeated_positives(query, known, num_positives, found.several)
        masked = known_positives(
            query, known, num_positives, passages, num_positives=settings.positives
        )
    batch = IrBatch(
        plan=plan,
        texts=found.texts,
        query=query,
        passages=passages,
        masked=masked,
        teacher=teacher,
    )
    return batch, found.slots


def _stored_scores(
    table: SlotTable,
    first: np.ndarray,
    slots: np.ndarray,
    present: np.ndarray | None,
    mined: MinedSlots | None,
) -> np.ndarray | None:
    """A teacher's scores of a step [G, P + N], float32; None where no row has any.

    Args:
        table: of the step.
        first: slot of a passage of each row [G], int64.
        slots: of the step [G, P + N], int64.
        present: which of them are not empty; None: all.
        mined: rows of which something was mined have other negatives than those that were scored.
    """
    is_scored = ~np.isnan(table.store.scores(first))
    if mined is not None:
        is_scored &= mined.counts == 0
    if not is_scored.any():
        return None
    teacher = table.store.scores(slots)
    if present is not None:
        teacher[~present] = np.nan
    if mined is not None:
        teacher[~is_scored] = np.nan
    return teacher


def _with_mined(slots: np.ndarray, numbers: np.ndarray, mined: MinedSlots) -> np.ndarray:
    """Slots of a step [G, P + N] with mined ones in place of those of the rows, int64.

    Args:
        slots: as if each row had its own negatives [G, P + N], int64.
        numbers: of what is drawn among a row's negatives; below 0 for positives, and where there is
            none [G, P + N], int64.
        mined: of each row.
    """
    found = np.take_along_axis(mined.slots, numbers.clip(0, mined.slots.shape[1] - 1), axis=1)
    return np.where((numbers >= 0) & (mined.counts > 0)[:, None], found, slots)


def _of_slots(rows: np.ndarray, width: int, present: np.ndarray | None) -> np.ndarray:
    """What is true of rows [G], for each query and then for each slot that is not empty, bool."""
    slots = np.repeat(rows, width)
    return np.concatenate([rows, slots if present is None else slots[present.reshape(-1)]])


def _in_slots(
    indices: np.ndarray, shape: tuple[int, int], present: np.ndarray | None
) -> np.ndarray:
    """Indices in the slots that are not empty, ABSENT in the others, int64."""
    if present is None:
        return indices.reshape(shape)
    found = np.full(shape, ABSENT, np.int64)
    found[present] = indices
    return found


def _merged(is_first: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Numbers from two lists, each in its order, by which of them has the next one [n], int64."""
    if not len(second):
        return first
    found = np.empty(len(is_first), np.int64)
    found[is_first], found[~is_first] = first, second
    return found


def _key(plan: StepPlan, seed: int, row: int) -> str:
    """Seeds what is drawn for a row."""
    return f"{seed}/{plan.source}/{plan.step}/{row}"


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
    passages = [
        *_passages(record.positives, record.positive_scores),
        *_passages(record.negatives, record.negative_scores),
    ]
    drawn = _draw_one(len(record.positives), len(record.negatives), ir, key)
    return [None if number == ABSENT else passages[number] for number in drawn]


def draw_numbers(
    num_positives: np.ndarray,
    num_negatives: np.ndarray,
    ir: IrRecipe,
    key: Callable[[int], str],
) -> np.ndarray:
    """What `draw_passages` draws of many records, by its number among a record's passages.

    A record all of whose passages are taken equally often needs no draw.

    Args:
        num_positives: of each record [G], int64, at least 1.
        num_negatives: of each record [G], int64.
        ir: slots per query.
        key: seeds a record's choice, by its place among these.

    Returns:
        Positives before negatives [G, P + N], int64; ABSENT in the negative slots of a record that
        has none.
    """
    kinds, kind = _kinds(num_positives, num_negatives)
    count, some = kinds[:, :1], np.maximum(kinds[:, 1:], 1)
    negatives = np.where(kinds[:, 1:], count + np.arange(ir.negatives) % some, ABSENT)
    drawn_of_kind = np.concatenate([np.arange(ir.positives) % count, negatives], axis=1)
    by_chance = (ir.positives % count != 0) | ((kinds[:, 1:] > 0) & (ir.negatives % some != 0))
    drawn = drawn_of_kind.take(kind, axis=0)
    if by_chance.any():
        for row in np.flatnonzero(by_chance[kind, 0]).tolist():
            drawn[row] = _draw_one(int(num_positives[row]), int(num_negatives[row]), ir, key(row))
    return drawn


def _kinds(num_positives: np.ndarray, num_negatives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs of the numbers of some records [k, 2], int64, and the pair of each [G]."""
    mixed = num_positives * (int(num_negatives.max()) + 1) + num_negatives
    first, kind = np.zeros(1, np.int64), np.zeros(len(mixed), np.int64)
    if mixed.min() < mixed.max():
        _, first, kind = np.unique(mixed, return_index=True, return_inverse=True)
    return np.stack([num_positives[first], num_negatives[first]], axis=1), kind


def _draw_one(num_positives: int, num_negatives: int, ir: IrRecipe, key: str) -> list[int]:
    """Numbers of the passages of one record, positives before negatives; see `draw_numbers`."""
    choice = random.Random(key)
    negatives = [ABSENT] * ir.negatives
    if num_negatives:
        numbers = range(num_positives, num_positives + num_negatives)
        negatives = _draw(numbers, ir.negatives, choice)
    return [*_draw(range(num_positives), ir.positives, choice), *negatives]


def _passages(texts: Sequence[str], scores: Sequence[float] | None) -> list[Passage]:
    """Texts with their scores, where a teacher gave some."""
    return [*map(Passage, texts, [None] * len(texts) if scores is None else scores)]


def _draw(numbers: range, count: int, choice: random.Random) -> list[int]:
    """A choice without repeats where there are enough; else all, and the rest drawn again."""
    repeats, rest = divmod(count, len(numbers))
    return [*numbers] * repeats + choice.sample(numbers, rest)


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
    refuse_row_keys(recipe, owner=owner_of(recipe))
    beir = open_folder(folder, split_of(recipe), skip=skip)
    return ir_eval_set(beir, read_gains(beir, split_of(recipe), skip=skip))


def _has_corpus(recipe: EvalSetRecipe, folder: SetFolder) -> bool:
    """Whether a folder is taken for one of BEIR; a set of the hub is, whatever it lacks."""
    if recipe.format == "beir" or recipe.hub is not None:
        return True
    return recipe.format is None and is_beir_folder(folder.path)
