"""Hosts and a workspace for the tests of several hosts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.corpus import make_workspace
from tests.support.hosts import Hosts, missing, two_hosts


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder)
    return folder


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with two_hosts(tmp_path) as made:
        yield made
