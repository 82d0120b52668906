"""Tokens made by hosts that have a cache each: shares, copies, and what an interrupted run left."""

import logging
import os
import resource
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.data_files import byte_tokenizer, data_recipe, ir_source, write_jsonl
from tests.support.ranks import run_ranks
from trainer.data.sources import open_sources
from trainer.data.token_making import make_pieces
from trainer.data.token_pieces import TokenJob, check_piece
from trainer.data.token_store import INDEX, open_store, piece_path
from trainer.data.tokens import make_encoder
from trainer.data.tokens_ahead import token_jobs
from trainer.distributed.group import Ranks
from trainer.errors import HostError, TrainerError
from trainer.session.cache_groups import Host, groups_of_hosts
from trainer.session.token_shares import copies, dealt
from trainer.session.tokens import make_store

NUM_PIECES = 6


def hosts(*cores: int) -> list[list[Host]]:
    """Groups of one host each with so many cores."""
    return [
        [Host(name=f"h{rank}", rank=rank, num_cores=number, store="s", mark="m")]
        for rank, number in enumerate(cores)
    ]


@pytest.mark.parametrize("cores", [(1, 1), (2, 2, 2), (128, 128), (1, 3), (8,) * 64])
@pytest.mark.parametrize("num_missing", [0, 1, 20, 1024])
def test_every_piece_is_dealt_once_and_in_proportion(
    cores: tuple[int, ...], num_missing: int
) -> None:
    missing = np.arange(num_missing) * 3
    shares = dealt(missing, hosts(*cores))
    assert len(shares) == len(cores)
    assert np.array_equal(np.concatenate(shares), missing)
    for share, number in zip(shares, cores, strict=True):
        assert abs(len(share) - num_missing * number / sum(cores)) < 1


def test_pieces_are_sent_to_those_that_lack_them_by_those_that_have_them_in_turn() -> None:
    sizes = np.array([[5, 0, 7, 0, 9, 4], [5, 6, 7, 0, 0, 4], [0, 0, 7, 0, 9, 0]])
    found = [
        (one.number, one.num_bytes, one.sender.rank, one.receivers)
        for one in copies(sizes, hosts(1, 1, 1))
    ]
    assert found == [(0, 5, 0, {2}), (1, 6, 1, {0, 2}), (4, 9, 0, {1}), (5, 4, 1, {2})]


def job_in(cache: Path, path: Path) -> TokenJob:
    """The making of the one source in a cache."""
    os.environ["TRAINER_CACHE_DIR"] = str(cache)
    recipe = data_recipe([ir_source(path)], data={"tokens": "ahead", "workers": 0})
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
    (job,) = token_jobs(recipe, open_sources(recipe.data), encoder, num_ranks=1).values()
    assert job.num_pieces == NUM_PIECES
    return job


def written(tmp_path: Path) -> Path:
    rows = [{"query": f"q {i}", "positives": [f"p {i % 7}"]} for i in range(NUM_PIECES * 1024 - 9)]
    return write_jsonl(tmp_path / "a.jsonl", rows)


