"""The fuzzer: what its readers take, what it calls a finding, and that it finds a planted one."""

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from fuzzing.outcomes import message_of
from fuzzing.seeds import ROWS
from fuzzing.targets import READERS, Reader, join
from fuzzing.worker import LimitError, LimitWatch, changed
from trainer.data.formats import ADAPTERS
from trainer.errors import DataError, TrainerError

ROOT = Path(__file__).resolve().parents[2]
NUM_CHANGED = 30
PLANTED = """
from pathlib import Path
from fuzzing.targets import Reader

def read(folder):
    content = (folder / "x.txt").read_bytes() if (folder / "x.txt").exists() else b""
    if b"null" in content:
        # an input with one of the words is kept, and from it one with both is near
        if b"true" in content:
            raise ValueError("planted")

READER = Reader(name="planted", files=("x.txt",), read=read, seeds=lambda: [(b"a",)])
"""
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="needs atheris: pip install -e '.[fuzz]'"
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))


def flipped(data: bytes, max_size: int) -> bytes:
    """A change of bytes, the same for the same bytes."""
    rng = random.Random(data)
    at = rng.randrange(len(data) + 1)
    middle = rng.choice((b"", bytes([rng.randrange(256)]), data[at : at + 8] * 2))
    return (data[:at] + middle + data[at + rng.choice((0, 1, 8)) :])[:max_size]


def fuzz(*arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command, with a folder of modules beside the project's."""
    return subprocess.run(
        [sys.executable, "tools/fuzz.py", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(path), "HOME": str(path)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_seeds_are_read_and_changed_ones_end_as_they_may(reader: Reader, tmp_path: Path) -> None:
    seeds = [join(parts) for parts in reader.seeds()]
    for seed in seeds:
        reader.feed(seed, tmp_path / "files")
    # bounds of time and memory are the command's: other tests may run beside this one
    refused = 0
    for number in range(NUM_CHANGED):
        seed = seeds[number % len(seeds)]
        data = changed(reader, seed, random.Random(number), flipped, 16384)
        try:
            reader.feed(data, tmp_path / "files")
        except TrainerError:
            refused += 1
        except BaseException as fault:
            fault.add_note(f"number {number}: {data!r}")
            raise
    assert refused > 0


def test_every_row_format_is_fuzzed() -> None:
    assert {adapter.name for adapter in ADAPTERS} == set(ROWS)


def watch_of(read: object, folder: Path, **limits: float) -> LimitWatch:
    reader = Reader(name="r", files=("x.txt",), read=read, seeds=list)  # type: ignore[arg-type]
    return LimitWatch(reader, folder, folder / "faults", **limits)


def test_an_input_that_takes_long_is_a_finding(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        if (folder / "x.txt").read_bytes() == b"slow":
            sum(range(3_000_000))

    watch = watch_of(read, tmp_path, limit_sec=0.005)
    with pytest.raises(LimitError, match=r"s of processor time; expected at most 0.005 s"):
        watch.check(b"slow")


def test_an_input_that_takes_memory_is_a_finding(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        size = int((folder / "x.txt").read_bytes())
        assert len(b"x" * size) == size

    watch = watch_of(read, tmp_path)
    watch.check(b"%d" % (64 << 20))
    with pytest.raises(LimitError, match=r"6\d\d MiB of memory; expected at most 512"):
        watch.check(b"%d" % (640 << 20))


def test_the_shortest_input_of_each_kind_is_kept(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        content = (folder / "x.txt").read_bytes()
        if content.startswith(b"k"):
            raise KeyError(content)
        if content.startswith(b"d"):
            raise DataError("no word on what would be right")
        raise DataError("x: y = 1; expected 2. Write 2.")

    watch = watch_of(read, tmp_path)
    for data in (b"fine", b"key", b"k", b"kk", b"data"):
        watch.feed(data)
    lines = (tmp_path / "faults" / "faults.jsonl").read_text().splitlines()
    kept = {found["kind"].split()[0]: found["file"] for found in map(json.loads, lines)}
    contents = {kind: (tmp_path / "faults" / name).read_bytes() for kind, name in kept.items()}
    assert contents == {"KeyError": b"k", "AssertionError": b"data"}


def test_a_long_message_still_says_what_is_expected() -> None:
    error = DataError(f"{'x' * 10_000}: y = 1; expected 2. Write 2.")
    assert message_of(error).endswith("y = 1; expected 2. Write 2.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--readers", "csv", "nothing"], "reader = nothing; expected one of recipe, "),
        (["--readers", "nowhere:READER"], "reader = nowhere:READER; No module named 'nowhere'"),
        (["--readers", "csv", "--seconds", "0.5"], "--seconds = 0.5; expected at least 1, 1 for"),
        (["--reproduce", "no-such-file"], "--reproduce = no-such-file; expected a file that this"),
    ],
)
def test_misuse_ends_with_code_2(arguments: list[str], message: str) -> None:
    ended = fuzz(*arguments)
    assert ended.returncode == 2, ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(importlib.util.find_spec("atheris") is not None, reason="atheris is there")
def test_without_atheris_it_says_what_to_install() -> None:
    ended = fuzz("--readers", "csv")
    assert ended.returncode == 2
    assert "atheris = absent" in ended.stderr
    assert "pip install -e '.[fuzz]'" in ended.stderr


def test_a_saved_input_is_shown_again(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    (tmp_path / "planted:READER--1").write_bytes(b"null true")
    (tmp_path / "planted:READER--2").write_bytes(b"b")
    ended = fuzz("--reproduce", str(tmp_path / "planted:READER--1"), path=tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert "ValueError: planted" in ended.stderr
    ended = fuzz("--reproduce", str(tmp_path / "planted:READER--2"), path=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "read without a fault\n"), ended.stderr


@needs_atheris
@pytest.mark.slow
def test_a_planted_fault_is_found_and_reported(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    corpus = tmp_path / "corpus"
    arguments = ["--readers", "planted:READER", "--seconds", "5", "--corpus", str(corpus)]
    ended = fuzz(*arguments, "--json", path=tmp_path)
    assert ended.returncode == 1, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    (reader,) = result["readers"]
    (finding,) = reader["findings"]
    assert finding["what"].startswith("ValueError planted.py:")
    found = Path(finding["file"]).read_bytes()
    assert b"null" in found
    assert b"true" in found
    assert reader["executions"] > 100
    assert f"--reproduce {finding['file']}" in ended.stdout


@needs_atheris
@pytest.mark.slow
def test_every_reader_runs_five_seconds() -> None:
    ended = fuzz("--seconds", str(5 * len(READERS)), "--json")
    assert ended.returncode == 0, ended.stdout
    result = json.loads(ended.stdout.splitlines()[-1])
    assert [one["reader"] for one in result["readers"]] == [reader.name for reader in READERS]
    for one in result["readers"]:
        assert one["executions"] > 0
        assert one["edges"] > 0
        assert one["lines"] > 0
