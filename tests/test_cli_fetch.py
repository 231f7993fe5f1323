"""Official weights on the command line, at boot and by ``load``, from a hub on loopback with tiny random ones."""

from __future__ import annotations

import asyncio
import io
import signal
from types import MappingProxyType

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from app.cli.commands import build
from app.cli.fetch import fetch_all
from app.main import create_app
from app.settings import Settings
from model.official.fetch import OfficialWeights
from model.upscaler import Upscaler
from model.variants import VARIANTS, embedded_path
from tests.loopback_hub import Faults, LoopbackHub
from tests.networks import tiny_network
from tests.scripted import Gate
from tests.server import SERVE, ServerProcess
from tests.service import SMALL, noise, pixels_of, png, running
from tests.tiny_weights import BIN, HUB_ID, NAME, RELEASED, digest, hub_files, tiny_files, tiny_variant

ADMIN = {"authorization": "Bearer wizard-wizard"}
DIGEST = digest(BIN)
IMAGE = noise(24, 16)

needs_weights = pytest.mark.skipif(embedded_path("small-x2") is None, reason="the embedded weights are not here")


@pytest.fixture
def hub(monkeypatch):
    """A hub with tiny weights, whose digest is taken for the authors'; it has no release."""
    variants = MappingProxyType({**VARIANTS, NAME: tiny_variant()})
    for module in ("app.cli.fetch", "app.variants.catalogue"):
        monkeypatch.setattr(f"{module}.VARIANTS", variants)
    with LoopbackHub({path: content for path, content in tiny_files().items() if path != RELEASED}) as hub:
        yield hub


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def settings(hub, cache, monkeypatch):
    """Makes settings of a service that fetches from that hub into that cache."""

    def official_weights(chosen):
        return OfficialWeights(chosen.cache_dir, chosen.offline, chosen.release_url, hub.url, lambda _seconds: None)

    monkeypatch.setattr(Settings, "official_weights", official_weights)
    fixed = {"cache_dir": cache, "release_url": hub.release_url, "device": "cpu", "threads": 1}
    fixed["admin_token"] = "wizard-wizard"
    return lambda **chosen: Settings(**{**SMALL, **fixed, "variants": "small-x2", **chosen})


@pytest.fixture
def run(settings, hub, cache):
    """Runs a command that reads these settings from its environment."""
    environment = {"SWIN2SR_CACHE_DIR": str(cache), "SWIN2SR_RELEASE_URL": hub.release_url, "COLUMNS": "300"}

    def invoke(*arguments, **more):
        return CliRunner().invoke(build(), [str(argument) for argument in arguments], env={**environment, **more})

    assert settings
    return invoke


def during(settings, scenario):
    """What a scenario returns, given a client of the running application, and what waits for the end of its boot."""

    async def go():
        app = create_app(settings)
        registry, over = app.state.service.registry, asyncio.Event()
        boot = registry.boot

        async def watched():
            await boot()
            over.set()

        registry.boot = watched
        async with running(app) as client, asyncio.timeout(120):
            return await scenario(client, over.wait)

    return asyncio.run(go())


async def load(client, name=NAME):
    return await client.post(f"/v1/variants/{name}/load", headers=ADMIN)


async def state(client, name=NAME):
    described = (await client.get(f"/v1/variants/{name}")).json()
    return described["state"], described["reason"]


async def upscale(client, variant):
    return await client.post("/v1/upscale", files={"file": png(IMAGE)}, params={"variant": variant})


# The command line.


def test_a_command_fetches_what_others_then_use(run, cache, tmp_path):
    """One line on standard output with the file and its digest; then it is here, and is measured."""
    answer = run("fetch", NAME)
    assert answer.exit_code == 0, answer.output
    (line,) = answer.stdout.splitlines()
    assert line.startswith(f"{NAME}: {cache}")
    assert line.endswith(f"pytorch_model.bin, SHA-256 {DIGEST}")
    assert f"{NAME}: pytorch_model.bin from 127.0.0.1:" in answer.stderr
    assert "0.3 MB" in answer.stderr
    (row,) = (row for row in run("variants", "--device", "cpu").stdout.splitlines() if NAME in row)
    assert "yes" in row
    (tmp_path / "photo.png").write_bytes(png(noise(40, 40)))
    measured = run("evaluate", tmp_path, "--variant", NAME, "--device", "cpu")
    assert (measured.exit_code, measured.stdout.split()[0]) == (0, NAME), measured.output


