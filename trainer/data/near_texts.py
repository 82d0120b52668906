"""Texts that are equal but for case and punctuation, or nearly equal: a word changed among many.

Near texts are found by MinHash (Broder 1997) with locality-sensitive hashing, and each one found is
confirmed by the words that both have: the Jaccard similarity of their runs of `RUN` words.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from datasketch import MinHash, MinHashLSH

RUN = 3
"""Words of a run; beginning and end of a text count as words. One changed word changes three runs:
few of a long text, most of a short one, where it asks something else."""
EDGE = ("",) * (RUN - 1)
"""Before and after the words of a text."""
NEAR = 0.7
"""Jaccard similarity of runs from which texts are nearly equal: one changed word in 15 or more, two
in 32 or more."""
LOOKED_AT = 0.5
"""Similarity from which hashing proposes a text, with room for the error of 128 hashes."""
HASHES = 128
"""Of a text; the standard error of a similarity is at most 1 / (2 sqrt(128)) = 0.044."""
SPACELESS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)
"""Signs of scripts without spaces between words: each is a word."""
VARIANTS = range(0xFE00, 0xFE10)
"""Marks that say how the sign before them is drawn."""
PART = "\0"
"""Between the texts of a pair in what a record asks."""


@dataclass(frozen=True)
class Match:
    """A known text that another repeats."""

    index: int
    """Its place among the known ones."""
    is_equal: bool
    """Whether only case, spaces and punctuation differ."""


class _Signs(dict[int, str]):
    """What each code point stands for between the spaces around words."""

    def __missing__(self, code: int) -> str:
        sign = chr(code)
        kind = unicodedata.category(sign)
        if kind in ("Sm", "Sc", "So") or SPACELESS.match(sign):
            found = f" {sign} "  # C++, 1 < 2 and 5 $ say something
        elif kind == "Cf" or code in VARIANTS:
            found = ""
        else:
            # vowels of many scripts are marks
            found = sign if kind[0] in "LNM" else " "
        self[code] = found
        return found


_SIGNS = _Signs()


def words_of(text: str) -> list[str]:
    """Its words and symbols in order, without case, width and punctuation."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_SIGNS).split()


def normalised(text: str) -> str:
    """What two texts that say the same word by word have in common; a pair's in either order."""
    parts = [" ".join(words_of(part)) or part.strip() for part in text.split(PART)]
    return PART.join(sorted(parts))


def _key(text: str) -> bytes:
    """128 bits of it, normalised."""
    said = normalised(text).encode(errors="surrogatepass")
    return hashlib.blake2b(said, digest_size=16).digest()


def runs_of(text: str) -> frozenset[str]:
    """All runs of words of each part."""
    runs: list[str] = []
    for part in text.split(PART):
        words = [*EDGE, *(words_of(part) or [part.strip()]), *EDGE]
        runs += [" ".join(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
    return frozenset(runs)


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity of two sets that are not empty, 0..1."""
    return len(one & other) / len(one | other)


class KnownTexts:
    """Texts that others are looked up among; memory grows with these alone, some 12 kB each."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Index texts.

        Args:
            texts: as `RawRecord.asked` gives them.
        """
        self._none = MinHash(num_perm=HASHES)
        self._index = MinHashLSH(threshold=LOOKED_AT, num_perm=HASHES)
        self._num_texts = 0
        self._equal: dict[bytes, int] = {}
        self._runs: dict[int, frozenset[str]] = {}
        self._num_parts: dict[int, int] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Index one more text; of equal ones the first stands for all."""
        index = self._num_texts
        self._num_texts += 1
        if self._equal.setdefault(_key(text), index) == index:
            self._runs[index] = runs_of(text)
            self._num_parts[index] = text.count(PART)
            self._index.insert(index, self._hashed(self._runs[index]))

    def find(self, text: str) -> Match | None:
        """The known text that a text repeats: one that is equal, else the nearest that is near."""
        equal = self._equal.get(_key(text))
        if equal is not None:
            return Match(equal, is_equal=True)
        runs = runs_of(text)
        # a pair is not what a text alone is
        parts = text.count(PART)
        proposed = [
            index
            for index in self._index.query(self._hashed(runs))
            if self._num_parts[index] == parts
        ]
        scored = [(similarity(runs, self._runs[index]), -index) for index in proposed]
        best, place = max(scored, default=(0.0, 0))
        return Match(-place, is_equal=False) if best >= NEAR else None

    def _hashed(self, runs: Iterable[str]) -> MinHash:
        """The hashes of a text."""
        hashes = self._none.copy()
        hashes.update_batch([run.encode(errors="surrogatepass") for run in runs])
        return hashes
