"""Rotary positions as clients read them from config.json, in its two forms.

Releases of transformers before 5 read keys at the top of the config; later ones read
`rope_parameters`, where a key of the older form may take its place. The judgement is only whether
two readers get the same numbers.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.export.clients.finding import Effect, Finding
from trainer.export.clients.folder import CONFIG, ExportFolder

FULL, SLIDING = "full_attention", "sliding_attention"
DEFAULT_THETA = 10_000.0
Parameters = Mapping[str, Any]
"""Of one kind of layer: theta, type and what the type needs."""


@dataclass(frozen=True)
class OldForm:
    """Top-level keys that a family reads."""

    theta: str = "rope_theta"
    """Of layers with full attention."""
    default_theta: float = DEFAULT_THETA
    """Where the key is missing."""
    local_theta: str | None = None
    """Of layers with a window; None: the family has one kind of layer."""
    default_local: float = DEFAULT_THETA
    """Where that key is missing."""
    scaling: str | None = "rope_scaling"
    """Of layers with full attention; None: the family has none."""


OLD_FORMS = {
    "gemma3_text": OldForm(default_theta=1e6, local_theta="rope_local_base_freq"),
    "modernbert": OldForm(
        theta="global_rope_theta",
        default_theta=160_000.0,
        local_theta="local_rope_theta",
        scaling=None,
    ),
    "mistral": OldForm(scaling=None),
}
"""Families whose keys differ from those of most."""


def trained_rope(config: Mapping[str, Any]) -> dict[str, Parameters] | None:
    """What the trainer used: `rope_parameters` where they are written, else the older form.

    Returns:
        Parameters by kind of layer; None for a model without rotary positions.
    """
    new = config.get("rope_parameters")
    if isinstance(new, dict) and new:
        return _by_layer(new, config)
    form = OLD_FORMS.get(str(config.get("model_type")), OldForm())
    keys = (form.theta, form.local_theta, form.scaling)
    return old_rope(config) if any(config.get(key) is not None for key in keys if key) else None


def _by_layer(new: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Parameters]:
    """The newer form by kind of layer, theta filled in."""
    if any(isinstance(value, dict) for value in new.values()):
        return {kind: _plain(value) for kind, value in new.items() if isinstance(value, dict)}
    return {FULL: _plain({"rope_theta": config.get("rope_theta", DEFAULT_THETA), **new})}


def old_rope(config: Mapping[str, Any]) -> dict[str, Parameters]:
    """What releases before 5 read: top-level keys alone, by kind of layer."""
    form = OLD_FORMS.get(str(config.get("model_type")), OldForm())
    scaling = (config.get(form.scaling) or {}) if form.scaling else {}
    theta = config.get(form.theta, form.default_theta)
    shared = {"partial_rotary_factor": config.get("partial_rotary_factor")}
    read = {FULL: _plain({**shared, **scaling, "rope_theta": theta})}
    if form.local_theta:
        local = config.get(form.local_theta)
        read[SLIDING] = _plain({"rope_theta": form.default_local if local is None else local})
    return read


def _plain(parameters: Mapping[str, Any]) -> Parameters:
    """With one name of each thing, without what is not set."""
    named = {("rope_type" if key == "type" else key): value for key, value in parameters.items()}
    kept = {key: value for key, value in named.items() if value is not None}
    if kept.get("partial_rotary_factor") == 1:
        del kept["partial_rotary_factor"]
    return {"rope_type": "default", **kept}


def scaling_of(parameters: Parameters) -> dict[str, Any]:
    """What changes frequencies besides theta; empty for the default type."""
    if parameters.get("rope_type") == "default":
        return {}
    return {key: value for key, value in parameters.items() if key != "rope_theta"}


def by_old_form(folder: ExportFolder) -> Iterator[Finding]:
    """Readers of top-level keys alone must get what was trained."""
    trained = trained_rope(folder.config)
    if trained is None:
        return
    form = OLD_FORMS.get(folder.model_type, OldForm())
    if form.theta in folder.config and folder.config[form.theta] is None:
        yield _theta(
            form.theta, None, trained[FULL]["rope_theta"], "It cannot build its positions.",
            effect="refused",
        )  # fmt: skip
        return
    read = old_rope(folder.config)
    for kind, key in ((FULL, form.theta), (SLIDING, form.local_theta)):
        if key is None or kind not in trained:
            continue
        wanted, got = trained[kind]["rope_theta"], read[kind]["rope_theta"]
        if not _equal(wanted, got):
            why = f"It takes {got:g} where the model was trained with {wanted:g}."
            yield _theta(key, folder.config.get(key), wanted, why)
    if FULL in trained and (wanted := scaling_of(trained[FULL])) != (
        got := _close(scaling_of(read[FULL]), wanted)
    ):
        yield Finding(
            file=CONFIG, field=form.scaling or "rope_parameters", found=got or None,
            expected=wanted or "no scaling", why="It reads other frequencies.",
        )  # fmt: skip


def by_any_form(folder: ExportFolder) -> Iterator[Finding]:
    """Servers whose releases run on transformers 4 or 5 must read the same from both forms.

    A value that stops the older releases leaves the newer ones.
    """
    yield from (finding for finding in by_old_form(folder) if finding.effect == "different")
    yield from by_new_form(folder)


def _close(got: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """`got`, with the wanted numbers where they differ by rounding alone."""
    return {
        key: wanted[key] if key in wanted and _equal(wanted[key], value) else value
        for key, value in got.items()
    }


def by_new_form(folder: ExportFolder) -> Iterator[Finding]:
    """Transformers 5 takes a top-level `rope_scaling` in place of `rope_parameters`."""
    config, scaling = folder.config, folder.config.get("rope_scaling")
    new = config.get("rope_parameters")
    if not isinstance(scaling, dict) or not scaling or not isinstance(new, dict):
        return
    trained = _by_layer(new, config)
    if FULL not in trained or len(trained) > 1:
        return
    got = _plain({"rope_theta": config.get("rope_theta", DEFAULT_THETA), **scaling})
    if _close(dict(got), dict(trained[FULL])) != trained[FULL]:
        yield Finding(
            file=CONFIG, field="rope_scaling", found=scaling, expected=scaling_of(trained[FULL]),
            why="It reads this key before rope_parameters.",
        )  # fmt: skip


def _theta(
    field: str, found: object, expected: object, why: str, effect: Effect = "different"
) -> Finding:
    return Finding(file=CONFIG, field=field, found=found, expected=expected, why=why, effect=effect)


def _equal(one: object, other: object) -> bool:
    """Whether two values are the same number, or the same."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other
