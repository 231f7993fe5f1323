"""The address that is printed, and the signals that stop a server."""

import signal

import pytest

from app import sockets


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://127.0.0.1:80"),
        ("::1", "http://[::1]:80"),
        ("upscaler.example", "http://upscaler.example:80"),
    ],
)
def test_the_url_can_be_opened_on_this_machine(host, expected):
    """An address of all interfaces is none to connect to, and IPv6 is in brackets."""
    assert sockets.url(host, 80) == expected


@pytest.mark.parametrize("host", ["no.such.host.invalid", "\udcff.example", "a" * 70 + ".example"])
def test_a_host_that_is_none_is_named(host):
    """In the setting's words, whatever the resolver says."""
    with pytest.raises(OSError, match=r"Cannot listen on HOST '.*': .+"):
        sockets.listen(host, 0)


def test_nohup_keeps_its_meaning(monkeypatch):
    """A hang-up stops a server, but not one that was started to ignore it."""
    monkeypatch.setattr(signal, "getsignal", lambda _number: signal.SIG_IGN)
    assert sockets.stop_signals() == [signal.SIGTERM, signal.SIGINT]
    monkeypatch.setattr(signal, "getsignal", lambda _number: signal.SIG_DFL)
    assert sockets.stop_signals() == [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
