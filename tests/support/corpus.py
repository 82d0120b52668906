"""A tiny word-level tokenizer, IR and STS files and a model folder, all seeded."""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from tests.support import tiny

WORDS = [f"w{i}" for i in range(tiny.VOCABULARY - 3)]


def save_tokenizer(folder: Path) -> None:
    """Words, an unknown, a pad and an end token; texts are not ended by the tokenizer itself."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<end>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder)


def save_byte_tokenizer(folder: Path, size: int) -> None:
    """A byte-level BPE as the Qwen and Llama 3 families have it, trained on the words."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<unk>", "<end>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 2, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder)


def sentence(rng: random.Random, low: int = 2, high: int = 20) -> str:
    """Some words."""
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save_corpus(folder: Path) -> None:
    """`ir.jsonl` of 40 records, `sts.jsonl` of 40 pairs, a BEIR folder `beir` of 30 documents."""
    rng = random.Random(0)
    write_lines(
        folder / "ir.jsonl",
        [
            {
                "query": sentence(rng, 2, 6),
                "positives": [sentence(rng) for _ in range(rng.randint(1, 3))],
                "negatives": [sentence(rng) for _ in range(rng.randint(0, 2))],
            }
            for _ in range(40)
        ],
    )
    write_lines(
        folder / "sts.jsonl",
        [
            {"text1": sentence(rng), "text2": sentence(rng), "score": rng.choice([0, 1, 2.5, 4, 5])}
            for _ in range(40)
        ],
    )
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "title": "", "text": sentence(rng)} for i in range(30)]
    queries = [{"_id": f"q{i}", "text": sentence(rng, 2, 5)} for i in range(8)]
    write_lines(beir / "corpus.jsonl", documents)
    write_lines(beir / "queries.jsonl", queries)
    judged = "".join(f"q{i}\td{3 * i}\t{1 + i % 2}\n" for i in range(8))
    (beir / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)


RECIPE = """
name: tiny
output_dir: {folder}/run
seed: 7
model:
  path: {folder}/model
  pooling: last
data:
  root: {folder}
  query_max_tokens: 12
  passage_max_tokens: 16
  workers: 0
  sources:
    - {{name: ir, task: ir, path: ir.jsonl, query_instruction: "w1 w2 ", passage_instruction: ""}}
    - {{name: sts, task: sts, path: sts.jsonl}}
tasks:
  ir: {{global_batch_size: 8, positives: 2, negatives: 1, temperature: 0.05}}
  sts: {{global_batch_size: 8}}
train:
  max_steps: 20
  learning_rate: 1.0e-3
engine:
  deepspeed: zero3_fp32.json
  max_tokens_per_chunk: 64
  gather: step
eval:
  every_steps: 10
  sets:
    - {{name: pairs, task: sts, path: sts.jsonl}}
    - {{name: docs, task: ir, path: beir, query_instruction: "w1 w2 "}}
checkpoint:
  every_steps: 10
"""


def make_workspace(folder: Path) -> Path:
    """Model, tokenizer, data and `recipe.yaml` in one folder; returns the recipe's path."""
    # two layers tell the first from the last; more only take longer
    config = tiny.qwen3_config(eos_token_id=2, pad_token_id=0, num_hidden_layers=2)
    tiny.save_model(config, folder / "model")
    save_tokenizer(folder / "model")
    save_corpus(folder)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return recipe
