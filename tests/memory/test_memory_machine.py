"""What a rank may use: its GPU, or its share of what is free and of the limits around it."""

import os
import resource
from pathlib import Path

import pytest
import torch

from trainer.memory import machine
from trainer.memory.machine import RESERVED_BYTES, device_memory, usable


def test_memory_of_a_gpu_is_less_than_its_size() -> None:
    assert usable(80 * 10**9) == 80 * 10**9 - RESERVED_BYTES


def test_ranks_without_gpus_share_the_free_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemFree: 100 kB\nMemAvailable:    3000 kB\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "absent")
    monkeypatch.setattr(machine, "MEMINFO", meminfo)
    assert [device_memory(ranks) for ranks in (1, 2, 3)] == [3_072_000, 1_536_000, 1_024_000]
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "absent")
    assert device_memory(1) is None


def test_limits_of_groups_and_of_the_process_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo, group = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemAvailable: 8000000 kB\n")
    group.write_text("0::/outer/inner\n")
    root = tmp_path / "groups"
    for name, limit, taken, cache in (
        ("outer", "5000000000", 3_000_000_000, 500_000_000),
        ("outer/inner", "max", 1_000_000_000, 0),
    ):
        (root / name).mkdir(parents=True)
        (root / name / "memory.max").write_text(f"{limit}\n")
        (root / name / "memory.current").write_text(f"{taken}\n")
        (root / name / "memory.stat").write_text(f"anon 7\ninactive_file {cache}\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, path in (("MEMINFO", meminfo), ("CGROUP", group), ("CGROUPS", root)):
        monkeypatch.setattr(machine, name, path)
    assert device_memory(1) == 2_500_000_000
    assert device_memory(2) == 1_250_000_000

    statm = tmp_path / "statm"
    statm.write_text("1000 500 100 10 0 400 0\n")
    monkeypatch.setattr(machine, "STATM", statm)
    limit = 1_100_000_000 + 1000 * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    # of a process, so it is not shared
    assert device_memory(2) == 1_100_000_000
