"""`--dry-run`: check everything but the weights and print what the run would do.

It trains nothing and writes nothing; sources on the hub or on an object store are not downloaded,
so their rows are counted only when the training starts.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PretrainedConfig

from trainer.cli import Arguments, is_first_rank, launched_ranks
from trainer.data.sources import Source
from trainer.data.teacher import check_widths, teacher_size
from trainer.data.tokens_ahead import is_ahead
from trainer.memory.choices import Machine, choices, fastest, smallest_changes
from trainer.memory.estimate import MemoryPlan
from trainer.memory.gather import Passes, plan_passes
from trainer.memory.machine import device_memory, usable
from trainer.memory.shapes import ModelShape, PlanError, measure_model
from trainer.memory.text import choices_section, disk_section, gib, kept_graphs, memory_table, table
from trainer.memory.workload import step_tokens
from trainer.merge.model_place import place_of_model
from trainer.model.backbone import check_backbone, load_config
from trainer.model.fused_kernels import reason_against
from trainer.model.limits import num_token_ids
from trainer.preflight.checks import (
    check_model,
    check_output_dir,
    check_packages,
    near_data,
    open_data,
)
from trainer.preflight.continuation import continued_run
from trainer.preflight.encoder import open_encoder
from trainer.preflight.mining_text import mining_section
from trainer.preflight.steps_text import steps_section
from trainer.preflight.trained_tokens import with_token_ids
from trainer.recipe.embedding_distillation import LAYER_KEY
from trainer.recipe.per_source import step_kinds
from trainer.recipe.resolve import Resolved, resolve, uses_teacher_layer
from trainer.recipe.schema import Recipe


def dry_run(recipe: Recipe, arguments: Arguments, *, named: Sequence[str] = ()) -> int:
    """Print the plan of a run, or of what a run that is resumed goes on with; the exit code is 0.

    Args:
        recipe: as loaded, or from `continued_recipe`.
        arguments: `gpus`, `hosts` and `gpu_memory_bytes` describe the machines planned for.
        named: keys that are changed now.

    Raises:
        RecipeError: as a run would, except for what needs weights.
        DataError: if a local data file or row is wrong.
        CheckpointError: if the run cannot go on with what was changed.
    """
    if not is_first_rank():
        return 0
    ranks = launched_ranks() if arguments.gpus is None else arguments.gpus * arguments.hosts
    resolved = resolve(recipe, world_size=ranks)
    check_packages(recipe)
    resume = arguments.resume or recipe.resume == "auto"
    check_output_dir(recipe.output_dir, resume=resume)
    # data comes first: it may be looked at where the model is not
    sources = open_data(near_data(recipe)).sources
    continued = continued_run(recipe, sources, named) if resume else None
    check_model(recipe)
    path = place_of_model(recipe.model)
    config = load_config(recipe.model, path)
    skeleton = check_backbone(recipe, path, config, download=False)
    num_ids = num_token_ids(skeleton)
    hidden_size = config.get_text_config().hidden_size
    check_widths(sources, recipe, hidden_size=hidden_size)
    tokenizer = _tokenizer(recipe, path, num_ids)
    machine = Machine(
        world_size=ranks,
        ranks_per_host=ranks // arguments.hosts,
        usable_bytes=_usable_bytes(arguments),
        on_gpu=_on_gpu(arguments),
    )
    against = reason_against(skeleton, choice=recipe.engine.kernels, on_gpu=machine.on_gpu)
    kernels = "Liger's" if against is None else f"those of transformers, as {against}"
    found = {"path": path, "tokenizer": tokenizer, "kernels": kernels}
    size = teacher_size(sources, recipe)
    model, *memory = _planned(recipe, config, found, machine, resolved, size)
    sections = (
        model,
        _batch_section(recipe, resolved),
        steps_section(recipe, sources, continued),
        *_tokens_section(recipe, sources, num_ranks=ranks),
        *mining_section(
            recipe,
            sources,
            recipe.model.projection.size if recipe.model.projection else hidden_size,
        ),
        *memory,
        _deepspeed_section(recipe, resolved),
    )
    sys.stdout.write("\n\n".join((f"Dry run of {recipe.name}, {ranks} ranks", *sections)) + "\n")
    return 0


def _planned(
    recipe: Recipe,
    config: PretrainedConfig,
    found: Mapping[str, str],
    machine: Machine,
    resolved: Resolved,
    teacher_size: int | None,
) -> tuple[str, ...]:
    """What the model is, and the memory it needs where that can be known.

    `found` is where the model lies, its tokenizer and its kernels in one phrase each.
    """
    try:
        shape = measure_model(config, recipe, teacher_size=teacher_size)
    except PlanError as error:
        rows = {"path": found["path"], "type": config.model_type, **found}
        return (_listed("Model", rows.items()), str(error))
    return (
        _model_section(recipe, config, shape, found),
        *_memory_sections(recipe, config, shape, machine, resolved),
        *_advice(recipe, config, shape, machine),
    )


def _on_gpu(arguments: Arguments) -> bool:
    """Whether GPUs are planned for: some are described, or there are some here."""
    return arguments.gpu_memory_bytes is not None or torch.cuda.is_available()


def _usable_bytes(arguments: Arguments) -> int | None:
    if arguments.gpu_memory_bytes is not None:
        return usable(arguments.gpu_memory_bytes)
    return device_memory(arguments.gpus or launched_ranks())


def _model_section(
    recipe: Recipe, config: PretrainedConfig, shape: ModelShape, found: Mapping[str, str]
) -> str:
    """What the backbone is, what runs its layers, and whether its tokenizer is there."""
    rows = [
        ("path", found["path"]),
        ("type", f"{config.model_type}, {shape.num_layers} layers of {shape.hidden_size}"),
        ("parameters", f"{shape.num_parameters:,}"),
        ("trained", f"{shape.num_trainable:,}"),
        ("vector", f"{recipe.model.pooling} pooling, {recipe.model.attention} attention"),
        *([("projection", f"to {shape.vector_size}")] if recipe.model.projection else []),
        *_teacher_layer(recipe, shape),
        ("kernels", found["kernels"]),
        ("tokenizer", found["tokenizer"]),
    ]
    return _listed("Model", rows)


def _teacher_layer(recipe: Recipe, shape: ModelShape) -> list[tuple[str, str]]:
    """The layer to a teacher's size, where one is trained; its name is that of its key."""
    if not uses_teacher_layer(recipe):
        return []
    if not shape.teacher_size:
        return [(LAYER_KEY, "  its size is known when the data is opened; no number here has it")]
    text = f"  {shape.vector_size} to {shape.teacher_size}, trained for this term, in no export"
    return [(LAYER_KEY, text)]


