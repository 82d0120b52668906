"""Model cards: the hub's own reader takes them, and the Python in them gives the trainer's vectors.

Vectors are compared in float32 with tolerance 1e-5, the sums of attention coming in another order.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModel

from tests.support import hub as stand_in
from tests.support.cards import run_python
from tests.support.corpus import RECIPE, save_corpus, save_tokenizer
from tests.support.tiny import bert_config, qwen3_config, save_model
from trainer.data.tokens import load_tokenizer, make_encoder
from trainer.errors import DataError, TrainerError
from trainer.export.embedder_files import write_embedder_files
from trainer.model.backbone import load_backbone
from trainer.model.embedder import Embedder
from trainer.model.projection import Projection, make_projection
from trainer.recipe.load import dump_recipe, load_recipe
from trainer.recipe.schema import Recipe
from trainer.report.base_model import base_of_folder, base_of_recipe, front_matter_of
from trainer.report.card import card_for_hub, write_merge_card, write_run_card
from trainer.report.card_usage import PASSAGES, QUESTIONS
from trainer.report.markdown import block, code, plain, table

BASE_CARD = "---\nlicense: other\nlicense_name: tiny\nlanguage:\n- en\n- no\nwidget: []\n---\n# b\n"
SHAPES = {
    "last": ("model.pooling=last",),
    "mean": ("model.pooling=mean",),
    "mean of the text alone": ("model.pooling=mean", "data.pool_instruction=false"),
    "weighted mean": ("model.pooling=weighted_mean",),
    "weighted mean of the text alone": (
        "model.pooling=weighted_mean",
        "data.pool_instruction=false",
    ),
    "projection": ("model.projection={size: 12}",),
    "projection with all": ("model.projection={size: 48, bias: true, activation: tanh}",),
    "cls, bidirectional": ("model.pooling=cls", "model.attention=bidirectional"),
}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A base with a card of its own, data, and a recipe."""
    save_model(qwen3_config(eos_token_id=2, pad_token_id=0), tmp_path / "base")
    save_tokenizer(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text(BASE_CARD)
    save_corpus(tmp_path)
    text = RECIPE.format(folder=tmp_path).replace("/model\n", "/base\n")
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path


def write_run(workspace: Path, *overrides: str) -> Recipe:
    """The small files of a finished run, in `workspace/run`."""
    recipe = load_recipe(workspace / "recipe.yaml", list(overrides))
    run = workspace / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    step = {"task": "ir", "source": "ir", "tokens": 100, "seconds": 1.0}
    steps = [json.dumps({"step": number, **step}) + "\n" for number in range(20)]
    (run / "metrics.jsonl").write_text("".join(steps))
    evaluations = [
        {"step": done, "sets": {"pairs": {"spearman": 0.1 + done / 100, "pearson": None},
                                "docs": {"ndcg_at_10": 0.5 + done / 100}}}
        for done in (0, 10, 20)
    ]  # fmt: skip
    (run / "eval.jsonl").write_text("".join(json.dumps(one) + "\n" for one in evaluations))
    exposure = {"source": "ir", "task": "ir", "num_rows": 40, "steps": 10, "rows_seen": 80}
    facts = {
        "environment": {"ranks": 2, "device": "cpu", "torch": "2.13.0", "codiemb-trainer": "0.1"},
        "num_steps": 20,
        "exposure": [exposure | {"epochs": 2.0, "never": 0, "once": 0, "twice": 40, "more": 0}],
        "scored_rows": {"ir": 30},
    }
    (run / "run.json").write_text(json.dumps(facts))
    return recipe


def export(workspace: Path, recipe: Recipe, *, adapter: bool = False) -> Path:
    """The base as an export of the run, or a random adapter of it."""
    base, model = workspace / "base", workspace / "run" / "model"
    model.mkdir()
    backbone = load_backbone(recipe.model, str(base), kernel="sdpa", zero3_config=None)
    tokenizer = load_tokenizer(str(base), pooling=recipe.model.pooling)
    write_embedder_files(model, recipe, config=backbone.config, tokenizer=tokenizer)
    if adapter:
        (model / "config.json").unlink()
        torch.manual_seed(1)
        lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        adapted = get_peft_model(AutoModel.from_pretrained(base), lora)
        adapted.save_pretrained(model)
    else:
        (model / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    projection = projection_of(recipe)
    if projection is not None:
        tensors = {name: one.detach() for name, one in projection.named_parameters()}
        save_file(tensors, model / "2_Dense" / "model.safetensors", metadata={"format": "pt"})
    return model


def projection_of(recipe: Recipe) -> Projection | None:
    """The dense layer behind the pooling, with the same weights at each call."""
    torch.manual_seed(3)
    return make_projection(recipe.model, recipe.model.path, hidden_size=qwen3_config().hidden_size)


def card_of(workspace: Path, model: Path, **changes: Any) -> str:
    """The text of the card that a run writes."""
    return write_run_card(model, workspace / "run", place=str(model), **changes).read_text()


def vectors_by_the_trainer(model: Path, recipe: Recipe, prompt: str, texts: Any) -> np.ndarray:
    """Vectors of texts one by one, without any of an export's files but the weights."""
    base = Path(recipe.model.path)
    backbone = load_backbone(recipe.model, str(base), kernel="sdpa", zero3_config=None)
    if (model / "adapter_config.json").is_file():
        from peft import PeftModel

        backbone = PeftModel.from_pretrained(backbone, model)
    embedder = Embedder(
        backbone,
        pooling=recipe.model.pooling,
        attention=recipe.model.attention,
        projection=projection_of(recipe),
    ).eval()
    tokenizer = load_tokenizer(str(base), pooling=recipe.model.pooling)
    encoder = make_encoder(tokenizer, recipe.data, pooling=recipe.model.pooling)
    encoded = encoder.encode(texts, instruction=prompt, max_tokens=16)
    return np.stack([one_vector(embedder, ids, encoded.num_prompt_tokens)
                     for ids in encoded.token_ids])  # fmt: skip


def one_vector(embedder: Embedder, ids: np.ndarray, num_prompt: int) -> np.ndarray:
    from trainer.data.batch import Texts
    from trainer.engine.chunks import plan_chunks
    from trainer.engine.materialise import lengths_of, make_chunks

    text = Texts(token_ids=(ids,), num_prompt_tokens=np.array([num_prompt]))
    plan = plan_chunks(lengths_of(text), num_ranks=1, max_tokens=64)
    (chunk,) = make_chunks(text, plan.ranks[0], key=0, device=torch.device("cpu"))
    with torch.no_grad():
        return np.asarray(embedder(chunk)[0][0])


@pytest.mark.parametrize(
    ("shape", "adapter"),
    # no adapter of a decoder with open attention is exported
    [*((shape, False) for shape in SHAPES), *((s, True) for s in SHAPES if "bi" not in s)],
)
def test_the_cards_python_gives_the_trainers_vectors(
    workspace: Path, shape: str, adapter: bool
) -> None:
    recipe = write_run(workspace, *SHAPES[shape])
    model = export(workspace, recipe, adapter=adapter)
    card_of(workspace, model)
    left = run_python(model / "README.md")
    assert left.keys() == {"sentence-transformers", "transformers"}
    texts = {"query": QUESTIONS, "document": PASSAGES, "sts": PASSAGES}
    prompts = {"query": "w1 w2 ", "document": "", "sts": ""}
    for name, asked in texts.items():
        wanted = vectors_by_the_trainer(model, recipe, prompts[name], list(asked))
        for library, names in left.items():
            found = np.asarray(names[f"{name}_vectors"])
            assert np.abs(found - wanted).max() < 1e-5, (library, name)


def test_an_encoders_card_runs(workspace: Path) -> None:
    save_model(bert_config(), workspace / "base")
    recipe = write_run(workspace, *("model.pooling=mean", "model.attention=bidirectional"))
    model = export(workspace, recipe)
    card_of(workspace, model)
    one, other = run_python(model / "README.md").values()
    assert (
        np.abs(np.asarray(one["query_vectors"]) - np.asarray(other["query_vectors"])).max() < 1e-5
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[stand_in.Hub]:
    """The stand-in, in the place of the hub."""
    with stand_in.serving() as serving:
        monkeypatch.setattr(constants, "ENDPOINT", serving.url)
        # a server of its own can be reached, whatever the environment says of the hub
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield serving


HUB_SOURCE = "data.sources.0={name: ir, task: ir, hub: 'team/set:en', query_instruction: 'w1 '}"


def test_the_hub_reads_the_card(workspace: Path, hub: stand_in.Hub) -> None:
    model = export(workspace, write_run(workspace, HUB_SOURCE))
    card_of(workspace, model)
    card = ModelCard.load(model / "README.md")
    card.validate()
    assert hub.requests == ["POST /api/validate-yaml"]
    data = metadata_load(model / "README.md")
    assert data == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "sentence-similarity", "feature-extraction", "dense"],
        "license": "other",
        "license_name": "tiny",
        "language": ["en", "no"],
        "datasets": ["team/set"],
        "model-index": data["model-index"],
    }
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "tiny"
    # what the hub's own reader understands, it writes as it was
    assert eval_results_to_model_index(name, results) == data["model-index"]
    found = {(one.dataset_name, one.task_type, one.metric_type): one.metric_value
             for one in results}  # fmt: skip
    assert found == {
        ("pairs", "semantic-similarity", "spearman"): 0.3,
        ("docs", "information-retrieval", "ndcg_at_10"): 0.7,
    }


MATRYOSHKA = "model.matryoshka={dims: [32, 16, 8]}"


def score_prefixes(workspace: Path) -> None:
    """Give every evaluation of the run scores of prefixes."""
    path = workspace / "run" / "eval.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        whole = line["sets"]["docs"]["ndcg_at_10"]
        line["dims"] = {
            "docs": {str(size): {"ndcg_at_10": whole * size / 32, "mrr_at_10": 0.5}
                     for size in (32, 16, 8)}
        }  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("adapter", [False, True])
def test_a_card_shows_how_to_cut_vectors_and_what_they_score(
    workspace: Path, hub: stand_in.Hub, adapter: bool
) -> None:
    recipe = write_run(workspace, MATRYOSHKA, *(("model.lora={rank: 2}",) if adapter else ()))
    model = export(workspace, recipe, adapter=adapter)
    score_prefixes(workspace)
    card = card_of(workspace, model)
    assert "| size of a vector | 32 |\n| it can be cut to | 16, 8 |" in card
    assert "trained as vectors too: 16, 8. Cut it there" in card
    assert "| held-out set | metric | 32 dimensions | 16 dimensions | 8 dimensions |" in card
    assert "| docs | nDCG@10 | 0.7000 | 0.3500 | 0.1750 |" in card
    bodies = [json.loads(one) for one in re.findall(r"-d '(.*)'$", card, re.MULTILINE)]
    asked = [one for one in bodies if "dimensions" in one]
    assert [one["dimensions"] for one in asked] == ([] if adapter else [16])
    ModelCard.load(model / "README.md").validate()
    assert hub.requests == ["POST /api/validate-yaml"]
    index = metadata_load(model / "README.md")["model-index"]
    name, results = model_index_to_eval_results(index)
    assert eval_results_to_model_index(name, results) == index
    found = {(one.dataset_type, one.dataset_name): one.metric_value for one in results}
    assert found == {
        ("pairs", "pairs"): 0.3,
        ("docs", "docs"): 0.7,
        ("docs_dim_16", "docs, 16 dimensions"): 0.35,
        ("docs_dim_8", "docs, 8 dimensions"): 0.175,
    }


def test_the_cards_python_gives_prefixes_of_norm_1(workspace: Path) -> None:
    recipe = write_run(workspace, MATRYOSHKA)
    model = export(workspace, recipe)
    card_of(workspace, model)
    left = run_python(model / "README.md")
    assert left.keys() == {"sentence-transformers", "transformers", "Shorter vectors"}
    for name in ("query_vectors", "document_vectors", "sts_vectors"):
        whole = np.asarray(left["sentence-transformers"][name])[:, :16]
        wanted = whole / np.linalg.norm(whole, axis=1, keepdims=True)
        # the same forward, cut and divided in another order of operations
        assert np.abs(np.asarray(left["Shorter vectors"][name]) - wanted).max() < 1e-6


def test_a_merge_has_no_scores_of_prefixes(workspace: Path) -> None:
    model = export(workspace, write_run(workspace, MATRYOSHKA))
    score_prefixes(workspace)
    (model / "merge.json").write_text(json.dumps(MERGE | {"base": {"path": "/home/me/base"}}))
    card = card_of(workspace, model)
    assert "| it can be cut to | 16, 8 |" in card
    assert "16 dimensions" not in card


def test_scores_are_those_of_the_exported_step(workspace: Path) -> None:
    model = export(workspace, write_run(workspace))
    card = card_of(workspace, model, step=10)
    assert "| held-out set | metric | before | after 10 steps | change |" in card
    assert "| docs | nDCG@10 | 0.5000 | 0.6000 | +0.1000 |" in card
    for mean in ("mean of all sets", "mean of kinds"):
        assert f"| all | {mean} | 0.3000 | 0.4000 | +0.1000 |" in card
    (index,) = metadata_load(model / "README.md")["model-index"]
    values = [one["value"] for result in index["results"] for one in result["metrics"]]
    assert values == [0.2, 0.6]
    assert "The numbers are of all 20 planned steps; the model was trained for 10." in card
    assert "| steps | 10 |" in card
    # of a step that was not evaluated there is nothing to say
    card = card_of(workspace, model, step=11)
    assert "## Evaluation" not in card
    assert "model-index" not in metadata_load(model / "README.md")


def test_the_card_tells_data_prompts_settings_and_how_to_repeat(workspace: Path) -> None:
    card = card_of(workspace, export(workspace, write_run(workspace)))
    assert "# tiny\n\nTrained from the local model `base` with codiemb-trainer." in card
    assert "| size of a vector | 32 |" in card
    assert "| longest text | 16 tokens |" in card
    assert '| `query` | `"w1 w2 "` |' in card
    assert re.search(r"^\| `document`, `sts`.* \| nothing \|$", card, re.MULTILINE)
    row = "| ir | retrieval | `ir.jsonl`, not on the hub | 40 | 10 | 80 | 2.00 |"
    assert row in card
    assert "Rows seen count repeats. A teacher scored passages of ir (30 of 40 rows)." in card
    assert "| a step of retrieval | 8 rows; loss: InfoNCE |" in card
    assert "deepspeed --num_accelerators 2 trainer/run.py --recipe recipe.yaml" in card
    assert "| torch | 2.13.0 |" in card


def test_the_card_tells_the_settings_of_each_source(workspace: Path) -> None:
    own = "{name: own, task: ir, path: ir.jsonl, global_batch_size: 4, negatives: 3}"
    recipe = write_run(workspace, f"data.sources.1={own}", "data.pattern={ir: 1}")
    card = card_of(workspace, export(workspace, recipe))
    assert "| a step of retrieval (ir) | 8 rows; loss: InfoNCE |" in card
    assert "| a step of retrieval (own) | 4 rows, negatives 3; loss: InfoNCE |" in card


def test_the_recipe_in_the_card_trains_and_hides_this_machine(workspace: Path) -> None:
    recipe = write_run(workspace)
    card = card_of(workspace, export(workspace, recipe))
    shown = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)[0]
    assert str(workspace) not in shown
    (workspace / "shown.yaml").write_text(shown)
    again = load_recipe(workspace / "shown.yaml")
    assert (again.train, again.tasks, again.seed) == (recipe.train, recipe.tasks, recipe.seed)
    assert again.output_dir == "run"


