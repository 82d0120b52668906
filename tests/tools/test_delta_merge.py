"""The command: what it makes, and every mistake ends with code 2, one message and no output."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.merge_truth import assert_merged
from tests.support.page_cache import empty_page_cache, resident_bytes
from tools import delta_merge
from trainer.errors import CheckpointError
from trainer.merge import MergeSettings, merge_checkpoints

ROOT = Path(__file__).parents[2]


def save_model(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", **config}))
    return folder


def toy_tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "embed.weight": (31, 8),
        "layers.0.proj.weight": (8, 8),
        "layers.0.proj.bias": (8,),
        "layers.1.proj.weight": (8, 8),
        "layers.1.proj.bias": (8,),
        "norm.weight": (8,),
    }
    return {name: torch.randn(s, generator=generator).to(dtype) for name, s in shapes.items()}


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """A base and two checkpoints: base/, a/, b/."""
    for seed, name in enumerate(("base", "a", "b")):
        save_model(tmp_path / name, toy_tensors(seed))
    return tmp_path


def command(folder: Path, *extra: str, output: str = "out") -> list[str]:
    inputs = ["--base", f"{folder}/base", "--checkpoints", f"{folder}/a", f"{folder}/b"]
    return [*inputs, "--output", f"{folder}/{output}", *extra]


def refused(
    folder: Path, capsys: pytest.CaptureFixture[str], *extra: str, output: str = "out"
) -> str:
    """Run the command; gives its one message after checking that nothing was left."""
    before = sorted(p.name for p in folder.iterdir())

    assert delta_merge.main(command(folder, *extra, output=output)) == 2

    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0, message
    assert "Traceback" not in message
    assert sorted(p.name for p in folder.iterdir()) == before
    return message


def test_merges_safetensors_folders(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert delta_merge.main(command(toys, "--json")) == 0

    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["tensors"] == 6
    merged = load_file(toys / "out" / "model.safetensors")
    models = [load_file(toys / name / "model.safetensors") for name in ("base", "a", "b")]
    for name, values in merged.items():
        base, *tuned = (model[name].double() for model in models)
        assert_merged(values, base, tuned, MergeSettings())
    assert sorted(p.name for p in (toys / "out").iterdir()) == [
        "README.md",
        "config.json",
        "merge.html",
        "merge.json",
        "model.safetensors",
    ]


def test_the_card_tells_base_method_and_inputs(toys: Path) -> None:
    assert delta_merge.main(command(toys, "--method", "ties", "--density", "0.3")) == 0

    card = (toys / "out" / "README.md").read_text()
    assert "# out\n\nCheckpoints that were trained from the local model `base`, merged" in card
    for row in ("| method | `ties` |", "| density | `0.3` |", "| checkpoints | `a`, `b` |"):
        assert row in card
    assert "no `modules.json`" in card


def test_the_report_tells_norms_weights_and_inputs(toys: Path) -> None:
    assert delta_merge.main(command(toys, "--alpha", "2", "--hash")) == 0

    report = json.loads((toys / "out" / "merge.json").read_text())
    assert report["settings"]["alpha"] == 2
    assert [one["path"] for one in report["checkpoints"]] == [f"{toys}/a", f"{toys}/b"]
    assert len(report["base"]["files"]["model.safetensors"]["sha256"]) == 64
    numbers = report["tensors"]["norm.weight"]
    base, a, b = (load_file(toys / n / "model.safetensors") for n in ("base", "a", "b"))
    norms = [float((one["norm.weight"] - base["norm.weight"]).norm()) for one in (a, b)]
    assert numbers["norms"] == pytest.approx(norms)
    assert numbers["weights"][0] == pytest.approx(norms[0] ** 2 / (norms[0] ** 2 + norms[1] ** 2))
    page = (toys / "out" / "merge.html").read_text()
    assert page.count("<title>layers.1.proj.bias: weight") == 2
    assert "http" not in page.replace("http-equiv", "")


def test_shards_are_cut_and_indexed(toys: Path) -> None:
    assert delta_merge.main(command(toys, "--max-shard-size", "400B")) == 0

    out = toys / "out"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("model-*.safetensors"))
    assert len(files) == 3
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == 4 * (31 * 8 + 2 * 64 + 3 * 8)
    for name, file in index["weight_map"].items():
        assert name in load_file(out / file)


def test_without_waiting_for_the_disk_the_result_is_the_same(toys: Path) -> None:
    assert delta_merge.main(command(toys)) == 0
    assert delta_merge.main(command(toys, "--no-sync", output="sooner")) == 0

    first, second = (toys / name / "model.safetensors" for name in ("out", "sooner"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("outgrow", [True, False])
def test_inputs_that_outgrow_memory_leave_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outgrow: bool
) -> None:
    # more than a disk reads ahead
    elements = 6 << 20
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {key: torch.randn(elements, generator=generator) for key in ("0", "1")}
        save_model(tmp_path / name, tensors)
    inputs = [tmp_path / name / "model.safetensors" for name in ("base", "a", "b")]
    for path in inputs:
        empty_page_cache(path)
    if outgrow:
        monkeypatch.setattr(os, "sysconf", lambda _: 1000)

    assert delta_merge.main(command(tmp_path)) == 0

    for path in inputs:
        size = path.stat().st_size
        assert resident_bytes(path) < size / 2 if outgrow else resident_bytes(path) >= size
    base, a, b, out = (load_file(tmp_path / name / "model.safetensors")
                       for name in ("base", "a", "b", "out"))  # fmt: skip
    for name, got in out.items():
        tuned = [one[name].double() for one in (a, b)]
        assert_merged(got, base[name].double(), tuned, MergeSettings())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtype_is_as_asked_and_named_in_the_config(toys: Path, dtype: str) -> None:
    assert delta_merge.main(command(toys, "--dtype", dtype)) == 0

    merged = load_file(toys / "out" / "model.safetensors")
    assert {str(one.dtype) for one in merged.values()} == {f"torch.{dtype}"}
    assert json.loads((toys / "out" / "config.json").read_text())["dtype"] == dtype


def test_each_tensor_keeps_the_bases_dtype(toys: Path) -> None:
    base = toy_tensors(0)
    base["norm.weight"] = base["norm.weight"].bfloat16()
    save_model(toys / "base", {**base, "position_ids": torch.arange(5)})
    for seed, name in ((1, "a"), (2, "b")):
        save_model(toys / name, {**toy_tensors(seed), "position_ids": torch.arange(5)})

    assert delta_merge.main(command(toys)) == 0

    merged = load_file(toys / "out" / "model.safetensors")
    assert merged["norm.weight"].dtype == torch.bfloat16
    assert merged["embed.weight"].dtype == torch.float32
    assert merged["position_ids"].tolist() == [0, 1, 2, 3, 4]


def test_a_head_that_checkpoints_lack_is_left_out(toys: Path) -> None:
    headed = {f"model.{name}": values for name, values in toy_tensors(0).items()}
    save_model(toys / "base", {**headed, "lm_head.weight": torch.ones(31, 8)})

    assert delta_merge.main(command(toys)) == 0

    assert set(load_file(toys / "out" / "model.safetensors")) == set(toy_tensors(0))
    report = json.loads((toys / "out" / "merge.json").read_text())
    assert report["left_out"] == ["lm_head.weight"]


def test_models_with_heads_keep_them_and_their_names(toys: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        headed = {f"model.{key}": values for key, values in toy_tensors(seed).items()}
        save_model(toys / name, {**headed, "lm_head.weight": torch.full((31, 8), float(seed))})

    assert delta_merge.main(command(toys, "--method", "uniform")) == 0

    merged = load_file(toys / "out" / "model.safetensors")
    assert set(merged) == {*headed, "lm_head.weight"}
    assert merged["lm_head.weight"].unique().tolist() == [1.5]


def test_buffers_that_models_compute_may_be_missing(toys: Path) -> None:
    buffers = {"embeddings.position_ids": torch.arange(9), "layers.0.inv_freq": torch.ones(4)}
    save_model(toys / "base", {**toy_tensors(0), **buffers})
    save_model(toys / "b", {**toy_tensors(2), "layers.1.inv_freq": torch.ones(4)})

    assert delta_merge.main(command(toys)) == 0

    assert set(load_file(toys / "out" / "model.safetensors")) == set(toy_tensors(0))
    report = json.loads((toys / "out" / "merge.json").read_text())
    assert set(report["left_out"]) == set(buffers)


def test_dry_run_writes_nothing(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert delta_merge.main(command(toys, "--dry-run", "--json")) == 0

    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["bytes_to_read"] == 3 * 1600
    assert result["peak_memory_bytes"] < 512 << 20
    assert not list(toys.glob("out*"))


def test_help_shows_formulas_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        delta_merge.main(["--help"])

    text = capsys.readouterr().out
    assert "w_k = ||D_k||^alpha / sum_j ||D_j||^alpha" in text
    assert "examples:" in text


def drop(folder: Path) -> None:
    tensors = toy_tensors(1)
    del tensors["layers.1.proj.bias"]
    save_model(folder / "a", tensors)


def reshape(folder: Path) -> None:
    save_model(folder / "a", {**toy_tensors(1), "norm.weight": torch.ones(9)})


def extend(folder: Path) -> None:
    save_model(folder / "a", {**toy_tensors(1), "layers.2.proj.bias": torch.ones(8)})


def rename(folder: Path) -> None:
    tensors = {name.replace("layers", "blocks"): one for name, one in toy_tensors(1).items()}
    save_model(folder / "a", tensors)


def other_type(folder: Path) -> None:
    save_model(folder / "a", toy_tensors(1), model_type="other")


def integers(folder: Path) -> None:
    save_model(folder / "a", {**toy_tensors(1), "norm.weight": torch.ones(8, dtype=torch.int32)})


def spoil(folder: Path) -> None:
    tensors = toy_tensors(1)
    tensors["layers.0.proj.weight"][2, 3] = float("nan")
    save_model(folder / "a", tensors)


def cut(folder: Path) -> None:
    path = folder / "a" / "model.safetensors"
    os.truncate(path, path.stat().st_size - 4)


def flip(folder: Path) -> None:
    path = folder / "a" / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"layers") + 3] ^= 0x08
    path.write_bytes(whole)


def pooled_otherwise(folder: Path) -> None:
    pool(folder / "a", {"pooling_mode": "mean"})
    pool(folder / "b", {"pooling_mode": "lasttoken"})


def pool(folder: Path, config: dict[str, object]) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


MISTAKES = [
    (drop, r"a: layers.1.proj.bias = missing"),
    (reshape, r"a: norm.weight shape = [9]; expected [8]"),
    (extend, r"a: layers.2.proj.bias = not in the base"),
    (rename, r"a: blocks.0.proj.bias, blocks.0.proj.weight"),
    (other_type, r"a: config model_type = other; expected toy"),
    (
        integers,
        r"a/model.safetensors: dtype = I32 (1 of 6 tensors), the first in 'norm.weight'; exp",
    ),
    (spoil, r"a: layers.0.proj.weight, element 19 = nan"),
    (cut, r"a/model.safetensors: tensors end at byte"),
    (flip, r"not in the base"),
    (pooled_otherwise, r"pooling = lasttoken; expected mean"),
]


@pytest.mark.parametrize(("spoiling", "told"), MISTAKES)
def test_wrong_inputs_end_with_one_message(
    toys: Path, capsys: pytest.CaptureFixture[str], spoiling: Callable[[Path], None], told: str
) -> None:
    spoiling(toys)

    assert told in refused(toys, capsys)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--alpha", "nan"], "alpha = nan; expected a finite number"),
        (["--lambda", "inf"], "lambda = inf; expected a finite number"),
        (["--weights", "1", "2"], "weights = (1.0, 2.0); expected none"),
        (["--method", "task_arithmetic", "--weights", "1"], "weights = (1.0,); expected 2"),
        (["--method", "ties", "--density", "0"], "density = 0.0; expected a number above 0"),
        (["--t", "0.3"], "t = 0.3; expected none, unless method is slerp"),
        (["--method", "slerp", "--t", "2"], "t = 2.0; expected a number from 0 to 1"),
        (["--method", "slerp", "--lambda", "2"], "lambda = 2.0; expected 1, as slerp has no"),
        (["--method", "karcher", "--granularity", "row"], "granularity = row; expected tensor"),
        (["--method", "karcher", "--weights", "1", "2"], "weights = (1.0, 2.0); expected none"),
        (["--method", "multi_slerp", "--weights", "1", "-1"], "expected numbers whose sum is not"),
        (["--by-depth", "1", "nan"], "by_depth = (1.0, nan); expected one finite number or more"),
        (["--method", "slerp", "--by-depth", "1", "0"], "expected none, as slerp has no lambda"),
        (["--workers", "0"], "workers = 0; expected at least 1"),
        (["--memory-budget", "1MiB"], "memory_budget = 1,048,576 bytes; expected at least"),
        (["--max-shard-size", "0"], "max_shard_size = 0; expected at least 1 byte"),
    ],
)
def test_wrong_arguments_end_with_one_message(
    toys: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert told in refused(toys, capsys, *arguments)


def test_allow_nan_goes_on(toys: Path) -> None:
    spoil(toys)

    assert delta_merge.main(command(toys, "--allow-nan")) == 0

    merged = load_file(toys / "out" / "model.safetensors")
    assert sum(int(one.isnan().sum()) for one in merged.values()) == 1


def test_old_and_new_names_of_one_pooling_agree(toys: Path) -> None:
    word = {"pooling_mode": "lasttoken", "include_prompt": True}
    pool(toys / "a", {**word, "embedding_dimension": 4})
    old = {"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}
    pool(toys / "b", {**old, "pooling_mode_mean_tokens": False})

    assert delta_merge.main(command(toys)) == 0

    pooling = json.loads((toys / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling == {
        "word_embedding_dimension": 4,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_lasttoken": True,
        "pooling_mode_weightedmean_tokens": False,
        "include_prompt": True,
    }


def test_an_existing_output_is_left_alone(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toys / "out").mkdir()

    assert "out: folder = present; expected none" in refused(toys, capsys)


def test_an_adapter_is_no_base(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toys / "base" / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    lora = {f"base_model.model.x.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(lora, toys / "base" / "adapter_model.safetensors", {"format": "pt"})

    assert "base: kind = adapter; expected a full model" in refused(toys, capsys)


def mounted(size: str, folder: Path) -> bool:
    """Mount a small file system of its own at `folder`, where this is allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],  # noqa: S607
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "small"
    if not mounted("80m", folder):
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)  # noqa: S607


