"""parity.json: read back to the bit, damaged ones refused, texts of every kind."""

import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.errors import CheckpointError
from trainer.export.parity_file import (
    PARITY,
    Parity,
    ParitySettings,
    ParityText,
    find_parity,
    read_parity,
    write_parity,
)
from trainer.export.parity_texts import NUM_TEXTS, TEXTS, cut_text, ordered_texts


def parity_of(num_texts: int = 3) -> Parity:
    """Random unit vectors of 8 numbers."""
    rng = np.random.default_rng(0)
    settings = ParitySettings(
        pooling="last", attention="causal", dtype="float32", max_tokens=9, dimensions=8,
        include_prompt=True, libraries={"torch": "2"}, end_token=2,
    )  # fmt: skip
    texts = []
    for number in range(num_texts):
        vector = rng.standard_normal(8).astype(np.float32)
        texts.append(
            ParityText(
                prompt_name=("query", None)[number % 2],
                prompt=("find: ", "")[number % 2],
                text=f"\u05e9 {number} \U0001f6a2\n",
                token_ids=(5, 6 + number, 2),
                vector=vector / np.float32(np.linalg.norm(vector)),
            )
        )
    return Parity(settings=settings, texts=tuple(texts))


def test_what_is_written_is_read_to_the_bit(tmp_path: Path) -> None:
    parity = parity_of()
    path = write_parity(tmp_path, parity)
    assert path.read_bytes().isascii()
    assert [file.name for file in tmp_path.iterdir()] == [PARITY]
    read = read_parity(path)
    assert read.settings == parity.settings
    assert np.array_equal(read.vectors, parity.vectors)
    assert read.vectors.dtype == np.float32
    for one, other in zip(read.texts, parity.texts, strict=True):
        assert replace(one, vector=other.vector) == other
    assert read.prompts == {"query": "find: "}
    assert find_parity(tmp_path / "elsewhere") is None


def put(*place: Any, value: Any) -> Callable[[Any], None]:
    """A change of one value."""

    def change(content: Any) -> None:
        for key in place[:-1]:
            content = content[key]
        content[place[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("version", value=2), r"version = 2; expected 1\. Make it anew with"),
        (put("settings", value=[]), r"settings = \[\]; expected an object"),
        (put("settings", "max_tokens", value="9"), r"settings.max_tokens = 9; expected .* int"),
        (put("settings", "include_prompt", value=1), r"include_prompt = 1; expected .* bool"),
        (put("settings", "end_token", value="x"), r"settings.end_token = x; expected an id or nul"),
        (put("settings", "dimensions", value=4), r"\[0\].vector = 8 numbers; expected 4, as setti"),
        (put("texts", value=[]), r"texts = \[\]; expected a list of at least one text"),
        (put("texts", 1, value=3), r"texts\[1\] = 3; expected an object"),
        (put("texts", 1, "text", value=None), r"texts\[1\].text = None; expected a text"),
        (put("texts", 1, "prompt_name", value=7), r"prompt_name = 7; expected a name or null"),
        (put("texts", 1, "token_ids", value=[]), r"token_ids = \[\]; expected a list of ids"),
        (put("texts", 1, "token_ids", value=[1, -1]), r"token_ids = .*; expected a list of ids"),
        (put("texts", 2, "vector", 3, value=float("nan")), r"texts\[2\].vector = a value that is "),
        (put("texts", 2, "vector", 3, value="1"), r"texts\[2\].vector = a value that is no number"),
        (put("texts", 2, "vector", value=[1.0] * 8), r"vector = norm 2.8284; expected norm 1"),
        (put("texts", 2, "vector", value=None), r"vector = None numbers; expected 8"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(
    tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    path = write_parity(tmp_path, parity_of())
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        read_parity(path)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / PARITY).write_text("{")
    with pytest.raises(CheckpointError, match="content = not JSON"):
        find_parity(tmp_path)


def test_texts_are_of_many_kinds_and_all_clients_take_them_alike() -> None:
    assert len(TEXTS) > NUM_TEXTS
    assert len(set(TEXTS)) == len(TEXTS)
    for text in ordered_texts(20):
        assert text == text.strip()
        # clients without a step of composition must see the same text
        assert unicodedata.normalize("NFC", text) == text
    joined = "".join(TEXTS[:NUM_TEXTS])
    kinds = {unicodedata.category(character) for character in joined}
    assert {"Mn", "So", "Lo", "Nd", "Cc", "Zs"} <= kinds
    assert {unicodedata.bidirectional(character) for character in joined} >= {"R", "AL"}
    assert min(map(len, TEXTS)) == 1


@pytest.mark.parametrize("max_tokens", [2, 16, 512])
def test_one_text_must_be_cut(max_tokens: int) -> None:
    assert len(cut_text(max_tokens).split()) > max_tokens
