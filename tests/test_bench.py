"""The bench: that it compares what it says it compares. How fast anything is, no test asks."""

import asyncio
import itertools
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.bench import load, peers, service
from app.cli.commands import build
from model.bench import baselines, blocks, gpu, memory, roofline, sections, timing, workloads
from model.bench.__main__ import main
from model.bench.profile import count_arithmetic, profile_forward
from model.bench.report import Row, tabulate
from model.bench.sections import Bench
from model.config import Swin2SRConfig
from model.inference.body import compute_block
from model.inference.operators import PLAIN
from model.kernels import library
from model.network import Swin2SR
from model.tiling import plan
from model.upscaler import Upscaler
from tests.networks import tiny_network

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def threads():
    """As many as before are there afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bench(monkeypatch):
    """A bench with few runs and a tiny network for every variant."""
    monkeypatch.setattr(sections, "make_network", lambda *_: tiny_network(head="lightweight_x4", upscale=2))
    monkeypatch.setattr(timing, "SHORTEST", 1e-6)
    monkeypatch.setitem(roofline.GEMM_SIDE, "cpu", 64)
    return Bench(CPU, threads=1, runs=1)


@pytest.mark.slow
def test_every_multiplication_is_counted_once():
    """The count of a lightweight and a classical network is what their layers' sizes say."""
    body = 36 * (8 * 180**2 + 2 * 64 * 180) + 6 * (9 + 1) * 180**2 + 180**2 + 9 * 180**2 + 27 * 180
    head = 9 * 180 * 64 + 9 * 64 * 256 + 4 * 9 * 64 * 3
    assert roofline.multiply_adds_per_pixel(Swin2SR(Swin2SRConfig()).eval()) == body + head
    assert roofline.multiply_adds_per_pixel(workloads.make_network("lightweight-x2")) == 1_063_620


def test_sides_take_turns(monkeypatch):
    """After a warm-up, A and B are measured alternately, both as often as requested."""
    monkeypatch.setattr(timing, "SHORTEST", 1e-6)
    calls = []
    timings = timing.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 5, CPU)
    assert [name for name, _ in itertools.groupby(calls)] == ["a", "b"] * 6
    assert [len(each.runs) for each in timings.values()] == [5, 5]
    assert timing.Timing((3.0, 1.0, 2.0)).median == 2.0
    assert timing.Timing((3.0, 1.0, 2.0)).spread == 3.0


def test_short_work_is_repeated():
    """What is over at once is measured over many calls, and the time is that of one."""
    calls = []
    timings = timing.interleave({"a": lambda: calls.append(1)}, 1, CPU)
    assert len(calls) > 1000
    assert timings["a"].median < 1e-3


@pytest.mark.parametrize("count", [2, 3, 16])
def test_mixed_sizes_differ(count):
    """No two images are of one size and none is square, from the smallest to the largest side."""
    sizes = workloads.mixed_sizes(count, 32, 200)
    assert len(set(sizes)) == count
    assert all(height != width for height, width in sizes)
    assert {min(map(min, sizes)), max(map(max, sizes))} == {32, 200}


def test_padding_to_the_largest_makes_sizes_equal_and_keeps_pixels():
    """Both the greatest height and the greatest width are reached, whichever image has them."""
    images = [workloads.draw_pixels(8, 24), workloads.draw_pixels(16, 8)]
    padded = workloads.pad_to_largest(images)
    assert [image.shape for image in padded] == [(16, 24, 3)] * 2
    for image, larger in zip(images, padded, strict=True):
        np.testing.assert_array_equal(larger[: image.shape[0], : image.shape[1]], image)


def test_a_large_image_is_tiled_as_the_service_does(monkeypatch):
    """It takes one forward pass a tile, and a small image is what the upscaler makes of it."""
    upscaler = Upscaler(tiny_network(upscale=2), device="cpu")
    image = workloads.draw_pixels(30, 60)
    np.testing.assert_array_equal(workloads.upscale_tiled(upscaler, image), upscaler([image])[0])
    monkeypatch.setattr(workloads, "TILE_SIZE", 32)
    monkeypatch.setattr(workloads, "TILE_OVERLAP", 16)
    shapes = []
    forward = upscaler.forward
    monkeypatch.setattr(upscaler, "forward", lambda tiles: shapes.extend(t.shape[:2] for t in tiles) or forward(tiles))
    assert workloads.upscale_tiled(upscaler, image).shape == (60, 120, 3)
    assert shapes == [(tile.height, tile.width) for tile in plan(32, 64, 32, 16, 8)]


