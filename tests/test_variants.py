"""The table of variants: figures that the networks themselves confirm, aliases that lead somewhere."""

import re
from pathlib import Path

import pytest

from model import variants
from model.checkpoints import load_network
from model.config import Swin2SRConfig
from model.network import Swin2SR
from model.variants import ALIASES, VARIANTS, embedded_path


def test_the_table_holds_the_promised_names():
    """Six official variants and four embedded ones, each under its own name."""
    assert list(VARIANTS) == [
        *("classical-x2", "classical-x4", "lightweight-x2", "realworld-x4", "compressed-x4", "jpeg"),
        *("small-x2", "small-x4", "small-jpeg", "small-compressed-x4"),
    ]
    assert all(variant.name == name for name, variant in VARIANTS.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_scale_and_channels_are_those_of_the_network(name):
    """An official variant's configuration and an embedded one's file have the stated number of weights."""
    variant = VARIANTS[name]
    config = load_network(embedded_path(name)).config if variant.embedded else Swin2SRConfig.from_dict(variant.config)
    network = Swin2SR(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == variant.parameters
    assert (config.upscale, config.num_channels) == (variant.scale, variant.channels)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_says_what_it_is_for_and_where_it_comes_from(name):
    """The summary is one sentence, there is a place to get the weights from, and digests are SHA-256."""
    variant = VARIANTS[name]
    assert re.fullmatch(r"[A-Z][^.]+\.", variant.summary)
    assert variant.license == "Apache-2.0"
    assert variant.embedded != bool(variant.hub_id or variant.release_file)
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in variant.digests.values())
    assert variant.digest in {None, *variant.digests.values()}
    assert (variant.task == "restoration") == (variant.scale == 1)


def test_names_and_scales_agree():
    """A name that ends in a scale has that scale; a name without one keeps the size."""
    for name, variant in VARIANTS.items():
        scale = re.search(r"-x(\d)$", name)
        assert variant.scale == (int(scale[1]) if scale else 1)


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_names_variants_of_one_scale_on_both_devices(alias):
    """On either device an alias leads to the same variants, all of one scale and task, in another order."""
    orders = ALIASES[alias]
    assert set(orders) == {"cpu", "cuda"}
    assert sorted(orders["cpu"]) == sorted(orders["cuda"])
    assert len({(VARIANTS[name].scale, VARIANTS[name].task) for name in orders["cpu"]}) == 1
    assert any(VARIANTS[name].embedded for name in orders["cpu"])
    assert alias not in VARIANTS


def test_a_gpu_prefers_large_networks_and_a_cpu_small_ones():
    """Classical comes first on a GPU and last on a CPU."""
    assert ALIASES["x2"]["cuda"] == ("classical-x2", "lightweight-x2", "small-x2")
    assert ALIASES["x2"]["cpu"] == ("lightweight-x2", "small-x2", "classical-x2")


def test_the_table_cannot_be_changed():
    """Variants and aliases are read-only."""
    with pytest.raises(TypeError):
        VARIANTS["mine"] = VARIANTS["jpeg"]
    with pytest.raises(AttributeError):
        VARIANTS["jpeg"].scale = 2


def test_only_embedded_variants_have_an_embedded_path():
    """Official and unknown names have none, not even one that leads out of the folder."""
    official = [name for name, variant in VARIANTS.items() if not variant.embedded]
    for name in (*official, "unknown", "../weights/small-x2"):
        assert embedded_path(name) is None


def test_embedded_weights_are_what_the_table_says():
    """Every file in the package is a variant's, loads strictly, has its scale and channels, and is small."""
    files = Path(variants.__file__).with_name("weights").glob("*.safetensors")
    for path in files:
        assert embedded_path(path.stem) == path
        network = load_network(path)
        assert network.config.upscale == VARIANTS[path.stem].scale
        assert network.config.num_channels == VARIANTS[path.stem].channels
        assert path.stat().st_size < 1_500_000
