"""What is logged of an export at the end of a run: clients that would read it otherwise."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.exported import make_base, make_export
from trainer.session.parity import warn_of_clients

Warned = Callable[..., list[str]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("made") / "base")


@pytest.fixture
def warned(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Warned:
    """Warnings about an export."""

    def call(change: Callable[[Path], object] = lambda folder: None, **model: Any) -> list[str]:
        folder = make_export(base, tmp_path / "model", **model)
        change(folder)
        with caplog.at_level(logging.WARNING, "trainer.session.parity"):
            warn_of_clients(folder)
        return [record.getMessage() for record in caplog.records]

    return call


def test_an_end_token_that_a_converter_does_not_know_is_told(warned: Warned) -> None:
    (line,) = warned(pooling="last")
    assert "llama.cpp would refuse it: tokenizer.json: post_processor = ends texts in" in line
    assert "expected <|endoftext|> of Qwen" in line


def test_a_client_that_would_embed_otherwise_is_told(warned: Warned) -> None:
    (line,) = warned(pooling="mean")
    assert "sglang would embed otherwise without an error" in line


def test_a_folder_that_cannot_be_read_does_not_end_the_run(warned: Warned) -> None:
    (line,) = warned(lambda folder: (folder / "parity.json").write_text("damaged"))
    assert "clients not checked: " in line


def test_without_a_model_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_clients(tmp_path)
    assert not caplog.records
