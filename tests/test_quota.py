"""How many processors are ours."""

from __future__ import annotations

import os

import pytest

from app.quota import usable_cpus

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
