"""A source's own settings: what it overrides, what is refused, and who counts with them."""

from pathlib import Path

import pytest

from tests.recipe.test_recipe_load import TEXT, refused, write
from tests.support import tiny as tiny_models
from trainer.data.plan import make_plan
from trainer.engine.out_of_memory import largest_chunk
from trainer.errors import RecipeError
from trainer.memory.shapes import measure_model
from trainer.memory.workload import TEACHER_COPIES, loss_bytes, step_tokens
from trainer.recipe.ir import IrRecipe
from trainer.recipe.load import dump_recipe, load_recipe
from trainer.recipe.per_source import OVERRIDES, key_of, settings_of, step_kinds
from trainer.recipe.resolve import longest_text, resolve
from trainer.recipe.schema import Recipe, SourceRecipe
from trainer.recipe.tasks import TASKS
from trainer.session.selfcheck import NUM_STEPS, compared_steps, small

TINY = "data.sources.2={name: tiny, task: ir, path: tiny.jsonl, global_batch_size: 4, negatives: 7}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, TEXT.replace("tasks:", "    - {name: tiny, task: ir, path: t}\ntasks:"))


def with_tiny(file: Path, *overrides: str) -> Recipe:
    return load_recipe(file, [TINY, *overrides])


def test_a_source_overrides_its_task(file: Path) -> None:
    recipe = with_tiny(file, "tasks.ir.temperature=0.5")
    assert settings_of(recipe, "docs") == recipe.tasks["ir"]
    assert settings_of(recipe, "pairs") == recipe.tasks["sts"]
    own = settings_of(recipe, "tiny")
    assert isinstance(own, IrRecipe)
    assert (own.global_batch_size, own.negatives, own.temperature) == (4, 7, 0.5)
    assert recipe.tasks["ir"].global_batch_size == 8
    tiny = recipe.data.sources[2]
    assert key_of(tiny, "negatives") == "data.sources.tiny.negatives"
    assert key_of(tiny, "temperature") == "tasks.ir.temperature"


def test_every_override_is_a_key_of_sources_and_null_by_default(file: Path) -> None:
    source = SourceRecipe(name="a", task="ir")
    assert [getattr(source, name) for name in OVERRIDES] == [None] * len(OVERRIDES)


def test_the_resolved_recipe_reads_back(file: Path) -> None:
    recipe = with_tiny(file)
    file.write_text(dump_recipe(recipe))
    assert load_recipe(file) == recipe


def test_kinds_of_steps_are_those_of_the_tasks_where_nothing_is_overridden(file: Path) -> None:
    recipe = load_recipe(file)
    assert [(kind.name, kind.settings) for kind in step_kinds(recipe)] == [*recipe.tasks.items()]
    alike = load_recipe(file, ["data.sources.tiny.global_batch_size=8"])
    assert [kind.name for kind in step_kinds(alike)] == ["ir", "sts"]
    kinds = {kind.name: kind for kind in step_kinds(with_tiny(file))}
    assert list(kinds) == ["ir (docs)", "ir (tiny)", "sts"]
    assert kinds["ir (tiny)"].settings.global_batch_size == 4


def test_ranks_memory_and_probe_count_with_each_source(file: Path) -> None:
    recipe = with_tiny(file, "data.query_max_tokens=10", "data.passage_max_tokens=20")
    resolved = resolve(recipe, world_size=2)
    assert dict(resolved.rows_per_rank) == {"ir (docs)": 4, "ir (tiny)": 2, "sts": 4}
    tokens = {"ir (docs)": 8 * (10 + 2 * 20), "ir (tiny)": 4 * (10 + 8 * 20), "sts": 8 * 2 * 10}
    assert step_tokens(recipe) == tokens
    assert longest_text(recipe) == 20
    chunk = largest_chunk(recipe, world_size=1, max_positions=999, keep_graph_tokens=64)
    # the step of the most texts is the tiny source's: 4 queries of 9 texts
    assert chunk.num_texts == 36
    short = ("data.query_max_tokens=10", "data.passage_max_tokens=20")
    larger = with_tiny(file, *short, "tasks.ir.global_batch_size=64")
    chunk = largest_chunk(larger, world_size=1, max_positions=999, keep_graph_tokens=64)
    assert chunk.num_texts == 64 * 3


def test_the_selfcheck_makes_its_batches_small(file: Path) -> None:
    recipe = small(load_recipe(file, ["data.sources.tiny.global_batch_size=64"]), 2)
    sizes = {source.name: settings_of(recipe, source.name).global_batch_size
             for source in recipe.data.sources}  # fmt: skip
    assert sizes == {"pairs": 8, "docs": 8, "tiny": 16}


