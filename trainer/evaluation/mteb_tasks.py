"""Tasks of mteb, scored by its own package with the prompts and text lengths of training.

mteb is no dependency: it is imported when it is asked for. It must not know a run; what is said of
the model beside its scores comes as facts.
"""

import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from trainer.errors import RecipeError
from trainer.evaluation.exported import Limits
from trainer.export.clients.mteb import SIDES, PromptUse, is_sided, prompt_use

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DOCUMENT = "document"
"""mteb's name of the side that has passages."""
FRAMEWORK = ("Sentence Transformers", "PyTorch")


@dataclass(frozen=True, kw_only=True)
class MetaFacts:
    """What is known of a model that its folder of weights does not tell."""

    name: str
    """`organisation/name`."""
    revision: str
    """Changes whenever vectors may."""
    adapted_from: str | None = None
    """Hub id of what was trained; None where it lies on no hub."""
    licence: str | None = None
    """Of the base, or its address."""
    sources: Mapping[str, str | None] | None = None
    """Training sets by name, with their ids on the hub; None: nothing is known of the training."""
    dims: tuple[int, ...] = ()
    """Sizes of trained prefixes; empty: the whole vector alone."""


@dataclass(frozen=True)
class TrainedEncoder:
    """What mteb asks of a model: its own wrapper, with the longest texts of each side."""

    wrapped: Any
    """mteb's wrapper of the model, which chooses the prompts."""
    mteb_model_meta: Any
    """Under what results are written."""
    limits: Limits = field(default_factory=Limits)

    def encode(self, inputs: Any, *, prompt_type: Any = None, **more: Any) -> Any:
        """Vectors of texts of a side; texts of tasks without sides are cut as queries are."""
        is_document = getattr(prompt_type, "value", prompt_type) == DOCUMENT
        limit = self.limits.passage if is_document else self.limits.query
        if limit is not None:
            self.wrapped.model.max_seq_length = limit
        return self.wrapped.encode(inputs, prompt_type=prompt_type, **more)

    def similarity(self, first: Any, second: Any) -> Any:
        """Similarities of all with all."""
        return self.wrapped.similarity(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        """Similarities of pairs."""
        return self.wrapped.similarity_pairwise(first, second)


def check_mteb() -> None:
    """Refuse tasks of mteb where its package is missing.

    Raises:
        RecipeError: naming the command that installs it.
    """
    if importlib.util.find_spec("mteb") is None:
        raise RecipeError(
            "--mteb: package mteb = not installed; expected 2.26 or later. Install it with "
            "`pip install -e .[mteb]`."
        )


def find_tasks(names: Sequence[str]) -> list[Any]:
    """Tasks of mteb by their names, such as `SciFact`.

    Raises:
        RecipeError: if the package is missing, or has no such task.
    """
    check_mteb()
    import mteb

    try:
        return list(mteb.get_tasks(tasks=list(names)))
    except KeyError as error:
        raise RecipeError(
            f"--mteb: {' '.join(names)} = unknown ({error.args[0]}); expected names of MTEB tasks. "
            "Correct them."
        ) from error


def score_tasks(
    model: "SentenceTransformer",
    tasks: Sequence[Any],
    facts: MetaFacts,
    *,
    limits: Limits,
    output: Path,
) -> dict[str, dict[str, float]]:
    """Main score of each task, as the leaderboards have it; mteb writes its files of results.

    Tasks whose results for this name and revision are there already are not scored again.

    Args:
        model: what embeds, with its prompts.
        tasks: of `find_tasks`.
        facts: what the files say of the model.
        limits: longest texts of each side.
        output: folder; results are in `results/MODEL/REVISION/TASK.json` below it.

    Raises:
        RecipeError: if a task's data is out of reach, or results cannot be written.
    """
    import mteb
    from mteb.models import SentenceTransformerEncoderWrapper

    with warnings.catch_warnings():
        # it warns of every prompt under a name of this project alone
        warnings.simplefilter("ignore")
        wrapped = SentenceTransformerEncoderWrapper(model)
    encoder = TrainedEncoder(wrapped, model_meta(model, facts, limits), limits)
    names = " ".join(task.metadata.name for task in tasks)
    try:
        cache = mteb.ResultCache(output)
    except OSError as error:
        raise RecipeError(
            f"--output: {output} = not written ({error.strerror}); expected a folder to write to. "
            "Give another."
        ) from error
    try:
        result = mteb.evaluate(encoder, tasks, cache=cache, show_progress_bar=False)
    except OSError as error:
        with suppress(OSError):
            output.rmdir()  # as it was, where nothing is in it
        raise _out_of_reach(names, str(error)) from error
    for failed in result.exceptions or ():
        raise _out_of_reach(failed.task_name, failed.exception)
    return {one.task_name: {"main_score": float(one.get_score())} for one in result.task_results}


def results_folder(output: Path, facts: MetaFacts) -> Path:
    """Where results of a model are, by mteb's own layout."""
    return output / "results" / facts.name.replace("/", "__") / facts.revision


def _out_of_reach(names: str, problem: str) -> RecipeError:
    first = next(iter(problem.splitlines()), "no message")
    return RecipeError(
        f"--mteb: {names} = not downloaded ({first}); expected access to the Hugging Face hub, or "
        "its data in the local cache. Check the network."
    )


def model_meta(model: "SentenceTransformer", facts: MetaFacts, limits: Limits) -> Any:
    """What mteb describes a model by, which stands beside its results as `model_meta.json`.

    What only its owner can say is left out: languages, release date, and whether weights, data and
    code are public.
    """
    from mteb.models import ModelMeta, SentenceTransformerEncoderWrapper

    parameters = list(model.parameters())
    backbone: Any = getattr(model[0], "auto_model", None)
    table = None if backbone is None else backbone.get_input_embeddings()
    longest = max((one for one in (limits.query, limits.passage) if one is not None), default=None)
    size = model.get_embedding_dimension()
    return ModelMeta(
        loader=SentenceTransformerEncoderWrapper,
        name=facts.name,
        revision=facts.revision,
        release_date=None,
        languages=None,
        n_parameters=sum(one.numel() for one in parameters),
        n_embedding_parameters=None if table is None else table.weight.numel(),
        memory_usage_mb=round(sum(one.numel() * one.element_size() for one in parameters) / 2**20),
        max_tokens=longest or model.max_seq_length,
        embed_dim=sorted({*facts.dims, size or 0}) if facts.dims else size,
        license=_known_licence(facts.licence),
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=list(FRAMEWORK),
        similarity_fn_name="cosine",
        use_instructions=any(model.prompts.values()),
        training_datasets=None if facts.sources is None else _training_sets(facts.sources),
        adapted_from=facts.adapted_from,
    )


def _known_licence(licence: str | None) -> str | None:
    """A licence that mteb knows, or the address of one; None for any other."""
    from mteb.types import Licenses

    if licence is None or "://" in licence or licence in get_args(Licenses):
        return licence
    return None


def _training_sets(sources: Mapping[str, str | None]) -> set[str]:
    """Training sets as mteb calls them: sets of the hub by the tasks that have them."""
    own = {name for name, hub in sources.items() if hub is None}
    hubs = {hub for hub in sources.values() if hub is not None}
    return own | (set(_named_by_tasks(hubs)) if hubs else set())


def _named_by_tasks(hubs: set[str]) -> Iterator[str]:
    """Names of the tasks that are made of sets of the hub; the set's own id where none is."""
    import mteb

    found: dict[str, list[str]] = {hub: [] for hub in hubs}
    for task in mteb.get_tasks(exclude_superseded=False, exclude_private=False):
        path = task.metadata.dataset.get("path")
        if path in found:
            found[path].append(task.metadata.name)
    for hub, names in found.items():
        yield from names or [hub]


def prompt_uses(prompts: Mapping[str, str], tasks: Sequence[Any]) -> list[PromptUse]:
    """The prompt that mteb takes for each task, and for each of its sides where it has some."""
    return [
        prompt_use(prompts, task=task.metadata.name, kind=task.metadata.type, side=side)
        for task in tasks
        for side in (SIDES if is_sided(task.metadata.type) else (None,))
    ]
