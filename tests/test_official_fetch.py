"""Official weights, fetched from a hub and a release on loopback that have tiny random ones."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.official.fetch import FetchError, OfficialWeights, Unreachable, file_digest
from model.official.hub import local_folder
from model.pretrained import Swin2SRForImageSuperResolution
from model.upscaler import Upscaler
from model.variants import VARIANTS
from tests.loopback_hub import COMMIT, Faults, LoopbackHub
from tests.scripted import PATIENCE, Gate
from tests.service import noise
from tests.tiny_weights import BIN, HUB_ID, RELEASED, digest, tiny_files, tiny_variant

ROOT = Path(__file__).parents[1]
VARIANT = tiny_variant()
PROGRAM = """
import sys
from pathlib import Path
from model.official.fetch import OfficialWeights
from dataclasses import replace
from model.variants import VARIANTS
official = OfficialWeights(Path(sys.argv[1]), release_url=sys.argv[2])
variant = replace(VARIANTS["lightweight-x2"], digests={})
print(official.fetch(variant, lambda step: print(step.done, step, file=sys.stderr, flush=True)))
"""


@pytest.fixture
def at_once(monkeypatch):
    """Let the hub's library retry without waiting."""
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)


@pytest.fixture
def real():
    return tiny_files()


@pytest.fixture
def hub(real):
    with LoopbackHub(dict(real)) as hub:
        yield hub


@pytest.fixture
def official(hub, tmp_path):
    """Weights in an empty cache, from that hub and that release; waiting takes no time."""
    return OfficialWeights(tmp_path / "cache", release_url=hub.release_url, hub_url=hub.url, wait=lambda _seconds: None)


def without_the_hub(hub):
    """Remove the repository from the hub, so that only the release has files."""
    for path in list(hub.files):
        if not path.startswith("release/"):
            del hub.files[path]


