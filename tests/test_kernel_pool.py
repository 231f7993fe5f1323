"""The kernel's pool of threads: one for all callers, asleep when there is nothing to do."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from model import cpu_kernel
from tests.networks import needs_kernel
from tests.test_cpu_kernel import kernel_of, random_block

pytestmark = needs_kernel


def compute(block, tokens):
    """A block's answer; all tokens have one kind of mask."""
    with torch.inference_mode():
        return cpu_kernel.run(block, tokens, None, (len(tokens) // 64,))


def threads_of_process():
    """How many threads there are now."""
    return len(list(Path("/proc/self/task").iterdir()))


def test_calls_make_no_threads_of_their_own():
    """After the first call the pool has what it needs, however many calls and callers follow."""
    block, tokens = kernel_of(random_block(24, 2, 8, 0)), torch.randn(64 * 64, 24)
    compute(block, tokens)
    before = threads_of_process()
    for _ in range(50):
        compute(block, tokens)
    assert threads_of_process() == before


@pytest.mark.slow
def test_idle_threads_use_no_time():
    """A second without work costs the process next to nothing."""
    compute(kernel_of(random_block(24, 2, 8, 0)), torch.randn(64 * 64, 24))
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.02


FORKED = """
import os, threading
import pytest
import torch
from model import cpu_kernel
from tests.test_cpu_kernel import kernel_of, random_block

torch.set_num_threads(2)
block, tokens = kernel_of(random_block(24, 2, 8, 0)), torch.randn(256 * 64, 24)

def compute():
    with torch.inference_mode():
        return cpu_kernel.run(block, tokens, None, (256,)).numpy()  # PyTorch's own threads do not survive a fork

expected, done = compute(), threading.Event()

def keep_busy():
    while not done.is_set():
        assert (compute() == expected).all()

busy = threading.Thread(target=keep_busy)
busy.start()
for _ in range(20):
    child = os.fork()
    if not child:
        os._exit(0 if all((compute() == expected).all() for _ in range(2)) else 1)
    assert os.waitpid(child, 0)[1] == 0
done.set()
busy.join()
"""


@pytest.mark.slow
def test_a_forked_process_computes():
    """A child has no threads of its parent's and computes with its own, even if the parent was computing."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr


def test_signals_reach_python_s_own_threads():
    """The pool's threads block signals, so that a handler runs where it is expected."""
    compute(kernel_of(random_block(24, 2, 8, 0)), torch.randn(64 * 64, 24))
    ours = {str(thread.native_id) for thread in threading.enumerate()}
    blocked = []
    for task in Path("/proc/self/task").iterdir():
        mask = int((task / "status").read_text().split("SigBlk:")[1].split()[0], 16)
        if task.name not in ours and mask >> (signal.SIGTERM - 1) & 1:
            blocked.append(task.name)
    assert len(os.sched_getaffinity(0)) == 1 or torch.get_num_threads() == 1 or blocked


def test_the_number_of_threads_changes_nothing(monkeypatch):
    """One thread, two, and more than there are processors: the same bits, for few windows and for many."""
    block = kernel_of(random_block(60, 6, 8, 0))
    for windows in (1, 2, 3, 5, 8, 33):
        tokens = torch.randn(windows * 64, 60)
        answers = []
        for threads in (1, 2, 16, 1000):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            answers.append(compute(block, tokens))
        assert all(torch.equal(answers[0], answer) for answer in answers[1:])
