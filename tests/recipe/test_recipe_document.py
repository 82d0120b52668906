"""What `<<` and aliases of a recipe come to: the same under every release of PyYAML."""

from pathlib import Path
from typing import Any

import pytest

from trainer.errors import RecipeError
from trainer.recipe.document import apply_overrides, read_document

BASES = "one: &one {key: 1, first: 1}\ntwo: &two {key: 2, second: 2}\n"


def values_of(folder: Path, text: str) -> dict[str, Any]:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return read_document(file).values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{<<: *one, own: 3}", {"key": 1, "first": 1, "own": 3}),
        ("{<<: [*one, *two]}", {"key": 1, "first": 1, "second": 2}),
        ("{<<: [*two, *one]}", {"key": 2, "first": 1, "second": 2}),
        ("{<<: [*two, *one], key: 3}", {"key": 3, "first": 1, "second": 2}),
        ("{key: 3, <<: [*two, *one]}", {"key": 3, "first": 1, "second": 2}),
        ("{<<: {<<: [*one, *two], first: 3}}", {"key": 1, "first": 3, "second": 2}),
        ("[{<<: *two}]", [{"key": 2, "second": 2}]),
    ],
)
def test_first_mapping_named_wins(tmp_path: Path, text: str, expected: object) -> None:
    assert values_of(tmp_path, f"{BASES}here: {text}\n")["here"] == expected
    document = read_document(tmp_path / "recipe.yaml")
    alone = text.replace("*one", "{key: 1, first: 1}").replace("*two", "{key: 2, second: 2}")
    assert apply_overrides(document, [f"here={alone}"]).values["here"] == expected


def test_alias_of_a_mapping_that_overrides_what_it_merged(tmp_path: Path) -> None:
    values = values_of(tmp_path, f"{BASES}here: &here {{<<: *one, key: 3}}\nagain: *here\n")
    assert values["again"] == values["here"] == {"key": 3, "first": 1}


def test_merges_that_do_not_grow_are_no_attack(tmp_path: Path) -> None:
    """Each mapping merges the one before it twice: 30 doublings, and yet 30 keys."""
    lines = [
        f"m{index + 1}: &m{index + 1} {{key{index}: {index}, <<: [*m{index}, *m{index}]}}"
        for index in range(30)
    ]
    values = values_of(tmp_path, "\n".join(["m0: &m0 {}", *lines]))
    assert values["m30"] == {f"key{index}": index for index in range(30)}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("here: &here {<<: *here}", ":1: << = the mapping that it stands in; expected another"),
        ("here: {<<: 3}", ":1: << = a value that is no mapping; expected an alias"),
        ("here: {<<: [[{a: 1}]]}", ":1: << = a value that is no mapping; expected an alias"),
        ("here: {<<: {[a]: 1}}", ":1: key = a list or a mapping; expected a word"),
        ("here: {<<: {!!python/name:os.mkdir a: 1}}", ":1: tag = !!python/name:os.mkdir"),
        ("here: {<<: {a: 1, a: 2}}", ":1: here.a = given twice, first in line 1"),
    ],
)
def test_merge_that_means_nothing(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        values_of(tmp_path, text)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("here={a: 1, a: 2}", "override here={a: 1, a: 2}: a = given twice"),
        ("here={[a]: 1}", "override here={[a]: 1}: key = a list or a mapping"),
        ("here=!important", "override here=!important: tag = !important"),
        ("here=!!binary a", "override here=!!binary a: value = "),
    ],
)
def test_override_that_means_nothing(tmp_path: Path, override: str, part: str) -> None:
    values_of(tmp_path, "here: 1\n")
    with pytest.raises(RecipeError) as caught:
        apply_overrides(read_document(tmp_path / "recipe.yaml"), [override])
    assert part in str(caught.value)


def test_length_of_merges_is_bounded(tmp_path: Path) -> None:
    """No key is added, but the aliases alone would take time that grows with their square."""
    keys = ", ".join(f"key{index}: {index}" for index in range(200))
    with pytest.raises(RecipeError, match="over 20000 values"):
        values_of(tmp_path, f"a: &a {{{keys}}}\nb: {{<<: [{', '.join(['*a'] * 200)}]}}\n")
