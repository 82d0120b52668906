"""Environments of the clients: exact releases, and the trainer's own where it shares them."""

from pathlib import Path

import pytest

from clients.environments import ENVIRONMENTS, HERE, LLAMA_CPP, Environment, release_of
from clients.families import FAMILIES
from clients.vocabularies import SAVE
from tests.support.pages import PROJECT
from tools.clients import BASES_IN
from trainer.export.clients.run import loaders


def pinned(environment: Environment) -> dict[str, str]:
    lines = environment.requirements.read_text(encoding="utf-8").split()
    return dict(line.split("==") for line in lines)


def environment_named(name: str) -> Environment:
    return next(one for one in ENVIRONMENTS if one.name == name)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda one: one.name)
def test_every_release_is_exact(environment: Environment) -> None:
    assert all(release[0].isdigit() for release in pinned(environment).values())


def test_each_file_of_requirements_is_an_environment() -> None:
    files = {file.name for file in HERE.glob("requirements-*.txt")}
    assert files == {one.requirements.name for one in ENVIRONMENTS}


def test_newest_releases_are_those_of_the_trainer() -> None:
    own = dict(line.split("==") for line in PROJECT["project"]["dependencies"] if "==" in line)
    newest = pinned(ENVIRONMENTS[0])
    shared = {"torch", "transformers", "sentence-transformers", "peft"}
    assert {name: newest[name] for name in shared} == {name: own[name] for name in shared}


def test_older_releases_are_there() -> None:
    found = [pinned(one) for one in ENVIRONMENTS]
    majors = [one.get("sentence-transformers", "").partition(".")[0] for one in found]
    assert majors == ["6", "5", "3", ""]
    assert [one["transformers"].partition(".")[0] for one in found] == ["5", "4", "4", "4"]


def test_environments_run_clients_that_the_tool_can_run() -> None:
    known = {loader.client for loader in loaders(Path("converter"), "f32")}
    assert {name for one in ENVIRONMENTS for name in one.clients} == known


def test_the_release_of_a_package_is_told_without_extras() -> None:
    assert release_of(LLAMA_CPP).startswith("llama-cpp-python==")
    with pytest.raises(LookupError, match="unheard-of"):
        release_of("unheard-of")


def test_every_family_has_a_vocabulary() -> None:
    assert {family.vocabulary for family in FAMILIES.values()} == set(SAVE)


def test_tokenizers_of_bases_are_made_with_all_they_need() -> None:
    assert {"sentencepiece", "protobuf"} <= pinned(environment_named(BASES_IN)).keys()
