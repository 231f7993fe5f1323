"""What public code does with Swin2SR of Transformers, with the classes here and, as the oracle, with Transformers."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import model
from tests.optional import transformers

NAMES = ("Swin2SRConfig", "Swin2SRForImageSuperResolution", "Swin2SRModel", "Swin2SRImageProcessor")
FIELDS = {
    "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 16, "mlp_ratio": 2.0,
}  # fmt: skip
PIXELS = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8))


def library(source):
    """The four classes of a library, and tiny models of it."""
    config, network, body, processor = (getattr(source, name) for name in NAMES)

    def build(cls=network, **fields):
        torch.manual_seed(0)
        return cls(config(**{**FIELDS, **fields})).eval()

    return SimpleNamespace(
        Config=config, Network=network, Processor=processor, build=build,
        config=lambda **fields: config(**{**FIELDS, **fields}), body=lambda **fields: build(body, **fields),
    )  # fmt: skip


CONFIGURATION = {
    "aliases": lambda lib, _: (lib.config().hidden_size, list(lib.config().num_attention_heads)),
    "labels": lambda lib, _: (lib.config(num_labels=5).num_labels, sorted(lib.config(num_labels=3).id2label)),
    "unknown field": lambda lib, _: lib.config(foo=3).to_dict()["foo"],
    "equality": lambda lib, _: (lib.config() == lib.config(), lib.config() == lib.config(upscale=4)),
    "pickle": lambda lib, _: pickle.loads(pickle.dumps(lib.config())) == lib.config(),
    "text config": lambda lib, _: lib.config().get_text_config().embed_dim,
    "no implementation": lambda lib, _: hasattr(lib.config(), "_attn_implementation"),
    "unused": lambda lib, tmp: save(lib.config(), tmp) and lib.Config.from_pretrained(
        tmp, return_unused_kwargs=True, zzz=1
    )[1],
    "dictionary": lambda lib, tmp: save(lib.config(), tmp) and lib.Config.get_config_dict(tmp, zzz=1)[0]["embed_dim"],
}  # fmt: skip

PARTS = {
    "shapes": lambda lib, _: shapes(lib.build()(PIXELS, output_hidden_states=True, output_attentions=True)),
    "fields": lambda lib, _: [field.name for field in dataclasses.fields(lib.build()(PIXELS))],
    "replace": lambda lib, _: tuple(
        dataclasses.replace(lib.build()(PIXELS), reconstruction=torch.zeros(2)).reconstruction.shape
    ),
    "embeddings": lambda lib, _: lib.body().embeddings(lib.body().first_convolution(PIXELS))[1],
    "stage by stage": lambda lib, _: tuple(run_parts(lib.body()).shape),
    "padding": lambda lib, _: tuple(lib.body().pad_and_normalize(PIXELS).shape),
    "attributes": lambda lib, _: attributes(lib.body()),
    "hook of a part without weights": lambda lib, _: tuple(hooked(lib, "swin2sr.encoder.stages.0.patch_unembed").shape),
    "class attributes": lambda lib, _: all(
        hasattr(lib.Network, name)
        for name in ("_no_split_modules", "_keep_in_fp32_modules", "_keys_to_ignore_on_load_missing")
    ),
    "attention": lambda lib, _: lib.build().set_attn_implementation("eager"),
    "class names": lambda lib, _: class_names(lib.build()),
    "sizes": lambda lib, _: sizes(lib.build()),
    "what the encoder returns": lambda lib, _: encoded(lib.body().encoder),
    "what attention returns": lambda lib, _: attended(lib.body().encoder.stages[1].layers[1]),
    "hook of the embedding": lambda lib, _: tuple(hooked(lib, "swin2sr.embeddings.patch_embeddings")[0].shape),
    "trace": lambda lib, tmp: traced(lib.build(), tmp / "traced.pt"),
    "export of one window": lambda lib, _: exported(lib.build(), torch.rand(1, 3, 4, 4)),
    "tags": lambda lib, _: lib.build().add_model_tags(["upscaling"]),
    "checkpointing": lambda lib, _: lib.build().gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False}
    ),
    "default dtype": lambda lib, _: in_float64(lambda: lib.build()(PIXELS.double()).reconstruction.dtype),
}  # fmt: skip

FILES = {
    "variant": lambda lib, tmp: (
        lib.build().save_pretrained(tmp, variant="fp16"),
        sorted(file.name for file in tmp.iterdir() if file.suffix == ".safetensors"),
        tuple(lib.Network.from_pretrained(tmp, variant="fp16")(PIXELS).reconstruction.shape),
    ),
    "another scale": lambda lib, tmp: resized(lib, tmp, upscale=4),
    "other channels": lambda lib, tmp: resized(lib, tmp, num_channels=1),
    "missing": lambda lib, tmp: raises_os_error(lambda: lib.Network.from_pretrained(tmp / "no", local_files_only=True)),
}

PROCESSOR = {
    "pad a tensor": lambda lib, _: tuple(lib.Processor().pad(torch.rand(2, 3, 10, 14), 8).shape),
    "unused": lambda lib, tmp: save(lib.Processor(), tmp) and lib.Processor.from_pretrained(
        tmp, return_unused_kwargs=True, zzz=1
    )[1],
    "dictionary": lambda lib, tmp: save(lib.Processor(), tmp) and lib.Processor.get_image_processor_dict(tmp)[0][
        "do_pad"
    ],
    "four channels": lambda lib, _: tuple(lib.Processor()(
        np.zeros((4, 10, 14), np.uint8), return_tensors="pt", input_data_format="channels_first"
    ).pixel_values.shape),
    "values": lambda lib, _: lib.Processor()(PHOTO, return_tensors="np").pixel_values.round(6).tolist(),
    "a batch of tensors": lambda lib, _: tuple(
        lib.Processor()(torch.zeros(2, 3, 10, 14), do_rescale=False, return_tensors="pt").pixel_values.shape
    ),
}  # fmt: skip

PATTERNS = {
    f"{kind}: {name}": pattern
    for kind, patterns in (("config", CONFIGURATION), ("parts", PARTS), ("files", FILES), ("processor", PROCESSOR))
    for name, pattern in patterns.items()
}


def save(saved, folder):
    saved.save_pretrained(folder)
    return True


def shapes(output):
    return [tuple(tensor.shape) for tensor in (*output.hidden_states, *output.attentions, output[0])]


def attributes(body):
    encoder, block = body.encoder, body.encoder.stages[1].layers[1]
    attention = block.attention.self
    sizes = (attention.num_attention_heads, attention.attention_head_size, attention.all_head_size)
    return encoder.num_stages, encoder.config.embed_dim, body.embeddings.window_size, block.shift_size, sizes


def run_parts(body):
    """The encoder's stages by hand, and the last block once more."""
    tokens, size = body.embeddings(body.first_convolution(PIXELS))
    for stage in body.encoder.stages:
        tokens = stage(tokens, size)[0]
    return body.patch_unembed(body.encoder.stages[1].layers[1](tokens, size)[0], size)


