"""Environments of their own for clients that cannot share one, made once; it must not read exports.

Each holds the releases of a `requirements-*.txt` beside this file.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
LLAMA_CPP = "llama-cpp-python"
"""Published as source only."""
MADE = ".made"
"""File of a complete environment, with what was installed."""


@dataclass(frozen=True)
class Environment:
    """Clients that share one environment."""

    name: str
    """Of its folder and of its file of requirements."""
    clients: tuple[str, ...]
    """Names of clients that are loaded in it."""

    @property
    def requirements(self) -> Path:
        """Exact releases, one a line."""
        return HERE / f"requirements-{self.name}.txt"


ENVIRONMENTS = (
    Environment("st6", ("transformers", "sentence-transformers", "onnx")),
    Environment("st5", ("transformers", "sentence-transformers")),
    Environment("st3", ("sentence-transformers",)),
    Environment("llama-cpp", ("llama.cpp",)),
)
"""transformers 5; transformers 4 with two releases of sentence-transformers; llama.cpp."""


def make_environment(environment: Environment, root: Path) -> Path:
    """Make an environment, unless it is there with the same requirements.

    Args:
        environment: what is installed.
        root: folder of all environments.

    Returns:
        Its Python.
    """
    folder = root / environment.name
    python = folder / "bin" / "python"
    wanted = environment.requirements.read_text(encoding="utf-8")
    stamp = folder / MADE
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    run([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(python), "-m", "pip"]
    if LLAMA_CPP in wanted:
        wheel = build_llama_cpp(pip, root / "llama.cpp")
        run([*pip, "install", "--quiet", str(wheel)])
    run([*pip, "install", "--quiet", "--requirement", str(environment.requirements)])
    stamp.write_text(wanted, encoding="utf-8")
    return python


def build_llama_cpp(pip: list[str], folder: Path) -> Path:
    """Download the source package and compile it, which takes many minutes; once.

    Args:
        pip: command of the environment that it is for.
        folder: gets the source, with llama.cpp's converter, and the wheel.

    Returns:
        The wheel.
    """
    if not (built := list(folder.glob("*.whl"))):
        line = next(
            line
            for line in (HERE / "requirements-llama-cpp.txt").read_text().splitlines()
            if line.startswith(LLAMA_CPP)
        )
        release = line.replace("[server]", "")
        fetch = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
        run([*pip, *fetch, release])
        source = next(folder.glob("*.tar.gz"))
        run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)])
        built = list(folder.glob("*.whl"))
    return built[0]
