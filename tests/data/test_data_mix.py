"""Steps that hold rows of several sources: pure, exact, and alike with any tokens."""

import json
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.both_modes import assert_same, stores_in
from tests.support.data_files import byte_tokenizer, data_recipe, write_jsonl
from trainer.data.batch import IrBatch
from trainer.data.growth import SourceState
from trainer.data.host_share import HostShare, SharedFrame, new_folder, shared_folder
from trainer.data.loader import batches
from trainer.data.mixed_source import with_mixes
from trainer.data.plan import DataPlan, continue_plan, make_plan
from trainer.data.planned import plan_of
from trainer.data.schedule import make_schedule, most_turns, turns_before
from trainer.data.sources import Source, open_sources
from trainer.data.stretch import Stretch, plan_stretches, stretch_at
from trainer.data.tokens import make_encoder
from trainer.data.worker import Ahead, Job
from trainer.errors import RecipeError
from trainer.recipe.load import plain_recipe
from trainer.recipe.rules import check_rules
from trainer.recipe.schema import Recipe, SourceRecipe, SubsetRecipe


def source(name: str, path: object = "unused", **changes: Any) -> SourceRecipe:
    return SourceRecipe(**({"name": name, "task": "ir", "path": str(path)} | changes))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Recipe, dict[str, int]]:
    """Two or three sources that are mixed beside one that is not, and their sizes."""
    names, size = ["a", "b", "c"][: draw(st.integers(2, 3))], draw(st.integers(2, 12))
    sources = [source(name, weight=draw(st.sampled_from([0.5, 1.0, 3.0]))) for name in names]
    recipe = data_recipe(
        [source("alone"), *sources],
        ir={"global_batch_size": size},
        data={
            "mix": {"all": tuple(names)},
            "schedule": draw(st.sampled_from(["alternate", "proportional", "temperature"])),
            "pattern": {"ir": 1},
        },
        seed=draw(st.integers(0, 99)),
    )
    # a step may take nearly all of its rows from one source
    sizes = {name: draw(st.integers(size, 60)) for name in names}
    return recipe, {"alone": 50, **sizes}


@settings(max_examples=15)
@given(cases())
def test_each_source_has_its_epochs_and_each_step_its_share(
    case: tuple[Recipe, dict[str, int]],
) -> None:
    recipe, sizes = case
    plan = make_plan(recipe, sizes)
    names = recipe.data.mix["all"]
    taken: dict[str, list[int]] = {name: [] for name in sizes}
    steps = Counter(plan.at(step).source for step in range(100))
    size = plan.sources["all"].batch_size
    for step in range(100):
        found = plan.at(step)
        assert found.source in ("alone", "all")
        assert found.members == (names if found.source == "all" else ())
        assert len(found.rows) == size
        for name, rows in found.rows_by_source.items():
            taken[name] += rows.tolist()
    for name, rows in taken.items():
        for start in range(0, len(rows), sizes[name]):
            epoch = rows[start : start + sizes[name]]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(range(sizes[name]))
    for seen in plan.exposure(100):
        assert seen.rows_seen == len(taken[seen.source])
        assert seen.steps == steps[seen.mix or seen.source]
        assert seen.mix == ("" if seen.source == "alone" else "all")
        times = Counter(taken[seen.source])
        counted = [sum(times[row] == n for row in range(seen.num_rows)) for n in range(3)]
        assert [seen.never, seen.once, seen.twice] == counted
    # a mix changes which rows share a step, not how often a source is seen
    apart = make_plan(replace(recipe, data=replace(recipe.data, mix={})), sizes)
    for one, other in zip(plan.exposure(100), apart.exposure(100), strict=True):
        assert one.source == other.source
        assert abs(one.rows_seen - other.rows_seen) <= 4 * size


@settings(max_examples=10)
@given(cases(), st.lists(st.integers(0, 10**9), min_size=1, max_size=4))
def test_a_step_asked_for_alone_is_the_step_reached_in_order(
    case: tuple[Recipe, dict[str, int]], late: list[int]
) -> None:
    recipe, sizes = case
    walked, alone = make_plan(recipe, sizes), make_plan(recipe, sizes)
    first = [walked.at(step).rows.tolist() for step in range(30)]
    assert [alone.at(step).rows.tolist() for step in reversed(range(30))] == first[::-1]
    shares = {name: Counter[int]() for name in recipe.data.mix["all"]}
    for step in late:
        found = alone.at(step)
        for name, rows in found.rows_by_source.items():
            if found.members:
                shares[name][len(rows)] += 1
    stream: Any = alone.streams["all"]
    most = most_turns(stream.turns, alone.sources["all"].batch_size)
    assert all(max(counts, default=0) <= most[name] for name, counts in shares.items())


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 50), st.integers(0, 10**6)
)
def test_no_window_has_more_turns_of_a_party_than_the_most(
    shares: list[int], window: int, start: int
) -> None:
    from fractions import Fraction

    turns = make_schedule({str(number): Fraction(share) for number, share in enumerate(shares)})
    before, after = turns_before(turns, start), turns_before(turns, start + window)
    most = most_turns(turns, window)
    assert all(after[name] - before[name] <= most[name] for name in most)


