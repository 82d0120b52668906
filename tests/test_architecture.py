"""Rooms import only rooms to their left, and the left ones start without heavy libraries."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import trainer

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "trainer"
BESIDE = ("tools", "bench", "chaos", "clients", "demo", "fuzzing", "series")
"""Commands, and what they are made of."""
ROOMS = (
    "__init__",
    "errors",
    "recipe",
    "cli",
    "data",
    "run_folder",
    "distributed",
    "model",
    "objectives",
    "memory",
    "engine",
    "checkpoint",
    "unpack",
    "export",
    "evaluation",
    "merge",
    "mining",
    "report",
    "preflight",
    "session",
    "run",
)
"""From left to right: a room may import itself and what stands before it."""
HEAVY = {"torch", "transformers", "tokenizers", "datasets", "deepspeed", "peft"}
LIGHT_ROOMS = ("errors", "recipe", "cli", "data", "run_folder", "report")
MOST_TOP_FILES = 4

FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(file for folder in BESIDE for file in (ROOT / folder).rglob("*.py"))


def room_of(file: Path) -> str:
    """The room; a file at the top of the package is one by itself."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


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
    return str(file.relative_to(ROOT))


def file_of(module: str) -> Path | None:
    """The file of a module of this project, if the dotted name is one."""
    base = ROOT / module.replace(".", "/")
    found = (base.with_suffix(".py"), base / "__init__.py")
    return next((file for file in found if file.is_file()), None)


def test_every_file_has_a_place_in_the_order() -> None:
    assert {room_of(file) for file in FILES} == set(ROOMS)


def test_few_files_lie_at_the_top() -> None:
    loose = [file.name for file in PACKAGE.glob("*.py")]
    assert len(loose) <= MOST_TOP_FILES, loose


def test_the_package_names_its_rooms_in_their_order() -> None:
    text = " ".join(str(trainer.__doc__).split())
    assert f"imports: {', '.join(ROOMS[1:])}." in text


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_room_imports_only_leftwards(file: Path) -> None:
    # `trainer` itself is the room __init__: its version may be read by all
    allowed = ROOMS[: ROOMS.index(room_of(file)) + 1]
    for module in imported(parsed(file)):
        if module.startswith("trainer.") and module != "trainer.__version__":
            assert module.split(".")[1] in allowed, f"{name_of(file)} imports {module}"
        assert not module.startswith((*BESIDE, "tests")), f"{name_of(file)} imports {module}"


@pytest.mark.parametrize("room", sorted({file.parent for file in FILES}), ids=name_of)
def test_every_room_says_its_duty(room: Path) -> None:
    duty = ast.get_docstring(parsed(room / "__init__.py"))
    assert duty, name_of(room)


def neighbours(file: Path) -> set[Path]:
    """The project's files that one imports, inside functions too."""
    found = {file_of(module) for module in imported(parsed(file))}
    return {one for one in found if one is not None and one != file}


def test_no_modules_import_each_other_in_a_circle() -> None:
    waiting = {file: neighbours(file) for file in (*FILES, *SCRIPTS)}
    while waiting:
        free = {file for file, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"a circle among {sorted(map(name_of, waiting))}"
        waiting = {file: needs for file, needs in waiting.items() if file not in free}


def early_files(start: str) -> set[Path]:
    """All files of the package that are imported as soon as one of them is."""
    found: set[Path] = set()
    waiting = [f"trainer.{start}"]
    while waiting:
        base = PACKAGE.parent / waiting.pop().replace(".", "/")
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.exists() and file not in found:
                found.add(file)
                names = at_start(parsed(file))
                waiting += [name for name in names if name.startswith("trainer.")]
    return found


def test_mistakes_are_reported_before_heavy_imports() -> None:
    files = early_files("run")
    assert PACKAGE / "recipe" / "load.py" in files
    assert PACKAGE / "data" / "sources.py" in files
    for file in files:
        libraries = {name.split(".")[0] for name in at_start(parsed(file))}
        assert not libraries & HEAVY, name_of(file)


@pytest.mark.parametrize(
    "file", [file for file in FILES if room_of(file) in LIGHT_ROOMS], ids=name_of
)
def test_light_rooms_need_no_torch(file: Path) -> None:
    libraries = {name.split(".")[0] for name in at_start(parsed(file))}
    assert not libraries & {"torch", "deepspeed"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_prints(file: Path) -> None:
    calls = [node.func for node in ast.walk(parsed(file)) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


TASK_WORDS = {"ir", "sts"}
OF_TASKS = ("ir.py", "sts.py")
"""Files of one task, in any room."""


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_tasks_are_named_in_their_own_files_only(file: Path) -> None:
    if file.name in OF_TASKS or file.parent.name == "formats":
        return
    for node in ast.walk(parsed(file)):
        written = node.value if isinstance(node, ast.Constant) else None
        keyword = node.arg if isinstance(node, ast.keyword) else None
        assert written not in TASK_WORDS, f"{name_of(file)}:{node.lineno}"
        assert keyword not in TASK_WORDS, f"{name_of(file)}:{node.value.lineno}"


LONGEST_FUNCTION, LONGEST_MODULE, NINE_IN_TEN = 60, 400, 25
"""Lines, docstrings included."""


def test_functions_and_modules_are_small() -> None:
    lengths = []
    for file in (*FILES, *SCRIPTS):
        assert len(file.read_text().splitlines()) <= LONGEST_MODULE, name_of(file)
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{name_of(file)}: {node.name}"
                lengths.append(length)
    assert sorted(lengths)[len(lengths) * 9 // 10] <= NINE_IN_TEN


def test_start_is_short() -> None:
    assert len((PACKAGE / "run.py").read_text().splitlines()) < 80


def test_no_module_beside_the_rooms_is_named_like_a_library() -> None:
    # `deepspeed trainer/run.py` puts trainer/ first on sys.path
    names = {file.stem for file in PACKAGE.iterdir() if not file.name.startswith("__")}
    assert not names & (HEAVY | {"logging", "types", "yaml", "numpy", "tqdm", "select", "random"})
