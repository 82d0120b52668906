"""How fast our step is in parts and multiples of the memory that the peer's step holds.

It must not import torch at the top: the process that starts the others stays light.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from bench.jobs import OursJob
from bench.turns import Outcome, Variant, ratio, take_turns

ROOMS = (0.5, 1.0, 2.0, 4.0)
"""Shares of the peer's memory that our step may fill with kept graphs."""


def compare_rooms(
    ours: OursJob, peers: Sequence[Variant], *, rounds: int, folder: Path
) -> tuple[dict[str, float], dict[str, Outcome]]:
    """Measure the peers first, then our step in each room beside the fastest of them.

    Args:
        ours: this trainer; what it keeps is set here.
        peers: settings of the peer.
        rounds: steps of each variant; the first warms up.
        folder: for what the processes print.
    """
    # brings torch
    from bench.contestants import planned_tokens

    tried = take_turns(peers, num_steps=2, logs=folder)
    best = min(peers, key=lambda peer: tried[peer.name].median_sec)
    rooms = {f"ours in {times:g} x its memory": times for times in ROOMS}
    # the plan is made in another process: trying shapes leaves memory taken
    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
        kept = {
            name: elsewhere.submit(planned_tokens, ours, round(times * tried[best.name].step_bytes))
            for name, times in rooms.items()
        }
    variants = [
        Variant(name=name, job=replace(ours, keep_tokens=kept[name].result())) for name in rooms
    ]
    outcomes = take_turns([*variants, best], num_steps=rounds, logs=folder)
    return judge_rooms(outcomes, rooms, best.name), outcomes


def judge_rooms(
    outcomes: Mapping[str, Outcome], rooms: Mapping[str, float], peer: str
) -> dict[str, float]:
    """Our step in each room against the peer, and how much of the equal room it took.

    Args:
        outcomes: of our variants and of the peer.
        rooms: share of the peer's memory by name of our variant.
        peer: its name.
    """
    ratios = {times: ratio(outcomes[peer], outcomes[name]) for name, times in rooms.items()}
    held = {
        times: outcomes[name].step_bytes / (times * outcomes[peer].step_bytes)
        for name, times in rooms.items()
    }
    differences = [
        abs(a - b)
        for name in rooms
        for a, b in zip(outcomes[name].losses, outcomes[peer].losses, strict=True)
    ]
    return {
        "examples_per_sec_ratio_at_equal_memory": ratios[1.0],
        **{f"examples_per_sec_ratio_at_{times:g}": found for times, found in ratios.items()},
        "peak_over_allowed": held[1.0],
        "rooms_loss_difference": max(differences),
    }
