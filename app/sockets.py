"""Where a server listens, and what to call it."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, and does not listen yet.

    Args:
        host: name or address.
        port: 0 takes a free one.

    Raises:
        OSError: if the address is not to be had; the text names it.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    # Naming the protocol matters: asyncio turns Nagle's delay (40 ms an answer) off for sockets that do.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        hint = " Choose another one with --port, or 0 for any." if error.errno == errno.EADDRINUSE else ""
        raise OSError(error.errno, f"{host}:{port} is not to be had: {error.strerror}.{hint}") from None
    return listener


def url(host: str, port: int) -> str:
    """The address to open on this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:
        return f"http://127.0.0.1:{port}"
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"
