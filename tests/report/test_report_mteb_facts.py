"""What a run says of its model to mteb, from small files alone."""

import shutil
from pathlib import Path

import pytest

from trainer.evaluation.mteb_tasks import MetaFacts
from trainer.report.mteb_facts import facts_of_folder, facts_of_run, revision_of

RECIPE = """
name: helpdesk
output_dir: a
model: {{path: {base}, matryoshka: {{dims: [32, 8]}}}}
train: {{max_steps: 1}}
tasks: {{sts: {{global_batch_size: 2}}}}
data:
  sources:
    - {{name: tickets, task: sts, path: a}}
    - {{name: far, task: sts, hub: "mteb/banking77:en"}}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose base lies in the hub's cache, with a licence on its card."""
    base = tmp_path / "models--Qwen--Qwen3" / "snapshots" / ("a" * 40)
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (base / "config.json").write_text("{}")
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base))
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "model" / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def test_facts_of_a_run_are_those_of_its_recipe_and_base(run: Path) -> None:
    assert facts_of_run(run, name=None) == MetaFacts(
        name="local/helpdesk",
        revision=revision_of(run / "model"),
        adapted_from="Qwen/Qwen3",
        licence="apache-2.0",
        sources={"tickets": None, "far": "mteb/banking77"},
        dims=(32, 8),
    )
    assert facts_of_run(run, name="org/helpdesk").name == "org/helpdesk"


def test_facts_of_a_folder_are_what_its_card_says(run: Path) -> None:
    found = facts_of_folder(run / "model", name=None)
    assert found == MetaFacts(
        name="local/model", revision=revision_of(run / "model"), licence="mit"
    )
    card = "---\nlicense: other\nlicense_link: https://a.org/licence\n---\n"
    (run / "model" / "README.md").write_text(card)
    assert facts_of_folder(run / "model", name=None).licence == "https://a.org/licence"


def test_the_revision_follows_every_file_but_the_card(run: Path, tmp_path: Path) -> None:
    first = revision_of(run / "model")
    assert len(first) == 40
    copy = tmp_path / "copy"
    shutil.copytree(run / "model", copy)
    assert revision_of(copy) == first
    (copy / "README.md").write_text("other words")
    assert revision_of(copy) == first
    (copy / "config_sentence_transformers.json").write_text("{}")
    assert revision_of(copy) != first
    (run / "model" / "model.safetensors").write_bytes(b"other")
    assert revision_of(run / "model") not in (first, revision_of(copy))
