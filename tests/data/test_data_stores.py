"""Sources on object stores: the same as the local files, fetched once, whole or refused by name."""

import gzip
import json
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pytest
from pyarrow import feather, parquet

from tests.support.data_files import (
    byte_tokenizer,
    data_recipe,
    ir_source,
    labels_source,
    write_beir,
    write_jsonl,
    write_qrels,
)
from tests.support.object_store import Store, store_in_reach
from trainer.data import fetching
from trainer.data.cache import locked
from trainer.data.evalsets import open_eval_set
from trainer.data.fetching import fetched, is_at_hand, place_of
from trainer.data.ir import IrEvalSet
from trainer.data.remote import find_remote, is_remote, placed
from trainer.data.row_settings import with_row_settings
from trainer.data.sources import Source, open_source, open_sources
from trainer.data.token_making import make_pieces
from trainer.data.token_store import open_store
from trainer.data.tokens import make_encoder
from trainer.data.tokens_ahead import token_jobs
from trainer.errors import DataError
from trainer.recipe.schema import DataRecipe, EvalSetRecipe, SourceRecipe

ROWS = [{"query": f"q {i}", "positive": f"p {i}", "negative": f"n {i}"} for i in range(40)]
CONTENT = b"".join(b"%06d\n" % number for number in range(5000))
"""35,000 bytes, no two blocks of which are the same."""


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with store_in_reach() as found:
        yield found