def everything(folder):
    """Every file below a folder, with what is in it; links are files."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def record(official, name):
    return json.loads((official.cache_dir / "swin2sr" / "lightweight-x2.json").read_text())[name]


def test_the_hubs_weights_come_into_the_hubs_own_cache(hub, official, real):
    """Where Transformers and ``from_pretrained`` find them too; the digest is recorded, and nothing else is left."""
    assert official.find(VARIANT) is None
    file = official.fetch(VARIANT)
    assert file.read_bytes() == real[BIN]
    assert file.name == "pytorch_model.bin"
    assert file.parent.name == COMMIT
    assert official.find(VARIANT) == file
    assert local_folder(HUB_ID, cache_dir=official.cache_dir) == file.parent
    assert Swin2SRForImageSuperResolution.from_pretrained(HUB_ID, cache_dir=official.cache_dir).config.upscale == 2
    assert {path.name for path in file.parent.iterdir()} == {Path(path).name for path in real if path != RELEASED}
    assert (
        record(official, file.name)["sha256"] == hashlib.sha256(real[BIN]).hexdigest() == official.digest(VARIANT, file)
    )
    assert not list(official.cache_dir.rglob("*.part"))
    assert RELEASED not in {each.path for each in hub.asked}


def test_what_is_here_is_not_fetched_again(hub, official):
    """No request is sent, also without a network."""
    file = official.fetch(VARIANT)
    hub.asked.clear()
    assert official.fetch(VARIANT) == file
    assert replace(official, offline=True).fetch(VARIANT) == file
    assert hub.asked == []


def test_weights_that_another_program_downloaded_count(hub, official):
    """As huggingface_hub itself puts them there."""
    from huggingface_hub import hf_hub_download

    for name in ("config.json", "pytorch_model.bin"):
        hf_hub_download(HUB_ID, name, cache_dir=official.cache_dir, endpoint=hub.url)
    hub.asked.clear()
    assert official.fetch(VARIANT) == official.find(VARIANT)
    assert hub.asked == []
    assert official.digest(VARIANT, official.find(VARIANT)) == digest(BIN)


def test_half_a_snapshot_is_none(hub, official, real):
    """A configuration without weights, or the reverse, is fetched to the end."""
    from huggingface_hub import hf_hub_download

    weights = Path(hf_hub_download(HUB_ID, "pytorch_model.bin", cache_dir=official.cache_dir, endpoint=hub.url))
    assert official.find(VARIANT) is None
    assert official.fetch(VARIANT) == weights
    assert hub.ranges(BIN) == [None]
    weights.resolve().unlink()
    assert official.find(VARIANT) is None
    assert official.fetch(VARIANT).read_bytes() == real[BIN]


def test_both_layouts_give_the_same_image(hub, official, tmp_path):
    """The hub's files and the release's, fetched and loaded, upscale an image to the same pixels."""
    image = noise(32, 32)
    from_hub = official.fetch(VARIANT)
    without_the_hub(hub)
    from_release = replace(official, cache_dir=tmp_path / "another").fetch(VARIANT)
    assert (from_hub.suffix, from_release.suffix) == (".bin", ".pth")
    (first,), (second,) = (Upscaler.from_pretrained(file, device="cpu")([image]) for file in (from_hub, from_release))
    assert np.array_equal(first, second)


@pytest.mark.slow
def test_the_authors_weights_give_the_golden_image(tmp_path, shared):
    """The real files, fetched from a hub with their published digest, upscale the authors' image to their pixels."""
    folder = shared / "checkpoints" / "swin2SR-lightweight-x2-64"
    names = ("config.json", "preprocessor_config.json", "pytorch_model.bin")
    with LoopbackHub({f"{HUB_ID}/{name}": (folder / name).read_bytes() for name in names}) as hub:
        file = OfficialWeights(tmp_path, release_url=hub.release_url, hub_url=hub.url).fetch(VARIANTS["lightweight-x2"])
    image, golden = (
        np.asarray(Image.open(folder / "golden" / name).convert("RGB")) for name in ("in_32x32.png", "out_32x32.png")
    )
    (upscaled,) = Upscaler.from_pretrained(file, device="cpu")([image])
    assert np.abs(upscaled.astype(int) - golden).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("status", [None, 401, 404, 500, 503])
@pytest.mark.usefixtures("at_once")
def test_without_the_hub_the_release_is_taken(hub, official, real, status):
    """For every kind of failure of the hub; the steps are reported."""
    without_the_hub(hub)
    if status:
        hub.statuses[f"{HUB_ID}/config.json"] = status
    steps = []
    file = official.fetch(VARIANT, lambda step: steps.append(str(step)))
    assert file.read_bytes() == real[RELEASED]
    assert official.find(VARIANT) == file
    assert record(official, file.name)["url"] == f"{hub.release_url}/{file.name}"
    assert any("trying the next source" in step for step in steps)


def test_a_hub_that_is_no_hub_is_passed_over(hub, official, real):
    """Something else that listens there."""
    elsewhere = replace(official, hub_url=f"{hub.url}/release")
    assert elsewhere.fetch(VARIANT).read_bytes() == real[RELEASED]


def test_a_variant_of_the_release_alone_is_fetched_from_there(hub, official):
    """The JPEG model has no repository, and no digest is known: the first download is recorded."""
    hub.files["release/Swin2SR_Jpeg_dynamic.pth"] = b"PK\x03\x04 weights"
    file = official.fetch(VARIANTS["jpeg"])
    assert file.read_bytes() == b"PK\x03\x04 weights"
    assert official.digest(VARIANTS["jpeg"], file) == hashlib.sha256(b"PK\x03\x04 weights").hexdigest()
    assert {each.path.partition("/")[0] for each in hub.asked} == {"release", "bytes"}


@pytest.mark.slow
def test_a_connection_that_breaks_is_tried_again(hub, official, real):
    """In the same fetch, and nothing of the broken attempt is left."""
    hub.misbehave(BIN, Faults(stop_after=1000))
    assert official.fetch(VARIANT).read_bytes() == real[BIN]
    assert len(hub.ranges(BIN)) == 2


