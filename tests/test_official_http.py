"""The download of one file over HTTP, from a server that fails in many ways."""

from __future__ import annotations

import errno
import itertools
import os
import threading

import pytest

from model.official.http import ATTEMPTS, FetchError, Step, Unreachable, download, honor_certificate_bundle, writing
from tests.loopback_hub import Faults, LoopbackHub
from tests.scripted import PATIENCE, Gate

FILE = "release/weights.pth"
CONTENT = bytes(itertools.islice(itertools.cycle(range(251)), 1_000_000))
HALF = len(CONTENT) // 2


@pytest.fixture
def hub():
    with LoopbackHub({FILE: CONTENT}) as hub:
        yield hub


@pytest.fixture
def part(tmp_path):
    return tmp_path / "cache" / "weights.pth.part"


@pytest.fixture
def fetch(hub, part):
    """Downloads the file; remembers the seconds between attempts."""
    waits = []

    def download_it(on_step=lambda _step: None):
        waits.clear()
        download(f"{hub.url}/{FILE}", part, on_step, wait=waits.append)
        return part.read_bytes()

    download_it.waits = waits
    return download_it


def test_a_file_is_downloaded_with_its_progress(fetch):
    """Every chunk is reported, with the size of the whole."""
    steps = []
    assert fetch(steps.append) == CONTENT
    assert (steps[0].done, steps[-1].done, steps[0].total) == (0, len(CONTENT), len(CONTENT))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert str(steps[-1]).startswith("weights.pth from 127.0.0.1:")
    assert str(steps[-1]).endswith(": 1.0 of 1.0 MB")


def test_an_interrupted_download_is_resumed(hub, fetch, part):
    """The next attempt requests the missing bytes only, and the sum is the file."""
    hub.misbehave(FILE, Faults(stop_after=HALF), Faults(stop_after=1000))
    assert fetch() == CONTENT
    assert hub.ranges(FILE) == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert fetch.waits == [2, 4]
    assert list(part.parent.iterdir()) == [part]


def test_a_download_that_failed_is_resumed_by_the_next_call(hub, fetch):
    """After ``ATTEMPTS`` attempts with growing waits; the message says how much is kept."""
    hub.misbehave(FILE, *[Faults(stop_after=1000)] * ATTEMPTS)
    with pytest.raises(Unreachable, match=r"the connection broke after 0\.0 of 1\.0 MB; 0\.0 MB are kept"):
        fetch()
    assert fetch.waits == [2, 4, 8]
    assert fetch() == CONTENT
    assert hub.ranges(FILE)[-1] == f"bytes={1000 * ATTEMPTS}-"


@pytest.mark.parametrize("faults", [Faults(), Faults(ranges=False), Faults(shift=7)])
@pytest.mark.parametrize("changed", [False, True])
def test_parts_of_different_files_are_never_joined(hub, fetch, changed, faults):
    """A file that changed meanwhile, a server without ranges, or a wrong range: the download starts over."""
    hub.misbehave(FILE, Faults(stop_after=HALF, content=CONTENT[::-1] if changed else None), faults)
    assert fetch() == CONTENT


def test_a_part_that_cannot_be_identified_is_not_resumed(hub, fetch):
    """The server sends no ETag."""
    hub.etags = False
    hub.misbehave(FILE, Faults(stop_after=HALF))
    assert fetch() == CONTENT
    assert hub.ranges(FILE) == [None, None]


def test_a_part_as_long_as_the_file_starts_over(hub, fetch, part):
    """The server refuses the range with 416."""
    hub.misbehave(FILE, *[Faults(stop_after=1000)] * ATTEMPTS)
    with pytest.raises(Unreachable):
        fetch()
    part.write_bytes(CONTENT + b"more")
    assert fetch() == CONTENT


@pytest.mark.parametrize("status", [404, 401, 403, 410])
def test_a_refusal_is_final(hub, fetch, status):
    """There is no second request, and the message contains the status and the URL."""
    hub.statuses[FILE] = status
    with pytest.raises(Unreachable, match=rf"answered {status} .*weights\.pth"):
        fetch()
    assert fetch.waits == []


def test_a_server_in_trouble_is_asked_again(hub, fetch):
    """500 is repeated, and is an error if it persists."""
    hub.misbehave(FILE, Faults(status=500), Faults(status=429))
    assert fetch() == CONTENT
    hub.misbehave(FILE, *[Faults(status=500)] * ATTEMPTS)
    with pytest.raises(Unreachable, match="answered 500"):
        fetch()


