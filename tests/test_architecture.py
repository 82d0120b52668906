"""Rooms import only rooms to their left, and the left ones start without heavy libraries."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainer

PACKAGE = Path(__file__).resolve().parents[1] / "trainer"
ROOMS = (
    "errors",
    "recipe",
    "data",
    "model",
    "objectives",
    "engine",
    "checkpoint",
    "evaluation",
    "merge",
)
"""From left to right: a room may import itself and what stands before it."""
HEAVY = {"torch", "transformers", "tokenizers", "datasets", "deepspeed", "peft"}
LIGHT_ROOMS = ("errors", "recipe", "data")

FILES = sorted(PACKAGE.rglob("*.py"))
IN_ROOMS = [file for file in FILES if file.parent != PACKAGE]


def room_of(file: Path) -> str:
    """The room, or the module's own name where it stands beside the rooms."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all modules that some code imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_start(tree: ast.Module) -> Iterator[str]:
    """Names imported as soon as the module is; what functions import comes later."""
    for node in tree.body:
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not for_types and not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from imported(node)


def name_of(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def test_every_room_has_a_place_in_the_order() -> None:
    assert {room_of(file) for file in IN_ROOMS} <= set(ROOMS)


def test_the_package_names_its_rooms_in_their_order() -> None:
    text = " ".join(str(trainer.__doc__).split())
    assert f"imports: {', '.join(ROOMS)}." in text


@pytest.mark.parametrize("file", IN_ROOMS, ids=name_of)
def test_room_imports_only_leftwards(file: Path) -> None:
    allowed = ROOMS[: ROOMS.index(room_of(file)) + 1]
    for module in imported(ast.parse(file.read_text())):
        if module.startswith("trainer.") and module != "trainer.__version__":
            assert module.split(".")[1] in allowed, f"{name_of(file)} imports {module}"


def early_files(start: str) -> set[Path]:
    """All files of the package that are imported as soon as one of them is."""
    found: set[Path] = set()
    waiting = [f"trainer.{start}"]
    while waiting:
        base = PACKAGE.parent / waiting.pop().replace(".", "/")
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.exists() and file not in found:
                found.add(file)
                names = at_start(ast.parse(file.read_text()))
                waiting += [name for name in names if name.startswith("trainer.")]
    return found


def test_mistakes_are_told_before_heavy_imports() -> None:
    files = early_files("run")
    assert PACKAGE / "recipe" / "load.py" in files
    assert PACKAGE / "data" / "sources.py" in files
    for file in files:
        libraries = {name.split(".")[0] for name in at_start(ast.parse(file.read_text()))}
        assert not libraries & HEAVY, name_of(file)


@pytest.mark.parametrize(
    "file", [file for file in FILES if room_of(file) in LIGHT_ROOMS], ids=name_of
)
def test_data_needs_no_torch(file: Path) -> None:
    libraries = {name.split(".")[0] for name in at_start(ast.parse(file.read_text()))}
    assert not libraries & {"torch", "deepspeed"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_prints(file: Path) -> None:
    calls = [
        node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)
    ]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


def test_start_is_short() -> None:
    assert len((PACKAGE / "run.py").read_text().splitlines()) < 80


def test_no_module_beside_the_rooms_is_named_like_a_library() -> None:
    # `deepspeed trainer/run.py` puts trainer/ first on sys.path
    names = {file.stem for file in PACKAGE.iterdir() if not file.name.startswith("__")}
    assert not names & (HEAVY | {"logging", "types", "yaml", "numpy", "tqdm", "select", "random"})