def test_present_weights_are_reported_and_not_downloaded(run, hub):
    """Again, with any case of letters, and with OFFLINE set."""
    first = run("fetch", NAME)
    hub.asked.clear()
    again = run("fetch", NAME.upper(), SWIN2SR_OFFLINE="true")
    assert again.exit_code == 0, again.output
    assert again.stdout.partition(":")[2] == first.stdout.partition(":")[2]
    assert again.stderr == ""
    assert hub.asked == []


def test_each_variant_is_tried_and_each_fault_is_a_sentence(run, hub):
    """An unknown name, an alias, an embedded variant and one without source, then one that is downloaded; status 1."""
    answer = run("fetch", "x3", "x2", "small-x2", "jpeg", NAME)
    assert answer.exit_code == 1
    assert answer.stdout.startswith(f"{NAME}: ")
    faults = [line for line in answer.stderr.splitlines() if line.startswith("swin2sr: ")]
    assert [fault.split()[1] for fault in faults] == ["x3:", "x2:", "small-x2:", "jpeg:"]
    assert "Unknown variant" in faults[0]
    assert "classical-x2, lightweight-x2" in faults[1]
    assert "are part of the package" in faults[2]
    assert f"answered 404 Not Found for {hub.release_url}/Swin2SR_Jpeg_dynamic.pth" in faults[3]
    assert "Traceback" not in answer.output


def test_offline_is_a_sentence_of_the_command(run, hub):
    """With what to do instead; no request is sent."""
    answer = run("fetch", NAME, SWIN2SR_OFFLINE="true")
    assert answer.exit_code == 1
    assert "SWIN2SR_OFFLINE forbids" in answer.stderr
    assert f"swin2sr fetch {NAME}" in answer.stderr
    assert hub.asked == []


def test_a_wrong_file_is_a_sentence_of_the_command(run, hub, cache):
    """And is not here afterwards."""
    hub.files[BIN] = b"PK\x03\x04 something else"
    answer = run("fetch", NAME)
    assert answer.exit_code == 1
    assert "is not the expected file" in answer.stderr
    assert run("fetch", NAME, SWIN2SR_OFFLINE="true").exit_code == 1
    assert not [file for file in cache.rglob("*") if file.is_file() and b"something else" in file.read_bytes()]


def test_a_cache_of_the_moment_can_be_named(run, tmp_path):
    """As an option, in place of the setting."""
    answer = run("fetch", NAME, "--cache-dir", tmp_path / "elsewhere")
    assert answer.stdout.startswith(f"{NAME}: {tmp_path / 'elsewhere'}")


def test_evaluate_does_not_measure_a_file_that_changed(run, tmp_path):
    """What is measured is what was fetched."""
    file = OfficialWeights(tmp_path / "cache").find(VARIANTS[NAME])
    assert file is None
    run("fetch", NAME)
    file = OfficialWeights(tmp_path / "cache").find(VARIANTS[NAME])
    with file.resolve().open("ab") as stream:
        stream.write(b"!")
    (tmp_path / "photo.png").write_bytes(png(noise(40, 40)))
    answer = run("evaluate", tmp_path, "--variant", NAME, "--device", "cpu")
    assert answer.exit_code == 1
    assert "has changed since its download" in answer.stderr


def test_standard_output_is_for_programs_also_where_there_are_bars(hub, cache, monkeypatch):
    """While somebody watches on standard error, the line with the file goes where standard output goes."""
    official = OfficialWeights(cache, hub_url=hub.url, release_url=hub.release_url)
    console, output = Console(file=io.StringIO(), force_terminal=True, width=160), io.StringIO()
    monkeypatch.setattr("sys.stdout", output)
    assert fetch_all([NAME], official, console, print) == []
    assert output.getvalue().startswith(f"{NAME}: {cache}")
    assert str(cache) not in console.file.getvalue()


@pytest.mark.slow
def test_a_terminal_has_a_bar(hub, cache):
    """With the bytes, of a resumed download; other steps are lines."""
    hub.misbehave(BIN, Faults(stop_after=2000))
    official = OfficialWeights(cache, hub_url=hub.url, release_url=hub.release_url, wait=lambda _seconds: None)
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    said = []
    assert fetch_all([NAME], official, console, said.append) == []
    text = console.file.getvalue()
    assert f"{NAME}: pytorch_model.bin from 127.0.0.1" in text
    assert "━" in text
    assert "kB" in text
    assert len(said) == 1
    del hub.files[f"{HUB_ID}/config.json"]
    other = OfficialWeights(cache / "other", hub_url=hub.url, release_url=hub.release_url, wait=lambda _seconds: None)
    assert len(fetch_all([NAME], other, console, said.append)) == 1
    assert "trying the next source" in console.file.getvalue()