def large_models(folder: Path, num_mib: int) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {f"layers.{i}.weight": torch.randn(1 << 18, generator=generator)
                   for i in range(num_mib)}  # fmt: skip
        save_model(folder / name, tensors)


def test_a_disk_that_is_too_small_is_told_before_writing(
    toys: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk / "filler").write_bytes(bytes(60 << 20))

    message = refused(toys, capsys, output="small/out")

    assert "free disk = " in message
    assert [p.name for p in small_disk.iterdir()] == ["filler"]


def test_no_room_for_compiled_loops_is_no_reason_to_stop(toys: Path, small_disk: Path) -> None:
    with (small_disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
    script = str(ROOT / "tools" / "delta_merge.py")

    done = subprocess.run(
        [sys.executable, script, *command(toys)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(small_disk)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert (toys / "out" / "model.safetensors").exists()


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large_models(tmp_path, 12)
    filler = small_disk / "filler"

    def fill_up(done: int, total: int) -> None:
        if not filler.exists():
            filler.write_bytes(bytes(75 << 20))

    with pytest.raises(CheckpointError, match="out: writing = No space left on device"):
        merge_checkpoints(
            tmp_path / "base", [tmp_path / "a", tmp_path / "b"], small_disk / "out",
            progress=fill_up,
        )  # fmt: skip

    assert [p.name for p in small_disk.iterdir()] == ["filler"]


def start(folder: Path, *extra: str) -> "subprocess.Popen[bytes]":
    script = str(ROOT / "tools" / "delta_merge.py")
    return subprocess.Popen([sys.executable, script, *command(folder, *extra)])


def wait_for_journal(folder: Path, lines: int) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for journal in folder.glob("out.partial-*/.journal.jsonl"):
            if journal.read_bytes().count(b"\n") >= lines:
                return journal
        time.sleep(0.005)
    raise AssertionError("the merge did not get far enough")


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_merge_looks_unfinished_and_is_continued(
    tmp_path: Path, end: signal.Signals
) -> None:
    large_models(tmp_path, 80)
    process = start(tmp_path, "--workers", "1")
    journal = wait_for_journal(tmp_path, 5)
    process.send_signal(end)
    assert process.wait(60) == (-9 if end == signal.SIGKILL else 130)

    partial = journal.parent
    assert not (tmp_path / "out").exists()
    with pytest.raises(Exception, match=r"header|Header|HeaderTooSmall|deserializing"):
        load_file(next(partial.glob("*.safetensors")))
    done = [json.loads(line) for line in journal.read_text().splitlines()]
    # a finished tensor that was damaged since is made again
    damage(partial / "model.safetensors")

    assert start(tmp_path, "--workers", "1", "--resume").wait(60) == 0

    assert 5 <= len(done) < 80
    assert not list(tmp_path.glob("out.partial-*"))
    assert delta_merge.main(command(tmp_path, output="again")) == 0
    again, out = (tmp_path / name / "model.safetensors" for name in ("again", "out"))
    assert again.read_bytes() == out.read_bytes()


def damage(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"\x55" * 4096)


def test_a_journal_that_was_cut_is_continued(toys: Path) -> None:
    left = []

    def cut(done: int, total: int) -> None:
        left.append(done)
        if sum(left) == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_checkpoints(
            toys / "base", [toys / "a"], toys / "out", MergeSettings(num_workers=1), progress=cut
        )
    (journal,) = toys.glob("out.partial-*/.journal.jsonl")
    lines = journal.read_bytes()
    assert lines.count(b"\n") > 1
    journal.write_bytes(lines[:-10])
    left.clear()
    with pytest.raises(KeyboardInterrupt):
        merge_checkpoints(
            toys / "base", [toys / "a"], toys / "out", MergeSettings(num_workers=1), progress=cut,
            resume=True,
        )  # fmt: skip

    # what was done after the cut counts as well
    assert [json.loads(line)["name"] for line in journal.read_text().splitlines()]
    assert journal.read_bytes().count(b"\n") >= lines.count(b"\n")


def test_a_second_merge_into_the_same_place_is_refused(toys: Path) -> None:
    def again(done: int, total: int) -> None:
        with pytest.raises(CheckpointError, match="writer = another process"):
            merge_checkpoints(toys / "base", [toys / "a"], toys / "out")

    merge_checkpoints(toys / "base", [toys / "a"], toys / "out", progress=again)
