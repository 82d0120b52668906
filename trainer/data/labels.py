"""Labelled texts in the data room: what is drawn beside each anchor, and the batch of a step.

Letters: G anchors, P positives and N negatives per anchor, C labels.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from trainer.data.batch import LabelsBatch, StepPlan, Texts
from trainer.data.classes import Classes
from trainer.data.known_positives import ABSENT
from trainer.data.label_source import LabelledSource
from trainer.data.records import LabelledRecord
from trainer.data.row_texts import RowTexts
from trainer.data.shared_labels import num_known, own_known, shared_labels
from trainer.data.slot_table import SlotTable
from trainer.data.sources import Source, StepSource
from trainer.data.text_table import TextTable
from trainer.errors import RecipeError
from trainer.recipe.labels import LabelsRecipe
from trainer.recipe.per_source import is_balanced, key_of, settings_of
from trainer.recipe.schema import Recipe

TRIES = 64
"""Draws of a negative after which its slot stays empty: nearly every text shares a label with the
anchor, or was drawn already."""


class Sample(NamedTuple):
    """A text of a step with its labels, by their numbers in the source's index."""

    text: str
    labels: tuple[int, ...]


class Drawn(NamedTuple):
    """An anchor with what was drawn beside it."""

    anchor: Sample
    positives: tuple[Sample, ...]
    """P of them."""
    negatives: tuple[Sample, ...]
    """N of them, or as many as there are."""


class Numbers(NamedTuple):
    """What `Drawn` holds, by number."""

    anchor: int
    """A row of the source."""
    positives: list[int]
    """Rows, or labels where the source has texts of its labels."""
    negatives: list[int]
    """Likewise."""


def draw(plan: StepPlan, source: StepSource, settings: LabelsRecipe, seed: int) -> list[Drawn]:
    """The anchors of a step with positives of a label of theirs and negatives without any.

    A function of (seed, source, step) alone. Of an anchor with several labels one is drawn, and its
    positives are of it.
    """
    assert isinstance(source, LabelledSource)
    index, label_texts = source.index, source.label_texts

    def sample(row: int) -> Sample:
        return Sample(source.text(row), tuple(index.labels_of(row)))

    def other(number: int) -> Sample:
        return sample(number) if label_texts is None else Sample(label_texts[number], (number,))

    return [
        Drawn(sample(anchor), tuple(map(other, positives)), tuple(map(other, negatives)))
        for anchor, positives, negatives in draw_numbers(plan, source, settings, seed)
    ]


def draw_numbers(
    plan: StepPlan, source: LabelledSource, settings: LabelsRecipe, seed: int
) -> Iterator[Numbers]:
    """What `draw` draws, in the order of the plan."""
    draw_slots = _of_texts if source.label_texts is None else _of_labels
    for place, row in enumerate(plan.rows.tolist()):
        choice = random.Random(f"{seed}/{plan.source}/{plan.step}/{place}/{row}")
        label = choice.choice(source.drawable(row))
        yield draw_slots(source, row, label, settings, choice)


def _of_texts(
    source: LabelledSource, row: int, label: int, settings: LabelsRecipe, choice: random.Random
) -> Numbers:
    """Positives and negatives are texts of the source."""
    texts = source.index.texts_of(label)
    own = int(np.searchsorted(texts, row))
    # one fewer than there are: the anchor's own place is stepped over
    others = _repeated(range(len(texts) - 1), settings.positives, choice)
    positives = [int(texts[other + (other >= own)]) for other in others]
    return Numbers(row, positives, _negatives(source, row, settings, choice))


def _of_labels(
    source: LabelledSource, row: int, label: int, settings: LabelsRecipe, choice: random.Random
) -> Numbers:
    """The positive is the text of the label, negatives are those of labels that the row lacks."""
    own = source.index.labels_of(row)
    lacking = range(len(source.index.names) - len(own))
    negatives = []
    for other in choice.sample(lacking, min(settings.negatives, len(lacking))):
        for mine in own:
            other += other >= mine
        negatives.append(other)
    return Numbers(row, [label], negatives)


