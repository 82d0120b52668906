"""A tiny model with random weights, small data and a recipe for `tools/chaos.py`, all seeded."""

import json
import random
from pathlib import Path

WORDS = [f"w{i}" for i in range(94)]
NUM_ROWS = 64
RECIPE = """\
name: chaos
output_dir: {folder}/run
seed: {seed}
model: {{path: {folder}/model, pooling: last}}
data:
  root: {folder}
  query_max_tokens: 12
  passage_max_tokens: 16
  workers: 1
  sources:
    - {{name: ir, task: ir, path: ir.jsonl, query_instruction: "w1 w2 "}}
    - {{name: sts, task: sts, path: sts.jsonl}}
tasks:
  ir: {{global_batch_size: 8, positives: 1, negatives: 1, temperature: 0.05}}
  sts: {{global_batch_size: 8}}
train: {{max_steps: {steps}, learning_rate: 1.0e-3}}
engine: {{deepspeed: zero3_fp32.json, max_tokens_per_chunk: 64, timeout_minutes: 3}}
checkpoint: {{every_steps: 2, keep: 3}}
"""


def make_workspace(folder: Path, *, seed: int, steps: int) -> Path:
    """Write everything that a run needs; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_tokenizer(folder / "model")
    _save_model(folder / "model", seed)
    _save_data(folder, random.Random(seed))
    recipe = folder / "recipe.yaml"
    text = RECIPE.format(folder=folder, seed=seed, steps=steps)
    recipe.write_text(text, encoding="utf-8")
    return recipe


def _save_tokenizer(folder: Path) -> None:
    """One token a word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<end>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder)


def _save_model(folder: Path, seed: int) -> None:
    """Two decoder layers of 32."""
    import torch
    from transformers import AutoModel, Qwen3Config

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(WORDS) + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.15,
        attention_dropout=0.1,
        eos_token_id=2,
        pad_token_id=0,
    )
    AutoModel.from_config(config).save_pretrained(folder)


def _save_data(folder: Path, rng: random.Random) -> None:
    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    retrieval = [
        {"query": text(2, 6), "positives": [text(4, 16)], "negatives": [text(4, 16)]}
        for _ in range(NUM_ROWS)
    ]
    similarity = [
        {"text1": text(3, 12), "text2": text(3, 12), "score": rng.choice([0, 1, 2.5, 4, 5])}
        for _ in range(NUM_ROWS)
    ]
    for name, rows in (("ir", retrieval), ("sts", similarity)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
