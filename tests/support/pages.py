"""The pages that people read, cut into what tests check: code blocks, commands, links, headings."""

import re
import shlex
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMMAND_STARTS = ("python ", "pip ", "make ", "deepspeed ", "torchrun ")
"""How a command begins that is set as code within a sentence."""


def words_of(command: str) -> list[str]:
    """A command without its comment, as the shell splits it."""
    return shlex.split(command, comments=True)


@dataclass(frozen=True)
class Page:
    """One Markdown file of the project."""

    path: Path
    """Absolute."""

    @property
    def name(self) -> str:
        """Its path from the project's root."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return re.sub(r"^```.*?^```", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @cached_property
    def spans(self) -> list[str]:
        """Words of the prose that are set as code."""
        return re.findall(r"`([^`\n]+)`", self.prose)

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and images that stay inside the project."""
        found = re.findall(r"\]\(([^)\s]+)\)", self.prose)
        return [target for target in found if not re.match(r"\w+:", target)]

    @cached_property
    def anchors(self) -> set[str]:
        """What a link may name behind `#`, made from the headings as GitHub does."""
        titles = re.findall(r"^#+ (.+)$", self.prose, flags=re.MULTILINE)
        return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}

    def blocks(self, language: str) -> list[str]:
        """Fenced blocks of a language, in order; those without one for an empty text."""
        fences = re.findall(r"^```(.*?)\n(.*?)^```", self.text, flags=re.MULTILINE | re.DOTALL)
        return [block for found, block in fences if found == language]

    @cached_property
    def commands(self) -> list[str]:
        """Commands of shell blocks, and those that are set as code within a sentence."""
        scripts = "\n".join(self.blocks("bash") + self.blocks("sh")).replace("\\\n", " ")
        lines = [line for line in scripts.splitlines() if words_of(line)]
        return [*lines, *(span for span in self.spans if span.startswith(COMMAND_STARTS))]

    @cached_property
    def table_rows(self) -> list[str]:
        """Lines of Markdown tables and of blocks without a language, with single spaces."""
        lines = [line for line in self.prose.splitlines() if line.startswith("|")]
        lines += [line for block in self.blocks("") for line in block.splitlines()]
        return [" ".join(line.split()) for line in lines]


README = Page(ROOT / "README.md")
BENCHMARKS = Page(ROOT / "BENCHMARKS.md")
DOCS = [Page(path) for path in sorted((ROOT / "docs").glob("*.md"))]
PAGES = [README, BENCHMARKS, *DOCS]
RECORDS = [Page(ROOT / "CHANGELOG.md"), Page(ROOT / "SECURITY.md")]
"""Pages that hold no commands."""
COMMANDS = sorted({command for page in PAGES for command in page.commands})