def test_a_small_source_shares_steps_that_are_larger_than_it() -> None:
    sources = [source("docs"), source("small")]
    ir = {"global_batch_size": 1024}
    with pytest.raises(RecipeError, match=r"at most 638, .* of one task may also share steps"):
        make_plan(data_recipe(sources, ir=ir), {"docs": 5000, "small": 638})
    recipe = data_recipe(sources, ir=ir, data={"mix": {"all": ("docs", "small")}})
    plan = make_plan(recipe, {"docs": 5000, "small": 638})
    found = plan.at(0).rows_by_source
    assert {name: len(rows) for name, rows in found.items()} == {"docs": 512, "small": 512}
    by_size = replace(recipe, data=replace(recipe.data, schedule="proportional"))
    found = make_plan(by_size, {"docs": 5000, "small": 38}).at(0).rows_by_source
    assert {name: len(rows) for name, rows in found.items()} == {"docs": 1017, "small": 7}
    pattern = (
        r"data\.mix\.all takes up to 512 of 1024 rows of a step from source small; expected at "
        r"most 500, the rows that it has\. Lower its weight, or mix it by size"
    )
    with pytest.raises(RecipeError, match=pattern):
        make_plan(recipe, {"docs": 5000, "small": 500})


def test_a_part_of_each_source_is_mixed() -> None:
    data = {"mix": {"all": ("a", "b")}, "subset": SubsetRecipe(fraction=0.5)}
    recipe = data_recipe([source("a"), source("b")], data=data)
    plan = make_plan(recipe, {"a": 40, "b": 60})
    apart = make_plan(replace(recipe, data=replace(recipe.data, mix={})), {"a": 40, "b": 60})
    for name, size in (("a", 20), ("b", 30)):
        mixed = {row for step in range(80) for row in plan.at(step).rows_by_source[name].tolist()}
        known = {row for step in range(80) for row in apart.at(step).rows.tolist()
                 if apart.at(step).source == name}  # fmt: skip
        assert len(mixed) == size
        assert mixed == known


def test_a_part_of_one_source_is_mixed_and_what_it_lacks_is_told() -> None:
    part = SubsetRecipe(fraction=0.25, seed=4)
    data = {"mix": {"all": ("a", "b")}}
    recipe = data_recipe([source("a", subset=part), source("b")], data=data)
    sizes = {"a": 40, "b": 30}
    plan = make_plan(recipe, sizes)
    alone = make_plan(replace(recipe, data=replace(recipe.data, mix={})), sizes)
    taken = {
        name: {row for step in range(80) for row in plan.at(step).rows_by_source[name].tolist()}
        for name in sizes
    }
    assert taken["a"] == set(alone.source_step("a", 0, 0).rows.tolist()) | {
        row for turn in range(20) for row in alone.source_step("a", turn, 0).rows.tolist()
    }
    assert {name: len(rows) for name, rows in taken.items()} == {"a": 10, "b": 30}
    assert {one.source: one.num_rows for one in plan.exposure(9)} == {"a": 10, "b": 30}
    with pytest.raises(RecipeError, match=r"a: rows were added, or data\.subset is another"):
        continue_plan(plan, 3, make_plan(recipe, sizes | {"a": 44}))
    few = replace(part, fraction=0.025)
    pattern = (
        r"data\.mix\.all takes up to \d+ of 4 rows of a step from source a; expected at most 1"
    )
    with pytest.raises(RecipeError, match=pattern):
        make_plan(data_recipe([source("a", subset=few), source("b")], data=data), sizes)


def stretch(first_step: int, recipe: Recipe, **sizes: int) -> Stretch:
    states = {
        name: SourceState(fingerprint=f"{name} {number}", num_rows=number)
        for name, number in sizes.items()
    }
    return Stretch(first_step=first_step, recipe=plain_recipe(recipe), sources=states)


