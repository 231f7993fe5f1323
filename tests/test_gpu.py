"""The forward pass on a GPU: computed on the CPU but for kernels and graphs, and those where they can be."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from model import windows
from model.gpu import autotune, runner
from model.gpu.graphs import CAPTURE_SIZES, Graphs, eager, sizes_that_fit
from model.gpu.network import WindowNetwork
from model.gpu.pending import PendingBatch, PendingPack
from model.gpu.runner import GpuRunner
from model.gpu.streams import DeviceThread, float32_precision
from model.inference import operators
from model.inference.body import compute_block
from model.inference.cpu import Inference
from model.inference.operators import PLAIN, AttentionTables, NormWeights, Operators
from model.packing import IndexFunctions, lay_out, locate, mask_kinds, pixel_rows
from model.padding import quantise, to_tensor
from model.upscaler import Upscaler
from tests.networks import HEADS, random_image, tiny_network

CPU = torch.device("cpu")
SIZES = [(8, 8), (24, 16), (8, 40)]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")

ERRORS = {
    "classical_x2": 8e-3,
    "classical_x3": 1e-2,
    "classical_x8": 9e-3,
    "lightweight_x4": 9e-3,
    "realworld_x4": 1.2e-2,
    "realworld_x4_3conv": 5e-3,
    "compressed_x4": 4e-3,
    "jpeg": 5e-5,
}
"""What bfloat16 in the body may cost each head: the norm of the error over that of what the network adds to gray."""


def random_tile(height, width, channels=3, dtype=np.uint8):
    return np.random.default_rng(height).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype)


def run_windowed(network, images, dtype, exact, fill=0):
    """Images (C, H, W) through a windowed network, as ``GpuRunner`` goes about it, with so many empty windows."""
    window, scale = network.config.window_size, network.config.upscale
    sizes = [tuple(image.shape[1:]) for image in images]
    own = sum(height * width for height, width in sizes) // window**2
    grid = torch.from_numpy(lay_out(sizes, window, own + fill))
    rows = [image.permute(1, 2, 0).flatten(0, 1) for image in images]
    flat = torch.cat([*rows, torch.rand(fill * window**2, rows[0].shape[1], dtype=rows[0].dtype)])
    with torch.inference_mode():
        values = WindowNetwork(network, dtype, exact)(flat[pixel_rows(grid, window)], grid)
    ordered = torch.empty(len(grid) * window**2 * scale, scale * values.shape[1], dtype=values.dtype)
    ordered[pixel_rows(grid, window, scale)] = values.view(len(ordered), -1)
    parts = ordered.split([scale * height * width for height, width in sizes] + [fill * window**2 * scale])
    return [
        part.view(scale * height, scale * width, -1).permute(2, 0, 1)
        for part, (height, width) in zip(parts, sizes, strict=False)
    ]


@pytest.mark.parametrize("head", HEADS)
def test_windows_alone_are_the_network(head):
    """In float64, for every head, an odd width, three sizes and empty windows, it is the network to the last digits."""
    network = tiny_network(head, embed_dim=20, num_heads=(2, 2), depths=(2, 1)).double()
    images = [random_image(network, rows, columns).double() for rows, columns in ((1, 1), (2, 3), (1, 4))]
    found = run_windowed(network, images, torch.float64, torch.float64, fill=3)
    for image, expected in zip(found, Inference(network).reconstruct(images), strict=True):
        torch.testing.assert_close(image, expected.image, rtol=0, atol=1e-12)


def test_other_networks_are_computed_too():
    """A bottleneck, no bias, another activation, another scale: what a configuration may say."""
    fields = {"resi_connection": "3conv", "qkv_bias": False, "hidden_act": "relu", "mlp_ratio": 1.3}
    network = tiny_network("classical_x2", **fields).double()
    images = [random_image(network, 2, 3).double()]
    [found] = run_windowed(network, images, torch.float64, torch.float64)
    torch.testing.assert_close(found, Inference(network).reconstruct(images)[0].image, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_costs_each_head_what_is_stated(head):
    """Products in bfloat16, the rest in float32, against float64; and it is not float32 by mistake."""
    network = tiny_network(head)
    images = [random_image(network, 3, 2), random_image(network, 1, 1)]
    found = run_windowed(network, images, torch.bfloat16, torch.float32)
    exact = Inference(network.double()).reconstruct([image.double() for image in images])
    off = sum(float((image - right.image).norm() ** 2) for image, right in zip(found, exact, strict=True))
    whole = sum(float((right.image - right.image.mean()).norm() ** 2) for right in exact)
    assert ERRORS[head] / 1000 < (off / whole) ** 0.5 < ERRORS[head]


@pytest.mark.parametrize(("window", "shift"), [(8, 4), (7, 3)])
def test_the_index_tables_are_those_of_images(window, shift):
    """Rolling, masks and neighbours, computed from the grid, are those of each image alone."""
    sizes = [(window * rows, window * columns) for rows, columns in ((1, 1), (3, 2), (1, 5))]
    grid = torch.from_numpy(lay_out(sizes, window))
    position, kind, rolled, seen = 0, [], [], []
    masks = windows.mask_of_each_kind(window, shift)
    for height, width in sizes:
        tokens = torch.arange(position, position + height * width).view(1, -1, window**2, 1)
        image = windows.merge(tokens, window, height, width)
        shifted = windows.partition(torch.roll(image, (-shift, -shift), (1, 2)), window)
        rolled.append(shifted.flatten())
        expected = windows.shift_mask(height, width, window, shift)
        kind += [next(k for k in range(4) if torch.equal(masks[k], mask)) for mask in expected]
        padded = torch.nn.functional.pad(image[..., 0], (1, 1, 1, 1), value=-1)[0]
        around = padded.unfold(0, window + 2, window).unfold(1, window + 2, window)
        seen.append(around.reshape(-1, (window + 2) ** 2))
        position += height * width
    assert mask_kinds(grid).tolist() == kind
    there, back = (locate(grid, window, roll=roll).view(-1) for roll in (shift, -shift))
    assert there.tolist() == torch.cat(rolled).tolist()
    assert there[back.long()].tolist() == list(range(len(there)))
    assert locate(grid, window, border=1).tolist() == torch.cat(seen).tolist()
    shifted = [[back[token].item() if token >= 0 else -1 for token in row] for row in torch.cat(seen).tolist()]
    assert locate(grid, window, border=1, roll=-shift).tolist() == shifted


def test_pixels_go_where_they_came_from():
    """The rows of pixels are a permutation, of the image's own pixels, and two windows side by side interleave."""
    grid = torch.from_numpy(lay_out([(2, 4), (2, 2)], 2))
    assert pixel_rows(grid, 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]
    fine = torch.from_numpy(lay_out(SIZES, 8))
    assert sorted(pixel_rows(fine, 8, 3).tolist()) == list(range(len(fine) * 64 * 3))


