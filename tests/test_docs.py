"""The pages say what is true: commands parse, links and names exist, results stand once."""

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from clients.table import BEGIN, END
from tests.support.pages import (
    BENCHMARKS,
    COMMANDS,
    DOCS,
    PAGES,
    PROJECT,
    README,
    RECORDS,
    ROOT,
    Page,
    words_of,
)
from tools import recipe_reference
from trainer.errors import RecipeError
from trainer.recipe.schema import Recipe

TOOLS = [command for command in COMMANDS if "tools/" in command]
SPANS = sorted({span for page in PAGES for span in page.spans})
LINKS = [(page, target) for page in PAGES for target in page.links]


@cache
def help_of(tool: str) -> str:
    done = subprocess.run(
        [sys.executable, tool, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("command", TOOLS)
def test_tools_know_the_options(command: str) -> None:
    words = words_of(command)
    tool = next(word for word in words if word.startswith("tools/"))
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    assert (ROOT / tool).is_file()
    text = help_of(tool) if options else ""
    for option in options:
        assert re.search(rf"{option}\b", text), option


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("make ")])
def test_make_targets_are_there(command: str) -> None:
    target = command.split()[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("pip ")])
def test_extras_to_install_are_there(command: str) -> None:
    extras = re.findall(r"\.\[([\w,-]+)\]", command)
    assert words_of(command)[:2] == ["pip", "install"]
    assert {name for group in extras for name in group.split(",")} <= set(
        PROJECT["project"]["optional-dependencies"]
    )


@pytest.mark.parametrize("command", [line for line in COMMANDS if "-m pytest" in line])
def test_tiers_of_tests_are_there(command: str) -> None:
    known = {line.partition(":")[0] for line in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    words = words_of(command)
    for option, value in pairwise(words):
        if option == "-m" and value != "pytest":
            assert set(value.split()) - {"not", "and", "or"} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_are_there(page: Page) -> None:
    for path in re.findall(r"\b(?:recipes|ds_configs|tests|tools|trainer)/[\w./-]*", page.text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(("page", "target"), LINKS, ids=lambda value: getattr(value, "name", value))
def test_links_lead_somewhere(page: Page, target: str) -> None:
    file, _, anchor = target.partition("#")
    path = (page.path.parent / file).resolve() if file else page.path
    assert path.is_relative_to(ROOT)
    assert path.is_file()
    if anchor:
        assert anchor in Page(path).anchors


def test_the_readme_links_every_page() -> None:
    linked = {target.partition("#")[0] for target in README.links}
    assert {page.name for page in [*DOCS, BENCHMARKS]} <= linked


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_page_opens_with_who_needs_it(page: Page) -> None:
    assert re.match(r"# .+\n\nThis page is for .+\. With it you can .+\.\n", page.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_are_python(page: Page) -> None:
    for block in page.blocks("python"):
        compile(block, page.name, "exec")


def is_result(row: str) -> bool:
    """Whether a row of a table holds measured numbers: three with a decimal point."""
    return len(re.findall(r"(?<![\w.])[+-]?\d[\d,]*\.\d+%?(?![\w.])", row)) >= 3


CLIENTS = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
"""The table that `make test-clients` fills: outcomes of clients, which stand with their reasons."""


def test_results_stand_once() -> None:
    rows = [row for row in BENCHMARKS.table_rows if is_result(row)]
    assert len(rows) > 50
    # the untouched backbone is what tables of several scripts begin with
    own = [row for row in rows if "untouched" not in row]
    assert [row for row, times in Counter(own).items() if times > 1] == []


@pytest.mark.parametrize("page", [README, *DOCS, *RECORDS], ids=lambda page: page.name)
def test_results_stand_in_benchmarks_only(page: Page) -> None:
    with_numbers = {row for row in BENCHMARKS.table_rows if re.search(r"\d", row)}
    of_clients = {line for block in CLIENTS.findall(page.text) for line in block.splitlines()}
    for row in page.table_rows:
        assert row not in with_numbers
        assert row in of_clients or not is_result(row), row


KEYS = {key.path: key for key in recipe_reference.keys_of(Recipe)}
SECTIONS = {path.split(".")[0] for path in KEYS if "." in path}
NAMED = [
    span
    for span in SPANS
    if not span.endswith(".jsonl")
    and re.fullmatch(rf"(?:{'|'.join(SECTIONS)})\.[a-z_.\[\]]+(?:[=:].*)?", span)
]


@pytest.mark.parametrize("span", NAMED)
def test_recipe_keys_are_those_of_the_schema(span: str) -> None:
    path = re.split("[=:]", span, maxsplit=1)[0]
    assert path in KEYS or any(key.startswith(f"{path}.") for key in KEYS)


def test_the_reference_is_that_of_the_schema() -> None:
    page = Page(recipe_reference.PAGE)
    advice = "run: python tools/recipe_reference.py --write"
    assert recipe_reference.replaced(page.text, page.name) == page.text, advice


def test_the_reference_explains_every_key() -> None:
    assert all(key.meaning.endswith(".") for key in KEYS.values())
    assert KEYS["tasks.ir.temperature"].kind == "number above 0"
    assert KEYS["model.dropout"].kind == "number at least 0 and at most 0.99 or null"
    assert KEYS["data.sources[].task"].default == "required"
    assert KEYS["train.betas"].default == "`[0.9, 0.999]`"


def test_the_reference_is_written_into_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{recipe_reference.BEGIN}\nold\n{recipe_reference.END}\nafter\n")
    command = [sys.executable, "tools/recipe_reference.py", "--write", str(page)]
    subprocess.run(command, cwd=ROOT, check=True)
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert len(lines) == 4 + 2 + len(KEYS)  # text and markers, head of the table, keys


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(RecipeError, match="markers = 0 and 0; expected"):
        recipe_reference.replaced("nothing", "page.md")


def test_the_walk_of_a_step_names_functions_in_order() -> None:
    text = (ROOT / "docs" / "development.md").read_text()
    section = text.split("## A step, function by function")[1].split("\n## ")[0]
    steps = re.findall(r"^(\d+)\. `(trainer[.\w]+)`", section, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    assert 5 <= len(steps) <= 12
    for _, name in steps:
        assert is_function(name), name


def is_function(name: str) -> bool:
    """Whether a dotted name is a function of a module, or a method of one of its classes."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        file = ROOT.joinpath(*parts[:cut]).with_suffix(".py")
        if file.is_file():
            body: list[ast.stmt] = ast.parse(file.read_text()).body
            for part in parts[cut:-1]:
                owners = (n for n in body if isinstance(n, ast.ClassDef) and n.name == part)
                body = next(owners, ast.ClassDef(name="", body=[])).body
            return any(isinstance(n, ast.FunctionDef) and n.name == parts[-1] for n in body)
    return False