def test_the_services_tiles_are_the_defaults():
    """What is measured here is what the settings say."""
    from app.settings import Settings

    fields = Settings.model_fields
    assert fields["tile_size"].default == workloads.TILE_SIZE
    assert fields["tile_overlap"].default == workloads.TILE_OVERLAP


@pytest.mark.slow
def test_peak_memory_is_the_childs_own():
    """What this process has touched does not count, though getrusage would report it."""
    ballast = np.ones(2**30, np.uint8)
    peak = memory.measure_peak("here", 16, None, 1)
    assert 50 * 2**20 < peak < ballast.nbytes < memory.read_peak()


@pytest.mark.slow
def test_what_does_not_fit_is_refused_before_the_machine_suffers():
    """An image of 120 gigabytes ends in a sentence."""
    with pytest.raises(memory.NoMemoryError):
        memory.measure_peak("here", 200_000, None, 1)


@pytest.mark.slow
def test_other_runtimes_compute_the_same(bench, monkeypatch):
    """The forward section says how far apart the values are, and has a ratio for each runtime and for the roofline."""
    pytest.importorskip("transformers")
    monkeypatch.setattr(sections, "BASELINES", {"Transformers": sections.BASELINES["Transformers"]})
    values, ratio, least = sections.compare_forward(bench, "lightweight-x2", 16)
    assert (values.against, ratio.against, least.against) == ("Transformers", "Transformers", "arithmetic floor")
    assert values.figure < 1e-5
    assert ratio.figure > 0
    assert least.figure > 0