def _repeated(items: range, count: int, choice: random.Random) -> list[int]:
    """A choice without repeats where there are enough; else all, and the rest drawn again."""
    repeats, rest = divmod(count, len(items))
    return [*items] * repeats + choice.sample(items, rest)


def _negatives(
    source: LabelledSource, row: int, settings: LabelsRecipe, choice: random.Random
) -> list[int]:
    """Distinct texts that share no label with a row.

    Each is drawn among the pairs of a text and a label without those of the row's labels, or among
    the labels without those and then among its texts. So one that is refused is one with several
    labels, or was drawn before.
    """
    index, own = source.index, source.index.labels_of(row)
    found: dict[int, None] = {}
    left = TRIES * settings.negatives
    while len(found) < settings.negatives and left:
        left -= 1
        text = _by_label(source, own, choice) if settings.balance == "classes" else _by_pair(
            source, own, choice)  # fmt: skip
        if text is not None and not set(own) & set(index.labels_of(text)):
            found[text] = None
    return list(found)


def _by_label(source: LabelledSource, own: Sequence[int], choice: random.Random) -> int | None:
    """A text of a label that is drawn among those not of a row; None where it has all labels."""
    num_others = len(source.index.names) - len(own)
    if num_others == 0:
        return None
    label = choice.randrange(num_others)
    for mine in own:
        label += label >= mine
    texts = source.index.texts_of(label)
    return int(texts[choice.randrange(len(texts))])


def _by_pair(source: LabelledSource, own: Sequence[int], choice: random.Random) -> int | None:
    """The text of a pair that is drawn among those of labels not of a row; None: there is none."""
    index = source.index
    num_others = index.num_pairs - sum(map(index.num_texts, own))
    if num_others == 0:
        return None
    pair = choice.randrange(num_others)
    for mine in own:
        if pair >= index.starts[mine]:
            pair += index.num_texts(mine)
    return int(index.texts[pair])


def collate(
    plan: StepPlan, records: Sequence[Drawn], table: TextTable, settings: LabelsRecipe, seed: int
) -> LabelsBatch:
    """The batch of anchors with what was drawn; all has been drawn, so the seed does not matter."""
    slots = [slot for one in records for slot in _slots(one, settings)]
    samples = [slot for slot in slots if slot is not None]
    add = table.add_passages if settings.has_label_texts else table.add_queries
    query = table.add_queries([one.anchor.text for one in records])
    present = np.array([slot is not None for slot in slots])
    flat = np.full(len(slots), ABSENT, np.int64)
    flat[present] = add([one.text for one in samples])
    labels = [sample.labels for sample in (*(one.anchor for one in records), *samples)]
    return _batch(plan, table.texts(), query, flat, labels, settings)


def row_texts(record: LabelledRecord) -> RowTexts:
    """The text, and the text of each of its labels where the source has them."""
    return RowTexts(queries=(record.text,), passages=record.label_texts)


def collate_stored(
    plan: StepPlan, source: StepSource, table: SlotTable, settings: LabelsRecipe, seed: int
) -> tuple[LabelsBatch, np.ndarray]:
    """As `draw` and `collate`, and the slot of each text, from tokens that were made ahead."""
    assert isinstance(source, LabelledSource)
    drawn = list(draw_numbers(plan, source, settings, seed))
    slots = [[*one.positives, *one.negatives] for one in drawn]
    width = settings.positives + settings.negatives
    numbers = np.array([row + [ABSENT] * (width - len(row)) for row in slots], np.int64).reshape(-1)
    present = numbers != ABSENT
    others = numbers[present]
    own_labels: list[tuple[int, ...]] = [tuple(source.index.labels_of(row)) for row in plan.rows]
    if source.label_texts is None:
        other_slots, _ = table.store.spans(others)
        labels = [tuple(source.index.labels_of(row)) for row in others.tolist()]
    else:
        other_slots = _slots_of_labels(source, table, others)
        labels = [(label,) for label in others.tolist()]
    anchors, _ = table.store.spans(plan.rows)
    num_queries = len(anchors) + (len(others) if source.label_texts is None else 0)
    added = np.concatenate([anchors, other_slots])
    twice = np.ones(len(added), bool)  # an anchor may be drawn for another one
    found = table.distinct(added, added[:0], twice=twice, num_queries=num_queries)
    flat = np.full(len(numbers), ABSENT, np.int64)
    flat[present] = found.added[len(anchors) :]
    query, labels = found.added[: len(anchors)], [*own_labels, *labels]
    return _batch(plan, found.texts, query, flat, labels, settings), found.slots


