"""What Transformers tests of every model and image processor, with the classes here and with its own.

Each check runs with both libraries, so that a check that asks for something else than Transformers gives fails.
"""

from __future__ import annotations

import copy
import inspect
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import model
from tests.optional import transformers

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FIELDS = {
    "image_size": 8, "num_channels_out": 1, "embed_dim": 16, "depths": [1, 2, 1], "num_heads": [2, 2, 4],
    "window_size": 2, "path_norm": True,
}  # fmt: skip
PIXELS = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SETTINGS = {"do_rescale": True, "rescale_factor": 1 / 255, "do_pad": True, "size_divisor": 8}


def classes_of(library):
    """The classes of a library under shorter names."""
    return SimpleNamespace(
        Config=library.Swin2SRConfig,
        Body=library.Swin2SRModel,
        Network=library.Swin2SRForImageSuperResolution,
        Processor=library.Swin2SRImageProcessor,
    )


def build(lib, cls, **fields):
    torch.manual_seed(0)
    return cls(lib.Config(**{**FIELDS, **fields})).eval()


@torch.no_grad()
def run(network, **options):
    return network(pixel_values=PIXELS, **options)


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, tuple):
            same(one, other)
        else:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# Models: (library, class, folder).


def save_and_load(lib, cls, folder):
    """Twice, with the same result, and without a file for text generation."""
    network = build(lib, cls)
    network.save_pretrained(folder)
    again = cls.from_pretrained(folder)
    again.save_pretrained(folder)
    same([run(cls.from_pretrained(folder))[0]], [run(network)[0]])
    assert (folder / "config.json").exists()
    assert network.can_generate() is cls.can_generate() is (folder / "generation_config.json").exists() is False
    assert all(parameter.is_contiguous() for parameter in again.parameters())


def load_a_state(lib, cls, folder):  # noqa: ARG001 (as every check)
    """A configuration and the model's own state dictionary, without a folder."""
    network = build(lib, cls)
    state = network.state_dict()
    again = cls.from_pretrained(pretrained_model_name_or_path=None, config=network.config, state_dict=state)
    assert again.state_dict().keys() == state.keys()
    same(again.state_dict().values(), state.values())


def report_loading(lib, cls, folder):
    """Nothing is missing in an own file, and everything in a file of other weights."""
    network = build(lib, cls, tie_word_embeddings=False)
    network.save_pretrained(folder)
    again, info = cls.from_pretrained(folder, output_loading_info=True)
    same(again.state_dict().values(), network.state_dict().values())
    assert info["missing_keys"] == info["unexpected_keys"] == set()
    save_file({"tensor": torch.tensor([1, 2])}, folder / "model.safetensors", metadata={"format": "pt"})
    again, info = cls.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == again.state_dict().keys()
    assert info["unexpected_keys"] == {"tensor"}


def load_every_type(lib, cls, folder):
    """Under both names of the option."""
    build(lib, cls).save_pretrained(folder)
    for dtype in ("float16", "auto", torch.bfloat16):
        old, new = cls.from_pretrained(folder, torch_dtype=dtype), cls.from_pretrained(folder, dtype=dtype)
        same(old.parameters(), new.parameters())
        assert old.dtype is new.dtype


def refuse_the_meta_device(lib, cls, folder):
    """Where files are loaded; a model can be built there."""
    build(lib, cls).save_pretrained(folder)
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in build(lib, cls).parameters())
        with pytest.raises(RuntimeError, match="You are using `from_pretrained` with a meta device context manager"):
            cls.from_pretrained(folder)


def initialise_again(lib, cls, folder):  # noqa: ARG001
    """After to_empty: buffers too, and the model computes."""
    with torch.device("meta"):
        network = build(lib, cls)
    network.to_empty(device="cpu")
    for buffer in network.buffers():
        buffer.fill_(1)
    network.init_weights()
    expected = build(lib, cls)
    same(dict(network.named_buffers()).values(), dict(expected.named_buffers()).values())
    assert run(network)[0].shape == run(expected)[0].shape


def switch_checkpointing(lib, cls, folder):  # noqa: ARG001
    """By methods, beside adapters, and by the configuration."""
    network = build(lib, cls)
    assert cls.supports_gradient_checkpointing
    assert not network.is_gradient_checkpointing
    network._hf_peft_config_loaded = True
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert network.is_gradient_checkpointing
    assert all(part.gradient_checkpointing for part in network.modules() if hasattr(part, "gradient_checkpointing"))
    network.gradient_checkpointing_disable()
    assert not network.is_gradient_checkpointing
    network.enable_input_require_grads()
    network.disable_input_require_grads()
    assert build(lib, cls, gradient_checkpointing=True).is_gradient_checkpointing


