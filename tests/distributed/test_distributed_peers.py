"""Connections between ranks: strangers are dropped, the last words of a rank reach the others."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from trainer.distributed import peers as monitor
from trainer.distributed.peers import Link, Member, PeerMonitor

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


def test_kills_by_the_kernel_are_counted_where_they_can_be() -> None:
    assert monitor.kernel_kills() >= 0
