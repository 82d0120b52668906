"""The sections of a model card on training: data, scores, settings, versions, how to repeat it."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml

from trainer.recipe.eval_kinds import metric_label
from trainer.recipe.load import dump_recipe
from trainer.recipe.per_source import overrides_of, step_kinds
from trainer.recipe.schema import Recipe, SourceRecipe
from trainer.recipe.secrets import without_secrets
from trainer.recipe.tasks import TASKS
from trainer.report.card_facts import CardFacts, TrainedBy, finite_metrics
from trainer.report.markdown import block, code, plain, table
from trainer.report.read import main_by_size, means, teacher_counts
from trainer.run_folder.layout import CHECKPOINTS

PLACES = ("output_dir", "root", "path", "deepspeed")
"""Recipe keys that may hold a path of one machine."""
PACKAGES = ("codiemb-trainer", "torch", "transformers", "peft", "deepspeed", "python")
"""Versions that a card shows."""
MERGE_SETTINGS = {
    "delta": ("granularity", "alpha"),
    "task_arithmetic": ("weights",),
    "ties": ("density",),
}
"""Settings that one method alone reads."""


def training(facts: CardFacts) -> list[str]:
    """All sections on a run, as Markdown; none where no run is known."""
    trained_by = facts.trained_by
    if trained_by is None:
        return []
    return [
        *_data(trained_by),
        *_scores(trained_by, is_merge=facts.merge is not None),
        *_settings(trained_by),
        *_versions(trained_by.run.facts.get("environment") or {}),
        *_again(trained_by),
    ]


def _data(trained_by: TrainedBy) -> list[str]:
    """Sources, and how often each was seen in the whole run."""
    sources = {source.name: source for source in trained_by.recipe.data.sources}
    seen = {one["source"]: one for one in trained_by.run.facts.get("exposure") or ()}
    rows = [
        (plain(name), TASKS[source.task].label, _origin(source), *_exposure(seen.get(name)))
        for name, source in sources.items()
    ]
    head = ("source", "task", "data set", "rows", "steps", "rows seen", "epochs")
    note = "Rows seen count repeats."
    if trained_by.step < trained_by.planned:
        note += (
            f" The numbers are of all {trained_by.planned:,} planned steps; the model was trained "
            f"for {trained_by.step:,}."
        )
    scored = ", ".join(f"{plain(name)} ({rows})" for name, rows in teacher_counts(trained_by.run))
    if scored:
        note += f" A teacher scored passages of {scored}."
    return ["## Training data", table(head, rows, num_names=3), note]


def _origin(source: SourceRecipe) -> str:
    """A link to the hub, or the last part of a local path."""
    if source.hub is None:
        return f"{code(PurePath(source.path or '').name)}, not on the hub"
    name = source.hub.partition(":")[0]
    return f"[{plain(source.hub)}](https://huggingface.co/datasets/{name})"


def _exposure(one: Mapping[str, Any] | None) -> tuple[str, ...]:
    if one is None:
        return ("-",) * 4
    counts = (f"{one[key]:,}" for key in ("num_rows", "steps", "rows_seen"))
    return (*counts, f"{one['epochs']:.2f}")


def _scores(trained_by: TrainedBy, *, is_merge: bool) -> list[str]:
    """Held-out sets before and after training."""
    if is_merge:
        return [
            "## Evaluation",
            "The merged weights were not scored in the run. `tools/evaluate.py` of the trainer "
            "scores them.",
        ]
    after, before = trained_by.after, trained_by.before
    rows = [
        (plain(held_out.name), metric_label(metric), *_change(old.get(metric), value))
        for held_out in trained_by.recipe.eval.sets
        for old in (dict(finite_metrics(before, held_out.name)),)
        for metric, value in finite_metrics(after, held_out.name)
    ]
    if after is None or not rows:
        return []
    old_means = dict(means(before))
    rows += [
        ("all", label, *_change(old_means.get(label), value))
        for label, value in means(after)
        if value is not None
    ]
    head = ("held-out set", "metric", "before", f"after {after['step']:,} steps", "change")
    return ["## Evaluation", table(head, rows, num_names=2), *_scores_by_size(trained_by)]


def _scores_by_size(trained_by: TrainedBy) -> list[str]:
    """Main metric of each set by the size of the prefix; none where prefixes were not scored."""
    found = {
        held_out.name: main_by_size(trained_by.after, held_out.name)
        for held_out in trained_by.recipe.eval.sets
    }
    sizes = sorted({size for _, values in found.values() for size in values}, reverse=True)
    if len(sizes) < 2:
        return []
    rows = [
        (plain(name), metric_label(metric),
         *(f"{values[size]:.4f}" if size in values else "-" for size in sizes))
        for name, (metric, values) in found.items()
        if values
    ]  # fmt: skip
    head = ("held-out set", "metric", *(f"{size:,} dimensions" for size in sizes))
    return ["Vectors that are cut and scaled to norm 1 again:", table(head, rows, num_names=2)]


def _change(before: float | None, after: float) -> tuple[str, str, str]:
    if before is None:
        return ("-", f"{after:.4f}", "-")
    return (f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")


def _settings(trained_by: TrainedBy) -> list[str]:
    """The main settings."""
    rows = [(name, plain(value)) for name, value in _main_settings(trained_by)]
    return ["## Training", table(("setting", "value"), rows, num_names=2)]


def _main_settings(trained_by: TrainedBy) -> Iterator[tuple[str, object]]:
    recipe, train = trained_by.recipe, trained_by.recipe.train
    yield "steps", f"{trained_by.step:,}"
    for kind in step_kinds(recipe):
        task, settings = TASKS[kind.task], kind.settings
        weights = task.weights_of(settings)
        used = [task.terms[key].label for key, weight in weights.items() if weight > 0]
        others = {key: value for key, value in overrides_of(kind.sources[0]).items()
                  if key != "global_batch_size"}  # fmt: skip
        yield (
            f"a step of {task.label}{kind.name.removeprefix(kind.task)}",
            f"{settings.global_batch_size:,} rows"
            f"{''.join(f', {key} {value}' for key, value in others.items())}; "
            f"loss: {', '.join(used)}",
        )
    yield (
        "longest texts",
        (
            f"{recipe.data.query_max_tokens} tokens (queries), "
            f"{recipe.data.passage_max_tokens} (passages)"
        ),
    )
    yield (
        "optimizer",
        (
            f"{train.optimizer}, learning rate {train.learning_rate:g} ({train.schedule}, warmup "
            f"over {train.warmup_ratio:.0%} of the steps), weight decay {train.weight_decay:g}"
        ),
    )
    yield "weights", recipe.model.dtype
    yield "trained", _trained(recipe)


def _trained(recipe: Recipe) -> str:
    lora = recipe.model.lora
    if lora is None:
        return "all parameters"
    kind = "DoRA" if lora.dora else "LoRA"
    targets = lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
    adapters = f"{kind} adapters of rank {lora.rank}, alpha {lora.alpha:g}, on {targets}"
    tokens = f"the embeddings of {', '.join(map(str, lora.trainable_tokens))}"
    return " and ".join(
        [*([adapters] if lora.targets else []), *([tokens] if lora.trainable_tokens else [])]
    )


def _versions(environment: Mapping[str, Any]) -> list[str]:
    rows = [(name, plain(environment[name])) for name in PACKAGES if name in environment]
    if not rows:
        return []
    return ["### Framework versions", table(("package", "version"), rows, num_names=2)]


def _again(trained_by: TrainedBy) -> list[str]:
    """The command, and the whole recipe."""
    environment = trained_by.run.facts.get("environment") or {}
    ranks = environment.get("ranks", 1)
    version = environment.get("codiemb-trainer")
    trainer = f"codiemb-trainer {version}" if version else "codiemb-trainer"
    command = f"deepspeed --num_accelerators {ranks} trainer/run.py --recipe recipe.yaml"
    return [
        "## How to repeat the training",
        f"Install {trainer}, save the recipe below as `recipe.yaml`, put the data where its paths "
        "lead (absolute ones are cut to their last part), and run:",
        block(command, "bash"),
        f"The run had {ranks} processes ({plain(environment.get('device', 'unknown'))}). "
        "Batch sizes are global, so that another number gives the same batches.",
        "<details><summary>Recipe</summary>",
        block(public_recipe(trained_by.recipe), "yaml"),
        "</details>",
    ]


def public_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, absolute paths cut to their last part, and without secrets."""
    content = _without_machine(yaml.safe_load(dump_recipe(recipe)))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    return without_secrets(text)


