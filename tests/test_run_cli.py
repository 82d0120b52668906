"""The real command: a mistake ends it with code 2 and one message, early, and leaves nothing."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.support import launched
from tests.support.data_files import write_jsonl
from tests.support.forked import finish_forked
from tests.support.light import finish_light
from trainer.cli import ending_with_code, shown
from trainer.errors import RecipeError, StepError
from trainer.preflight.checks import check_output_dir

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "trainer" / "run.py"
HEAVY = ("torch", "transformers", "deepspeed", "datasets", "peft")

RECIPE = """\
name: small
output_dir: out
model: {path: model, attention: bidirectional}
data:
  sources:
    - {name: pairs, task: sts, path: pairs.jsonl}
    - {name: docs, task: ir, path: docs.jsonl}
tasks:
  ir: {global_batch_size: 4, negatives: 0}
  sts: {global_batch_size: 4}
train: {max_steps: 2}
engine: {deepspeed: zero3_fp32.json}
eval:
  sets:
    - {name: held_out, task: sts, path: pairs.jsonl}
"""


@dataclass(frozen=True)
class Ended:
    """What a run left."""

    code: int
    out: str
    message: str
    """stderr, without Python's report of imports."""
    imported: frozenset[str]
    """Top-level names of all modules that were imported."""


def variables_of(folder: Path) -> dict[str, str]:
    """Environment of a command without a launcher, a network or a home with caches."""
    clean = {key: value for key, value in os.environ.items() if "RANK" not in key}
    return clean | {"HOME": str(folder), "HF_HUB_OFFLINE": "1"}


def run(folder: Path, *arguments: str, **environment: str) -> Ended:
    """Run the command in a folder, its early imports done."""
    ended = finish_light(folder, arguments, variables_of(folder) | environment)
    return Ended(ended.code, ended.out, ended.err.rstrip("\n"), ended.modules)


def run_anew(folder: Path, *arguments: str) -> Ended:
    """Run it by an interpreter, which itself reports on stderr what was imported."""
    command = [sys.executable, "-X", "importtime", str(RUN), *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables_of(folder),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = done.stderr.splitlines()
    reports = [line for line in lines if line.startswith("import time:")]
    modules = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in reports}
    message = "\n".join(line for line in lines if line not in reports)
    return Ended(done.returncode, done.stdout, message, frozenset(modules))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a right recipe, its data and a model's config; nothing else."""
    (tmp_path / "small.yaml").write_text(RECIPE)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    scored = [{"text1": f"a {n}", "text2": f"b {n}", "score": n / 2} for n in range(8)]
    write_jsonl(tmp_path / "pairs.jsonl", scored)
    asked = [{"query": f"q {n}", "positives": [f"p {n}"]} for n in range(8)]
    write_jsonl(tmp_path / "docs.jsonl", asked)
    return tmp_path


def assert_refused(project: Path, *arguments: str, parts: list[str], **environment: str) -> Ended:
    """Code 2, one line on stderr with all parts, no heavy import, no file made or changed."""
    before = snapshot(project)
    ended = run(project, "--recipe", "small.yaml", *arguments, **environment)
    assert ended.code == 2, ended
    assert "Traceback" not in ended.message + ended.out
    assert len(ended.message.splitlines()) == 1, ended.message
    for part in ["; expected ", *parts]:
        assert part in ended.message
    assert not ended.imported & set(HEAVY)
    assert snapshot(project) == before
    return ended


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    return {file: file.read_bytes() if file.is_file() else None for file in folder.rglob("*")}


Change = Callable[[Path], object]


def edit(old: str, new: str) -> Change:
    """Replace a part of the recipe."""

    def change(project: Path) -> None:
        text = (project / "small.yaml").read_text()
        assert old in text
        (project / "small.yaml").write_text(text.replace(old, new, 1))

    return change


def spoil(file: str, line: str) -> Change:
    """Put a line after the first of a data file."""

    def change(project: Path) -> None:
        lines = (project / file).read_text().splitlines()
        lines.insert(1, line)
        (project / file).write_text("\n".join(lines) + "\n")

    return change


def write(file: str, text: str) -> Change:
    """Make a file."""

    def change(project: Path) -> None:
        (project / file).parent.mkdir(exist_ok=True)
        (project / file).write_text(text)

    return change


def scored(score: object) -> str:
    return json.dumps({"text1": "a", "text2": "b", "score": score})


