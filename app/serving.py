"""A service on a socket: what ``swin2sr serve`` runs."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import uvicorn

from app import address, logs
from app.main import create_app
from app.service import Service
from app.settings import Settings
from app.weights import Load


class Server(uvicorn.Server):
    """Stops as a load balancer needs it: first not ready, ``delay`` seconds later not listening, then done.

    The delay is for SIGTERM, which an orchestrator sends; SIGINT comes from a keyboard. A second signal hurries.
    """

    def __init__(self, config: uvicorn.Config, announce_end: Callable[[], None], delay: float) -> None:
        super().__init__(config)
        self._announce_end = announce_end
        self._delay = delay
        self._ends_at: float | None = None
        self.failed = False

    def give_up(self) -> None:
        """Begin the end at once, because the service cannot go on; safe in any thread."""
        self.failed = True
        self._announce_end()
        self._ends_at = time.monotonic()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal's handler gets both
        """Begin the end, or hurry it."""
        if self._ends_at is not None:
            self.should_exit = self.force_exit = True
            return
        self._announce_end()
        self._ends_at = time.monotonic() + (self._delay if sig == signal.SIGTERM else 0.0)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop listening, asked every tenth of a second."""
        if self._ends_at is not None and time.monotonic() >= self._ends_at:
            self.should_exit = True
        return await super().on_tick(counter)


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
    listener = address.listen(settings.host, settings.port)
    url = address.url(settings.host, listener.getsockname()[1])

    def on_ready() -> None:
        say(f"Ready. Try: curl -F file=@{sample} '{url}/v1/upscale' -o upscaled.png")

    def on_fatal() -> None:
        server.give_up()

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
    server = Server(config, service.announce_end, settings.drain_delay_ms / 1000)
    for number in (signal.SIGTERM, signal.SIGINT):  # also what comes before uvicorn listens to them, and after
        signal.signal(number, server.handle_exit)
    say(f"Swin2SR listens on {url}")
    with listener:
        server.run(sockets=[listener])
    in_time = service.state.finished and time.monotonic() <= service.state.ends_at
    return 0 if server.started and in_time and not (server.force_exit or server.failed) else 1


def leave(status: int) -> NoReturn:
    """End the process now. A thread that still loads weights or encodes for nobody must not keep it."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)
