"""One file over HTTP, from a server that does everything that a server can do wrong."""

from __future__ import annotations

import errno
import itertools
import os
import threading

import pytest

from model.official.http import TRIES, FetchError, Step, Unreachable, download, writing
from tests.loopback_hub import LoopbackHub, Mischief
from tests.scripted import PATIENCE, Gate

FILE = "release/weights.pth"
CONTENT = bytes(itertools.islice(itertools.cycle(range(251)), 1_000_000))
HALF = len(CONTENT) // 2


@pytest.fixture
def hub():
    with LoopbackHub({FILE: CONTENT}) as hub:
        yield hub


@pytest.fixture
def bring(hub, tmp_path):
    """Downloads the file, and says how long it waited between its tries."""
    waits = []

    def download_it(on_step=lambda _step: None, **options):
        waits.clear()
        target = tmp_path / "cache" / "weights.pth"
        return download(f"{hub.url}/{FILE}", target, on_step, wait=waits.append, **options)

    download_it.waits = waits
    return download_it


def writing_until(room):
    """Writes as if the disk had so many bytes left."""

    def write(file, chunk):
        if file.tell() + len(chunk) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.write(chunk)

    return write


def parts(tmp_path):
    return sorted((tmp_path / "cache").iterdir())


def test_a_file_comes_whole_and_not_yet_under_its_name(bring, tmp_path):
    """The target is for whoever looked at the file; every piece is told, with what the whole is."""
    steps = []
    part = bring(steps.append)
    assert part.read_bytes() == CONTENT
    assert parts(tmp_path) == [part]
    assert part.name != "weights.pth"
    assert (steps[0].done, steps[-1].done, steps[0].total) == (0, len(CONTENT), len(CONTENT))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert str(steps[-1]).startswith("weights.pth from 127.0.0.1:")
    assert str(steps[-1]).endswith(": 1.0 of 1.0 MB")


def test_what_breaks_off_goes_on_where_it_stopped(hub, bring):
    """In the same call: not a byte is asked for twice."""
    hub.misbehave(FILE, Mischief(stop_after=HALF), Mischief(stop_after=1000))
    assert bring().read_bytes() == CONTENT
    assert hub.ranges(FILE) == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert bring.waits == [1, 1]


def test_what_an_earlier_call_left_is_gone_on_with(hub, bring, tmp_path):
    """Another day, after the server came back."""
    hub.misbehave(FILE, Mischief(stop_after=HALF), *[Mischief(status=503)] * TRIES)
    with pytest.raises(Unreachable, match=r"answered 503.*; 0\.5 MB have come and are kept"):
        bring()
    assert [part.stat().st_size for part in parts(tmp_path)] == [HALF]
    hub.asked.clear()
    steps = []
    assert bring(steps.append).read_bytes() == CONTENT
    assert hub.ranges(FILE) == [f"bytes={HALF}-"]
    assert steps[0].done == HALF


def test_a_file_that_changed_meanwhile_begins_anew(hub, bring, tmp_path):
    """Halves of two versions never become one file."""
    hub.misbehave(FILE, Mischief(stop_after=HALF), Mischief(status=404))
    with pytest.raises(Unreachable):
        bring()
    hub.files[FILE] = CONTENT[::-1]
    assert bring().read_bytes() == CONTENT[::-1]
    assert len(parts(tmp_path)) == 1


@pytest.mark.parametrize("etags", [True, False])
def test_a_server_without_ranges_begins_anew(hub, bring, etags):
    """With 200 in place of 206, or without an ETag to name the version by."""
    hub.etags = etags
    hub.misbehave(FILE, Mischief(stop_after=HALF), Mischief(ranges=False))
    assert bring().read_bytes() == CONTENT
    assert hub.ranges(FILE) == [None, f"bytes={HALF}-" if etags else None]


def test_another_range_than_asked_for_is_not_taken(hub, bring):
    """A server that answers from elsewhere does not spoil the file."""
    hub.misbehave(FILE, Mischief(stop_after=HALF), Mischief(shift=7))
    assert bring().read_bytes() == CONTENT
    assert hub.ranges(FILE) == [None, f"bytes={HALF}-", None]


def test_a_part_that_is_whole_already_ends_well(hub, bring):
    """A process that was killed between the last byte and the new name does not stop the next one."""
    assert bring().read_bytes() == CONTENT
    assert bring().read_bytes() == CONTENT
    assert hub.ranges(FILE) == [None, f"bytes={len(CONTENT)}-", None]


def test_a_server_that_always_breaks_off_is_given_up(hub, bring):
    """After so many tries without another byte, each with a longer wait."""
    hub.misbehave(FILE, Mischief(stop_after=HALF), *[Mischief(stop_after=0)] * 100)
    with pytest.raises(Unreachable, match=r"broke off after 0\.5 of 1\.0 MB; 0\.5 MB have come and are kept"):
        bring()
    assert bring.waits == [1, 2, 4, 8]
    assert len(hub.ranges(FILE)) == 1 + TRIES