def return_outputs(lib, cls, folder):  # noqa: ARG001
    """Attentions last, by a call or by the configuration; tuples have what mappings have."""
    network = build(lib, cls)
    network.config.output_attentions = True
    output = run(network, output_hidden_states=True)
    assert [len(output.attentions), len(output.hidden_states)] == [3, 4]
    assert output.attentions[0].shape[-3:] == (2, 4, 4)
    assert output.hidden_states[0].shape[-2:] == (64, 16)
    assert output[-1] is output.attentions
    assert len(run(network)) == len(output) - 1
    for options in ({}, {"output_attentions": False}, {"output_hidden_states": True}):
        same(run(network, return_dict=False, **options), run(network, return_dict=True, **options).to_tuple())
    one = network(pixel_values=PIXELS[:1])
    same([one[0].detach()], [run(network)[0][:1]])


def retain_gradients(lib, cls, folder):  # noqa: ARG001
    """Of hidden states and attentions."""
    config = lib.Config(**FIELDS, output_hidden_states=True, output_attentions=True)
    config._attn_implementation = "eager"
    output = cls._from_config(config, attn_implementation="eager")(pixel_values=PIXELS)
    states = (output.hidden_states[0], output.attentions[0])
    for state in states:
        state.retain_grad()
    output[0].flatten()[0].backward(retain_graph=True)
    assert all(state.grad is not None for state in states)


def keep_class_attributes(lib, cls, folder):  # noqa: ARG001
    """Names that code for every model reads."""
    from transformers.modeling_utils import _get_tied_weight_keys

    network = build(lib, cls, chunk_size_feed_forward=1, tie_word_embeddings=True)
    assert next(iter(inspect.signature(network.forward).parameters)) == cls.main_input_name == "pixel_values"
    assert len(network._keep_in_fp32_modules) == len(network._keep_in_fp32_modules_strict) == 0
    assert not any((cls._supports_sdpa, cls._supports_flash_attn, cls._supports_flex_attn))
    assert not any((cls._can_set_attn_implementation(), cls._can_set_experts_implementation()))
    assert not network._can_record_outputs
    assert not _get_tied_weight_keys(network)
    assert network.num_parameters() < 10**6
    assert isinstance(network.get_input_embeddings(), nn.Module)
    assert network.get_output_embeddings() is None


def refuse_other_attention(lib, cls, folder):
    """Where a model is built or loaded."""
    build(lib, cls).save_pretrained(folder)
    config = lib.Config(**FIELDS)
    config._attn_implementation = "sdpa"
    for call in (
        lambda: cls(config),
        lambda: cls._from_config(lib.Config(**FIELDS), attn_implementation="sdpa"),
        lambda: cls.from_pretrained(folder, attn_implementation="sdpa"),
    ):
        with pytest.raises(ValueError, match=r"attention implementation|attn_implementation"):
            call()


# Configurations: (library, no class, folder).


def build_any_configuration(lib, _, folder):
    """Also one that no network can have; files keep it."""
    config = lib.Config(embed_dim=37)
    assert json.loads(config.to_json_string())["embed_dim"] == 37
    config.to_json_file(folder / "one.json")
    assert lib.Config.from_json_file(folder / "one.json").to_dict() == config.to_dict()
    config.save_pretrained(folder / "inner")
    assert lib.Config.from_pretrained(folder, subfolder="inner").to_dict() == config.to_dict()
    with pytest.raises(OSError, match="nowhere"):
        lib.Config.from_pretrained(str(folder / "nowhere"))
    for number, name in enumerate(("image_size", "patch_size", "num_channels")):
        setattr(config, name, number)
        assert getattr(config, name) == getattr(lib.Config(**{name: number}), name) == number
    assert lib.Config(**{**FIELDS, **config.to_diff_dict()}).embed_dim == 37


def keep_lists(lib, _, folder):
    """Lists are written, read and compared as lists."""
    config = lib.Config(**FIELDS)
    values = json.loads(config.to_json_string())
    assert {name: values[name] for name in FIELDS} == FIELDS
    config.save_pretrained(folder)
    assert lib.Config.from_pretrained(folder).depths == config.depths == FIELDS["depths"]


def keep_common_attributes(lib, _, folder):  # noqa: ARG001
    """Those that every configuration has."""
    config = lib.Config(num_labels=5, attn_implementation="eager", dtype="float16", bos_token_id=6)
    assert len(config.id2label) == len(config.label2id) == 5
    config.num_labels = 3
    assert len(config.id2label) == len(config.label2id) == 3
    assert config._attn_implementation == "eager"
    assert (config.dtype, config.bos_token_id) == (torch.float16, 6)
    assert (config.sub_configs, config.base_model_tp_plan) == ({}, None)
    assert lib.Config(id2label={0: "label"}, label2id={"label": "0"}).label2id == {"label": "0"}
    zero = copy.deepcopy(config)
    zero.initializer_range = zero.img_range = 1e-10
    weights = lib.Network(zero).named_parameters()
    assert all(abs(each.mean()) < 1e-8 or each.mean() == 1 for name, each in weights if "logit_scale" not in name)