def taught(scores: list[float]) -> str:
    return json.dumps({"query": "q", "positives": ["p"], "positive_scores": scores})


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda project: (project / "small.yaml").unlink(), ["small.yaml: recipe = (missing)"]),
        (write("small.yaml", "name: [a"), ["small.yaml", "not YAML"]),
        (edit("max_steps", "max_stepz"), ["small.yaml:11: train.max_stepz", "mean max_steps?"]),
        (edit("max_steps: 2", "max_steps: two"), ["train.max_steps = 'two'", "an integer"]),
        (edit("path: model", "path: no/model/here"), ["model.path = no/model/here (missing)"]),
        (edit("path: model", "path: /no/model"), ["model.path = /no/model (missing)"]),
        (edit("path: model", "path: nobody/nothing"), ["model.path = nobody/nothing"]),
        (edit("docs.jsonl", "none.jsonl"), ["none.jsonl"]),
        (write("docs.jsonl", ""), ["docs.jsonl"]),
        (write("docs.jsonl", "\n\n"), ["docs.jsonl"]),
        (spoil("docs.jsonl", "{not json"), ["docs.jsonl:2", "JSON"]),
        (spoil("docs.jsonl", '{"query": "q"}'), ["docs.jsonl:2", "positives"]),
        (spoil("docs.jsonl", '{"query": "q", "positives": []}'), ["docs.jsonl:2", "positives"]),
        (spoil("docs.jsonl", taught([1, 2])), ["docs.jsonl:2: positive_scores", "length 2", "1"]),
        (spoil("docs.jsonl", taught([float("nan")])), ["docs.jsonl:2: positive_scores[0] = nan"]),
        (spoil("pairs.jsonl", '{"text1": "a", "score": 1}'), ["pairs.jsonl:2", "text2"]),
        (spoil("pairs.jsonl", scored("high")), ["pairs.jsonl:2", "score"]),
        (spoil("pairs.jsonl", scored(None)), ["pairs.jsonl:2", "score"]),
        (spoil("pairs.jsonl", scored(float("nan"))), ["pairs.jsonl:2", "score"]),
        (edit("global_batch_size: 4", "global_batch_size: 9"), ["at most", "8", "source docs"]),
        (write("out/metrics.jsonl", "{}"), ["output_dir = out", "metrics.jsonl", "--resume"]),
        (write("out/recipe.yaml", "{}"), ["output_dir = out", "recipe.yaml"]),
        (write("out", "a file"), ["output_dir = out (is a file)"]),
        (edit("zero3_fp32.json", "zero3_bf16.json"), ["bf16.enabled = true", "model.dtype"]),
        (edit("zero3_fp32.json", "zero9.json"), ["zero9.json", "zero3_fp32.json"]),
        (edit("held_out, task: sts, path: pairs", "held_out, task: sts, path: gone"), ["gone"]),
    ],
)
def test_mistake_in_a_file(project: Path, change: Change, parts: list[str]) -> None:
    change(project)
    assert_refused(project, parts=parts)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.max_stepz=3", ["override train.max_stepz=3", "mean max_steps?"]),
        ("data.sources.nobody.path=x", ["override data.sources.nobody.path=x", "pairs, docs"]),
        ("train.max_steps", ["override train.max_steps", "key.path=value"]),
        ("tasks.ir.global_batch_size=9", ["at most", "8", "source docs"]),
        ("data.sources.docs.global_batch_size=9", ["docs.global_batch_size = 9", "at most 8"]),
        ("data.sources.pairs.negatives=1", ["data.sources.0.negatives = 1", "null, as steps of"]),
        ("engine.attention_kernel=flash_attention_2", ["flash_attn", "pip install"]),
    ],
)
def test_mistake_in_an_override(project: Path, override: str, parts: list[str]) -> None:
    assert_refused(project, override, parts=parts)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_batch_size", 8),
        ("train_micro_batch_size_per_gpu", 2),
        ("gradient_accumulation_steps", 2),
        ("gradient_clipping", 1.0),
        ("optimizer", {"type": "Adam"}),
    ],
)
def test_ds_config_that_sets_what_the_recipe_owns(project: Path, key: str, value: object) -> None:
    config = {"zero_optimization": {"stage": 3}, key: value}
    (project / "mine.json").write_text(json.dumps(config))
    assert_refused(project, "engine.deepspeed=mine.json", parts=["mine.json", key, "Remove"])


def test_mistake_is_told_before_heavy_imports(project: Path) -> None:
    """By an interpreter of its own; all others here have their early imports from a server."""
    ended = run_anew(project, "--recipe", "small.yaml", "train.max_steps=two")
    assert ended.code == 2
    assert len(ended.message.splitlines()) == 1, ended.message
    assert "train.max_steps = 'two'" in ended.message
    assert "numpy" in ended.imported
    assert not ended.imported & set(HEAVY)
    assert not (project / "out").exists()


