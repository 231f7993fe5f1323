"""The Python classes as code for Transformers uses them: keywords, flags, files, names, training."""

from __future__ import annotations

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils import _pytree as pytree

from model import Swin2SRConfig, Swin2SRForImageSuperResolution, Swin2SRImageProcessor, Swin2SRModel
from model.checkpoints import CheckpointError
from model.pretrained import ImageSuperResolutionOutput

TINY = {"embed_dim": 12, "depths": (2,), "num_heads": (2,), "upscale": 2, "upsampler": "pixelshuffledirect"}
PIXELS = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
PICTURE = np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8)


def tiny(cls=Swin2SRForImageSuperResolution, **options):
    torch.manual_seed(0)
    return cls(Swin2SRConfig(**{**TINY, **options})).eval()


@pytest.fixture
def folder(tmp_path):
    tiny().save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


@torch.no_grad()
def same(model, atol: float = 1e-6) -> bool:
    return torch.allclose(model.float()(PIXELS).reconstruction, tiny()(PIXELS).reconstruction, atol=atol)


# Configuration.


def test_unknown_keywords_are_kept_and_written(tmp_path):
    """As attributes, through files and copies; labels have whole numbers as keys."""
    config = Swin2SRConfig(my_note="a", id2label={"0": "x"}, torch_dtype="float32", hidden_size=60, num_heads=(6,) * 6)
    assert (config.my_note, config.id2label, config.label2id, config.num_labels) == ("a", {0: "x"}, {"x": 0}, 1)
    assert (config.dtype, config.torch_dtype, config.embed_dim) == (torch.float32, torch.float32, 60)
    config.save_pretrained(tmp_path)
    loaded = Swin2SRConfig.from_pretrained(tmp_path, output_attentions=True)
    assert (loaded.my_note, loaded.output_attentions, loaded.name_or_path) == ("a", True, str(tmp_path))
    assert Swin2SRConfig.from_dict(config.to_dict()) == config == pickle.loads(pickle.dumps(config))
    assert config != Swin2SRConfig(my_note="b", hidden_size=60, num_heads=(6,) * 6)
    assert Swin2SRConfig.from_dict({}, return_unused_kwargs=True, upscale=4, other=1)[1] == {"other": 1}


def test_json_holds_what_differs_from_the_defaults(tmp_path):
    """to_json_string, to_json_file, from_json_file, to_diff_dict and update."""
    config = Swin2SRConfig(**TINY)
    own = {"back_projection", "back_projection_blur", "range_slack"}  # unknown elsewhere; written where they are used
    fields = {field.name for field in dataclasses.fields(Swin2SRConfig)} - own
    assert set(config.to_diff_dict()) == {"model_type", *fields}
    assert set(Swin2SRConfig(output_attentions=True).to_diff_dict()) == {"model_type", "output_attentions", *fields}
    assert json.loads(config.to_json_string()) == config.to_diff_dict()
    assert json.loads(config.to_json_string(use_diff=False))["window_size"] == 8
    config.to_json_file(tmp_path / "one.json")
    assert Swin2SRConfig.from_json_file(tmp_path / "one.json") == config
    assert "embed_dim" in repr(config)
    config.update({"upscale": 4})
    assert config.upscale == 4
    with pytest.raises(ValueError, match="upscale"):
        config.update({"upscale": 5})
    with pytest.raises(ValueError, match="push_to_hub"):
        config.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(TypeError, match="fields"):
        Swin2SRConfig(*range(30))


@torch.no_grad()
def test_flags_of_the_configuration_take_effect():
    """Set when it is made or later; a call's own flag comes first."""
    model = tiny(output_hidden_states=True)
    assert model(PIXELS).hidden_states is not None
    assert model(PIXELS, output_hidden_states=False).hidden_states is None
    model.config.output_attentions = True
    assert len(model(PIXELS).attentions) == 1
    model.config.return_dict = False
    assert isinstance(model(PIXELS), tuple)
    assert isinstance(model(PIXELS, return_dict=True), ImageSuperResolutionOutput)
    assert isinstance(model.swin2sr(PIXELS), tuple)


@torch.no_grad()
def test_unknown_options_of_a_call_are_ignored_with_a_warning():
    """As in Transformers, which gives no warning."""
    for model in (tiny(), tiny().swin2sr):
        with pytest.warns(UserWarning, match="does not have the options bar, foo; they are ignored"):
            model(PIXELS, foo=1, bar=2)


# Outputs.


@torch.no_grad()
def test_outputs_are_pytrees_that_can_be_rebuilt():
    """Leaves are tensors; a dictionary or pairs make an output, as accelerate and DataParallel do."""
    output = tiny()(PIXELS, output_hidden_states=True)
    leaves, spec = pytree.tree_flatten(output)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    rebuilt = pytree.tree_unflatten(leaves, spec)
    assert type(rebuilt) is type(output)
    assert rebuilt.reconstruction is output.reconstruction
    for other in (type(output)(dict(output)), type(output)(output.items()), pickle.loads(pickle.dumps(output))):
        assert list(other) == list(output)
    output.loss = None
    assert "loss" not in output
    with pytest.raises(TypeError, match="no surprise"):
        type(output)(surprise=1)


