"""The distinct texts of a step while its batch is being collated; equal tokens are one text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.batch import LENGTHS, Texts
from trainer.data.deal import groups_by_prompt
from trainer.data.known_positives import ABSENT
from trainer.data.step_prompts import StepPrompts
from trainer.data.teacher_vectors import TeacherVectors
from trainer.recipe.schema import DataRecipe

if TYPE_CHECKING:
    # imports tokenizers, which a mistake in the data must not wait for
    from trainer.data.tokens import Encoded, TextEncoder


@dataclass
class TextTable:
    """Texts by what is embedded of them."""

    encoder: "TextEncoder"
    """Of the run."""
    limits: DataRecipe
    """Says how long a text may be."""
    prompts: StepPrompts
    """What is put before a text."""
    teacher: TeacherVectors | None = None
    """Has a vector of every text that may be added; None: no vectors are wanted."""
    token_ids: list[np.ndarray] = field(default_factory=list)
    num_prompt_tokens: list[int] = field(default_factory=list)
    seen: dict[tuple[int, bytes], int] = field(default_factory=dict)
    """Index of what is embedded: tokens, and how many of them pooling leaves out."""
    first_texts: list[str] = field(default_factory=list)
    """The text that each index was first given to, without instruction."""
    queries: dict[int, int] = field(default_factory=dict)
    """Which instruction stands before each index that was added as a query, the first of several;
    they come before all others, in order."""
    passages: dict[str, int] = field(default_factory=dict)
    """Index of each text added as a passage."""

    def add_queries(self, texts: Sequence[str], owners: np.ndarray | None = None) -> np.ndarray:
        """Index of each text, as a query or one of a pair [n], int64; before any passage.

        Args:
            texts: without instruction.
            owners: which source of the step each is of [n], int64; None: all are of the only one.
        """
        assert not self.passages, "a query after a passage"
        of_owner = np.array(self.prompts.query_of_owner)
        numbers = of_owner[np.zeros(len(texts), int) if owners is None else owners].tolist()
        asked = list(zip(numbers, texts, strict=True))
        encoded: dict[tuple[int, str], tuple[np.ndarray, int]] = {}
        for number, instruction in enumerate(self.prompts.queries):
            own = list(dict.fromkeys(text for prompt, text in asked if prompt == number))
            if not own:
                continue
            limit = self.limits.query_max_tokens
            found = self.encoder.encode(own, instruction=instruction, max_tokens=limit)
            for text, ids in zip(own, found.token_ids, strict=True):
                encoded[number, text] = (ids, found.num_prompt_tokens)
        index = {one: self._index(one[1], *encoded[one]) for one in dict.fromkeys(asked)}
        for (number, _), at in index.items():
            self.queries[at] = min(number, self.queries.get(at, number))
        return np.array([index[one] for one in asked], np.int64)

    def add_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Index of each text, as a passage [n], int64."""
        encoded = self._encode_passages(distinct := list(dict.fromkeys(texts)))
        for text, ids in zip(distinct, encoded.token_ids, strict=True):
            self.passages[text] = self._index(text, ids, encoded.num_prompt_tokens)
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
        teacher = self.teacher
        lengths = np.array([len(ids) for ids in self.token_ids], LENGTHS)
        prompts = np.fromiter(self.queries.values(), np.int64, len(self.queries))
        num_first = self.prompts.first_tokens(self.encoder.num_first_tokens)
        return Texts(
            token_ids=tuple(self.token_ids),
            num_prompt_tokens=np.array(self.num_prompt_tokens, np.int64),
            groups=groups_by_prompt(lengths, prompts, num_first),
            teacher_vectors=None if teacher is None else teacher.of(self.first_texts),
        )

    def _encode_passages(self, texts: Sequence[str]) -> "Encoded":
        instruction, limit = self.prompts.passage, self.limits.passage_max_tokens
        return self.encoder.encode(texts, instruction=instruction, max_tokens=limit)

    def _index(self, text: str, ids: np.ndarray, num_prompt: int) -> int:
        index = self.seen.setdefault((num_prompt, ids.tobytes()), len(self.token_ids))
        if index == len(self.token_ids):
            self.first_texts.append(text)
            self.token_ids.append(ids)
            self.num_prompt_tokens.append(num_prompt)
        return index
