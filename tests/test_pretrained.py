"""The seed's two classes: outputs, shapes, head masks, loss, folders."""

import json

import pytest
import torch
from safetensors.torch import load_file

from model import Swin2SRConfig, Swin2SRForImageSuperResolution, Swin2SRModel
from model.checkpoints import CheckpointError, write_official
from model.network import Swin2SR
from tests.test_official_hub import HUB_ID, make_cache

CONFIG = Swin2SRConfig(embed_dim=12, depths=(2, 3), num_heads=(2, 3))


def pretrained(cls=Swin2SRForImageSuperResolution, **changes):
    torch.manual_seed(0)
    config = Swin2SRConfig.from_dict(CONFIG.to_dict() | changes)
    model = cls(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit_scale" not in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def images(*shape) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_outputs_are_read_by_attribute_name_and_number():
    """An output behaves as Transformers' do: None is no item, numbers and slices count the others."""
    model, pixels = pretrained(), images(1, 3, 16, 16)
    output = model(pixels)
    assert output.reconstruction is output["reconstruction"] is output[0]
    assert (output.loss, output.hidden_states, output.attentions) == (None, None, None)
    assert (list(output), len(output), output.to_tuple()) == (["reconstruction"], 1, (output[0],))
    with pytest.raises(KeyError):
        output["loss"]
    with pytest.raises(IndexError):
        output[1]
    with pytest.raises(AttributeError):
        output.absent  # noqa: B018
    output.reconstruction = output.reconstruction.clamp(0, 1)
    assert output["reconstruction"].min() >= 0
    output["reconstruction"] = pixels
    assert output.reconstruction is output[0] is pixels
    full = model(pixels, labels=images(1, 3, 32, 32), output_hidden_states=True, output_attentions=True)
    assert list(full.keys()) == ["loss", "reconstruction", "hidden_states", "attentions"]
    assert full[1:3] == (full.reconstruction, full.hidden_states)
    assert "loss" in full
    assert dict(**full)["attentions"] is full[-1]


@torch.inference_mode()
def test_return_dict_false_gives_a_tuple():
    """return_dict=False gives the same results in the same order without the None ones."""
    model, pixels = pretrained(), images(1, 3, 16, 16)
    (reconstruction,) = model(pixels, return_dict=False)
    assert torch.equal(reconstruction, model(pixels).reconstruction)
    result = model(pixels, labels=reconstruction + 1, output_attentions=True, return_dict=False)
    assert [type(item) for item in result] == [torch.Tensor, torch.Tensor, tuple]
    body = pretrained(Swin2SRModel)(pixels, output_hidden_states=True, return_dict=False)
    assert len(body) == 2
    assert body[0].shape == (1, 12, 16, 16)


@torch.inference_mode()
def test_watching_changes_nothing():
    """The reconstruction is the same with and without hidden states and attentions."""
    model, pixels = pretrained().double(), images(2, 3, 16, 24)
    plain = model(pixels).reconstruction
    watched = model(pixels, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(plain, Swin2SR.forward(model, pixels.double()).image, rtol=0, atol=1e-10)
    torch.testing.assert_close(watched.reconstruction, plain, rtol=0, atol=1e-10)
    assert [tuple(state.shape) for state in watched.hidden_states] == [(2, 16 * 24, 12)] * 3
    assert [tuple(attention.shape) for attention in watched.attentions] == [(12, 2, 64, 64), (12, 3, 64, 64)]
    for attention in watched.attentions:
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1], dtype=attention.dtype))