def content(folder: Path) -> dict[str, bytes]:
    """All files of a store but that of its locks."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "locks")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def keep(job: TokenJob, numbers: set[int]) -> None:
    """Leave what a killed run would: some pieces and no index."""
    shutil.rmtree(job.folder / INDEX)
    for number in set(range(NUM_PIECES)) - numbers:
        piece_path(job.folder, number).unlink()


def as_host(rank: int, world_size: int) -> tuple[Ranks, list[str]]:
    """A rank that is the first of its host, and what the trainer logs."""
    os.environ["LOCAL_RANK"] = "0"
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("trainer.session.token_shares").addHandler(handler)
    logging.getLogger("trainer.session.token_shares").setLevel(logging.INFO)
    return Ranks(rank=rank, world_size=world_size, device=torch.device("cpu")), lines


def raised(job: TokenJob, ranks: Ranks) -> str:
    try:
        make_store(job, ranks)
    except TrainerError as error:
        return f"{type(error).__name__}: {error}"
    return "made"


def make_with_a_cache_each(rank: int, world_size: int, folder: Path, path: Path) -> dict[str, Any]:
    """One store after another; what each left, and what was logged."""
    ranks, lines = as_host(rank, world_size)
    job = job_in(folder / f"cache{rank}", path)
    refusing = replace(job, row_texts=id)  # a maker of a piece dies of it
    found: dict[str, Any] = {}

    def note(name: str, outcome: str) -> None:
        found[name] = (outcome, lines[-1:], content(job.folder))
        lines.clear()

    note("new", raised(job, ranks))
    note("again", raised(refusing, ranks))
    if rank == 1:
        shutil.rmtree(job.folder)
    note("one cache lost", raised(refusing, ranks))
    keep(job, {0, 4} if rank == 0 else {0, 1, 2})
    note("interrupted", raised(job, ranks))
    keep(job, {0, 1, 2, 3} if rank == 0 else {3, 4, 5})
    if rank == 1:
        piece_path(job.folder, 5).write_bytes(b"half of a piece")
    note("damaged", raised(job, ranks))
    return found


@pytest.mark.slow
def test_hosts_with_a_cache_each_make_a_share_and_copy_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path)
    alone = job_in(tmp_path / "alone", path)
    alone.folder.mkdir(parents=True)
    make_pieces(alone, first=0)
    expected = content(alone.folder)
    both = run_ranks(make_with_a_cache_each, 2, tmp_path, path, timeout_sec=500)
    counts = {
        "new": "they made 3, 3 pieces and received 3, 3",
        "again": "they made 0, 0 pieces and received 0, 0",
        "one cache lost": "they made 0, 0 pieces and received 0, 6",
        "interrupted": "they made 1, 1 pieces and received 3, 2",
        "damaged": "they made 0, 0 pieces and received 2, 3",
    }
    for rank, found in enumerate(both):
        for name, count in counts.items():
            outcome, lines, files = found[name]
            assert outcome == "made", (rank, name)
            assert [line.rsplit("; ")[1] for line in lines] == [count], (rank, name)
            assert files == expected, (rank, name)


def refuse_damage_and_a_full_disk(
    rank: int, world_size: int, folder: Path, path: Path
) -> list[tuple[str, list[str]]]:
    ranks, _ = as_host(rank, world_size)
    job = job_in(folder / f"cache{rank}", path)
    job.folder.mkdir(parents=True, exist_ok=True)
    found = []

    def note(outcome: str) -> None:
        found.append((outcome, sorted(content(job.folder))))

    if rank == 0:
        make_pieces(job, first=0)
        piece = bytearray(piece_path(job.folder, 1).read_bytes())
        piece[5] ^= 1
        piece_path(job.folder, 1).write_bytes(piece)
    note(raised(job, ranks))
    if rank == 0:
        piece[5] ^= 1
        piece_path(job.folder, 1).write_bytes(piece)
    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    note(raised(job, ranks))
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    note(raised(job, ranks))
    check_piece(piece_path(job.folder, 1))
    return found


@pytest.mark.slow
def test_what_one_host_cannot_send_or_write_ends_all_with_one_message(tmp_path: Path) -> None:
    both = run_ranks(refuse_damage_and_a_full_disk, 2, tmp_path, written(tmp_path), timeout_sec=300)
    (damaged, _), (full, _), (made, whole) = both[0]
    assert [outcome for outcome, _ in both[1]] == [damaged, full, made]
    assert damaged.startswith("DataError: ")
    assert "piece-000001.tokens: content = damaged, as host " in damaged
    assert "(rank 0) sent it; expected a piece as it was written" in damaged
    assert full.startswith(f"DataError: {tmp_path / 'cache1'}")
    assert "not written (File too large)" in full
    assert made == "made"
    # what came before is kept, and nothing that looks finished is left
    assert [files for _, files in both[1]] == [["piece-000000.tokens"]] * 2 + [whole]
    store = open_store(job_in(tmp_path / "cache1", tmp_path / "a.jsonl").folder)
    assert store is not None


def groups_and_differences(rank: int, world_size: int, folder: Path, path: Path) -> list[Any]:
    ranks, lines = as_host(rank, world_size)
    shared = job_in(folder / "shared", path)
    make_store(shared, ranks)
    found = [lines, sorted(content(shared.folder))]
    own = job_in(folder / ("shared" if rank != 1 else "own"), path)
    groups = groups_of_hosts(own, ranks)
    torch.distributed.barrier()  # every host has removed its mark
    found.append([[host.rank for host in group] for group in groups])
    found.append(sorted(file.name for file in own.folder.glob(".building-*")))
    other = replace(own, folder=own.folder.parent.with_name(f"key{rank // 2}") / "tokens")
    try:
        make_store(other, ranks)
    except HostError as error:
        found.append(str(error))
    return found


@pytest.mark.slow
def test_hosts_that_share_a_folder_are_one_group_and_others_are_told_apart(tmp_path: Path) -> None:
    path = written(tmp_path)
    every = run_ranks(groups_and_differences, 3, tmp_path, path, timeout_sec=300)
    for lines, files, groups, marks, message in every:
        assert lines == []
        assert files[-NUM_PIECES:] == [f"piece-{i:06d}.tokens" for i in range(NUM_PIECES)]
        assert groups == [[0, 2], [1]]
        assert marks == []
        assert "(rank 2): tokens of source " in message
        assert " = key1; expected key0, as on host " in message
