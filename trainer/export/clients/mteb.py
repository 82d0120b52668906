"""mteb, which loads by sentence-transformers and chooses prompts by names of its own."""

from collections.abc import Iterator

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
