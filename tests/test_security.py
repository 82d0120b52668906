"""Hostile recipes, models and checkpoints, through the real commands: refused, and nothing ran.

Each attack would make the file `ran`; none may.
"""

import itertools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.corpus import make_workspace
from tests.support.forked import finish_forked
from tests.support.launched import by_python, finish
from tests.test_run_cli import assert_refused, edit, write
from tests.test_run_cli import project as project  # a fixture: a right recipe with its data
from tools import delta_merge
from trainer.recipe.secrets import has_secret, without_secrets

TOKEN = "hf_" + "Ab3" * 11


@dataclass
class Bomb:
    """Makes a file when it is unpickled without care."""

    marker: str

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (self.marker,)


def refused(project: Path, *arguments: str, parts: list[str]) -> None:
    """As for any mistake: code 2, one line, before anything heavy; and nothing ran."""
    assert_refused(project, *arguments, parts=parts)
    assert not (project / "ran").exists()


@pytest.mark.parametrize(
    "tag",
    [
        '!!python/object/apply:os.mkdir ["ran"]',
        '!!python/object/new:os.mkdir ["ran"]',
        "!!python/name:os.mkdir",
        "!!python/module:os",
        "!custom {a: 1}",
    ],
)
def test_yaml_that_asks_for_objects(project: Path, tag: str) -> None:
    name = tag.split()[0].replace("!!python", "python")
    edit("name: small", f"name: {tag}")(project)
    refused(project, parts=["small.yaml:1: tag = ", name, "cannot create objects or run code"])


def test_override_that_asks_for_objects(project: Path) -> None:
    override = 'name=!!python/object/apply:os.mkdir ["ran"]'
    refused(project, override, parts=["override name=", "tag = !!python/object/apply:os.mkdir"])


def growing(item: str) -> list[str]:
    """Sixteen anchored values, each of which holds the one before it nine times."""
    names = "abcdefghijklmnop"
    return ["a: &a {x: 1}"] + [
        f"{one}: &{one} {item.replace('ALIAS', '*' + before)}"
        for before, one in itertools.pairwise(names)
    ]


GROWTH = pytest.mark.parametrize(
    "item",
    [
        f"[{', '.join(['ALIAS'] * 9)}]",
        f"{{{', '.join(f'key{index}: ALIAS' for index in range(9))}}}",
        f"{{<<: [{', '.join(f'{{key{index}: ALIAS}}' for index in range(9))}]}}",
    ],
    ids=["lists", "mappings", "merges"],
)


@GROWTH
def test_yaml_that_grows_without_end(project: Path, item: str) -> None:
    write("small.yaml", "\n".join(growing(item)))(project)
    refused(project, parts=["small.yaml:", "over 20000 values"])


@GROWTH
def test_override_that_grows_without_end(project: Path, item: str) -> None:
    override = f"name={{{', '.join(growing(item))}}}"
    refused(project, override, parts=["override name=", "over 20000 values"])


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/../../b", ".."])
def test_index_that_names_files_elsewhere(project: Path, name: str) -> None:
    index = json.dumps({"weight_map": {"w": name}})
    write("model/model.safetensors.index.json", index)(project)
    refused(project, parts=["model.safetensors.index.json: weight_map names", name])


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "a" * 39, "A" * 40])
def test_code_of_a_hub_model_without_a_commit(project: Path, revision: str | None) -> None:
    cache = project / ".cache" / "huggingface" / "hub" / "models--some--model"
    cache.mkdir(parents=True)
    given = [f"model.revision={revision}"] if revision else []
    arguments = ("model.path=some/model", "model.trust_remote_code=true", *given)
    refused(project, *arguments, parts=["model.", "revision", "commit"])


@pytest.mark.parametrize(
    "override",
    [
        f"log.wandb_project={TOKEN}",
        f"token={TOKEN}",
        f"data.sources.docs.path=https://me:{TOKEN}@host/x",
        "model.path=https://me:open-sesame@host/x",
    ],
)
def test_secret_in_a_recipe_is_refused_and_not_shown(project: Path, override: str) -> None:
    ends = [assert_refused(project, override, parts=["(hidden)"])]
    value = override.rpartition("=")[2]
    edit("name: small", f"name: small\nlog: {{wandb_project: '{value}'}}")(project)
    ends.append(assert_refused(project, parts=["log.wandb_project = ", "(hidden)"]))
    for ended in ends:
        for shown in (ended.out, ended.message):
            assert TOKEN not in shown
            assert "sesame" not in shown


