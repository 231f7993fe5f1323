"""Runs the application on a socket, for ``swin2sr serve``: listening, signals and draining."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from app import build_info, environment, logs, sockets
from app.http.connections import Acceptor, Connections, connection_limit
from app.http.cors import CrossOrigin
from app.http.protocol import HttpProtocol, Timeouts, refuse_connection
from app.logs import leave as leave  # noqa: PLC0414 - callers end the process with it
from app.main import create_app
from app.ray.settings import RaySettings
from app.service import Service
from app.settings import Settings
from app.variants.loaded_model import Load
from model.upscaler import find_device

TURN_AWAY_SECONDS = 0.1
"""Wait for TCP handshakes that have begun when the listener closes."""

TLS_SECONDS = 1.0
"""Wait for TLS handshakes that have begun when the listener closes."""

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """A server that drains: it reports not ready, stops listening after DRAIN_DELAY_MS, and finishes its requests.

    The delay gives a load balancer time to notice. It applies to SIGTERM and SIGHUP, not to SIGINT. A second signal
    aborts the remaining requests with 503.

    Args:
        config: of uvicorn.
        service: the service that is drained.
        connections: of this server.
    """

    def __init__(self, config: uvicorn.Config, service: Service, connections: Connections) -> None:
        super().__init__(config)
        self._service = service
        self._settings = service.settings
        self._connections = connections
        self._ends_at: float | None = None
        self._logged_stop = False
        self.failed = False

    def abort(self) -> None:
        """Shut down without a delay, because the service cannot continue. Safe in any thread."""
        self.failed = True
        self._service.begin_shutdown()
        self._ends_at = time.monotonic()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal's handler gets both
        """Begin the shutdown. A second signal aborts the remaining requests."""
        if self._ends_at is not None:
            self.should_exit = self.force_exit = True
            self._service.abort()
            return
        self._service.begin_shutdown()
        self._ends_at = time.monotonic() + (0.0 if sig == signal.SIGINT else self._settings.drain_delay_ms / 1000)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, and listen within the limits of connections."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(uvicorn.config.STARTUP_FAILURE)
        settings = self._settings
        timeouts = Timeouts(
            headers=settings.header_timeout_ms / 1000,
            send=settings.send_timeout_ms / 1000,
            drain=settings.drain_timeout_ms / 1000,
        )

        cors = CrossOrigin(refuse_connection, settings.cors_origins) if settings.cors_origins else None

        def connect() -> HttpProtocol:
            return HttpProtocol(
                self.config,
                self.server_state,
                self.lifespan.state,
                timeouts=timeouts,
                connections=self._connections,
                cors=cors,
            )

        self._acceptors = [
            Acceptor(
                listener,
                connect,
                self._connections,
                tls=self.config.ssl,
                handshake_timeout=timeouts.headers,
                backlog=self.config.backlog,
            )
            for listener in sockets or []
        ]
        self.servers = self._acceptors  # type: ignore[assignment] # they have the methods of asyncio.Server
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop listening. Called every 0.1 s."""
        if self._ends_at is not None:
            self._log_stop()
            self.should_exit |= time.monotonic() >= self._ends_at
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, finish or abort accepted requests, and end the application.

        Connections in the accept queue are accepted first, because closing the listener would reset them.
        """
        for acceptor in self._acceptors:
            acceptor.turn_away()
        await asyncio.sleep(TURN_AWAY_SECONDS)
        self._connections.draining = True
        for acceptor in self._acceptors:
            acceptor.close()
            await asyncio.wait([asyncio.ensure_future(acceptor.wait_closed())], timeout=TLS_SECONDS)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn does not cancel them
            for task in list(self.server_state.tasks):
                task.cancel()
            await self.lifespan.shutdown()

    def _log_stop(self) -> None:
        # Not in the signal handler, which may have interrupted a log call.
        if not self._logged_stop:
            self._logged_stop = True
            waiting = self._service.metrics.unanswered
            logger.info(
                "shutting down: %s in flight, still accepting for %.1f s; send another signal to abort",
                f"{waiting} request" if waiting == 1 else f"{waiting} requests",
                max(0.0, (self._ends_at or 0.0) - time.monotonic()),
            )


def serve(
    settings: Settings, say: Callable[[str], None], sample: str = "photo.jpg", *, load: Load | None = None
) -> int:
    """Serve until a signal arrives.

    Args:
        settings: of the service.
        say: prints a line for the user.
        sample: image path in the example command.
        load: loads the weights of a variant; a stand-in for tests.

    Returns:
        The exit status.

    Raises:
        ValueError: if a variant in VARIANTS or the device does not exist, an unknown environment variable looks like a
            secret, or the certificate cannot be used.
        OSError: if the address cannot be used.
    """
    logs.configure(settings.log_format)
    build_info.log_start(on_cpu=find_device(settings.device).type == "cpu")
    for warning in environment.check(os.environ, settings, RaySettings.model_fields):
        logger.warning("%s", warning)
    connections = Connections(connection_limit(settings.max_connections))

    def on_ready() -> None:
        say(f"Ready. Try: curl --fail-with-body {option}-F file=@{sample} '{url}/v1/upscale' -o upscaled.png")

    def on_fatal() -> None:
        server.abort()

    app = create_app(settings, load=load, on_ready=on_ready, on_fatal=on_fatal)
    service: Service = app.state.service
    server = Server(configure(app, settings), service, connections)
    service.metrics.watch_connections(lambda: len(connections.open))
    listener, url, option = _listen(settings)
    for number in sockets.stop_signals():  # also before uvicorn handles them, and after
        signal.signal(number, server.handle_exit)
    say(f"Swin2SR listens on {url if settings.uds is None else settings.uds}")
    with listener:
        server.run(sockets=[listener])
    in_time = service.state.finished and time.monotonic() <= service.state.ends_at
    good = server.started and in_time and not (server.force_exit or server.failed)
    logger.info("stopped" if good else "stopped before all requests were finished")
    return 0 if good else 1


def configure(app: Callable[..., object], settings: Settings) -> uvicorn.Config:
    """Uvicorn's configuration, loaded.

    Raises:
        ValueError: if the certificate cannot be used.
    """
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # app.http.forwarded reads TRUSTED_PROXIES
        # Fixed: uvicorn would use uvloop and httptools if they are installed.
        loop="asyncio",
        http=HttpProtocol,
        ws="none",
        # Fractions, because whole seconds would end before the configured time.
        timeout_keep_alive=settings.keep_alive_ms / 1000,  # type: ignore[arg-type]
        timeout_graceful_shutdown=(settings.drain_timeout_ms - settings.drain_delay_ms) / 1000,  # type: ignore[arg-type]
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        ssl_keyfile_password="none",  # noqa: S106 - without one, OpenSSL asks for it on the terminal
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        key = settings.ssl_keyfile or settings.ssl_certfile
        raise ValueError(
            f"SSL_CERTFILE {settings.ssl_certfile} with the key in {key} cannot be used: {error}. Both must be PEM "
            "files that belong together, and the key must not have a passphrase"
        ) from None
    return config


def _listen(settings: Settings) -> tuple[socket.socket, str, str]:
    """A bound socket, the service's address, and the option of curl that reaches it."""
    scheme = "https" if settings.ssl_certfile else "http"
    if settings.uds is not None:
        return sockets.listen_unix(settings.uds), f"{scheme}://localhost", f"--unix-socket {settings.uds} "
    listener = sockets.listen(settings.host, settings.port)
    return listener, sockets.url(settings.host, listener.getsockname()[1], scheme), ""
