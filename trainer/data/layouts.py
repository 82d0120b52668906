"""Which files of a folder hold which rows, in BEIR's layout, MTEB's, and akin ones.

Known are BEIR's own (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), the same packed or columnar,
MTEB's on the hub (folders or shards of these names, qrels also under `default` or `data`, and
candidates under `top_ranked`; or files that are named by splits), and ArcticTraining's (documents,
queries, labels). It must not open files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data import compressed
from trainer.data.tables import CORPUS, KINDS, SHARD, data_files, kind_of, stem_of
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
SPLITS = ("train", "test", "dev", "validation", "val", "valid")
"""Names by which files are known to be splits of one set, not parts of one table."""
ROW_FOLDERS = (".", "data", "default")
"""Where in a folder files that are named by splits lie."""
CORPORA, QUERIES = (CORPUS, "documents"), ("queries", "query")
PART_FOLDERS = (*QREL_FOLDERS, *LABELS, *CORPORA, *QUERIES, "top_ranked", *SPLITS)
"""Folders inside that of a set whose files are read as its parts."""
CARD = "README.md"
"""What a set says of itself."""
VECTORS = ".npy"
"""Suffix of a teacher's vectors, which lie in a folder with the texts that they are of."""
DEFAULT = "default"
"""What a card calls a set that has no name of its own."""
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""Files that `datasets` writes beside rows."""

FilesBySplit = Mapping[str, Sequence[Path]]


@dataclass(frozen=True, kw_only=True)
class SetFolder:
    """A folder of a published set, which may hold several, such as one a language."""

    path: Path
    """Absolute."""
    configuration: str = ""
    """Which of the sets; empty: the only one."""
    named: Mapping[str, FilesBySplit] = field(default_factory=dict)
    """Files by configuration and split, as far as the card of the folder names them."""

    def part(self, names: Iterable[str], split: str | None = None) -> list[Path]:
        """The files of one of the parts that a set has beside each other, such as its corpus.

        Args:
            names: of the part; the first that is there counts.
            split: whose files are taken where a part has some for each split.
        """
        prefix = f"{self.configuration}-" if self.configuration else ""
        for name in (f"{prefix}{name}" for name in names):
            files = self.named.get(name, {})
            found = _of_split(files, split) or part_files(self.path, (name,), split)
            if found:
                return found
        return []

    def rows(self, split: str) -> list[Path]:
        """The files of a split, or of the only one; none where files are not named by splits.

        Raises:
            DataError: if there are several splits and this is none of them.
        """
        files = self.splits()
        found = _of_split(files, split)
        if not found and len(set(files) & set(SPLITS)) > 1:
            raise DataError(
                f"{self.path}: split = {split}; expected one of {', '.join(sorted(files))}. "
                "Correct split, or give the path of a file."
            )
        return found

    def splits(self) -> FilesBySplit:
        """Files of rows by split, from the card or by their names; those of one kind alone."""
        below = self.path / self.configuration
        files = self.named.get(self.configuration or DEFAULT, {})
        for place in (below / name for name in ROW_FOLDERS):
            files = files or by_stem(_row_files(place))
            files = files or {name: _row_files(place / name) for name in SPLITS}
            files = {name.lower(): found for name, found in files.items() if found}
        return {name: _of_best_kind(found, KINDS) for name, found in files.items()}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The files of one folder; a part that is missing is named as BEIR does."""

    corpus: Sequence[Path]
    """Documents."""
    queries: Sequence[Path]
    """Queries."""


def find_layout(place: SetFolder, split: str) -> Layout:
    """The parts of a folder."""
    folder = place.path
    corpus = place.part(CORPORA, split) or [folder / "corpus.jsonl"]
    queries = place.part(QUERIES, split) or [folder / "queries.jsonl"]
    return Layout(corpus=corpus, queries=queries)


def is_beir_folder(path: Path) -> bool:
    """Whether a path looks like a BEIR folder."""
    if (path / "qrels").is_dir():
        return True
    return bool(part_files(path, (CORPUS, "documents")) and part_files(path, ("queries",)))


