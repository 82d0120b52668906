"""The plan shown before a run is the plan of the run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.data_files import byte_tokenizer, write_jsonl
from tests.support.forked import finish_forked
from tests.support.launched import Ended
from trainer.data.growth import SourceState
from trainer.data.plan import make_plan
from trainer.data.stretch import Stretch, plan_stretches
from trainer.recipe.load import load_recipe, plain_recipe
from trainer.run_folder.facts import RunFacts, write_run_facts

TOOL = Path(__file__).parents[2] / "tools" / "show_plan.py"
RECIPE = """\
name: plan
output_dir: {root}/run
model: {{path: {root}/model}}
data:
  root: {root}
  sources:
    - {{name: pairs, task: sts, path: sts.jsonl}}
    - {{name: search, task: ir, path: ir.jsonl}}
tasks:
  ir: {{global_batch_size: 4, negatives: 0}}
  sts: {{global_batch_size: 4}}
train: {{max_steps: 10}}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    sts = [{"text1": f"a{i}", "text2": "b", "score": i / 8} for i in range(8)]
    write_jsonl(tmp_path / "sts.jsonl", sts)
    ir = [{"query": f"q{i}", "positives": ["p"]} for i in range(50)]
    write_jsonl(tmp_path / "ir.jsonl", ir)
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "qwen3"}')
    path = tmp_path / "plan.yaml"
    path.write_text(RECIPE.format(root=tmp_path))
    return path


def show(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def show_forked(recipe: Path, *arguments: object) -> Ended:
    """The same without the imports that take most of its time."""
    given = ("--recipe", str(recipe), *map(str, arguments))
    return finish_forked(recipe.parent, *given, script="tools/show_plan.py")


def test_json_lines_are_the_steps_of_the_run(recipe):
    shown = show_forked(recipe, "--start", 3, "--steps", 4, "--json")
    assert shown.code == 0, shown.err
    plan = make_plan(load_recipe(recipe), {"pairs": 8, "search": 50})
    lines = [json.loads(line) for line in shown.out.splitlines()]
    for line, step in zip(lines, range(3, 7), strict=True):
        found = plan.at(step)
        assert line == {
            "step": step,
            "task": found.task,
            "source": found.source,
            "epoch": found.epoch,
            "rows": found.rows.tolist(),
        }
    assert len(show_forked(recipe, "--json").out.splitlines()) == 10


def test_a_mix_is_shown_by_its_sources(recipe):
    small = [{"query": f"s{i}", "positives": ["p"]} for i in range(3)]
    write_jsonl(recipe.parent / "small.jsonl", small)
    text = recipe.read_text().replace("  sources:", "  mix: {both: [search, small]}\n  sources:")
    text = text.replace("tasks:", "    - {name: small, task: ir, path: small.jsonl}\ntasks:")
    recipe.write_text(text)
    plan = make_plan(load_recipe(recipe), {"pairs": 8, "search": 50, "small": 3})
    shown = show_forked(recipe, "--steps", 3, "--json")
    assert shown.code == 0, shown.err
    lines = [json.loads(line) for line in shown.out.splitlines()]
    mixed = [line for line in lines if line["source"] == "both"]
    assert mixed
    for line in mixed:
        found = plan.at(line["step"]).rows_by_source
        assert line["rows"] == {name: rows.tolist() for name, rows in found.items()}
        assert {name: len(rows) for name, rows in line["rows"].items()} == {"search": 2, "small": 2}
    table = show_forked(recipe, "--steps", 3)
    lines = [line.split() for line in table.out.splitlines()]
    assert [line[:5] for line in lines if line[:1] == ["ir"]] == [
        ["ir", "search", "50", "5", "0.20"],
        ["ir", "small", "3", "5", "3.33"],
        ["ir", "all", "53", "5", "0.38"],
    ]


def test_a_run_that_has_begun_is_shown_with_its_stretches(recipe, tmp_path):
    first = load_recipe(recipe)
    longer = load_recipe(recipe, ["train.max_steps=20"])
    rows = ({"pairs": 8, "search": 50}, {"pairs": 8, "search": 60})
    stretches = [
        Stretch(
            first_step=step,
            recipe=plain_recipe(one),
            sources={
                name: SourceState(fingerprint=f"{number}", num_rows=number)
                for name, number in sizes.items()
            },
            changed=changed,
        )
        for step, one, sizes, changed in (
            (0, first, rows[0], ()),
            (6, longer, rows[1], ("data.sources.search.path", "train.max_steps")),
        )
    ]
    facts = RunFacts(num_ranks=1, device="cpu", num_steps=20, exposure=(), scored_rows={},
                     libraries={}, stretches=stretches)  # fmt: skip
    (tmp_path / "run").mkdir()
    write_run_facts(tmp_path / "run", facts)
    # no data file is needed
    (tmp_path / "ir.jsonl").unlink()
    run = tmp_path / "run"
    shown = finish_forked(run, "--run", str(run), "--steps", "1", script="tools/show_plan.py")
    assert shown.code == 0, shown.err
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert lines[:3] == [
        "steps what changed",
        "0 to 5 -",
        "6 to 19 train.max_steps = 20 (was 10); rows of search = 60 (was 50)",
    ]
    # 10 steps of 4 rows of each source in the whole run, none of the 60 rows twice
    assert "ir search 60 10 0.67 20 40 0 0 -" in lines
    shown = finish_forked(run, "--run", str(run), "--json", script="tools/show_plan.py")
    planned = plan_stretches(stretches)
    for step, line in enumerate(map(json.loads, shown.out.splitlines())):
        found = planned[step >= 6].plan.at(step)
        assert (line["source"], line["rows"]) == (found.source, found.rows.tolist())
    assert step == 19
    shown = finish_forked(run, "--run", str(tmp_path), script="tools/show_plan.py")
    assert shown.code == 2
    assert "run.json: stretches = missing; expected the output folder of a run" in shown.err


def test_the_table_counts_rows_and_tokens(recipe):
    shown = show_forked(recipe, "--steps", 1)
    assert shown.code == 0, shown.err
    cells = [line.split() for line in shown.out.splitlines()]
    # 5 steps of 4 rows each: 8 pairs are seen twice, 4 of them once more; 20 of 50 queries once.
    assert cells[2][:9] == ["sts", "pairs", "8", "5", "2.50", "0", "0", "4", "4"]
    assert cells[3][:9] == ["ir", "search", "50", "5", "0.40", "30", "20", "0", "0"]
    assert [line[:2] for line in cells[4:6]] == [["sts", "all"], ["ir", "all"]]
    assert all(float(line[9]) > 0 for line in cells[2:6])
    assert cells[-1][:4] == ["0", "ir", "search", "0"]


def test_without_a_tokenizer_the_rest_is_shown(recipe):
    (recipe.parent / "model" / "tokenizer.json").unlink()
    (recipe.parent / "model" / "tokenizer_config.json").unlink()
    shown = show_forked(recipe)
    assert shown.code == 0, shown.err
    assert shown.out.splitlines()[2].split()[9] == "-"
    assert "tokens are not estimated" in shown.err


def test_mistakes_end_with_code_two(recipe):
    (recipe.parent / "ir.jsonl").write_text("{}\n")
    shown = show("--recipe", recipe)
    assert shown.returncode == 2
    assert "ir.jsonl:1: " in shown.stderr
    assert "Traceback" not in shown.stderr
    assert show("--recipe", recipe, "--start", "-1").returncode == 2
