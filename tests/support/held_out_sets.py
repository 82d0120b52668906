"""Small held-out sets of the evaluation kinds that are no task, in this project's own layouts."""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.support.data_files import write_jsonl
from trainer.data.evalsets import EvalSet, open_eval_set
from trainer.recipe.kind import Side
from trainer.recipe.schema import DataRecipe, EvalSetRecipe

D = 24
LABELS = ("red", "green", "blue", "grey")
KINDS = ("classification", "clustering", "pair_classification", "reranking", "bitext")


def vector_of(text: str, size: int = D) -> Tensor:
    """A random unit vector, always the same one.

    Texts that begin with one word lie together, and a text lies by itself with ` x` at its end.
    """
    total = torch.zeros(size)
    for part in (text.split()[0], f"stem of {text.removesuffix(' x')}", text):
        seed = int.from_bytes(hashlib.sha256(part.encode()).digest()[:6], "big")
        total += torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return normalize(total, dim=0)


class Embedder:
    """Gives each text its vector; notes how often, and on which side, each was embedded."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, Side]] = Counter()

    def __call__(self, texts: Sequence[str], *, side: Side) -> Tensor:
        self.seen.update((text, side) for text in texts)
        return torch.stack([vector_of(text) for text in texts])


def write_sets(
    folder: Path,
    *,
    labels: Sequence[str] = LABELS,
    words: Sequence[str] = LABELS,
    seed: int = 0,
) -> dict[str, Path]:
    """A set of each kind, by kind; texts are a label and words."""
    rng = random.Random(seed)

    def text(label: str) -> str:
        return " ".join([label, *(rng.choice(words) for _ in range(3)), f"{rng.random():.6f}"])

    rows = [(text(label), label) for label in labels for _ in range(20)]
    rng.shuffle(rows)
    labelled = [{"text": one, "label": label} for one, label in rows]
    pairs = [
        {"text1": one, "text2": text(rng.choice([label, label, *labels])), "label": 0}
        for one, label in rows[:60]
    ]
    for pair in pairs:
        pair["label"] = int(str(pair["text1"]).split()[0] == str(pair["text2"]).split()[0])
    candidates = [
        {
            "query": one,
            "positives": [text(label) for _ in range(rng.randint(1, 3))],
            "negatives": [text(rng.choice(labels)) for _ in range(rng.randint(1, 12))],
        }
        for one, label in rows[:25]
    ]
    bitext = [{"text1": one, "text2": one + " x"} for one, _ in rows[:40]]
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "classes" / "train.jsonl", labelled[:50])
    write_jsonl(folder / "classes" / "test.jsonl", labelled[50:])
    return {
        "classification": folder / "classes",
        "clustering": write_jsonl(folder / "clusters.jsonl", labelled),
        "pair_classification": write_jsonl(folder / "pairs.jsonl", pairs),
        "reranking": write_jsonl(folder / "candidates.jsonl", candidates),
        "bitext": write_jsonl(folder / "bitext.jsonl", bitext),
    }


def opened(kind: str, path: Path, **changes: str) -> EvalSet:
    """A set of a kind, opened."""
    recipe = EvalSetRecipe(name="held", task=kind, path=str(path), **changes)  # type: ignore[arg-type]
    return open_eval_set(recipe, DataRecipe(sources=()))