def load_one_part(lib, _, folder):
    """A network from a body, with a new head, and a body from a network."""
    network = build(lib, lib.Network)
    network.base_model.save_pretrained(folder)
    again, info = lib.Network.from_pretrained(folder, output_loading_info=True)
    same(again.swin2sr.parameters(), network.swin2sr.parameters())
    assert info["missing_keys"] == {name for name in network.state_dict() if name.startswith("upsample.")}
    network.save_pretrained(folder)
    body, info = lib.Body.from_pretrained(folder, output_loading_info=True)
    same(body.parameters(), network.swin2sr.parameters())
    assert (info["missing_keys"], bool(info["unexpected_keys"])) == (set(), True)


# Image processors: (library, no class, folder).


def photos(kind, channels=3):
    for height, width in ((30, 41), (9, 55)):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
        image = {"PIL": Image.fromarray, "NumPy": np.asarray, "PyTorch": lambda a: torch.from_numpy(a).permute(2, 0, 1)}
        yield image[kind](pixels), (1, channels, (height // 8 + 1) * 8, (width // 8 + 1) * 8)


def keep_settings(lib, _, folder):
    """In a string, a file and a folder, which AutoImageProcessor reads too."""
    from transformers.testing_utils import check_json_file_has_correct_format

    processor = lib.Processor(**SETTINGS)
    assert SETTINGS.items() <= json.loads(processor.to_json_string()).items()
    processor.to_json_file(folder / "one.json")
    assert lib.Processor.from_json_file(folder / "one.json").to_dict() == processor.to_dict()
    [file, *_] = processor.save_pretrained(folder)
    check_json_file_has_correct_format(file)
    for cls in (lib.Processor, transformers.AutoImageProcessor):
        assert cls.from_pretrained(folder).to_dict() == processor.to_dict()
    lib.Processor(pad_size=16).save_pretrained(folder)
    for cls in (lib.Processor, transformers.AutoImageProcessor):
        assert cls.from_pretrained(folder).size_divisor == 16
    assert lib.Processor().do_pad


def process_every_kind(lib, _, folder):
    """PIL images, arrays, tensors, four channels, files, and images of several sizes."""
    processor = lib.Processor(**SETTINGS)
    for kind in ("PIL", "NumPy", "PyTorch"):
        for image, shape in photos(kind):
            assert processor(image, return_tensors="pt").pixel_values.shape == shape
            assert processor([image, image], return_tensors="pt").pixel_values.shape == (2, *shape[1:])
        assert len(processor([image for image, _ in photos(kind)]).pixel_values) == 2
    for image, shape in photos("NumPy", channels=4):
        assert processor(image, return_tensors="pt", input_data_format="channels_last").pixel_values.shape == shape
    [(image, shape), _] = photos("PIL")
    image.save(folder / "one.png")
    expected = processor(image, return_tensors="pt").pixel_values
    assert torch.equal(processor(str(folder / "one.png"), return_tensors="pt").pixel_values, expected)
    transparent = image.convert("RGBA")
    assert torch.equal(processor(transparent, do_convert_rgb=True, return_tensors="pt").pixel_values, expected)


def convert_types(lib, _, folder):  # noqa: ARG001
    """Floating point alone, in the order device, type."""
    [(image, _), _] = photos("PyTorch")
    inputs = lib.Processor(**SETTINGS)(image, return_tensors="pt")
    with pytest.raises(TypeError):
        inputs.to(torch.bfloat16, "cpu")
    inputs.update({"input_ids": torch.tensor([[1, 2]])})
    inputs = inputs.to("cpu", torch.bfloat16)
    assert (inputs.pixel_values.dtype, inputs.input_ids.dtype) == (torch.bfloat16, torch.int64)
    assert inputs.to(torch.float16).pixel_values.dtype is torch.float16


MODELS = (
    save_and_load, load_a_state, report_loading, load_every_type, refuse_the_meta_device, initialise_again,
    switch_checkpointing, return_outputs, retain_gradients, keep_class_attributes, refuse_other_attention,
)  # fmt: skip
OTHERS = (
    build_any_configuration, keep_lists, keep_common_attributes, load_one_part, keep_settings, process_every_kind,
    convert_types,
)  # fmt: skip
CHECKS = [(check, each) for check in MODELS for each in ("Body", "Network")] + [(check, None) for check in OTHERS]


@pytest.mark.parametrize("library", [model, transformers], ids=lambda each: each.__name__)
@pytest.mark.parametrize(("check", "cls"), CHECKS, ids=lambda each: getattr(each, "__name__", each))
def test_a_check_of_transformers_passes(check, cls, library, tmp_path):
    """With both libraries."""
    classes = classes_of(library)
    check(classes, cls and getattr(classes, cls), tmp_path)
