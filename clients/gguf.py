"""llama.cpp on many exports: its converter is run inside this process, and so imported once."""

import logging
import runpy
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from trainer.export.clients.compare import Embedded
from trainer.export.clients.folder import ExportFolder
from trainer.export.clients.load_gguf import ConversionError, embed_gguf
from trainer.export.clients.run import Loader
from trainer.export.parity_file import Parity


def llama_cpp(converter: Path, precision: str) -> Loader:
    """The client, converting by a script that is run in this process.

    Args:
        converter: `convert_hf_to_gguf.py`.
        precision: what it converts to.
    """

    def run(folder: ExportFolder, parity: Parity) -> Embedded:
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "model.gguf"
            convert_here(folder.path, file, converter=converter, precision=precision)
            return embed_gguf(file, parity)

    return Loader("llama.cpp", "llama-cpp-python", ("llama_cpp",), run)


class Heard(logging.Handler):
    """Keeps what a logger says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())


def import_converter(script: Path) -> logging.Logger:
    """Import what the converter consists of; returns its logger.

    Args:
        script: the converter.
    """
    for path in (script.parent, script.parent / "gguf-py"):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    logger = import_module("conversion.base").logger
    assert isinstance(logger, logging.Logger)
    return logger


def convert_here(folder: Path, file: Path, *, converter: Path, precision: str) -> None:
    """Write a folder as GGUF.

    Args:
        folder: an export.
        file: is written.
        converter: the script.
        precision: what it converts to.

    Raises:
        ConversionError: with the last words of the converter.
    """
    logger, heard = import_converter(converter), Heard()
    logger.addHandler(heard)
    kept = sys.argv
    sys.argv = [str(converter), str(folder), "--outfile", str(file), "--outtype", precision]
    try:
        runpy.run_path(str(converter), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise ConversionError(heard.lines[-1]) from ended
    except Exception as error:
        raise ConversionError(f"{type(error).__name__}: {error}") from error
    finally:
        sys.argv = kept
        logger.removeHandler(heard)
