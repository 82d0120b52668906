"""Small data files, recipes and tokenizers for tests of the data room."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from trainer.data.sources import open_source
from trainer.recipe.ir import IrRecipe
from trainer.recipe.labels import LabelsRecipe
from trainer.recipe.schema import DataRecipe, ModelRecipe, Recipe, SourceRecipe, TrainRecipe
from trainer.recipe.sts import StsRecipe

GOOD_IR = {"query": "q", "positives": ["p"], "negatives": ["n"]}
GOOD_STS = {"text1": "a", "text2": "b", "score": 1.0}


def write_jsonl(path: Path, rows: Iterable[object]) -> Path:
    """One JSON value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_beir(folder: Path, *, corpus: Mapping[str, str], queries: Mapping[str, str]) -> Path:
    """Corpus and queries of a BEIR folder; qrels are the test's."""
    write_jsonl(
        folder / "corpus.jsonl",
        [{"_id": name, "title": "", "text": text} for name, text in corpus.items()],
    )
    write_jsonl(
        folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()]
    )
    return folder


def write_qrels(folder: Path, split: str, lines: Iterable[tuple[str, str, object]]) -> Path:
    """Judgements with a header."""
    path = folder / "qrels" / f"{split}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(f"{query}\t{document}\t{gain}\n" for query, document, gain in lines)
    path.write_text("query-id\tcorpus-id\tscore\n" + body)
    return path


def data_recipe(
    sources: Iterable[SourceRecipe],
    *,
    data: Mapping[str, Any] | None = None,
    ir: Mapping[str, Any] | None = None,
    sts: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
    seed: int = 1,
    pooling: Any = "last",
) -> Recipe:
    """A recipe with the given sources and changes to its data and task sections."""
    return Recipe(
        name="test",
        output_dir="unused",
        model=ModelRecipe(path="unused", pooling=pooling),
        data=DataRecipe(sources=tuple(sources), **(data or {})),
        tasks={
            "ir": IrRecipe(**({"global_batch_size": 4} | dict(ir or {}))),
            "sts": StsRecipe(**({"global_batch_size": 4} | dict(sts or {}))),
            "labels": LabelsRecipe(**({"global_batch_size": 4} | dict(labels or {}))),
        },
        train=TrainRecipe(max_steps=1),
        seed=seed,
    )


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as decoders of the Qwen family have; adds nothing by itself."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat sat on the mat and the dog ran"] * 3, trainer)
    names = special or {"pad_token": "<pad>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def ir_source(path: object, **changes: Any) -> SourceRecipe:
    """An IR source named `set`."""
    return SourceRecipe(name="set", task="ir", path=str(path), **changes)


def sts_source(path: object, **changes: Any) -> SourceRecipe:
    """An STS source named `set`."""
    return SourceRecipe(name="set", task="sts", path=str(path), **changes)


def labels_source(path: object, **changes: Any) -> SourceRecipe:
    """A source of labelled texts named `set`."""
    return SourceRecipe(name="set", task="labels", path=str(path), **changes)


def all_records(recipe: SourceRecipe) -> list[Any]:
    """Every record of a source, in order."""
    source = open_source(recipe, ".")
    return [source.record(row) for row in range(len(source))]