def test_batch_that_the_ranks_do_not_divide(project: Path) -> None:
    parts = ["tasks.ir.global_batch_size = 4", "= 3", "Use 3 or 6"]
    assert_refused(project, parts=parts, WORLD_SIZE="3", RANK="0", LOCAL_RANK="0")


def test_every_command_line_mistake_is_one(project: Path) -> None:
    for arguments in (["--resum"], ["--gpus", "2"], ["--gpu-memory", "much", "--dry-run"]):
        ended = run(project, "--recipe", "small.yaml", *arguments)
        assert ended.code == 2
        assert re.search(r"^run\.py: error: ", ended.message, re.MULTILINE)
        assert not ended.imported & set(HEAVY)
    assert run(project).code == 2


def test_help_is_light(project: Path) -> None:
    ended = run_anew(project, "--help")
    assert ended.code == 0
    assert "--recipe FILE" in ended.out
    assert "argparse" in ended.imported
    assert not ended.imported & set(HEAVY)


def test_options_may_stand_between_overrides(project: Path) -> None:
    arguments = ("seed=1", "--resume", "train.max_steps=x", "--local_rank=1")
    ended = run(project, "--recipe", "small.yaml", *arguments)
    assert ended.code == 2
    assert "override train.max_steps=x" in ended.message


