"""What differs between two recipes in plain values, key by key; it must not judge."""

import re
from collections.abc import Mapping
from typing import Any

SOURCES = "data.sources"
WHOLE = re.compile(
    r"data\.(pattern|mix)|data\.sources\.[^.]+\.(columns|label_texts)|eval\.sets\.[^.]+\.columns"
)
"""Mappings whose keys are the user's, not the project's: one more or less is a change."""

Change = tuple[str, Any, Any]
"""Dotted key, old, new."""


def by_name(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe whose sources stand under their names: they are told by these, not by their order.

    Args:
        recipe: plain values.
    """
    data = recipe["data"]
    sources = {source["name"]: source for source in data["sources"]}
    return {**recipe, "data": {**data, "sources": sources}}


def differences(key: str, old: object, new: object) -> list[Change]:
    """Leaves that differ between two trees of plain values.

    A key that one of them does not have is one that this release does not know any more, or that it
    gave no default: no change that anyone made.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping) and not WHOLE.fullmatch(key):
        return [
            found
            for name in sorted({*old} & {*new})
            for found in differences(f"{key}.{name}".lstrip("."), old[name], new[name])
        ]
    if isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        return [
            found
            for i, (a, b) in enumerate(zip(old, new, strict=True))
            for found in differences(f"{key}.{i}", a, b)
        ]
    return [] if old == new else [(key, old, new)]