def _without_machine(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _last_part(one) if key in PLACES else _without_machine(one)
            for key, one in value.items()
        }
    return [_without_machine(one) for one in value] if isinstance(value, list) else value


def _last_part(path: Any) -> Any:
    """A path as others may see it."""
    if isinstance(path, str) and path.startswith(("/", "~")):
        return PurePath(path).name
    return path


def merging(facts: CardFacts) -> list[str]:
    """The section on a merge, as Markdown; none where nothing was merged."""
    merge = facts.merge
    if merge is None:
        return []
    settings = merge["settings"]
    used = [key for key in (*MERGE_SETTINGS.get(merge["method"], ()), "lambda", "dtype")
            if settings.get(key) is not None]  # fmt: skip
    rows = [
        ("method", code(merge["method"])),
        ("formula", code(merge["formula"])),
        *((key, code(settings[key])) for key in used),
        ("checkpoints", ", ".join(code(_input_name(one)) for one in merge["checkpoints"])),
    ]
    return [
        "## Merge",
        table(("setting", "value"), rows, num_names=2),
        "In the formula, D_k is what checkpoint k changed in a tensor of the base. `merge.json` "
        "has the weights of every tensor, and the hashes of the inputs.",
    ]


def _input_name(one: Mapping[str, Any]) -> str:
    """A checkpoint by its run and step, any other folder by its last part."""
    path = Path(str(one["path"]))
    parts = path.parts[-3:] if path.parent.name == CHECKPOINTS else path.parts[-1:]
    return "/".join(parts)