@torch.inference_mode()
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 24), (8, 8)])
@pytest.mark.parametrize("window_size", [7, 8])
def test_any_size_is_padded_and_cropped(size, window_size):
    """Where Transformers crashes, sizes off the window grid are reflected up to it and cropped again."""
    height, width = size
    pixels = images(1, 3, height, width)
    model = pretrained(window_size=window_size)
    assert model(pixels).reconstruction.shape == (1, 3, 2 * height, 2 * width)
    body = pretrained(Swin2SRModel, window_size=window_size)(pixels, output_hidden_states=True)
    assert body.last_hidden_state.shape == (1, 12, height, width)
    tokens = (-(-height // window_size) * window_size) * (-(-width // window_size) * window_size)
    assert body.hidden_states[0].shape == (1, tokens, 12)


@torch.inference_mode()
@pytest.mark.parametrize("shape", ["heads", "stages and heads"])
def test_a_head_mask_leaves_heads_out(shape):
    """Masking a head is the same as taking its columns out of the projection, in all blocks of its stage alone."""
    model, pixels = pretrained(num_heads=(2, 2)).double(), images(1, 3, 16, 16)
    mask = torch.tensor([0.0, 1.0]) if shape == "heads" else torch.tensor([[1.0, 1.0], [0.0, 0.5]])
    masked = model(pixels, head_mask=mask, output_attentions=True)
    for stage, factors in zip(model.swin2sr.encoder.stages, mask.expand(2, 2), strict=True):
        for block in stage.layers:
            block.attention.output.dense.weight *= factors.repeat_interleave(6)
    torch.testing.assert_close(masked.reconstruction, model(pixels).reconstruction, rtol=0, atol=1e-10)
    assert (masked.attentions[1][:, 0] == 0).all()
    assert (masked.attentions[0][:, 1] > 0).any()


@torch.inference_mode()
def test_an_odd_number_of_heads_in_each_stage_needs_a_mask_for_each():
    """A mask that does not fit every stage is refused with both shapes."""
    model, pixels = pretrained(), images(1, 3, 8, 8)
    for mask in (torch.ones(2), torch.ones(3), torch.ones(2, 2), torch.ones(1, 2), torch.ones(()), torch.ones(2, 1, 2)):
        with pytest.raises(ValueError, match="head_mask"):
            model(pixels, head_mask=mask)


@pytest.mark.slow
def test_the_loss_is_l1_and_trains():
    """The loss is the mean absolute difference, and a few steps on it bring it down."""
    model, pixels, labels = pretrained(), images(2, 3, 16, 16), images(2, 3, 32, 32)
    output = model(pixels, labels=labels)
    assert output.loss.shape == ()
    assert torch.equal(output.loss, (output.reconstruction - labels).abs().mean())
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(pixels, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_watching_trains_too():
    """Dropout and drop path act in the watched body as well, in training alone."""
    changes = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.5}
    model, pixels = pretrained(**changes).train(), images(1, 3, 16, 16)
    first, second = (model(pixels, output_attentions=True) for _ in range(2))
    assert not torch.equal(first.reconstruction, second.reconstruction)
    assert (first.attentions[0] == 0).float().mean() > 0.1
    model.eval()
    first, second = (model(pixels, output_attentions=True) for _ in range(2))
    assert torch.equal(first.reconstruction, second.reconstruction)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(3, 16, 16),
        torch.zeros(1, 1, 16, 16),
        torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(1, 3, 0, 16),
        [[0.5]],
        None,
    ],
    ids=["three dimensions", "one channel", "integers", "no pixels", "list", "none"],
)
@pytest.mark.parametrize("cls", [Swin2SRModel, Swin2SRForImageSuperResolution])
def test_other_inputs_are_refused(cls, pixels):
    """What is not a floating point batch of the network's channels is a ValueError."""
    with pytest.raises(ValueError, match=r"pixel_values|at least one pixel"):
        pretrained(cls)(pixels)


def test_labels_of_another_shape_are_refused():
    """Labels are never broadcast."""
    with pytest.raises(ValueError, match="labels"):
        pretrained()(images(1, 3, 8, 8), labels=torch.zeros(1, 3, 1, 16))


@torch.inference_mode()
def test_the_body_is_the_whole_networks_body(tmp_path):
    """Swin2SRModel loads from a whole network's folder, holds no head, and computes what the head is given."""
    whole = pretrained()
    whole.save_pretrained(tmp_path)
    body = Swin2SRModel.from_pretrained(tmp_path)
    assert not body.training
    state = body.state_dict()
    assert not any(key.startswith("upsample") for key in state)
    assert all(torch.equal(state[key], whole.swin2sr.state_dict()[key]) for key in state)
    pixels = images(1, 3, 16, 16)
    hidden = body(pixels).last_hidden_state
    image = whole.upsample(hidden) + whole.mean_out
    torch.testing.assert_close(image, whole(pixels).reconstruction, rtol=0, atol=1e-6)


