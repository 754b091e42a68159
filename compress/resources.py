"""Processors and memory that this process may use: of the machine, of its container, and of its own limits.

Limits of Linux control groups are the minimum over a group and its ancestors, in version 2 and in version 1. Standard
library only, also on another machine (`profiles.latency.remote`). `root` is the file system to read, for tests.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
GROUPS = "sys/fs/cgroup"
#: memory limits from here on mean that there is none (version 1 has a number for it)
UNLIMITED = 1 << 60
#: from glibc's malloc.h: smallest block that is a mapping of its own
M_MMAP_THRESHOLD = -3


def usable_cores(root: Path = ROOT) -> int:
    """Return the number of processors this process may use; a part of one counts as one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the processors that the control groups allow, such as 1.5; None without a limit."""
    quotas = [read_text(folder / "cpu.max").split() for folder in control_groups("", root)]
    quotas += [
        [read_text(folder / f"cpu.cfs_{part}_us") for part in ("quota", "period")]
        for folder in control_groups("cpu", root)
    ]
    found = [int(words[0]) / int(words[1]) for words in quotas if len(words) == 2 and all(map(str.isdecimal, words))]
    return min(found, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Return the bytes that this process can have at most; None if the system does not report it."""
    limits = [limit for limit, _ in group_memory(root)]
    machine = read_meminfo(root).get("MemTotal") or physical_memory()
    if machine is not None:
        limits.append(machine + read_meminfo(root).get("SwapTotal", 0))
    address_space = address_space_limit()
    return min([*limits, *([] if address_space is None else [address_space])], default=None)


def available_memory(root: Path = ROOT) -> int | None:
    """Return the bytes that this process can allocate now, without swapping; None if the system does not report it."""
    rest = [max(0, limit - used) for limit, used in group_memory(root)]
    free = read_meminfo(root).get("MemAvailable")
    if free is not None:
        rest.append(free)
    address_space = address_space_limit()
    if address_space is not None:
        pages = read_text(root / "proc/self/statm").partition(" ")[0]
        rest.append(max(0, address_space - int(pages or 0) * os.sysconf("SC_PAGE_SIZE")))
    return min(rest, default=None)


def physical_memory() -> int | None:
    """Return the physical memory in bytes; None if the system does not report it."""
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_threads(root: Path = ROOT) -> int | None:
    """Return the number of threads that a runtime should start; None: its own default, without a CPU quota."""
    return None if cpu_quota(root) is None else usable_cores(root)


def limit_threads(root: Path = ROOT) -> None:
    """Let libraries that are loaded later start as many threads as a container has processors.

    They count the processors of the machine. An existing OMP_NUM_THREADS is kept.
    """
    threads = default_threads(root)
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def return_freed_blocks() -> None:
    """Let glibc's allocator return freed blocks of a megabyte to the system at once; other allocators are unchanged.

    By default it keeps blocks of up to 32 MB, and the gaps between them, once such blocks have been freed.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(M_MMAP_THRESHOLD, 1 << 20)


def out_of_memory_kills(root: Path = ROOT) -> int:
    """Return how many processes the kernel has ended in the control groups because their memory was exhausted."""
    files = [folder / "memory.events" for folder in control_groups("", root)]
    files += [folder / "memory.oom_control" for folder in control_groups("memory", root)]
    return max((read_fields(file).get("oom_kill", 0) for file in files), default=0)


def group_memory(root: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, use) of every control group with a memory limit; files that can be dropped are not in use."""
    names = {"": ("memory.max", "memory.current", "inactive_file")}
    names["memory"] = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    for controller, (limit_name, use_name, cache_name) in names.items():
        for folder in control_groups(controller, root):
            limit, use = read_text(folder / limit_name), read_text(folder / use_name)
            if limit.isdecimal() and int(limit) < UNLIMITED:
                cached = read_fields(folder / "memory.stat").get(cache_name, 0)
                yield int(limit), max(0, int(use if use.isdecimal() else 0) - cached)


def control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control group and of its ancestors.

    Args:
        controller: Name of the controller in version 1; empty: version 2.
        root: File system to read.
    """
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        mounts = [root / GROUPS / (controllers or "unified"), root / GROUPS / controller, root / GROUPS]
        mount = next((folder for folder in mounts if folder.is_dir()), None)
        if mount is None:
            return
        # A container may see its own group as the root of the mount, and not the path that the kernel reports.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for end in range(len(parts), -1, -1):
            folder = mount.joinpath(*parts[:end])
            if folder.is_dir():
                yield folder
        return


def address_space_limit() -> int | None:
    """Return the limit of the address space (`ulimit -v`) in bytes; None if there is none."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def read_meminfo(root: Path) -> dict[str, int]:
    """Return /proc/meminfo in bytes; empty if there is none."""
    return {name.rstrip(":"): 1024 * value for name, value in read_fields(root / "proc/meminfo").items()}


def read_fields(path: Path) -> dict[str, int]:
    """Return the lines `name number …` of a file; empty if it cannot be read."""
    fields = (line.split() for line in read_text(path).splitlines())
    return {words[0]: int(words[1]) for words in fields if len(words) > 1 and words[1].isdecimal()}


def read_text(path: Path) -> str:
    """Return the text of a file without surrounding white space; empty if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