def test_borders_are_repeated_where_asked():
    """With ``clamp`` a window of one pixel a side sees its own pixel beyond the image, and its neighbour within."""
    grid = torch.from_numpy(lay_out([(1, 2)], 1))
    assert locate(grid, 1, border=1, clamp=True).tolist() == [[0, 0, 1] * 3, [0, 1, 1] * 3]
    assert locate(grid, 1, border=1).tolist() == [
        [-1, -1, -1, -1, 0, 1, -1, -1, -1],
        [-1, -1, -1, 0, 1, -1, -1, -1, -1],
    ]


@pytest.mark.parametrize("size", [(8, 9), (0, 8)])
def test_sizes_off_the_grid_are_refused(size):
    """As everywhere, by what has to be done about it."""
    with pytest.raises(ValueError, match="pad the image first"):
        lay_out([(8, 8), size], 8)


@pytest.mark.slow
@pytest.mark.parametrize("capture_sizes", [(), (4, 64)])
@pytest.mark.parametrize("head", ["lightweight_x4", "jpeg"])
def test_tiles_come_back_as_from_the_upscaler(head, capture_sizes, monkeypatch):
    """In float32, whether filled up or not, in one pack or several, 8 and 16 bits together, in their order."""
    network = tiny_network(head)
    window, channels = network.config.window_size, network.config.num_channels
    tiles = [
        random_tile(window * rows, window * columns, channels, dtype)
        for rows, columns, dtype in ((3, 2, np.uint8), (1, 1, np.uint16), (1, 3, np.uint8))
    ]
    expected = Upscaler(network, device="cpu").forward(tiles)
    for pixels in (runner.PACK_PIXELS, window**2):
        monkeypatch.setattr(runner, "PACK_PIXELS", pixels)
        compute = GpuRunner(network, torch.float32, capture_sizes=capture_sizes)
        for _ in range(2):  # what was left in the buffers does not matter
            for found, right in zip(compute.launch(tiles).results(), expected, strict=True):
                assert (found.dtype, found.shape) == (right.dtype, right.shape)
                np.testing.assert_allclose(found, right, atol=1e-5)
            compute.launch([random_tile(window, window, channels)])


