"""The Python of a model card, run as a reader would."""

import re
from pathlib import Path
from typing import Any


def run_python(card: Path) -> dict[str, dict[str, Any]]:
    """The names that each block leaves, by the heading above it, such as `transformers`."""
    left: dict[str, dict[str, Any]] = {}
    for part in card.read_text().split("\n### ")[1:]:
        title = part.partition("\n")[0]
        for text in re.findall(r"^```python\n(.*?)^```", part, re.DOTALL | re.MULTILINE):
            left[title] = {}
            exec(compile(text, title, "exec"), left[title])
    return left