def test_a_hub_that_breaks_off_for_good_is_left_for_the_release(hub, official, real):
    """And the next fetch, after the release failed too, tries again."""
    hub.misbehave(BIN, *[Faults(status=500)] * 20)
    assert official.fetch(VARIANT).read_bytes() == real[RELEASED]


def test_a_killed_process_leaves_nothing_that_counts(hub, official, real):
    """Killed in the middle of a download: nothing counts as present, and the next fetch succeeds."""
    gate = Gate(is_open=False)
    hub.misbehave(BIN, Faults(stop_after=3000, gate=gate))
    with start(hub, official.cache_dir) as process:
        gate.wait_until_reached()
        process.send_signal(signal.SIGKILL)
    gate.open()
    assert process.returncode == -signal.SIGKILL
    assert official.find(VARIANT) is None
    assert official.fetch(VARIANT).read_bytes() == real[BIN]


def start(hub, cache_dir):
    """Another process that fetches; where its hub is, it learns from ``HF_ENDPOINT``."""
    command = [sys.executable, "-c", PROGRAM, str(cache_dir), hub.release_url]
    environment = {**os.environ, "HF_ENDPOINT": hub.url}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **streams)


@pytest.mark.slow
def test_of_two_processes_one_downloads(hub, official, real):
    """The other waits, says so, and finds what it wanted."""
    gate = Gate(is_open=False)
    hub.misbehave(BIN, Faults(stop_after=2000, gate=gate))
    with start(hub, official.cache_dir) as first, start(hub, official.cache_dir) as second:
        said = threading.Event()

        def listen(process):
            for line in process.stderr:
                if "waiting for another process" in line:
                    said.set()

        listeners = [threading.Thread(target=listen, args=(process,)) for process in (first, second)]
        for listener in listeners:
            listener.start()
        assert said.wait(PATIENCE)
        gate.open()
        answers = [process.stdout.read().strip() for process in (first, second)]
        for listener in listeners:
            listener.join(PATIENCE)
    assert (first.returncode, second.returncode) == (0, 0)
    assert answers == [str(official.find(VARIANT))] * 2
    assert hub.ranges(BIN) == [None]
    assert Path(answers[0]).read_bytes() == real[BIN]


def test_a_known_digest_is_insisted_on(hub, official):
    """Another file than the authors' is not kept, is not on record, and the release is not tried in its place."""
    hub.files[BIN] = b"PK\x03\x04 something else"
    with pytest.raises(FetchError, match=r"not kept: its SHA-256 is .*not ") as caught:
        official.fetch(VARIANT)
    assert not isinstance(caught.value, Unreachable)
    assert official.find(VARIANT) is None
    assert not any(b"something else" in content for content in everything(official.cache_dir).values())
    assert not (official.cache_dir / "swin2sr" / "lightweight-x2.json").exists()
    assert RELEASED not in {each.path for each in hub.asked}


def test_the_hubs_own_digest_is_insisted_on(hub, official):
    """Where no other is known: what comes is what the hub says it has."""
    unknown = replace(VARIANT, digests={})
    hub.misbehave(BIN, Faults(content=b"PK\x03\x04" + bytes(len(hub.files[BIN]) - 4)))
    with pytest.raises(FetchError, match="which the hub announced"):
        official.fetch(unknown)
    assert official.find(unknown) is None
    assert official.fetch(unknown).is_file()


def test_a_truncated_file_is_not_taken(hub, official, real):
    """With a length to match, from a hub that says how long it is; the release has it whole."""
    hub.misbehave(BIN, Faults(content=real[BIN][:-1000]))
    assert official.fetch(VARIANT).read_bytes() == real[RELEASED]
    assert not list(official.cache_dir.rglob("*.part"))


