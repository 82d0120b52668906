"""Lines of metrics are whole, in order and complete, also when a disk was full for a while."""

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.engine.recorder import FileRecorder, LineFile, keep_lines_before, step_line
from trainer.engine.step import StepReport


@pytest.fixture
def file_limit() -> Iterator[None]:
    """Put the limit on the size of files back."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def limit_files(num_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))


def steps_of(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("file_limit")
def test_lines_wait_for_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lines.jsonl"
    file = LineFile(path)
    file.add({"step": 0})
    # room for half a line: the half is cut off again
    limit_files(path.stat().st_size + 5)
    file.add({"step": 1})
    file.add({"step": 2})
    assert steps_of(path) == [0]
    assert caplog.text.count("its lines wait in memory") == 1
    limit_files(resource.RLIM_INFINITY)
    file.add({"step": 3})
    assert steps_of(path) == [0, 1, 2, 3]
    assert "no line is missing" in caplog.text
    file.close()


@pytest.mark.usefixtures("file_limit")
def test_lines_without_room_to_the_end_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lines.jsonl"
    file = LineFile(path)
    limit_files(5)
    file.add({"step": 0})
    file.close()
    limit_files(resource.RLIM_INFINITY)
    assert "1 lines are lost" in caplog.text
    assert path.read_bytes() == b""


def test_numbers_that_json_cannot_say_are_null() -> None:
    report = StepReport(
        step=3,
        task="ir",
        source="docs",
        loss=float("nan"),
        terms={"infonce": float("inf")},
        learning_rate=0.1,
        grad_norm=None,
        skipped_steps=1,
        tokens=10,
        padding_fraction=0.0,
        shared_fraction=0.0,
        num_chunks=1,
        masked_pairs=0,
        seconds=0.5,
    )
    line = json.loads(json.dumps(step_line(report), allow_nan=False))
    assert (line["loss"], line["infonce"], line["grad_norm"]) == (None, None, None)
    assert (line["skipped_steps"], line["tokens_per_sec"]) == (1, 20.0)


def test_an_undefined_score_is_null_in_the_file(tmp_path: Path) -> None:
    with FileRecorder(tmp_path, start=0, stop=1, wandb_project=None, name="run") as recorder:
        recorder.evaluation(0, {"pairs": {"spearman": float("nan"), "pearson": 0.5}}, {})
    line = (tmp_path / "eval.jsonl").read_text()
    assert json.loads(line)["sets"] == {"pairs": {"spearman": None, "pearson": 0.5}}
    assert "NaN" not in line


def test_an_evaluation_where_the_run_goes_on_stays(tmp_path: Path) -> None:
    """The one after 4 steps is of the parameters that the run goes on with; that after 6 is not."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scores = {0: 0.1, 4: 0.5, 6: 0.6}
    with FileRecorder(tmp_path, start=0, stop=6, wandb_project=None, name="run") as recorder:
        for done, score in scores.items():
            recorder.evaluation(done, {"pairs": {"spearman": score}}, {})
    with FileRecorder(tmp_path, start=4, stop=8, wandb_project=None, name="run") as recorder:
        recorder.evaluation(8, {"pairs": {"spearman": 0.8}}, {})
    assert steps_of(tmp_path / "eval.jsonl") == [0, 4, 8]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = {one.step: one.value for one in board.Scalars("eval/pairs/spearman")}
    assert shown == pytest.approx({0: 0.1, 4: 0.5, 8: 0.8})
    # a run that starts anew has no evaluation of its own
    FileRecorder(tmp_path, start=0, stop=6, wandb_project=None, name="run").close()
    assert steps_of(tmp_path / "eval.jsonl") == []


def test_means_are_kept_beside_the_sets(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sets = {"pairs": {"spearman": 0.5}, "docs": {"ndcg_at_10": 0.25}}
    with FileRecorder(tmp_path, start=0, stop=6, wandb_project=None, name="run") as recorder:
        recorder.evaluation(0, sets, {}, means={"mean": 0.375, "mean_of_kinds": float("nan")})
    line = json.loads((tmp_path / "eval.jsonl").read_text())
    assert line["means"] == {"mean": 0.375, "mean_of_kinds": None}
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [one.value for one in board.Scalars("eval/mean")] == [0.375]
    assert {"eval/mean_of_kinds", "eval/pairs/spearman"} <= set(board.Tags()["scalars"])


def test_scores_of_prefixes_have_a_key_of_their_own(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole = {"pairs": {"spearman": 0.5}}
    dims = {"pairs": {32: {"spearman": 0.5}, 8: {"spearman": float("nan")}}}
    with FileRecorder(tmp_path, start=0, stop=6, wandb_project=None, name="run") as recorder:
        recorder.evaluation(0, whole, {})
        recorder.evaluation(4, whole, {}, dims)
    # goes on from there: shown again
    FileRecorder(tmp_path, start=4, stop=6, wandb_project=None, name="run").close()
    without, line = map(json.loads, (tmp_path / "eval.jsonl").read_text().splitlines())
    assert without.keys() == {"step", "sets", "geometry"}
    assert line["sets"] == whole
    assert line["dims"] == {"pairs": {"32": {"spearman": 0.5}, "8": {"spearman": None}}}
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    names = {f"eval/pairs/{part}spearman" for part in ("", "dim_32/", "dim_8/")}
    assert names <= set(board.Tags()["scalars"])
    assert [one.step for one in board.Scalars("eval/pairs/dim_32/spearman")] == [4]


def test_spoiled_lines_and_later_steps_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    good = [b'{"step": 0}', b'{"step": 1, "more": [2]}']
    bad = [b"\0\0", b"\xff", b'{"ste', b"7", b"{}", b'{"step": 2}']
    path.write_bytes(b"\n".join([good[0], *bad, good[1], b'{"st']))
    keep_lines_before(path, 2)
    assert path.read_bytes() == b"\n".join([*good, b""])
