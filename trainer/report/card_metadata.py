"""The front matter of a model card: what the Hugging Face hub and its clients read."""

from collections.abc import Iterator
from typing import Any

import yaml

from trainer.recipe.eval_kinds import EVAL_KINDS, metric_label
from trainer.report.card_facts import CardFacts, TrainedBy, finite_metrics
from trainer.report.read import main_by_size

TAGS = ("sentence-transformers", "sentence-similarity", "feature-extraction", "dense")
"""What sentence-transformers gives its own cards, so that the same searches find them."""
DIGITS = 6
"""Decimals of scores."""


def front_matter(facts: CardFacts) -> str:
    """The YAML block, with its lines of dashes."""
    content = {key: value for key, value in _keys(facts) if value}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n"


def _keys(facts: CardFacts) -> Iterator[tuple[str, Any]]:
    """Keys in the order of a card; what is empty is left out."""
    yield "library_name", "sentence-transformers"
    yield "pipeline_tag", "sentence-similarity"
    yield "tags", [*TAGS, *_extra_tags(facts)]
    yield from facts.base.inherited.items()
    if facts.base.hub is not None:
        yield "base_model", facts.base.hub
        yield "base_model_relation", relation(facts)
    if facts.trained_by is not None:
        yield "datasets", hub_sets(facts.trained_by)
        yield "model-index", _model_index(facts.name, facts.trained_by)


def _extra_tags(facts: CardFacts) -> list[str]:
    """What describes this export beside an embedder."""
    tags = {"peft": facts.exported.is_adapter, "merge": facts.merge is not None}
    return [tag for tag, holds in tags.items() if holds]


def relation(facts: CardFacts) -> str:
    """How the hub calls what was done with the base."""
    if facts.exported.is_adapter:
        return "adapter"
    return "finetune" if facts.merge is None else "merge"


def hub_sets(trained_by: TrainedBy) -> list[str]:
    """Ids of the hub's data sets among the sources, without their configurations."""
    found = (source.hub for source in trained_by.recipe.data.sources)
    return list(dict.fromkeys(hub.partition(":")[0] for hub in found if hub is not None))


def _model_index(name: str, trained_by: TrainedBy) -> list[dict[str, Any]]:
    """Scores of the exported parameters; empty without an evaluation."""
    results = [
        {
            "task": {"type": kind.hub_task, "name": kind.label},
            "dataset": dataset,
            "metrics": metrics,
        }
        for held_out in trained_by.recipe.eval.sets
        for kind in (EVAL_KINDS[held_out.task],)
        for dataset, metrics in _scored(trained_by, held_out.name)
        if metrics
    ]
    return [{"name": name, "results": results}] if results else []


def _scored(
    trained_by: TrainedBy, name: str
) -> Iterator[tuple[dict[str, str], list[dict[str, Any]]]]:
    """A set with its scores, then with the main one of each prefix below the whole vector.

    The hub joins results of one task and type, so that each has a type of its own.
    """
    metrics = [_entry(*one) for one in finite_metrics(trained_by.after, name)]
    yield {"type": name, "name": name}, metrics
    main, values = main_by_size(trained_by.after, name)
    for size in list(values)[1:]:
        dataset = {"type": f"{name}_dim_{size}", "name": f"{name}, {size} dimensions"}
        yield dataset, [_entry(main, values[size])]


def _entry(metric: str, value: float) -> dict[str, Any]:
    return {"type": metric, "value": round(value, DIGITS), "name": metric_label(metric)}