def hooked(lib, name):
    seen, network = [], lib.build()
    network.get_submodule(name).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        network(PIXELS)
    return seen[0]


def class_names(network):
    """The names of the parts' classes, which policies of accelerate and FSDP select by."""
    parts = ("swin2sr.encoder.stages.0", "swin2sr.encoder.stages.0.layers.0", "swin2sr.embeddings.patch_embeddings")
    inner = ("attention", "attention.self", "attention.output", "intermediate", "output")
    return [type(network.get_submodule(name)).__name__ for name in (*parts, *(f"{parts[1]}.{each}" for each in inner))]


def sizes(network):
    body = network.swin2sr
    stage, embeddings = body.encoder.stages[0], body.embeddings.patch_embeddings
    found = (stage.dim, stage.config.embed_dim, embeddings.num_patches, list(embeddings.patches_resolution))
    return *found, tuple(stage.layers[0].input_resolution), network.upscale, network.upsampler, body.img_range


def encoded(encoder):
    tokens, size = torch.rand(1, 96, 8), (8, 12)
    output = encoder(hidden_states=tokens, input_dimensions=size, output_hidden_states=True, return_dict=True)
    one = encoder.stages[0](tokens, size)
    return (
        list(output), len(output["hidden_states"]), output.attentions, len(encoder(tokens, size, return_dict=False)),
        len(one), tuple(one[1]),
    )  # fmt: skip


def attended(layer):
    tokens, windows = torch.rand(1, 96, 8), torch.rand(6, 16, 8)
    outputs = (
        layer(hidden_states=tokens, input_dimensions=(8, 12), output_attentions=True), layer(tokens, (8, 12)),
        layer.attention(windows, output_attentions=True), layer.attention(windows), layer.attention.self(windows),
    )  # fmt: skip
    return [[tuple(tensor.shape) for tensor in output] for output in outputs]


@torch.no_grad()
def traced(network, file):
    """A trace gives a dictionary, or a tuple if the configuration says so."""
    by_name = torch.jit.trace(network, PIXELS, strict=False)(PIXELS)
    network.config.return_dict = False
    torch.jit.save(torch.jit.trace(network, PIXELS), file)
    assert torch.allclose(torch.jit.load(file)(PIXELS)[0], by_name["reconstruction"], atol=1e-5)
    return list(by_name)


