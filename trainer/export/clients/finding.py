"""What is found of a client: a field it reads otherwise, and its outcome; it reads no files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.export.clients.folder import ExportFolder

Outcome = Literal["equal", "refused", "different", "not_installed"]
"""`refused`: it ends with an error; `different`: it embeds otherwise without one."""
How = Literal["loaded", "read", "served"]
"""Whether the client ran, its rules were applied to the files, or a server was asked."""
Effect = Literal["refused", "different"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One field of the folder that a client cannot take as the trainer meant it."""

    file: str
    """Inside the folder."""
    field: str
    """Inside the file."""
    found: object
    """Its value; None: missing."""
    expected: object
    """The value that the client would read right, or a rule in words."""
    why: str
    """What the client does with what was found; a sentence."""
    effect: Effect = "different"
    """What follows."""

    @property
    def place(self) -> str:
        """File and field."""
        return f"{self.file}: {self.field}"

    @property
    def sentence(self) -> str:
        """For people."""
        found = "missing" if self.found is None else f"{_shown(self.found)}"
        return f"{self.place} = {found}; expected {_shown(self.expected)}. {self.why}"


def _shown(value: object) -> str:
    """A value as JSON has it, cut."""
    word = {True: "true", False: "false"}.get(value) if isinstance(value, bool) else None
    return word or f"{value!s:.90}"


Rule = Callable[[ExportFolder], Iterator[Finding]]
"""Reads a folder as one client does."""


@dataclass(frozen=True, kw_only=True)
class ClientResult:
    """How one client reads a folder."""

    client: str
    """Its name, such as `vllm`."""
    version: str
    """Release that ran, or the releases that the rules are about."""
    how: How
    """See the type."""
    outcome: Outcome
    """See the type."""
    cosine: float | None = None
    """Least over the texts, where vectors were compared."""
    field: str | None = None
    """File and field that explain the outcome."""
    reason: str | None = None
    """Why it is not equal."""

    @property
    def label(self) -> str:
        """Name and release."""
        return f"{self.client} {self.version}".rstrip()

    @property
    def entry(self) -> dict[str, Any]:
        """As the JSON output has it."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client known by its rules."""

    name: str
    """As in results."""
    version: str
    """The releases that the rules are about; empty where they are about all."""
    rules: Sequence[Rule]
    """In the order in which findings are told."""

    @property
    def key(self) -> str:
        """Name with release, as a user may ask for it."""
        return f"{self.name}-{self.version}" if self.version else self.name

    def findings(self, folder: ExportFolder) -> list[Finding]:
        """All findings."""
        return [finding for rule in self.rules for finding in rule(folder)]

    def read(self, folder: ExportFolder) -> ClientResult:
        """The outcome by the rules: a client that refuses cannot be silently different."""
        findings = self.findings(folder)
        refusals = [finding for finding in findings if finding.effect == "refused"]
        first = next(iter([*refusals, *findings]), None)
        return ClientResult(
            client=self.name,
            version=self.version,
            how="read",
            outcome=first.effect if first else "equal",
            field=first.place if first else None,
            reason=first.sentence if first else None,
        )
