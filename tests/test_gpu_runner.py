"""Batches on a GPU: how they are launched, received and rounded, recorded passes, and the thread of the device."""

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

from model.gpu import runner
from model.gpu.graphs import CAPTURE_SIZES, Graphs, eager, sizes_that_fit
from model.gpu.pending import PendingBatch, PendingPack
from model.gpu.runner import GpuRunner
from model.gpu.streams import DeviceThread, float32_precision
from model.inference.cpu import Inference
from model.packing import lay_out
from model.padding import quantise, to_tensor
from model.upscaler import Upscaler
from tests.networks import HEADS, tiny_network

CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")


def random_tile(height, width, channels=3, dtype=np.uint8):
    return np.random.default_rng(height).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype)


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