def part_files(folder: Path, names: Iterable[str], split: str | None = None) -> list[Path]:
    """The file of a name, its shards, or the files of a folder of that name; none if there is none.

    Where a name stands for several kinds of file, plain ones come before packed ones, and lines
    before columns.

    Args:
        folder: where to look.
        names: the first that is there counts.
        split: whose files of a folder are taken, where some of them are called so; None: all.
    """
    for name in names:
        found = [file for file in data_files(folder) if _is_called(file, name)]
        found = found or _row_files(folder / name)
        found = found or [file for file in data_files(folder) if _is_shard(file, name)]
        if found:
            of_split = [file for file in found if split is not None and _is_called(file, split)]
            return _of_best_kind(of_split or found, KINDS)
    return []


def is_data_name(name: str) -> bool:
    """Whether a file is one of those that are read of a folder, by its name alone."""
    kind = kind_of(Path(name))
    return name == CARD or kind in (*KINDS, *QREL_KINDS, VECTORS)


def label_files(folder: Path) -> list[Path]:
    """Judgements of ArcticTraining; none if there are none."""
    return part_files(folder, LABELS)


def qrel_files(place: SetFolder, split: str) -> list[Path]:
    """The judgements of a split.

    Raises:
        DataError: if there are none; names the splits that are there.
    """
    by_split: dict[str, list[Path]] = {}
    for found in _qrel_places(place):
        for name, files in found.items():
            by_split.setdefault(name, []).extend(files)
        if split in by_split:
            return _of_best_kind(by_split[split], QREL_KINDS)
    flat = [file for file in _qrels_in(place.path) if _is_called(file, f"qrels.{split}")]
    if flat:
        return _of_best_kind(flat, QREL_KINDS)
    splits = ", ".join(sorted(by_split)) or "none"
    raise DataError(
        f"{place.path / 'qrels' / split}.tsv: split = {split}; expected one of the splits in the "
        f"folder: {splits}. Correct split or add the file."
    )


def _qrel_places(place: SetFolder) -> Iterator[FilesBySplit]:
    """Judgements by split, from the card and from the folders that may hold them."""
    prefix = f"{place.configuration}-" if place.configuration else ""
    names = [f"{prefix}{name}" for name in QREL_FOLDERS if name != DEFAULT or not prefix]
    yield from (place.named[name] for name in names if name in place.named)
    yield from (by_stem(_qrels_in(place.path / name)) for name in names)


def short_name(file: Path) -> str:
    """What messages call a file of a set: its name, below its folder where that is a split's."""
    return f"{file.parent.name}/{file.name}" if stem_of(file).lower() in SPLITS else file.name


def _qrels_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        file for file in folder.iterdir() if file.is_file() and kind_of(file) in QREL_KINDS
    )


def by_stem(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Files by what they are called, suffixes and numbers of shards aside."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(stem_of(file), []).append(file)
    return found


def _of_split(files: FilesBySplit, split: str | None) -> list[Path]:
    """The files of a split, or those of the only one."""
    found = files.get(split or "") or ()
    if not found and len(files) == 1:
        found = next(iter(files.values()))
    return _of_best_kind(found, KINDS) if found else []


def _row_files(folder: Path) -> list[Path]:
    """The files of a folder that hold rows, without those that describe them."""
    return [file for file in data_files(folder) if file.name not in DESCRIPTIONS]


def _is_called(file: Path, name: str) -> bool:
    return stem_of(file).lower() == name.lower()


def _is_shard(file: Path, name: str) -> bool:
    return SHARD.sub("", stem_of(file)).lower() == name.lower()


def _of_best_kind(files: Sequence[Path], kinds: Sequence[str]) -> list[Path]:
    """The files of the first kind, plain ones first."""

    def rank(file: Path) -> tuple[bool, int]:
        return file.suffix.lower() in compressed.SUFFIXES, kinds.index(kind_of(file))

    best = min(map(rank, files))
    return [file for file in files if rank(file) == best]