def check_pending(upscaler):
    """Batches that are launched before the first is received are what each is alone, whichever is received first."""
    batches = [[random_tile(16, 8)], [random_tile(8, 8), random_tile(24, 32)], [], [random_tile(40, 16)]]
    alone = [upscaler.forward(batch) for batch in batches]
    launched = [upscaler.launch(batch) for batch in batches]
    for batch, expected in reversed(list(zip(launched, alone, strict=True))):
        for found, right in zip(batch.results(), expected, strict=True):
            np.testing.assert_array_equal(found, right)
        assert batch.fraction_done() == 1


@pytest.mark.slow
def test_batches_under_way_do_not_touch_each_other():
    """As a GPU goes about it, on the CPU."""
    upscaler = Upscaler(tiny_network(), device="cpu")
    assert not upscaler.runs_ahead
    upscaler._on_gpu = GpuRunner(upscaler.network, torch.float32, capture_sizes=(4,))
    assert upscaler.runs_ahead
    check_pending(upscaler)
    with pytest.raises(ValueError, match=r"Expected \(H, W, 3\)"):
        upscaler.launch([random_tile(8, 8, channels=1)])


class Event:
    """Stands for a pack's arrival."""

    def __init__(self):
        self.answer = False

    def query(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def synchronize(self):
        self.query()


def pending(events, dtype=np.float32, finite=None):
    """A batch of as many packs, each of one value: its place in the batch."""
    kind = np.dtype(dtype)
    return PendingBatch(
        [
            ([place], PendingPack([(1, 1, 1)], [kind], {kind: torch.full((1,), float(place))}, [1], finite, event, CPU))
            for place, event in enumerate(events)
        ]
    )


def test_a_batch_says_how_much_of_it_has_arrived():
    """Pack by pack; if the device is lost there is nothing to wait for, and ``results`` raises the error."""
    events = [Event(), Event()]
    batch = pending(events)
    assert batch.fraction_done() == 0
    events[0].answer = True
    assert batch.fraction_done() == 0.5
    events[1].answer = torch.AcceleratorError("an illegal memory access was encountered")
    assert batch.fraction_done() == 1
    with pytest.raises(torch.AcceleratorError):
        batch.results()
    events[1].answer = True
    assert [values.item() for values in batch.results()] == [0, 1]


def test_a_device_rounds_as_the_host_does():
    """Half to even, clamped, in 8 and 16 bits; the values are those of the host bit by bit."""
    values = np.random.default_rng(0).normal(0.5, 0.5, 10_000).astype(np.float32)
    values[:6] = (0.5 / 255, 1.5 / 255, 2.5 / 255, -1e30, 1e30, 1.0)
    for dtype in (np.uint8, np.uint16):
        found = runner.round_to(torch.from_numpy(values.copy()), np.dtype(dtype)).numpy().view(dtype)
        np.testing.assert_array_equal(found, quantise(values, dtype))
    assert runner.round_to(torch.from_numpy(values), np.dtype(np.float32)).numpy() is not None


@pytest.mark.slow
@pytest.mark.parametrize("head", ["lightweight_x4", "jpeg"])
def test_integers_come_back_where_they_are_wanted(head, monkeypatch):
    """8 bits, 16 bits and float32 in one batch and several packs; what is downloaded for 8 bits is a quarter."""
    network = tiny_network(head)
    window, channels = network.config.window_size, network.config.num_channels
    tiles = [random_tile(window * rows, window * 2, channels) for rows in (3, 1, 2, 4)]
    dtypes = [np.uint8, None, np.uint16, np.uint8]
    compute = GpuRunner(network, torch.float32, capture_sizes=())
    expected = compute.launch(tiles).results()
    for pixels in (runner.PACK_PIXELS, 3 * window**2):
        monkeypatch.setattr(runner, "PACK_PIXELS", pixels)
        batch = compute.launch(tiles, dtypes)
        for found, values, dtype in zip(batch.results(), expected, dtypes, strict=True):
            right = values if dtype is None else quantise(values, dtype)
            assert found.dtype == right.dtype
            np.testing.assert_allclose(found, right, atol=1 if dtype else 1e-5)
    bytes_down = [
        sum(part.nbytes for _, pack in batch._packs for part in pack.parts.values())
        for batch in (compute.launch(tiles[:1]), compute.launch(tiles[:1], [np.uint8]))
    ]
    assert bytes_down[0] == 4 * bytes_down[1]
    with pytest.raises(ValueError, match="float32, uint8 or uint16, not int32"):
        compute.launch(tiles[:1], [np.int32])


@pytest.mark.slow
def test_values_that_are_not_finite_are_refused_before_they_are_rounded():
    """A rounded tile with such a value raises; a tile that comes as float32 is checked where it is stitched."""
    network = tiny_network()
    network.upsample.conv.bias.data[0] = float("nan")
    compute, tile = GpuRunner(network, torch.float32, capture_sizes=()), random_tile(8, 8)
    assert np.isnan(compute.launch([tile]).results()[0]).any()
    with pytest.raises(ValueError, match="not finite"):
        compute.launch([tile, tile], [None, np.uint8]).results()
    assert pending([None], np.uint8, torch.tensor([True])).results()[0].item() == 0


@pytest.mark.slow
def test_images_on_a_device_are_what_they_are_on_a_processor():
    """``Upscaler`` rounds there: the same images, their own memory, for sizes off the window grid and 16 bits."""
    upscaler = Upscaler(tiny_network(), device="cpu")
    images = [random_tile(9, 13), random_tile(8, 16, dtype=np.uint16)]
    expected = upscaler(images)
    upscaler._on_gpu = GpuRunner(upscaler.network, torch.float32, capture_sizes=())
    for found, right in zip(upscaler(images), expected, strict=True):
        assert (found.dtype, found.shape, found.flags.c_contiguous) == (right.dtype, right.shape, True)
        np.testing.assert_allclose(found.astype(int), right, atol=1 if right.dtype == np.uint8 else 8)


@pytest.mark.slow
def test_one_thread_launches_everything_on_a_device(monkeypatch):
    """Whoever calls: a library that plans by thread has planned at the warm-up."""
    threads = []
    compute = GpuRunner(tiny_network(), torch.float32, capture_sizes=())
    monkeypatch.setattr(compute, "_graphs", Watched(compute._graphs, threads))
    callers = [threading.Thread(target=compute.launch, args=([random_tile(8, 8)],)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    compute.launch([random_tile(8, 8)])
    assert len(threads) == 4
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


class Watched:
    """Notes the threads that compute."""

    def __init__(self, graphs, threads):
        self._graphs, self._threads = graphs, threads
        self.fitting = graphs.fitting

    def __call__(self, pixels, grid):
        self._threads.append(threading.get_ident())
        return self._graphs(pixels, grid)


def test_a_device_thread_keeps_nothing_of_a_call():
    """An exception and the objects of its frames are freed when the caller drops it, without the garbage collector."""
    thread, held = DeviceThread("test"), []

    class Memory:
        pass

    def fail():
        memory = Memory()
        held.append(weakref.ref(memory))
        raise ValueError("as it was told")

    gc.disable()
    try:
        with pytest.raises(ValueError, match="as it was told"):
            thread.run(fail)
        thread.run(int)
        assert held[0]() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_other_pixels_are_refused():
    """Floats have no range of their own, and a tile off the grid no windows."""
    compute = GpuRunner(tiny_network(), torch.float32, capture_sizes=())
    with pytest.raises(ValueError, match="uint8 or uint16"):
        compute.launch([np.zeros((8, 8, 3), np.float32)])
    with pytest.raises(ValueError, match="pad the image first"):
        compute.launch([np.zeros((8, 12, 3), np.uint8)])


@pytest.mark.slow
def test_precision_is_given_back():
    """What everybody's convolutions and products do is as before, also after an error."""

    def settings():
        return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision

    before = settings()
    for precisions in (("ieee", "ieee"), ("tf32", "ieee"), ("tf32", "tf32")):
        with float32_precision(*precisions):
            assert settings() == precisions
        assert settings() == before
    with pytest.raises(ValueError, match="uint8 or uint16"):
        GpuRunner(tiny_network(), torch.float32, capture_sizes=()).launch([np.zeros((8, 8, 3), np.float32)])
    assert settings() == before


class Recorder:
    """Stands for a device that records; a number of windows may be too many for it."""

    def __init__(self, most=100):
        self.most, self.recorded, self.replayed = most, [], 0

    def __call__(self, compute):
        values = compute()
        if len(values) > self.most:
            raise torch.OutOfMemoryError("too much")
        self.recorded.append(len(values))

        def replay():
            self.replayed += 1
            return compute()

        return replay


@pytest.mark.slow
def test_packs_are_filled_up_to_what_was_recorded():
    """The next number of windows serves; where there is none, or no memory for it, the pack runs as it is."""
    recorder = Recorder(most=8)

    def network(pixels, _grid):
        return pixels * 2

    graphs = Graphs(network, channels=1, window=1, device=CPU, capture=recorder, sizes=(2, 8, 16))
    assert recorder.recorded == [8, 2]
    assert [graphs.fitting(count) for count in (1, 2, 3, 8, 9)] == [2, 2, 8, 8, 16]
    assert [graphs.fitting(count) for count in (2049, 2304, 8000)] == [2304, 2304, 8192], "a few numbers, for any pack"
    for count, replays in ((8, 1), (9, 1), (2, 2)):
        pixels = torch.arange(float(count))[:, None]
        assert torch.equal(graphs(pixels, torch.from_numpy(lay_out([], 1, count))), pixels * 2)
        assert recorder.replayed == replays


def test_recordings_leave_memory_to_others():
    """A sixteenth of what is free is enough for those that are made."""
    assert sizes_that_fit((16, 32, 64), window_bytes=100, free_bytes=16 * 3200) == (16, 32)
    assert sizes_that_fit((16,), window_bytes=100, free_bytes=0) == ()


@pytest.mark.slow
def test_nothing_recorded_computes():
    """A machine without memory to spare serves all the same."""
    graphs = Graphs(lambda pixels, _: pixels, channels=1, window=1, device=CPU, capture=eager, sizes=())
    assert graphs.fitting(5) == CAPTURE_SIZES[0]


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


def draw_attention(channels, heads, window, dtype, device, *, largest=100):
    """Queries, keys and values of a window of each kind, their kinds and tables; logits as large as they get."""
    torch.manual_seed(0)
    width, length = -(-channels // 8) * 8, window**2
    qkv = torch.randn(4 * length, 3, width, device=device)
    qkv[..., channels:] = 0
    masks = windows.mask_of_each_kind(window, window // 2)[:, None]
    bias = (16 * torch.rand(1, heads, length, length) + masks).to(device)
    scale = torch.linspace(1, largest, heads, device=device)
    kinds = torch.tensor([0, 3, 1, 2], dtype=torch.int32, device=device)
    return qkv.flatten(1).to(dtype), kinds, AttentionTables(bias, scale, channels)


def check_kernels(kernels, dtype, form, device, tolerance=1e-5):
    """Each kernel against PyTorch's operators; float32 within a tolerance."""
    channels, heads, window = form
    for largest in (40, 100):
        qkv, kinds, tables = draw_attention(channels, heads, window, dtype, device, largest=largest)
        found, exact = kernels.attend(qkv, kinds, tables), operators.attend(qkv.double(), kinds, tables)
        within = tolerance if dtype is torch.float32 else 1e-2
        assert found.dtype is dtype
        torch.testing.assert_close(found.double(), exact, rtol=within, atol=within)
        assert not found[:, channels:].any()
    branch = found[:100]  # of which every kernel needs several programs, the last one in part
    stream = torch.randn(branch.shape, device=device)
    norm = NormWeights(torch.randn(channels, device=device), torch.randn(channels, device=device), 1e-5)
    for rows in (None, torch.randperm(len(stream), device=device).int()):
        for here, there in zip(
            kernels.add_norm(stream, branch, norm, rows), operators.add_norm(stream, branch, norm, rows), strict=True
        ):
            assert here.dtype is there.dtype
            torch.testing.assert_close(here, there)
    rows = torch.randint(-1, len(qkv), (100,), dtype=torch.int32, device=device)
    rows[7] = -1
    for tokens in (qkv, qkv[:, :3].contiguous()):
        assert torch.equal(kernels.gather(tokens, rows), operators.gather(tokens, rows))


FORMS = [(60, 6, 8), (180, 6, 8), (180, 6, 7), (24, 2, 8), (20, 2, 7)]
"""Channels, heads and window: heads of 10, 30 and 12 channels, windows of 64 and 49 tokens, widths that are filled."""


def check_block(kernels, dtype, form, device, logit_scale=None):
    """A block, and its end, by one kernel, in its order and from another, against PyTorch's operators in float64."""
    channels, heads, window = form
    fields = {"embed_dim": channels, "num_heads": [heads], "depths": [2], "window_size": window}
    network = tiny_network(**fields).to(device)
    if logit_scale is not None:
        network.swin2sr.encoder.stages[0].layers[1].attention.self.logit_scale.fill_(logit_scale)
    block = WindowNetwork(network, dtype).body.stages[0].blocks[1]
    exact = WindowNetwork(network.double(), torch.float64, torch.float64).body.stages[0].blocks[1]
    stream = torch.randn(4 * window**2, -(-channels // 8) * 8, device=device)
    stream[:, channels:] = 0
    kinds = torch.tensor([0, 3, 1, 2], dtype=torch.int32, device=device)
    tolerance = (1e-4 if logit_scale is None else 1e-3) if dtype is torch.float32 else 5e-2
    for rows in (None, torch.randperm(len(stream), device=device).int()):
        if channels <= kernels.WIDEST:
            found = kernels.run_block(stream, kinds, block, rows)
            start = stream.double() if rows is None else stream.double()[rows]
            expected, _ = compute_block(PLAIN, start, start, kinds, exact)
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        finishing = Operators(PLAIN.attend, PLAIN.add_norm, kernels.finish)
        finished, tokens = compute_block(finishing, stream, stream.to(dtype), kinds, block, rows=rows)
        expected, _ = compute_block(PLAIN, stream.double(), stream.double(), kinds, exact, rows=rows)
        torch.testing.assert_close(finished.double(), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(tokens, finished.to(dtype))


def check_network(kernels, device):
    """A network by whole blocks, and by the other kernels, in both orders of tokens, against PyTorch's operators."""
    network = tiny_network(embed_dim=20, num_heads=(2, 2), depths=(2, 1)).to(device)
    plain = WindowNetwork(network, torch.float32)
    [fused] = kernels.kernels_for(plain.body.stages[0].blocks[0])
    assert fused.run_block is not None
    unrolled = replace(fused, finish=None, run_block=partial(kernels.run_block, unroll=True))
    grid = torch.from_numpy(lay_out([(16, 8), (8, 8)], 8)).to(device)
    pixels = torch.rand(len(grid) * 64, 3, device=device)
    with torch.inference_mode(), float32_precision("ieee", "ieee"):
        expected = plain(pixels, grid)
        for form in (fused, replace(fused, run_block=None), replace(fused, run_block=None, finish=None), unrolled):
            found = WindowNetwork(network, torch.float32, operators=form)(pixels, grid)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def check_which(kernels):
    """Whole blocks are for narrow networks, with an exact GELU; the unrolled one is not for float32."""
    for fields, dtype, expected in (
        ({"embed_dim": 128}, torch.bfloat16, [(True, False)]),
        ({"embed_dim": 128}, torch.float32, [(False, False)]),
        ({"hidden_act": "gelu_new"}, torch.bfloat16, [(False, False)]),
        ({}, torch.float32, [(True, True)]),
        ({}, torch.bfloat16, [(True, True), (False, True)]),
    ):
        block = WindowNetwork(tiny_network(**fields), dtype).body.stages[0].blocks[0]
        forms = kernels.kernels_for(block)
        assert [(form.finish is not None, form.run_block is not None) for form in forms] == expected


def check_tables(tables, device):
    """Index kernels against PyTorch's functions: every side, border and roll that a network asks for."""
    for window in (8, 7):
        grid = torch.from_numpy(lay_out([(window * 3, window * 2), (window, window)], window, 9)).to(device)
        assert torch.equal(tables.mask_kinds(grid), mask_kinds(grid))
        for scale in (1, 2, 4):
            assert torch.equal(tables.pixel_rows(grid, window, scale), pixel_rows(grid, window, scale))
            for border, roll, clamp in ((0, 0, False), (0, 3, False), (0, -4, False), (1, -3, False), (3, 0, True)):
                places = {"border": border, "roll": roll, "clamp": clamp}
                side = window * scale
                assert torch.equal(tables.locate(grid, side, **places), locate(grid, side, **places)), places


INTERPRETED = """
import sys
import torch
from model.gpu import kernels
from model.gpu.index_kernels import INDEX
from tests.test_gpu import FORMS, check_block, check_kernels, check_network, check_tables, check_which
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


@needs_cuda
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("precision", "bound"), [("exact", 1e-4), ("high", 1e-2), ("fast", 4e-2)])
def test_the_device_computes_the_network(head, precision, bound):
    """Recorded and not, in company and alone, against the CPU's network in float64; and twice the same."""
    network = tiny_network(head)
    window, channels = network.config.window_size, network.config.num_channels
    tiles = [random_tile(window * rows, window * rows, channels) for rows in (1, 3, 50)]
    network = network.to("cuda").double()  # where its convolutions need no tens of gigabytes
    with torch.inference_mode():
        exact = Inference(network).reconstruct([to_tensor(tile, torch.float64).to("cuda") for tile in tiles])
    upscaler = Upscaler(tiny_network(head), device="cuda", precision=precision)
    for values in (upscaler.forward(tiles), [upscaler.forward([tile])[0] for tile in tiles], upscaler.forward(tiles)):
        for found, right in zip(values, exact, strict=True):
            expected = right.image.permute(1, 2, 0).cpu().numpy()
            assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected - expected.mean())


@needs_cuda
def test_batches_under_way_on_the_device_do_not_touch_each_other():
    """In recorded passes, whose buffers are shared, and others."""
    check_pending(Upscaler(tiny_network(), device="cuda"))


@needs_cuda
def test_running_out_of_device_memory_is_survived():
    """The error has its class, and the next batch is computed as if nothing had been."""
    upscaler, tile = Upscaler(tiny_network(), device="cuda"), random_tile(64, 64)
    [before] = upscaler.forward([tile])
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            upscaler.forward([random_tile(4096, 4096)])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    [after] = upscaler.forward([tile])
    np.testing.assert_array_equal(before, after)
