"""Tasks of mteb with the rows of a local set of this project's layouts; nothing is downloaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import mteb

TYPES = {
    "ir": ("Retrieval", "ndcg_at_10"),
    "sts": ("STS", "cosine_spearman"),
    "classification": ("Classification", "accuracy"),
    "clustering": ("Clustering", "v_measure"),
    "pair_classification": ("PairClassification", "cosine_ap"),
    "reranking": ("Reranking", "map_at_1000"),
    "bitext": ("BitextMining", "f1"),
}
"""mteb's type of task and main score, by evaluation kind."""


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def local_task(kind: str, path: Path) -> Any:
    """A task of an evaluation kind with the rows of a set."""
    task_type, main_score = TYPES[kind]
    metadata = mteb.TaskMetadata(
        name=f"Local{task_type}", description="Local.", type=task_type, main_score=main_score,
        dataset={"path": "local/none", "revision": "none"}, eval_langs=["eng-Latn"],
    )  # fmt: skip
    base, data, changes = MAKERS[kind](path)
    made = type(f"Local{task_type}", (base,), {"metadata": metadata, **changes})()
    made.dataset, made.data_loaded = data, True
    return made


Made = tuple[type, Any, dict[str, Any]]
"""Class of mteb, data, and what the task changes."""


def _columns(rows: Sequence[dict[str, Any]], **names: str) -> Any:
    """A set of `datasets` with columns by mteb's names."""
    return datasets.Dataset.from_dict(
        {new: [row[old] for row in rows] for new, old in names.items()}
    )


def _test(rows: Sequence[dict[str, Any]], **names: str) -> Any:
    return datasets.DatasetDict({"test": _columns(rows, **names)})


def _classification(path: Path) -> Made:
    parts = {name: rows_of(path / f"{name}.jsonl") for name in ("train", "test")}
    data = {name: _columns(rows, text="text", label="label") for name, rows in parts.items()}
    return mteb.abstasks.AbsTaskClassification, datasets.DatasetDict(data), {}


def _clustering(path: Path) -> Made:
    data = _test(rows_of(path), sentences="text", labels="label")
    return mteb.abstasks.AbsTaskClustering, data, {"max_fraction_of_documents_to_embed": None}


def _pair_classification(path: Path) -> Made:
    data = _test(rows_of(path), sentence1="text1", sentence2="text2", labels="label")
    return mteb.abstasks.AbsTaskPairClassification, data, {}


def _bitext(path: Path) -> Made:
    data = _test(rows_of(path), sentence1="text1", sentence2="text2")
    return mteb.abstasks.AbsTaskBitextMining, data, {}


def _sts(path: Path) -> Made:
    data = _test(rows_of(path), sentence1="text1", sentence2="text2", score="score")
    return mteb.abstasks.AbsTaskSTS, data, {"min_score": 0, "max_score": 1}


def _retrieval(path: Path) -> Made:
    """A BEIR folder with judgements of the split `dev`."""
    queries, corpus = (
        [{"id": row["_id"], "text": row["text"]} for row in rows_of(path / f"{name}.jsonl")]
        for name in ("queries", "corpus")
    )
    judged: dict[str, dict[str, int]] = {}
    for line in (path / "qrels" / "dev.tsv").read_text().splitlines()[1:]:
        query, document, gain = line.split("\t")
        judged.setdefault(query, {})[document] = int(gain)
    made = {
        "queries": datasets.Dataset.from_list(queries),
        "corpus": datasets.Dataset.from_list([row | {"title": ""} for row in corpus]),
        "relevant_docs": judged,
        "top_ranked": None,
    }
    return mteb.abstasks.AbsTaskRetrieval, {"default": {"test": made}}, {}


def _reranking(path: Path) -> Made:
    """Queries with candidates as mteb makes them of its older rows."""
    older = mteb.abstasks.text.reranking.AbsTaskReranking
    made: dict[str, Any] = {"queries": [], "corpus": [], "relevant_docs": {}, "top_ranked": {}}
    for number, row in enumerate(rows_of(path)):
        example = {"query": row["query"], "positive": row["positives"]}
        example["negative"] = row["negatives"]
        one = older._process_example(None, example, "test", number)
        query, documents = one["query_id"], one["doc_ids"]
        made["queries"].append({"id": query, "text": one["query"]})
        made["corpus"] += [
            {"id": name, "text": text, "title": ""}
            for name, text in zip(documents, one["doc_texts"], strict=True)
        ]
        made["relevant_docs"][query] = dict(zip(documents, one["relevance_scores"], strict=True))
        made["top_ranked"][query] = documents
    made |= {name: datasets.Dataset.from_list(made[name]) for name in ("queries", "corpus")}
    return mteb.abstasks.AbsTaskRetrieval, {"default": {"test": made}}, {}


MAKERS = {
    "ir": _retrieval,
    "sts": _sts,
    "classification": _classification,
    "clustering": _clustering,
    "pair_classification": _pair_classification,
    "reranking": _reranking,
    "bitext": _bitext,
}
