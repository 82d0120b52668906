"""Connections between ranks: strangers are dropped, the last words of a rank reach the others."""

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from trainer.distributed import peers as monitor
from trainer.distributed.peers import Link, Member, PeerMonitor
from trainer.errors import DataError

ME = Member(rank=0, host="here", process=10)
OTHER = Member(rank=1, host="there", process=11)


def pair() -> tuple[Link, Link]:
    """Both ends of a connection between `ME` and `OTHER`."""
    mine, theirs = socket.socketpair()
    return Link(mine, OTHER), Link(theirs, ME)


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b'{"token": "wrong", "rank": 1, "host": "there", "process": 11}\n',
        b'{"token": "right", "rank": "x", "host": "there", "process": 11}\n',
    ],
)
def test_strangers_are_dropped(words: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = listener.getsockname()
        hello = {"token": "right", "rank": 1, "host": "there", "process": 11}
        with socket.create_connection(place) as stranger, socket.create_connection(place) as rank:
            stranger.sendall(words)
            stranger.shutdown(socket.SHUT_WR)
            rank.sendall(json.dumps(hello).encode() + b"\n")
            with ThreadPoolExecutor() as pool:
                links = pool.submit(monitor._accept, listener, "right", 1).result(timeout=20)
            assert [link.member for link in links] == [OTHER]
            links[0].socket.close()


def test_messages_arrive_whole_however_they_are_cut() -> None:
    mine, theirs = pair()
    theirs.socket.sendall(b'{"kind": "fa')
    assert mine.receive() == []
    theirs.socket.sendall(b'ult"}\n{"kind": "left"}\n')
    assert mine.receive() == [{"kind": "fault"}, {"kind": "left"}]
    theirs.socket.close()
    assert mine.receive() is None
    mine.socket.close()


def test_rank_that_leaves_in_order_is_no_loss() -> None:
    mine, theirs = pair()
    own = PeerMonitor(ME, [mine], num_ranks=2, reports=True)
    with own.guarding():
        theirs.send(kind="left")
        theirs.socket.close()
    assert not own._lost.is_set()


def test_error_of_this_rank_is_told_to_the_others() -> None:
    mine, theirs = pair()
    own = PeerMonitor(ME, [mine], num_ranks=2, reports=True)
    with pytest.raises(ValueError, match="two"), own.guarding():
        raise ValueError("two\nlines")
    (message,) = theirs.receive() or []
    assert message == {"kind": "fault", "text": "ValueError: two", "code": 1, "known": False}
    theirs.socket.close()


WATCHING_RANK = """
import socket, sys, time
from trainer.distributed import peers as monitor

monitor.SAME_MISTAKE_SEC = 0.1
with socket.create_server(("127.0.0.1", 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    links = monitor._accept(listener, "right", 1)
me = monitor.Member(rank=0, host="here", process=10)
with monitor.PeerMonitor(me, links, num_ranks=2, reports=True).guarding():
    time.sleep(float(sys.argv[1]))
"""
"""The first rank, which does nothing for so many seconds and then leaves."""
HELLO = {"token": "right", "rank": 1, "host": "there", "process": 11}
FAULT = {"kind": "fault", "text": "data.jsonl: line 7 is wrong", "code": 2, "known": True}


def end_of_first_rank(
    last_words: object, *, seconds: float, piece_bytes: int, hangs_up: bool
) -> tuple[str, int]:
    """Messages and exit code of the first rank, to which another says hello and its last words."""
    words = b"".join(json.dumps(message).encode() + b"\n" for message in (HELLO, last_words))
    command = [sys.executable, "-c", WATCHING_RANK, str(seconds)]
    with subprocess.Popen(command, text=True, stdout=PIPE, stderr=PIPE) as rank:
        assert rank.stdout is not None
        place = ("127.0.0.1", int(rank.stdout.readline()))
        with socket.create_connection(place) as other:
            other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(words), piece_bytes):
                other.sendall(words[start : start + piece_bytes])
            if hangs_up:
                other.shutdown(socket.SHUT_WR)
            _, errors = rank.communicate(timeout=60)
    return errors, rank.returncode


@pytest.mark.parametrize(("piece_bytes", "hangs_up"), [(1000, True), (1000, False), (1, True)])
def test_last_words_count_however_they_come_with_the_hello(
    piece_bytes: int, hangs_up: bool
) -> None:
    errors, code = end_of_first_rank(FAULT, seconds=30, piece_bytes=piece_bytes, hangs_up=hangs_up)
    assert "rank 1 (host there, process 11), while rank 0 was before the first step: " in errors
    assert "data.jsonl: line 7 is wrong" in errors
    assert "without a word" not in errors
    assert code == 2


def test_rank_that_left_with_its_hello_is_no_loss() -> None:
    left = {"kind": "left"}
    errors, code = end_of_first_rank(left, seconds=0.5, piece_bytes=1000, hangs_up=True)
    assert "rank 1" not in errors
    assert code == 0


def test_error_longer_than_a_message_is_told_from_its_start() -> None:
    mine, theirs = pair()
    own = PeerMonitor(ME, [mine], num_ranks=2, reports=True)
    with pytest.raises(DataError), own.guarding():
        raise DataError("start " + "x" * 2 * monitor.MAX_LINE_BYTES)
    messages: list[Mapping[str, Any]] = []
    while (received := theirs.receive()) is not None:
        messages += received
    assert [message["code"] for message in messages] == [2]
    assert messages[0]["text"].startswith("start ")
    theirs.socket.close()


def vmstat_of(folder: Path, text: str) -> Path:
    path = folder / "vmstat"
    path.write_text(text, encoding="ascii")
    return path


@pytest.mark.parametrize(
    ("text", "kills"),
    [
        ("pgfault 12\noom_kill_disable 9\noom_kill 3\nswap_ra 0\n", 3),
        ("pgfault 12\n", 0),
        (None, 0),
    ],
)
def test_kills_by_the_kernel_are_counted_where_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, kills: int
) -> None:
    path = tmp_path / "absent" if text is None else vmstat_of(tmp_path, text)
    monkeypatch.setattr(monitor, "VMSTAT", path)
    assert monitor.kernel_kills() == kills


def test_kill_since_the_start_is_suspected_on_this_host_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = pair()
    monkeypatch.setattr(monitor, "VMSTAT", vmstat_of(tmp_path, "oom_kill 3\n"))
    own = PeerMonitor(ME, [mine], num_ranks=2, reports=True)
    neighbour = Member(rank=1, host="here", process=12)
    assert "The kernel has killed" not in own._suspicion(neighbour)
    vmstat_of(tmp_path, "oom_kill 4\n")
    assert "The kernel has killed a process of this host" in own._suspicion(neighbour)
    assert "The kernel has killed" not in own._suspicion(OTHER)
    for link in (mine, theirs):
        link.socket.close()
