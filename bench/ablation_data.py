"""Training files and held-out subsets of the ablation, from public sets; it must not import torch.

STS-B comes in the order of its genres: one of them can be left out of training, and is scored as
the domain that training did not see. SciFact is that for retrieval.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from trainer.errors import DataError
from trainer.recipe.schema import EvalSetRecipe

Genre = Literal["captions", "forums", "news"]
GENRES: Mapping[Genre, Mapping[str, slice]] = {
    "captions": {"train": slice(0, 2000), "dev": slice(0, 625)},
    "forums": {"train": slice(2000, 2450), "dev": slice(625, 1000)},
    "news": {"train": slice(2450, None), "dev": slice(1000, None)},
}
"""Where each genre of STS-B stands, by split."""
POSITIVE_SCORE = 4.0
"""STS pairs from this score on, of 5, are positives for InfoNCE."""
IR_SOURCES = {"medquad": "medquad", "squad": "squad_sent"}
"""Name here and folder there of the retrieval sets that are trained on."""

Rows = list[dict[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class HeldOutSize:
    """How much of the held-out sets is scored."""

    pairs: int
    """Of each of the two STS sets."""
    queries: int
    """Of each retrieval set."""
    documents: int
    """Corpus of each: what the queries need, filled up at random."""
    tokens: int
    """Longest text; longer ones are cut, for all models alike."""


FULL = HeldOutSize(pairs=500, queries=160, documents=500, tokens=256)
"""Texts as long as the backbone's own folder says."""
QUICK = HeldOutSize(pairs=8, queries=2, documents=10, tokens=64)
"""Sizes that show nothing but that it runs."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One scored set."""

    name: str
    task: str
    """`sts` or `ir`."""
    domain: str
    """`in` or `out` of what is trained on."""

    @property
    def metric(self) -> str:
        """The number that is compared."""
        return "spearman" if self.task == "sts" else "ndcg_at_10"

    def recipe(self, folder: Path) -> EvalSetRecipe:
        """As an evaluation set."""
        if self.task == "sts":
            path = str(folder / f"{self.name}.jsonl")
            return EvalSetRecipe(name=self.name, task="sts", path=path, score_range=(0, 5))
        return EvalSetRecipe(name=self.name, task="ir", path=str(folder / self.name))


def held_out_sets(left_out: Genre | None) -> tuple[HeldOut, ...]:
    """The scored sets; with no genre left out, news is a set of its own all the same."""
    return (
        HeldOut(name="sts_general", task="sts", domain="in"),
        HeldOut(name=f"sts_{left_out or 'news'}", task="sts", domain="out" if left_out else "in"),
        HeldOut(name="medquad", task="ir", domain="in"),
        HeldOut(name="squad", task="ir", domain="in"),
        HeldOut(name="scifact", task="ir", domain="out"),
    )


def prepare(data: Path, folder: Path, size: HeldOutSize, left_out: Genre | None) -> None:
    """Write all files of the ablation, the same at every call; what is there is left as it is.

    Args:
        data: holds `stsb_en.{train,dev}.jsonl` and BEIR folders `medquad`, `squad_sent`, `scifact`.
        folder: where `*.train.jsonl` and `held_out/` go.
        size: of the held-out sets.
        left_out: genre of STS-B that is not trained on.

    Raises:
        DataError: if a set is missing.
    """
    held_out = folder / "held_out"
    held_out.mkdir(parents=True, exist_ok=True)
    pairs, dev = (_read(data / f"stsb_en.{split}.jsonl") for split in ("train", "dev"))
    if left_out:
        _, pairs = _parted(pairs, GENRES[left_out]["train"])
    _write(folder / "stsb.train.jsonl", pairs)
    apart = left_out or "news"
    genre, general = _parted(dev, GENRES[apart]["dev"])
    for name, rows in {"sts_general": general, f"sts_{apart}": genre}.items():
        _write(held_out / f"{name}.jsonl", _drawn(rows, size.pairs, name))
    sources = {name: _ir_rows(data / place) for name, place in IR_SOURCES.items()}
    for name, rows in sources.items():
        _write(folder / f"{name}.train.jsonl", rows)
    _write(folder / "mixed.train.jsonl", _pool(pairs, sources))
    for name, place in {**IR_SOURCES, "scifact": "scifact"}.items():
        _write_subset(data / place, held_out / name, size)