def test_missing_packages_are_reported(bench, monkeypatch):
    """Without Transformers, whose network the others convert, every row is there and has no figure."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    rows = list(sections.compare_forward(bench, "lightweight-x2", 16))
    assert [(row.against, row.figure, row.there) for row in rows[:-1]] == [
        (name, None, "not installed") for name in sections.BASELINES
    ]
    assert tabulate(rows[0]).split(" | ")[2] == "-"


def test_each_runtime_is_missed_alone(bench, monkeypatch):
    """One that is not installed leaves the others their rows."""
    pytest.importorskip("transformers")
    baselines = {name: sections.BASELINES[name] for name in ("Transformers", "OpenVINO")}
    monkeypatch.setattr(sections, "BASELINES", baselines)
    monkeypatch.setitem(sys.modules, "openvino", None)
    rows = {row.against: row for row in sections.compare_forward(bench, "lightweight-x2", 16)}
    assert rows["Transformers"].figure > 0
    assert rows["OpenVINO"].there == "not installed"


@pytest.mark.usefixtures("bench")
def test_a_table_and_a_file(monkeypatch, tmp_path, capsys):
    """The program prints the sections that were asked for and writes the same as JSON."""
    monkeypatch.setattr(sections, "MIXED", (3, 8, 24))
    monkeypatch.setattr(sections, "GROWTH", (8, 16))
    monkeypatch.setattr(sections, "UNIT", 8)
    file = tmp_path / "results.json"
    assert main(["--only", "growth", "mixed", "--runs", "1", "--threads", "1", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["machine"]["threads"] == 1
    assert [row["against"] for row in content["rows"]] == ["one by one", "padding all to the largest", "8x8"]
    printed = capsys.readouterr().out
    assert all(tabulate(Row(**row)) in printed for row in content["rows"])


def test_a_missing_gpu_is_reported_in_one_line(capsys):
    """With what it needs."""
    assert main(["--device", "cuda:99"]) == 1
    assert capsys.readouterr().err.startswith("python -m model.bench: Device cuda:99 does not exist")


@pytest.mark.usefixtures("bench")
def test_a_failed_section_lacks_only_its_own_rows(monkeypatch, tmp_path, capsys):
    """The others are measured, printed and written; the program says by its status that one is missing."""

    def fail(_bench):
        yield Row("before", "itself", 1.0, "times as fast")
        raise RuntimeError("CUDA error: misaligned address\nand advice")

    monkeypatch.setattr(sections, "GROWTH", (8, 16))
    monkeypatch.setattr(sections, "UNIT", 8)
    monkeypatch.setitem(sections.SECTIONS, "mixed", fail)
    file = tmp_path / "results.json"
    assert main(["--only", "mixed", "growth", "--runs", "1", "--threads", "1", "--json", str(file)]) == 1
    rows = json.loads(file.read_text())["rows"]
    assert [(row["work"], row["meaning"]) for row in rows[:2]] == [("before", "times as fast"), ("mixed", "failed")]
    assert len(rows) == 3
    assert "CUDA error: misaligned address |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="mixed failed"):
        service.run(Bench(CPU, threads=1, runs=1), ["mixed"])


def test_a_profile_adds_up(bench):
    """Shares of families add up to one, and on a CPU the kernel is seen."""
    shares = profile_forward(bench.upscaler(), workloads.draw_pixels(16, 16), 1)
    assert sum(shares.values()) == pytest.approx(1)
    families = [f"the kernel's {part}" for part in ("blocks", "convolutions", "embedding and head")]
    assert all(shares[family] > 0 for family in (families if library.load_kernel() else ["convolution"]))


def test_precisions_are_compared(bench, monkeypatch):
    """Where the hardware has them there is a ratio and an error; where not, that is said."""
    monkeypatch.setattr(sections, "FORWARD", (("lightweight-x2", 8), ("lightweight-x2", 16)))
    rows = list(sections.compare_precisions(bench))
    assert {row.against for row in rows} == {"exact"}
    if library.kernel_level() == "amx":
        assert [row.meaning for row in rows] == 2 * ["largest difference", "times as fast"]
        assert 0 < rows[0].figure < rows[2].figure < 1
        assert rows[1].figure > 0
    else:
        assert [row.there for row in rows] == 2 * ["not on this hardware"]


def test_many_threads_are_compared_with_few(bench):
    """And the process has as many as before afterwards."""
    [row] = sections.compare_threads(bench)
    assert row.figure > 0
    assert row.against == "1 threads"
    assert torch.get_num_threads() == bench.threads


def test_an_unknown_section_is_refused(bench):
    """By name, with those that there are."""
    with pytest.raises(ValueError, match=r"no section 'fast'.*service"):
        service.run(bench, ["fast"])


def test_the_closed_loop_keeps_its_callers_busy():
    """There are never more requests at once than callers, mostly as many, and the window holds all the work once."""
    seen, most = 0, []

    async def send(_body):
        nonlocal seen
        seen += 1
        most.append(seen)
        await asyncio.sleep(0)
        seen -= 1

    window = asyncio.run(load.closed_loop(send, [b"x"] * 12, 4))
    assert max(most) == 4
    assert most.count(4) > 6
    assert len(window.latencies) == 12
    assert window.seconds > 0


def test_the_open_loop_waits_for_no_answer():
    """All requests are sent though none is answered before the last has come; waiting counts as latency."""

    async def go():
        waiting, everybody = 0, asyncio.Event()

        async def send(_body):
            nonlocal waiting
            waiting += 1
            if waiting == 10:
                everybody.set()
            await everybody.wait()

        return await load.open_loop(send, [b"x"] * 10, rate=1000)

    window = asyncio.run(go())
    assert len(window.latencies) == 10
    assert max(window.latencies) > min(window.latencies)


@pytest.mark.parametrize(
    ("lengths", "taken", "stable"),
    [
        ([1, 1.05, 1.1, 9], 3, True),
        ([5, 1, 1, 1, 9], 4, True),
        ([1, 1.2, 1, 1.2, 1, 1.2, 9], load.MOST_WINDOWS, False),
    ],
)
def test_windows_are_taken_until_three_agree(lengths, taken, stable):
    """Within a tenth; after ``MOST_WINDOWS`` the result is marked as not stable."""
    left = iter(lengths)

    async def measure():
        return load.Window(next(left), (1.0,))

    windows = asyncio.run(load.until_stable(measure))
    assert [window.seconds for window in windows] == lengths[taken - 3 : taken]
    assert load.is_stable(windows) is stable


def test_a_failed_request_fails_the_window():
    """A server that answers quickly with errors does not look fast."""

    async def send(_body):
        raise ConnectionError

    with pytest.raises(ExceptionGroup):
        asyncio.run(load.closed_loop(send, [b"x"], 1))


@pytest.fixture
def card_bench(bench, monkeypatch):
    """The sections for GPUs on a CPU, with little work and nothing compiled."""
    monkeypatch.setitem(gpu.AMOUNTS, "cpu", gpu.Amount((2, 16), (4, 8, 24), ((8, 16), (8, 8)), (16, 8)))
    monkeypatch.setattr(baselines, "compile_network", lambda network: network)
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 2**12)
    return bench


@pytest.mark.slow
def test_the_cards_table_has_its_rows(card_bench, monkeypatch):
    """Every row of the table that a GPU is judged by is there, with a figure, but for the quality without weights."""
    pytest.importorskip("transformers")
    rows = {
        name: [(row.against, row.figure) for row in gpu.CARD_SECTIONS[name](card_bench)]
        for name in ("batch", "packed", "batcher", "quality")
    }
    assert [against for against, _ in rows["batch"]] == [
        "Transformers float32",
        "Transformers bfloat16, torch.compile",
        "floor",
    ]
    assert [against for against, _ in rows["packed"]] == ["Transformers bfloat16, one by one", "floor"]
    assert [against for against, _ in rows["batcher"]] == ["direct loop"]
    assert all(figure > 0 for name in ("batch", "packed", "batcher") for _, figure in rows[name])
    assert rows["quality"] == [("exact", None)]
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "app.batching.batcher", None)
    missing = [*gpu.compare_batch(card_bench), *gpu.compare_batcher(card_bench)]
    assert [row.figure is None for row in missing] == [True, True, False, True]


@pytest.mark.slow
def test_answers_come_before_speed(card_bench, monkeypatch, capsys, tmp_path):
    """Values are compared with float64, and wrong ones end the program before anything is timed."""
    errors = [row.figure for row in gpu.check_values(card_bench)]
    assert len(errors) == 12
    for variant, found in (("lightweight-x2", errors[:6]), ("classical-x2", errors[6:])):
        used = [card_bench.upscaler(variant, precision).precision for precision in ("exact", "high", "fast")]
        for precision, error in zip(np.repeat(used, 2), found, strict=True):
            least, most = {"exact": (0, 1e-5), "high": (1e-7, 1e-3), "fast": (1e-5, 2e-2)}[precision]
            assert least < error < most
    monkeypatch.setitem(gpu.MOST_ERROR, "exact", 0.0)
    assert main(["--only", "values", "batch", "--threads", "1", "--json", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "off by" in shown.err
    assert [row["against"] for row in json.loads((tmp_path / "cpu.json").read_text())["rows"]] == ["float64"]
    assert "Transformers" not in shown.out


def test_a_value_that_is_no_number_is_wrong(card_bench, monkeypatch):
    """NaN is larger than no bound, and is refused all the same."""
    monkeypatch.setattr(Upscaler, "forward", lambda _self, tiles: [np.full((32, 32, 3), np.nan) for _ in tiles])
    monkeypatch.setattr(gpu, "_in_float64", lambda _network, tiles: [workloads.draw_pixels(32, 32) for _ in tiles])
    with pytest.raises(gpu.WrongAnswerError, match="nan"):
        list(gpu.check_values(card_bench))


def test_quality_is_measured_where_there_are_weights_and_images(card_bench, tmp_path):
    """The difference between the dtypes, on a folder of photos; there is one, and it is small."""
    from PIL import Image

    Image.fromarray(workloads.draw_pixels(32, 32)).save(tmp_path / "photo.png")
    [row] = gpu.compare_quality(replace(card_bench, checkpoint=tmp_path, testset=tmp_path))
    assert 0 < abs(row.figure) < 0.05


@pytest.mark.slow
def test_families_account_for_arithmetic_and_traffic(card_bench, monkeypatch):
    """The counts of the families add up to the whole, and their shares of the time to one for each network.

    PyTorch's operators compute, as on a GPU: the compiled kernel for CPUs is one family for several of them.
    """
    monkeypatch.setattr(library, "load_kernel", lambda: None)
    network = card_bench.network("lightweight-x2")
    counted = roofline.multiply_adds_per_pixel(network)
    assert sum(count_arithmetic(network, 64).values()) == 2 * 64 * counted
    assert {"linear", "convolution", "attention"} == set(count_arithmetic(network, 64))
    rows = list(gpu.profile_card(card_bench))
    for variant in ("classical-x2", "lightweight-x2"):
        shares = [row.figure for row in rows if row.work == f"{variant}, time in"]
        assert sum(shares) == pytest.approx(1)
    assert any("% of the measured limit" in row.there for row in rows)


def test_a_compiled_block_is_compared_with_the_one_that_is_used(card_bench, monkeypatch):
    """For both networks; where it cannot be compiled the row says why."""
    monkeypatch.setitem(blocks.WINDOWS, "cpu", 4)
    monkeypatch.setattr(blocks, "compile_block", lambda: compute_block)
    rows = list(gpu.CARD_SECTIONS["block"](card_bench))
    assert [(row.work, row.against) for row in rows] == [
        ("classical-x2, a block of 4 windows", "torch.compile"),
        ("lightweight-x2, a block of 4 windows", "torch.compile"),
    ]
    assert all(row.figure > 0 for row in rows)

    def fail(*_arguments):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(blocks, "compile_block", lambda: fail)
    rows = list(gpu.CARD_SECTIONS["block"](card_bench))
    assert [(row.figure, row.there) for row in rows] == [(None, "failed: no C++ compiler")] * 2
    kernels = replace(PLAIN, attend=fail)
    assert blocks.compiled_forms(kernels) == {"torch.compile": PLAIN, "torch.compile around the kernels": kernels}


@pytest.mark.usefixtures("card_bench")
def test_a_folder_takes_the_results(tmp_path):
    """Under the device's name."""
    assert main(["--only", "quality", "--threads", "1", "--json", str(tmp_path)]) == 0
    assert [row["figure"] for row in json.loads((tmp_path / "cpu.json").read_text())["rows"]] == [None]


