"""Listening on addresses and Unix sockets, with and without TLS, and draining open connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import subprocess

import pytest
import uvicorn

from app import sockets
from app.http.settings import HttpSettings
from app.server import configure
from app.settings import Settings
from tests.protocol_server import GET, Site, response, rest, run


async def teapot(_scope, _receive, _send):
    """An application that is never asked."""


async def drain(site):
    """Leave as the server does."""
    site.acceptor.turn_away()
    await asyncio.sleep(0.1)
    site.connections.draining = True
    site.acceptor.close()
    await site.acceptor.wait_closed()
    for connection in list(site.state.connections):
        connection.shutdown()


def test_draining_serves_what_has_begun_and_resets_nothing():
    """A kept connection with its next request, half a request, and one in the accept queue are all answered."""

    async def scenario():
        async with Site() as site:
            kept, kept_writer = await site.connect(GET)
            await response(kept)
            half, half_writer = await site.connect(GET[:20])
            await site.until(lambda: len(site.connections.open) == 2)
            asyncio.get_running_loop().remove_reader(site.listener)  # the loop is too busy to accept
            queued, _ = await site.connect(GET)
            silent, _ = await site.connect()
            await drain(site)
            kept_writer.write(GET)
            half_writer.write(GET[20:])
            for reader in (kept, half, queued):
                assert (await response(reader))[1] == b"hello"
            for reader in (kept, half, queued, silent):
                assert await rest(reader) == b""  # closed, not reset
            await site.until(lambda: not site.connections.open)

    run(scenario)


def test_after_draining_the_port_is_closed():
    """Refused, or never answered: not accepted and then reset."""

    async def scenario():
        async with Site() as site:
            address = site.listener.getsockname()
            await drain(site)
            with pytest.raises(OSError):  # noqa: PT011 - refused
                await asyncio.open_connection(*address)

    run(scenario)


@pytest.mark.slow
def test_a_unix_socket_is_a_place_to_listen(tmp_path):
    """A file that a dead server left is replaced, one in use is not; while draining the file is gone."""
    path = tmp_path / "socket"

    async def scenario():
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with Site(listener=sockets.listen_unix(path), headers=0.3) as site:
            with pytest.raises(OSError, match="Cannot listen on"):
                sockets.listen_unix(path)
            reader, writer = await site.connect(GET)
            await response(reader)
            assert await site.ask(b"") == b"", "the time for headers counts here too"
            writer.write(GET)
            await response(reader)
            await drain(site)
            assert not path.exists()
            assert await rest(reader) == b""

    run(scenario)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "999.1.1.1", "x" * 300, "a b", "[::1]"])
def test_a_host_that_does_not_exist_is_named(host):
    """With the setting."""
    with pytest.raises(OSError, match="Cannot listen on HOST") as error:
        sockets.listen(host, 0)
    assert host[:100] in str(error.value)


def test_a_busy_unix_socket_is_not_taken(tmp_path):
    """A full accept queue does not mean that its server is dead."""
    path = tmp_path / "socket"
    with sockets.listen_unix(path) as busy, contextlib.ExitStack() as stack:
        busy.listen(0)
        code = 0
        while code == 0:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            code = client.connect_ex(str(path))
        with pytest.raises(OSError, match="Cannot listen on"):
            sockets.listen_unix(path)
        assert path.is_socket()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return {"ssl_certfile": folder / "cert.pem", "ssl_keyfile": folder / "key.pem"}


@pytest.mark.slow
def test_tls_has_the_same_limits(certificate):
    """A handshake that does not come counts as silence and as a connection; requests and draining are as ever."""

    async def scenario():
        config = configure(teapot, Settings(**certificate))
        trusting = ssl.create_default_context(cafile=str(certificate["ssl_certfile"]))
        async with Site(tls=config.ssl, headers=1.0, limit=2) as site:
            assert await site.ask(b"") == b""
            silent, _ = await site.connect()
            await site.until(lambda: len(site.connections.open) == 1)
            reader, writer = await site.connect(GET, ssl=trusting, server_hostname="localhost")
            await response(reader)
            other, _ = await site.connect(GET, ssl=trusting, server_hostname="localhost")
            with contextlib.suppress(ConnectionError):
                assert await rest(silent) == b""
            await response(other)
            writer.write(GET)
            await drain(site)
            await response(reader)
            await site.until(lambda: not site.connections.open)

    run(scenario)


def test_a_bad_certificate_stops_the_start(certificate, tmp_path):
    """With the names of both settings; a key alone is refused by the settings."""
    (tmp_path / "bad.pem").write_text("nonsense")
    with pytest.raises(ValueError, match=r"SSL_CERTFILE .*bad\.pem"):
        configure(teapot, Settings(ssl_certfile=tmp_path / "bad.pem"))
    command = ["openssl", "rsa", "-aes128", "-passout", "pass:word", "-in", certificate["ssl_keyfile"]]
    encrypted = subprocess.run([*command, "-out", tmp_path / "key.pem"], check=False, capture_output=True)
    assert encrypted.returncode == 0
    with pytest.raises(ValueError, match="must not have a passphrase"):  # nobody is asked for it
        configure(teapot, Settings(**{**certificate, "ssl_keyfile": tmp_path / "key.pem"}))
    with pytest.raises(ValueError, match=r"SSL_KEYFILE .* needs SSL_CERTFILE"):
        HttpSettings(ssl_keyfile=certificate["ssl_keyfile"])


def test_the_configuration_trusts_no_proxy_by_itself():
    """Uvicorn would believe 127.0.0.1; TRUSTED_PROXIES decides here."""
    assert not configure(teapot, Settings()).proxy_headers
    assert isinstance(configure(teapot, Settings()), uvicorn.Config)
