"""Who died: every rank holds a connection to the first one; it must not know tensors or steps.

However a process dies, its connections close. The first rank sees those of the others close and
they see the first one's, while collectives may wait for half an hour. A rank that ends in order,
or with an error of its own, says so before it goes. Messages are JSON lines; nothing of them is
executed, and a connection without the run's token is dropped.
"""

import contextlib
import json
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from trainer.errors import TrainerError

logger = logging.getLogger(__name__)

TIE_SEC = 15.0
"""How long the first rank waits for the others to connect, which all start at the same moment."""
HELLO_SEC = 2.0
"""How long a connection may take to say who it is."""
SAME_MISTAKE_SEC = 3.0
"""Ranks meet the same mistake within this time; then each ends by itself."""
BROKEN_SEC = 5.0
"""A collective that broke because a rank died is followed by the news of it within this time."""
SPEAKER_FIRST_SEC = 1.0
"""How long the other ranks let the one that reports the death go first."""
QUIET_HOST = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2}
"""Seconds of silence, seconds between probes, probes: a host without power is missed after 20 s."""
MAX_LINE_BYTES = 1 << 16
"""A longer message is no message."""
RECEIVED_BYTES = 4096
"""Of a connection at a time."""
VMSTAT = Path("/proc/vmstat")
"""Where Linux counts what its out-of-memory killer did."""
MAX_TEXT = 4000
"""Characters of an error that others are told; JSON needs up to 12 bytes for one."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process of the run, as messages name it."""

    rank: int
    """Global rank."""
    host: str
    """Name of its host."""
    process: int
    """Its process id there."""

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, process {self.process})"


@dataclass
class Link:
    """One connection to another rank."""

    socket: socket.socket
    """Connected."""
    member: Member
    """Who is at the other end."""
    unread: bytes = b""
    """The start of a message whose end has not come."""

    def send(self, **message: Any) -> None:
        """Send a message; a rank that is gone needs none."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Mapping[str, Any]] | None:
        """The messages that have come, or None where the connection ended."""
        try:
            content = self.socket.recv(RECEIVED_BYTES)
        except OSError:
            content = b""
        if not content or len(self.unread) > MAX_LINE_BYTES:
            return None
        self.unread += content
        return self.take()

    def take(self) -> list[Mapping[str, Any]]:
        """The messages that are here already, without a look at the connection."""
        *whole, self.unread = self.unread.split(b"\n")
        return [json.loads(line) for line in whole]


class PeerMonitor:
    """This rank's connections, watched by a thread that ends the process when a rank is lost."""

    def __init__(self, member: Member, links: list[Link], *, num_ranks: int, reports: bool) -> None:
        self.member = member
        self.place = "before the first step"
        self._links = links
        self._num_ranks = num_ranks
        self._reports = reports
        self._kills_before = kernel_kills()
        self._lost = threading.Event()
        self._closing = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)

    @contextlib.contextmanager
    def guarding(self) -> Iterator[None]:
        """Watch during the block, and send the others how it ended."""
        self._thread.start()
        try:
            yield
        except BaseException as error:
            self._fail(error)
            raise
        self._close(kind="left")

    def _fail(self, error: BaseException) -> None:
        """Notify the others; where a rank died and broke a collective, report that instead."""
        if isinstance(error, RuntimeError) and self._lost.wait(BROKEN_SEC):
            # the watching thread reports which rank it was and ends this process
            time.sleep(SAME_MISTAKE_SEC + 2 * SPEAKER_FIRST_SEC)
        if isinstance(error, TrainerError):
            text, code = str(error)[:MAX_TEXT], error.exit_code
            # the first rank meets the same mistake, or reports this one
            error.reported = self.member.rank > 0 and bool(self._links)
        else:
            first_line = (str(error).splitlines() or [""])[0]
            text, code = f"{type(error).__name__}: {first_line[:500]}", 1
        known = isinstance(error, TrainerError)
        self._close(kind="fault", text=text, code=code, known=known)

    def _close(self, **last_words: Any) -> None:
        """Say a last message and end the watching thread."""
        self._closing.set()
        for link in self._links:
            link.send(**last_words)
        self._wake.close()
        self._thread.join()
        for link in self._links:
            link.socket.close()

    def _watch(self) -> None:
        """Body of the thread: wait for the first rank that is lost."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for link in self._links:
                # last words that came with the hello; nothing need follow them
                if not self._has_left(link, link.take()):
                    selector.register(link.socket, selectors.EVENT_READ, link)
            while not self._closing.is_set():
                for key, _ in selector.select():
                    if key.data is not None and self._has_left(key.data, key.data.receive()):
                        selector.unregister(key.fileobj)

    def _has_left(self, link: Link, messages: Sequence[Mapping[str, Any]] | None) -> bool:
        """Whether a rank ended in order; does not return where it is lost."""
        if messages is None:
            messages = [{"kind": "lost"}]
        for message in messages:
            if message["kind"] == "left":
                return True
            if not self._ends_itself(message["kind"]):
                self._end(link, message)
        return bool(messages)

    def _ends_itself(self, kind: str) -> bool:
        """Whether this rank is at its end too; ranks meet a mistake at the same time."""
        self._lost.set()
        return self._closing.wait(SAME_MISTAKE_SEC if kind == "fault" else 0)

    def _end(self, link: Link, message: Mapping[str, Any]) -> NoReturn:
        """End this process, and say why if that is this rank's part."""
        code = int(message.get("code", 1))
        for other in self._links:
            if other is not link:
                other.send(kind="end", code=code)
        if self._reports and message["kind"] != "end":
            sys.stderr.write(f"{self._failure_message(link.member, message)}\n")
        else:
            time.sleep(SPEAKER_FIRST_SEC)
        sys.stderr.flush()
        # the group is broken: nothing that waits for other ranks may run any more
        os._exit(code)

    def _failure_message(self, member: Member, message: Mapping[str, Any]) -> str:
        """The failure message about a rank that is lost."""
        here = f"while rank {self.member.rank} was {self.place}"
        if message.get("known"):
            return f"{member}, {here}: {message['text']}"
        rule = f"expected {self._num_ranks} ranks until the run ends"
        if message["kind"] == "fault":
            found, advice = f"failed with {message['text']}", "Its traceback is above."
        else:
            found, advice = "ended without a word", self._suspicion(member)
        return f"{member}: state = {found}, {here}; {rule}. {advice} Continue with --resume."

    def _suspicion(self, member: Member) -> str:
        """What may have ended a process that had no time to speak."""
        if member.host == self.member.host and kernel_kills() > self._kills_before:
            return (
                "The kernel has killed a process of this host for lack of memory since the run "
                "began: see dmesg, and lower engine.max_tokens_per_chunk or data.workers."
            )
        return (
            "It was killed or crashed: see the lines above, and dmesg of its host for the "
            "out-of-memory killer."
        )


