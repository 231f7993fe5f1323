"""A second oracle: the Transformers port, for the heads where it computes what the official network computes.

One difference remains there: the port adds the shift mask's -100 twice. Its mask is halved for the comparison, and the
difference that it makes otherwise is measured.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from model import Swin2SRConfig, Swin2SRForImageSuperResolution, Swin2SRImageProcessor, Swin2SRModel
from tests.optional import transformers

pytestmark = pytest.mark.slow

HEADS = [("pixelshuffle", 2), ("pixelshuffle", 4), ("pixelshuffledirect", 2), ("nearest+conv", 4)]


@pytest.fixture
def halved_mask(monkeypatch):
    """Make the port's shift mask what it is in the official network: two times -50."""
    from transformers.models.swin2sr.modeling_swin2sr import Swin2SRLayer

    original = Swin2SRLayer.get_attn_mask

    def halve(self, *args, **kwargs):
        mask = original(self, *args, **kwargs)
        return None if mask is None else mask / 2

    monkeypatch.setattr(Swin2SRLayer, "get_attn_mask", halve)


def network(upsampler: str = "pixelshuffle", upscale: int = 2, *, sharp: bool = False):
    """Our network with random weights; ``sharp`` brings some heads' logits next to their largest, 100 and a bias of 16.

    They stay below the clamp, which the official code takes at the float32 logarithm of 100 and the port at the exact
    one; in float64 that would show.
    """
    torch.manual_seed(0)
    config = Swin2SRConfig(
        embed_dim=24, depths=(2, 3), num_heads=(2, 4), upsampler=upsampler, upscale=upscale, drop_path_rate=0.0
    )
    model = Swin2SRForImageSuperResolution(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("logit_scale"):
                parameter[0] = 4.6 if sharp else 3.0
            else:
                parameter.normal_(std=0.3)
    return model.double().eval()


def port_of(model, folder, cls="Swin2SRForImageSuperResolution"):
    """The same weights in Transformers, by way of the folder that we write."""
    model.save_pretrained(folder)
    return getattr(transformers, cls).from_pretrained(folder, dtype=torch.float64).eval()


def pixels(height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.usefixtures("halved_mask")
@pytest.mark.parametrize("sharp", [False, True])
@pytest.mark.parametrize(("upsampler", "upscale"), HEADS)
@torch.inference_mode()
def test_reconstruction_hidden_states_and_attentions_are_the_ports(tmp_path, upsampler, upscale, sharp):
    """With the port's mask halved, everything it returns is what we return, shapes and values, in float64."""
    ours = network(upsampler, upscale, sharp=sharp)
    theirs = port_of(ours, tmp_path)
    options = {"output_hidden_states": True, "output_attentions": True}
    found, expected = ours(pixels(), **options), theirs(pixels(), **options)
    assert list(found) == list(expected)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=0, atol=1e-9)
    for name in ("hidden_states", "attentions"):
        assert len(found[name]) == len(expected[name])
        for left, right in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(left, right, rtol=0, atol=1e-9)
    tuples = ours(pixels(), **options, return_dict=False), theirs(pixels(), **options, return_dict=False)
    assert [type(item) for item in tuples[0]] == [type(item) for item in tuples[1]]


@pytest.mark.usefixtures("halved_mask")
@torch.inference_mode()
def test_the_bodies_agree(tmp_path):
    """Swin2SRModel returns the port's last hidden state."""
    ours = network()
    theirs = port_of(ours, tmp_path, "Swin2SRModel")
    found = Swin2SRModel.from_pretrained(tmp_path, dtype=torch.float64)(pixels()).last_hidden_state
    torch.testing.assert_close(found, theirs(pixels()).last_hidden_state, rtol=0, atol=1e-9)


def largest_difference(ours, theirs, images: torch.Tensor) -> float:
    with torch.inference_mode():
        return float((ours(images).reconstruction - theirs(images).reconstruction).abs().max())


def test_the_double_mask_changes_nothing_at_ordinary_logits(tmp_path):
    """With random weights, the port's -200 and our -100 give the same reconstruction within 1e-9."""
    ours = network()
    assert largest_difference(ours, port_of(ours, tmp_path), pixels()) < 1e-9


@pytest.mark.shared
def test_the_double_mask_changes_nothing_with_real_weights(shared):
    """The authors' lightweight weights have factors below 55, so a photo differs by float32 rounding alone, 5e-6."""
    folder = shared / "checkpoints" / "swin2SR-lightweight-x2-64"
    ours = Swin2SRForImageSuperResolution.from_pretrained(folder)
    theirs = transformers.Swin2SRForImageSuperResolution.from_pretrained(folder).eval()
    photo = Image.open(shared / "testsets" / "Set5" / "LR_bicubic" / "X2" / "birdx2.png").convert("RGB")
    images = Swin2SRImageProcessor()(photo.crop((0, 0, 90, 70)), return_tensors="pt").pixel_values
    assert largest_difference(ours, theirs, images) < 5e-6


def test_the_double_mask_matters_where_a_far_side_is_more_alike(tmp_path):
    """Where keys oppose queries by 100, one -100 lets the far side of a bright and dark image in, and two do not.

    The difference is then larger than the contrast of the whole reconstruction; the official network is the reference.
    """
    ours = network(sharp=True)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith("key.weight"):
                parameter.copy_(-ours.get_parameter(name.replace("key", "query")))
            elif "layers.0.layernorm" in name or (name.endswith("bias") and "intermediate" not in name):
                parameter.zero_()
    images = ours.swin2sr.mean.expand(1, 3, 24, 32) + torch.tensor([-0.3, 0.3]).repeat_interleave(16).double()
    contrast = float(ours(images).reconstruction.detach().std())
    assert largest_difference(ours, port_of(ours, tmp_path), images) > contrast


@torch.inference_mode()
def test_ports_own_folders_are_read(tmp_path):
    """What Transformers writes, with or without a head, is loaded with every weight."""
    config = transformers.Swin2SRConfig(embed_dim=12, depths=[1, 2], num_heads=[2, 3])
    for name, cls in (
        ("Swin2SRModel", Swin2SRModel),
        ("Swin2SRForImageSuperResolution", Swin2SRForImageSuperResolution),
    ):
        theirs = getattr(transformers, name)(config).eval()
        theirs.save_pretrained(tmp_path / name)
        ours = cls.from_pretrained(tmp_path / name)
        assert sum(parameter.numel() for parameter in ours.parameters()) == theirs.num_parameters()
        torch.testing.assert_close(ours(pixels().float())[0], theirs(pixels().float())[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(10, 13), (8, 16), (5, 3), (480, 640)])
def test_pixel_values_are_the_ports(tmp_path, size):
    """The same folder makes the same image processor here and there."""
    Swin2SRImageProcessor(pad_size=8).save_pretrained(tmp_path)
    ours = Swin2SRImageProcessor.from_pretrained(tmp_path)
    theirs = transformers.models.swin2sr.Swin2SRImageProcessorPil.from_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    found, expected = ours(image, return_tensors="pt"), theirs(image, return_tensors="pt")
    assert list(found) == list(expected)
    assert found.pixel_values.dtype == expected.pixel_values.dtype
    torch.testing.assert_close(found.pixel_values, expected.pixel_values, rtol=0, atol=1e-7)


def test_the_ports_processor_folder_is_read(tmp_path):
    """A preprocessor_config.json of Transformers 5 has its pad size under another name, which is known."""
    transformers.models.swin2sr.Swin2SRImageProcessorPil(pad_size=7, do_rescale=False).save_pretrained(tmp_path)
    loaded = Swin2SRImageProcessor.from_pretrained(tmp_path)
    assert (loaded.pad_size, loaded.do_rescale, loaded.do_pad) == (7, False, True)
