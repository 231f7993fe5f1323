"""A program: one image through the pipeline with a scripted upscaler, and what it took of memory on top of the start.

``python -m tests.large_image FILE [OPTION=VALUE...]`` prints the size of the answer in bytes and the growth of the peak
resident memory in MiB.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path

from app.http.uploads import Upload
from app.pipeline import Caller
from app.schemas import UpscaleOptions
from app.service import build_service
from app.settings import Settings
from tests.scripted import ScriptedUpscaler, loading, model_dir


def peak_mebibytes() -> float:
    """The most memory that this process has had so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would begin at the peak of the process that started this one
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(file: str, *options: str) -> None:
    """Upscale, and print."""
    chosen = dict(option.split("=") for option in options)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(variants="classical-x2", model_dir=model_dir(Path(folder), "classical-x2"), device="cpu")
        service = build_service(settings, loading(classical_x2=ScriptedUpscaler()))
    service.batcher.start()
    upload = Upload(Path(file).read_bytes(), "large")
    before = peak_mebibytes()

    async def upscale() -> int:
        answer = await service.pipeline.upscale(upload, UpscaleOptions(**chosen), Caller(time.monotonic() + 600))
        await service.close()
        return len(answer.encoded.body)

    sys.stdout.write(f"{asyncio.run(upscale())} {peak_mebibytes() - before:.0f}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