def _listed(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Names and values below a title."""
    return f"{title}\n" + "\n".join(f"  {name:<12}{value}" for name, value in rows)


def _tokenizer(recipe: Recipe, path: str, num_ids: int | None) -> str:
    """The tokenizer in one phrase; a folder with a config alone has none."""
    if Path(path).is_dir() and not list(Path(path).glob("*token*")):
        return "none in this folder; training needs one"
    tokenizer, _ = open_encoder(recipe, path, num_ids=num_ids)
    with_token_ids(recipe, tokenizer, num_ids=num_ids)
    last = tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"])[-1]
    return f"{len(tokenizer):,} tokens; a text ends with {last}"


def _batch_section(recipe: Recipe, resolved: Resolved) -> str:
    """Rows and tokens of a step, and the chunks they are cut into."""
    budget = recipe.engine.max_tokens_per_chunk
    rows = [("task", "rows a step", "rows a rank", "tokens a rank, at most", "chunks, at most")]
    tokens = step_tokens(recipe)
    for kind in step_kinds(recipe):
        share = math.ceil(tokens[kind.name] / resolved.world_size)
        size, per_rank = kind.settings.global_batch_size, resolved.rows_per_rank[kind.name]
        chunks = str(math.ceil(share / budget))
        rows.append((kind.name, str(size), str(per_rank), f"{share:,}", chunks))
    return f"Batches, in chunks of at most {budget:,} padded tokens\n{table(rows)}"


def _tokens_section(
    recipe: Recipe, sources: Sequence[Source], *, num_ranks: int
) -> tuple[str, ...]:
    """Which sources are tokenised once for all runs, and which in every step."""
    modes: dict[bool, list[str]] = {}
    for source in sources:
        ahead = is_ahead(recipe, source, num_ranks=num_ranks)
        modes.setdefault(ahead, []).append(source.name)
    rows = [("ahead" if ahead else "on the fly", ", ".join(modes[ahead])) for ahead in modes]
    return (_listed(f"Tokens: {recipe.data.tokens}", rows),) if rows else ()


def _memory_sections(
    recipe: Recipe,
    config: PretrainedConfig,
    shape: ModelShape,
    machine: Machine,
    resolved: Resolved,
) -> tuple[str, str]:
    """The estimate part by part for each way of gathering, and what a host needs."""
    plan, passes = plan_passes(recipe, shape, config, resolved.deepspeed, machine)
    title = "Memory of each rank, GiB, at its peak, for texts of the greatest length"
    lines = [title, memory_table(plan, list(plan.phases)), _fit(recipe, plan, passes)]
    disk = disk_section(recipe, plan, ranks_per_host=machine.ranks_per_host)
    return "\n".join(lines), disk


def _fit(recipe: Recipe, plan: MemoryPlan, passes: Passes) -> str:
    """What `engine.gather` comes to, whether it fits, and what is kept with it."""
    gather = passes.gather
    if gather not in plan.phases:
        return f"  gather: {gather} does not suit this backbone"
    text = f"  gather: {gather}"
    if plan.usable_bytes is not None:
        fits = "fits" if plan.fits_with(gather) else "does not fit"  # type: ignore[arg-type]
        text += f"; {fits} {gib(plan.usable_bytes)} usable"
    kept = kept_graphs(plan, recipe, gather, whole_graphs=passes.whole_graphs)  # type: ignore[arg-type]
    return f"{text}\n  {kept}"


def _advice(
    recipe: Recipe, config: PretrainedConfig, shape: ModelShape, machine: Machine
) -> tuple[str, ...]:
    """The fastest shipped way that fits, or the smallest change that would make one fit."""
    if machine.usable_bytes is None:
        return ()
    found = choices(recipe, shape, machine)
    section = choices_section(found, machine)
    if fastest(found, machine.usable_bytes) is None:
        changes = smallest_changes(recipe, config, machine, teacher_size=shape.teacher_size)
        changes = changes or ["nothing that was tried"]
        section += "".join(f"\n  would fit: {change}" for change in changes)
    return (section,)


def _deepspeed_section(recipe: Recipe, resolved: Resolved) -> str:
    text = json.dumps(resolved.deepspeed, indent=2)
    return f"DeepSpeed, from {recipe.engine.deepspeed}\n{text}"
