"""The README says what is true: its commands parse, its names exist, its example is read."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

from tools import recipe_reference
from trainer.cli import Arguments, parse_arguments
from trainer.data.sources import open_eval_set, open_sources
from trainer.errors import RecipeError
from trainer.recipe.load import load_recipe
from trainer.recipe.resolve import resolve
from trainer.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
SPANS = sorted(set(re.findall(r"`([^`\n]+)`", PROSE)))
"""Words of the running text that are set as code."""
EXAMPLE = "helpdesk.yaml"
"""The recipe that the README itself holds."""


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def is_command(span: str) -> bool:
    return span.startswith(("python ", "pip ", "make ", "deepspeed ", "torchrun "))


LINES = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
COMMANDS = sorted({*LINES, *filter(is_command, SPANS)})
RUNS = [command for command in COMMANDS if "trainer/run.py" in command and "--recipe" in command]
TOOLS = [command for command in COMMANDS if "tools/" in command]


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def arguments_of(command: str) -> Arguments:
    """What stands behind `trainer/run.py`, as the command reads it."""
    words = words_of(command)
    return parse_arguments(words[words.index("trainer/run.py") + 1 :])


@pytest.fixture(scope="module")
def helpdesk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's own recipe and rows, as files."""
    folder = tmp_path_factory.mktemp("helpdesk")
    (recipe,) = blocks("yaml")
    (folder / EXAMPLE).write_text(recipe)
    data = folder / "data"
    (data / "held_out" / "qrels").mkdir(parents=True)
    tickets, paraphrases = blocks("json")
    (data / "tickets.jsonl").write_text(tickets)
    (data / "paraphrases.jsonl").write_text(paraphrases)
    (data / "paraphrases.dev.jsonl").write_text(paraphrases)
    document = {"_id": "d", "title": "Billing", "text": "Invoices are under Billing."}
    (data / "held_out" / "corpus.jsonl").write_text(json.dumps(document))
    (data / "held_out" / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "invoice?"}))
    (data / "held_out" / "qrels" / "dev.tsv").write_text("q\td\t1\n")
    return folder


def load(name: str, overrides: tuple[str, ...], helpdesk: Path) -> Recipe:
    """A recipe that a command names."""
    path = helpdesk / name if name == EXAMPLE else ROOT / name
    return load_recipe(path, [*overrides, f"data.root={helpdesk / 'data'}"])


def test_there_are_commands_of_each_kind() -> None:
    launchers = {words_of(command)[0] for command in RUNS}
    assert launchers == {"deepspeed", "torchrun", "python"}
    options = " ".join(RUNS)
    for option in ("--dry-run", "--resume", "--selfcheck", "--hostfile", "train.learning_rate="):
        assert option in options
    assert {"make demo", "make test"} <= set(LINES)


@pytest.mark.parametrize("command", RUNS)
def test_run_commands_are_read_and_their_recipes_load(command: str, helpdesk: Path) -> None:
    arguments = arguments_of(command)
    resolve(load(arguments.recipe, arguments.overrides, helpdesk), world_size=8)


def test_the_example_reads_its_rows(helpdesk: Path) -> None:
    recipe = load(EXAMPLE, (), helpdesk)
    sources = open_sources(recipe.data)
    assert [len(source) for source in sources] == [2, 2]
    assert sources[1].record(0).score == pytest.approx(0.92)  # 4.6 of 0..5
    for held_out in recipe.eval.sets:
        assert open_eval_set(held_out, recipe.data)


def test_the_example_sets_every_required_key(helpdesk: Path) -> None:
    written = yaml.safe_load((helpdesk / EXAMPLE).read_text())
    required = {key.path for key in KEYS.values() if key.default == "required"}
    for path in required:
        value = written
        for part in path.split("."):
            if isinstance(value, dict) and part in ("mask", "merge") and part not in value:
                break  # a section that is left out, and the example needs none
            value = value[part.removesuffix("[]")]
            value = value[0] if part.endswith("[]") else value


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


@pytest.mark.parametrize(
    "path",
    sorted(
        set(re.findall(r"\b(?:recipes|ds_configs|tests|tools|trainer)/[\w./-]*", README))
        | set(re.findall(r"\]\(([\w./-]+)\)", README))
    ),
)
def test_files_are_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_links_inside_the_page_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", PROSE, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= anchors


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
    advice = "run: python tools/recipe_reference.py --write README.md"
    assert recipe_reference.replaced(README, "README.md") == README, advice


def test_the_reference_explains_every_key() -> None:
    assert all(key.meaning.endswith(".") for key in KEYS.values())
    assert KEYS["tasks.ir.temperature"].kind == "number above 0"
    assert KEYS["model.dropout"].kind == "number at least 0 and at most 0.99 or null"
    assert KEYS["data.sources[].task"].default == "required"
    assert KEYS["train.betas"].default == "`[0.9, 0.999]`"


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(RecipeError, match="markers = 0 and 0; expected"):
        recipe_reference.replaced("nothing", "page.md")


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(name for group in extras.values() for name in group)]
    for requirement in wanted:
        name = re.split("[=<>~!]", requirement)[0]
        assert name in README, name
    for name in extras:
        assert f"`{name}`" in README or f"[{name}]" in README, name