def test_servers_get_the_right_folder_prompts_and_limits(workspace: Path) -> None:
    instruction = 'data.sources.0.query_instruction=it\'s | "a" `test`: '
    model = export(workspace, write_run(workspace, instruction))
    card = card_of(workspace, model)
    assert f"vllm serve {model} --runner pooling --port 8000\n" in card
    assert f"text-embeddings-router --model-id {model} --port 8080\n" in card
    bodies = re.findall(r"-d ('.*')$", card, re.MULTILINE)
    asked, named = (json.loads(body[1:-1].replace("'\"'\"'", "'")) for body in bodies)
    prompt = 'it\'s | "a" `test`: '
    assert len(bodies) == 2
    assert asked == {"model": str(model), "input": [f"{prompt}{QUESTIONS[0]}"]}
    assert named == {"inputs": list(QUESTIONS), "truncate": True, "prompt_name": "query"}
    assert r'| `query` | `` "it' in card.replace("``  ", "`` ")
    assert run_python(model / "README.md").keys() == {"sentence-transformers", "transformers"}


def test_servers_that_would_pool_the_prompt_are_not_recommended(workspace: Path) -> None:
    shape = SHAPES["mean of the text alone"]
    model = export(workspace, write_run(workspace, *shape))
    card = card_of(workspace, model)
    assert "These servers pool the tokens of a prompt too" in card
    assert "vllm serve" not in card


