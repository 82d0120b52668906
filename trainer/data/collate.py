"""Rows of a step to a tokenised global batch: slots drawn, texts deduplicated, masks found.

Everything is a function of (seed, step), so whoever collates a step gets the same batch. Letters
as in `trainer.data.batch`.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.data.batch import Batch, IrBatch, StepPlan, StsBatch, Texts
from trainer.data.records import IrRecord, StsRecord
from trainer.data.sources import Source
from trainer.data.tokens import TextEncoder
from trainer.recipe.ir import IrRecipe
from trainer.recipe.schema import Recipe, SourceRecipe

ABSENT = -1
"""Index of a passage slot that has no text: a negative of a record without negatives."""


def make_batch(plan: StepPlan, source: Source, encoder: TextEncoder, recipe: Recipe) -> Batch:
    """The global batch of a step.

    Args:
        plan: which rows.
        source: the plan's source.
        encoder: made from the recipe's tokenizer.
        recipe: the run; its seed, limits, instructions and slots are used.

    Raises:
        DataError: if a row changed on disk, or a text has no tokens.
    """
    records = [source.record(row) for row in plan.rows.tolist()]
    settings = next(item for item in recipe.data.sources if item.name == plan.source)
    table = _TextTable(encoder, recipe, settings)
    if plan.task == "sts":
        return _sts_batch(plan, [pair for pair in records if isinstance(pair, StsRecord)], table)
    ir = recipe.tasks["ir"]
    assert isinstance(ir, IrRecipe)
    queries = [record for record in records if isinstance(record, IrRecord)]
    drawn = [
        draw_passages(record, ir, f"{recipe.seed}/{plan.source}/{plan.step}/{row}")
        for record, row in zip(queries, plan.rows.tolist(), strict=True)
    ]
    known = ir.mask != "none"
    masked = known_positives(queries, drawn, ir.positives) if known else ()
    return _ir_batch(plan, queries, drawn, masked, table)


def draw_passages(record: IrRecord, ir: IrRecipe, key: str) -> list[str | None]:
    """P positives and N negatives of a record; all negatives are None if it has none.

    Args:
        record: one query.
        ir: slots per query.
        key: seeds the choice.
    """
    choice = random.Random(key)
    negatives: list[str | None] = [None] * ir.negatives
    if record.negatives:
        negatives = [*_draw(record.negatives, ir.negatives, choice)]
    return [*_draw(record.positives, ir.positives, choice), *negatives]


def _draw(texts: Sequence[str], count: int, choice: random.Random) -> list[str]:
    """A choice without repeats where there are enough; else all, and the rest drawn again."""
    repeats, rest = divmod(count, len(texts))
    return [*texts] * repeats + choice.sample(texts, rest)


@dataclass
class _TextTable:
    """Distinct texts of a step while it is being collated."""

    encoder: TextEncoder
    recipe: Recipe
    settings: SourceRecipe
    token_ids: list[np.ndarray] = field(default_factory=list)
    num_prompt_tokens: list[int] = field(default_factory=list)
    seen: dict[tuple[int, bytes], int] = field(default_factory=dict)

    def add_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Index of each text, as a query or STS text [n], int64."""
        data = self.recipe.data
        return self._add(texts, self.settings.query_instruction, data.query_max_tokens)

    def add_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Index of each text, as a passage [n], int64."""
        data = self.recipe.data
        return self._add(texts, self.settings.passage_instruction, data.passage_max_tokens)

    def texts(self) -> Texts:
        """All texts added."""
        return Texts(
            token_ids=tuple(self.token_ids),
            num_prompt_tokens=np.array(self.num_prompt_tokens, np.int64),
        )

    def _add(self, texts: Sequence[str], instruction: str, max_tokens: int) -> np.ndarray:
        distinct = list(dict.fromkeys(texts))
        encoded = self.encoder.encode(distinct, instruction=instruction, max_tokens=max_tokens)
        index = {
            text: self._index(ids, encoded.num_prompt_tokens)
            for text, ids in zip(distinct, encoded.token_ids, strict=True)
        }
        return np.array([index[text] for text in texts], np.int64)

    def _index(self, ids: np.ndarray, num_prompt: int) -> int:
        index = self.seen.setdefault((num_prompt, ids.tobytes()), len(self.token_ids))
        if index == len(self.token_ids):
            self.token_ids.append(ids)
            self.num_prompt_tokens.append(num_prompt)
        return index


def _sts_batch(plan: StepPlan, pairs: Sequence[StsRecord], table: _TextTable) -> StsBatch:
    both = table.add_queries([pair.text1 for pair in pairs] + [pair.text2 for pair in pairs])
    return StsBatch(
        plan=plan,
        texts=table.texts(),
        text1=both[: len(pairs)],
        text2=both[len(pairs) :],
        score=np.array([pair.score for pair in pairs], np.float32),
    )


def _ir_batch(
    plan: StepPlan,
    records: Sequence[IrRecord],
    drawn: Sequence[Sequence[str | None]],
    masked: Iterable[tuple[int, int]],
    table: _TextTable,
) -> IrBatch:
    query = table.add_queries([record.query for record in records])
    slots = [text for row in drawn for text in row]
    passages = np.full(len(slots), ABSENT, np.int64)
    present = np.array([text is not None for text in slots])
    passages[present] = table.add_passages([text for text in slots if text is not None])
    return IrBatch(
        plan=plan,
        texts=table.texts(),
        query=query,
        passages=passages.reshape(len(records), -1),
        masked=np.array(list(masked), np.int64).reshape(-1, 2),
    )


def known_positives(
    records: Sequence[IrRecord], drawn: Sequence[Sequence[str | None]], num_positives: int
) -> Iterable[tuple[int, int]]:
    """Candidates that are known positives of a query, by text.

    Known is any positive of the record, drawn or not, or of another record of the batch with the
    same query text. The query's own positive slots, which are its targets, are left alone.

    Args:
        records: the queries [G].
        drawn: texts of each query's P + N passage slots [G, P + N]; None where absent.
        num_positives: P.

    Yields:
        (query row, flat passage column of G * (P + N)).
    """
    num_slots = len(drawn[0])
    columns: dict[str, list[int]] = {}
    for column, text in enumerate(text for row in drawn for text in row):
        if text is not None:
            columns.setdefault(text, []).append(column)
    positives: dict[str, dict[str, None]] = {}
    for record in records:
        positives.setdefault(record.query, {}).update(dict.fromkeys(record.positives))
    for row, record in enumerate(records):
        for text in positives[record.query]:
            for column in columns.get(text, ()):
                if not 0 <= column - row * num_slots < num_positives:
                    yield row, column
