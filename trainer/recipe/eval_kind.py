"""What an evaluation kind is: its name, metrics, layout and prompts.

It must not know any kind; `trainer.recipe.eval_kinds` is the table of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.recipe.kind import Side


@dataclass(frozen=True, kw_only=True)
class EvalKind:
    """One kind of held-out set, as recipes, checks, reports and exports know it."""

    name: str
    """As in `eval.sets[].task` and `PATH:KIND`."""
    label: str
    """Its name in charts and tables."""
    layout: str
    """What stands at the path of a set, for messages."""
    metrics: Mapping[str, str]
    """Metrics with their labels, the main one first, which no other kind has as its main one;
    higher is better."""
    prompts: Mapping[Side, tuple[str, ...]]
    """The sides that its texts have. For each the names of an exported model's prompts, of which
    the first that the model has is put before these texts. The names and their order are mteb's,
    and names of the project's own come last."""
    split: str = "dev"
    """Which split of a set is scored where the recipe names none."""
    has_scores: bool = False
    """Whether its rows carry a score, so that `score_range` means something."""
    has_corpus: bool = False
    """Whether a set is a BEIR folder, queries and documents apart."""
    hub_task: str = "sentence-similarity"
    """What model cards of the Hugging Face hub call it, beside scores."""

    @property
    def main_metric(self) -> str:
        """The metric by which sets of this kind are compared and averaged."""
        return next(iter(self.metrics))
