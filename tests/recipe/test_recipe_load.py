"""A recipe is read as written, refused with one exact message, and survives a round trip."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import RecipeError
from trainer.recipe.ir import DistillationRecipe, MaskRecipe
from trainer.recipe.load import dump_recipe, load_recipe, plain_recipe, recipe_of
from trainer.recipe.schema import LoraRecipe, MatryoshkaRecipe, Recipe
from trainer.recipe.tasks import TASKS

TEXT = """\
name: small
output_dir: runs/small
model:
  path: some/folder
data:
  sources:
    - {name: pairs, task: sts, path: pairs.jsonl}
    - name: docs
      task: ir
      path: docs.jsonl
tasks:
  ir: {global_batch_size: 8}
  sts: {global_batch_size: 8}
train:
  max_steps: 10
  learning_rate: 1e-5
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    return write(tmp_path, TEXT)


def write(folder: Path, text: str) -> Path:
    file = folder / "small.yaml"
    file.write_text(text)
    return file


def refused(file: Path, *overrides: str) -> str:
    """The message of the error, whose form is the same for all."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert " = " in message
    assert "; expected " in message
    return message


def test_values_and_defaults(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.train.learning_rate == 1e-5  # YAML 1.1 reads this spelling as text
    assert recipe.data.sources[1].name == "docs"
    assert recipe.model.pooling == "last"
    assert recipe.tasks["sts"].weights["rank_kl"] == 5.0
    assert recipe.model.lora is None
    assert recipe.data.pattern == {"ir": 1, "sts": 1}


def test_pattern_default_is_cut_to_the_tasks_with_sources(tmp_path: Path) -> None:
    text = TEXT.replace("    - {name: pairs, task: sts, path: pairs.jsonl}\n", "")
    assert load_recipe(write(tmp_path, text)).data.pattern == {"ir": 1}


def test_overrides(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "train.max_steps=3",
            "train.max_steps=4",
            "data.sources.0.path=first.jsonl",
            "data.sources.docs.path=second.jsonl",
            "data.sources.docs.query_instruction='a: b'",
            "model.lora.rank=4",
            "train.betas=[0.8, 0.9]",
            "data.pattern.ir=3",
            "eval.every_steps=5",
            "model.dropout=",
        ],
    )
    assert recipe.train.max_steps == 4
    assert [source.path for source in recipe.data.sources] == ["first.jsonl", "second.jsonl"]
    assert recipe.data.sources[1].query_instruction == "a: b"
    assert recipe.model.lora == LoraRecipe(rank=4)
    assert recipe.train.betas == (0.8, 0.9)
    assert recipe.data.pattern == {"ir": 3, "sts": 1}
    assert recipe.eval.every_steps == 5
    assert recipe.model.dropout is None


@pytest.mark.parametrize("text", ["2024", "true", "a: b", "{instruction} {text}", "[", "1e-5"])
def test_override_of_a_text_needs_no_quotes(recipe_file: Path, text: str) -> None:
    # quotes would have to survive the shells of the launcher and of remote hosts
    recipe = load_recipe(recipe_file, [f"data.sources.docs.query_instruction={text}"])
    assert recipe.data.sources[1].query_instruction == text


def test_round_trip(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["model.lora.targets=[q_proj, v_proj]", "seed=7"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


@settings(max_examples=50, deadline=None)
@given(
    rate=st.floats(min_value=1e-12, max_value=10.0),
    instruction=st.text(max_size=30),
    steps=st.integers(min_value=1),
)
def test_round_trip_of_any_value(
    tmp_path_factory: pytest.TempPathFactory, rate: float, instruction: str, steps: int
) -> None:
    values: dict[str, Any] = yaml.safe_load(TEXT)
    values["train"] |= {"learning_rate": rate, "max_steps": steps}
    values["data"]["sources"][0]["query_instruction"] = instruction
    folder = tmp_path_factory.mktemp("round")
    recipe = load_recipe(write(folder, yaml.safe_dump(values)))
    assert recipe.train.learning_rate == rate
    assert recipe.data.sources[0].query_instruction == instruction
    assert load_recipe(write(folder, dump_recipe(recipe))) == recipe
    assert recipe_of(json.loads(json.dumps(plain_recipe(recipe)))) == recipe


def test_plain_values_of_a_run_are_completed_and_checked(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    plain = plain_recipe(recipe)
    del plain["data"]["workers"], plain["tasks"]["ir"]["directions"]
    assert recipe_of(plain) == recipe
    plain["train"]["gone"] = 1
    with pytest.raises(RecipeError, match=r"recipe of the run: train.gone = 1; expected a known"):
        recipe_of(plain)


def test_changes_come_after_overrides_and_may_add_a_source(recipe_file: Path) -> None:
    added = ["data.sources.more.path=x.jsonl", "data.sources.more.task=ir", "seed=2"]
    recipe = load_recipe(recipe_file, ["seed=1"], added)
    assert recipe.seed == 2
    assert [source.name for source in recipe.data.sources][-1] == "more"
    assert recipe.data.sources[-1].path == "x.jsonl"
    # one that is there is changed, and an override adds none
    assert load_recipe(recipe_file, [], ["data.sources.docs.path=y"]).data.sources[1].path == "y"
    with pytest.raises(RecipeError, match=r"sources.more = \(missing\); expected an index"):
        load_recipe(recipe_file, added)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.max_stepz=3", ["train.max_stepz = 3", "Did you mean max_steps?"]),
        ("trian.max_steps=3", ["trian = ", "Did you mean train?"]),
        ("learning_rate=3", ["Did you mean train.learning_rate?"]),
        ("zzz=3", ["a known key; the recipe has name, output_dir", "Remove zzz."]),
        ("train.max_steps=ten", ["train.max_steps = 'ten'", "an integer"]),
        ("train.max_steps=1.5", ["train.max_steps = 1.5", "an integer"]),
        ("train.max_steps=true", ["train.max_steps = true", "an integer"]),
        ("train.max_steps=-3", ["train.max_steps = -3", "an integer of at least 1"]),
        ("train.learning_rate=0", ["a number above 0"]),
        ("train.learning_rate=.nan", ["a finite number"]),
        ("train.learning_rate=fast", ["train.learning_rate = 'fast'", "a finite number"]),
        ("model.dropout=1", ["of at least 0 and at most 0.99"]),
        ("model.pooling=meen", ["one of last, mean, weighted_mean, cls", "Did you mean mean?"]),
        ("model.gradient_checkpointing=1", ["true or false"]),
        ("train={max_steps: 3, schedule: 1}", ["train.schedule = 1", "one of cosine"]),
        ("name=", ["name = null", "text"]),
        ("name=' '", ["text that is not empty"]),
        ("model.end_token=' '", ["text that is not empty"]),
        ("export.max_tokens=3", ["export.max_tokens = 3", "at least data.", "lower data."]),
        ("export.max_tokens=1", ["export.max_tokens = 1", "an integer of at least 2"]),
        ("model.lora.targets=q_proj", ["a list, or all-linear"]),
        ("model.lora.targets=[]", ["at least one module name"]),
        ("model.lora.trainable_tokens=x", ["trainable_tokens = 'x'", "a list"]),
        ("model.lora.trainable_tokens=[1.5]", ["trainable_tokens.0 = 1.5", "text"]),
        ("model.lora.trainable_tokens=[true]", ["trainable_tokens.0 = true", "text"]),
        ("model.lora.trainable_tokens=['']", ["trainable_tokens.0 = ''", "a token, or its id"]),
        ("model.lora.trainable_tokens=[3, a, 3]", ["trainable_tokens.2 = 3", "each token once"]),
        (
            "model.lora={targets: [], trainable_tokens: [3], rank: 4}",
            ["model.lora.rank = 4", "nothing where tokens alone are trained"],
        ),
        (
            "model.lora={targets: [], trainable_tokens: [3], modules_to_save: [norm]}",
            ["model.lora.modules_to_save = ", "Remove it, or name targets."],
        ),
        ("train.betas=[0.9]", ["a list of 2 values"]),
        ("train.betas=[0.9, 1.0]", ["train.betas.1 = 1", "below 1"]),
        ("train=5", ["train = 5", "a section"]),
        ("data.sources=x", ["data.sources = 'x'", "a list"]),
        ("data.sources=[]", ["at least one source"]),
        ("data.pattern=3", ["`key: value` pairs"]),
        ("data.pattern={ir: 1}", ["data.pattern.sts = (missing)", "every task with a source"]),
        ("data.pattern.ir=0", ["data.pattern.ir = 0", "at least 1"]),
        ("data.pattern.qa=1", ["data.pattern.qa = 1", "tasks that have a source: ir, sts"]),
        ("data.sources.0.hub=a/b", ["only one of `path` and `hub`"]),
        ("data.sources.pairs.path=", ["either `path` or `hub`"]),
        ("data.sources.pairs.name=docs", ["data.sources.1.name = 'docs'"]),
        ("data.sources.pairs.name=a.b", ["without dots"]),
        ("data.sources.nothing.path=x", ["from 0 to 1", "pairs, docs"]),
        ("data.sources.2.path=x", ["from 0 to 1"]),
        ("data.sources.docs.score_range=[0, 5]", ["rows of task ir have no score"]),
        ("checkpoint.merge={last: 2, by_depth: []}", ["by_depth = []", "one number or more"]),
        ("checkpoint.merge={last: 2, by_depth: [.nan]}", ["by_depth.0 = nan", "number"]),
        ("engine.keep_graph_tokens=some", ["'some'", "an integer, or auto", "without quotes"]),
        ("engine.keep_graph_tokens=-1", ["= -1", "an integer of at least 0"]),
        ("engine.memory_fraction=1.5", ["memory_fraction = 1.5", "above 0 and at most 1"]),
        ("engine.kernels=liger", ["engine.kernels = 'liger'", "one of auto, none"]),
        ("engine.gather=interleaved", ["one of auto, ", "It is called chunk now."]),
        ("tasks.sts.pro_temperature=1", ["It is called tasks.sts.temperatures.pro now."]),
        ("tasks.sts.weights.arc=1", ["tasks.sts.weights has pearson, rank_kl"]),
        ("tasks.ir.weights.spread_out=1", ["tasks.ir.weights has infonce, hard_negatives"]),
        ("tasks.ir.mask={}", ["tasks.ir.mask = {}", "margin or guide"]),
        ("tasks.ir.mask={of: own, guide: true}", ["tasks.ir.mask.of = 'own'", "margin is null"]),
        (
            "tasks.ir.mask={margin: 0.1, of: mine}",
            ["tasks.ir.mask.of = 'mine'", "one of best, own"],
        ),
        ("tasks.ir.directions=[]", ["tasks.ir.directions = ", "query_to_doc and others"]),
        ("tasks.ir.directions=[query_to_query]", ["query_to_doc and others, each once"]),
        (
            "tasks.ir.directions=[query_to_doc, docs]",
            ["directions.1 = 'docs'", "one of query_to_doc"],
        ),
        ("tasks.ir.directions=query_to_doc", ["tasks.ir.directions = 'query_to_doc'", "a list"]),
        ("tasks.ir.in_batch=some", ["in_batch = 'some'", "true, false, positives"]),
        ("tasks.ir.in_batch=3", ["in_batch = 3", "true, false, positives"]),
        ("tasks.ir.hardness=-1", ["tasks.ir.hardness = -1", "at least 0"]),
        ("tasks.ir.hardness_of=hard", ["hardness_of = 'hard'", "tasks.ir.hardness is 0"]),
        ("tasks.ir.distillation.loss=mse", ["distillation.loss = 'mse'", "one of kl, margin_mse"]),
        ("tasks.ir.distillation.weight=0", ["distillation.weight = 0", "above 0"]),
        ("model.matryoshka.dims=[]", ["model.matryoshka.dims = ", "each below the one before"]),
        ("model.matryoshka.dims=[64, 128]", ["dims = ", "each below the one before"]),
        ("model.matryoshka.dims=[64, 64]", ["dims = ", "each below the one before"]),
        ("model.matryoshka.dims=[64, 0]", ["dims = ", "sizes of at least 1"]),
        ("model.matryoshka.dims=64", ["model.matryoshka.dims = 64", "a list"]),
        ("model.matryoshka={weights: [1]}", ["model.matryoshka.dims = (missing)"]),
        ("model.matryoshka={dims: [64, 32], weights: [1]}", ["weights = ", "2 numbers above 0"]),
        ("model.matryoshka={dims: [64], weights: [0]}", ["weights = ", "1 numbers above 0"]),
        ("data.sources.pairs.score_range=[5, 0]", ["[lowest, highest]"]),
        ("data.prompt_template='{text} {title}'", ["{text} once"]),
        ("data.prompt_template='{text'", ["{text} once"]),
        ("train.epochs=2", ["only one of train.max_steps and train.epochs"]),
        ("train.max_steps=null", ["either train.max_steps or train.epochs"]),
        ("train.max_steps.x=3", ["a section that can hold `x`"]),
        ("tasks.sts=null", ["tasks.sts = (missing)", "as source pairs is of this task"]),
        ("tasks.sts={}", ["tasks.sts.global_batch_size = (missing)"]),
        ("tasks.sts.weights={pearson: 0, rank_kl: 0, pro: 0, infonce: 0}", ["all 0"]),
        ("model.trust_remote_code=true", ["without model.revision"]),
        ("model=null", ["model.path = (missing)", "Add model.path."]),
        ("train.max_steps", ["key.path=value"]),
        ("train..max_steps=1", ["key.path=value"]),
        ("train.max_steps=[", ["train.max_steps = '['", "an integer"]),
    ],
)
def test_wrong_override_is_named(recipe_file: Path, override: str, parts: list[str]) -> None:
    message = refused(recipe_file, override)
    for part in parts:
        assert part in message
    assert message.startswith((f"override {override}: ", f"{recipe_file}:"))


def test_single_query_without_negatives_has_no_loss(recipe_file: Path) -> None:
    overrides = ("tasks.ir.global_batch_size=1", "tasks.ir.negatives=0")
    assert "at least 2 where negatives is 0" in refused(recipe_file, *overrides)


@pytest.mark.parametrize("seed", [0, 20_261_129, 1_796_000_000, 2**62, 2**63 - 1])
def test_dates_times_and_all_of_63_bits_are_seeds(recipe_file: Path, seed: int) -> None:
    assert load_recipe(recipe_file, [f"seed={seed}"]).seed == seed


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_seed_out_of_bounds_is_refused_with_the_bounds_in_full(
    recipe_file: Path, seed: int
) -> None:
    expected = f"seed = {seed}; expected an integer of at least 0 and at most {2**63 - 1}."
    assert expected in refused(recipe_file, f"seed={seed}")


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("  path: some/folder\n", "", "", ["model.path = (missing)"]),
        ("  max_steps: 10", "  max_step: 10", ":15", ["Did you mean max_steps?"]),
        ("  max_steps: 10", "  max_steps: 10\n  max_steps: 9", ":16", ["given twice", "line 15"]),
        ("name: small", "name: !!python/object/apply:os.getcwd []", ":1", ["tag = !!python/"]),
        ("name: small", "name: !thing x", ":1", ["tag = !thing"]),
        ("name: small", "name: &a [*a]", ":1", ["nested over 20 deep"]),
        ("name: small", "? [a]\n: b\nname: small", ":1", ["key = a list or a mapping"]),
        ("name: small", "name: 'small", "", ["not YAML"]),
        ("model:\n", "model:\n\tx: 1\n", ":4", ["not YAML"]),
        ("  max_steps: 10", "  max_steps: 0", ":15", ["of at least 1"]),
        ("name: small", "name: 3", ":1", ["name = 3", "text", "quotes"]),
        ("train:\n", "train.seed: 1\ntrain:\n", ":14", ["Nest it under its section"]),
    ],
)
def test_wrong_file_names_its_line(
    tmp_path: Path, old: str, new: str, line: str, parts: list[str]
) -> None:
    assert old in TEXT
    file = write(tmp_path, TEXT.replace(old, new, 1))
    message = refused(file)
    assert message.startswith(f"{file}{line}")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "an empty file"),
        (b"- a\n- b\n", "a list"),
        (b"just text\n", "a single value"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a: 1\n---\nb: 2\n", "not YAML"),
        (b"name: a\x00b\n", "not YAML"),
    ],
)
def test_file_that_is_no_recipe(tmp_path: Path, content: bytes, part: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_bytes(content)
    assert part in refused(file)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "recipe = (missing)" in refused(tmp_path / "none.yaml")
    assert "unreadable" in refused(tmp_path)


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    text = TEXT.replace("ir: {global_batch_size: 8}", "ir: &b {global_batch_size: 8}").replace(
        "sts: {global_batch_size: 8}", "sts: {<<: *b, temperatures: {rank_kl: 0.1}}"
    )
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.tasks["sts"].global_batch_size == 8
    assert recipe.tasks["sts"].temperatures["rank_kl"] == 0.1


def test_code_in_a_tag_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    text = TEXT.replace("small", f"!!python/object/apply:os.mkdir ['{target}']", 1)
    refused(write(tmp_path, text))
    assert not target.exists()


def test_recipe_is_frozen(recipe_file: Path) -> None:
    recipe: Recipe = load_recipe(recipe_file)
    with pytest.raises(AttributeError):
        recipe.seed = 1  # type: ignore[misc]


def test_mask_is_a_word_or_a_margin(recipe_file: Path, tmp_path: Path) -> None:
    assert load_recipe(recipe_file, ["tasks.ir.mask=none"]).tasks["ir"].mask == "none"
    recipe = load_recipe(recipe_file, ["tasks.ir.mask={margin: 0.1}"])
    assert recipe.tasks["ir"].mask == MaskRecipe(margin=0.1)
    assert load_recipe(write(tmp_path, dump_recipe(recipe)), []) == recipe
    assert "expected known or none, or {margin: ..., of: ..., guide: ...}" in refused(
        recipe_file, "tasks.ir.mask=all"
    )


@pytest.mark.parametrize("word", ["off", "'off'", "false"])
def test_off_needs_no_quotes(recipe_file: Path, tmp_path: Path, word: str) -> None:
    assert load_recipe(recipe_file).engine.share_prefix == "auto"
    recipe = load_recipe(recipe_file, [f"engine.share_prefix={word}"])
    assert recipe.engine.share_prefix == "off"
    assert load_recipe(write(tmp_path, dump_recipe(recipe)), []) == recipe
    written = write(tmp_path, f"{TEXT}\nengine: {{share_prefix: {word}}}\n")
    assert load_recipe(written).engine.share_prefix == "off"
    message = refused(recipe_file, "engine.share_prefix=on")
    assert "engine.share_prefix = true; expected one of auto, off" in message


TAUGHT_ALONE = ["tasks.ir.weights.infonce=0", "tasks.ir.distillation={}"]


def test_parts_of_a_composed_loss_are_read(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "tasks.ir.mask={margin: 0.1, of: own, guide: true}",
            "tasks.ir.directions=[query_to_doc, doc_to_doc]",
            "tasks.ir.in_batch=positives",
            "tasks.ir.distillation={}",
            "tasks.ir.spread_out=0.5",
            "model.matryoshka.dims=[64, 32]",
        ],
    )
    ir = recipe.tasks["ir"]
    assert ir.mask == MaskRecipe(margin=0.1, of="own", guide=True)
    assert (ir.directions, ir.in_batch) == (("query_to_doc", "doc_to_doc"), "positives")
    assert ir.distillation == DistillationRecipe()
    weights = TASKS["ir"].weights_of(ir)
    assert (weights["spread_out"], weights["distillation"]) == (0.5, 1.0)
    assert recipe.model.matryoshka == MatryoshkaRecipe(dims=(64, 32))
    assert load_recipe(write(tmp_path, dump_recipe(recipe)), []) == recipe
    assert recipe_of(json.loads(json.dumps(plain_recipe(recipe)))) == recipe


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["tasks.ir.in_batch=false", "tasks.ir.negatives=0"],
            ["negatives = 0", "tasks.ir.in_batch"],
        ),
        (["tasks.ir.distillation={}", "tasks.ir.negatives=0"], ["negatives = 0", "distillation"]),
        (["tasks.ir.mask={guide: true}", "tasks.ir.negatives=0"], ["negatives = 0", "mask.guide"]),
        (["tasks.ir.in_batch=positives_only"], ["negatives = 1", "no other term reads"]),
        (
            ["tasks.ir.in_batch=false", "tasks.ir.directions=[query_to_doc, doc_to_doc]"],
            ["in_batch = false", "directions has more than query_to_doc"],
        ),
        (
            ["tasks.ir.weights.hard_negatives=1", "tasks.ir.negatives=0"],
            ["negatives = 0", "tasks.ir.weights.hard_negatives"],
        ),
        (
            ["tasks.ir.in_batch=false", "tasks.ir.hardness=5", "tasks.ir.hardness_of=in_batch"],
            ["tasks.ir.hardness_of = ", "in_batch is false"],
        ),
        (
            [
                "tasks.ir={global_batch_size: 8, in_batch: positives_only, negatives: 0}",
                "tasks.ir.hardness=5",
                "tasks.ir.hardness_of=hard",
            ],
            ["tasks.ir.hardness_of = ", "positives_only"],
        ),
        (
            [
                "tasks.ir.weights={infonce: 0, hard_negatives: 1}",
                "tasks.ir.directions=[query_to_doc, doc_to_doc]",
            ],
            ["directions = ", "weights.infonce is 0"],
        ),
        (
            ["tasks.ir.weights={infonce: 0, hard_negatives: 1}", "tasks.ir.in_batch=positives"],
            ["tasks.ir.in_batch = 'positives'; expected true where", "weights.infonce is 0"],
        ),
        (
            ["tasks.ir.weights={infonce: 0, hard_negatives: 1}", "tasks.ir.in_batch=false"],
            ["tasks.ir.in_batch = false; expected true where", "weights.infonce is 0"],
        ),
        (
            [
                "tasks.ir.weights={infonce: 0, hard_negatives: 1}",
                "tasks.ir.hardness=3",
                "tasks.ir.hardness_of=in_batch",
            ],
            ["tasks.ir.hardness_of = 'in_batch'; expected all or hard", "weights.infonce is 0"],
        ),
        (
            [*TAUGHT_ALONE, "tasks.ir.hardness=3"],
            ["tasks.ir.hardness = 3.0; expected 0 where tasks.ir.weights of InfoNCE are 0"],
        ),
        (
            [*TAUGHT_ALONE, "tasks.ir.mask={margin: 0.1}"],
            ["tasks.ir.mask = a section; expected known where tasks.ir.weights of InfoNCE are 0"],
        ),
        (
            [*TAUGHT_ALONE, "tasks.ir.mask=none"],
            ["tasks.ir.mask = 'none'; expected known where"],
        ),
        (
            [*TAUGHT_ALONE, "tasks.ir.in_batch=positives_only"],
            ["tasks.ir.in_batch = 'positives_only'; expected true where"],
        ),
        (
            ["tasks.ir.negatives=0", "tasks.ir.hardness=3", "tasks.ir.hardness_of=hard"],
            ["tasks.ir.hardness_of = 'hard'; expected all or in_batch where negatives is 0"],
        ),
        (
            ["data.sources.docs.teacher_embeddings=t"],
            [
                "data.sources.1.teacher_embeddings = 't'",
                "expected null, as tasks.ir has no embedding_distillation and no mask.guide. Add",
            ],
        ),
        (
            ["tasks.ir.mask={guide: true}", "tasks.ir.negatives=0"],
            ["tasks.ir.negatives = 0", "where tasks.ir.mask.guide needs hard negatives"],
        ),
        (
            ["tasks.ir.embedding_distillation={}", "data.sources.pairs.teacher_embeddings=t"],
            ["data.sources.0.teacher_embeddings = 't'", "null, as tasks.sts has no embedding_dis"],
        ),
        (
            ["tasks.sts.embedding_distillation={weight: 2}"],
            [
                "tasks.sts.embedding_distillation = {weight: 2}",
                "expected a source of the task with teacher_embeddings. Name its folder",
            ],
        ),
        (
            ["tasks.ir.embedding_distillation={weight: 0}"],
            ["tasks.ir.embedding_distillation.weight = 0", "above 0"],
        ),
        (
            ["tasks.ir.embedding_distillation={projection: 8}"],
            ["tasks.ir.embedding_distillation.projection = 8", "true or false"],
        ),
    ],
)
def test_parts_that_contradict_each_other_are_refused(
    recipe_file: Path, overrides: list[str], parts: list[str]
) -> None:
    message = refused(recipe_file, *overrides)
    assert all(part in message for part in parts), message