def test_a_truncated_file_from_a_server_without_etags_is_given_up(hub, bring):
    """What cannot be gone on with does not go round for ever."""
    hub.etags = False
    hub.misbehave(FILE, *[Mischief(stop_after=HALF)] * 100)
    with pytest.raises(Unreachable, match="broke off"):
        bring()
    assert len(hub.ranges(FILE)) == TRIES


@pytest.mark.parametrize("status", [404, 401, 403, 410])
def test_a_refusal_is_final(hub, bring, status):
    """It is not asked again, and the sentence has the status and the address."""
    hub.statuses[FILE] = status
    with pytest.raises(Unreachable, match=rf"answered {status} .*weights\.pth"):
        bring()
    assert bring.waits == []


def test_a_server_in_trouble_is_asked_again(hub, bring):
    """500 may be over in a moment, and is an error if it is not."""
    hub.misbehave(FILE, Mischief(status=500), Mischief(status=429))
    assert bring().read_bytes() == CONTENT
    hub.misbehave(FILE, *[Mischief(status=500)] * (TRIES + 1))
    hub.files[FILE] = b"another version"
    with pytest.raises(Unreachable, match="answered 500"):
        bring()


def test_no_network_is_said_at_once(tmp_path):
    """Where nothing ever came, nothing is waited for."""
    waits = []
    for address in ("http://127.0.0.1:1/weights.pth", "http://no-such-host.invalid/weights.pth"):
        with pytest.raises(Unreachable, match=r"cannot be reached: .") as caught:
            download(address, tmp_path / "weights.pth", lambda _step: None, wait=waits.append)
        assert "Errno" not in str(caught.value)
    assert waits == []


@pytest.mark.parametrize("address", ["file:///etc/hostname", "ftp://127.0.0.1/x", "weights.pth"])
def test_other_addresses_are_refused(tmp_path, address):
    """Nothing but http and https is opened."""
    with pytest.raises(FetchError, match="no http or https address"):
        download(address, tmp_path / "weights.pth", lambda _step: None)


def test_a_token_stays_with_the_host_it_is_for(hub, bring):
    """Where the server redirects, to another host, it does not go; other headers do."""
    bring(headers={"authorization": "Bearer secret"})
    assert [each.authorization for each in hub.asked] == ["Bearer secret", None]


def test_progress_is_told_while_it_comes(hub, bring):
    """Not only at the end: a slow server's first half is told before its second half is there."""
    gate, told = Gate(is_open=False), threading.Event()
    hub.misbehave(FILE, Mischief(stop_after=HALF, gate=gate))

    def on_step(step):
        if step.done == HALF:
            told.set()

    thread = threading.Thread(target=bring, args=(on_step,))
    thread.start()
    assert told.wait(PATIENCE)
    gate.open()
    thread.join(PATIENCE)


def test_a_silent_server_is_not_waited_for_for_ever(hub, bring, monkeypatch):
    """What it gave before it fell silent is kept, and gone on with."""
    monkeypatch.setattr("model.official.http.TIMEOUT_S", 0.2)
    gate = Gate(is_open=False)
    hub.misbehave(FILE, Mischief(stop_after=HALF, gate=gate), *[Mischief(stop_after=0, gate=gate)] * TRIES)
    with pytest.raises(Unreachable, match=r"was silent for .* s; 0\.5 MB have come and are kept"):
        bring()
    gate.open()
    assert bring().read_bytes() == CONTENT
    assert hub.ranges(FILE)[-1] == f"bytes={HALF}-"


def test_a_full_disk_is_said_in_a_sentence(bring, monkeypatch, tmp_path):
    """What was written before it was full is kept."""
    write = writing_until(HALF)
    monkeypatch.setattr("model.official.http._write", write)
    with pytest.raises(FetchError, match=r"The disk is full .*Make room") as caught:
        bring()
    assert not isinstance(caught.value, Unreachable)
    (part,) = parts(tmp_path)
    kept = part.stat().st_size
    assert 0 < kept <= HALF
    monkeypatch.undo()
    steps = []
    assert bring(steps.append).read_bytes() == CONTENT
    assert steps[0].done == kept


def test_too_little_room_is_said_before_anything_comes(bring, monkeypatch, tmp_path):
    """With how much is needed and how much there is."""
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: type("Usage", (), {"free": 600_000})())
    with pytest.raises(FetchError, match=r"1\.0 MB are needed in .*, and 0\.6 MB are free"):
        bring()
    assert parts(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "Make room"),
        (errno.EACCES, "SWIN2SR_CACHE_DIR"),
        (errno.EROFS, "SWIN2SR_CACHE_DIR"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_every_trouble_with_the_disk_says_what_to_do(tmp_path, number, words):
    """With the place, and the system's own words."""
    with pytest.raises(FetchError, match=words) as caught, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path) in str(caught.value)
    assert os.strerror(number) in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path, hub):
    """A file stands where the folder should be."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(FetchError, match=r"cache cannot be written: .*"):
        download(f"{hub.url}/{FILE}", tmp_path / "cache" / "weights.pth", lambda _step: None)


def test_a_step_speaks_for_itself():
    """With and without numbers."""
    assert str(Step("waiting")) == "waiting"
    assert str(Step("a from b", 1_500_000, None)) == "a from b: 1.5 of ? MB"
