"""Clients that are installed here, run on an exported folder and compared with `parity.json`."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from trainer.errors import TrainerError
from trainer.export.clients.compare import LEAST_COSINE, Embedded, judge
from trainer.export.clients.finding import Client, ClientResult, Finding, How
from trainer.export.clients.folder import ExportFolder
from trainer.export.clients.load_gguf import run_llama_cpp
from trainer.export.clients.load_plain import run_onnx, run_transformers
from trainer.export.clients.load_sentence import run_sentence_transformers
from trainer.export.clients.served import run_served
from trainer.export.clients.table import CLIENTS
from trainer.export.parity_file import Parity

Run = Callable[[ExportFolder, Parity], Embedded]


@dataclass(frozen=True)
class Loader:
    """A client that can be run."""

    client: str
    """As in results."""
    package: str
    """Whose release is told."""
    modules: tuple[str, ...]
    """All of them are needed."""
    run: Run
    """Embeds the texts."""

    @property
    def version(self) -> str:
        """Release that is installed, or nothing."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return ""

    @property
    def is_installed(self) -> bool:
        """Whether it can be run here."""
        return all(find_spec(name) is not None for name in self.modules)


TRANSFORMERS = Loader("transformers", "transformers", ("transformers", "torch"), run_transformers)
SENTENCE = Loader(
    "sentence-transformers",
    "sentence-transformers",
    ("sentence_transformers",),
    run_sentence_transformers,
)
ONNX = Loader(
    "onnx", "onnxruntime", ("onnx", "onnxruntime", "onnxscript", "transformers"), run_onnx
)


def loaders(converter: Path | None, precision: str) -> list[Loader]:
    """All clients that may be run; llama.cpp where a converter is given."""
    found = [TRANSFORMERS, SENTENCE, ONNX]
    if converter is not None:
        place = converter

        def run(folder: ExportFolder, parity: Parity) -> Embedded:
            return run_llama_cpp(folder, parity, converter=place, precision=precision)

        found.append(Loader("llama.cpp", "llama-cpp-python", ("llama_cpp",), run))
    return found


def least_cosine(parity: Parity, given: float | None) -> float:
    """The cosine that is equal enough: as given, or by the dtype of the weights."""
    if given is not None:
        return given
    return LEAST_COSINE.get(parity.settings.dtype, min(LEAST_COSINE.values()))


def check_clients(
    folder: ExportFolder, chosen: Collection[str] | None, running: Collection[Loader], least: float
) -> Iterator[ClientResult]:
    """Run what is installed, and judge all other clients by the rules.

    Args:
        folder: with its `parity.json`; without one nothing is run.
        chosen: names of clients; None: all.
        running: clients that may be run.
        least: cosine that is equal enough.
    """
    ran: set[str] = set()
    for loader in running:
        if chosen is not None and not {loader.client, f"{loader.client}-{_major(loader)}"} & set(
            chosen
        ):
            continue
        if folder.parity is None or not loader.is_installed:
            if not any(client.name == loader.client for client in CLIENTS):
                yield ClientResult(
                    client=loader.client, version="", how="loaded", outcome="not_installed"
                )  # fmt: skip
            continue
        rules = rules_of(loader.client, _major(loader))
        ran |= {rules.key} if rules else set()
        yield run_client(
            folder, folder.parity, loader.run, name=(loader.client, loader.version), rules=rules,
            how="loaded", least=least,
        )  # fmt: skip
    for client in CLIENTS:
        wanted = chosen is None or {client.name, client.key} & set(chosen)
        if wanted and client.key not in ran:
            yield client.read(folder)


def rules_of(name: str, major: str) -> Client | None:
    """The rules about a release of a client."""
    about = [client for client in CLIENTS if client.name == name]
    return next((client for client in about if client.version in ("", major)), None)


def _major(loader: Loader) -> str:
    return loader.version.partition(".")[0]


def check_server(
    folder: ExportFolder, parity: Parity, *, url: str, api: str, least: float
) -> ClientResult:
    """Compare a running server.

    Raises:
        CheckpointError: no server at the address, or an answer of another form.
    """
    name = api if api == "openai" else f"{api} server"

    def run(folder: ExportFolder, parity: Parity) -> Embedded:
        return run_served(folder, parity, url=url, api=api)

    return run_client(
        folder, parity, run, name=(name, url), rules=rules_of(api, ""), how="served", least=least
    )


def run_client(
    folder: ExportFolder,
    parity: Parity,
    run: Run,
    *,
    name: tuple[str, str],
    rules: Client | None,
    how: How,
    least: float,
) -> ClientResult:
    """Run one client; what it raises is its refusal, except our own errors.

    Args:
        folder: an exported folder.
        parity: what the trainer made.
        run: embeds the texts.
        name: client and release.
        rules: explain a difference; None: there are none.
        how: of the result.
        least: cosine that is equal enough.

    Raises:
        TrainerError: as `run` does.
    """
    client, release = name
    try:
        judgement = judge(parity, run(folder, parity), least)
    except TrainerError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a client raises is its refusal
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        # a place on this disk is no reason, and a long one leaves no room for it
        said = said.replace(str(folder.path.absolute()), "the folder")
        return ClientResult(
            client=client, version=release, how=how, outcome="refused",
            field=_place(_first(rules, folder)), reason=f"{said:.300}",
        )  # fmt: skip
    if how == "served" and judgement.norm is not None:
        # servers leave the norm to their callers; directions are what was trained
        return ClientResult(
            client=client, version=release, how=how, outcome="equal", cosine=judgement.cosine,
            field="norm", reason=f"{judgement.norm} Normalise what this server answers.",
        )  # fmt: skip
    if judgement.field is None and judgement.norm is None:
        return ClientResult(
            client=client, version=release, how=how, outcome="equal", cosine=judgement.cosine
        )
    finding = _first(rules, folder)
    cause = f" {finding.sentence}" if finding else ""
    return ClientResult(
        client=client, version=release, how=how, outcome="different", cosine=judgement.cosine,
        field=_place(finding) or judgement.field or "norm",
        reason=f"{judgement.reason or judgement.norm}{cause}",
    )  # fmt: skip


def _first(rules: Client | None, folder: ExportFolder) -> Finding | None:
    """What the rules find first."""
    return next(iter(rules.findings(folder)), None) if rules else None


def _place(finding: Finding | None) -> str | None:
    return finding.place if finding else None
