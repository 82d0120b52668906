"""The lock holds all that pyproject.toml names, and `make` installed what the lock holds."""

import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = ("requirements.lock", "requirements-cuda.lock")
STAMP = ROOT / ".venv" / ".installed"
"""What `make` has installed: the text of the locks."""


def locked(file: str) -> dict[str, Version]:
    """Versions of a lock, by normalised name; each line is a pin or a comment."""
    pins: dict[str, Version] = {}
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        found = re.fullmatch(r"([a-z0-9-]+)==([\w.]+) *(?:# via .*)?", line)
        assert found, f"{file}: {line!r} pins no version"
        assert found[1] not in pins, f"{file}: {found[1]} is there twice"
        pins[found[1]] = Version(found[2])
    return pins


def installed() -> dict[str, Version]:
    """Versions in this environment, without this package and models; local labels are cut."""
    ours = canonicalize_name(PROJECT["project"]["name"])
    found = {
        canonicalize_name(one.name): Version(Version(one.version).public)
        for one in distributions(path=[path for path in sys.path if "site-packages" in path])
    }
    beside = {ours, *added_by_make_llm()}
    return {name: version for name, version in found.items() if name not in beside}


def added_by_make_llm() -> set[str]:
    """Packages that `make llm` takes without what they ask for; their models alone are used."""
    found = re.findall(r"^LLM := ([\w-]+)==", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert len(found) == 1
    return {canonicalize_name(found[0])}


def named_by_make() -> list[str]:
    """Requirements that pyproject.toml names and `make` installs."""
    return [
        *PROJECT["build-system"]["requires"],
        *PROJECT["dependency-groups"]["install"],
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["test"],
    ]


def differences(found: dict[str, Version], lock: dict[str, Version]) -> list[str]:
    """What is installed beside what is locked, where they differ."""
    return [
        f"{name} {found.get(name, '(none)')}, locked {lock.get(name, '(none)')}"
        for name in sorted(found.keys() | lock.keys())
        if found.get(name) != lock.get(name)
    ]


@pytest.mark.parametrize("text", named_by_make())
def test_what_pyproject_names_is_locked_within_its_range(text: str) -> None:
    requirement = Requirement(text)
    pin = locked("requirements.lock").get(canonicalize_name(requirement.name))
    assert pin is not None, f"requirements.lock lacks {requirement.name}. Run: make lock"
    assert requirement.specifier.contains(pin, prereleases=True), (
        f"requirements.lock has {requirement.name} {pin}; pyproject.toml asks for {text}. "
        "Run: make lock"
    )


def test_one_version_of_each_package_and_no_address_of_an_index() -> None:
    main, cuda = (locked(file) for file in LOCKS)
    assert not main.keys() & cuda.keys()
    assert "torch" in main
    for file in LOCKS:
        assert "://" not in (ROOT / file).read_text(encoding="utf-8")


def test_environment_equals_the_lock() -> None:
    lock = locked("requirements.lock")
    if any(name.startswith("nvidia-") for name in installed()):
        lock |= locked("requirements-cuda.lock")
    differ = differences(installed(), lock)
    texts = "".join((ROOT / file).read_text(encoding="utf-8") for file in LOCKS)
    made = STAMP.is_file() and STAMP.read_text(encoding="utf-8") == texts
    if Path(sys.prefix) != ROOT / ".venv" or not made:
        pytest.skip(f"{sys.prefix} was not made by make from the lock; {'; '.join(differ)}")
    assert not differ, (
        f"the environment is not what the lock says: {'; '.join(differ)}. Run: make clean, then "
        "make test"
    )
