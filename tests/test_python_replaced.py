"""Parts and classes that public code replaces or extends, written for Transformers, run with the classes here too."""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import model
from tests.optional import transformers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FIELDS = {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 16}
PIXELS = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def build(library, cls="Swin2SRForImageSuperResolution", **fields):
    torch.manual_seed(0)
    network = getattr(library, cls)(library.Swin2SRConfig(**{**FIELDS, **fields}))
    return network.eval()


@torch.no_grad()
def answer(network, pixels=PIXELS):
    return network(pixels).reconstruction


def layers_of(network):
    return [part for part in network.modules() if type(part).__name__ == "Swin2SRLayer"]


def cut(image, side):
    batch, height, width, channels = image.shape
    grid = image.view(batch, height // side, side, width // side, side, channels)
    return grid.transpose(2, 3).reshape(-1, side * side, channels)


def join(windows, side, height, width):
    grid = windows.view(-1, height // side, width // side, side, side, windows.shape[-1])
    return grid.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def compute_layer(layer, hidden_states, input_dimensions, output_attentions=False):
    """A block by the methods that Transformers gives it."""
    height, width = input_dimensions
    image = hidden_states.view(len(hidden_states), height, width, -1)
    image, (*_, right, _, bottom) = layer.maybe_pad(image, height, width)
    size, shift = image.shape[1:3], layer.shift_size
    windows = cut(torch.roll(image, (-shift, -shift), (1, 2)), layer.window_size)
    mask = layer.get_attn_mask(*size, dtype=image.dtype)
    attended, *probabilities = layer.attention(windows, mask, output_attentions=output_attentions)
    image = torch.roll(join(attended, layer.window_size, *size), (shift, shift), (1, 2))
    assert (right, bottom) == (-width % layer.window_size, -height % layer.window_size)
    tokens = image[:, :height, :width].flatten(1, 2)
    tokens = hidden_states + layer.drop_path(layer.layernorm_before(tokens))
    tokens = tokens + layer.drop_path(layer.layernorm_after(layer.output(layer.intermediate(tokens))))
    return tokens, *probabilities


class Wrapped(nn.Module):
    """A layer or a stage with the parameters of Transformers alone."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, hidden_states, input_dimensions, output_attentions=False):
        return self.part(hidden_states, input_dimensions, output_attentions=output_attentions)


class OwnAttention(nn.Module):
    """The attention by the attributes that Transformers gives it."""

    def __init__(self, attention):
        super().__init__()
        self.inner = attention

    def forward(self, hidden_states, attention_mask=None, output_attentions=False):
        inner, (windows, tokens, _) = self.inner, hidden_states.shape
        heads, size = inner.num_attention_heads, inner.attention_head_size
        query, key, value = (
            each(hidden_states).view(windows, tokens, heads, size).transpose(1, 2)
            for each in (inner.query, inner.key, inner.value)
        )
        logits = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1)
        logits = logits * inner.logit_scale.clamp(max=4.6051702).exp()
        table = inner.continuous_position_bias_mlp(inner.relative_coords_table).view(-1, heads)
        count = inner.window_size[0] * inner.window_size[1]
        bias = table[inner.relative_position_index.view(-1)].view(count, count, heads).permute(2, 0, 1)
        logits = logits + 16 * torch.sigmoid(bias)
        if attention_mask is not None:
            masked = logits.view(-1, len(attention_mask), heads, count, count) + attention_mask[:, None]
            logits = masked.view(-1, heads, count, count)
        probabilities = inner.dropout(logits.softmax(-1))
        attended = (probabilities @ value).transpose(1, 2).reshape(windows, tokens, inner.all_head_size)
        return (attended, probabilities) if output_attentions else (attended,)


def replace_methods(network):
    for layer in layers_of(network):
        layer.forward = types.MethodType(compute_layer, layer)


def wrap_layers(network):
    for stage in network.swin2sr.encoder.stages:
        for number, layer in enumerate(stage.layers):
            stage.layers[number] = Wrapped(layer)


def wrap_stages(network):
    stages = network.swin2sr.encoder.stages
    for number, stage in enumerate(stages):
        stages[number] = Wrapped(stage)


def replace_attention(network):
    for layer in layers_of(network):
        layer.attention.self = OwnAttention(layer.attention.self)


def copy_linear_layers(network):
    """As quantisation does it: another class with the same weights."""

    class Linear(nn.Linear):
        pass

    for name, part in list(network.named_modules()):
        if type(part) is nn.Linear and "attention" in name:
            layer = Linear(part.in_features, part.out_features, part.bias is not None)
            layer.load_state_dict(part.state_dict())
            network.set_submodule(name, layer)


@pytest.mark.parametrize("library", [model, transformers], ids=lambda each: each.__name__)
@pytest.mark.parametrize(
    "change", [replace_methods, wrap_layers, wrap_stages, replace_attention, copy_linear_layers],
    ids=lambda each: each.__name__,
)  # fmt: skip
def test_the_same_computation_in_other_modules_gives_the_same_image(change, library):
    """Layers, stages, attention and linear layers; attentions are still returned."""
    network = build(library)
    expected = answer(network)
    change(network)
    assert torch.allclose(answer(network), expected, atol=1e-5)
    assert len(network(PIXELS, output_attentions=True).attentions) == 2


@pytest.mark.parametrize("library", [model, transformers], ids=lambda each: each.__name__)
def test_a_replaced_mask_is_used(library):
    """A network whose blocks see all their window gives another image."""
    network = build(library)
    before = network(PIXELS).reconstruction
    for layer in layers_of(network):
        layer.get_attn_mask = lambda *_, **__: None
    assert (network(PIXELS).reconstruction - before).abs().max() > 1e-6


@pytest.mark.parametrize("library", [model, transformers], ids=lambda each: each.__name__)
def test_convolutions_for_other_channels_take_them(library):
    """Four in and one out, with a mean for four; the answer with gradients is the answer without."""
    network = build(library)
    body, mean = network.swin2sr, network.swin2sr.mean
    body.first_convolution = nn.Conv2d(4, 8, 3, padding=1)
    body.register_buffer("mean", torch.cat([mean, mean[:, :1]], dim=1))
    network.upsample.final_convolution = nn.Conv2d(64, 1, 3, padding=1)
    pixels = torch.rand(1, 4, 8, 12)
    with torch.no_grad():
        found = network.upsample(body(pixels)[0])
    assert found.shape == (1, 1, 16, 24)
    assert torch.allclose(found, network.upsample(body(pixels)[0]), atol=1e-5)


@pytest.mark.parametrize("library", [model, transformers], ids=lambda each: each.__name__)
def test_subclasses_load_the_weights_of_the_network(library, tmp_path):
    """What they add is new, and is saved and loaded with the rest; a configuration keeps its fields and its type."""

    class Config(library.Swin2SRConfig):
        model_type = "swin2sr_more"

        def __init__(self, more=0, **fields):
            super().__init__(**fields)
            self.more = more

    class Network(library.Swin2SRForImageSuperResolution):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.more = nn.Conv2d(3, 3, 1)
            self.post_init()

        def forward(self, pixel_values):
            return self.more(super().forward(pixel_values).reconstruction)

    class Body(library.Swin2SRModel):
        def __init__(self, config):
            super().__init__(config)
            self.classifier = nn.Linear(8, 2)

        def forward(self, pixel_values):
            return self.classifier(super().forward(pixel_values).last_hidden_state.mean((2, 3)))

    plain = build(library)
    plain.save_pretrained(tmp_path / "plain")
    body = Body.from_pretrained(tmp_path / "plain")
    assert torch.equal(body.layernorm.weight, plain.swin2sr.layernorm.weight)
    assert body(PIXELS).shape == (1, 2)
    network = Network(Config(more=4, **FIELDS))
    network.save_pretrained(tmp_path / "own")
    loaded = Network.from_pretrained(tmp_path / "own")
    assert (type(loaded.config), loaded.config.more) == (Config, 4)
    assert torch.equal(loaded.more.weight, network.more.weight)
    assert torch.allclose(loaded(PIXELS), network.eval()(PIXELS), atol=1e-6)


def test_new_weights_of_a_subclass_are_named(tmp_path):
    """In a warning; those of the network must exist."""

    class Network(model.Swin2SRForImageSuperResolution):
        def __init__(self, config):
            super().__init__(config)
            self.more = nn.Conv2d(3, 3, 1)

    network = build(model)
    network.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"not all weights of the class.*: more\.weight, more\.bias"):
        Network.from_pretrained(tmp_path)
    state = network.state_dict()
    del state["swin2sr.layernorm.weight"]
    with pytest.raises(ValueError, match="missing"), pytest.warns(UserWarning, match="newly initialised"):
        Network.from_pretrained(tmp_path, state_dict=state)