def prepare_choosing(data: Path, folder: Path, size: HeldOutSize) -> tuple[Path, ...]:
    """Write sets by which a merge is chosen: nothing of them is trained on or scored.

    Args:
        data: as of `prepare`.
        folder: where they go.
        size: of the scored sets, and of these.

    Returns:
        Each set: other pairs of STS-B, other queries of MedQuAD and SQuAD, and those of SciFact's
        training split, on which no model of the ablation is trained.

    Raises:
        DataError: if a set is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _, general = _parted(_read(data / "stsb_en.dev.jsonl"), GENRES["news"]["dev"])
    scored = _drawn(general, size.pairs, "sts_general")
    others = [row for row in general if row not in scored]
    _write(folder / "pairs.jsonl", _drawn(others, size.pairs, "pairs"))
    for name, place in IR_SOURCES.items():
        _write_subset(data / place, folder / name, size, besides=_scored(data / place, size))
    # twice as many as are scored: what is lost is less than what is gained
    more = replace(size, queries=2 * size.queries)
    _write_subset(data / "scifact", folder / "scifact", more, split="train")
    return (folder / "pairs.jsonl", *(folder / name for name in (*IR_SOURCES, "scifact")))


def _parted(rows: Rows, part: slice) -> tuple[Rows, Rows]:
    """The rows of a part, and the others."""
    chosen = rows[part]
    return chosen, rows[: part.start] + rows[part.start + len(chosen) :]


def _pool(pairs: Rows, sources: Mapping[str, Rows]) -> Rows:
    """As many rows of each retrieval set as the smallest has, and the similar pairs."""
    count = min(map(len, sources.values()))
    pool = [row for name, rows in sources.items() for row in _drawn(rows, count, name)]
    return pool + [
        {"query": pair["text1"], "positives": [pair["text2"]]}
        for pair in pairs
        if pair["score"] >= POSITIVE_SCORE
    ]


def _ir_rows(folder: Path) -> Rows:
    """The judged training queries of a BEIR folder with positives and mined negatives."""
    corpus, queries = _texts(folder / "corpus.jsonl"), _texts(folder / "queries.jsonl")
    mined = {
        row["query_id"]: row["negatives"] for row in _read(folder / "hard_negatives.train.jsonl")
    }
    return [
        {
            "query": queries[query],
            "positives": [corpus[one] for one in gains],
            "negatives": [corpus[one] for one in mined.get(query, ()) if one not in gains],
        }
        for query, gains in _qrels(folder / "qrels" / "train.tsv").items()
    ]


def _scored(source: Path, size: HeldOutSize) -> list[str]:
    """Development queries of a BEIR folder that are scored."""
    return _drawn(sorted(_qrels(source / "qrels" / "dev.tsv")), size.queries, source.name)


def _write_subset(
    source: Path,
    target: Path,
    size: HeldOutSize,
    besides: Sequence[str] = (),
    split: str = "dev",
) -> None:
    """A BEIR folder of some queries of a split, none of `besides`, and a part of the corpus."""
    qrels = _qrels(source / "qrels" / f"{split}.tsv")
    chosen = _drawn(sorted(qrels.keys() - set(besides)), size.queries, source.name)
    corpus = _read(source / "corpus.jsonl")
    needed = {document for query in chosen for document in qrels[query]}
    others = [row for row in corpus if row["_id"] not in needed]
    count = max(0, size.documents - len(needed))
    kept = [row for row in corpus if row["_id"] in needed] + _drawn(others, count, source.name)
    (target / "qrels").mkdir(parents=True, exist_ok=True)
    _write(target / "corpus.jsonl", kept)
    wanted = set(chosen)
    _write(
        target / "queries.jsonl",
        [row for row in _read(source / "queries.jsonl") if row["_id"] in wanted],
    )
    lines = [f"{query}\t{one}\t{gain}" for query in chosen for one, gain in qrels[query].items()]
    text = "\n".join(["query-id\tcorpus-id\tscore", *lines, ""])
    _write_text(target / "qrels" / "dev.tsv", text)


def _qrels(file: Path) -> dict[str, dict[str, int]]:
    """Positive gains by query and document."""
    found: dict[str, dict[str, int]] = {}
    for line in _text(file).splitlines()[1:]:
        query, document, gain = line.split("\t")
        if int(gain) > 0:
            found.setdefault(query, {})[document] = int(gain)
    return found


def _texts(file: Path) -> dict[str, str]:
    """Texts of a BEIR file by id, with their titles."""
    return {row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in _read(file)}


def _read(file: Path) -> Rows:
    return [json.loads(line) for line in _text(file).splitlines()]


def _text(file: Path) -> str:
    """Content of a file.

    Raises:
        DataError: if it is missing.
    """
    if not file.is_file():
        raise DataError(
            f"ablation: {file} = missing; expected STS-B as stsb_en.train.jsonl and "
            "stsb_en.dev.jsonl, and BEIR folders medquad, squad_sent and scifact. Give --data."
        )
    return file.read_text(encoding="utf-8")


def _write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    _write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def _write_text(file: Path, text: str) -> None:
    """Leave a file as it is where it has the text: a run on another core may be reading it."""
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        partial = file.with_name(f".{file.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)


def _drawn(items: Sequence[T], count: int, key: str) -> list[T]:
    """At most so many items, always the same for a key, in their order."""
    if len(items) <= count:
        return list(items)
    chosen = sorted(random.Random(key).sample(range(len(items)), count))
    return [items[index] for index in chosen]
