"""A service on a socket: what ``swin2sr serve`` runs."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import uvicorn

from app import build_info, logs, sockets
from app.main import create_app
from app.service import Service
from app.settings import Settings
from app.variants.loaded_model import Load
from model.upscaler import find_device

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Stops as a load balancer needs it: first not ready, ``delay`` seconds later not listening, then done.

    The delay is for SIGTERM, which an orchestrator sends; SIGINT comes from a keyboard. A second signal hurries: who
    waits is told that the server ends.
    """

    def __init__(self, config: uvicorn.Config, service: Service, delay: float) -> None:
        super().__init__(config)
        self._service = service
        self._delay = delay
        self._ends_at: float | None = None
        self._told = False
        self.failed = False

    def abort(self) -> None:
        """Begin the end at once, because the service cannot go on; safe in any thread."""
        self.failed = True
        self._service.begin_shutdown()
        self._ends_at = time.monotonic()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal's handler gets both
        """Begin the end, or hurry it."""
        if self._ends_at is not None:
            self.should_exit = self.force_exit = True
            self._service.abort()
            return
        self._service.begin_shutdown()
        self._ends_at = time.monotonic() + (self._delay if sig == signal.SIGTERM else 0.0)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop listening, asked every tenth of a second."""
        if self._ends_at is not None:
            self._tell()
            self.should_exit |= time.monotonic() >= self._ends_at
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, finish or give up what was accepted, and end the application."""
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave everybody where they stand
            for task in list(self.server_state.tasks):
                task.cancel()
            await self.lifespan.shutdown()

    def _tell(self) -> None:
        # Not from the signal's handler, which may have interrupted a line of the log.
        if not self._told:
            self._told = True
            waiting = self._service.metrics.unanswered
            logger.info(
                "stopping: %s to finish, others are taken in for %.1f s more; another signal gives them up",
                f"{waiting} image" if waiting == 1 else f"{waiting} images",
                max(0.0, (self._ends_at or 0.0) - time.monotonic()),
            )


def serve(
    settings: Settings, say: Callable[[str], None], sample: str = "photo.jpg", *, load: Load | None = None
) -> int:
    """Serve until a signal comes.

    Args:
        settings: checked.
        say: shows a line to the person who started it.
        sample: image in the command that is shown to try.
        load: makes weights ready to call; a test puts something else in the model's place.

    Returns:
        The exit status.

    Raises:
        ValueError: if a wanted variant or the device is not there.
        OSError: if the address is not to be had.
    """
    logs.configure(settings.log_format)
    build_info.log_start(on_cpu=find_device(settings.device).type == "cpu")
    listener = sockets.listen(settings.host, settings.port)
    url = sockets.url(settings.host, listener.getsockname()[1])

    def on_ready() -> None:
        say(f"Ready. Try: curl --fail-with-body -F file=@{sample} '{url}/v1/upscale' -o upscaled.png")

    def on_fatal() -> None:
        server.abort()

    app = create_app(settings, load=load, on_ready=on_ready, on_fatal=on_fatal)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        # The same, whatever else is installed: uvicorn would take what it finds.
        loop="asyncio",
        http="h11",
        ws="none",
        # asyncio takes fractions, and whole seconds would give up before the time is over.
        timeout_graceful_shutdown=(settings.drain_timeout_ms - settings.drain_delay_ms) / 1000,  # type: ignore[arg-type]
    )
    service: Service = app.state.service
    server = Server(config, service, settings.drain_delay_ms / 1000)
    for number in (signal.SIGTERM, signal.SIGINT):  # also what comes before uvicorn listens to them, and after
        signal.signal(number, server.handle_exit)
    say(f"Swin2SR listens on {url}")
    with listener:
        server.run(sockets=[listener])
    in_time = service.state.finished and time.monotonic() <= service.state.ends_at
    good = server.started and in_time and not (server.force_exit or server.failed)
    logger.info("stopped" if good else "stopped before everything was finished")
    return 0 if good else 1


def leave(status: int) -> NoReturn:
    """End the process now. A thread that still loads weights or encodes for nobody must not keep it."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