def test_an_adapters_card_sends_servers_to_whole_weights(workspace: Path) -> None:
    model = export(workspace, write_run(workspace, "model.lora={rank: 2}"), adapter=True)
    card = card_of(workspace, model)
    assert "vllm serve" not in card
    assert "pip install sentence-transformers peft" in card
    assert "LoRA adapters of rank 2, alpha 32, on all-linear" in card
    assert "peft" in metadata_load(model / "README.md")["tags"]


MERGE = {
    "method": "delta",
    "formula": "theta0 + lambda * sum_k w_k D_k, w_k = ||D_k||^alpha",
    "settings": {
        "method": "delta",
        "alpha": 1.0,
        "density": 0.2,
        "weights": None,
        "max_shard_bytes": 5,
    },
    "checkpoints": [{"path": "/home/me/run/checkpoints/step-10"}, {"path": "/home/me/other"}],
    "tensors": {"a": {"norms": [0.5], "weights": [1.0]}},
}


def test_the_card_of_a_runs_merge(workspace: Path) -> None:
    model = export(workspace, write_run(workspace))
    (model / "merge.json").write_text(json.dumps(MERGE | {"base": {"path": "/home/me/base"}}))
    card = card_of(workspace, model)
    assert "Checkpoints that were trained from the local model `base`, merged" in card
    assert "| checkpoints | `run/checkpoints/step-10`, `other` |" in card
    assert r"w_k = \|\|D_k\|\|^alpha" in card
    assert "| alpha | `1.0` |" in card
    assert "density" not in card
    assert "/home/me" not in card
    assert "The merged weights were not scored in the run." in card
    data = metadata_load(model / "README.md")
    assert "merge" in data["tags"]
    assert "model-index" not in data


