"""Worker processes: same batches, clear ends."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_files import byte_tokenizer, data_recipe, write_jsonl
from trainer.data import files
from trainer.data.batch import IrBatch
from trainer.data.loader import batches
from trainer.data.plan import make_plan
from trainer.data.sources import open_sources
from trainer.data.tokens import make_encoder
from trainer.errors import DataError, StepError
from trainer.recipe.schema import Recipe, SourceRecipe


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """Eight IR rows and eight STS rows."""
    ir = [{"query": f"q {i}", "positives": [f"p {i}", f"r {i}"]} for i in range(8)]
    sts = [{"text1": f"a {i}", "text2": f"b {i}", "score": i % 6} for i in range(8)]
    sources = [
        SourceRecipe(name="ir", task="ir", path=str(write_jsonl(tmp_path / "ir.jsonl", ir))),
        SourceRecipe(name="sts", task="sts", path=str(write_jsonl(tmp_path / "sts.jsonl", sts))),
    ]
    return data_recipe(sources, pooling="mean")


def with_workers(recipe: Recipe, workers: int) -> Recipe:
    return replace(recipe, data=replace(recipe.data, workers=workers))


def run(recipe: Recipe, start: int, stop: int):
    sources = open_sources(recipe.data)
    plan = make_plan(recipe, {source.name: len(source) for source in sources})
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling=recipe.model.pooling)
    return batches(plan, sources, encoder, recipe, start, stop)


def children() -> set[str]:
    pid = os.getpid()
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def is_alive(process: str) -> bool:
    """Whether a process runs; one that ended may stay listed until its new parent looks."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_workers_change_nothing_and_leave_nothing(recipe):
    before = children()
    expected = list(run(with_workers(recipe, 0), 3, 12))
    for workers in (1, 3):
        found = list(run(with_workers(recipe, workers), 3, 12))
        assert [batch.plan.step for batch in found] == list(range(3, 12))
        for one, other in zip(found, expected, strict=True):
            assert type(one) is type(other)
            assert np.array_equal(one.plan.rows, other.plan.rows)
            for ids, same in zip(one.texts.token_ids, other.texts.token_ids, strict=True):
                assert np.array_equal(ids, same)
            if isinstance(one, IrBatch) and isinstance(other, IrBatch):
                assert np.array_equal(one.passages, other.passages)
                assert np.array_equal(one.masked, other.masked)
    assert children() == before


def test_workers_read_every_kind_of_file(recipe, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "CACHE_FROM_BYTES", 0)
    ir, sts = recipe.data.sources
    datasets.Dataset.from_json(ir.path, cache_dir=str(tmp_path)).to_parquet(tmp_path / "a.parquet")
    datasets.Dataset.from_json(sts.path, cache_dir=str(tmp_path)).to_csv(tmp_path / "a.csv")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    changed = (
        replace(ir, path=str(tmp_path / "a.parquet")),
        replace(sts, path=str(tmp_path / "a.csv")),
    )
    other = replace(recipe, data=replace(recipe.data, sources=changed))
    pairs = zip(run(with_workers(other, 2), 0, 4), run(recipe, 0, 4), strict=True)
    for found, expected in pairs:
        for ids, same in zip(found.texts.token_ids, expected.texts.token_ids, strict=True):
            assert np.array_equal(ids, same)


def test_closing_early_ends_the_workers(recipe):
    before = children()
    found = run(with_workers(recipe, 2), 0, 10**9)
    next(found)
    assert len(children() - before) == 2
    found.close()
    assert children() == before


def test_a_worker_that_dies_is_named(recipe):
    before = children()
    found = run(with_workers(recipe, 1), 0, 10**9)
    next(found)
    (worker,) = children() - before
    os.kill(int(worker), signal.SIGKILL)
    with pytest.raises(StepError, match=rf"data worker 0 \(process {worker}\): exit code = -9; "):
        list(found)
    assert children() == before


def test_a_file_that_ended_a_worker_as_it_became_shorter_is_named(recipe):
    before = children()
    found = run(with_workers(recipe, 1), 0, 10**9)
    next(found)
    (worker,) = children() - before
    os.truncate(recipe.data.sources[1].path, 0)
    os.kill(int(worker), signal.SIGBUS)  # as the system does at a page behind the end
    with pytest.raises(DataError, match=r"sts\.jsonl: content = 0 bytes, \d+ when the run began"):
        list(found)
    assert children() == before


def test_a_row_that_changes_while_training_is_told_from_a_worker(recipe):
    found = run(with_workers(recipe, 1), 0, 2)
    path = Path(recipe.data.sources[0].path)
    path.write_bytes(path.read_bytes().replace(b"positives", b"xxxxxxxxx"))
    with pytest.raises(DataError, match=r"ir\.jsonl: content = (another content|\d+ bytes)"):
        list(found)


def test_workers_end_when_the_training_process_is_killed(recipe, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import pickle, sys, time\n"
        "from trainer.data.loader import batches\n"
        "plan, sources, encoder, recipe = pickle.load(open(sys.argv[1], 'rb'))\n"
        "found = batches(plan, sources, encoder, recipe, 0, 10**9)\n"
        "next(found)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    recipe = with_workers(recipe, 1)
    sources = open_sources(recipe.data)
    plan = make_plan(recipe, {source.name: len(source) for source in sources})
    job = tmp_path / "job"
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling=recipe.model.pooling)
    job.write_bytes(pickle.dumps((plan, sources, encoder, recipe)))
    with subprocess.Popen([sys.executable, script, job], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        (worker,) = listed.split()
        process.kill()
    deadline = time.monotonic() + 20
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(worker)


def test_workers_do_not_import_torch():
    code = "import sys, trainer.data.worker; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
