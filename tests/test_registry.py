"""Which variants there are, which variants the aliases name, and in which state each is."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from app.errors import NotReady, UnknownVariant
from app.variants.loaded_model import warm_up
from app.variants.registry import ModelRegistry
from model.official.fetch import OfficialWeights
from model.variants import ALIASES, VARIANTS, embedded_path
from tests.scripted import PATIENCE, Gate, ScriptedUpscaler, loading, model_dir


@pytest.fixture
def build(tmp_path):
    """Makes registries over folders that look like checkpoints of the given names."""
    made = []

    def make(*names, wanted=("x2",), load=lambda _name, _path: ScriptedUpscaler()):
        folder = model_dir(tmp_path / f"models{len(made)}", *names) if names else None
        made.append(ModelRegistry(wanted, model_dir=folder, device="cpu", load=load))
        return made[-1]

    yield make
    for registry in made:
        registry.close()


def ready(registry, name):
    return asyncio.run(registry.obtain(registry.resolve(name))).upscaler


def test_an_alias_names_the_first_variant_that_is_present(build):
    """On a CPU lightweight comes before small, and classical last."""
    assert build("classical-x2").find("x2").name == ("small-x2" if embedded_path("small-x2") else "classical-x2")
    assert build("classical-x2", "lightweight-x2").find("x2").name == "lightweight-x2"


def test_every_alias_names_variants_of_the_table():
    """A preference that does not exist would never be bound."""
    for preferences in ALIASES.values():
        for names in preferences.values():
            assert set(names) <= set(VARIANTS)
            assert any(not VARIANTS[name].embedded for name in names)


def test_own_checkpoints_are_variants_under_their_names_in_lower_case(tmp_path):
    """Folders in Hugging Face layout and official files count, anything else does not."""
    folder = model_dir(tmp_path / "own", "My-Weights")
    (folder / "Tuned.pth").touch()
    (folder / "notes.txt").touch()
    (folder / "empty").mkdir()
    registry = ModelRegistry(("my-weights",), model_dir=folder, device="cpu")
    assert [each.name for each in registry.describe_all() if each.name not in VARIANTS] == ["my-weights", "tuned"]
    description = registry.describe("MY-WEIGHTS")
    assert (description.task, description.state, description.scale) == ("custom", "absent", None)
    registry.close()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["模型"], "cannot be a variant"),
        (["my model"], "cannot be a variant"),
        (["X2"], "is an alias"),
        (["Mine", "mine"], "rename one"),
    ],
)
def test_own_checkpoints_with_names_of_no_use_stop_the_boot(build, names, says):
    """A name that no request could ask for, that is an alias, or that two files claim: the message has the file."""
    with pytest.raises(ValueError, match=says) as caught:
        build(*names)
    assert names[-1] in str(caught.value)


def test_own_weights_override_an_official_variant(build):
    """A folder named like an official variant is that variant."""
    registry = build("classical-x4", wanted=("classical-x4",))
    assert registry.resolve("classical-x4").path is not None
    assert registry.describe("classical-x4").replaces == "official"
    assert registry.describe("classical-x4").parameters is None  # the authors' number is not claimed of them


def test_what_is_not_present_names_the_command_that_fetches_it(build):
    """For an official variant and for an alias of which nothing is here."""
    registry = build()
    with pytest.raises(NotReady, match="swin2sr fetch classical-x4"):
        registry.resolve("classical-x4")
    if registry.find("compressed").path is None:
        with pytest.raises(NotReady, match="swin2sr fetch compressed-x4"):
            registry.resolve("compressed")
    assert "swin2sr fetch jpeg" in registry.describe("jpeg").reason


def test_the_error_for_an_unknown_name_lists_the_variants(build):
    """Also for a description."""
    for ask in (build().resolve, build().describe):
        with pytest.raises(UnknownVariant) as error:
            ask("x3")
        assert {"x2", "small-x2"} <= set(error.value.facts["available"])


def test_a_wanted_variant_that_cannot_be_loaded_stops_the_startup(build, tmp_path):
    """With its name; an alias without a variant does not, so that the defaults work anywhere."""
    with pytest.raises(ValueError, match="VARIANTS names 'no-such-thing'"):
        build(wanted=("no-such-thing",))
    offline = OfficialWeights(tmp_path, offline=True)
    with pytest.raises(ValueError, match=r"VARIANTS names 'classical-x2': .*SWIN2SR_OFFLINE.*fetch classical-x2"):
        ModelRegistry(("classical-x2",), official=offline, device="cpu")
    build(wanted=("x2", "x4", "jpeg-restore", "compressed"))


@pytest.fixture
def compressed(build):
    """A registry that was told to load the alias ``compressed`` only, and did."""
    registry = build(wanted=("compressed",))
    asyncio.run(registry.boot())
    return registry


def test_an_alias_that_runs_two_variants_loads_them_at_the_start(compressed):
    """Beside the one that it names, so that no request waits for a load."""
    ready = {each.name for each in compressed.describe_all() if each.state == "ready"}
    assert ready == {"small-compressed-x4", "small-jpeg", "small-x4"}


@pytest.mark.parametrize("unloaded", ["small-compressed-x4", "small-jpeg", "small-x4"])
def test_an_alias_runs_its_own_variant_where_one_of_three_was_unloaded(compressed, unloaded):
    """So it is refused with that variant, whose description says that it is not available."""
    assert [each.name for each in compressed.chain(None)] == ["small-jpeg", "small-x4"]
    assert compressed.chain("small-compressed-x4") is None
    assert compressed.chain("x4") is None
    asyncio.run(compressed.unload(compressed.find(unloaded)))
    assert compressed.chain("Compressed") is None
    if unloaded == "small-compressed-x4":
        with pytest.raises(NotReady, match="was unloaded"):
            ready(compressed, "compressed")


def test_an_embedded_variant_that_the_package_lacks_stops_the_boot(build, monkeypatch):
    """It cannot be downloaded."""
    monkeypatch.setattr("app.variants.catalogue.embedded_path", lambda _name: None)
    with pytest.raises(ValueError, match=r"VARIANTS names 'small-x2': .*Reinstall it"):
        build(wanted=("small-x2",))


def test_own_weights_have_no_license_of_the_authors(build):
    """Under an official name, or an embedded one: no digest, licence or source of weights that they are not."""
    registry = build("classical-x2", "lightweight-x2", "small-x4")
    for name in ("classical-x2", "lightweight-x2", "small-x4"):
        own = registry.describe(name)
        assert (own.digest, own.license, own.source) == (None, None, "MODEL_DIR")
    absent = build().describe("classical-x2")
    assert (absent.digest, absent.license) == (VARIANTS["classical-x2"].digest, "Apache-2.0")


def test_a_variant_is_ready_only_when_it_is_warm(build):
    """Loading and two forward passes come before the state says so."""
    gate = Gate(is_open=False)
    upscaler = ScriptedUpscaler(skip=0)
    upscaler.gate = gate
    registry = build("classical-x2", wanted=("classical-x2",), load=loading(classical_x2=upscaler))

    async def boot():
        task = asyncio.create_task(registry.boot())
        await asyncio.to_thread(gate.wait_until_reached)
        state, reasons = registry.describe("classical-x2").state, registry.reasons_not_ready()
        gate.open()
        await task
        return state, reasons

    assert asyncio.run(boot()) == ("loading", ["classical-x2: loading"])
    assert [len(call) for call in upscaler.calls] == [1, 2]
    description = registry.describe("classical-x2")
    assert (description.state, description.device, description.precision) == ("ready", "scripted", "exact")
    assert registry.reasons_not_ready() == []


def test_weights_that_do_not_load_are_failed_with_the_reason(build):
    """Requests get it too, and the next one does not try again."""
    tries = []

    def load(name, _path):
        tries.append(name)
        raise ValueError("keys are missing")

    registry = build("classical-x2", wanted=("classical-x2",), load=load)
    asyncio.run(registry.boot())
    assert registry.describe("classical-x2").state == "failed"
    assert registry.reasons_not_ready() == ["classical-x2: keys are missing"]
    with pytest.raises(NotReady, match="keys are missing"):
        ready(registry, "classical-x2")
    assert tries == ["classical-x2"]


def test_weights_that_compute_nonsense_are_not_ready(build):
    """Warm-up looks at what comes out."""
    upscaler = ScriptedUpscaler()
    upscaler.forward = lambda tiles: [np.full((1, 1, 3), np.nan, np.float32) for _ in tiles]
    registry = build("classical-x2", wanted=("classical-x2",), load=lambda _name, _path: upscaler)
    asyncio.run(registry.boot())
    assert "finite" in registry.describe("classical-x2").reason


def test_a_present_variant_is_loaded_when_it_is_first_asked_for(build):
    """Once, however many ask at the same time, and one load at a time."""
    loads, busy = [], threading.Lock()

    def load(name, _path):
        assert busy.acquire(blocking=False), "two loads at a time"
        loads.append(name)
        busy.release()
        return ScriptedUpscaler()

    registry = build("classical-x2", "classical-x4", "lightweight-x2", load=load)

    async def ask():
        names = ["classical-x2", "classical-x4"] * 5
        return await asyncio.gather(*(registry.obtain(registry.resolve(name)) for name in names))

    assert registry.describe("classical-x4").state == "absent"
    asyncio.run(asyncio.wait_for(ask(), PATIENCE))
    assert sorted(loads) == ["classical-x2", "classical-x4"]
    assert registry.describe("classical-x4").state == "ready"


def test_the_real_embedded_weights_load(build):
    """What comes with the package is a network."""
    if embedded_path("small-x2") is None:
        pytest.skip("this installation lacks the embedded weights")
    registry = build(load=None)
    upscaler = ready(registry, "small-x2")
    (output,) = upscaler.forward([np.full((8, 8, 3), 128, np.uint8)])
    assert upscaler.scale == 2
    assert output.shape == (16, 16, 3)
    np.testing.assert_allclose(output, 128 / 255, atol=0.05)


def test_a_device_is_warmed_up_for_a_whole_tile(caplog):
    """A CPU is not. Where there is no memory for one, the log says so and the variant is ready."""
    sizes = []

    class Device(ScriptedUpscaler):
        def forward(self, tiles):
            sizes.append([tile.shape[:2] for tile in tiles])
            return super().forward(tiles)

    device = Device()
    warm_up(device, 547)
    assert sizes == [[(64, 64)], [(64, 64), (48, 48)]]
    device = Device(memory=544**2 - 1)
    device.runs_ahead = True
    sizes.clear()
    warm_up(device, 547)
    assert sizes[-1] == [(544, 544)]
    assert "no memory for a tile of TILE_SIZE 547" in caplog.text
    device = Device(memory=10, skip=0)
    device.runs_ahead = True
    with pytest.raises(MemoryError):
        warm_up(device, 547)