def mixed_recipe(*, weight: float = 1.0, size: int = 6, seed: int = 3) -> Recipe:
    data = {"mix": {"all": ("a", "b")}}
    sources = [source("a", weight=weight), source("b")]
    return data_recipe(sources, ir={"global_batch_size": size}, data=data, seed=seed)


def test_streams_go_on_when_weights_rows_and_batches_change() -> None:
    first = mixed_recipe()
    parts = [
        stretch(0, first, a=31, b=17),
        stretch(7, replace(first, train=replace(first.train, max_steps=90)), a=31, b=17),
        stretch(12, mixed_recipe(weight=2.0), a=31, b=17),
        stretch(20, mixed_recipe(weight=2.0, size=8), a=37, b=17),
        stretch(33, mixed_recipe(weight=2.0, size=8, seed=5), a=37, b=17),
    ]
    planned = plan_stretches(parts)
    whole = make_plan(first, {"a": 31, "b": 17})
    taken: dict[str, list[int]] = {"a": [], "b": []}
    for step in range(60):
        found = stretch_at(planned, step).plan.at(step)
        if step < 12:
            assert found.rows.tolist() == whole.at(step).rows.tolist()
        for name, rows in found.rows_by_source.items():
            taken[name] += rows.tolist()
    for seen in planned[-1].plan.exposure(60):
        times, old = Counter(taken[seen.source]), {"a": 31, "b": 17}[seen.source]
        assert seen.rows_seen == len(taken[seen.source])
        assert (seen.steps, seen.never) == (60, 0)
        # the rows that were there from the start never differ by more than one
        assert max(times.values()) - min(times[row] for row in range(old)) <= 1


def ir_rows(letter: str, number: int) -> list[dict[str, Any]]:
    """Rows whose passages other sources have too, for other queries."""
    return [
        {
            "query": f"the cat {row % 7}" if row % 3 else f"{letter} {row}",
            "positives": [f"sat {(row + i) % 9}" for i in range(1 + row % 3)],
            "negatives": [f"sat {(row + i + 4) % 9}" for i in range(row % 4)],
        }
        for row in range(number)
    ]


