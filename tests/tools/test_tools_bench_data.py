"""The bench of the data plane: its ratios, and that a simulated rank gets its share."""

import json
import os
from pathlib import Path

import pytest

from tools.bench import data
from trainer.data.cache import cache_root

WORK = data.Work(rows=2, negatives=3, tokens=16, steps=4)


def test_ratios_are_of_the_most_ranks_over_the_fewest() -> None:
    cost = {"cold_cpu_seconds": 0.5, "warm_cpu_seconds": 0.25, "own_tokens": 1000.0}
    double = {name: 2 * value for name, value in cost.items()}
    found = {1: cost | {"anonymous_bytes": 100.0}, 8: double | {"anonymous_bytes": 150.0}}
    numbers = data.report(WORK, [1, 8], found, cost)
    assert numbers["rank_cost_8_over_1"] == numbers["rank_cost_8_over_1_cold"] == 2
    assert numbers["memory_growth_8_over_1"] == 1.5
    assert numbers["tokens_per_cpu_second"] == 4000
    assert numbers["tokens_per_cpu_second_cold"] == 2000
    assert numbers["on_the_fly_tokens_per_cpu_second"] == 2000
    assert numbers["texts_per_rank"] == 2 * (1 + 1 + 3)


def test_the_table_says_up_to_how_many_gpus_data_is_enough(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fast = {"cold_cpu_seconds": 0.01, "warm_cpu_seconds": 0.01, "own_tokens": 1000.0}
    slow = fast | {"cold_cpu_seconds": 0.1, "warm_cpu_seconds": 0.1}
    found = {n: one | {"anonymous_bytes": 1.0} for n, one in ((1, fast), (8, slow))}
    numbers = data.report(WORK, [1, 8], found, slow)
    numbers |= data.gpus_fed(numbers, gpu_tflops=400, workers=1)
    data.show(numbers)
    shown = {line.split()[0]: line.split()[2:] for line in capsys.readouterr().out.splitlines()
             if line.split()[:1] and line.split()[0] in data.MODELS}  # fmt: skip
    # 100,000 tokens a second are made for one rank, 10,000 for each of eight or for all on the fly
    assert shown["0.5B"] == ["1", "0"]
    assert shown["7B"] == ["8", "or", "more", "1"]
    assert shown["14B"] == ["8", "or", "more", "2"]


def test_each_simulated_rank_reads_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    bench = data.opened(WORK, tmp_path, 8)
    assert cache_root() in bench.store.folder.parents
    whole, own = bench.measure(1, ahead=True), bench.measure(4, ahead=True)
    on_the_fly = bench.measure(1, ahead=False)
    assert whole["own_tokens"] == on_the_fly["own_tokens"]
    # four ranks see the eight rows at each step; a rank embeds a quarter of the texts
    every = int(bench.store.arrays["lengths"].sum())
    assert own["own_tokens"] == pytest.approx(every / 4, rel=0.2)
    assert min(own["warm_cpu_seconds"], own["cold_cpu_seconds"]) > 0
    assert json.loads(json.dumps(own)) == own
    assert os.environ["TRAINER_CACHE_DIR"] == str(tmp_path / "cache")
