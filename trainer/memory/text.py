"""The memory plan in words and columns, for the dry run and the first lines of a run."""

from collections.abc import Iterable, Sequence

from trainer.memory.choices import Choice, Machine, fastest
from trainer.memory.estimate import MemoryPlan, Way
from trainer.recipe.schema import Recipe

GIB = 2**30


def memory_table(plan: MemoryPlan, ways: Sequence[Way]) -> str:
    """Each part at the peak of each way to gather, GiB."""
    names = dict.fromkeys(name for way in ways for name in plan.parts(way))
    rows = [("", *(f"gather: {way}" for way in ways))]
    rows += [
        (name, *(gib(plan.parts(way).get(name, 0)) for way in ways))
        for name in names
        if any(plan.parts(way).get(name, 0) for way in ways)
    ]
    rows.append(("peak", *(gib(plan.total(way)) for way in ways)))
    rows.append(("reached in", *(plan.peak_phase(way) for way in ways)))
    return table(rows)


def choices_section(found: Sequence[Choice], machine: Machine) -> str:
    """Which shipped ds_configs, ways to gather and chunk budgets fit; the fastest of them."""
    assert machine.usable_bytes is not None
    budgets = list(found[0].totals)
    rows = [("ds_config", "gather", *(f"{budget:,} tokens" for budget in budgets), "host")]
    for choice in found:
        cells = [
            f"{gib(total)}{' ' if total <= machine.usable_bytes else '!'}"
            for total in choice.totals.values()
        ]
        rows.append((choice.file, choice.gather, *cells, gib(choice.host_bytes)))
    title = (
        f"What fits {gib(machine.usable_bytes)} GiB on each of {machine.world_size} ranks: peak by "
        "chunk budget, fastest first; ! does not fit"
    )
    return f"{title}\n{table(rows)}\n{_verdict(found, machine.usable_bytes)}"


def _verdict(found: Sequence[Choice], usable_bytes: int) -> str:
    best = fastest(list(found), usable_bytes)
    if best is None:
        return "  none of these fits"
    return f"  fastest that fits: {best[0].overrides(best[1])}"


def disk_section(recipe: Recipe, plan: MemoryPlan, *, ranks_per_host: int) -> str:
    """What hosts need besides GPUs."""
    kept = recipe.checkpoint.keep
    rows = [
        ("host memory for offloading", gib(sum(plan.host.values()) * ranks_per_host)),
        ("disk, each checkpoint", gib(plan.checkpoint_bytes)),
        (f"disk, {kept} checkpoints kept and one being written", gib(_all(plan, kept))),
        ("disk, model/ as exported", gib(plan.export_bytes)),
        ("disk, a merge of checkpoints", gib(plan.export_bytes)),
    ]
    return f"Each host, GiB, with {ranks_per_host} ranks and all files on it\n{table(rows)}"


def _all(plan: MemoryPlan, kept: int) -> int:
    return (kept + 1) * plan.checkpoint_bytes


def summary(plan: MemoryPlan, gather: Way, *, world_size: int) -> str:
    """The plan in one line for the start of a run."""
    parts = sorted(plan.parts(gather).items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {gib(size)}" for name, size in parts[:4] if size)
    known = "" if plan.usable_bytes is None else f" of {gib(plan.usable_bytes)} usable"
    return (
        f"memory plan, GiB on each of {world_size} ranks: {gib(plan.total(gather))}{known} with "
        f"gather: {gather} ({listed}); {gib(plan.checkpoint_bytes)} for each checkpoint"
    )


def kept_graphs(plan: MemoryPlan, recipe: Recipe, gather: Way, *, whole_graphs: bool) -> str:
    """What does not run forward twice in a step with a way of gathering, in one phrase."""
    tokens = f"{plan.kept[gather]:,} tokens"
    if gather == "layer":
        return f"layers of {tokens} are not recomputed"
    recomputing = recipe.model.gradient_checkpointing
    kept = "borders of layers" if recomputing and not whole_graphs else "graphs"
    text = f"{kept} of {tokens} are kept between the passes"
    return f"{text}, without model.gradient_checkpointing" if whole_graphs else text


def gib(num_bytes: float) -> str:
    """Bytes in GiB."""
    return f"{num_bytes / GIB:,.2f}"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows of text as aligned columns: the first to the left, the others to the right."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