def test_a_body_alone_round_trips(tmp_path):
    """A body is written under the names that Transformers gives it, and only a body can be made of it."""
    body = pretrained(Swin2SRModel)
    body.save_pretrained(tmp_path)
    assert "first_convolution.weight" in load_file(tmp_path / "model.safetensors")
    loaded = Swin2SRModel.from_pretrained(str(tmp_path))
    assert all(torch.equal(left, right) for left, right in zip(body.parameters(), loaded.parameters(), strict=True))
    with pytest.warns(
        UserWarning, match=r"no head. These weights are newly initialised.*upsample\.final_convolution\.weight"
    ):
        whole = Swin2SRForImageSuperResolution.from_pretrained(tmp_path)
    assert all(
        torch.equal(left, right) for left, right in zip(body.parameters(), whole.swin2sr.parameters(), strict=True)
    )


def test_a_body_is_loaded_as_strictly(tmp_path):
    """A weight that is no head's and no body's is an error for Swin2SRModel too."""
    whole = pretrained()
    write_official(whole, tmp_path / "network.pth")
    state = torch.load(tmp_path / "network.pth", weights_only=True)
    torch.save(state | {"surprise": torch.zeros(1)}, tmp_path / "network.pth")
    with pytest.raises(CheckpointError) as caught:
        Swin2SRModel.from_pretrained(tmp_path / "network.pth")
    assert caught.value.unexpected == ("surprise",)


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffle_aux", "nearest+conv", "pixelshuffledirect", ""])
def test_every_head_round_trips(tmp_path, upsampler):
    """save_pretrained and from_pretrained keep the configuration and the reconstruction of every head."""
    scale = {"": 1, "pixelshuffledirect": 3}.get(upsampler, 4)
    model, pixels = pretrained(upsampler=upsampler, upscale=scale), images(1, 3, 9, 8)
    model.save_pretrained(tmp_path)
    loaded = Swin2SRForImageSuperResolution.from_pretrained(tmp_path)
    assert loaded.config == model.config
    with torch.inference_mode():
        assert torch.equal(loaded(pixels).reconstruction, model(pixels).reconstruction)
        assert loaded(pixels).reconstruction.shape == (1, 3, 9 * scale, 8 * scale)


def test_a_hub_id_is_looked_up_in_the_cache(tmp_path):
    """from_pretrained finds an id in the cache that it is given; an absent one is an error with the id in it."""
    pretrained().save_pretrained(make_cache(tmp_path))
    model = Swin2SRForImageSuperResolution.from_pretrained(HUB_ID, cache_dir=tmp_path, dtype=torch.float64)
    assert (model.dtype, model.device) == (torch.float64, torch.device("cpu"))
    assert model(images(1, 3, 8, 8)).reconstruction.dtype == torch.float64
    with pytest.raises(ValueError, match="caidas/absent"):
        Swin2SRForImageSuperResolution.from_pretrained("caidas/absent", cache_dir=tmp_path)


def test_the_configuration_says_what_it_is(tmp_path):
    """A written folder's config.json has the fields by which Transformers knows the network."""
    pretrained().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "swin2sr"
    assert config["architectures"] == ["Swin2SRForImageSuperResolution"]


def test_options_leave_a_given_configuration_as_it_is(tmp_path):
    """``from_pretrained(config=..., output_attentions=True)`` changes a copy."""
    config = Swin2SRConfig(embed_dim=8, depths=(1,), num_heads=(2,), window_size=4)
    Swin2SRForImageSuperResolution(config).save_pretrained(tmp_path)
    loaded = Swin2SRForImageSuperResolution.from_pretrained(tmp_path, config=config, output_attentions=True)
    assert (loaded.config.output_attentions, config.output_attentions) == (True, False)
