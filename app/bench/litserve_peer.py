"""LitServe with Transformers or OpenVINO, as ``app.bench.peers`` starts it: a PNG in, a PNG out.

python -m app.bench.litserve_peer transformers|openvino FOLDER PORT THREADS LARGEST
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import litserve
import numpy as np
import torch
from fastapi import Request, Response
from PIL import Image

from app.bench.service import encode_png
from model.bench.baselines import load_port, openvino
from model.checkpoints import load_network
from model.padding import to_tensor
from model.types import Pixels8

WINDOW, SCALE = 8, 2
Upscale = Callable[[Pixels8], Pixels8]
"""Upscales an image (H, W, 3) to (SCALE * H, SCALE * W, 3)."""


def upscale_with_transformers(folder: Path) -> Upscale:
    """Transformers' network in float32, each image at its own size padded to whole windows."""
    port = load_port(load_network(folder))

    @torch.inference_mode()
    def run(image: Pixels8) -> Pixels8:
        height, width = image.shape[:2]
        return _to_pixels(port(_pad(image, -height % WINDOW, -width % WINDOW)).numpy(), image)

    return run


def upscale_with_openvino(folder: Path, largest: int) -> Upscale:
    """OpenVINO in float32 with one model, for images of ``largest`` pixels a side."""
    canvas = torch.zeros(1, 3, largest, largest)
    compute = openvino(load_port(load_network(folder)), canvas)  # reads the canvas at each call

    def run(image: Pixels8) -> Pixels8:
        height, width = image.shape[:2]
        canvas.copy_(_pad(image, largest - height, largest - width))
        return _to_pixels(compute(), image)

    return run


def _pad(image: Pixels8, below: int, right: int) -> torch.Tensor:
    return torch.nn.functional.pad(to_tensor(image)[None], (0, right, 0, below), mode="replicate")


def _to_pixels(output: np.ndarray, image: Pixels8) -> Pixels8:
    height, width = image.shape[:2]
    cut = output[0, :, : SCALE * height, : SCALE * width].transpose(1, 2, 0)
    return (cut * 255).round().clip(0, 255).astype(np.uint8)


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Decodes, upscales and encodes one image at a time.

    Args:
        peer: ``transformers`` or ``openvino``.
        folder: of the weights.
        threads: of the computation.
        largest: side of the largest image, a multiple of 8.
    """

    def __init__(self, peer: str, folder: Path, threads: int, largest: int) -> None:
        super().__init__()
        self._arguments = (peer, folder, threads, largest)

    def setup(self, device: str) -> None:
        """Load the network, in the worker's process."""
        del device
        peer, folder, threads, largest = self._arguments
        torch.set_num_threads(threads)
        own = peer == "transformers"
        self._upscale = upscale_with_transformers(folder) if own else upscale_with_openvino(folder, largest)

    def decode_request(self, request: Request) -> Pixels8:
        """The pixels of the upload. LitServe reads the form and passes it on in place of the request."""
        return np.asarray(Image.open(io.BytesIO(request["file"].file.read())))

    def predict(self, image: Pixels8) -> Pixels8:
        """The upscaled pixels."""
        return self._upscale(image)

    def encode_response(self, pixels: Pixels8) -> Response:
        """The upscaled image as PNG."""
        return Response(encode_png(pixels), media_type="image/png")


def main() -> None:
    """Serve until the process is stopped."""
    peer, folder, port, threads, largest = sys.argv[1:]
    server = litserve.LitServer(Api(peer, Path(folder), int(threads), int(largest)), accelerator="cpu", timeout=False)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
