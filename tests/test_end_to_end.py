"""The authors' lightweight weights through the real server, measured on Set5 by the published protocol."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from model.evaluate import evaluate_folder, read_pairs, tabulate
from tests.server import SERVE, ServerProcess

pytestmark = [pytest.mark.shared, pytest.mark.slow]

VARIANT = "swin2sr-lightweight-x2-64"
PUBLISHED = 38.17
"""Mean PSNR on Y that the paper gives for lightweight x2 on Set5, dB."""


@dataclass(frozen=True)
class Served:
    """The server as something that is called with images: one request for each."""

    client: httpx.Client
    concurrency: int
    scale: int = 2
    channels: int = 3

    def __call__(self, images):
        """Upscale images (H, W, 3) uint8, several at a time."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(self._upscale, images))

    def _upscale(self, pixels):
        body = io.BytesIO()
        Image.fromarray(pixels).save(body, "PNG")
        response = self.client.post(
            "/v1/upscale",
            params={"variant": VARIANT},
            content=body.getvalue(),
            headers={"Content-Type": "image/png"},
        )
        assert response.status_code == 200, response.text
        assert response.headers["X-Swin2SR-Variant"] == VARIANT
        return np.asarray(Image.open(io.BytesIO(response.content)))


@dataclass(frozen=True)
class Remembered:
    """Gives the answers that there are already, in order."""

    answers: list
    scale: int = 2
    channels: int = 3

    def __call__(self, images):
        return [self.answers.pop(0) for _ in images]


@pytest.fixture(scope="module")
def client(shared):
    """A client of a server that serves the real weights from a folder, as a user's would."""
    with (
        ServerProcess(fork=SERVE, model_dir=shared / "checkpoints", variants=VARIANT, device="cpu") as server,
        httpx.Client(base_url=server.url, timeout=240) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def set5(shared) -> Path:
    """Set5 with the authors' low-resolution inputs."""
    return shared / "testsets" / "Set5"


@pytest.fixture(scope="module")
def alone(client, set5):
    """Set5's evaluation, sent one by one."""
    return evaluate_folder(Served(client, concurrency=1), set5)


@pytest.mark.slow
def test_set5_one_by_one_reaches_the_published_figure(alone):
    """Sent one after the other, the five images reach the paper's mean PSNR on Y."""
    assert len(alone.images) == 5
    assert alone.upscaled.psnr_y >= PUBLISHED
    assert alone.upscaled.psnr_y == pytest.approx(38.174, abs=0.005)
    assert alone.upscaled.ssim_y == pytest.approx(0.9612, abs=0.0005)


@pytest.mark.slow
def test_set5_eight_at_a_time_reaches_the_published_figure(client, set5, alone):
    """Ten requests, eight at a time, share batches and give what one by one gives: the same figure, the same images."""
    inputs = [pair.reduced for pair in read_pairs(set5, 2, 3, None)]
    answers = Served(client, concurrency=8)(inputs + inputs)
    for first, second in zip(answers[:5], answers[5:], strict=True):
        difference = np.abs(first.astype(int) - second.astype(int))
        assert difference.max() <= 1
        assert np.count_nonzero(difference) <= difference.size / 1000
    together = evaluate_folder(Remembered(answers[:5]), set5)
    assert together.upscaled.psnr_y >= PUBLISHED
    assert together.upscaled.psnr_y == pytest.approx(alone.upscaled.psnr_y, abs=0.001)


@pytest.mark.slow
def test_evaluate_prints_the_same_table(alone, set5, shared):
    """``swin2sr evaluate`` prints what was measured through the server, image by image."""
    from typer.testing import CliRunner

    from app.cli.commands import build

    options = ["--variant", VARIANT, "--model-dir", str(shared / "checkpoints"), "--device", "cpu"]
    result = CliRunner().invoke(build(), ["evaluate", str(set5), *options])
    assert result.exit_code == 0, result.output
    assert tabulate(alone) in result.output
