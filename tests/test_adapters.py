"""Adapters of peft in the model classes, with Transformers as the oracle."""

from __future__ import annotations

import sys

import pytest
import torch

import model
from tests.optional import peft, transformers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FIELDS = {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 16}
PIXELS = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def build(library=model):
    torch.manual_seed(0)
    return library.Swin2SRForImageSuperResolution(library.Swin2SRConfig(**FIELDS)).eval()


def lora(targets=("query", "value")):
    return peft.LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False)


@torch.no_grad()
def answer(network):
    return network(PIXELS).reconstruction


@pytest.mark.parametrize("library", [model, transformers], ids=lambda each: each.__name__)
def test_adapters_are_added_chosen_and_removed(library):
    """Each changes the answer; without them it is that of the network; only their weights are trained."""
    network = build(library)
    plain = answer(network)
    network.add_adapter(lora(), adapter_name="one")
    network.add_adapter(lora(["dense"]), adapter_name="two")
    network.eval()
    two = answer(network)
    network.set_adapter("one")
    assert network.active_adapters() == ["one"]
    assert not torch.allclose(answer(network), two)
    network.disable_adapters()
    assert torch.allclose(answer(network), plain, atol=1e-6)
    network.enable_adapters()
    network(PIXELS).reconstruction.sum().backward()
    trained = {name for name, each in network.named_parameters() if each.grad is not None}
    assert trained
    assert all("lora" in name and ".one." in name for name in trained)
    network.delete_adapter("two")
    assert not any(".two." in name for name in network.state_dict())


def test_without_adapters_the_network_is_saved_as_before(tmp_path):
    """A layer whose last adapter was removed is the plain one again, another one keeps its adapter."""
    network = build()
    plain = answer(network)
    network.add_adapter(lora(), adapter_name="one")
    network.add_adapter(lora(["dense"]), adapter_name="two")
    network.delete_adapter("one")
    assert {
        name.rpartition(".base_layer")[0].rpartition(".")[2]
        for name, _ in network.named_parameters()
        if "base_layer" in name
    } == {"dense"}
    network.delete_adapter("two")
    network.save_pretrained(tmp_path)
    assert torch.equal(answer(model.Swin2SRForImageSuperResolution.from_pretrained(tmp_path)), plain)


@pytest.mark.parametrize("reader", [model, transformers], ids=lambda each: f"read by {each.__name__}")
@pytest.mark.parametrize("writer", [model, transformers], ids=lambda each: f"written by {each.__name__}")
def test_an_adapter_is_saved_alone_and_loaded_by_both(writer, reader, tmp_path):
    """The folder has no weights of the network."""
    network = build(writer)
    network.save_pretrained(tmp_path / "network")
    network = writer.Swin2SRForImageSuperResolution.from_pretrained(tmp_path / "network")
    network.add_adapter(lora())
    network.eval().save_pretrained(tmp_path / "adapter")
    written = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= written
    assert "model.safetensors" not in written
    loaded = reader.Swin2SRForImageSuperResolution.from_pretrained(tmp_path / "network")
    loaded.load_adapter(str(tmp_path / "adapter"))
    assert torch.allclose(answer(loaded.eval()), answer(network), atol=1e-5)


def test_wrong_adapters_are_refused(tmp_path, monkeypatch):
    """A second of the same name, an unknown name, no layer, several to save, and a missing package."""
    network = build()
    with pytest.raises(ValueError, match="there is no adapter x: there are none"):
        network.set_adapter("x")
    with pytest.raises(ValueError, match="nothing"):
        build().add_adapter(lora(["nothing"]))
    network.add_adapter(lora())
    with pytest.raises(ValueError, match="'default' already"):
        network.add_adapter(lora())
    network.add_adapter(lora(), adapter_name="other")
    network.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="choose one with set_adapter"):
        network.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        build().add_adapter(None)
