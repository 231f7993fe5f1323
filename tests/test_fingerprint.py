"""What the public classes pack is kept while nothing changes, and any change is noticed."""

import copy
import pickle

import pytest
import torch
from torch import nn

from model import Swin2SRForImageSuperResolution
from model.inference import cpu
from model.inference.fingerprint import Kept, fingerprint_of
from model.kernels import library
from tests.networks import needs_kernel, random_image, tiny_config

pytestmark = needs_kernel


@pytest.fixture
def network() -> Swin2SRForImageSuperResolution:
    """A public network in evaluation mode."""
    torch.manual_seed(0)
    return Swin2SRForImageSuperResolution(tiny_config()).eval()


@torch.no_grad()
def image_of(network: Swin2SRForImageSuperResolution) -> torch.Tensor:
    """What the network makes of an image, and it has to be what the reference makes of it."""
    pixels = random_image(network, 2, 2)[None]
    found = network(pixels).reconstruction
    assert (found - reference_of(network, pixels)).abs().max() < 1e-5
    return found


def reference_of(network: Swin2SRForImageSuperResolution, pixels: torch.Tensor) -> torch.Tensor:
    """The same by the modules, which a hook makes the network call."""
    hook = network.swin2sr.layernorm.register_forward_hook(lambda *_args: None)
    try:
        return network(pixels).reconstruction
    finally:
        hook.remove()


def packings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every packing."""
    calls: list[object] = []
    infer = cpu.infer
    monkeypatch.setattr(cpu, "infer", lambda *args: calls.append(args) or infer(*args))
    return calls


def test_weights_are_packed_once(network, monkeypatch):
    """Calls without a change between them share the packed weights, also for other sizes."""
    calls = packings(monkeypatch)
    first = image_of(network)
    with torch.no_grad():
        network(random_image(network, 3, 1)[None])
    assert torch.equal(image_of(network), first)
    assert len(calls) == 1


CHANGES = {
    "through .data": lambda network: network.swin2sr.encoder.stages[1].layers[2].output.dense.bias.data.add_(0.1),
    "one weight by little": lambda network: network.upsample.conv.weight.data[0, 0, 0, :1].mul_(1.001),
    "another tensor": lambda network: setattr(
        network.swin2sr.layernorm, "weight", nn.Parameter(network.swin2sr.layernorm.weight * 1.5)
    ),
    "another storage": lambda network: setattr(
        network.swin2sr.layernorm.weight, "data", network.swin2sr.layernorm.weight.data * 1.5
    ),
    "through NumPy": lambda network: network.swin2sr.first_convolution.weight.detach().numpy().__imul__(1.1),
    "a setting": lambda network: setattr(network.swin2sr.layernorm, "eps", 0.5),
    "a module": lambda network: setattr(network.swin2sr, "layernorm", nn.LayerNorm(24, eps=0.25)),
    "the range": lambda network: setattr(network.config, "img_range", 2.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(network, change):
    """The next call computes with what the network has now, as its modules do."""
    before = image_of(network)
    with torch.no_grad():
        CHANGES[change](network)
    assert not torch.equal(image_of(network), before)


def test_a_copy_has_its_own(network):
    """Copies begin empty, and the weights of one are not the other's."""
    image_of(network)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert other.workspace.packed.get(fingerprint_of(other)) is None
        other.upsample.conv.bias.data.add_(1)
        assert (image_of(other) - image_of(network)).abs().min() > 0.5


def test_what_cannot_be_compared_is_not_kept(network, monkeypatch):
    """Weights in another memory layout, of another class or without the kernel have no fingerprint."""
    assert fingerprint_of(network) is not None
    assert fingerprint_of(copy.deepcopy(network).to(memory_format=torch.channels_last)) is None
    monkeypatch.setattr(library, "load_kernel", lambda: None)
    assert fingerprint_of(network) is None
    kept: Kept[int] = Kept()
    kept.put(None, 1)
    assert kept.get(None) is None
