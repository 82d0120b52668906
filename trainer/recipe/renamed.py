"""What recipes of earlier releases called otherwise: refused, with the new name."""

KEYS = {
    f"tasks.sts.{term}_temperature": f"tasks.sts.temperatures.{term}"
    for term in ("rank_kl", "pro", "cosent", "infonce")
}
"""Dotted keys by their old name."""
WORDS = {"engine.gather": {"interleaved": "chunk"}}
"""Words of a key by their old name; `engine.gather: chunk` of that time is `layer` now."""
