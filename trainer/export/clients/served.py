"""A running server asked for the vectors of `parity.json`, over three HTTP interfaces.

Prompts are put before texts here, because interfaces differ in what they know of prompts.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from trainer.errors import CheckpointError
from trainer.export.clients.compare import Embedded
from trainer.export.clients.folder import ExportFolder
from trainer.export.parity_file import Parity

TIMEOUT_SEC = 120
"""Longest wait for one answer."""
BATCH = 4
"""Texts of a request."""
SERVED_MODEL = "model"
"""Named in requests where a server does not list its models."""


class RefusedError(Exception):
    """The server answered with an error."""


class Api(NamedTuple):
    """One interface."""

    path: str
    """Behind the server's address."""
    body: Callable[[Sequence[str], str], dict[str, Any]]
    """Texts and the model's name to a request."""
    vectors: Callable[[Any], list[Any]]
    """An answer to its vectors, in order."""
    batch: int
    """Texts of a request."""
    cuts: bool
    """Whether long texts may be sent, and are cut as the folder says."""


APIS = {
    "openai": Api(
        path="/v1/embeddings",
        body=lambda texts, model: {"model": model, "input": list(texts)},
        vectors=lambda answer: [
            entry["embedding"] for entry in sorted(answer["data"], key=lambda e: int(e["index"]))
        ],
        batch=BATCH,
        cuts=False,
    ),
    "tei": Api(
        path="/embed",
        body=lambda texts, model: {"inputs": list(texts), "truncate": True},
        vectors=lambda answer: list(answer),
        batch=BATCH,
        cuts=True,
    ),
    "llama.cpp": Api(
        path="/embedding",
        body=lambda texts, model: {"content": texts[0]},
        vectors=lambda answer: [_llama_vector(answer)],
        batch=1,
        cuts=False,
    ),
}
"""By the name that a user gives."""


def _llama_vector(answer: Any) -> Any:
    """Older servers answer with an object, newer ones with a list, and nest the pooled vector."""
    entry = answer[0] if isinstance(answer, list) else answer
    vector = entry["embedding"]
    return vector[0] if isinstance(vector[0], list) else vector


def run_served(folder: ExportFolder, parity: Parity, *, url: str, api: str) -> Embedded:
    """Vectors of all texts that the interface can take.

    A text that must be cut is sent only where the server cuts as the trainer did.

    Args:
        folder: of the model that is served.
        parity: what the trainer made.
        url: address of the server, with or without the path of the interface.
        api: a name of `APIS`.

    Raises:
        CheckpointError: no server at the address, or an answer of another form.
        RefusedError: the server answered with an error.
    """
    interface = APIS[api]
    address = url.rstrip("/").removesuffix(interface.path).removesuffix("/v1")
    model = _model_name(address) if api == "openai" else ""
    same_limit = folder.sentence.get("max_seq_length") == parity.settings.max_tokens
    numbers = [
        number
        for number, text in enumerate(parity.texts)
        if not parity.is_cut(text) or (interface.cuts and same_limit)
    ]
    vectors: list[Any] = []
    for start in range(0, len(numbers), interface.batch):
        texts = [parity.texts[n].whole for n in numbers[start : start + interface.batch]]
        answer = _post(address + interface.path, interface.body(texts, model))
        vectors += _vectors(interface, answer, len(texts), address)
    return Embedded(numbers=numbers, vectors=_matrix(vectors, address), token_ids=None)


def _vectors(interface: Api, answer: Any, count: int, address: str) -> list[Any]:
    """Vectors of an answer, as many as texts were sent."""
    try:
        found = interface.vectors(answer)
    except (KeyError, IndexError, TypeError, ValueError):
        found = []
    if len(found) != count:
        raise _strange(address, f"{answer!s:.80}")
    return found


def _matrix(vectors: list[Any], address: str) -> np.ndarray:
    """Vectors as numbers [n, D]."""
    try:
        matrix = np.array(vectors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _strange(address, "vectors of several sizes or of no numbers") from error
    return matrix


def _strange(address: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"--url {address}: answer = {found}; expected one vector for each text. "
        "Choose the interface of the server with --api."
    )


def _model_name(address: str) -> str:
    """The model that a server lists first."""
    try:
        entries = _ask(urllib.request.Request(f"{address}/v1/models"), address)["data"]
        return str(entries[0]["id"])
    except (RefusedError, KeyError, IndexError, TypeError):
        return SERVED_MODEL


def _post(address: str, body: dict[str, Any]) -> Any:
    """The answer to a request."""
    request = urllib.request.Request(
        address,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    return _ask(request, address)


def _ask(request: urllib.request.Request, address: str) -> Any:
    """JSON of an answer.

    Raises:
        CheckpointError: no server, or no JSON.
        RefusedError: the server answered with an error.
    """
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SEC) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        raise RefusedError(f"HTTP {error.code}: {said:.200}") from error
    except (OSError, urllib.error.URLError) as error:
        raise CheckpointError(
            f"--url {address}: server = {error}; expected an answer within {TIMEOUT_SEC} seconds. "
            "Start the server, or correct the address."
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"--url {address}: answer = no JSON ({error}); expected JSON. "
            "Choose the interface of the server with --api."
        ) from error
