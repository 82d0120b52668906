"""Export every form of a model and read it by every client, each in an environment of its own.

python tools/clients.py                      # make what is missing, read, print the table
python tools/clients.py --write              # and put the table into docs/serving.md

Environments and exports are kept in .venv-clients/. The first run downloads several gigabytes and
compiles llama.cpp. Exit codes: 0 no client is silently different, 1 one is, or had another outcome
than the rules about it say, 2 a mistake.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from clients.converter import SCRIPT  # noqa: E402
from clients.environments import (  # noqa: E402
    CONVERTER_FOLDER,
    ENVIRONMENTS,
    LLAMA_CPP_FOLDER,
    make_environment,
)
from clients.matrix import DIFFERENT, Matrix, read_matrix  # noqa: E402
from clients.table import write_table  # noqa: E402
from trainer.cli import ending_with_code  # noqa: E402

PLACE = ROOT / ".venv-clients"
PAGE = ROOT / "docs" / "serving.md"
CONVERTER = Path(LLAMA_CPP_FOLDER, CONVERTER_FOLDER, SCRIPT)
"""Of llama.cpp, inside the folder of everything; it has learned the vocabularies."""
BASES_IN = "llama-cpp"
"""Environment with transformers 4 and sentencepiece, which published models come from."""


def start(python: Path, arguments: Sequence[str]) -> None:
    """Run a module of this project in an environment.

    Raises:
        subprocess.CalledProcessError: it failed; it has told why.
    """
    # one thread: models are tiny, and threads would wait for each other
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [str(python), "-m", *arguments], check=True, cwd=ROOT, env={**os.environ, **settings}
    )


def make_all(place: Path) -> dict[str, Path]:
    """Environments, bases and exports.

    Args:
        place: folder of everything.

    Returns:
        Pythons by environment.
    """
    pythons = {one.name: make_environment(one, place) for one in ENVIRONMENTS}
    start(pythons[BASES_IN], ["clients.bases", str(place / "bases")])
    start(Path(sys.executable), ["clients.exports", str(place / "bases"), str(place / "exports")])
    start(pythons[BASES_IN], ["clients.converter", str(place / CONVERTER), str(place / "exports")])
    return pythons


def read_all(place: Path, pythons: dict[str, Path]) -> Matrix:
    """Results of all clients.

    Args:
        place: folder of everything.
        pythons: from `make_all`.
    """
    exports, files = place / "exports", []
    for environment in ENVIRONMENTS:
        for kind in environment.gguf_types or ("",):
            files.append(place / f"results-{environment.name}{kind}.json")
            options = ["--clients", ",".join(environment.clients), "--output", str(files[-1])]
            if kind:
                options += ["--gguf-converter", str(place / CONVERTER), "--gguf-type", kind]
            start(pythons[environment.name], ["clients.read", str(exports), *options])
    return read_matrix(exports, files)


def main() -> int:
    """Make, read, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the table into docs/serving.md")
    arguments = parser.parse_args()
    matrix = read_all(PLACE, make_all(PLACE))
    text = matrix.table()
    print(text)
    disagreements = list(matrix.disagreements())
    print("\n".join(disagreements), file=sys.stderr)
    if arguments.write:
        write_table(PAGE, text)
    return DIFFERENT if matrix.is_different or disagreements else 0


if __name__ == "__main__":
    sys.exit(ending_with_code(main))
