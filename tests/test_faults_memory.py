"""Want of memory ends a run with the numbers to lower, most often before its first step."""

import random
from pathlib import Path

import pytest

from tests.support.corpus import make_workspace, sentence, write_lines
from tests.support.forked import finish_forked

pytestmark = pytest.mark.dist

SCRIPT = "tests/support/faults.py"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def test_dry_step_finds_that_the_largest_chunk_does_not_fit(recipe: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [{"query": sentence(rng), "positives": [sentence(rng)]} for _ in range(2048)]
    write_lines(recipe.parent / "many.jsonl", rows)
    arguments = ("--recipe", str(recipe), f"output_dir={tmp_path}/run", "eval.sets=[]")
    # 2048 queries with 3 passages each fill one chunk of 131072 tokens: far over 300 MB of states
    more = ("data.sources.ir.path=many.jsonl", "tasks.ir.global_batch_size=2048")
    more += ("engine.max_tokens_per_chunk=131072",)
    ended = finish_forked(tmp_path, *arguments, *more, script=SCRIPT, PLANT="limit:300:0")
    assert ended.code == 1, ended.err
    told = [line for line in ended.err.splitlines() if "memory = not enough" in line]
    assert len(told) == 1, ended.err
    assert told[0].startswith(
        "memory probe of 1 x 8192 texts of 16 tokens, rank 0 on cpu: memory ="
    )
    assert "Lower engine.max_tokens_per_chunk to 65536 (now 131072)" in told[0]
    assert "Traceback" not in ended.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_one_rank_without_memory_in_a_step_ends_all(recipe: Path, tmp_path: Path) -> None:
    arguments = ("--recipe", str(recipe), f"output_dir={tmp_path}/run", "eval.sets=[]")
    more = ("engine.keep_graph_tokens=64",)
    ended = finish_forked(tmp_path, *arguments, *more, script=SCRIPT, ranks=2, PLANT="memory:3:1")
    assert ended.code == 1, ended.err
    assert ended.err.count("memory = not enough (CUDA out of memory. Tried") == 1, ended.err
    assert "step 3 (" in ended.err
    for part in ("rank 1 on cpu", "Lower engine.keep_graph_tokens to 32", "engine.gather=layer"):
        assert part in ended.err
    assert "Traceback" not in ended.err