def test_without_a_network_the_download_fails_at_once(tmp_path):
    """There is no second attempt if the server could not be reached."""
    waits = []
    for address in ("http://127.0.0.1:1/weights.pth", "http://no-such-host.invalid/weights.pth"):
        with pytest.raises(Unreachable, match=r"cannot be reached: .") as caught:
            download(address, tmp_path / "weights.pth", lambda _step: None, wait=waits.append)
        assert "Errno" not in str(caught.value)
    assert waits == []


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/x", "weights.pth"])
def test_other_addresses_are_refused(tmp_path, address):
    """Nothing but http and https is opened."""
    with pytest.raises(FetchError, match="is not an http or https URL"):
        download(address, tmp_path / "weights.pth", lambda _step: None)


def test_progress_is_reported_while_bytes_arrive(hub, fetch):
    """The first half of a slow server's file is reported before its second half arrives."""
    gate, reported = Gate(is_open=False), threading.Event()
    hub.misbehave(FILE, Faults(stop_after=HALF, gate=gate))

    def on_step(step):
        if step.done == HALF:
            reported.set()

    thread = threading.Thread(target=fetch, args=(on_step,))
    thread.start()
    assert reported.wait(PATIENCE)
    gate.open()
    thread.join(PATIENCE)


def test_a_silent_server_ends_the_attempt(hub, fetch, monkeypatch):
    """After ``TIMEOUT_S`` without a byte."""
    monkeypatch.setattr("model.official.http.TIMEOUT_S", 0.2)
    gate = Gate(is_open=False)
    hub.misbehave(FILE, *[Faults(stop_after=1000, gate=gate)] * ATTEMPTS)
    with pytest.raises(Unreachable, match="sent nothing for 0 s"):
        fetch()
    gate.open()
    assert fetch() == CONTENT


def test_too_little_space_is_reported_before_anything_is_written(fetch, monkeypatch, part):
    """The message states the needed and the free space."""
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: type("Usage", (), {"free": 600_000})())
    with pytest.raises(FetchError, match=r"1\.0 MB are needed, 0\.6 MB are free"):
        fetch()
    assert list(part.parent.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")  # noqa: PTH110
def test_a_full_disk_is_reported(hub, part):
    """Without another request to the server."""
    part.parent.mkdir()
    part.symlink_to("/dev/full")
    with pytest.raises(FetchError, match=r"The disk is full .*Free some space") as caught:
        download(f"{hub.url}/{FILE}", part, lambda _step: None)
    assert not isinstance(caught.value, Unreachable)
    assert len(hub.ranges(FILE)) == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "Free some space"),
        (errno.EACCES, "SWIN2SR_CACHE_DIR"),
        (errno.EROFS, "SWIN2SR_CACHE_DIR"),
        (errno.EIO, "Cannot write to"),
    ],
)
def test_every_error_of_the_disk_says_what_to_do(tmp_path, number, words):
    """The message contains the path and the system's reason."""
    with pytest.raises(FetchError, match=words) as caught, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)


def test_a_folder_that_cannot_be_created_is_named(tmp_path, hub):
    """A file has the name of the folder."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(FetchError, match=r"Cannot write to .*cache"):
        download(f"{hub.url}/{FILE}", tmp_path / "cache" / "weights.pth", lambda _step: None)


def test_a_step_as_text():
    """With and without numbers."""
    assert str(Step("waiting")) == "waiting"
    assert str(Step("a from b", 1_500_000, None)) == "a from b: 1.5 of ? MB"


@pytest.mark.parametrize("folder", [False, True])
def test_a_bundle_for_requests_is_used_if_openssl_has_none(tmp_path, monkeypatch, folder):
    """A file or a folder; SSL_CERT_FILE takes precedence."""
    bundle = tmp_path if folder else tmp_path / "authority.pem"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", "/elsewhere")
    monkeypatch.setenv("SSL_CERT_FILE", "/elsewhere.pem")
    honor_certificate_bundle()
    assert (os.environ["SSL_CERT_FILE"], os.environ["SSL_CERT_DIR"]) == ("/elsewhere.pem", "/elsewhere")
    monkeypatch.setenv("SSL_CERT_FILE", "")
    honor_certificate_bundle()
    assert os.environ["SSL_CERT_DIR" if folder else "SSL_CERT_FILE"] == str(bundle)
