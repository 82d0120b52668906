"""Collect the docstrings of the installed packages, as the demo's text.

Source files are parsed with `ast`; it must not import the packages it reads, or download anything.
"""

import ast
import importlib.util
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("torch", "transformers", "scipy", "numpy", "datasets", "deepspeed", "peft")
STDLIB = "the standard library"
FOREIGN_FOLDERS = {"tests", "test", "testing", "_vendor", "site-packages", "dist-packages"}
"""Folders that hold tests, or other people's code."""

SUMMARY_WORDS = (3, 40)
"""Fewest and most words of a summary; shorter ones say nothing, longer ones are no summary."""
MIN_TEXT_WORDS = 15
"""Fewest words of the rest."""
MAX_TEXT_CHARS = 1_500
"""The rest is cut here: the demo's model reads its first 96 tokens."""

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(\[])")
ARGUMENT_LIST = re.compile(
    r"\s*(args|arguments|parameters|params)?\s*:?\s*[*`\w]+ \(`", re.IGNORECASE
)
"""The start of a docstring that has no summary and lists arguments at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doc:
    """The docstring of one function, method or class, and where it stands."""

    package: str
    """Top-level package; the standard library's modules share one."""
    module: str
    """Dotted."""
    owner: str
    """Dotted path of the enclosing classes and functions inside the module; may be empty."""
    name: str
    """Own name."""
    parameters: tuple[str, ...]
    """Names in the signature without self and cls; empty for classes."""
    summary: str
    """First sentence, one line."""
    text: str
    """The rest, lines kept."""

    @property
    def location(self) -> str:
        """Dotted path from the package down to the name."""
        return ".".join(part for part in (self.module, self.owner, self.name) if part)


def split_docstring(docstring: str) -> tuple[str, str]:
    """Cut a docstring into its first sentence and the rest, either of which may be empty."""
    paragraph, _, tail = textwrap.dedent(docstring).strip().partition("\n\n")
    sentences = SENTENCE_END.split(" ".join(paragraph.split()), maxsplit=1)
    return sentences[0], "\n\n".join(part for part in (*sentences[1:], tail.strip()) if part)


def is_usable(summary: str, text: str) -> bool:
    """Whether the summary reads as one and the rest is long enough to be looked for."""
    few, many = SUMMARY_WORDS
    return (
        few <= len(summary.split()) <= many
        and len(text.split()) >= MIN_TEXT_WORDS
        and not ARGUMENT_LIST.match(summary)
    )


def documented_nodes(
    node: ast.AST, owner: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Every class and function below a node, with the names that enclose it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield owner, child
            yield from documented_nodes(child, (*owner, child.name))
        elif isinstance(child, ast.If | ast.Try | ast.With):
            yield from documented_nodes(child, owner)


def parameter_names(node: ast.AST) -> tuple[str, ...]:
    """Names of a function's parameters without self and cls; nothing for a class."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return ()
    arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    return tuple(a.arg for a in arguments if a.arg not in ("self", "cls"))


def read_docs(source: tuple[str, str, Path]) -> list[Doc]:
    """Usable docs of one file; none where the file is not Python 3 of this version.

    Args:
        source: package, dotted module, file.
    """
    package, module, path = source
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and files for other versions lie in packages
        return []
    docs = []
    for owner, node in documented_nodes(tree):
        summary, text = split_docstring(ast.get_docstring(node) or "")
        if is_usable(summary, text):
            docs.append(
                Doc(
                    package=package,
                    module=module,
                    owner=".".join(owner),
                    name=node.name,
                    parameters=parameter_names(node),
                    summary=summary,
                    text=text[:MAX_TEXT_CHARS],
                )
            )
    return docs


def package_folders() -> Iterator[tuple[str, str, Path]]:
    """Package, dotted prefix of its modules, and folder, found without importing it."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(
                f"package {package} = not installed; expected every one of {', '.join(PACKAGES)}. "
                "Run `make demo`, which installs them."
            )
        yield package, package, Path(spec.submodule_search_locations[0])
    yield STDLIB, "", Path(sysconfig.get_paths()["stdlib"])


def source_files() -> Iterator[tuple[str, str, Path]]:
    """Package, dotted module and path of every source file, in a fixed order."""
    for package, prefix, folder in package_folders():
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("")
            if FOREIGN_FOLDERS.isdisjoint(inside.parts) and not inside.name.startswith("test_"):
                dotted = ".".join(part for part in (prefix, *inside.parts) if part)
                yield package, dotted.removesuffix(".__init__"), path


def collect_docs(num_processes: int) -> list[Doc]:
    """Docs of all packages; of docs with equal texts only the first is kept."""
    with ProcessPoolExecutor(num_processes) as pool:
        per_file = pool.map(read_docs, source_files(), chunksize=32)
        docs = [doc for file_docs in per_file for doc in file_docs]
    # Reversed, so that the first of equal texts and of equal locations is the one that stays.
    by_text = {" ".join(doc.text.lower().split()): doc for doc in reversed(docs)}
    by_location = {doc.location: doc for doc in by_text.values()}
    return list(reversed(by_location.values()))