def test_the_first_download_is_remembered(hub, official, real):
    """A later one that is another file is refused, with the record to delete if it is to be trusted."""
    without_the_hub(hub)
    file = official.fetch(VARIANT)
    file.unlink()
    hub.files[RELEASED] = real[RELEASED] + b"!"
    with pytest.raises(FetchError, match=r"recorded on 20\d\d-\d\d-\d\d.* delete .*lightweight-x2\.json") as caught:
        official.fetch(VARIANT)
    assert official.find(VARIANT) is None
    (official.cache_dir / "swin2sr" / "lightweight-x2.json").unlink()
    assert official.fetch(VARIANT).read_bytes() == real[RELEASED] + b"!"
    assert "not kept" in str(caught.value)


@pytest.mark.parametrize("from_hub", [True, False])
def test_a_file_that_changed_in_the_cache_is_refused(hub, official, real, from_hub):
    """By ``verify``, which loading calls, and by ``fetch``; deleted as the sentence says, it is fetched again."""
    if not from_hub:
        without_the_hub(hub)
    file = official.fetch(VARIANT)
    official.verify(VARIANT, file)
    with file.resolve().open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\xff\xff\xff")
    for look in (lambda: official.verify(VARIANT, file), lambda: official.fetch(VARIANT)):
        with pytest.raises(FetchError, match=r"Delete .* and run `swin2sr fetch lightweight-x2`") as caught:
            look()
        assert str(file.resolve()) in str(caught.value)
    file.resolve().unlink()
    assert official.find(VARIANT) is None
    assert official.fetch(VARIANT).read_bytes() == real[BIN if from_hub else RELEASED]


def test_a_page_in_place_of_weights_is_not_remembered(hub, official, real):
    """A proxy's login answers 200 to everything; nothing of it is kept, and later the file is taken."""
    without_the_hub(hub)
    hub.misbehave(RELEASED, Faults(content=b"<!doctype html><title>Log in</title>"))
    with pytest.raises(Unreachable, match="did not send weights"):
        official.fetch(VARIANT)
    assert not list(official.cache_dir.rglob("*.json"))
    assert official.fetch(VARIANT).read_bytes() == real[RELEASED]


def test_safetensors_are_preferred_where_no_digest_decides(hub, official):
    """A variant without known digests takes them; one whose other file is known takes that."""
    hub.files[f"{HUB_ID}/model.safetensors"] = (2).to_bytes(8, "little") + b"{}"
    assert official.fetch(VARIANT).name == "pytorch_model.bin"
    unknown = replace(VARIANT, name="tuned", digests={})
    other = replace(official, cache_dir=official.cache_dir / "other")
    assert other.fetch(unknown).name == "model.safetensors"


def test_what_can_be_checked_comes_first(hub, official, real):
    """Where the digest of the release's file alone is known, that file is taken, and the hub is for want of it."""
    name = Path(RELEASED).name
    checked = replace(VARIANT, digests={name: hashlib.sha256(real[RELEASED]).hexdigest()})
    assert official.fetch(checked).name == name
    assert not [each for each in hub.asked if "resolve" in each.path]
    del hub.files[RELEASED]
    other = replace(official, cache_dir=official.cache_dir / "other")
    assert other.fetch(checked).name == "pytorch_model.bin"


def test_neither_source_sends_the_file(official, hub):
    """The sentence has what each said, and what to set behind a proxy."""
    without_the_hub(hub)
    hub.files.clear()
    with pytest.raises(Unreachable, match=r"answered 401|without config\.json|has no public repository") as caught:
        official.fetch(VARIANT)
    assert "answered 404 Not Found" in str(caught.value)
    assert "HTTPS_PROXY" in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
def test_no_network(tmp_path):
    """Neither hub nor release is reached: both are named, and nothing is left behind."""
    nowhere = "http://127.0.0.1:1"
    official = OfficialWeights(tmp_path, release_url=nowhere, hub_url=nowhere, wait=lambda _seconds: None)
    with pytest.raises(Unreachable, match=r"cannot be reached.*cannot be reached"):
        official.fetch(VARIANT)
    assert official.find(VARIANT) is None


