"""Tokens made ahead: the same batches, never stale, whole or absent, whoever makes them."""

import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.both_modes import assert_same, assert_stored_alike, stores_in
from tests.support.data_files import (
    byte_tokenizer,
    data_recipe,
    ir_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from trainer.data import files, token_pieces, token_store
from trainer.data.known_positives import ABSENT, known_positives
from trainer.data.loader import batches
from trainer.data.planned import plan_of
from trainer.data.processes import send, started
from trainer.data.slot_table import number_digests
from trainer.data.sources import open_sources
from trainer.data.token_making import Making, make_pieces
from trainer.data.token_pieces import TokenJob, check_piece
from trainer.data.token_store import INDEX, TokenStore, check_index, open_store
from trainer.data.tokens import TextEncoder, make_encoder
from trainer.data.tokens_ahead import announce, estimate, is_ahead, token_jobs
from trainer.data.worker import Ahead
from trainer.errors import DataError, StepError
from trainer.recipe.schema import Recipe, SourceRecipe

Opened = tuple[Recipe, TextEncoder]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and pieces of four rows."""
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows(number: int) -> list[dict[str, Any]]:
    """Rows with other numbers of passages each."""
    return [
        {
            "query": f"the cat {row}",
            "positives": [f"sat {row} {i}" for i in range(1 + row % 3)],
            "negatives": [f"the dog {(row + i) % 7}" for i in range(row % 5)],
        }
        for row in range(number)
    ]


def opened(path: Path, *, data: dict[str, Any] | None = None, **settings: Any) -> Opened:
    recipe = data_recipe(
        [ir_source(path, **settings)],
        ir={"global_batch_size": 8, "positives": 2, "negatives": 3},
        data={"tokens": "ahead", "workers": 0, **(data or {})},
    )
    return recipe, make_encoder(byte_tokenizer(), recipe.data, pooling="last")


def job_of(recipe: Recipe, encoder: TextEncoder) -> TokenJob:
    """The making of the one source; its folder is there."""
    (job,) = token_jobs(recipe, open_sources(recipe.data), encoder, num_ranks=1).values()
    job.folder.mkdir(parents=True, exist_ok=True)
    return job


def made(recipe: Recipe, encoder: TextEncoder) -> TokenStore:
    job = job_of(recipe, encoder)
    make_pieces(job, first=0)
    store = open_store(job.folder)
    assert store is not None
    return store


def all_ids(store: TokenStore) -> list[list[int]]:
    """Token ids of all slots."""
    slots = np.arange(len(store.arrays["lengths"]))
    ids, ends = store.read(slots)
    return [part.tolist() for part in np.split(ids, ends[:-1])]


def expected_ids(recipe: Recipe, encoder: TextEncoder) -> list[list[int]]:
    """Token ids of all texts of all rows in order, by the tokenizer."""
    (source,), found = open_sources(recipe.data), []
    for row in range(len(source)):
        record = source.record(row)
        for texts in ([record.query], [*record.positives, *record.negatives]):
            encoded = encoder.encode(texts, instruction="", max_tokens=512)
            found += [ids.tolist() for ids in encoded.token_ids]
    return found


def test_batches_are_the_same_with_any_workers_and_ranks_and_after_a_resume(
    tmp_path: Path,
) -> None:
    pairs = [{"text1": f"a {i}", "text2": f"b {i % 4}", "score": i % 6} for i in range(12)]
    sources = [
        SourceRecipe(name="ir", task="ir", path=str(write_jsonl(tmp_path / "a.jsonl", rows(20)))),
        SourceRecipe(name="sts", task="sts", path=str(write_jsonl(tmp_path / "b.jsonl", pairs))),
    ]
    recipe = data_recipe(sources, ir={"positives": 2, "negatives": 3}, data={"workers": 0})
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
    opened_sources = open_sources(recipe.data)
    plan = plan_of(recipe, opened_sources)
    whole = list(batches(plan, opened_sources, encoder, recipe, 0, 12))
    stores = stores_in(tmp_path / "stores", recipe, opened_sources, encoder)
    # on the fly one source, ahead the other
    for chosen in (stores, {"ir": stores["ir"]}):
        for workers, rank, num_ranks, start in ((0, 0, 1, 0), (1, 1, 2, 5), (3, 7, 8, 3)):
            changed = replace(recipe, data=replace(recipe.data, workers=workers))
            ahead = Ahead(stores=chosen, rank=rank, num_ranks=num_ranks)
            found = batches(plan, opened_sources, encoder, changed, start, 12, ahead=ahead)
            for one, other in zip(whole[start:], found, strict=True):
                assert_same(one, other, rank=rank, num_ranks=num_ranks)


def test_sources_that_join_rows_are_the_same_in_both_modes(tmp_path: Path) -> None:
    corpus = {str(i): f"document {i % 9}" for i in range(12)}
    folder = write_beir(
        tmp_path / "beir", corpus=corpus, queries={str(i): f"query {i}" for i in range(5)}
    )
    write_qrels(folder, "train", [(str(i), str(i + j), 1) for i in range(5) for j in range(1 + i)])
    premises = [
        {"premise": f"p {i % 5}", "hypothesis": f"h {i}", "label": label}
        for i, label in enumerate(["entailment", "contradiction", "neutral", "entailment"] * 4)
    ]
    paths = (folder, write_jsonl(tmp_path / "nli.jsonl", premises))
    for path in paths:
        recipe = data_recipe(
            [ir_source(path)], ir={"positives": 2, "negatives": 1}, data={"workers": 0}
        )
        encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
        sources = open_sources(recipe.data)
        for batch in batches(plan_of(recipe, sources), sources, encoder, recipe, 0, 2):
            assert_stored_alike(batch, sources[0], encoder, recipe)


def naive_known_positives(
    query: list[int], positives: list[list[int]], passages: list[list[int]], num_positives: int
) -> list[tuple[int, int]]:
    """Pair by pair."""
    known: dict[int, dict[int, None]] = {}
    for number, found in zip(query, positives, strict=True):
        known.setdefault(number, {}).update(dict.fromkeys(found))
    flat = [index for slots in passages for index in slots]
    return [
        (row, column)
        for row, number in enumerate(query)
        for index in known[number]
        for column, other in enumerate(flat)
        if index == other != ABSENT and not 0 <= column - row * len(passages[0]) < num_positives
    ]


def test_known_positives_are_those_of_a_naive_search() -> None:
    choice = random.Random(0)
    for _ in range(200):
        total, size = choice.randint(1, 7), choice.randint(1, 12)
        query = [choice.randrange(size) for _ in range(total)]
        positives = [choice.choices(range(ABSENT, size), k=choice.randint(1, 4)) for _ in query]
        passages = [choice.choices(range(ABSENT, size), k=3) for _ in query]
        found = known_positives(
            np.array(query),
            np.array([index for one in positives for index in one]),
            np.array([len(one) for one in positives]),
            np.array(passages),
            num_positives=2,
        )
        assert found.dtype == np.int64
        assert found.tolist() == [
            [*pair] for pair in naive_known_positives(query, positives, passages, 2)
        ]


def test_digests_that_share_one_half_are_told_apart() -> None:
    digests = np.array([[5, 1], [5, 2], [6, 1], [5, 1], [5, 2], [7, 7]], np.uint64)
    found = number_digests(digests, np.arange(6), 6)
    assert found.number.tolist() == [0, 1, 2, 0, 1, 3]
    assert found.first.tolist() == [0, 1, 2, 5]
    assert found.several.tolist() == [True, True, False, False]
    found = number_digests(digests[[0, 2, 5, 0]] << np.uint64(60), np.arange(4), 4)
    assert (found.number.tolist(), found.first.tolist()) == ([0, 1, 2, 0], [0, 1, 2])
    found = number_digests(digests[[0, 2, 0]], np.array([1, 3, 4]), 6)
    assert (found.number.tolist(), found.first.tolist()) == ([0, 1, 2, 3, 1, 4], [0, 1, 2, 3, 5])
    assert found.several.tolist() == [False, True, False, False, False]
    assert number_digests(digests[:0], np.arange(0), 0).number.tolist() == []


def test_a_store_holds_every_text_and_what_it_takes_is_said_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, encoder = opened(write_jsonl(tmp_path / "a.jsonl", rows(11)))
    job = job_of(recipe, encoder)
    with caplog.at_level("INFO"):
        announce(job, num_processes=3)
    assert "source set: tokenising 11 rows once for all runs with 3 processes" in caplog.text
    store = made(recipe, encoder)
    ids = expected_ids(recipe, encoder)
    assert all_ids(store) == ids
    assert store.ids_dtype == np.uint16
    # every row is in the sample, so the estimate is exact
    found = estimate(job)
    assert found.num_tokens == sum(map(len, ids))
    assert len(store) == 11


def test_what_is_tokenised_ahead(tmp_path: Path) -> None:
    recipe, _ = opened(write_jsonl(tmp_path / "a.jsonl", rows(9)))
    (source,) = open_sources(recipe.data)

    def chosen(mode: str, num_ranks: int) -> bool:
        changed = replace(recipe, data=replace(recipe.data, tokens=mode))
        return is_ahead(changed, source, num_ranks=num_ranks)

    assert [chosen("ahead", 1), chosen("on_the_fly", 512)] == [True, False]
    assert [chosen("auto", 7), chosen("auto", 8)] == [False, True]


def test_another_source_tokenizer_limit_or_prompt_finds_other_tokens(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(9))
    recipe, encoder = opened(path)

    def folder(recipe: Recipe, encoder: TextEncoder = encoder) -> Path:
        return job_of(recipe, encoder).folder

    usual = folder(recipe)
    assert folder(recipe) == usual
    renamed = replace(recipe.data.sources[0], name="other", weight=2.0)
    assert folder(replace(recipe, data=replace(recipe.data, sources=(renamed,)))) == usual
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["cat"])
    others = [
        folder(opened(path, query_instruction="Q: ")[0]),
        folder(opened(path, passage_instruction="P: ")[0]),
        folder(opened(path, data={"query_max_tokens": 9})[0]),
        folder(opened(path, data={"passage_max_tokens": 9})[0]),
        folder(opened(path, data={"on_bad_row": "skip"})[0]),
        folder(recipe, make_encoder(tokenizer, recipe.data, pooling="last")),
        folder(recipe, make_encoder(byte_tokenizer(), recipe.data, pooling="last", num_ids=259)),
    ]
    path.write_text(path.read_text().replace("cat", "rat"))
    others.append(folder(recipe))
    assert len({usual, *others}) == 1 + len(others)


def test_a_source_that_changes_while_it_is_tokenised_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(9))
    recipe, encoder = opened(path)
    job = job_of(recipe, encoder)
    path.write_text(path.read_text().replace("cat", "rat"))
    with pytest.raises(DataError, match=r"a\.jsonl: content = another content than when the run"):
        make_pieces(job, first=0)
    assert not list(job.folder.glob("piece-*"))
    assert open_store(job.folder) is None
    store = made(recipe, encoder)
    assert all_ids(store) == expected_ids(recipe, encoder)
    assert store.folder != job.folder


def test_a_text_that_cannot_be_tokenised_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*rows(5), {"query": "q", "positives": ["a cat"]}])
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["a cat"])  # gets the highest id
    recipe, _ = opened(path)
    num_ids = len(tokenizer) - 1
    encoder = make_encoder(tokenizer, recipe.data, pooling="last", num_ids=num_ids)
    with pytest.raises(DataError, match=r"a\.jsonl:6: data: text = .* the model has no row for"):
        make_pieces(job_of(recipe, encoder), first=0)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": lambda folder: next(folder.glob("piece-*")).unlink(),
    r"\d+ bytes, not \d+": lambda folder: os.truncate(next(folder.glob("piece-*")), 40),
    "mmap length|cannot reshape|entries": lambda folder: os.truncate(
        folder / "index" / "lengths.npy", 130
    ),
    "Expecting|Unterminated": lambda folder: os.truncate(folder / "index" / "facts.json", 20),
}


@pytest.mark.parametrize("got", DAMAGES)
def test_a_damaged_store_is_refused_by_name(tmp_path: Path, got: str) -> None:
    recipe, encoder = opened(write_jsonl(tmp_path / "a.jsonl", rows(9)))
    folder = made(recipe, encoder).folder
    DAMAGES[got](folder)
    with pytest.raises(DataError, match=rf"content = .*({got}).*Delete the folder {folder}: "):
        open_store(folder)


def test_ids_that_are_not_as_they_were_written_are_refused(tmp_path: Path) -> None:
    recipe, encoder = opened(write_jsonl(tmp_path / "a.jsonl", rows(9)))
    store = made(recipe, encoder)
    (piece,) = store.folder.glob("piece-*")
    content = bytearray(piece.read_bytes())
    content[2] ^= 1
    piece.write_bytes(content)
    with pytest.raises(DataError, match=r"piece-000000.*other token ids than its index says"):
        store.read(np.arange(4))
    with pytest.raises(DataError, match=r"piece-000000.*another hash than its footer says"):
        check_piece(piece)
    store.read(np.arange(4, 9))  # texts beside it are whole


def test_a_damaged_piece_of_an_interrupted_making_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_pieces, "FEWEST_ROWS", 4)
    recipe, encoder = opened(write_jsonl(tmp_path / "a.jsonl", rows(22)))
    job = job_of(recipe, encoder)
    for number in (0, 2, 3):
        token_pieces.make_piece(job, number)
    pieces = sorted(job.folder.glob("piece-*"))
    kept = pieces[0].stat().st_mtime_ns
    content = bytearray(pieces[1].read_bytes())
    content[7] ^= 8
    pieces[1].write_bytes(content)
    os.truncate(pieces[2], 9)
    make_pieces(job, first=4)
    store = open_store(job.folder)
    assert store is not None
    assert all_ids(store) == expected_ids(recipe, encoder)
    assert pieces[0].stat().st_mtime_ns == kept
    assert len(list(job.folder.glob("piece-*"))) == job.num_pieces == 6


def test_a_full_disk_ends_with_one_message_and_what_is_finished_is_used(tmp_path: Path) -> None:
    recipe, encoder = opened(write_jsonl(tmp_path / "a.jsonl", rows(3000)))
    job = job_of(recipe, encoder)
    assert job.num_pieces == 3
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # a file cannot grow beyond this: the last piece is smaller, the others and the index are not
    token_pieces.make_piece(job, 2)
    size = next(job.folder.glob("piece-*")).stat().st_size
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(DataError, match=r"tokens of source set = not written \(File too large"):
            make_pieces(job, first=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in job.folder.iterdir() if path.is_file()].count("locks") == 1
    assert len(list(job.folder.iterdir())) == 2
    assert open_store(job.folder) is None
    make_pieces(job, first=0)
    store = open_store(job.folder)
    assert store is not None
    assert all_ids(store) == expected_ids(recipe, encoder)


def num_pieces(folder: Path) -> int:
    return len(list(folder.glob("piece-*")))


@pytest.mark.slow
def test_makers_that_are_killed_at_any_moment_leave_nothing_wrong(tmp_path: Path) -> None:
    recipe, encoder = opened(write_jsonl(tmp_path / "a.jsonl", rows(40_000)))
    job = job_of(recipe, encoder)
    assert job.num_pieces == 40
    choice = random.Random(5)
    for _ in range(20):
        before = num_pieces(job.folder)
        wanted = min(before + choice.randrange(4), 39)
        with started("trainer.data.token_making") as maker:
            assert maker.stdin is not None
            send(maker.stdin, (job, 0, None))
            while num_pieces(job.folder) < wanted and maker.poll() is None:
                time.sleep(0.005)
            time.sleep(choice.random() * 0.3)
            maker.kill()
        assert before <= num_pieces(job.folder)
        for piece in job.folder.glob("piece-*"):
            check_piece(piece)
    make_pieces(job, first=0)
    store = open_store(job.folder)
    assert store is not None
    assert not list(job.folder.glob(".building-*"))
    assert all_ids(store) == expected_ids(recipe, encoder)


def test_two_makings_at_once_deal_the_pieces(tmp_path: Path) -> None:
    recipe, encoder = opened(write_jsonl(tmp_path / "a.jsonl", rows(6000)))
    job = job_of(recipe, encoder)
    with Making(job, 1) as one, Making(job, 1) as other:
        stores = [making.advance(300) for making in (one, other)]
    for store in stores:
        assert store is not None
        assert all_ids(store) == expected_ids(recipe, encoder)
    assert one.num_made() == job.num_pieces == 6


def test_makers_end_when_the_process_that_started_them_is_killed(tmp_path: Path) -> None:
    recipe, encoder = opened(write_jsonl(tmp_path / "a.jsonl", rows(20_000)))
    script = (
        "import pickle, sys, time\n"
        "from trainer.data.token_making import Making\n"
        "making = Making(pickle.load(open(sys.argv[1], 'rb')), 1)\n"
        "making.__enter__()\n"
        "print(making.makers[0].pid, flush=True)\n"
        "making.advance(600)\n"
    )
    (tmp_path / "job").write_bytes(pickle.dumps(job_of(recipe, encoder)))
    command = [sys.executable, "-c", script, str(tmp_path / "job")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        maker = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{maker}/cmdline").exists() and time.monotonic() < deadline:
        if not Path(f"/proc/{maker}/cmdline").read_bytes():
            break  # ended, and nobody has looked yet
        time.sleep(0.1)
    assert time.monotonic() < deadline


def test_a_maker_that_dies_is_named(tmp_path: Path) -> None:
    recipe, encoder = opened(write_jsonl(tmp_path / "a.jsonl", rows(20_000)))
    with Making(job_of(recipe, encoder), 1) as making:
        os.kill(making.makers[0].pid, signal.SIGKILL)
        with pytest.raises(
            StepError, match=r"token maker \(process \d+\): exit code = -9; expected"
        ):
            making.advance(300)


def test_a_file_that_ended_a_maker_as_it_became_shorter_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(20_000))
    recipe, encoder = opened(path)
    with Making(job_of(recipe, encoder), 1) as making:
        os.truncate(path, 0)
        os.kill(making.makers[0].pid, signal.SIGBUS)  # as the system does at a page behind the end
        with pytest.raises(DataError, match=r"a\.jsonl: content = 0 bytes, \d+ when the run began"):
            making.advance(300)


def test_what_ends_a_maker_is_said_by_the_process_that_started_it(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(9))
    recipe, encoder = opened(path)
    job = job_of(recipe, encoder)
    path.write_text(path.read_text().replace("cat", "rat"))
    with Making(job, 1) as making, pytest.raises(DataError, match=r"a\.jsonl: content = another"):
        making.advance(300)


def test_a_disk_without_room_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    recipe, encoder = opened(write_jsonl(tmp_path / "a.jsonl", rows(9)))
    job = job_of(recipe, encoder)
    free = shutil.disk_usage(tmp_path).free
    texts = sum(2 + row % 3 + row % 5 for row in range(9))
    # as if each row stood for many: more than the disk has
    source = _Repeated(job.source, 9 * free // (texts * 20))
    with pytest.raises(DataError, match=r"free = .* GB; expected .* for the tokens of source set"):
        announce(replace(job, source=source), num_processes=1)


class _Repeated:
    """A source with more rows, which are those of another one again and again."""

    def __init__(self, source: Any, num_rows: int) -> None:
        self.source, self.num_rows, self.name = source, num_rows, source.name

    def __len__(self) -> int:
        return self.num_rows

    def record(self, row: int) -> Any:
        return self.source.record(row % len(self.source))


def test_a_piece_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    recipe, encoder = opened(write_jsonl(tmp_path / "a.jsonl", rows(9)))
    job = job_of(recipe, encoder)
    script = (
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'ab')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)\n"
        "print('locked', flush=True)\n"
        "time.sleep(1.5)\n"
    )
    command = [sys.executable, "-c", script, str(job.folder / "locks")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        make_pieces(job, first=0)
        assert holder.poll() == 0, "the piece was made while another process held it"
    assert open_store(job.folder) is not None


def test_an_index_that_is_not_as_it_was_written_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(*opened(write_jsonl(tmp_path / "a.jsonl", rows(9))))
    make_pieces(job, first=0)
    arrays = sorted((job.folder / INDEX).glob("*.npy"))
    assert len(arrays) == 9
    for path in arrays:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        told = rf"{path.name}: content = another hash than when it was written; expected a file"
        with pytest.raises(DataError, match=told):
            check_index(job.folder)
        with pytest.raises(DataError, match=told):
            open_store(job.folder)
        path.write_bytes(whole)
    assert open_store(job.folder) is not None
    # a large one is not read whole whenever a run begins
    monkeypatch.setattr(token_store, "HASHED_WHEN_OPENED", 0)
    arrays[0].write_bytes(arrays[0].read_bytes()[:-1] + b"?")
    assert open_store(job.folder) is not None


def test_a_file_with_other_content_and_the_times_of_the_old_one_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as archives and images have them that set all times alike
    monkeypatch.setattr(files, "CACHE_FROM_BYTES", 1)
    path = write_jsonl(tmp_path / "a.jsonl", rows(9))
    os.utime(path, ns=(1, 1))
    before = job_of(*opened(path))
    path.write_text(path.read_text().replace("cat", "dog"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="another content than when the run began"):
        before.source.check_files()
    assert job_of(*opened(path)).folder != before.folder