def write_teacher(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A vector of each text."""
    texts = list(dict.fromkeys(
        text for row in rows for text in [row["query"], *row["positives"], *row["negatives"]]
    ))  # fmt: skip
    folder.mkdir()
    vectors = np.random.default_rng(0).normal(size=(len(texts), 5)).astype(np.float32)
    np.save(folder / "embeddings.npy", vectors)
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return folder


def opened(tmp_path: Path, **changes: Any) -> tuple[Recipe, tuple[Source, ...]]:
    """Two sources with other instructions before queries, which share steps."""
    rows = {"a": ir_rows("a", 14), "b": ir_rows("b", 9)}
    teacher = write_teacher(tmp_path / "teacher", [*rows["a"], *rows["b"]])
    sources = [
        source(
            name,
            write_jsonl(tmp_path / f"{name}.jsonl", rows[name]),
            query_instruction=f"on the mat {name}: ",
            passage_instruction="dog: ",
            teacher_embeddings=str(teacher),
        )
        for name in ("a", "b")
    ]
    recipe = data_recipe(
        sources,
        ir={"global_batch_size": 8, "positives": 2, "negatives": 2},
        data={"workers": 0, "mix": {"all": ("a", "b")}, **changes},
        pooling="mean",
    )
    return recipe, open_sources(recipe.data)


@pytest.mark.parametrize("pool_instruction", [True, False])
def test_batches_are_the_same_with_any_tokens_ranks_and_workers_and_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool_instruction: bool
) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    recipe, sources = opened(tmp_path, pool_instruction=pool_instruction)
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="mean")
    plan = plan_of(recipe, sources)
    whole = list(batches(plan, sources, encoder, recipe, 0, 9))
    assert all(batch.plan.source == "all" for batch in whole)
    assert len(whole[0].texts.groups or ()) == 3
    stores = stores_in(tmp_path / "stores", recipe, sources, encoder)
    # with tokens of one source alone, all are made on the fly
    for chosen in (stores, {"a": stores["a"]}):
        some = 1 if chosen is stores and pool_instruction else 0
        for workers, rank, num_ranks, start in ((0, 0, 1, 0), (some, 1, 2, 4), (0, 7, 8, 5)):
            changed = replace(recipe, data=replace(recipe.data, workers=workers))
            ahead = Ahead(stores=chosen, rank=rank, num_ranks=num_ranks)
            found = batches(plan, sources, encoder, changed, start, 9, ahead=ahead)
            for one, other in zip(whole[start:], found, strict=True):
                assert_same(one, other, rank=rank, num_ranks=num_ranks)


@pytest.mark.parametrize("alike", [True, False])
def test_ranks_of_a_host_share_a_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    monkeypatch.setenv("TRAINER_CACHE_DIR", str(tmp_path / "cache"))
    recipe, _ = opened(tmp_path)
    part = SubsetRecipe(fraction=0.8)
    first, second = recipe.data.sources
    second = replace(second, subset=part)
    if alike:  # texts of a side then follow each other
        second = replace(second, query_instruction=first.query_instruction)
    recipe = replace(recipe, data=replace(recipe.data, sources=(first, second)))
    sources = open_sources(recipe.data)
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="mean")
    plan = plan_of(recipe, sources)
    whole = list(batches(plan, sources, encoder, recipe, 0, 6))
    stores = stores_in(tmp_path / "stores", recipe, sources, encoder)
    folder = new_folder(f"test-{secrets.token_hex(4)}")
    shares = [HostShare(folder=folder, index=index, count=3, min_rows=8) for index in range(3)]
    jobs = [
        Job(
            plan=plan, sources=with_mixes(recipe.data, sources), encoder=encoder, recipe=recipe,
            ahead=Ahead(stores=stores, rank=4 + index, num_ranks=8, host=share),
        )
        for index, share in enumerate(shares)
    ]  # fmt: skip
    with ExitStack() as running:
        for share in shares:
            running.enter_context(shared_folder(share))
        for step, expected in enumerate(whole):
            kinds = [isinstance(one.ids, range) for one in expected.texts.groups or ()]
            assert kinds == ([True, True] if alike else [False, False, True])
            # one rank makes the step and the others read it; the mix stands behind its two sources
            maker = (plan.turn(step)[1] + 2) % 3
            for index in (maker, (maker + 1) % 3, (maker + 2) % 3):
                found = jobs[index].frame(step, 1)
                assert isinstance(found, SharedFrame)
                assert_same(expected, found.open(), rank=4 + index, num_ranks=8)
    assert not folder.exists()


def test_a_known_positive_of_another_source_is_no_negative(tmp_path: Path) -> None:
    """Pair by pair: what equals a known positive of the same query is left out, no other."""
    recipe, sources = opened(tmp_path)
    # equal queries of the two sources ask the same
    alike = tuple(replace(one, query_instruction="") for one in recipe.data.sources)
    recipe = replace(recipe, data=replace(recipe.data, sources=alike))
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="mean")
    by_name = {one.name: one for one in sources}
    found_across = 0
    for batch in batches(plan_of(recipe, sources), sources, encoder, recipe, 0, 6):
        assert isinstance(batch, IrBatch)
        records, owners = [], []
        for name, rows in batch.plan.rows_by_source.items():
            records += [by_name[name].record(row) for row in rows.tolist()]
            owners += [name] * len(rows)

        def tokens(text: str) -> bytes:
            ids = encoder.encode([text], instruction="dog: ", max_tokens=512).token_ids[0]
            return ids.tobytes()

        ids = [one.tobytes() for one in batch.texts.token_ids]
        flat = batch.passages.reshape(-1)
        expected = set()
        for row, record in enumerate(records):
            known = {tokens(text) for other in records if other.query == record.query
                     for text in other.positives}  # fmt: skip
            for column, text in enumerate(flat.tolist()):
                own, slot = divmod(column, 4)
                if text >= 0 and ids[text] in known and not (own == row and slot < 2):
                    expected.add((row, column))
                    found_across += owners[own] != owners[row]
        assert {(row, column) for row, column in batch.masked.tolist()} == expected
    assert found_across > 20, found_across


def test_each_query_has_the_instruction_of_its_source(tmp_path: Path) -> None:
    recipe, sources = opened(tmp_path)
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="mean")
    (batch,) = batches(plan_of(recipe, sources), sources, encoder, recipe, 2, 3)
    assert isinstance(batch, IrBatch)
    place = 0
    for one in sources:
        for row in batch.plan.rows_by_source[one.name].tolist():
            text = sources[list(recipe.data.mix["all"]).index(one.name)].record(row).query
            instruction = f"on the mat {one.name}: "
            ids = encoder.encode([text], instruction=instruction, max_tokens=512).token_ids[0]
            assert np.array_equal(batch.texts.token_ids[batch.query[place]], ids)
            place += 1
    assert place == 8
    shown = batch.plan.shown_rows
    assert shown[0] == f"a {batch.plan.rows_by_source['a'][0]}"
    assert shown[-1] == f"b {batch.plan.rows_by_source['b'][-1]}"


def test_pairs_of_several_sources_share_steps(tmp_path: Path) -> None:
    sources = []
    for name, number in (("x", 10), ("y", 7)):
        pairs = [{"text1": f"a {i % 4}", "text2": f"{name} {i}", "score": i % 6}
                 for i in range(number)]  # fmt: skip
        path = write_jsonl(tmp_path / f"{name}.jsonl", pairs)
        sources.append(source(name, path, task="sts", query_instruction="alike: "))
    data = {"mix": {"pairs": ("x", "y")}, "workers": 0, "pattern": {"sts": 1}}
    recipe = data_recipe(sources, data=data, sts={"global_batch_size": 6})
    check_rules(recipe, lambda key: "a.yaml")
    read = open_sources(recipe.data)
    encoder = make_encoder(byte_tokenizer(), recipe.data, pooling="last")
    plan = plan_of(recipe, read)
    whole = list(batches(plan, read, encoder, recipe, 0, 5))
    stores = stores_in(tmp_path / "stores", recipe, read, encoder)
    ahead = Ahead(stores=stores, rank=1, num_ranks=2)
    for one, other in zip(
        whole, batches(plan, read, encoder, recipe, 0, 5, ahead=ahead), strict=True
    ):
        assert_same(one, other, rank=1, num_ranks=2)


@pytest.mark.parametrize(
    ("mix", "changes", "expected"),
    [
        ({"a": ("a", "b")}, {}, r"data\.mix\.a = .*; expected a name that no source has"),
        ({"m.n": ("a", "b")}, {}, r"expected a word without dots"),
        ({"m": ("a",)}, {}, r"data\.mix\.m = .*; expected at least two sources"),
        ({"m": ("a", "c")}, {}, r"data\.mix\.m\.1 = 'c'; expected a source: a, b\. Correct"),
        ({"m": ("a", "a")}, {}, r"data\.mix\.m\.1 = 'a'; expected a source that data\.mix\.m does"),
        ({"m": ("a", "b")}, {"task": "sts"}, r"sources with one task: task 'ir' of a, 'sts' of b"),
        ({"m": ("a", "b")}, {"negatives": 3}, r"one negatives: negatives 1 of a, 3 of b\. Make"),
        ({"m": ("a", "b")}, {"in_batch": False}, r"sources with one directions|one in_batch"),
        ({"m": ("a", "b")}, {"global_batch_size": 9}, r"one global_batch_size: .* 4 of a, 9 of b"),
        ({"m": ("a", "b")}, {"passage_instruction": "p"}, r"one passage_instruction: .* 'p' of b"),
        ({"m": ("a", "b")}, {"length_buckets": 2}, r"sources without length_buckets = 2, as b has"),
        ({"m": ("a", "b")}, {"row_settings": True}, r"sources without row_settings, as b has"),
        (
            {"m": ("a", "b")},
            {"query_instruction": "q"},
            r"one query_instruction under tasks\.ir\.directions",
        ),
    ],
)
def test_sources_that_cannot_share_steps_are_refused(
    mix: dict[str, tuple[str, ...]], changes: dict[str, Any], expected: str
) -> None:
    pattern = {"ir": 1, "sts": 1} if changes.get("task") == "sts" else {"ir": 1}
    recipe = data_recipe(
        [source("a"), source("b", **changes)],
        ir={"directions": ("query_to_doc", "query_to_query")}
        if "query_instruction" in changes
        else {},
        data={"mix": mix, "pattern": pattern},
    )
    with pytest.raises(RecipeError, match=expected):
        check_rules(recipe, lambda key: "a.yaml")


def test_labelled_texts_share_no_steps() -> None:
    sources = [source(name, task="labels") for name in ("a", "b")]
    recipe = data_recipe(sources, data={"mix": {"m": ("a", "b")}, "pattern": {"labels": 1}})
    with pytest.raises(RecipeError, match=r"sources without task labels, as a has"):
        check_rules(recipe, lambda key: "a.yaml")


def test_a_plan_of_a_billion_rows_costs_what_a_small_one_does() -> None:
    recipe = mixed_recipe(size=512)
    large: DataPlan = make_plan(recipe, {"a": 10**9, "b": 700})
    found = large.at(10**9).rows_by_source
    assert {name: len(rows) for name, rows in found.items()} == {"a": 256, "b": 256}
    assert found["a"].max() < 10**9
