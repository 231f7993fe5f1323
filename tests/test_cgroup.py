"""How many processors are ours."""

from __future__ import annotations

import os

import pytest

from app.cgroup import free_memory, total_memory, usable_cpus

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("max 100000", HERE), ("100000 100000", 1), ("50000 100000", 1), (f"{HERE * 200000} 100000", HERE), ("1 1000", 1)],
)
def test_the_control_groups_quota_bounds_the_processors(tmp_path, text, cpus):
    """Version 2: quota and period in one file; a part of a processor is one."""
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    assert usable_cpus(tmp_path) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("-1", HERE), ("100000", 1)])
def test_the_older_control_groups_are_read(tmp_path, quota, cpus):
    """Version 1: two files, and -1 is no limit."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert usable_cpus(tmp_path) == cpus


def test_without_control_groups_the_affinity_counts(tmp_path):
    """As on a machine of one's own."""
    assert usable_cpus(tmp_path) == HERE


@pytest.mark.parametrize(
    ("limit", "used", "available", "expected"),
    [("max", 5, 800, 800), (1000, 300, 800, 700), (1000, 100, 800, 800), (100, 300, 800, 0)],
)
def test_free_memory_is_the_tighter_of_machine_and_control_group(tmp_path, limit, used, available, expected):
    """What the kernel says is available, bounded by what the group has left."""
    (tmp_path / "memory.max").write_text(f"{limit}\n" if limit == "max" else str(limit * 1024))
    (tmp_path / "memory.current").write_text(str(used * 1024))
    (tmp_path / "meminfo").write_text(f"MemTotal:  9999 kB\nMemAvailable:   {available} kB\n")
    assert free_memory(tmp_path, tmp_path / "meminfo") == expected * 1024


def test_free_memory_is_unknown_without_proc_and_groups(tmp_path):
    """Neither Linux's table nor a control group."""
    assert free_memory(tmp_path, tmp_path / "meminfo") is None


@pytest.mark.parametrize(("limit", "expected"), [("max\n", 1000), ("700\n", 700), ("3000\n", 1000), (None, 1000)])
def test_total_memory_is_the_tighter_of_machine_and_control_group(tmp_path, limit, expected):
    """A container's limit counts if it is lower than the machine's; without one, or without groups, the machine."""
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    assert total_memory(1000, tmp_path) == expected


@pytest.mark.parametrize("name", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("own", "parent", "expected"), [(50_000, -1, 1), (-1, 50_000, 1), (-1, -1, HERE)])
def test_groups_below_and_above_count_in_version_1(tmp_path, name, own, parent, expected):
    """The group that ``/proc/self/cgroup`` names, and those that hold it."""
    for path, quota in ((f"{name}/pod/unit", own), (f"{name}/pod", parent), (name, -1)):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        (tmp_path / path / "cpu.cfs_quota_us").write_text(str(quota))
        (tmp_path / path / "cpu.cfs_period_us").write_text("100000")
    (tmp_path / "own").write_text("5:memory:/\n3:cpu,cpuacct:/pod/unit\n")
    assert usable_cpus(tmp_path, tmp_path / "own") == expected


@pytest.mark.parametrize(
    ("own", "parent", "expected"), [("50000 100000", "max 100000", 1), ("max 100000", "100000 100000", 1)]
)
def test_groups_below_and_above_count_in_version_2(tmp_path, own, parent, expected):
    """The tightest of them."""
    (tmp_path / "pod/unit").mkdir(parents=True)
    (tmp_path / "pod/unit/cpu.max").write_text(own)
    (tmp_path / "pod/cpu.max").write_text(parent)
    (tmp_path / "own").write_text("0::/pod/unit\n")
    assert usable_cpus(tmp_path, tmp_path / "own") == expected


def test_a_path_of_the_host_is_not_there_in_a_container(tmp_path):
    """Then the root is this process's own group."""
    (tmp_path / "cpu.max").write_text("100000 100000")
    (tmp_path / "own").write_text("0::/docker/0123456789ab\n")
    assert usable_cpus(tmp_path, tmp_path / "own") == 1


@pytest.mark.parametrize("path", ["/", "/docker/0123456789ab"])
def test_memory_of_the_older_control_groups_is_read(tmp_path, path):
    """Version 1: limit and use in two files, and a number near 2^63 is no limit."""
    (tmp_path / "memory").mkdir()
    (tmp_path / "own").write_text(f"4:memory:{path}\n1:name=systemd:/\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("300")
    (tmp_path / "memory/memory.limit_in_bytes").write_text("1000\n")
    assert total_memory(1 << 40, tmp_path, tmp_path / "own") == 1000
    assert free_memory(tmp_path, tmp_path / "meminfo", tmp_path / "own") == 700
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert total_memory(1 << 40, tmp_path, tmp_path / "own") == 1 << 40
    assert free_memory(tmp_path, tmp_path / "meminfo", tmp_path / "own") is None


@pytest.mark.parametrize(
    "text", [b"", b"\n", b" ", b"abc", b"1e5 100000", b"-5", b"0 0", b"100000 0", b"\xff\xfe", b"9" * 5000, None]
)
def test_what_the_kernel_would_not_write_is_no_limit(tmp_path, text):
    """Empty files, other text, and folders in their place do not stop the start."""
    names = ["cpu.max", "memory.max", "memory.current", "meminfo", "own", "cpu/cpu.cfs_quota_us"]
    for name in [*names, "cpu/cpu.cfs_period_us", "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if text is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(text)
    assert usable_cpus(tmp_path, tmp_path / "own") == HERE
    assert total_memory(1000, tmp_path, tmp_path / "own") == 1000
    assert free_memory(tmp_path, tmp_path / "meminfo", tmp_path / "own") is None


def test_a_quota_without_a_period_has_the_kernels(tmp_path):
    """Of 100 ms; lines of the process's groups that have no path are left out."""
    (tmp_path / "own").write_text("nonsense\n0::/\n")
    (tmp_path / "cpu.max").write_text("100000")
    assert usable_cpus(tmp_path, tmp_path / "own") == 1
