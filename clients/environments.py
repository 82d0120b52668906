"""Environments for clients that cannot share one, made once and kept; it must not read exports.

Each holds the releases of a `requirements-*.txt` beside this file.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from clients.converter import unpack

HERE = Path(__file__).resolve().parent
LLAMA_CPP = "llama-cpp-python"
"""Published as source only."""
LLAMA_CPP_FOLDER = "llama.cpp"
"""Where its source package, its wheel and its converter lie."""
PLAIN_BUILD = ("--config-settings", "cmake.define.LLAVA_BUILD=OFF")
"""Leaves out what reads images, half of the work."""
CONVERTER_FOLDER = "converter"
"""Inside the folder above."""
MADE = ".made"
"""File of a complete environment, with what was installed."""


@dataclass(frozen=True)
class Environment:
    """Clients that share one environment."""

    name: str
    """Of its folder and of its file of requirements."""
    clients: tuple[str, ...]
    """Names of clients that are loaded in it."""
    gguf_types: tuple[str, ...] = ()
    """What exports are converted to for llama.cpp; each is a column of its own."""

    @property
    def requirements(self) -> Path:
        """Exact releases, one a line."""
        return HERE / f"requirements-{self.name}.txt"


ENVIRONMENTS = (
    Environment("st6", ("transformers", "sentence-transformers", "onnx")),
    Environment("st5", ("transformers", "sentence-transformers")),
    Environment("st3", ("sentence-transformers",)),
    Environment("llama-cpp", ("llama.cpp",), gguf_types=("f32", "q8_0")),
)
"""transformers 5; transformers 4 with two releases of sentence-transformers; llama.cpp."""


def make_environment(environment: Environment, root: Path) -> Path:
    """Make an environment, unless it is there with the same requirements.

    Args:
        environment: what is installed.
        root: folder of all environments.

    Returns:
        Its Python.

    Raises:
        subprocess.CalledProcessError: pip failed; it has told why.
    """
    folder = root / environment.name
    python = folder / "bin" / "python"
    wanted = environment.requirements.read_text(encoding="utf-8")
    stamp = folder / MADE
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    if environment.gguf_types:
        _pip(python, "install", str(build_llama_cpp(python, root / LLAMA_CPP_FOLDER)))
    _pip(python, "install", "--requirement", str(environment.requirements))
    stamp.write_text(wanted, encoding="utf-8")
    return python


def build_llama_cpp(python: Path, folder: Path) -> Path:
    """Compile the source package, which takes many minutes, and take its converter out; once.

    Args:
        python: of the environment that it is for.
        folder: gets the package, the wheel and the converter.

    Returns:
        The wheel.
    """
    if not (built := sorted(folder.glob("*.whl"))):
        source = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
        _pip(python, "download", *source, release_of(LLAMA_CPP))
        package = next(folder.glob("*.tar.gz"))
        unpack(package, folder / CONVERTER_FOLDER)
        _pip(python, "wheel", *PLAIN_BUILD, "--no-deps", "--wheel-dir", str(folder), str(package))
        built = sorted(folder.glob("*.whl"))
    return built[0]


def release_of(package: str) -> str:
    """A line of the requirements, without extras.

    Args:
        package: its name.
    """
    for environment in ENVIRONMENTS:
        for line in environment.requirements.read_text(encoding="utf-8").splitlines():
            name, _, release = line.partition("==")
            if name.partition("[")[0] == package:
                return f"{package}=={release}"
    raise LookupError(package)


def _pip(python: Path, command: str, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", command, "--quiet", *arguments], check=True)