def test_the_batcher_imports_no_other_package():
    """``app.batching.batcher`` is driven where little is installed: it imports rooms of this project alone."""
    banned = "fastapi starlette pydantic pydantic_settings uvicorn httpx prometheus_client imagecodecs PIL torch"
    code = f"import sys; sys.modules.update(dict.fromkeys({banned.split()})); import app.batching.batcher"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.long
def test_the_service_is_measured(bench, monkeypatch):
    """Against a real server: rows of the batcher, a whole request, two of the closed loop and one of the open loop."""
    monkeypatch.setattr(service, "MIXED", (8, 8, 24))
    monkeypatch.setattr(service, "REQUEST_SIDE", 16)
    monkeypatch.setattr(service, "WINDOW_SECONDS", 0.01)
    rows = list(service.measure_service(bench))
    assert [row.work.split(",")[0] for row in rows] == [
        "batcher",
        "request of 16x16",
        "service",
        "service",
        "service",
    ]
    assert all(row.figure > 0 for row in rows)


def test_the_command_line_has_a_bench():
    """With the options of ``python -m model.bench``."""
    from typer.testing import CliRunner

    text = CliRunner().invoke(build(), ["bench", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    assert all(f"--{name}" in text for name in ("checkpoint", "device", "threads", "runs", "only", "json"))


def test_peers_are_compared_as_ratios():
    """Throughput over throughput, latency over latency; the servers' own figures beside them."""
    windows = {
        "service, auto": [load.Window(2.0, (0.1, 0.2)), load.Window(1.0, (0.1, 0.2))],
        "LitServe, openvino": [load.Window(6.0, (0.4, 1.0)), load.Window(6.0, (0.4, 1.0))],
    }
    *_, own, other = peers.tabulate(windows, count=3, own=1)
    assert own == "| service, auto | 2.00 | 200 ms | 200 ms | 1.00 / 1.00 / 1.00 |"
    assert other == "| LitServe, openvino | 0.50 | 1 s | 1 s | 4.00 / 5.00 / 5.00 |"


def test_peers_that_are_missing_are_named(monkeypatch, capsys):
    """With the extra that brings them."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "litserve" else object())
    with pytest.raises(SystemExit):
        peers.main([])
    assert "litserve cannot be imported. Install: pip install 'swin2sr-serve[bench]'" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_peers_answer(capsys):
    """A turn of each server with random weights."""
    peers.main(["--images", "2", "--rounds", "1", "--callers", "1"])
    table = capsys.readouterr().out
    for name in ("service, auto", "LitServe, transformers", "LitServe, openvino"):
        assert f"| {name} | " in table