@pytest.mark.parametrize("name", ["qwen7b", "qwen7b_lora"])
def test_dry_run_of_a_7b_recipe_needs_its_config_only(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    (tmp_path / "7b").mkdir()
    config = {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    }
    (tmp_path / "7b" / "config.json").write_text(json.dumps(config))
    before = snapshot(tmp_path)
    recipe = str(ROOT / "recipes" / f"{name}.yaml")
    planned_for = ("--gpus", "8", "--hosts", "2", "--gpu-memory", "80GB")
    arguments = ("--recipe", recipe, "--dry-run", "model.path=7b", *planned_for)
    output = tmp_path_factory.mktemp("output")
    ended = finish_forked(output, *arguments, cwd=tmp_path, HOME=str(tmp_path))
    assert ended.code == 0, ended
    for part in (
        f"{name}, 16 ranks",
        "Batches",
        "Steps: 400",
        "20 warm up",
        "kernels     those of transformers, as the package liger-kernel is not installed"
        if importlib.util.find_spec("liger_kernel") is None
        else "kernels     Liger's",
        "Memory",
        "peak",
        "fastest that fits",
    ):
        assert part in ended.out
    assert f"{7_070_619_136:,}" in ended.out or name == "qwen7b_lora"
    assert '"train_batch_size": 16' in ended.out
    assert snapshot(tmp_path).keys() - before.keys() <= {tmp_path / ".cache", tmp_path / ".triton"}


def dry_run(project: Path, *arguments: str) -> launched.Ended:
    """A dry run of the folder's recipe; it imports what a run does, which is done once for all."""
    return finish_forked(project, "--recipe", "small.yaml", "--dry-run", *arguments, cwd=project)


def test_dry_run_counts_local_rows(project: Path) -> None:
    scores = ([1.5], [2], *[None] * 6)
    asked = [
        {"query": f"q {n}", "positives": ["p"], "positive_scores": scores[n]} for n in range(8)
    ]
    write_jsonl(project / "docs.jsonl", asked)
    ended = dry_run(project, "train={epochs: 3}")
    assert ended.code == 0, ended
    assert "source docs: records, 8 rows in 1 file(s), a teacher's scores in 2" in ended.out
    assert "  a teacher's scores in 2 of 8 rows of docs" in ended.out
    # 8 rows in batches of 4, three epochs of both sources: 6 turns each
    assert "Steps: 12" in ended.out
    assert re.search(r"pairs +sts +8 +6 +24 +3\.00 +0", ended.out)
    assert re.search(r"Tokens: auto\n +on the fly +(docs, pairs|pairs, docs)\n", ended.out)


def test_a_teachers_vectors_are_checked_and_told(project: Path) -> None:
    texts = [f"{kind} {n}" for n in range(8) for kind in "qp"]
    write_jsonl(project / "teacher" / "texts.jsonl", texts)
    vectors = project / "teacher" / "embeddings.npy"
    np.save(vectors, np.ones((16, 8), np.float16))
    edit("tasks:", "    - {name: more, task: ir, path: docs.jsonl}\ntasks:")(project)
    learns = ("data.sources.docs.teacher_embeddings=teacher", "tasks.ir.embedding_distillation={}")
    layer = "tasks.ir.embedding_distillation={projection: true}"
    ended = dry_run(project, learns[0], layer, "model.projection={size: 16}")
    assert ended.code == 0, ended
    assert re.search(r"embedding_distillation\.projection +16 to 8, trained for this", ended.out)
    assert "  a teacher's vectors of 8 dimensions for all texts of docs, to which" in ended.out
    assert "  no teacher's vectors for more: its steps go without embedding_dis" in ended.out
    ended = dry_run(project, *learns)
    assert ended.code == 2
    assert "expected 768, the size of the model's vectors. Set tasks.ir.embedding_" in ended.err
    np.save(vectors, np.zeros((16, 8), np.float16))
    assert_refused(project, *learns, parts=["embeddings.npy: norm of row 0 = 0"])
    np.save(vectors, np.ones((15, 8), np.float16))
    assert_refused(project, *learns, parts=["texts.jsonl: lines = 16; expected 15"])
    np.save(vectors, np.ones((16, 8), np.float16))
    write_jsonl(project / "teacher" / "texts.jsonl", [*texts[:15], "another"])
    assert_refused(project, *learns, parts=['docs.jsonl:8: text = "p 7"'])
    assert_refused(project, learns[0], parts=["teacher_embeddings = 'teacher'; expected null"])


def test_dry_run_counts_with_the_numbers_of_each_source(project: Path) -> None:
    own = "{name: docs, task: ir, path: docs.jsonl, global_batch_size: 2, negatives: 3}"
    second = "    - {name: more, task: ir, path: docs.jsonl}\ntasks:"
    edit("tasks:", second)(project)
    ended = dry_run(project, "data.sources.docs=" + own, "train={epochs: 3}")
    assert ended.code == 0, ended
    # a query and a positive, and the three negatives of docs alone
    assert re.search(r"ir \(docs\) +2 +2 +5,120 +1", ended.out)
    assert re.search(r"ir \(more\) +4 +4 +4,096 +1", ended.out)
    # three epochs of docs are 12 turns of 2 rows
    assert re.search(r"docs +ir +8 +12 +24 +3\.00 +0", ended.out)


def test_dry_run_looks_at_the_data_where_the_model_is_not(project: Path) -> None:
    ended = dry_run(project, "model.path=./absent")
    assert ended.code == 2
    assert "source docs: records, 8 rows" in ended.out
    assert "model.path = ./absent" in ended.err.splitlines()[-1]


def test_dry_run_tells_the_same_mistakes(project: Path) -> None:
    ended = dry_run(project, "--gpus", "3")
    assert ended.code == 2
    assert "tasks.ir.global_batch_size = 4" in ended.err
    ended = dry_run(project, "data.sources.docs.path=none.jsonl")
    assert ended.code == 2
    assert "none.jsonl" in ended.err


def test_resuming_an_empty_folder_starts_fresh_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    check_output_dir(str(tmp_path / "new"), resume=True)
    assert "no checkpoint to resume" in caplog.text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [(RecipeError("a"), 2), (StepError("a"), 1), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert ending_with_code(fail) == code
    assert capsys.readouterr().err == ("" if code == 130 else "a\n")


def test_message_is_one_line_without_secrets_or_control_characters() -> None:
    error = RecipeError("x\x1b[31m = a\nb\ud800; at https://me:word@host/x" + "y" * 5000)
    text = shown(error)
    assert text.startswith(r"x\x1b[31m = a\nb\ud800; at https://(hidden)@host/xyyy")
    assert len(text) == 3003


def test_mistake_that_another_rank_tells_is_not_told_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.cli.OTHERS_WAIT_SEC", 0.0)
    error = StepError("a")
    error.reported = True

    def fail() -> int:
        raise error

    assert ending_with_code(fail) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_log_on_a_full_disk_changes_nothing(project: Path) -> None:
    edit("max_steps: 2", "max_steps: two")(project)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, str(RUN), "--recipe", "small.yaml"],
            cwd=project,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(RecipeError, match="read-only"):
        check_output_dir(str(tmp_path / "new"), resume=False)


@pytest.mark.dist
def test_launcher_ends_with_the_same_code_and_one_message(project: Path) -> None:
    launcher = Path(sys.executable).with_name("deepspeed")
    arguments = ["--num_accelerators", "2", str(RUN), "--recipe", "small.yaml", "seed=x"]
    environment = {key: value for key, value in os.environ.items() if "RANK" not in key}
    done = subprocess.run(
        [str(launcher), *arguments],
        cwd=project,
        env=environment | {"PATH": f"{launcher.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("seed = 'x'; expected an integer") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (project / "out").exists()