# Networks.


def test_questions_that_trainers_ask_are_answered():
    """Counts, parts, flags and refusals."""
    model, body = tiny(), tiny(Swin2SRModel)
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    model.swin2sr.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == sum(p.numel() for p in model.upsample.parameters())
    assert model.base_model is model.swin2sr
    assert body.base_model is body
    assert model.get_input_embeddings() is model.swin2sr.embeddings.patch_embeddings
    model.set_input_embeddings(torch.nn.Flatten(2))
    assert isinstance(model.get_input_embeddings(), torch.nn.Flatten)
    assert model.get_output_embeddings() is None
    assert not model.can_generate()
    assert (model.main_input_name, model.base_model_prefix) == ("pixel_values", "swin2sr")
    assert (
        model.get_memory_footprint() > 4 * model.num_parameters() > model.get_memory_footprint(return_buffers=False) - 1
    )
    assert model.floating_point_ops({"pixel_values": PIXELS}) == 6 * PIXELS.numel() * model.num_parameters()
    assert model.dummy_inputs["pixel_values"].shape == PIXELS.shape
    model.tie_weights()
    model.post_init()
    model.register_for_auto_class()
    assert Swin2SRModel._from_config(body.config, dtype="bfloat16").dtype is torch.bfloat16
    with pytest.raises(ValueError, match="hf upload"):
        model.push_to_hub("name")
    with pytest.raises(NotImplementedError, match="token"):
        model.resize_token_embeddings(5)


def test_initialisation_follows_the_configuration():
    """With a range of zero all matrices and convolutions are zero, as in Transformers."""
    for name, parameter in tiny(initializer_range=1e-10).named_parameters():
        if "logit_scale" not in name:
            assert round(parameter.mean().item(), 6) in (0.0, 1.0), name


def test_gradient_checkpointing_changes_no_gradient():
    """And can be switched off again."""
    gradients = []
    for enabled in (False, True):
        model = tiny(drop_path_rate=0.0).train()
        if enabled:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        assert model.is_gradient_checkpointing is enabled
        model(PIXELS, labels=torch.zeros(1, 3, 32, 32)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    model.enable_input_require_grads()
    assert model.requires_grad_(False)(PIXELS).reconstruction.requires_grad
    model.disable_input_require_grads()


# Files.


@pytest.mark.parametrize(
    "options",
    [
        {"revision": "main"},
        {"cache_dir": None},
        {"token": None},
        {"local_files_only": True},
        {"torch_dtype": torch.float32},
        {"torch_dtype": "auto"},
        {"dtype": "float64"},
        {"dtype": torch.bfloat16},
        {"device_map": "cpu"},
        {"device_map": "auto"},
        {"device_map": {"": "cpu"}},
        {"low_cpu_mem_usage": True},
        {"use_safetensors": True},
        {"config": Swin2SRConfig(**TINY)},
        {"force_download": False},
        {"output_hidden_states": True},
    ],
    ids=str,
)
def test_keywords_of_from_pretrained_are_understood(folder, options):
    """Each loads the weights, in the requested type."""
    model = Swin2SRForImageSuperResolution.from_pretrained(folder, **options)
    wanted = options.get("dtype", torch.float32)
    assert model.dtype is (torch.float64 if wanted == "float64" else wanted)
    assert model.config.output_hidden_states is options.get("output_hidden_states", False)
    assert not model.training
    assert same(model, 1e-2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"from_tf": True}, "from_tf"),
        ({"quantization_config": {"a": 1}}, "quantization_config"),
        ({"device_map": {"swin2sr": "cpu", "upsample": "meta"}}, "one device"),
        ({"dtype": "float7"}, "float7"),
        ({"subfolder": ".."}, "is not inside"),
        ({"subfolder": "absent"}, "no folder"),
    ],
)
def test_what_cannot_be_loaded_so_is_refused(folder, options, words):
    """By name."""
    with pytest.raises(ValueError, match=words):
        Swin2SRForImageSuperResolution.from_pretrained(folder, **options)


def test_subfolders_and_shards_load_and_stay_inside(folder, tmp_path):
    """Shards are written above a size, replace a whole file, and cannot lead out of their folder."""
    tiny().save_pretrained(tmp_path / "parent" / "sub", max_shard_size="20KB")
    assert same(Swin2SRForImageSuperResolution.from_pretrained(tmp_path / "parent", subfolder="sub"))
    tiny().save_pretrained(folder, max_shard_size=20_000, safe_serialization=False)
    assert not (folder / "model.safetensors").exists()
    assert len(list(folder.glob("pytorch_model-*.bin"))) > 1
    assert same(Swin2SRForImageSuperResolution.from_pretrained(folder))
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../parent/sub/config.json"}}))
    with pytest.raises(CheckpointError, match="in other folders"):
        Swin2SRForImageSuperResolution.from_pretrained(folder)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="index of weights"):
        Swin2SRForImageSuperResolution.from_pretrained(folder)
    with pytest.raises(ValueError, match="max_shard_size"):
        tiny().save_pretrained(folder, max_shard_size="much")