def _slots_of_labels(source: LabelledSource, table: SlotTable, labels: np.ndarray) -> np.ndarray:
    """Where the text of each label is stored, int64: beside the first text that has the label."""
    index, slots = source.index, {}
    for label in np.unique(labels).tolist():
        first = index.texts_of(label)[:1]
        start = int(table.store.spans(first)[0][0])
        slots[label] = start + 1 + index.labels_of(int(first[0])).index(label)
    return np.array([slots[label] for label in labels.tolist()], np.int64)


def _batch(
    plan: StepPlan, texts: Texts, query: np.ndarray, flat: np.ndarray,
    labels: Sequence[tuple[int, ...]], settings: LabelsRecipe,
) -> LabelsBatch:  # fmt: skip
    """The batch of numbered texts.

    Args:
        plan: which rows.
        texts: the distinct texts.
        query: the anchors, as index into texts [G], int64.
        flat: the slots of all anchors, as index into texts [G * (P + N)], int64; ABSENT: no text.
        labels: labels of each anchor, then of what each slot that is not absent holds.
        settings: of the source's steps.
    """
    passages = flat.reshape(len(query), -1)
    # texts that became the same tokens have the labels of all of them
    embedded = zip([*query.tolist(), *flat[flat != ABSENT].tolist()], labels, strict=True)
    pairs = {(text, label) for text, own in embedded for label in own}
    members = np.array(sorted(pairs), np.int64)
    return LabelsBatch(
        plan=plan,
        texts=texts,
        query=query,
        passages=passages,
        members=members,
        num_masked=_num_masked(members, query, passages, settings, len(texts.token_ids)),
    )


def _slots(drawn: Drawn, settings: LabelsRecipe) -> list[Sample | None]:
    """P + N slots; those without a negative are empty."""
    empty = settings.negatives - len(drawn.negatives)
    return [*drawn.positives, *drawn.negatives, *[None] * empty]


def _num_masked(
    members: np.ndarray, query: np.ndarray, passages: np.ndarray, settings: LabelsRecipe, total: int
) -> int:
    """Candidates that are left out of denominators, as they share a label with the anchor."""
    if settings.objective == "supcon":
        return 0
    shared = shared_labels(members, query, total)
    if settings.objective == "in_batch":
        return num_known(shared, passages, num_positives=settings.positives)
    return int(own_known(shared, passages, num_positives=settings.positives).sum())


def classes_of(sources: Sequence[Source], recipe: Recipe) -> dict[str, Classes]:
    """Rows by label of each source whose anchors are drawn label by label, by name."""
    return {
        source.name: source.classes()
        for source in sources
        if isinstance(source, LabelledSource) and is_balanced(recipe, source.name)
    }


def check_labels(sources: Sequence[Source], recipe: Recipe) -> None:
    """Refuse more negatives than a source has other labels, where those are what is drawn.

    Raises:
        RecipeError: naming the key and the source.
    """
    for source in sources:
        if not isinstance(source, LabelledSource) or source.label_texts is None:
            continue
        settings, others = settings_of(recipe, source.name), len(source.index.names) - 1
        assert isinstance(settings, LabelsRecipe)
        if settings.negatives > others:
            one = next(one for one in recipe.data.sources if one.name == source.name)
            key, own = key_of(one, "negatives"), f"data.sources.{source.name}.negatives"
            raise RecipeError(
                f"recipe: {key} = {settings.negatives}; expected at most {others}, as source "
                f"{source.name} has {others + 1} labels and each has one text. Lower it"
                f"{'.' if key == own else f', or set {own}.'}"
            )