def exported(network, pixels):
    found = torch.export.export(network, (pixels,)).module()(pixels).reconstruction
    assert torch.allclose(found, network(pixels).reconstruction, atol=1e-5)
    return tuple(found.shape)


def in_float64(call):
    torch.set_default_dtype(torch.float64)
    try:
        return call()
    finally:
        torch.set_default_dtype(torch.float32)


def resized(lib, folder, **fields):
    """A model of other sizes with the weights that fit; returns its output's shape, and whether one was loaded."""
    before = lib.build()
    before.save_pretrained(folder)
    after = lib.Network.from_pretrained(folder, ignore_mismatched_sizes=True, **fields)
    pixels = PIXELS[:, : after.config.num_channels]
    return tuple(after(pixels).reconstruction.shape), torch.equal(
        after.swin2sr.layernorm.weight, before.swin2sr.layernorm.weight
    )


def raises_os_error(call):
    try:
        call()
    except OSError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_does_here_what_it_does_with_transformers(pattern, tmp_path):
    """The same values, shapes and names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, expected = (
            PATTERNS[pattern](library(source), tmp_path / source.__name__)
            for source in (model, transformers)
            if not (tmp_path / source.__name__).mkdir()
        )
    assert found == expected


def test_weights_that_do_not_fit_are_named():
    """In a warning, and in what ``output_loading_info`` returns; without the option they are an error."""
    network = model.Swin2SRForImageSuperResolution(model.Swin2SRConfig(**FIELDS))
    config = model.Swin2SRConfig(**{**FIELDS, "num_channels": 1})
    options = {"config": config, "state_dict": network.state_dict()}
    with pytest.warns(UserWarning, match=r"these weights are new: swin2sr\.first_convolution\.weight"):
        _, info = model.Swin2SRForImageSuperResolution.from_pretrained(
            None, ignore_mismatched_sizes=True, output_loading_info=True, **options
        )
    assert ("swin2sr.first_convolution.weight", (8, 3, 3, 3), (8, 1, 3, 3)) in info["mismatched_keys"]
    assert info["missing_keys"] == info["unexpected_keys"] == set()
    with pytest.raises(ValueError, match="misshaped"):
        model.Swin2SRForImageSuperResolution.from_pretrained(None, **options)


def test_a_configuration_changes_by_a_string():
    """Each attribute keeps its type; what cannot be read is refused."""
    config = model.Swin2SRConfig(**FIELDS)
    config.update_from_string("upscale=4,qkv_bias=false,mlp_ratio=3,hidden_act=relu")
    assert (config.upscale, config.qkv_bias, config.mlp_ratio, config.hidden_act) == (4, False, 3.0, "relu")
    for text, words in (
        ("depths=3", "no attribute"),
        ("qkv_bias=maybe", "true or false"),
        ("nothing=1", "no attribute"),
    ):
        with pytest.raises(ValueError, match=words):
            config.update_from_string(text)


def test_one_variant_of_a_file_leaves_the_others(tmp_path):
    """And a variant that is not there is named."""
    network = model.Swin2SRForImageSuperResolution(model.Swin2SRConfig(**FIELDS))
    network.save_pretrained(tmp_path)
    network.half().save_pretrained(tmp_path, variant="fp16", max_shard_size="10KB")
    load = model.Swin2SRForImageSuperResolution.from_pretrained
    assert load(tmp_path, dtype="auto").dtype is torch.float32
    assert load(tmp_path, dtype="auto", variant="fp16").dtype is torch.float16
    with pytest.raises(ValueError, match=r"model\.bf16\.safetensors"):
        load(tmp_path, variant="bf16")


def test_another_attention_is_refused():
    """There is one form."""
    with pytest.raises(ValueError, match="use 'eager'"):
        model.Swin2SRForImageSuperResolution(model.Swin2SRConfig(**FIELDS)).set_attn_implementation("sdpa")


def test_a_replaced_part_without_weights_is_called():
    """The fast forward pass stands back for a layout that is not the network's."""

    class Flipped(nn.Module):
        def forward(self, tokens, size):
            return tokens.transpose(1, 2).reshape(*tokens.shape[::2], *size).flip(3)

    network = model.Swin2SRForImageSuperResolution(model.Swin2SRConfig(**FIELDS)).eval()
    for name in ("swin2sr", "swin2sr.encoder.stages.0"):
        changed = copy.deepcopy(network)
        changed.get_submodule(name).patch_unembed = Flipped()
        with torch.no_grad():
            assert not torch.allclose(changed(PIXELS).reconstruction, network(PIXELS).reconstruction)
