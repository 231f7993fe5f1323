"""Starts the service in a process, as a user does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from app.bench.load import Send
from model.bench.sections import Bench
from model.checkpoints import write_pretrained

VARIANT = "lightweight-x2"


@asynccontextmanager
async def serve(bench: Bench) -> AsyncIterator[Send]:
    """Start a server process with the bench's network, and yield a function that sends an image and waits.

    Raises:
        RuntimeError: if the server ends before it is ready.
        httpx.HTTPStatusError: from sending, if the response is not an image.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_pretrained(bench.network(VARIANT), Path(folder) / VARIANT)
        options = ["--port", "0", "--variants", VARIANT, "--model-dir", folder, "--drain-delay-ms", "0"]
        options += ["--device", str(bench.device), "--threads", str(bench.threads), "--precision", bench.precision]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app", "serve", *options),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            assert process.stdout is not None
            url = await _address_when_ready(process.stdout)
            silence = asyncio.create_task(process.stdout.read())
            async with httpx.AsyncClient(base_url=url, timeout=None) as client:  # noqa: S113 - as long as it takes

                async def send(body: bytes) -> None:
                    response = await client.post("/v1/upscale", content=body, headers={"Content-Type": "image/png"})
                    response.raise_for_status()

                yield send
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()
        await silence


async def _address_when_ready(output: asyncio.StreamReader) -> str:
    lines: list[str] = []
    url = ""
    while line := (await output.readline()).decode():
        lines.append(line)
        if " listens on " in line:
            url = line.split()[-1]
        elif line.startswith("Ready."):
            return url
    raise RuntimeError("the server did not become ready:\n" + "".join(lines))
