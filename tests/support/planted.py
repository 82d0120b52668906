"""`trainer/run.py` with one gradient made wrong on its way to DeepSpeed; started as a script."""

import sys
from collections.abc import Iterator

from torch import Tensor, nn

from trainer.cli import ending_with_code
from trainer.engine import build
from trainer.engine.replica import Replica
from trainer.run import main

PLANTED = 19
"""Position among the tiny decoder's parameters of the second layer's up-projection."""


class PlantedTwin(Replica):
    """Makes one parameter's gradient too large by one part in a thousand."""

    def gradients(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        for position, (parameter, gradient) in enumerate(super().gradients()):
            yield parameter, gradient * 1.001 if position == PLANTED else gradient


if __name__ == "__main__":
    build.Replica = PlantedTwin
    sys.exit(ending_with_code(main))
