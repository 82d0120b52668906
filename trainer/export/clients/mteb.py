"""mteb, which loads by sentence-transformers and chooses prompts by names of its own."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainer.export.clients.finding import Client, Finding
from trainer.export.clients.folder import PROMPTS, ExportFolder
from trainer.export.clients.sentence_files import prompts
from trainer.recipe.tasks import TASKS

SIDES = ("query", "document")
"""Names of sides, and what may follow a name of a task behind a hyphen."""
TYPES = (
    "BitextMining", "Classification", "Clustering", "InstructionReranking", "InstructionRetrieval",
    "MultilabelClassification", "PairClassification", "Regression", "Reranking", "Retrieval",
    "STS", "Summarization",
)  # fmt: skip
"""Types of tasks on texts."""


SIDED = ("InstructionReranking", "InstructionRetrieval", "Reranking", "Retrieval")
"""Types whose queries and documents it embeds as such; of the others it says no side."""


@dataclass(frozen=True, kw_only=True)
class PromptUse:
    """The prompt of one task, or of one of its sides."""

    task: str | None
    """Name of the task; None: any of the type."""
    kind: str
    """Type of the task."""
    side: str | None
    """`query` or `document`; None for a type without sides."""
    names: tuple[str, ...]
    """Names under which it looks, the first that is there counts."""
    found: str | None
    """The name that is there; None: the texts go without a prompt."""
    prompt: str
    """The prompt."""


def is_sided(kind: str) -> bool:
    """Whether tasks of a type have queries and documents."""
    return kind in SIDED


def prompt_use(
    prompts: Mapping[str, str], *, task: str | None, kind: str, side: str | None
) -> PromptUse:
    """What it takes of a model's prompts: that of the task, of its type, or of the side.

    Args:
        prompts: of the model, by name.
        task: name of the task; None: any of the type.
        kind: its type.
        side: of the texts; None for a type without sides.
    """
    ends = (f"-{side}", "") if side is not None else ("",)
    names = [f"{name}{end}" for name in (task, kind) if name is not None for end in ends]
    names += [side] if side is not None else []
    found = next((name for name in names if name in prompts), None)
    return PromptUse(
        task=task, kind=kind, side=side, names=tuple(names), found=found,
        prompt=prompts[found] if found is not None else "",
    )  # fmt: skip


def type_uses(prompts: Mapping[str, str]) -> list[PromptUse]:
    """What it takes for any task of each type."""
    return [
        prompt_use(prompts, task=None, kind=kind, side=side)
        for kind in TYPES
        for side in (SIDES if is_sided(kind) else (None,))
    ]


def is_known(name: str) -> bool:
    """Whether mteb looks a prompt up under a name."""
    task, hyphen, side = name.rpartition("-")
    return name in (*SIDES, *TYPES) or (bool(hyphen) and side in SIDES and task in TYPES)


def task_names(folder: ExportFolder) -> Iterator[Finding]:
    """A prompt of a whole task stands under a name that mteb knows, too.

    Names of single sources, such as `faq-query`, and of evaluation sets are for callers who ask for
    them; mteb does where it has a task of that name.
    """
    known = {prompt for name, prompt in folder.prompts.items() if is_known(name)}
    of_tasks = {name for kind in TASKS.values() for name in kind.prompts}
    for name, prompt in folder.prompts.items():
        if prompt and name in of_tasks and not is_known(name) and prompt not in known:
            yield Finding(
                file=PROMPTS, field=f"prompts.{name}", found=repr(prompt),
                expected=f"the same prompt under one of {', '.join((*SIDES, *TYPES))}",
                why="It drops a prompt whose name it does not know, with a warning.",
            )  # fmt: skip


MTEB = Client(name="mteb", version="", rules=(prompts, task_names))
