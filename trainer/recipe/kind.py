"""What a kind of task is, as far as a recipe can say: names, settings, terms, texts of a row.

It must not know any kind; `trainer.recipe.tasks` is the table of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from trainer.errors import RecipeError
from trainer.recipe.fields import NumberOf

Side = Literal["query", "passage"]
"""Which instruction and which limit a text has."""
Layer = Literal["last", "middle"]
"""Which hidden layer a term's vectors are pooled from; middle is `hidden_states[num // 2]`."""
Fail = Callable[[str, object, str, str], RecipeError]
"""Makes an error of (dotted key, what was found, what is expected, what to do)."""


class Words(str):
    """Text of a message that is shown without quotes."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class TermSettings:
    """A term of a task's loss, as recipes, charts and tables know it.

    What it computes stands under the same name in `trainer.objectives.terms`.
    """

    name: str
    """Key of weights, temperatures and metrics."""
    label: str
    """Title of its chart."""
    weight: float
    """Default weight; 0 leaves the term out."""
    meaning: str
    """What the weight belongs to, one sentence."""
    temperature: float | None = None
    """Default temperature; None for a term without a temperature of its own."""
    layer: Layer = "last"
    """The layer it reads."""
    has_own_key: bool = False
    """Whether its weight stands elsewhere in the task's section than under `weights`."""


Terms = dict[str, TermSettings]
"""Terms by name, in the order in which they are summed."""


def term_table(*terms: TermSettings) -> Terms:
    """Terms by name."""
    return {term.name: term for term in terms}


def weight_numbers(terms: Terms) -> dict[str, NumberOf]:
    """The weights that a recipe may give."""
    return {
        name: NumberOf(term.weight, term.meaning)
        for name, term in terms.items()
        if not term.has_own_key
    }


def temperature_numbers(terms: Terms) -> dict[str, NumberOf]:
    """The temperatures that a recipe may give."""
    return {
        name: NumberOf(term.temperature, f"Temperature of {term.label}.")
        for name, term in terms.items()
        if term.temperature is not None
    }


def defaults(numbers: Mapping[str, NumberOf], **given: float) -> dict[str, float]:
    """Every number by name: the given one, or its default.

    Raises:
        KeyError: if a given name is not among them.
    """
    unknown = given.keys() - numbers.keys()
    if unknown:
        raise KeyError(f"{sorted(unknown)}; expected names among {sorted(numbers)}")
    return {name: given.get(name, number.default) for name, number in numbers.items()}


class TaskSettings(Protocol):
    """What every task's section of a recipe has."""

    @property
    def global_batch_size(self) -> int:
        """Rows of one step over all ranks."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of every term that has none of its own."""


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """One kind of task, as the schema, the checks, the memory plan and the charts know it."""

    name: str
    """As in `data.sources[].task` and `tasks`. An evaluation kind of the same name has its rows."""
    label: str
    """Its name in charts and tables."""
    settings: type
    """Dataclass of its section under `tasks`; its docstring says what the task is."""
    terms: Terms
    """Terms of its loss."""
    loss_unit: str = ""
    """Unit of its loss, for charts."""
    has_scores: bool = False
    """Whether its rows carry a score, so that `score_range` means something."""
    has_labels: bool = False
    """Whether its rows carry labels, so that `label_texts` means something."""
    has_corpus: bool = False
    """Whether its rows may stand in a BEIR folder, queries and documents apart."""
    texts_of_row: Callable[[Any], Mapping[Side, int]]
    """From settings to the number of texts that a row puts on each side."""
    prompts: Mapping[str, Side]
    """Names of its prompts in an export, and whose instruction each is."""
    benchmark_prompts: Mapping[str, str] = field(default_factory=dict)
    """Names under which mteb looks for a prompt, where none of `prompts` is one; each with the
    prompt that stands for it where there is none of the name."""
    weights_of: Callable[[Any], Mapping[str, float]] = lambda settings: settings.weights
    """From settings to the weight of every term, those with a key of their own included."""
    teacher_key: Callable[[Any], str | None] = lambda settings: None
    """From settings to the key that needs a teacher's scores in the rows; None: none does."""
    guide_key: str | None = None
    """Key of its section that lets a teacher's vectors leave candidates out; None: it has none."""
    is_guided: Callable[[Any], bool] = lambda settings: False
    """From settings to whether that key is set; a teacher's vectors then do for its scores."""
    negatives_key: Callable[[Any], str | None] = lambda settings: None
    """From settings to a key under which rows without hard negatives have no loss; None: there is
    none."""
    negatives_keys: Callable[[Any], tuple[str, ...]] = lambda settings: ()
    """From settings to the keys of what rows without hard negatives have no part in."""
    compares_queries: Callable[[Any], str | None] = lambda settings: None
    """From settings to the key under which queries of other rows are negatives; None: they are not.
    """
    of_source: Callable[[Any, Any], Any] = lambda settings, source: settings
    """From settings of the task and a source's section to the settings of the source's steps."""
    overridden: Callable[[Any, frozenset[str]], Any] = lambda settings, names: settings
    """From settings of a source's steps, and the names of those that it overrides, to the settings
    without what the task asks for and the source leaves no place for."""
    check: Callable[[Any, Fail], None] = lambda settings, fail: None
    """Refuses settings that contradict each other."""


def reads_middle(kind: TaskKind, settings: TaskSettings) -> bool:
    """Whether a term that has a weight reads the middle layer."""
    weights = kind.weights_of(settings)
    return any(weights[name] > 0 for name, term in kind.terms.items() if term.layer == "middle")
