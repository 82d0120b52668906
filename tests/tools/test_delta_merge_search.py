"""The command chooses a merge by real held-out sets, scored as tools/evaluate.py scores them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import exported
from tests.support.data_files import write_beir, write_jsonl, write_qrels
from tools import delta_merge


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and two exports of it whose weights are the base's with noise."""
    folder = tmp_path_factory.mktemp("models")
    exported.make_base(folder / "base")
    exported.make_export(folder / "base", folder / "a")
    shutil.copytree(folder / "a", folder / "b")
    for seed, name in enumerate("ab"):
        file = folder / name / "model.safetensors"
        generator = torch.Generator().manual_seed(seed)
        noisy = {
            key: value + 0.02 * torch.randn(value.shape, generator=generator)
            for key, value in load_file(file).items()
        }
        save_file(noisy, file, metadata={"format": "pt"})
    pairs = [{"text1": f"a word {n}", "text2": f"a word {n * n}", "score": n / 8} for n in range(9)]
    write_jsonl(folder / "pairs.jsonl", pairs)
    corpus = {f"d{n}": f"text number {n}" for n in range(12)}
    beir = write_beir(folder / "docs", corpus=corpus, queries={"q0": "number 3", "q1": "text 7"})
    write_qrels(beir, "dev", [("q0", "d3", 1), ("q1", "d7", 1)])
    return folder


def command(models: Path, output: Path, *sets: str) -> list[str]:
    inputs = ["--base", f"{models}/base", "--checkpoints", f"{models}/a", f"{models}/b"]
    return [*inputs, "--output", str(output), "--search", *sets]


@pytest.mark.slow
def test_the_result_is_the_best_of_what_was_tried(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = (f"{models}/pairs.jsonl", f"{models}/docs")
    assert delta_merge.main([*command(models, tmp_path / "out", *sets), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    values = {one["name"]: one["value"] for one in told["tried"]}
    assert values[told["best"]] == max(values.values())
    assert {"base", "checkpoint 1", "checkpoint 2", "uniform", "slerp"} <= values.keys()
    assert told["kinds"] == {"pairs": "sts", "docs": "ir"}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"search.json", "search.html", "merge.json", "README.md", "modules.json"} <= names
    # scored by itself, the result has the score that was found
    from tools.evaluate import evaluate, read_sets

    again = evaluate(str(tmp_path / "out"), read_sets(sets, "dev"))
    best = next(one for one in told["tried"] if one["name"] == told["best"])
    for name, metrics in best["sets"].items():
        assert metrics == pytest.approx(again[name], abs=1e-6)


def test_mistakes_end_before_the_first_merge(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert delta_merge.main(command(models, output, f"{tmp_path}/nowhere.jsonl")) == 2
    assert "nowhere.jsonl = missing" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        delta_merge.main([*command(models, output, f"{models}/docs"), "--method", "ties"])
    assert ended.value.code == 2
    assert "--method is what --search chooses" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        delta_merge.main([*command(models, output)[:-1], "--split", "test"])
    assert "--split is for the sets of --search" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        delta_merge.main([*command(models, output)[:-1], "--keep-base"])
    assert "--keep-base is for the sets of --search" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
