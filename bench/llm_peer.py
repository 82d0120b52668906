"""Train a decoder with sentence-transformers on the ablation's sets, in a process of its own.

    python bench/llm_peer.py --recipe FILE --data FOLDER --output FOLDER --seed 1 --steps 60

Base, pooling, rate, batch and longest text are the recipe's. The base ends each text with its end
token, as this trainer's does, and has no chat template. `seconds` in the output folder gets the
seconds of a step, the mean over the run, of the trainer's own clock.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

# started by path, in a process of its own
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.ablation_runs import fit_peer, peer_sets
from bench.llm import make_base
from trainer.cli import ending_with_code
from trainer.recipe.load import load_recipe
from trainer.recipe.schema import Recipe

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TURNS = ("medquad", "stsb_0", "squad", "stsb_1")
"""Sets in the order of their turns: every second batch is of pairs."""
SECONDS = "seconds"
"""File with the seconds of a step."""
POOLINGS = {"last": "lasttoken", "mean": "mean", "weighted_mean": "weightedmean", "cls": "cls"}
"""Words of sentence-transformers for those of a recipe."""


def load_peer(base: Path, recipe: Recipe, max_tokens: int) -> "SentenceTransformer":
    """A folder of `make_base` as a model.

    Args:
        base: the folder.
        recipe: gives the pooling.
        max_tokens: of a text.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(base), max_seq_length=max_tokens)
    size = transformer.get_embedding_dimension()
    pooling = Pooling(size, pooling_mode=POOLINGS[recipe.model.pooling])
    modules = [transformer, pooling, Normalize()]
    return SentenceTransformer(modules=modules, device="cpu")


def main() -> int:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    shutil.rmtree(arguments.output, ignore_errors=True)
    arguments.output.mkdir(parents=True)
    make_base(recipe.model.path, arguments.output / "base", pooling=recipe.model.pooling)
    model = load_peer(arguments.output / "base", recipe, recipe.data.passage_max_tokens)
    sets = peer_sets(arguments.data, arguments.seed, TURNS, negatives=False)
    begun = time.monotonic()
    fit_peer(model, recipe, sets, arguments.output, seed=arguments.seed, steps=arguments.steps)
    seconds = (time.monotonic() - begun) / arguments.steps
    (arguments.output / SECONDS).write_text(f"{seconds:.3f}", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
