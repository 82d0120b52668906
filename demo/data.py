"""Make everything the demo trains on: data, tokenizer and a small model with random weights.

Run from the project's root: `python -m demo.data --output runs/demo`. It writes

- `data/docs.jsonl`: the docstrings of the installed packages (`demo.docs`);
- `data/train.ir.jsonl`: a summary, the docstring it opens, and sibling docstrings of its module;
- `data/train.sts.jsonl`: pairs of summaries with a silver score (`demo.sts`);
- `data/held_out/` (BEIR layout) and `data/held_out.sts.jsonl`: the same from held-out modules;
- `data/classes/`, `data/clusters.jsonl` and rows to train on, `data/labels.jsonl` (`demo.labels`);
- `data/matches.jsonl`, `data/ranked.jsonl`, `data/code.jsonl`: held-out sets of the other kinds
  (`demo.kinds`);
- `base/`: tokenizer and model, an ordinary transformers folder.

What is there and was made from the same packages is kept. It must not train.
"""

import argparse
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from demo.docs import PACKAGES, Doc, collect_docs
from demo.kinds import write_kinds
from demo.labels import write_labelled
from demo.split import by_summary, split_docs, write_jsonl
from demo.sts import silver_pairs

SEED = 42
MAX_NEGATIVES = 3
"""Sibling docstrings kept per record."""
PAIRS_PER_KIND = {"train": 2_000, "held_out": 250}
"""Silver pairs drawn of each of the seven kinds."""

VOCABULARY = 8_192
END_TOKEN = "<|endoftext|>"
HIDDEN_SIZE = 128
NUM_LAYERS = 2

RECIPE = "2"
"""Raised when what is made here changes, so that older data is made anew."""


def ir_records(docs: Sequence[Doc], seed: int) -> list[dict[str, Any]]:
    """`query, positives, negatives` of each summary; negatives are siblings in the module."""
    rng = random.Random(seed)
    siblings: dict[str, list[Doc]] = defaultdict(list)
    for doc in docs:
        siblings[doc.module].append(doc)
    records = []
    for summary, answers in by_summary(docs).items():
        others = [d.text for d in siblings[answers[0].module] if d.summary != summary]
        records.append(
            {
                "query": summary,
                "positives": [doc.text for doc in answers],
                "negatives": rng.sample(others, min(MAX_NEGATIVES, len(others))),
            }
        )
    return records


def sts_records(docs: Sequence[Doc], per_kind: int, seed: int) -> list[dict[str, Any]]:
    """`text1, text2, score` of silver pairs."""
    return [
        {
            "text1": docs[pair.first].summary,
            "text2": docs[pair.second].summary,
            "score": pair.score,
        }
        for pair in silver_pairs(docs, per_kind, seed)
    ]


def doc_row(doc: Doc) -> dict[str, Any]:
    """What `docs.jsonl` keeps of a doc; a BEIR document with two fields more."""
    return {
        "_id": doc.location,
        "title": "",
        "text": doc.text,
        "summary": doc.summary,
        "module": doc.module,
    }


def write_beir(folder: Path, docs: Sequence[Doc]) -> None:
    """Corpus of all docs; each distinct summary is a query for the docs that it opens."""
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", map(doc_row, docs))
    questions = list(by_summary(docs).items())
    queries = [{"_id": f"q{at}", "text": summary} for at, (summary, _) in enumerate(questions)]
    write_jsonl(folder / "queries.jsonl", queries)
    judged = [f"q{at}\t{d.location}\t1\n" for at, (_, docs_) in enumerate(questions) for d in docs_]
    header = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "dev.tsv").write_text(header + "".join(judged), encoding="utf-8")


def write_data(folder: Path, docs: Sequence[Doc]) -> str:
    """Write all data files; returns one line that counts them."""
    train, held_out = split_docs(docs)
    write_jsonl(folder / "docs.jsonl", map(doc_row, docs))
    write_jsonl(folder / "train.ir.jsonl", ir_records(train, SEED))
    for side, part in (("train", train), ("held_out", held_out)):
        pairs = sts_records(part, PAIRS_PER_KIND[side], SEED)
        write_jsonl(folder / f"{side}.sts.jsonl", pairs)
    write_beir(folder / "held_out", held_out)
    write_labelled(folder, map(doc_row, docs))
    write_kinds(folder, held_out, SEED)
    modules = len({doc.module for doc in held_out})
    return f"{len(train)} docs to train on, {len(held_out)} of {modules} modules held out"


def train_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Byte-level BPE, saved as a transformers tokenizer that ends texts with its end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {END_TOKEN}", special_tokens=[(END_TOKEN, backend.token_to_id(END_TOKEN))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END_TOKEN, pad_token=END_TOKEN
    )
    tokenizer.save_pretrained(folder)


def make_model(folder: Path) -> None:
    """A two-layer Qwen3-style decoder with seeded random weights, 1.3 million of them."""
    import torch
    from transformers import AutoModel, Qwen3Config
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=HIDDEN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HIDDEN_SIZE // 4,
        max_position_embeddings=512,
        initializer_range=HIDDEN_SIZE**-0.5,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(SEED)
    model = AutoModel.from_config(config)
    # Small embeddings beside full-size layers: at first the end token's vector is then what
    # attention gathers from the text, not the end token itself, and learning starts at once.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.02)
    model.save_pretrained(folder)


def identity() -> dict[str, str]:
    """What decides the content: releases of the packages read, and of this recipe."""
    import platform

    return {
        "recipe": RECIPE,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def is_made(folder: Path) -> bool:
    """Whether data and model of the same packages are there, whole."""
    marker = folder / "data" / "made_from.json"
    if not marker.is_file() or not (folder / "base" / "config.json").is_file():
        return False
    return bool(json.loads(marker.read_text(encoding="utf-8")) == identity())


def make(folder: Path, num_processes: int) -> str:
    """Make data and base model in a folder, replacing older ones; returns one line on them."""
    data, base = folder / "data", folder / "base"
    for part in (data, base):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    summary = write_data(data, collect_docs(num_processes))
    records = (json.loads(line) for line in (data / "train.ir.jsonl").open(encoding="utf-8"))
    train_tokenizer((t for r in records for t in (r["query"], *r["positives"])), base)
    make_model(base)
    # Written last: what is interrupted before is made again.
    (data / "made_from.json").write_text(json.dumps(identity(), indent=2) + "\n", encoding="utf-8")
    return summary


def main() -> None:
    """Make what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    if is_made(arguments.output):
        print(f"{arguments.output}: data and base model are there, made from the same packages.")
    else:
        print(make(arguments.output, arguments.processes))


if __name__ == "__main__":
    main()
