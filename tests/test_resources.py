"""Processors and memory of a container, from file systems made for the test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compress import resources

GB = 10**9


def write_tree(root: Path, **files: object) -> Path:
    """Write files; `/` in their names is written `__`, and `.` as `_dot_`."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """A machine with 64 processors and 100 GB, of which 80 GB are free."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(resources, "address_space_limit", lambda: None)
    meminfo = f"MemTotal: {100 * GB // 1024} kB\nMemAvailable: {80 * GB // 1024} kB\nSwapTotal: 0 kB"
    return write_tree(tmp_path, proc__meminfo=meminfo)


def near(value: int | None, expected: float) -> bool:
    return value is not None and abs(value - expected) < 2048


def test_machine_without_control_groups(machine):
    assert resources.usable_cores(machine) == 64
    assert resources.cpu_quota(machine) is None
    assert near(resources.memory_limit(machine), 100 * GB)
    assert near(resources.available_memory(machine), 80 * GB)


def test_limits_of_version_2_are_the_minimum_over_ancestors(machine):
    write_tree(
        machine,
        proc__self__cgroup="0::/pod/container",
        sys__fs__cgroup__pod__container__cpu_dot_max="max 100000",
        sys__fs__cgroup__pod__cpu_dot_max="150000 100000",
        sys__fs__cgroup__pod__container__memory_dot_max=8 * GB,
        sys__fs__cgroup__pod__container__memory_dot_current=3 * GB,
        sys__fs__cgroup__pod__container__memory_dot_stat=f"anon {2 * GB}\ninactive_file {GB}",
        sys__fs__cgroup__pod__memory_dot_max=4 * GB,
        sys__fs__cgroup__pod__memory_dot_current=3 * GB,
    )
    assert resources.cpu_quota(machine) == 1.5
    assert resources.usable_cores(machine) == 2
    assert resources.memory_limit(machine) == 4 * GB
    assert resources.available_memory(machine) == GB


def test_page_cache_of_a_group_is_available(machine):
    write_tree(
        machine,
        proc__self__cgroup="0::/",
        sys__fs__cgroup__memory_dot_max=8 * GB,
        sys__fs__cgroup__memory_dot_current=7 * GB,
        sys__fs__cgroup__memory_dot_stat=f"inactive_file {5 * GB}",
    )
    assert resources.available_memory(machine) == 6 * GB


def test_limits_of_version_1(machine):
    write_tree(
        machine,
        proc__self__cgroup="5:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/",
        sys__fs__cgroup__memory__docker__1__memory_dot_limit_in_bytes=6 * GB,
        sys__fs__cgroup__memory__docker__1__memory_dot_usage_in_bytes=2 * GB,
        sys__fs__cgroup__memory__docker__1__memory_dot_stat=f"total_inactive_file {GB}",
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes=9223372036854771712,
    )
    cpu = machine / "sys/fs/cgroup/cpu,cpuacct/docker/1"
    cpu.mkdir(parents=True)
    (cpu / "cpu.cfs_quota_us").write_text("300000\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    (cpu.parent / "cpu.cfs_quota_us").write_text("-1\n")
    assert resources.usable_cores(machine) == 3
    assert resources.memory_limit(machine) == 6 * GB
    assert resources.available_memory(machine) == 5 * GB


def test_container_that_sees_its_group_as_the_root(machine):
    """The kernel reports a path of the host that is not mounted in the container."""
    write_tree(
        machine, proc__self__cgroup="0::/../../kubepods/1", sys__fs__cgroup__cpu_dot_max="50000 100000",
        sys__fs__cgroup__memory_dot_max=GB,
    )  # fmt: skip
    assert resources.usable_cores(machine) == 1
    assert resources.memory_limit(machine) == GB


def test_damaged_files_are_no_limit(machine):
    write_tree(
        machine, proc__self__cgroup="0::/", sys__fs__cgroup__cpu_dot_max="x y", sys__fs__cgroup__memory_dot_max=""
    )
    assert resources.usable_cores(machine) == 64
    assert near(resources.memory_limit(machine), 100 * GB)


def test_threads_follow_a_quota_only(machine, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    resources.limit_threads(machine)
    assert "OMP_NUM_THREADS" not in os.environ
    write_tree(machine, proc__self__cgroup="0::/", sys__fs__cgroup__cpu_dot_max="400000 100000")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    resources.limit_threads(machine)
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.delenv("OMP_NUM_THREADS")
    resources.limit_threads(machine)
    assert os.environ["OMP_NUM_THREADS"] == "4"


def test_kills_are_counted(machine):
    assert resources.out_of_memory_kills(machine) == 0
    write_tree(machine, proc__self__cgroup="0::/a", sys__fs__cgroup__a__memory_dot_events="oom 4\noom_kill 3")
    assert resources.out_of_memory_kills(machine) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="no address space limit")
def test_address_space_is_a_limit():
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 * 10**9, 2 * 10**9))\n"
        "from compress.resources import available_memory, memory_limit\n"
        "print(memory_limit(), available_memory())"
    )
    limit, available = map(int, subprocess.check_output([sys.executable, "-c", script], text=True).split())
    assert limit <= 2 * 10**9
    assert 0 < available < 2 * 10**9