def test_weights_can_be_given_without_a_folder():
    """With a configuration; without one they are refused."""
    state = tiny().state_dict()
    model, info = Swin2SRForImageSuperResolution.from_pretrained(
        None, config=Swin2SRConfig(**TINY), state_dict=state, output_loading_info=True
    )
    assert same(model)
    assert info["missing_keys"] == set()
    with pytest.raises(ValueError, match="config and state_dict"):
        Swin2SRModel.from_pretrained(None, state_dict=state)


def test_the_meta_device_holds_no_weights():
    """A model can be made without memory."""
    with torch.device("meta"):
        assert {p.device.type for p in tiny().parameters()} == {"meta"}


def test_nothing_is_written_by_other_processes(tmp_path):
    """is_main_process=False writes no file; a given state dict is written in place of the model's."""
    tiny().save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    zeros = {key: torch.zeros_like(tensor) for key, tensor in tiny().state_dict().items()}
    tiny().save_pretrained(tmp_path / "zeros", state_dict=zeros, save_function=torch.save)
    assert not any(tensor.any() for tensor in load_file(tmp_path / "zeros" / "model.safetensors").values())


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect", "nearest+conv", "pixelshuffle_aux", ""])
def test_names_of_modules_and_weights_are_those_of_transformers(upsampler):
    """Every weight has the name that it has there, so state dicts go both ways, and parts are found."""
    transformers = pytest.importorskip("transformers")
    scale = {"": 1}.get(upsampler, 4)
    fields = {**TINY, "depths": [2, 1], "num_heads": [2, 3], "upsampler": upsampler, "upscale": scale}
    theirs = transformers.Swin2SRForImageSuperResolution(transformers.Swin2SRConfig(**fields))
    ours = tiny(**fields)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    modules = {name for name, module in theirs.named_modules() if list(module.parameters(recurse=False))}
    assert modules <= {name for name, _ in ours.named_modules()}


# The image processor.


def test_the_processor_takes_what_users_pass():
    """Both names of the pad size, unknown options with a warning, tensors, dictionaries and files."""
    with pytest.warns(UserWarning, match="do_resize"):
        processor = Swin2SRImageProcessor(size_divisor=16, do_resize=False)
    assert processor.pad_size == processor.size_divisor == 16
    processor.size_divisor = 8
    assert processor.model_input_names == ["pixel_values"]
    with pytest.warns(UserWarning, match="do_resize"):
        inputs = processor(PICTURE, return_tensors="pt", do_resize=False, size_divisor=16)
    assert inputs.data["pixel_values"] is inputs.pixel_values is inputs["pixel_values"]
    assert inputs.pixel_values.shape == (1, 3, 32, 32)
    assert inputs.to("cpu", torch.float16).pixel_values.dtype is torch.float16
    assert inputs.to(device="cpu", dtype=torch.float32).pixel_values.dtype is torch.float32
    assert dict(**inputs).keys() == {"pixel_values"}
    assert pickle.loads(pickle.dumps(inputs)).original_sizes == inputs.original_sizes
    assert Swin2SRImageProcessor.from_dict(processor.to_dict()).to_dict() == processor.to_dict()
    assert json.loads(processor.to_json_string())["do_pad"]
    assert processor(PICTURE).convert_to_tensors("np").pixel_values.shape == (1, 3, 24, 24)
    assert processor.pad(PICTURE, 7).shape == (3, 21, 21)
    assert processor.rescale(PICTURE, 0.5).max() == PICTURE.max() / 2


# Training.


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_of_transformers_trains_the_model(tmp_path):
    """Three steps, and an evaluation, as with its own models."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model, before = tiny(), tiny().state_dict()
    data = [{"pixel_values": PIXELS[0], "labels": torch.zeros(3, 32, 32)} for _ in range(4)]
    options = {"use_cpu": True, "report_to": [], "max_steps": 3, "per_device_train_batch_size": 2}
    arguments = transformers.TrainingArguments(str(tmp_path), save_strategy="no", learning_rate=1e-2, **options)
    trainer = transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model(str(tmp_path / "saved"))
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == before.keys()


@pytest.mark.filterwarnings("ignore")
def test_accelerate_prepares_and_trains_the_model():
    """And its output is passed on unchanged."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimiser = accelerator.prepare(tiny().train(), torch.optim.AdamW(tiny().parameters()))
    output = model(pixel_values=PIXELS, labels=torch.zeros(1, 3, 32, 32))
    accelerator.backward(output.loss)
    optimiser.step()
    assert type(output) is ImageSuperResolutionOutput
    assert all(parameter.grad is not None for parameter in model.parameters())
