"""Plans grow with the number of tensors, not faster: counted, not timed."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoint.open import OpenedCheckpoint
from trainer.checkpoint.tensors import StoredTensor
from trainer.checkpoint.zero_format import _cut
from trainer.merge.merge_plan import Inputs, plan_of
from trainer.merge.output import PartialFolder, plan_shards
from trainer.merge.settings import MergeSettings

ROOMS = [Path(__file__).parents[2] / "trainer" / room for room in ("checkpoint", "merge")]


class Name(str):
    """A name that counts how often it is looked up or compared."""

    __slots__ = ()
    count = 0

    def __hash__(self) -> int:
        Name.count += 1
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        Name.count += 1
        return str.__eq__(self, other)


def counted(act: Callable[[], Any]) -> int:
    Name.count = 0
    act()
    return Name.count


def tensors(count: int) -> dict[str, StoredTensor]:
    """Experts of many layers, a head, and a buffer that no embedder needs."""
    names = [f"layers.{i // 64}.mlp.experts.{i % 64}.up_proj.weight" for i in range(count)]
    return {Name(name): StoredTensor((1,), (torch.zeros(1),))
            for name in [*names, "lm_head.weight", "rotary.inv_freq"]}  # fmt: skip


def inputs(count: int) -> Inputs:
    """A base and two checkpoints that lack what they may."""
    root = tensors(count)
    tuned = {name: one for name, one in root.items() if "." in name and "layers" in name}

    def source(name: str, plain: Any) -> OpenedCheckpoint:
        return OpenedCheckpoint(
            path=Path(name), kind="safetensors", plain=plain, adapters={}, lora=None,
            tied=frozenset(), files=(), assets=(), manifest=None,
        )  # fmt: skip

    sources = (source("a", tuned), source("b", tuned))
    return Inputs(base=source("base", root), sources=sources, prefix="", root=root,
                  added=frozenset(), prefixes=("", ""), matched=(tuned, tuned))  # fmt: skip


def test_a_plan_of_twice_the_tensors_takes_twice_the_look_ups() -> None:
    settings = MergeSettings()
    few, many = (counted(lambda n=n: plan_of(inputs(n), settings)) for n in (300, 600))
    assert few > 300
    assert many < 2.1 * few
    assert set(plan_of(inputs(8), settings).left_out) == {"lm_head.weight", "rotary.inv_freq"}


def test_a_writer_is_found_among_any_number_of_shards(tmp_path: Path) -> None:
    plan = plan_of(inputs(60), MergeSettings())
    shards = plan_shards(plan.items, 4)
    assert len(shards) == 60
    with PartialFolder(tmp_path / "out", "x", shards, durable=False) as folder:
        names = [Name(one.name) for one in plan.items]
        counts = [counted(lambda name=name: folder.writer(name)) for name in names]
        assert {folder.writer(one.name).slot.dtype for one in plan.items} == {torch.float32}
    assert max(counts) <= 2


class Parts(list[torch.Tensor]):
    """Parts of a flat group that count how often one is looked at."""

    count = 0

    def __getitem__(self, index: Any) -> Any:
        Parts.count += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for one in super().__iter__():
            Parts.count += 1
            yield one


def test_a_parameter_is_cut_from_the_ranks_that_hold_it() -> None:
    parts = Parts(torch.arange(10 * rank, 10 * rank + 10) for rank in range(100))
    ends = [10 * rank + 10 for rank in range(100)]
    for start, count, ranks in ((0, 10, 1), (985, 15, 2), (495, 20, 3), (30, 0, 1)):
        Parts.count = 0
        pieces = list(_cut(parts, ends, start, count))
        assert torch.equal(torch.cat(pieces), torch.arange(start, start + count))
        assert Parts.count == len(pieces) == ranks


FILES = [file for room in ROOMS for file in sorted(room.glob("*.py"))]


def rebuilt(tree: ast.AST) -> Iterator[str]:
    """Collections that are built anew for each look-up in a loop, as source."""
    for loop in ast.walk(tree):
        if isinstance(loop, ast.comprehension):
            tests: list[ast.AST] = list(loop.ifs)
        elif isinstance(loop, ast.For | ast.While):
            tests = list(loop.body)
        else:
            continue
        for node in (node for test in tests for node in ast.walk(test)):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
                wanted = node.comparators[0]
                literal = isinstance(wanted, ast.Set | ast.List) and any(
                    isinstance(one, ast.Starred) for one in wanted.elts
                )
                made = isinstance(wanted, ast.Call) and ast.unparse(wanted.func) in (
                    "set", "list", "tuple", "sorted", "frozenset", "dict",
                )  # fmt: skip
                if literal or made or isinstance(wanted, ast.ListComp | ast.SetComp):
                    yield ast.unparse(node)


@pytest.mark.parametrize("file", FILES, ids=[f"{file.parent.name}/{file.name}" for file in FILES])
def test_no_loop_builds_what_it_looks_up_in(file: Path) -> None:
    assert not list(rebuilt(ast.parse(file.read_text(encoding="utf-8"))))


def test_what_no_loop_may_do_is_found() -> None:
    code = "[x for x in a if x not in set(b)]\n{k: v for k, v in a if k not in {*b, *c}}"
    assert list(rebuilt(ast.parse(code))) == ["x not in set(b)", "k not in {*b, *c}"]
