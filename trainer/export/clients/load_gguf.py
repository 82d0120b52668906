"""llama.cpp run on an exported folder: converted by a converter that the user names."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from trainer.export.clients.compare import Embedded
from trainer.export.clients.folder import ExportFolder
from trainer.export.parity_file import Parity

CONVERT_SEC = 3600
"""Longest conversion."""


class ConversionError(Exception):
    """The converter refused the folder."""


def run_llama_cpp(
    folder: ExportFolder, parity: Parity, *, converter: Path, precision: str
) -> Embedded:
    """Convert, and embed the texts that need not be cut.

    Its Python binding cuts a text without keeping the end token; its server refuses long texts.

    Args:
        folder: an exported folder.
        parity: what the trainer made.
        converter: `convert_hf_to_gguf.py` of llama.cpp.
        precision: an outtype of the converter, such as `f32` or `q8_0`.

    Raises:
        ConversionError: with the last words of the converter.
    """
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        convert(folder.path, file, converter=converter, precision=precision)
        return _embed(file, parity)


def convert(folder: Path, file: Path, *, converter: Path, precision: str) -> None:
    """Write a folder as GGUF.

    Raises:
        ConversionError: with the last words of the converter.
    """
    done = subprocess.run(
        [
            sys.executable,
            str(converter),
            str(folder),
            "--outfile",
            str(file),
            "--outtype",
            precision,
        ],
        capture_output=True,
        text=True,
        timeout=CONVERT_SEC,
        check=False,
    )
    if done.returncode or not file.is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise ConversionError(said[-1])


def _embed(file: Path, parity: Parity) -> Embedded:
    """Vectors of the texts by llama-cpp-python, one by one."""
    from llama_cpp import Llama

    size = parity.settings.max_tokens + 8
    model = Llama(
        model_path=str(file), embedding=True, n_ctx=size, n_batch=size, n_ubatch=size, verbose=False
    )
    numbers = [n for n, text in enumerate(parity.texts) if not parity.is_cut(text)]
    texts = [parity.texts[number].whole for number in numbers]
    return Embedded(
        numbers=numbers,
        vectors=np.array([model.embed(text, normalize=True) for text in texts], np.float32),
        token_ids=[model.tokenize(text.encode("utf-8")) for text in texts],
    )