def test_the_selfcheck_compares_every_kind_of_step(file: Path) -> None:
    rare = with_tiny(file, "data.sources.docs.weight=20")
    sizes = {source.name: 100 for source in rare.data.sources}
    plan = make_plan(rare, sizes)
    first, late = compared_steps(rare, plan)
    assert first == range(NUM_STEPS)
    assert {plan.turn(step)[0] for step in first} == {"docs", "pairs"}
    assert len(late) == 1
    assert plan.turn(late.start) == ("tiny", 0)
    # as docs has the same settings, its loss was compared
    alike = load_recipe(file, ["data.sources.docs.weight=20"])
    assert compared_steps(alike, make_plan(alike, sizes)) == (range(NUM_STEPS),)


def test_a_source_without_candidates_of_others_compares_in_no_direction(file: Path) -> None:
    all_four = "tasks.ir.directions=[query_to_doc, query_to_query, doc_to_query, doc_to_doc]"
    more = ("tasks.ir.spread_out=0.5", "tasks.ir.hardness=3", "tasks.ir.hardness_of=in_batch")
    recipe = load_recipe(file, [all_four, *more, "data.sources.tiny.in_batch=false"])
    docs, tiny = (settings_of(recipe, name) for name in ("docs", "tiny"))
    assert isinstance(docs, IrRecipe)
    assert isinstance(tiny, IrRecipe)
    assert (docs.in_batch, len(docs.directions)) == (True, 4)
    assert (tiny.in_batch, tiny.directions) == (False, ("query_to_doc",))
    # the spread is no comparison of candidates; of other queries there are none to be harder
    assert (docs.spread_out, docs.hardness, docs.hardness_of) == (0.5, 3, "in_batch")
    assert (tiny.spread_out, tiny.hardness, tiny.hardness_of) == (0.5, 0, "all")
    assert load_recipe(write(file.parent, dump_recipe(recipe))) == recipe
    assert "no in_batch" in refused(file, "data.sources.pairs.in_batch=false")


@pytest.mark.parametrize("own", ["{negatives: 0}", "{in_batch: positives_only, negatives: 0}"])
def test_hardness_of_hard_negatives_is_not_for_a_source_without(file: Path, own: str) -> None:
    harder = ("tasks.ir.hardness=3", "tasks.ir.hardness_of=hard")
    source = f"data.sources.tiny={{name: tiny, task: ir, path: t, {own[1:]}"
    recipe = load_recipe(file, [*harder, source])
    docs, tiny = (settings_of(recipe, name) for name in ("docs", "tiny"))
    assert isinstance(docs, IrRecipe)
    assert isinstance(tiny, IrRecipe)
    assert (docs.hardness, docs.hardness_of) == (3, "hard")
    assert (tiny.hardness, tiny.hardness_of) == (0, "all")


def test_what_a_source_lends_is_of_no_matter_without_infonce(file: Path) -> None:
    hard = "tasks.ir.weights={infonce: 0, hard_negatives: 1}"
    recipe = load_recipe(file, [hard, "data.sources.tiny.path=x_no_in_batch_neg"])
    assert settings_of(recipe, "tiny") == settings_of(recipe, "docs")


@pytest.mark.parametrize(
    "needs",
    [
        "tasks.ir.weights.hard_negatives=1",
        "tasks.ir.distillation={}",
        "tasks.ir.mask={guide: true}",
    ],
)
def test_a_source_may_go_without_hard_negatives_that_others_have(file: Path, needs: str) -> None:
    recipe = load_recipe(file, [needs, "data.sources.tiny.negatives=0"])
    assert [settings_of(recipe, name).negatives for name in ("docs", "tiny")] == [1, 0]
    load_recipe(file, [needs, "tasks.ir.negatives=0", "data.sources.tiny.negatives=2"])
    none = refused(file, needs, "data.sources.docs.negatives=0", "data.sources.tiny.negatives=0")
    assert "data.sources.docs.negatives = 0; expected at least 1 where tasks.ir." in none
    lone = [needs, "tasks.ir.weights.infonce=0", "data.sources.tiny.negatives=0"]
    if "guide" not in needs:
        assert "data.sources.2.negatives = 0; expected at least 1 where" in refused(file, *lone)
    alone = refused(
        file, needs, "data.sources.tiny={name: b, task: ir, path: t, negatives: 0, in_batch: false}"
    )
    assert "data.sources.2.negatives = 0; expected at least 1 where tasks.ir.in_batch" in alone