@pytest.fixture(autouse=True)
def fresh(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of each test alone, no faults, small blocks and short waits."""
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets.disable_progress_bars()
    monkeypatch.setattr(fetching, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(fetching, "FIRST_WAIT_SEC", 0.001)
    yield
    store.faults.__init__()  # type: ignore[misc]


def assert_alike(found: Source, expected: Source) -> None:
    """Two sources have the same records and the same fingerprint."""
    assert len(found) == len(expected)
    for row in range(len(expected)):
        assert found.record(row) == expected.record(row)
    assert found.fingerprint == expected.fingerprint


def content_at(address: str) -> bytes:
    return Path(fetched(find_remote(address, owner="data.sources.set: path"))).read_bytes()


def write_as(path: Path) -> Path:
    """The rows in the form that a suffix says."""
    table, lines = pyarrow.Table.from_pylist(ROWS), [json.dumps(row) for row in ROWS]
    text = "\n".join(lines)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".arrow":
        feather.write_feather(table, path, compression="uncompressed")
    elif path.suffix == ".zst":
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(text.encode())
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix in (".csv", ".tsv"):
        between = "," if path.suffix == ".csv" else "\t"
        rows = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
        path.write_text("".join(between.join(row) + "\n" for row in rows))
    else:
        path.write_text(f"[{','.join(lines)}]" if path.suffix == ".json" else text)
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a.jsonl.gz",
             "a b+c%=.jsonl", "A.JSONL.zst"],
)  # fmt: skip
def test_a_file_of_every_form_is_the_local_file(name: str, store: Store, tmp_path: Path) -> None:
    file = write_as(tmp_path / name)
    address = store.put(f"forms/{name}", file.read_bytes())
    found = open_source(ir_source(address), ".")
    assert_alike(found, open_source(ir_source(file), "."))
    assert f"/s3/data/forms/{name}" in found.place(0)
    # from the second time on nothing is read
    store.faults.ranges.clear()
    assert_alike(open_source(ir_source(address), "."), found)
    assert store.faults.ranges == []


def test_folders_globs_and_a_root(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    (folder / "old").mkdir(parents=True)
    for part in range(3):
        write_jsonl(folder / f"part-{part}.jsonl", ROWS[part * 10 : part * 10 + 10])
    write_jsonl(folder / "old" / "part-9.jsonl", ROWS[30:])
    (folder / "notes.md").write_text("nothing to read")
    address = store.put_folder("many", folder)
    for path in ("", "/", "/part-[12].jsonl", "/part-?.jsonl", "/*/part-*.jsonl", "/**/*.jsonl"):
        expected = open_source(ir_source(f"{folder}{path}"), ".")
        store.faults.ranges.clear()
        assert_alike(open_source(ir_source(f"{address}{path}"), "."), expected)
        # a shard is fetched once, whatever names it
        assert len(store.faults.ranges) == {"": 3, "/*/part-*.jsonl": 1}.get(path, 0)
        assert_alike(open_source(ir_source(f"many{path}"), "s3://data/"), expected)
    assert placed("/a/b", "s3://data") == "/a/b"
    assert placed("gs://x/y", "s3://data") == "gs://x/y"
    assert not is_remote("a/b://c")


def test_a_prefix_in_the_form_of_beir(store: Store, tmp_path: Path) -> None:
    corpus = {f"d{i}": f"document {i}" for i in range(9)}
    folder = write_beir(
        tmp_path / "beir", corpus=corpus, queries={f"q{i}": f"query {i}" for i in range(3)}
    )
    write_qrels(folder, "train", [("q0", "d1", 1), ("q1", "d2", 1), ("q1", "d3", 2)])
    write_qrels(folder, "dev", [("q2", "d8", 1)])
    address = store.put_folder("sets/beir", folder)
    assert_alike(open_source(ir_source(address), "."), open_source(ir_source(folder), "."))
    held_out = EvalSetRecipe(name="far", task="ir", path="beir")
    found, expected = (
        open_eval_set(held_out, DataRecipe(sources=(), root=root))
        for root in ("s3://data/sets", str(tmp_path))
    )
    assert isinstance(found, IrEvalSet)
    assert isinstance(expected, IrEvalSet)
    assert (found.qrels, found.queries) == ({"q2": {"d8": 1}}, ("query 2",))
    assert list(found.corpus) == list(expected.corpus)


def test_what_goes_with_a_source_may_lie_there_too(store: Store, tmp_path: Path) -> None:
    labels = [{"text": f"text {i}", "label": i % 2} for i in range(8)]
    folder = tmp_path / "with"
    (folder / "teacher").mkdir(parents=True)
    write_jsonl(folder / "labels.jsonl", labels)
    (folder / "texts.json").write_text(json.dumps({"0": "even", "1": "odd"}))
    np.save(folder / "teacher" / "embeddings.npy", np.eye(8, dtype=np.float32) + 1)
    write_jsonl(folder / "teacher" / "texts.jsonl", [row["text"] for row in labels])
    store.put_folder("with", folder)
    recipe = labels_source("labels.jsonl", label_texts="texts.json", teacher_embeddings="teacher")
    found, expected = (open_source(recipe, root) for root in ("s3://data/with", str(folder)))
    assert_alike(found, expected)
    assert found.teacher_vectors is not None
    rows = [{"query": f"q {i}", "pos": ["p"], "neg": ["n", "m"], "prompt": "Find: "} for i in "ab"]
    address = store.put("with/flag.jsonl", "\n".join(map(json.dumps, rows)).encode())
    carried = with_row_settings(data_recipe([ir_source(address, row_settings=True)]))
    (source,) = carried.data.sources
    assert (source.query_instruction, source.path) == ("Find: ", address)


def test_other_protocols_are_read_alike(store: Store, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", ROWS)
    store.put("web/a.jsonl", file.read_bytes())
    expected = open_source(ir_source(file), ".")
    web = f"{store.url}/data/web/a.jsonl"
    assert_alike(open_source(ir_source(f"{web}?token=secret"), "."), expected)
    assert_alike(open_source(ir_source(f"file://{file}"), "."), expected)
    store.faults.hides_versions = True
    with pytest.raises(DataError, match=r"set: path = http.*/a.jsonl: no size or no version of a"):
        open_source(ir_source(f"{web}?token=other"), ".")
    store.faults.refuses = True
    with pytest.raises(DataError, match=r"/a.jsonl: refused \(ClientResponseError: 403") as raised:
        open_source(ir_source(f"{web}?token=secret"), ".")
    assert "secret" not in str(raised.value)


def test_reading_goes_on_after_faults(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    address = store.put("faults.bin", CONTENT)
    store.faults.at_get = [*[lambda: None] * 2, lambda: setattr(store.faults, "num_broken", 4)]
    assert content_at(address) == CONTENT
    # four faults in a row are not too many; what had arrived is not asked for again
    starts = [span.partition("=")[2].partition("-")[0] for span in store.faults.ranges]
    assert starts == ["0", "4000", *["8000"] * 5, *(str(at) for at in range(12000, 35000, 4000))]
    told = "s3://data/faults.bin: broke off after 8000 of 35000 bytes (ClientPayloadError: "
    assert caplog.text.count(told) == 4


def test_a_web_server_that_is_away_has_not_changed_its_file(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("away.bin", CONTENT)
    web = f"{store.url}/data/away.bin"
    # of one fault, both what is asked for and the look at the version are refused
    store.faults.at_get = [*[lambda: None] * 2, lambda: setattr(store.faults, "num_unavailable", 6)]
    assert content_at(web) == CONTENT
    assert caplog.text.count(f"{web}: broke off after 12000 of 35000 bytes (ClientResponseEr") == 2
    # that it is whole counts once it is known to be of one version

    def change() -> None:
        store.put("away.bin", CONTENT[::-1])
        store.faults.num_unavailable = 3

    store.faults.at_get = [*[lambda: None] * 8, change]
    with pytest.raises(DataError, match="another version than when it was looked at"):
        content_at(f"{web}?last")
    store.put("away.bin", CONTENT)
    remote = find_remote(f"{web}?again", owner="o")
    store.faults.at_get = [lambda: setattr(store.faults, "num_unavailable", 99)]
    with pytest.raises(
        DataError,
        match=r"after 4000 of 35000 bytes, 5 time\(s\) in a row \(ClientResponseError: 503",
    ):
        fetched(remote)
    with pytest.raises(
        DataError, match=r"o = .*: ClientResponseError: 503.*; expected a store that"
    ):
        find_remote(web, owner="o")
    store.faults.num_unavailable = 0
    store.faults.ranges.clear()
    assert content_at(f"{web}?again") == CONTENT
    assert store.faults.ranges[0] == "bytes=4000-7999"


def test_a_store_that_breaks_off_again_and_again_is_named_and_the_rest_is_fetched_later(
    store: Store,
) -> None:
    address = store.put("broken.bin", CONTENT)
    remote = find_remote(address, owner="data.sources.set: path")
    store.faults.at_get = [lambda: None, lambda: setattr(store.faults, "num_broken", 99)]
    with pytest.raises(
        DataError,
        match=r"^s3://data/broken\.bin: content = broke off after 4000 of 35000 bytes, 5 time\(s\) "
        r"in a row \(ClientPayloadError: .*\); expected a store that sends it to its end\. .* "
        r"start again: reading goes on where it stopped\.$",
    ) as raised:
        fetched(remote)
    assert raised.value.exit_code == 2
    assert not place_of(remote.files[0]).exists()
    store.faults.num_broken = 0
    store.faults.ranges.clear()
    assert content_at(address) == CONTENT
    assert store.faults.ranges[0] == "bytes=4000-7999"


def test_an_object_that_changes_is_never_out_of_date(store: Store, tmp_path: Path) -> None:
    def opened() -> tuple[Source, Any]:
        recipe = data_recipe([ir_source(address)], data={"tokens": "ahead", "workers": 0})
        sources = open_sources(recipe.data)
        encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
        (job,) = token_jobs(recipe, sources, encoder, num_ranks=1).values()
        return sources[0], job

    first = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    address = store.put("changing.jsonl", first)
    old, old_job = opened()
    old_job.folder.mkdir(parents=True)
    make_pieces(old_job, first=0)
    assert open_store(old_job.folder) is not None
    # of the same length, within the same second
    store.put("changing.jsonl", first.replace(b"q 7", b"q 8"))
    new, new_job = opened()
    assert (old.record(7).query, new.record(7).query) == ("q 7", "q 8")
    assert old.fingerprint != new.fingerprint
    assert old_job.folder != new_job.folder
    assert open_store(new_job.folder) is None
    old.check_files()  # a run that has begun keeps what it began with
    # the same file, wherever it lies, has the same tokens
    store.put("changing.jsonl", first)
    local = tmp_path / "local.jsonl"
    local.write_bytes(first)
    again = data_recipe([ir_source(local)], data={"tokens": "ahead", "workers": 0})
    encoder = make_encoder(byte_tokenizer(), again.data, pooling="last")
    (job,) = token_jobs(again, open_sources(again.data), encoder, num_ranks=1).values()
    assert job.folder == old_job.folder == opened()[1].folder


@pytest.mark.parametrize("at", [0, 3, 8])
def test_an_object_that_changes_while_it_is_fetched_is_refused(at: int, store: Store) -> None:
    address = store.put("moving.bin", CONTENT)
    other = CONTENT[::-1]
    store.faults.at_get = [*[lambda: None] * at, lambda: store.put("moving.bin", other)]
    with pytest.raises(DataError, match=r"s3://data/moving.bin: another version than when it was"):
        content_at(address)
    assert content_at(address) == other
    store.faults.at_get = [*[lambda: None] * at, lambda: store.remove("moving.bin")]
    store.put("moving.bin", CONTENT)
    with pytest.raises(DataError, match=r"s3://data/moving.bin: another version than when it was"):
        content_at(address)


def test_a_partial_file_of_another_version_is_not_gone_on_with(store: Store) -> None:
    address = store.put("twice.bin", CONTENT)
    store.faults.at_get = [lambda: None, lambda: setattr(store.faults, "num_broken", 99)]
    with pytest.raises(DataError, match="broke off after 4000 of 35000"):
        content_at(address)
    store.faults.num_broken = 0
    other = CONTENT[::-1]
    store.put("twice.bin", other)
    assert content_at(address) == other


def test_processes_that_start_at_once_fetch_a_file_once(store: Store) -> None:
    address = store.put("shared.bin", CONTENT)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(content_at(address))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert len(store.faults.ranges) == 9


def test_processes_that_start_at_once_fetch_different_files(store: Store) -> None:
    first, second = (store.put(f"two/{name}.bin", CONTENT) for name in "ab")
    remote = find_remote("s3://data/two/*.bin", owner="o")
    place_of(remote.files[0]).parent.parent.mkdir()
    waiting = threading.Thread(target=lambda: fetched(remote))
    with locked(place_of(remote.files[0]).parent.with_suffix(".lock")):
        waiting.start()
        while not place_of(remote.files[1]).exists():
            assert waiting.is_alive()
    waiting.join()
    assert [content_at(address) for address in (first, second)] == [CONTENT] * 2
    assert len(store.faults.ranges) == 18


def test_a_cache_that_was_moved_is_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    address = store.put("moved.bin", CONTENT)
    content_at(address)
    old = Path(os.environ["TRAINER_CACHE_DIR"])
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(old.rename(old.with_name("moved"))))
    store.faults.ranges.clear()
    assert content_at(address) == CONTENT
    assert store.faults.ranges == []


def test_a_disk_without_room_is_named_and_what_arrived_is_kept(store: Store) -> None:
    address = store.put("large.bin", CONTENT)
    remote = find_remote(address, owner="o")
    huge = replace(remote, files=(replace(remote.files[0], size_bytes=1 << 60),))
    with pytest.raises(DataError, match=r"large.bin: 1.15e\+09 GB to fetch; expected at most the "):
        fetched(huge)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(DataError, match=r"large.bin: not kept in .* \(File too large\); "):
            fetched(remote)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not place_of(remote.files[0]).exists()
    assert content_at(address) == CONTENT


def test_a_dry_run_asks_for_versions_alone(store: Store) -> None:
    address = store.put("later.jsonl", json.dumps(ROWS[0]).encode())
    recipe = ir_source(address)
    assert not is_at_hand(recipe, ".", owner="data.sources.set")
    assert store.faults.ranges == []
    open_source(recipe, ".")
    assert is_at_hand(recipe, ".", owner="data.sources.set")
    assert is_at_hand(SourceRecipe(name="set", task="ir", path="x"), ".", owner="data.sources.set")
    store.put("later.jsonl", json.dumps(ROWS[1]).encode())
    assert not is_at_hand(recipe, ".", owner="data.sources.set")


PLACES = {
    "s3://data/none.jsonl": r": nothing there; expected a file, a folder with data files or a glob",
    "s3://data/none/*.jsonl": r": nothing there; .* Correct bucket, path and endpoint\.",
    "s3://no-bucket/a.jsonl": r": nothing there \(NoSuchBucket: ",
    "s4://data/a.jsonl": r": protocol s4; expected one that fsspec knows, such as s3, gs, hf",
    "s3://": r": ValueError: Cannot traverse all of S3; expected a store that can be read\.",
    "gs://data/a.jsonl": r": not readable \(.*gcsfs.*\).* Run: pip install -e '\.\[gcs\]'",
}


@pytest.mark.parametrize("address", PLACES)
def test_what_cannot_be_read_is_named(
    address: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    place = re.escape(address)
    with pytest.raises(DataError, match=rf"^data.sources.set: path = {place}{PLACES[address]}"):
        open_source(ir_source(address), ".")


def test_what_may_not_be_read_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    address = store.put("own.jsonl", b"{}")
    store.faults.refuses = True
    with pytest.raises(DataError, match=r"path = s3://data/own.jsonl: refused \(.*403.*AWS_ACCESS"):
        open_source(ir_source(address), ".")
    store.faults.refuses = False
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(DataError, match=r"own.jsonl: refused \(NoCredentialsError: Unable to loca"):
        open_source(ir_source(address), ".")
    # as FSSPEC_S3_ANON=true sets it: the object is one that all may read
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})
    assert content_at(address) == b"{}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("name", ["a[1].jsonl", "b[2]/a.jsonl", "a::b.jsonl", "a#%2F?.jsonl",
                                  f"{'n' * 249}.jsonl"])  # fmt: skip
def test_an_object_of_any_name_is_found_as_a_file_is(
    name: str, store: Store, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    address = store.put(f"names/{name}", write_as(file).read_bytes())
    assert_alike(open_source(ir_source(address), "."), open_source(ir_source(file), "."))


def test_marks_of_folders_are_no_files(store: Store) -> None:
    store.put("marked/", b"")
    store.put("marked/in/", b"")
    store.put("marked/in/a.jsonl", json.dumps(ROWS[0]).encode())
    for pattern in ("**", "**/*", "in", "in/*"):
        assert len(open_source(ir_source(f"s3://data/marked/{pattern}"), ".")) == 1


def test_a_root_is_left_and_an_address_is_written_as_paths_are(store: Store) -> None:
    for path, address in {
        ".": "s3://data/a",
        "./b/../c.jsonl": "s3://data/a/c.jsonl",
        "../c/*.jsonl": "s3://data/c/*.jsonl",
        "..": "s3://data",
    }.items():
        assert placed(path, "s3://data/a/") == address
    store.put("case.jsonl", json.dumps(ROWS[0]).encode())
    assert len(open_source(ir_source("S3://data/case.jsonl"), ".")) == 1


def test_an_object_whose_name_is_none_for_a_disk_is_refused(store: Store) -> None:
    store.put(f"{'n' * 256}.jsonl", b"{}")
    with pytest.raises(DataError, match=r"with a name of 262 bytes; expected at most 255 between"):
        open_source(ir_source(f"s3://data/{'n' * 256}.jsonl"), ".")
    store.put("odd/../../out.jsonl", b"{}")
    with pytest.raises(DataError, match=r"path = s3://data/odd/.*: an object .*; expected names "):
        open_source(ir_source("s3://data/odd/**/*.jsonl"), ".")