# The service.


@pytest.mark.slow
@needs_weights
def test_boot_fetches_what_is_wanted_and_serves_the_rest_meanwhile(hub, settings):
    """Meanwhile: loading with how far it is, not ready, 503 for it, the alias with what is there; then all of it."""
    gate = Gate(is_open=False)
    hub.misbehave(BIN, Faults(stop_after=2000, gate=gate))

    async def scenario(client, booted):
        await asyncio.to_thread(gate.wait_until_reached)
        while " of 0.3 MB" not in (await state(client))[1]:
            pass
        meanwhile = (
            await state(client),
            await client.get("/health/ready"),
            await upscale(client, NAME),
            await upscale(client, "x2"),
        )
        gate.open()
        await booted()
        described = (await client.get(f"/v1/variants/{NAME}")).json()
        return meanwhile, described, await client.get("/health/ready"), await upscale(client, "x2")

    meanwhile, described, ready, served = during(settings(variants=f"{NAME},small-x2,x2"), scenario)
    (loading, reason), not_ready, refused, small = meanwhile
    assert loading == "loading"
    assert reason.startswith("being fetched: pytorch_model.bin from 127.0.0.1:")
    assert (not_ready.status_code, refused.status_code) == (503, 503)
    assert f"{NAME}: being fetched" in not_ready.json()["detail"]
    assert refused.json()["code"] == "not_ready"
    assert "is being fetched: " in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) == 10
    assert small.headers["x-swin2sr-variant"] == "small-x2"
    assert (described["state"], described["reason"], described["digest"]) == ("ready", None, DIGEST)
    assert (described["source"], described["license"]) == (VARIANTS[NAME].source, "Apache-2.0")
    assert described["aliases"] == ["x2"]
    assert ready.status_code == 200
    assert served.headers["x-swin2sr-variant"] == NAME


@pytest.mark.slow
@needs_weights
def test_a_boot_that_cannot_fetch_says_why_and_serves_the_rest(hub, settings):
    """Failed with the reason, not ready with it; ``load`` tries again when the hub is back."""
    hub.statuses[f"{HUB_ID}/config.json"] = 500

    async def scenario(client, booted):
        await booted()
        failed = await state(client), await client.get("/health/ready"), await upscale(client, NAME)
        small = await upscale(client, "small-x2")
        hub.statuses.clear()
        return failed, small, await load(client), await client.get("/health/ready"), await upscale(client, NAME)

    failed, small, loaded, ready, served = during(settings(variants=f"small-x2,{NAME}"), scenario)
    (word, reason), not_ready, refused = failed
    assert word == "failed"
    assert reason.startswith("could not be fetched: 127.0.0.1:")
    assert "answered 500" in reason
    assert reason in not_ready.json()["detail"]
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert reason in refused.json()["detail"]
    assert small.status_code == 200
    assert (loaded.status_code, loaded.json()["state"]) == (200, "ready")
    assert ready.status_code == served.status_code == 200


@pytest.mark.slow
@needs_weights
def test_load_fetches_and_answers_when_it_serves(settings, tmp_path):
    """Its answer is that of the authors' weights; the alias stays with what it was bound to at boot."""

    async def scenario(client, booted):
        await booted()
        absent = await state(client)
        loaded = await load(client)
        return absent, loaded, await upscale(client, NAME), await upscale(client, "x2")

    absent, loaded, served, alias = during(settings(), scenario)
    assert absent[0] == "absent"
    assert f"swin2sr fetch {NAME}" in absent[1]
    assert (loaded.status_code, loaded.json()["state"]) == (200, "ready")
    folder = tmp_path / "expected"
    folder.mkdir()
    for path in (f"{HUB_ID}/config.json", BIN):
        (folder / path.rpartition("/")[2]).write_bytes(tiny_files()[path])
    (expected,) = Upscaler.from_pretrained(folder, device="cpu")([IMAGE])
    np.testing.assert_allclose(pixels_of(served.content).astype(int), expected.astype(int), atol=1)
    assert alias.headers["x-swin2sr-variant"] == "small-x2"


@needs_weights
def test_two_loads_at_once_are_one_download(hub, settings):
    """Both answer when it serves."""
    gate = Gate(is_open=False)
    hub.misbehave(BIN, Faults(stop_after=2000, gate=gate))

    async def scenario(client, booted):
        await booted()
        loads = [asyncio.create_task(load(client)) for _ in range(2)]
        await asyncio.to_thread(gate.wait_until_reached)
        gate.open()
        return await asyncio.gather(*loads)

    answers = during(settings(), scenario)
    assert [answer.json()["state"] for answer in answers] == ["ready", "ready"]
    assert hub.ranges(BIN) == [None]


