"""Which files of a folder hold corpus, queries and judgements, in BEIR's layout and akin ones.

Known are BEIR's own (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), the same packed or columnar,
MTEB's on the hub (folders or shards of these names, qrels also under `default` or `data`), and
ArcticTraining's (documents, queries, labels). It must not open files.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data import compressed
from trainer.data.tables import CORPUS, KINDS, data_files, kind_of
from trainer.errors import DataError

QREL_KINDS = (
    ".tsv",
    ".txt",
    ".trec",
    ".qrels",
    ".qrel",
    *(kind for kind in KINDS if kind != ".tsv"),
)
"""Suffixes of judgements, the likelier first."""
QREL_FOLDERS = ("qrels", "default", "data")
LABELS = ("labels", "relations")
"""Judgements of ArcticTraining, which know no splits and name hard negatives too."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of one folder; a part that is missing is named as BEIR does."""

    folder: Path
    """Absolute."""
    corpus: Sequence[Path]
    """Documents."""
    queries: Sequence[Path]
    """Queries."""


def find_layout(folder: Path) -> Layout:
    """The parts of a folder."""
    corpus = part_files(folder, (CORPUS, "documents")) or [folder / "corpus.jsonl"]
    queries = part_files(folder, ("queries",)) or [folder / "queries.jsonl"]
    return Layout(folder=folder, corpus=corpus, queries=queries)


def is_beir_folder(path: Path) -> bool:
    """Whether a path looks like a BEIR folder."""
    if (path / "qrels").is_dir():
        return True
    return bool(part_files(path, (CORPUS, "documents")) and part_files(path, ("queries",)))


def part_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """The file of a name, its shards, or the files of a folder of that name; none if there is none.

    Where a name stands for several kinds of file, plain ones come before packed ones, and lines
    before columns.
    """
    for name in names:
        found = [file for file in data_files(folder) if _is_called(file, name)]
        found = found or data_files(folder / name)
        if found:
            return _of_best_kind(found, KINDS)
    return []


def label_files(folder: Path) -> list[Path]:
    """Judgements of ArcticTraining; none if there are none."""
    return part_files(folder, LABELS)


def qrel_files(folder: Path, split: str) -> list[Path]:
    """The judgements of a split.

    Raises:
        DataError: if there are none; names the splits that are there.
    """
    by_split: dict[str, list[Path]] = {}
    for name in QREL_FOLDERS:
        for file in _qrels_in(folder / name):
            by_split.setdefault(_stem(file), []).append(file)
        if split in by_split:
            return _of_best_kind(by_split[split], QREL_KINDS)
    flat = [file for file in _qrels_in(folder) if _is_called(file, f"qrels.{split}")]
    if flat:
        return _of_best_kind(flat, QREL_KINDS)
    splits = ", ".join(sorted(by_split)) or "none"
    raise DataError(
        f"{folder / 'qrels' / split}.tsv: split = {split}; expected one of the splits in the "
        f"folder: {splits}. Correct split or add the file."
    )


def _qrels_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        file for file in folder.iterdir() if file.is_file() and kind_of(file) in QREL_KINDS
    )


def _is_called(file: Path, name: str) -> bool:
    return _stem(file).lower() == name.lower()


def _stem(file: Path) -> str:
    """Name without suffixes, and without the number of a shard: `dev` of `dev-00000-of-00001`."""
    stem = Path(file.stem).stem if file.suffix.lower() in compressed.SUFFIXES else file.stem
    head, _, shards = stem.partition("-0")
    return head if shards and "-of-0" in stem else stem


def _of_best_kind(files: Sequence[Path], kinds: Sequence[str]) -> list[Path]:
    """The files of the first kind, plain ones first."""

    def rank(file: Path) -> tuple[bool, int]:
        return file.suffix.lower() in compressed.SUFFIXES, kinds.index(kind_of(file))

    best = min(map(rank, files))
    return [file for file in files if rank(file) == best]