def test_what_looks_like_a_secret() -> None:
    for text in (TOKEN, "https://u:p@h/x", "sk-" + "a" * 24, "ghp_" + "b" * 36, "AKIA" + "A" * 16):
        assert has_secret(f"x {text} y")
        assert "(hidden)" in without_secrets(text)
    for text in ("Qwen/Qwen3-0.6B", "https://host/x@y", "hf_model", "task-sk-learn", "me@host"):
        assert not has_secret(text)


def two_steps(recipe: Path, folder: Path, *more: str) -> tuple[str, ...]:
    """Arguments of a run of one process in a folder of its own."""
    common = ("--recipe", str(recipe), f"output_dir={folder}/run", "eval.sets=[]")
    return (*common, "train.max_steps=2", *more)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def hostile_model(recipe: Path, folder: Path) -> Path:
    """A copy of the workspace's model without weights."""
    model = folder / "model"
    shutil.copytree(recipe.parent / "model", model)
    (model / "model.safetensors").unlink()
    return model


@pytest.mark.dist
def test_pickle_in_the_place_of_weights(recipe: Path, tmp_path: Path) -> None:
    model = hostile_model(recipe, tmp_path)
    bomb = pickle.dumps({"embed_tokens.weight": Bomb(str(tmp_path / "ran"))}, protocol=2)
    (model / "pytorch_model.bin").write_bytes(bomb)
    ended = finish_forked(tmp_path, *two_steps(recipe, tmp_path, f"model.path={model}"))
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert f"model.path = {model}" in ended.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.dist
def test_code_beside_the_weights(recipe: Path, tmp_path: Path) -> None:
    model = hostile_model(recipe, tmp_path)
    marker = str(tmp_path / "ran")
    (model / "evil.py").write_text(f"import os\nos.mkdir({marker!r})\nclass Evil: pass\n")
    config = json.loads((model / "config.json").read_text())
    auto = {
        "AutoConfig": "evil.Evil",
        "AutoModel": "evil.Evil",
        "AutoTokenizer": ["evil.Evil", None],
    }
    config |= {"auto_map": auto, "model_type": "evil", "architectures": ["Evil"]}
    (model / "config.json").write_text(json.dumps(config))
    ended = finish_forked(tmp_path, *two_steps(recipe, tmp_path, f"model.path={model}"))
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.dist
def test_code_of_another_repository_is_bound_to_the_commit(recipe: Path, tmp_path: Path) -> None:
    """A config may take its code from elsewhere, whose newest state nobody has read."""
    hub, commit, newer = tmp_path / "hub", "a" * 40, "b" * 40
    model = hub / "models--some--model"
    shutil.copytree(recipe.parent / "model", model / "snapshots" / commit)
    evil = hub / "models--some--code"
    (evil / "snapshots" / newer).mkdir(parents=True)
    marker = str(tmp_path / "ran")
    code = f"import os\nos.mkdir({marker!r})\nclass Evil: pass\n"
    (evil / "snapshots" / newer / "evil.py").write_text(code)
    for repository, now in ((model, commit), (evil, newer)):
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(now)
    path = model / "snapshots" / commit / "config.json"
    config = json.loads(path.read_text()) | {"model_type": "evil"}
    config["auto_map"] = {"AutoConfig": "some/code--evil.Evil"}
    path.write_text(json.dumps(config))
    trust = ("model.trust_remote_code=true", f"model.revision={commit}")
    arguments = two_steps(recipe, tmp_path, "model.path=some/model", *trust)
    # the place of the cache is read when the library is imported
    ended = finish(tmp_path, by_python(), *arguments, HF_HUB_CACHE=str(hub))
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "ran").exists()


@pytest.mark.dist
def test_tokens_of_the_environment_are_nowhere(recipe: Path, tmp_path: Path) -> None:
    secrets = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": TOKEN, "HTTPS_PROXY": TOKEN}
    ended = finish_forked(tmp_path, *two_steps(recipe, tmp_path), **secrets)
    assert ended.code == 0, ended.err
    assert TOKEN not in ended.out + ended.err
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(files) > 10
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        (
            "model.safetensors.index.json",
            {"weight_map": {"embed_tokens.weight": "../model/model.safetensors"}},
            "model.safetensors.index.json: weight_map names ../model/model.safetensors",
        ),
        ("modules.json", [{"path": "../model"}], "modules.json: path = ../model"),
        ("modules.json", [{"path": "/etc"}], "modules.json: path = /etc"),
        ("modules.json", {"no": "list"}, "modules.json: "),
    ],
)
def test_paths_out_of_a_merged_folder(
    recipe: Path,
    tmp_path: Path,
    file: str,
    content: object,
    part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, base = hostile_model(recipe, tmp_path), str(recipe.parent / "model")
    (model / file).write_text(json.dumps(content))
    inputs = ["--base", base, "--checkpoints", base, str(model)]
    assert delta_merge.main([*inputs, "--output", f"{tmp_path}/out"]) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
