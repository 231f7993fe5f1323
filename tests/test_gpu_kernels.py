"""The kernels of a GPU against PyTorch's operators: in Triton's interpreter, compiled for two cards, and on a GPU."""

import os
import subprocess
import sys

import pytest
import torch

from tests.kernel_checks import FORMS, check_block, check_kernels, check_network, check_tables

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")

INTERPRETED = """
import sys
import torch
from model.gpu import kernels
from model.gpu.index_kernels import INDEX
from tests.kernel_checks import FORMS, check_block, check_kernels, check_network, check_tables, check_which
torch.set_num_threads(1)
check_which(kernels)
check_tables(INDEX, "cpu")
check_network(kernels, "cpu")
for dtype, places in ((torch.float32, sys.argv[1]), (torch.bfloat16, sys.argv[2])):
    for place in places:
        check_kernels(kernels, dtype, FORMS[int(place)], "cpu")
        check_block(kernels, dtype, FORMS[int(place)], "cpu")
check_block(kernels, torch.float32, FORMS[0], "cpu", logit_scale=4.6)
"""


@pytest.mark.slow
@pytest.mark.parametrize("places", [("0234", "02"), pytest.param(("01234", "01234"), marks=pytest.mark.long)])
def test_kernels_are_their_plain_twins_by_the_interpreter(places):
    """All kernels, for heads of 10 and 30 channels, windows of 64 and 49 tokens, float32 and bfloat16.

    Args:
        places: of the forms in float32, and in bfloat16; for ``make prove`` all of them.
    """
    pytest.importorskip("triton", reason="Triton, whose interpreter runs the kernels, is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED, *places], env=environment, check=True)


@pytest.mark.long
@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_can_be_translated_for_a_card(capability, tmp_path):
    """Into machine code that needs no more shared memory than an A100 or an H100 has; no card is needed for that."""
    pytest.importorskip("triton", reason="Triton, which translates the kernels, is not installed")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.compiled_kernels", capability]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    kernels = {line.split()[3] for line in done.stdout.splitlines()}
    index = {"locate_tokens:", "find_kinds:", "place_rows:"}
    assert kernels == {"attend_windows:", "add_norm_rows:", "gather_rows:", "finish_rows:", "block_windows:"} | index


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_kernels_are_their_plain_twins_on_the_device(form, dtype):
    """Compiled, on tensor cores."""
    pytest.importorskip("triton")
    from model.gpu import kernels

    check_kernels(kernels, dtype, form, "cuda", tolerance=1e-4)  # whose square roots and divisions are approximate
    check_block(kernels, dtype, form, "cuda")
    if (form, dtype) == (FORMS[0], torch.float32):
        check_block(kernels, dtype, form, "cuda", logit_scale=4.6)


@needs_cuda
def test_a_network_of_kernels_is_the_network_on_the_device():
    """Whole blocks, and the other kernels."""
    pytest.importorskip("triton")
    from model.gpu import kernels

    check_network(kernels, "cuda")
    check_tables(kernels.INDEX, "cuda")