@pytest.mark.slow
@needs_weights
def test_a_download_delays_no_request(hub, settings):
    """While one variant comes, another that is here is loaded for the first request that asks for it."""
    gate = Gate(is_open=False)
    hub.misbehave(BIN, Faults(stop_after=2000, gate=gate))

    async def scenario(client, booted):
        await booted()
        coming = asyncio.create_task(load(client))
        await asyncio.to_thread(gate.wait_until_reached)
        other = await upscale(client, "small-x4")
        gate.open()
        return other, await coming

    if embedded_path("small-x4") is None:
        pytest.skip("the embedded weights are not here")
    other, coming = during(settings(), scenario)
    assert other.status_code == 200
    assert coming.json()["state"] == "ready"


@needs_weights
def test_requests_download_nothing(hub, settings):
    """Nor do unload, reload, listing, or an alias without weights."""

    async def scenario(client, booted):
        await booted()
        changes = [await client.post(f"/v1/variants/{NAME}/{what}", headers=ADMIN) for what in ("unload", "reload")]
        return [*changes, await upscale(client, NAME), await upscale(client, "classical-x4")], await state(client)

    answers, found = during(settings(), scenario)
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert "swin2sr fetch" in answer.json()["detail"]
    assert found[0] == "absent"
    assert hub.asked == []


@needs_weights
def test_offline_neither_boots_nor_loads_what_is_not_here(hub, settings):
    """The startup stops with the message, ``load`` responds with it; no request is sent."""
    with pytest.raises(ValueError, match=f"VARIANTS names '{NAME}': .*SWIN2SR_OFFLINE forbids"):
        create_app(settings(offline=True, variants=NAME))

    async def scenario(client, booted):
        await booted()
        return await load(client), await client.get("/health/ready")

    refused, ready = during(settings(offline=True), scenario)
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert "SWIN2SR_OFFLINE forbids" in refused.json()["detail"]
    assert ready.status_code == 200
    assert hub.asked == []


@needs_weights
def test_weights_that_changed_on_the_disk_are_not_served(hub, settings, cache):
    """Failed with what to do; deleted as it says, ``load`` fetches them again without a restart."""
    settings().official_weights().fetch(tiny_variant())
    blob = settings().official_weights().find(tiny_variant()).resolve()
    with blob.open("ab") as stream:
        stream.write(b"!")

    async def scenario(client, booted):
        await booted()
        failed = await state(client), await load(client)
        blob.unlink()
        return failed, await load(client), await upscale(client, NAME)

    assert blob.is_relative_to(cache)
    ((word, reason), refused), loaded, served = during(settings(variants=f"small-x2,{NAME}"), scenario)
    assert word == "failed"
    assert f"Delete {blob}" in reason
    assert reason in refused.json()["detail"]
    assert loaded.json()["state"] == "ready"
    assert served.status_code == 200
    assert hub.ranges(BIN) == [None, None]


def test_only_the_administrator_fetches(hub, settings):
    """Without the token no request is sent to a source."""

    async def scenario(client, _booted):
        return await client.post(f"/v1/variants/{NAME}/load")

    assert during(settings(), scenario).status_code == 401
    assert hub.asked == []


@pytest.mark.slow
@needs_weights
def test_the_process_ends_in_the_middle_of_a_download(hub, cache, monkeypatch):
    """SIGTERM is not held up by it; the next start downloads again, and is ready."""
    name, variant = "classical-x4", VARIANTS["classical-x4"]  # without a published digest
    network = tiny_network("lightweight_x4")
    hub.files |= hub_files(network, variant.hub_id)
    path = f"{variant.hub_id}/pytorch_model.bin"
    gate = Gate(is_open=False)
    hub.misbehave(path, Faults(stop_after=2000, gate=gate))
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    chosen = {"variants": f"small-x2,{name}", "device": "cpu", "threads": 1}
    chosen |= {"cache_dir": cache, "release_url": hub.release_url}
    server = ServerProcess(**chosen)
    server.start()
    try:
        gate.wait_until_reached()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, "".join(server.output)
    finally:
        gate.open()
        server.signal(signal.SIGKILL)
    with ServerProcess(fork=SERVE, **chosen) as again:
        assert any(f"variant {name} is ready" in line for line in again.output)
