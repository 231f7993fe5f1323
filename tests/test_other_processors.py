"""The kernel on other processors, emulated: ARM, and x86 with and without AVX2; and the service on an old x86."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

from model.kernels import library
from tests import test_cpu_kernel
from tests.emulated_kernel import EmulatedKernel, compile_program
from tests.server import ROOT, ServerProcess
from tests.service import noise, pixels_of, png
from tests.test_packaging import arm_wheel

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
]

PROCESSORS = {
    "aarch64": ("aarch64-linux-gnu-gcc", ["qemu-aarch64-static"], 128),
    "aarch64, the wheel": ("aarch64-linux-gnu-gcc", ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"], 128),
    "x86-64 with AVX2": ("gcc", ["qemu-x86_64-static", "-cpu", "Haswell"], 256),
    "x86-64 without AVX": ("gcc", ["qemu-x86_64-static", "-cpu", "Nehalem"], 128),
}
"""A compiler (Debian: gcc-aarch64-linux-gnu), an emulator (qemu-user-static), and the bits of its vectors."""


@pytest.fixture(scope="module", params=PROCESSORS)
def emulated(request, tmp_path_factory):
    """The kernel, compiled for another processor and run by an emulator, instead of the installed one."""
    compiler, emulator, width = PROCESSORS[request.param]
    for program in (compiler, emulator[0]):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    folder = tmp_path_factory.mktemp("emulated")
    wheel = None
    if "wheel" in request.param:
        with zipfile.ZipFile(arm_wheel(folder)) as archive:
            wheel = Path(archive.extract("model/kernels/block.so", folder))
    kernel = EmulatedKernel([*emulator, str(compile_program(compiler, folder, wheel))], folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_kernel", kernel.kernel)
        yield kernel
        assert kernel.width == width


@pytest.mark.parametrize(
    ("heads", "depth", "window", "hidden"), [(6, 10, 8, 2.0), (4, 8, 8, 2.0), (1, 7, 3, 3.7), (2, 13, 7, 0.5)]
)
@pytest.mark.parametrize("shifted", [False, True])
def test_the_kernel_computes_the_block(emulated, heads, depth, window, hidden, *, shifted):
    """Odd widths and windows, all kinds of masks, as tests/test_cpu_kernel.py compares them with float64."""
    sizes = {"heads": heads, "depth": depth, "window": window, "hidden": hidden}
    compare = test_cpu_kernel.test_the_kernel_computes_the_block.hypothesis.inner_test
    compare(**sizes, counts=(1, 2, 0, 1), shifted=shifted)
    assert emulated.width


def test_the_kernel_gathers(emulated):
    """Tokens are taken from the rows that the table names."""
    test_cpu_kernel.test_the_kernel_gathers()
    assert emulated.width


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize(("channels", "window"), [(60, 8), (13, 5)])
def test_the_kernel_convolves(emulated, channels, window, *, linear):
    """With zeros around images of two sizes, and with and without the layer behind."""
    compare = test_cpu_kernel.test_the_kernel_convolves.hypothesis.inner_test
    compare(channels=channels, window=window, sizes=[(2, 3), (1, 2)], shifted=linear, linear=linear)
    assert emulated.width


UPSCALE = """
import sys; sys.path[:0] = {path!r}
import numpy as np, torch
torch.set_num_threads(1)
from model.upscaler import Upscaler
from model.variants import embedded_path
assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
for name, scale in (("small-x2", 2), ("small-x4", 4), ("small-jpeg", 1), ("small-compressed-x4", 4)):
    [image] = Upscaler.from_pretrained(embedded_path(name))([np.full((16, 24, 3), 99, np.uint8)])
    assert image.shape == (16 * scale, 24 * scale, 3), image.shape
print("computed")
"""


@pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="qemu-user-static is not installed")
def test_every_embedded_variant_computes_without_avx2():
    """On Nehalem, where PyTorch has no FBGEMM."""
    path = [str(ROOT), *(each for each in sys.path if each.endswith("site-packages"))]
    command = [
        "qemu-x86_64-static",
        "-cpu",
        "Nehalem",
        os.path.realpath(sys.executable),
        "-c",
        UPSCALE.format(path=path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert result.stdout.splitlines()[-1:] == ["computed"], result.stdout + result.stderr


START = """
import os, sys
service = "import sys; sys.path[:0] = {path!r}; sys.argv = ['swin2sr', 'serve']; from app.__main__ import main; main()"
qemu = {qemu!r}
os.execv(qemu, [qemu, "-cpu", "Nehalem", os.path.realpath(sys.executable), "-c", service])
"""


@pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="qemu-user-static is not installed")
def test_the_service_answers_without_avx2():
    """It starts on Nehalem, warns that the kernel is not used, and upscales."""
    path = [str(ROOT), *(each for each in sys.path if each.endswith("site-packages"))]
    start = START.format(path=path, qemu=shutil.which("qemu-x86_64-static"))
    with ServerProcess(program=("-c", start), variants="x2", threads=1) as server:
        assert "WARNING" in server.output[0]
        assert "needs a processor with AVX2" in server.output[0]
        pixels = noise(16, 24)
        headers = {"content-type": "image/png"}
        response = httpx.post(f"{server.url}/v1/upscale", content=png(pixels), headers=headers, timeout=120)
        assert response.status_code == 200, response.text
        assert pixels_of(response.content).shape == (32, 48, 3)