def test_the_card_of_a_merge_alone(workspace: Path) -> None:
    model = export(workspace, write_run(workspace))
    cached = workspace / "models--team--base" / "snapshots" / ("a" * 40)
    cached.mkdir(parents=True)
    (cached / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (model / "merge.json").write_text(json.dumps(MERGE | {"base": {"path": str(cached)}}))
    card = write_merge_card(model, place="merged").read_text()
    data = metadata_load(model / "README.md")
    assert (data["base_model"], data["base_model_relation"]) == ("team/base", "merge")
    assert data["license"] == "apache-2.0"
    assert 'SentenceTransformer("./merged")' in card
    assert "## Training data" not in card
    # the path goes, the word stays
    sent = card_for_hub(model / "README.md", "team/new")
    assert 'SentenceTransformer("team/new")' in sent
    assert "merged with codiemb-trainer" in sent
    assert "./merged" not in sent


def test_a_folder_without_pooling_says_so(workspace: Path) -> None:
    folder = workspace / "bare"
    folder.mkdir()
    (folder / "merge.json").write_text(json.dumps(MERGE | {"base": {"path": "/a/b"}}))
    card = write_merge_card(folder, place="out/bare").read_text()
    assert "it does not say how its hidden states become one vector" in card
    assert "```python" not in card


def test_damaged_files_are_named(workspace: Path) -> None:
    model = export(workspace, write_run(workspace))
    with pytest.raises(DataError, match=r"merge\.json = missing; expected the output"):
        write_merge_card(model, place="x")
    (model / "merge.json").write_text("[]")
    with pytest.raises(DataError, match="content = no record of a merge"):
        write_merge_card(model, place="x")
    (model / "merge.json").unlink()
    (model / "sentence_bert_config.json").write_text("{")
    with pytest.raises(TrainerError, match=r"sentence_bert_config\.json: content = not JSON"):
        write_run_card(model, workspace / "run", place="x")
    assert not (model / "README.md").exists()


def test_bases_are_named_by_where_they_come_from(workspace: Path) -> None:
    local = base_of_recipe(str(workspace / "base"), None)
    assert (local.name, local.hub) == ("base", None)
    assert local.inherited == {"license": "other", "license_name": "tiny", "language": ["en", "no"]}
    assert base_of_folder(workspace / "gone").inherited == {}


@pytest.mark.parametrize("revision", [None, "b" * 40])
def test_a_base_of_the_hub_is_linked_without_a_network(
    monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    base = base_of_recipe("team/never-downloaded", revision)
    assert (base.hub, base.revision, base.inherited) == ("team/never-downloaded", revision, {})


@pytest.mark.parametrize(
    "text",
    ["", "# no front matter", "---\n[\n---\n", "---\n- a\n---\n", "---\nlicense: {a: b}\n---\n"],
)
def test_a_base_card_that_says_nothing_gives_nothing(tmp_path: Path, text: str) -> None:
    card = tmp_path / "README.md"
    card.write_text(text)
    assert front_matter_of(card) == {}
    assert front_matter_of(tmp_path / "gone.md") == {}


def test_any_text_stands_in_markdown() -> None:
    assert plain("a_b*[c]\n<d>") == r"a\_b\*\[c\] \<d\>"
    assert code("a`b") == "`` a`b ``"
    assert table(("x", "n"), [("a|b", "1")]) == "| x | n |\n| --- | ---: |\n| a\\|b | 1 |"
    assert block("```\n", "yaml").splitlines()[0] == "````yaml"
