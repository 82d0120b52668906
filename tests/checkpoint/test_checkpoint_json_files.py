"""Files beside weights: what a disk refuses is an OSError, whoever writes."""

import errno
import resource
import signal
from pathlib import Path

import pytest

from tests.support.data_files import byte_tokenizer
from trainer.checkpoint.json_files import save_tokenizer


def test_a_tokenizer_that_finds_no_room_raises_what_other_files_raise(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    save_tokenizer(tokenizer, tmp_path / "whole")
    size = (tmp_path / "whole" / "tokenizer.json").stat().st_size
    # the limit of a file stands for a disk that is full in the middle
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            save_tokenizer(tokenizer, tmp_path / "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert refused.value.errno == errno.EFBIG


def test_other_mistakes_of_a_tokenizer_stay_what_they_are(tmp_path: Path) -> None:
    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            raise ValueError(f"{folder}: no vocabulary")

    with pytest.raises(ValueError, match="no vocabulary"):
        save_tokenizer(Broken(), tmp_path)
