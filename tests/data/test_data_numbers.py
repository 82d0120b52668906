"""Numbers that grow on disk, and the reading of files that is made of them."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_files import GOOD_IR, all_records, ir_source, write_jsonl
from trainer.data import files, numbers
from trainer.data.numbers import Numbers

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 100])
@pytest.mark.parametrize("has_cache", [True, False])
def test_all_numbers_come_back_in_order(tmp_path, monkeypatch, count, has_cache):
    monkeypatch.setattr(numbers, "BLOCK", 8)
    cache = tmp_path / "cache"
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(cache))
    if has_cache:
        cache.mkdir()
    one_by_one, at_once = Numbers("Q"), Numbers("d")
    expected = np.arange(count, dtype=np.uint64) + np.uint64(1 << 63)
    for number in expected.tolist():
        one_by_one.append(number)
    for part in np.array_split(np.arange(count) / 3, 5):
        at_once.extend(part)
    np.testing.assert_array_equal(one_by_one.whole(), expected)
    np.testing.assert_array_equal(at_once.whole(), np.arange(count) / 3)
    shuffled = Numbers("q")
    shuffled.extend(np.arange(count)[::-1])
    whole = shuffled.whole()
    whole.sort()
    np.testing.assert_array_equal(whole, np.arange(count))
    assert not has_cache or not list(cache.iterdir())


def test_records_do_not_depend_on_how_much_is_held(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path))
    rows = [GOOD_IR | {"query": f"q {number}"} for number in range(50)]
    expected = all_records(ir_source(write_jsonl(tmp_path / "a.jsonl", rows)))
    plain = tmp_path / "c.csv"
    plain.write_text("query,positive\n" + "".join(f"q {n},p {n}\n" for n in range(50)))
    expected_of_csv = all_records(ir_source(plain))
    monkeypatch.setattr(numbers, "BLOCK", 8)
    monkeypatch.setattr(files, "BLOCK_BYTES", 100)
    blank = tmp_path / "b.jsonl"
    blank.write_text("\n \n" + "\n\n".join(map(json.dumps, rows)))
    array = tmp_path / "d.json"
    array.write_text(json.dumps(rows))
    assert all_records(ir_source(tmp_path / "a.jsonl")) == expected
    assert all_records(ir_source(blank)) == expected
    assert all_records(ir_source(array)) == expected
    assert all_records(ir_source(plain)) == expected_of_csv


@pytest.mark.parametrize("block", [8, 1 << 20])
def test_a_full_disk_is_one_message(tmp_path, block):
    path, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    write_jsonl(path, [GOOD_IR] * 200)
    code = (
        "import sys; from trainer.data import numbers, table_scan;"
        f"numbers.BLOCK = {block}; table_scan.CACHE_FROM_ROWS = 1;"
        "from tests.support.data_files import ir_source;"
        "from trainer.cli import ending_with_code; from trainer.data.sources import open_source;"
        "sys.exit(ending_with_code(lambda: len(open_source(ir_source(sys.argv[1]), '.'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"TRAINER_CACHE_DIR": str(cache)}, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"{cache}: free = ")
    assert "expected room for the index of the data files (" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [file.suffix for file in cache.iterdir()] == [".lock"]


@pytest.mark.slow
def test_memory_does_not_grow_with_short_rows(tmp_path):
    path, memory = tmp_path / "short.jsonl", []
    for num_rows in (1 << 20, 1 << 22):
        with path.open("w") as file:
            file.writelines(f'{{"query":"{n}","positives":["p"]}}\n' for n in range(num_rows))
        code = (
            "import sys; from tests.support.data_files import ir_source;"
            "from trainer.data.sources import open_source;"
            "assert len(open_source(ir_source(sys.argv[1]), '.')) == int(sys.argv[2]);"
            "print(open('/proc/self/status').read())"
        )
        env = os.environ | {"TRAINER_CACHE_DIR": str(tmp_path / "cache")}
        # what is no file's memory counts towards this limit, what is mapped does not
        limit = 1 << 30

        def limited(limit=limit):
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

        command = [sys.executable, "-c", code, str(path), str(num_rows)]
        done = subprocess.run(
            command, cwd=ROOT, env=env, preexec_fn=limited, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        (line,) = [one for one in done.stdout.splitlines() if one.startswith("RssAnon")]
        memory.append(int(line.split()[1]))
    assert memory[1] < memory[0] + (32 << 10)
