"""The listening socket, the URL of the server, and the signals that stop it."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
from pathlib import Path


def listen(host: str, port: int) -> socket.socket:
    """Bind a TCP socket, without listening yet.

    Args:
        host: name or address.
        port: 0 picks a free one.

    Raises:
        OSError: if the address cannot be used; the message contains it.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise OSError(errno.EADDRNOTAVAIL, f"Cannot listen on HOST {host[:100]!r}: {reason}.") from None
    family, _, _, _, address = found[0]
    # With the protocol named, asyncio sets TCP_NODELAY. Otherwise Nagle's algorithm delays a response by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        hint = " Use --port to choose another (0 picks a free one)." if error.errno == errno.EADDRINUSE else ""
        raise OSError(error.errno, f"Cannot listen on {host}:{port}: {error.strerror}.{hint}") from None
    return listener


def listen_unix(path: Path) -> socket.socket:
    """Bind a Unix socket, without listening yet. The socket file of a server that has ended is replaced.

    Every user who can access the file may connect: the permissions of its folder decide.

    Raises:
        OSError: if the path is in use or cannot be created; the message contains it.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and _is_stale(path):
            path.unlink()
        listener.bind(str(path))
        path.chmod(0o666)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"Cannot listen on {path}: {error.strerror or error}.") from None
    return listener


def _is_stale(path: Path) -> bool:
    """Whether no process listens. A full accept queue and a lack of permission are no proof of it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


def url(host: str, port: int, scheme: str = "http") -> str:
    """The URL of the server on this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{scheme}://{host}:{port}"
    if address.is_unspecified:
        return f"{scheme}://127.0.0.1:{port}"
    return f"{scheme}://[{address}]:{port}" if address.version == 6 else f"{scheme}://{address}:{port}"


def stop_signals() -> list[signal.Signals]:
    """Signals that stop a server. SIGHUP is left out if it is ignored, as with nohup."""
    found = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found
