"""What crosses the door from data to engine: one tokenised global batch; it holds no logic.

Letters: U distinct texts of the step, G queries, P positives, N negatives per query, n pairs,
M masked pairs, m pairs of a text and a label. All ranks hold the same batch, but for token ids
where these are read from disk: a rank then has those of the texts that `trainer.data.deal` gives
it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from trainer.data.deal import NO_TEXT, TextGroup
from trainer.data.mixed_rows import owners_of, parted
from trainer.recipe.schema import Task

LENGTHS = np.dtype(np.int32)
"""Of numbers of tokens of texts."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """Which rows a step trains on."""

    step: int
    """0-based optimizer step."""
    task: Task
    """The one task of the step."""
    source: str
    """The one source of the step, or the mix of several."""
    epoch: int
    """0-based epoch of the source that the first row belongs to; of a mix, of its first source."""
    rows: np.ndarray
    """Row ids of the global batch [global_batch_size], int64, in order; of a mix, see
    `trainer.data.mixed_rows`."""
    members: tuple[str, ...] = ()
    """Sources of a mix, in its order; empty for a source by itself."""

    @property
    def owners(self) -> np.ndarray:
        """Which source of a mix each row is of [global_batch_size], int64; 0 without one."""
        return owners_of(self.rows)

    @property
    def shown_rows(self) -> list[int] | list[str]:
        """Row ids in order for a person; of a mix with their sources, as `faq 3`."""
        if not self.members:
            found: list[int] = self.rows.tolist()
            return found
        owners, inner = (part.tolist() for part in parted(self.rows))
        return [f"{self.members[owner]} {row}" for owner, row in zip(owners, inner, strict=True)]

    @property
    def rows_by_source(self) -> dict[str, np.ndarray]:
        """Row ids of each source of the step [n], int64, in the order of the batch."""
        if not self.members:
            return {self.source: self.rows}
        owners, inner = parted(self.rows)
        return {name: inner[owners == number] for number, name in enumerate(self.members)}


@dataclass(frozen=True, kw_only=True)
class OwnIds(Sequence[np.ndarray]):
    """Token ids of the texts that one rank embeds, among those of all ranks."""

    lengths: np.ndarray
    """Tokens of each text of the step [U], int32."""
    own: np.ndarray
    """The texts whose ids are here [k], int64, ascending."""
    ids: np.ndarray
    """Their ids, one text after another, uint16 or uint32."""
    ends: np.ndarray
    """Where each of them ends in `ids` [k], int64."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, text: int) -> np.ndarray:  # type: ignore[override]
        """Ids of an own text, int32 [length]."""
        at = int(np.searchsorted(self.own, text))
        assert text in self.own[at : at + 1], f"text {text} is another rank's"
        end = int(self.ends[at])
        return self.ids[end - int(self.lengths[text]) : end].astype(np.int32)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[text] for text in range(len(self)))


def no_ids(lengths: np.ndarray) -> OwnIds:
    """Texts of which no rank's ids were read yet.

    Args:
        lengths: tokens of each text [U], int32.
    """
    none = np.empty(0, np.int64)
    return OwnIds(lengths=lengths, own=none, ids=none.astype(np.uint16), ends=none)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Distinct tokenised texts of a step; equal token sequences appear once."""

    token_ids: tuple[np.ndarray, ...] | OwnIds
    """U arrays of int32 [length], with instruction and end token, unpadded."""
    num_prompt_tokens: np.ndarray
    """Leading tokens to leave out of mean pooling [U], int64; 0 where the instruction is pooled."""
    groups: tuple[TextGroup, ...] | None = None
    """How they are dealt to ranks, those behind one instruction by themselves; None: as they begin,
    which can be seen where all token ids are here."""
    teacher_vectors: np.ndarray | None = None
    """A teacher's vector of each text [U, D], float16 or float32; None: the source has none.

    Of texts that became the same tokens, as when they are cut, the first one's vector.
    """

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text [U], int32."""
        if isinstance(self.token_ids, OwnIds):
            return self.token_ids.lengths
        return np.array([len(ids) for ids in self.token_ids], LENGTHS)


