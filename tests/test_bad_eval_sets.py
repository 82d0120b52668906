"""Held-out sets that are wrong end the command with one message and code 2."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import corpus
from tests.support.data_files import write_jsonl
from tests.support.launched import environment
from tests.support.light import finish_light

RED, BLUE = {"text": "w1", "label": "red"}, {"text": "w2", "label": "blue"}
CORPUS = [{"_id": "d1", "text": "w1"}, {"_id": "d2", "text": "w2"}]
RANKED = {
    "corpus": CORPUS,
    "queries": [{"_id": "q1", "text": "w3"}],
    "qrels/test": [{"query-id": "q1", "corpus-id": "d1", "score": 1}],
    "top_ranked": [{"query-id": "q1", "corpus-ids": ["d1", "d7"]}],
}
BAD: dict[str, tuple[str, dict[str, list[Any]], str]] = {
    "one label only": (
        "classification", {"train": [RED, RED], "test": [RED]},
        'train.jsonl:1: label = "red", as in all 2 rows; expected at least two labels.',
    ),
    "one label of a clustering": (
        "clustering", {"test": [BLUE, BLUE]},
        'test.jsonl:1: label = "blue", as in all 2 rows; expected at least two labels.',
    ),
    "a label of another type": (
        "clustering", {"test": [RED, BLUE, RED | {"label": 3}]},
        'test.jsonl:3: label = 3; expected a text, as "red" at ',
    ),
    "a label that training lacks": (
        "classification", {"train": [RED, BLUE], "test": [RED, RED | {"label": "pink"}]},
        'test.jsonl:2: label = "pink"; expected a label that ',
    ),
    "an empty text": (
        "pair_classification", {"test": [{"sentence1": "a", "sentence2": " ", "labels": 1}]},
        'test.jsonl:1: sentence2 = " "; expected a text that is not empty.',
    ),
    "a candidate that is not in the corpus": (
        "reranking", RANKED,
        'top_ranked.jsonl:1: corpus-ids[1] = "d7"; expected an _id of corpus.jsonl.',
    ),
    "an answer that is not in the corpus": (
        "ir", RANKED | {"qrels/test": [{"query-id": "q1", "corpus-id": "d9", "score": 1}]},
        'qrels/test.jsonl:1: corpus-id = "d9"; expected an _id of corpus.jsonl.',
    ),
    "languages of unlike length": (
        "bitext", {"test": [{"sentence1": ["a", "b"], "sentence2": ["c"]}]},
        "test.jsonl:1: sentence2 = 1 items; expected as many as sentence1, at least one.",
    ),
    "a text without its translation": (
        "bitext", {"test": [{"text1": "a", "text2": "b"}, {"text1": "c"}]},
        "test.jsonl:2: text2 = nothing; expected a text",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    corpus.make_workspace(folder)
    return folder


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_set_ends_the_run_before_it_starts(
    case: str, workspace: Path, tmp_path: Path
) -> None:
    kind, files, said = BAD[case]
    for name, rows in files.items():
        write_jsonl(tmp_path / "set" / f"{name}.jsonl", rows)
    recipe = yaml.safe_load((workspace / "recipe.yaml").read_text())
    held_out = {"name": "bad", "task": kind, "path": str(tmp_path / "set"), "split": "test"}
    recipe["eval"]["sets"] = [held_out]
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    ended = finish_light(tmp_path, ["--recipe", "recipe.yaml"], environment(HOME=str(tmp_path)))
    assert ended.code == 2, ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
    assert said in ended.err
    assert not (workspace / "run").exists()