def test_a_batch_that_the_ranks_do_not_divide_names_its_key(file: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"data\.sources\.tiny\.global_batch_size = 4; expected a"
    ):
        resolve(with_tiny(file), world_size=8)
    with pytest.raises(RecipeError, match=r"recipe: tasks\.ir\.global_batch_size = 8; expected a"):
        resolve(with_tiny(file, "data.sources.tiny.global_batch_size=16"), world_size=16)


LEARNS = ["tasks.ir.embedding_distillation={weight: 2}", "data.sources.tiny.teacher_embeddings=t"]


def test_a_source_without_vectors_goes_without_their_term(file: Path) -> None:
    recipe = load_recipe(file, LEARNS)
    docs, tiny = (settings_of(recipe, name) for name in ("docs", "tiny"))
    assert [TASKS["ir"].weights_of(one)["embedding_distillation"] for one in (docs, tiny)] == [0, 2]
    assert [kind.name for kind in step_kinds(recipe)] == ["ir (docs)", "ir (tiny)", "sts"]
    both = load_recipe(file, [*LEARNS, "data.sources.docs.teacher_embeddings=t"])
    assert [kind.name for kind in step_kinds(both)] == ["ir", "sts"]
    assert load_recipe(write(file.parent, dump_recipe(recipe))) == recipe
    file.write_text(dump_recipe(both))
    assert load_recipe(file) == both


def test_vectors_may_be_all_that_a_task_learns_but_not_nothing(file: Path) -> None:
    alone = [*LEARNS, "tasks.ir.weights.infonce=0"]
    refusal = refused(file, *alone)
    assert "data.sources.1.name = 'docs'; expected a source whose steps have a loss" in refusal
    assert "give it teacher_embeddings" in refusal
    recipe = load_recipe(file, [*alone, "data.sources.docs.teacher_embeddings=t"])
    assert settings_of(recipe, "docs") == recipe.tasks["ir"]


def test_the_memory_plan_counts_the_share_of_a_teachers_vectors(file: Path) -> None:
    shape = measure_model(tiny_models.qwen3_config(), load_recipe(file))
    bare = load_recipe(file, ["tasks.sts=null", "data.sources.0.task=ir"])
    taught = load_recipe(file, [*LEARNS, "tasks.sts=null", "data.sources.0.task=ir"])
    for ranks in (1, 4):
        more = loss_bytes(taught, shape, world_size=ranks) - loss_bytes(
            bare, shape, world_size=ranks
        )
        # 8 queries with a positive and a negative each, vectors of 32 float32
        assert more == TEACHER_COPIES * 4 * (8 * 3 // ranks) * 32


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            ["data.sources.pairs.negatives=1"],
            "data.sources.0.negatives = 1; expected null, as steps of task sts have no negatives.",
        ),
        (
            ["data.sources.pairs.global_batch_size=1"],
            "data.sources.0.global_batch_size = 1; expected at least 2 for task sts. Raise it.",
        ),
        (["data.sources.tiny.global_batch_size=0"], "expected an integer of at least 1"),
        (["data.sources.tiny.negatives=-1"], "expected an integer of at least 0"),
        (["data.sources.tiny.negatives=1.5"], "expected an integer"),
        (
            ["data.sources.tiny={name: b, task: ir, path: t, global_batch_size: 1, negatives: 0}"],
            "data.sources.2.global_batch_size = 1; expected at least 2 where negatives is 0",
        ),
        (
            ["data.sources.tiny.global_batch_size=1", "tasks.ir.negatives=0"],
            "data.sources.2.global_batch_size = 1; expected at least 2 where negatives is 0",
        ),
        (
            ["tasks.ir.global_batch_size=1", "data.sources.tiny.negatives=0"],
            "batch_size = 1; expected at least 2 where negatives is 0 (in steps of source tiny)",
        ),
        (
            ["tasks.ir.in_batch=false", "data.sources.tiny.negatives=0"],
            "data.sources.2.negatives = 0; expected at least 1 where tasks.ir.in_batch needs",
        ),
        (
            ["tasks.ir={global_batch_size: 1, negatives: 0}", "data.sources.tiny.negatives=3"],
            "tasks.ir.global_batch_size = 1; expected at least 2 where negatives is 0",
        ),
    ],
)
def test_what_a_source_cannot_override_is_refused(
    file: Path, overrides: list[str], part: str
) -> None:
    assert part in refused(file, *overrides)


def test_a_task_whose_sources_all_override_it_need_not_hold_by_itself(file: Path) -> None:
    own = [f"data.sources.{name}.negatives=1" for name in ("docs", "tiny")]
    recipe = load_recipe(file, ["tasks.ir={global_batch_size: 1, negatives: 0}", *own])
    assert settings_of(recipe, "docs").global_batch_size == 1