def test_offline_says_what_to_do(hub, official):
    """Nothing is asked, and nothing is written."""
    offline = replace(official, offline=True)
    with pytest.raises(FetchError, match=r"SWIN2SR_OFFLINE forbids.*swin2sr fetch lightweight-x2") as caught:
        offline.fetch(VARIANT)
    assert str(official.cache_dir) in str(caught.value)
    assert hub.asked == []
    assert not official.cache_dir.exists()


def test_the_hubs_own_offline_keeps_the_hub_unasked(hub, official, real):
    """``HF_HUB_OFFLINE`` also applies to downloads from the release."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(official.cache_dir), hub.release_url]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "HF_HUB_OFFLINE is set" in done.stderr
    assert Path(done.stdout.strip()).read_bytes() == real[RELEASED]
    assert {each.path.partition("/")[0] for each in hub.asked} == {"release", "bytes"}


def test_embedded_weights_are_never_fetched(official, hub):
    """They come with the package."""
    with pytest.raises(FetchError, match="are part of the package"):
        official.fetch(VARIANTS["small-x2"])
    assert hub.asked == []


def test_a_broken_record_is_named(official):
    """It is not taken for none, which would let another file in."""
    file = official.fetch(replace(VARIANT, digests={}))
    place = official.cache_dir / "swin2sr" / "lightweight-x2.json"
    for text in (
        "nonsense",
        "[]",
        '{"pytorch_model.bin": {}}',
        '{"pytorch_model.bin": {"sha256": "x", "fetched": "y"}}',
    ):
        place.write_text(text)
        with pytest.raises(FetchError, match=r"lightweight-x2\.json is not a valid record.*Delete it"):
            official.verify(replace(VARIANT, digests={}), file)


def test_a_file_that_cannot_be_read_is_named(official):
    """It went away, say, between its finding and its reading."""
    with pytest.raises(FetchError, match=r"Cannot read .*gone\.bin: No such file"):
        official.verify(VARIANT, official.cache_dir / "gone.bin")


def test_an_unreadable_cache_counts_as_empty(official, monkeypatch):
    """It is no reason for a service not to start."""
    official.fetch(VARIANT)
    monkeypatch.setattr(os, "listdir", denied)
    assert official.find(VARIANT) is None


def denied(_folder):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_cache_that_cannot_be_written_is_named(official):
    """With what to do; as somebody who may not write, where this user may do anything."""
    official.fetch(VARIANT)  # while everything may be imported
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        if os.getuid() == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(FetchError, match=r"Cannot write .*Permission denied.*SWIN2SR_CACHE_DIR") as caught:
                replace(official, cache_dir=Path(folder) / "cache").fetch(VARIANT)
        finally:
            if os.getuid() == 0:
                os.seteuid(0)
    assert folder in str(caught.value)


@pytest.mark.slow
def test_the_folder_is_the_hubs_by_default(tmp_path, hub, real):
    """Without ``cache_dir`` the hub's files are in the hub's cache, and the others in its assets."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    program = PROGRAM.replace("Path(sys.argv[1])", "None")
    command = [sys.executable, "-c", program, "", hub.release_url]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    file = Path(done.stdout.strip())
    assert file.is_relative_to(tmp_path / "hub")
    assert file.read_bytes() == real[BIN]
    assert (tmp_path / "assets" / "swin2sr" / "lightweight-x2.json").is_file()


def test_digest_is_sha256(tmp_path):
    """The digest of the bytes 'abc' is the one that FIPS 180 gives."""
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_model_is_imported_without_huggingface_hub():
    """Evaluation and training do not import huggingface_hub."""
    code = "import sys; sys.modules['huggingface_hub'] = None; import model.official.fetch, model.bench, model.training"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