class Batch(Protocol):
    """A global batch of any task."""

    @property
    def plan(self) -> StepPlan:
        """What the batch was made from."""

    @property
    def texts(self) -> Texts:
        """The distinct texts."""

    @property
    def num_masked(self) -> int:
        """Candidates left out of denominators as known positives."""


@dataclass(frozen=True, kw_only=True)
class IrBatch:
    """A global batch of queries with P positives and N negatives each."""

    plan: StepPlan
    """What the batch was made from."""
    texts: Texts
    """The distinct texts."""
    query: np.ndarray
    """Index into texts [G], int64."""
    passages: np.ndarray
    """Index into texts [G, P + N], int64; the first P columns are positive slots.

    -1 in all N negative slots of a record that has no negatives: no text, to be left out.
    """
    masked: np.ndarray
    """Pairs (query row, flat passage column of G * (P + N)) left out of denominators [M, 2], int64.

    A candidate of the same tokens as a known positive of the query; never its own positive slots.
    """
    teacher: np.ndarray | None = None
    """A teacher's score of the text in each slot [G, P + N], float32; None: of no record.

    NaN in all slots of a record that has no scores, and in absent slots.
    """

    @property
    def num_masked(self) -> int:
        """See `Batch.num_masked`."""
        return len(self.masked)


@dataclass(frozen=True, kw_only=True)
class StsBatch:
    """A global batch of n scored pairs."""

    plan: StepPlan
    """What the batch was made from."""
    texts: Texts
    """The distinct texts."""
    text1: np.ndarray
    """Index into texts [n], int64."""
    text2: np.ndarray
    """Index into texts [n], int64."""
    score: np.ndarray
    """Gold similarity, 0..1 [n], float32."""

    @property
    def num_masked(self) -> int:
        """None: no pair is a candidate of another."""
        return 0


@dataclass(frozen=True, kw_only=True)
class LabelsBatch:
    """A global batch of labelled anchors with P positives and N negatives each."""

    plan: StepPlan
    """What the batch was made from."""
    texts: Texts
    """The distinct texts."""
    query: np.ndarray
    """The anchors, as index into texts [G], int64."""
    passages: np.ndarray
    """Index into texts [G, P + N], int64; the first P columns are positives. -1: no text."""
    members: np.ndarray
    """Every pair (text, label) of the distinct texts [m, 2], int64, ascending.

    A text may have several labels, as may texts that became the same tokens.
    """
    num_masked: int
    """See `Batch.num_masked`: candidates that share a label with the anchor."""


class OwnTexts(NamedTuple):
    """The texts of one rank in a batch whose token ids are on disk."""

    texts: np.ndarray
    """Which [n], int64, ascending."""
    slots: np.ndarray
    """Where the tokens of each are in the store of the source [n], int64."""

    @classmethod
    def of(cls, dealt: np.ndarray, slots: np.ndarray) -> "OwnTexts":
        """Those of a rank; see `StoredBatch` [R], int64."""
        is_text = dealt != NO_TEXT
        return cls(dealt[is_text], slots[is_text])


@dataclass(frozen=True, kw_only=True)
class StoredBatch:
    """A global batch whose token ids are on disk, for the k ranks of a host or some of them."""

    dealt: np.ndarray
    """The texts of each of these ranks [k, R], int64, ascending; NO_TEXT before them where a rank
    has fewer than others."""
    slots: np.ndarray
    """Where the tokens of each of these texts are in the store of the source [k, R], int64; any
    number where there is no text."""
    batch: Batch
    """All but token ids: the same on every rank."""

    def own(self, place: int) -> OwnTexts:
        """The texts of the rank in a place among these."""
        return OwnTexts.of(self.dealt[place], self.slots[place])
