"""Which texts have which labels, both ways, as arrays; it must not read files.

Letters: n texts, C labels, M pairs of a text and one of its labels.
"""

import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trainer.data.cache import Arrays


@dataclass(frozen=True)
class LabelIndex:
    """Texts by label and labels by text; rows of one text are one text with all their labels."""

    arrays: Arrays
    """As `index_labels` makes them, in memory or memory-mapped."""
    names: tuple[str, ...]
    """What each label is called [C]."""

    @classmethod
    def of(cls, arrays: Arrays) -> "LabelIndex":
        """The index that some arrays are."""
        return cls(arrays, tuple(json.loads(arrays["names"].tobytes())))

    def __len__(self) -> int:
        """Number of texts, n."""
        return len(self.arrays["records"])

    @property
    def records(self) -> np.ndarray:
        """The first record that has each text [n], int64, ascending."""
        return self.arrays["records"]

    @property
    def num_pairs(self) -> int:
        """M."""
        return len(self.arrays["texts"])

    @property
    def starts(self) -> np.ndarray:
        """Where the texts of each label begin in `texts` [C + 1], int64."""
        return self.arrays["starts"]

    @property
    def texts(self) -> np.ndarray:
        """Texts by label, ascending within each [M], int64."""
        return self.arrays["texts"]

    def labels_of(self, text: int) -> list[int]:
        """Labels of a text, ascending."""
        starts = self.arrays["label_starts"]
        return [int(label) for label in self.arrays["labels"][starts[text] : starts[text + 1]]]

    def texts_of(self, label: int) -> np.ndarray:
        """Texts of a label, ascending, int64."""
        return self.texts[self.starts[label] : self.starts[label + 1]]

    def num_texts(self, label: int) -> int:
        """How many texts a label has."""
        return int(self.starts[label + 1] - self.starts[label])


def index_labels(keys: np.ndarray, counts: np.ndarray, labels: np.ndarray, names: list[str],
                 *, min_texts: int) -> Arrays:  # fmt: skip
    """The arrays of an index.

    Args:
        keys: key of the text of each record, uint64; equal for equal texts.
        counts: number of labels of each record, int64.
        labels: label of each of them, record by record, int32.
        names: what each label is called.
        min_texts: a text none of whose labels has so many texts is left out.
    """
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    # in the order in which texts come first, not in that of their keys
    rank = np.argsort(np.argsort(first, kind="stable"), kind="stable")
    text = np.repeat(rank[number], counts)
    pairs = np.unique(text * np.int64(len(names)) + labels)
    text, label = np.divmod(pairs, max(1, len(names)))
    sizes = np.bincount(label, minlength=len(names))
    kept = np.zeros(len(first), bool)
    kept[text[sizes[label] >= min_texts]] = True
    alone = np.flatnonzero((sizes > 0) & (sizes < min_texts))
    text, label = text[kept[text]], label[kept[text]]
    text = (np.cumsum(kept) - 1)[text]
    used, label = np.unique(label, return_inverse=True)
    by_label = np.lexsort((text, label))
    return {
        "records": np.sort(first)[kept].astype(np.int64),
        "labels": label.astype(np.int32),
        "label_starts": _starts(text, int(kept.sum())),
        "texts": text[by_label].astype(np.int64),
        "starts": _starts(label, len(used)),
        "names": _written(names[index] for index in used.tolist()),
        "alone": _written(names[index] for index in alone.tolist()),
        "num_left_out": np.array(len(kept) - kept.sum()),
    }


def _starts(groups: np.ndarray, number: int) -> np.ndarray:
    """Where each of some groups begins among its sorted members [number + 1], int64."""
    ends = np.cumsum(np.bincount(groups, minlength=number)).astype(np.int64)
    return np.concatenate([np.zeros(1, np.int64), ends])


def _written(names: Iterable[str]) -> np.ndarray:
    """Texts as bytes, uint8: an array of texts would be as wide as the longest of them."""
    return np.frombuffer(json.dumps(list(names)).encode(), np.uint8)


class LabelPairs:
    """Pairs of records and labels while rows are read: a few bytes each."""

    def __init__(self) -> None:
        self.keys, self.counts, self.labels = array("Q"), array("q"), array("i")
        self.numbers: dict[str, int] = {}

    def add(self, key: int, labels: Iterable[str]) -> None:
        """Append a record.

        Args:
            key: of its text.
            labels: by name, each once.
        """
        numbers = [self.numbers.setdefault(name, len(self.numbers)) for name in labels]
        self.keys.append(key)
        self.counts.append(len(numbers))
        self.labels.extend(numbers)

    def index(self, *, min_texts: int) -> Arrays:
        """See `index_labels`."""
        return index_labels(
            np.array(self.keys, np.uint64),
            np.array(self.counts, np.int64),
            np.array(self.labels, np.int32),
            list(self.numbers),
            min_texts=min_texts,
        )
