"""Sizes to which the vectors of an export may be cut, as its config says; it reads no files.

vLLM and SGLang refuse the parameter `dimensions` of a request unless config.json allows it, and cut
and normalise where it does. No client cuts a vector because of these keys alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

DIMS = "matryoshka_dimensions"
"""Key of config.json: the sizes that may be asked for; servers take no other."""
ANY_DIM = "is_matryoshka"
"""Key that allows every size where there is no list, which no training here makes true."""


def dims_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The sizes that a config names, as it orders them; none where it names none.

    Args:
        config: content of config.json, perhaps of a model of others.
    """
    found = config.get(DIMS)
    if not isinstance(found, list | tuple):
        return ()
    return tuple(dim for dim in found if type(dim) is int and dim > 0)


def with_dims(config: Mapping[str, Any], dims: Sequence[int]) -> dict[str, Any]:
    """A config that allows these sizes and no others.

    Args:
        config: content of config.json; not changed.
        dims: as trained; empty where the whole vector alone was, whatever the base promises.
    """
    kept = {key: value for key, value in config.items() if key not in (DIMS, ANY_DIM)}
    return kept | ({DIMS: list(dims)} if dims else {})


def with_common_dims(
    config: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A config that allows the sizes that all models allow of which it is made.

    Args:
        config: of the result; not changed.
        configs: of these models; where all say the same, the config keeps what it says.
    """
    said = [(one.get(DIMS), one.get(ANY_DIM)) for one in configs]
    if all(one == said[0] for one in said):
        return dict(config)
    first, *others = (dims_of(one) for one in configs)
    return with_dims(config, [dim for dim in first if all(dim in one for one in others)])
