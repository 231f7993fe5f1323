"""The choice between a GPU's kernels and PyTorch's operators, by speed, by correctness and by what is installed."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from model.gpu import autotune
from model.gpu.network import WindowNetwork
from model.inference import operators
from model.inference.body import compute_block
from model.inference.operators import PLAIN, Operators
from model.packing import IndexFunctions, locate, mask_kinds, pixel_rows
from tests.networks import tiny_network

CPU = torch.device("cpu")


def windowed(dtype=torch.float32):
    return WindowNetwork(tiny_network(), dtype)


def choose(fused, seconds=None, dtype=torch.float32):
    """The choice among a few windows' forms, by times that are given."""
    forms = fused if isinstance(fused, list) else [fused]
    return autotune.choose_operators(windowed(dtype), lambda _call: 1.0 if seconds is None else next(seconds), forms, 4)


def take(operator, seconds):
    """An operator that is known to take so long."""

    def run(*arguments):
        run.seconds = seconds
        return operator(*arguments)

    return run


def test_the_faster_operator_is_chosen():
    """Each for itself, by the time that was measured."""
    fused = Operators(take(operators.attend, 1), take(operators.add_norm, 1), gather=take(operators.gather, 1))
    seconds = [1.0, 2.0, 2.0, 1.0, 1.0, 2.0]  # attention by the kernel and without; norm; gather
    assert choose(fused, iter(seconds)) == Operators(fused.attend, PLAIN.add_norm, gather=fused.gather)
    assert choose(fused, iter(reversed(seconds))) == Operators(PLAIN.attend, fused.add_norm)


def test_index_kernels_are_chosen_where_they_are_faster_and_right():
    """All of them together, and only if they compute the same numbers."""
    tables = IndexFunctions(locate, mask_kinds, pixel_rows)
    fused = Operators(operators.attend, operators.add_norm, index=tables)
    times = [2.0, 1.0] * 3
    assert choose(fused, iter([*times, 1.0, 2.0])).index is tables
    assert choose(fused, iter([*times, 2.0, 1.0])).index is PLAIN.index
    wrong = replace(tables, pixel_rows=lambda *given: pixel_rows(*given) + 1)
    assert choose(replace(fused, index=wrong), iter(times)).index is PLAIN.index


@pytest.mark.parametrize("fault", [RuntimeError("no ptxas"), AssertionError("no libcuda")])
def test_every_kernel_that_a_network_calls_is_compiled_and_one_that_cannot_be_is_replaced(fault):
    """Those of a block first, then all: the network computes in any case. Running out of memory is raised."""

    def fail(*_arguments):
        raise fault

    network, used = windowed(), []

    def attend(*arguments):
        used.append(len(arguments[1]))
        return operators.attend(*arguments)

    fine = replace(PLAIN, attend=attend)
    for broken, expected in (
        (fine, fine),
        (replace(fine, run_block=fail), fine),
        (replace(fine, finish=fail), fine),
        (replace(fine, gather=fail), PLAIN),
    ):
        network.operators = broken
        autotune.compile_kernels(network)
        assert network.operators == expected
    assert used
    network.operators = replace(PLAIN, gather=lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("too much")))
    with pytest.raises(torch.OutOfMemoryError):
        autotune.compile_kernels(network)


@pytest.mark.parametrize(("seconds", "whole"), [(1.0, True), (3.0, False)])
def test_a_whole_block_is_chosen_where_it_is_faster(seconds, whole):
    """Than the block by the operators that were chosen."""

    def run_block(stream, kinds, block, rows, _out=None):
        assert rows is None
        return compute_block(PLAIN, stream, stream, kinds, block)[0]

    fused = Operators(operators.attend, operators.add_norm, run_block=run_block)
    times = iter([1.0, 2.0] * 3 + [seconds, 2.0])
    assert choose(fused, times).run_block is (run_block if whole else None)


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_a_block_is_finished_by_one_kernel_where_that_is_faster(seconds):
    """And what the whole block has to be faster than is the block that is finished so."""

    def finish(stream, branch, block, rows):
        stream, tokens = operators.add_norm(stream, branch, block.norm1, None)
        hidden = block.act(tokens @ block.fc1.weight.T + block.fc1.bias)
        return operators.add_norm(stream, hidden @ block.fc2.weight.T + block.fc2.bias, block.norm2, rows)

    times = iter([2.0, 1.0] * 3 + [seconds, 2.0])
    fused = Operators(PLAIN.attend, PLAIN.add_norm, finish)
    assert choose(fused, times) == Operators(PLAIN.attend, PLAIN.add_norm, finish if seconds < 2 else None)


@pytest.mark.parametrize(
    "fault",
    [RuntimeError("no C compiler"), OSError("no ptxas"), AssertionError("no libcuda"), ImportError(), ValueError],
)
def test_a_kernel_that_cannot_be_had_is_no_fault(fault):
    """It is left out; what is nobody's fault but the program's is not hidden."""

    def fail(*_arguments):
        raise fault

    fused = Operators(fail, fail, gather=fail)
    if fault is ValueError:
        with pytest.raises(ValueError):  # noqa: PT011 - it has no text
            choose(fused)
    else:
        assert choose(fused) == PLAIN


def test_running_out_of_memory_is_no_choice():
    """It says nothing of the kernel."""

    def fail(*_arguments):
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError):
        choose(Operators(fail, fail))


def test_a_block_may_round_as_its_products_do():
    """The stream is float32 always; how far two forms of a block are apart is a matter of what its products take."""

    def run_block(stream, kinds, block, _rows, _out=None):
        return compute_block(PLAIN, stream, stream.to(block.qkv.weight.dtype), kinds, block)[0] * 1.005

    fused = Operators(operators.attend, operators.add_norm, run_block=run_block)
    times = [2.0, 1.0] * 3
    assert choose(fused, iter([*times, 1.0, 2.0]), torch.bfloat16).run_block is run_block
    assert choose(fused, iter(times)).run_block is None


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_a_wrong_kernel_is_not_used(factor):
    """However fast it is."""

    def attend(*arguments):
        return operators.attend(*arguments) * factor

    def add_norm(*arguments):
        stream, tokens = operators.add_norm(*arguments)
        return stream * factor, tokens

    assert choose(Operators(attend, add_norm), iter([2.0, 1.0])) == PLAIN  # that of gathering alone is asked


def test_there_are_no_kernels_on_a_cpu():
    """Triton is not even looked for, and PyTorch's operators serve."""
    assert autotune.load_kernels(CPU, windowed().body.stages[0].blocks[0]) == []
    assert choose([]) is PLAIN


def test_a_gpu_without_triton_serves(monkeypatch):
    """By PyTorch's operators."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "model.gpu.kernels", raising=False)
    assert autotune.load_kernels(torch.device("cuda"), windowed().body.stages[0].blocks[0]) == []


@pytest.mark.slow
def test_importing_does_not_import_triton():
    """The kernels are imported where there is a GPU, and nowhere else."""
    code = "import sys, model.upscaler; sys.exit('model.gpu.kernels' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
