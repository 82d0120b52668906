"""Are float32 matrix products faster by oneDNN than by MKL on this CPU, and are they the same?

    python tools/bench/products.py           # a minute on one idle core
    python tools/bench/products.py --json    # the last line is one JSON object

For the linear maps of SmolLM2-135M and of MiniLM, the forward product and both of the backward:
each kernel in turn, on one thread. `gflops` are 10^9 multiplications and additions a second, the
median over the rounds; the difference is that of the products, over the largest of them.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

# started by path, as the docs show
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from trainer.model.cpu_products import mm, reason_against

ROWS = 512
"""Tokens of a chunk."""
MAPS = {
    "SmolLM2, attention": (576, 576),
    "SmolLM2, into feed-forward": (576, 1536),
    "SmolLM2, out of it": (1536, 576),
    "MiniLM, attention": (384, 384),
    "MiniLM, into feed-forward": (384, 1536),
}
"""Inputs and outputs of a linear map."""
ROUNDS = 9
"""The first warms up."""
Product = Callable[[Tensor, Tensor], Tensor]


def measure(inputs: int, outputs: int) -> dict[str, float]:
    """Speed of both kernels on one linear map, forward and backward, and how far they differ."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(ROWS, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator)
    gradient = torch.randn(ROWS, outputs, generator=generator)
    pairs = [(texts, weight.t()), (gradient, weight), (gradient.t(), texts)]
    flops = len(pairs) * 2 * ROWS * inputs * outputs
    seconds: dict[str, list[float]] = {"mkl": [], "onednn": []}
    for _ in range(ROUNDS):
        for name, product in (("mkl", torch.mm), ("onednn", mm)):
            seconds[name].append(_timed(product, pairs))
    speeds = {name: flops / median(found[1:]) / 1e9 for name, found in seconds.items()}
    differences = [
        float((mm(*pair) - torch.mm(*pair)).abs().max() / torch.mm(*pair).abs().max())
        for pair in pairs
    ]
    return {**speeds, "ratio": speeds["onednn"] / speeds["mkl"], "difference": max(differences)}


def _timed(product: Product, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Seconds of one round of all products: enough of them to be measured."""
    started = perf_counter()
    for _ in range(5):
        for pair in pairs:
            product(*pair)
    return (perf_counter() - started) / 5


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measure(*shape) for name, shape in MAPS.items()}
    against = reason_against("auto")
    print(f"the trainer takes {'oneDNN' if against is None else f'MKL, as {against}'}\n")
    heads = ("MKL gflops", "oneDNN gflops", "ratio", "difference")
    print("{:28} {:>11} {:>14} {:>6} {:>11}".format("linear map", *heads))
    for name, one in found.items():
        print(
            f"{name:28} {one['mkl']:11.0f} {one['onednn']:14.0f} {one['ratio']:6.2f} "
            f"{one['difference']:11.1e}"
        )
    if arguments.json:
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
