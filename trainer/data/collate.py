"""Rows of a step to a tokenised global batch: slots drawn, texts deduplicated, masks found.

Everything is a function of (seed, step), so whoever collates a step gets the same batch. Letters
as in `trainer.data.batch`.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.data.batch import Batch, IrBatch, StepPlan, StsBatch, Texts
from trainer.data.records import IrRecord, StsRecord
from trainer.data.sources import Source
from trainer.data.tokens import Encoded, TextEncoder
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
    assert recipe.tasks.ir is not None
    queries = [record for record in records if isinstance(record, IrRecord)]
    drawn = [
        draw_passages(record, recipe.tasks.ir, f"{recipe.seed}/{plan.source}/{plan.step}/{row}")
        for record, row in zip(queries, plan.rows.tolist(), strict=True)
    ]
    return _ir_batch(plan, queries, drawn, recipe.tasks.ir, table)


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
    """Index of what is embedded: tokens, and how many of them pooling leaves out."""
    passages: dict[str, int] = field(default_factory=dict)
    """Index of each text added as a passage."""

    def add_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Index of each text, as a query or STS text [n], int64."""
        instruction, limit = self.settings.query_instruction, self.recipe.data.query_max_tokens
        distinct = list(dict.fromkeys(texts))
        encoded = self.encoder.encode(distinct, instruction=instruction, max_tokens=limit)
        index = {
            text: self._index(ids, encoded.num_prompt_tokens)
            for text, ids in zip(distinct, encoded.token_ids, strict=True)
        }
        return np.array([index[text] for text in texts], np.int64)

    def add_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Index of each text, as a passage [n], int64."""
        encoded = self._encode_passages(distinct := list(dict.fromkeys(texts)))
        for text, ids in zip(distinct, encoded.token_ids, strict=True):
            self.passages[text] = self._index(ids, encoded.num_prompt_tokens)
        return np.array([self.passages[text] for text in texts], np.int64)

    def find_passages(self, texts: Iterable[str]) -> dict[str, int]:
        """Index of each text, or ABSENT where nothing that was added has its tokens."""
        found = {text: self.passages.get(text, ABSENT) for text in texts}
        others = [text for text, index in found.items() if index == ABSENT]
        encoded = self._encode_passages(others)
        for text, ids in zip(others, encoded.token_ids, strict=True):
            found[text] = self.seen.get((encoded.num_prompt_tokens, ids.tobytes()), ABSENT)
        return found

    def texts(self) -> Texts:
        """All texts added."""
        return Texts(
            token_ids=tuple(self.token_ids),
            num_prompt_tokens=np.array(self.num_prompt_tokens, np.int64),
        )

    def _encode_passages(self, texts: Sequence[str]) -> Encoded:
        instruction, limit = self.settings.passage_instruction, self.recipe.data.passage_max_tokens
        return self.encoder.encode(texts, instruction=instruction, max_tokens=limit)

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
    recipe: IrRecipe,
    table: _TextTable,
) -> IrBatch:
    query = table.add_queries([record.query for record in records])
    slots = [text for row in drawn for text in row]
    flat = np.full(len(slots), ABSENT, np.int64)
    present = np.array([text is not None for text in slots])
    flat[present] = table.add_passages([text for text in slots if text is not None])
    passages = flat.reshape(len(records), -1)
    masked: Iterable[tuple[int, int]] = ()
    if recipe.mask != "none":
        found = table.find_passages(text for record in records for text in record.positives)
        known = [[found[text] for text in record.positives] for record in records]
        masked = known_positives(query, known, passages, num_positives=recipe.positives)
    return IrBatch(
        plan=plan,
        texts=table.texts(),
        query=query,
        passages=passages,
        masked=np.array(list(masked), np.int64).reshape(-1, 2),
    )


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