def kernel_kills() -> int:
    """Processes that the kernel has killed on this host for lack of memory; 0 where unknown."""
    try:
        lines = VMSTAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return found[0] if found else 0


def connect(rank: int, num_ranks: int) -> PeerMonitor:
    """Connect all ranks to the first one.

    Without a connection (a firewall) the run goes on; the group's timeout then reports a death.

    Args:
        rank: global rank of this process.
        num_ranks: over all hosts, at least 2.

    Collective: yes.
    """
    me = Member(rank=rank, host=socket.gethostname(), process=os.getpid())
    offer: list[Any] = [None]
    if rank == 0:
        listener = _listen()
        token = secrets.token_hex(16)
        offer = [(listener.getsockname()[1], token, me)]
    dist.broadcast_object_list(offer)
    port, token, first = offer[0]
    if rank == 0:
        with listener:
            links = _accept(listener, token, num_ranks - 1)
        return PeerMonitor(me, links, num_ranks=num_ranks, reports=True)
    # if the first rank dies, the next one of each host reports
    speaker = 1 if me.host == first.host else 0
    speaks = int(os.environ.get("LOCAL_RANK", rank)) == speaker
    return PeerMonitor(me, _connect(port, token, me, first), num_ranks=num_ranks, reports=speaks)


def _listen() -> socket.socket:
    """A listening socket where the other ranks look for the first one."""
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    try:
        family, _, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        return socket.create_server((place[0], 0), family=family)
    except OSError:
        # an address of a service in front of this host, or of the host's other side
        return socket.create_server(("", 0))


def _accept(listener: socket.socket, token: str, num_links: int) -> list[Link]:
    """The connections of all other ranks, or of those that came in time."""
    deadline = time.monotonic() + TIE_SEC
    links: list[Link] = []
    while len(links) < num_links:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            logger.warning(
                "peer monitor: %d of %d ranks connected; the death of another one is reported only "
                "after engine.timeout_minutes. Let the hosts connect to each other on all ports",
                len(links),
                num_links,
            )
            break
        link = _greeted(connection, token)
        if link is not None:
            links.append(link)
    return links


def _greeted(connection: socket.socket, token: str) -> Link | None:
    """The connection, if it belongs to this run, with what came behind the hello."""
    try:
        line, unread = _first_line(connection)
        hello = json.loads(line)
        if not secrets.compare_digest(str(hello["token"]), token):
            raise ValueError("another run's token")
        host, rank, process = str(hello["host"]), int(hello["rank"]), int(hello["process"])
    except (OSError, ValueError, KeyError, TypeError):
        connection.close()
        return None
    member = Member(rank=rank, host=host, process=process)
    return Link(_lasting(connection), member, unread)


def _first_line(connection: socket.socket) -> tuple[bytes, bytes]:
    """The first line of a connection, and what came with its end.

    Raises:
        OSError: it does not come in time.
        ValueError: the connection ended first, or the line is too long.
    """
    deadline, content = time.monotonic() + HELLO_SEC, b""
    while b"\n" not in content:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no hello in time")
        connection.settimeout(left)
        received = connection.recv(RECEIVED_BYTES)
        content += received
        if not received or len(content) > MAX_LINE_BYTES:
            raise ValueError("no hello")
    line, _, unread = content.partition(b"\n")
    return line, unread


def _connect(port: int, token: str, me: Member, first: Member) -> list[Link]:
    """The connection to the first rank; none where it cannot be reached."""
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    try:
        link = Link(_lasting(socket.create_connection((address, port), timeout=TIE_SEC)), first)
    except OSError:
        return []
    link.send(token=token, rank=me.rank, host=me.host, process=me.process)
    return [link]


def _lasting(connection: socket.socket) -> socket.socket:
    """A connection that waits for ever, but notices a host that no longer answers."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in QUIET_HOST.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
