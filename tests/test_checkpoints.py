"""Checkpoints: both layouts, every wrapping, strict errors, configuration from keys and shapes."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.checkpoints import (
    CheckpointError,
    load_network,
    read_checkpoint,
    write_official,
    write_pretrained,
)
from model.checkpoints.state_dict_keys import is_derived, to_official
from model.config import Swin2SRConfig
from model.network import Swin2SR
from tests.test_state_dict_keys import golden_state

HEADS = [
    ("pixelshuffle", 2),
    ("pixelshuffle", 3),
    ("pixelshuffle", 8),
    ("pixelshuffledirect", 3),
    ("nearest+conv", 4),
    ("pixelshuffle_aux", 4),
    (None, 1),
]


def tiny_config(**changes) -> Swin2SRConfig:
    fields = {"embed_dim": 12, "depths": (1, 2), "num_heads": (2, 3), **changes}
    return Swin2SRConfig(**fields)


def tiny_network(**changes) -> Swin2SR:
    torch.manual_seed(0)
    network = Swin2SR(tiny_config(**changes))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return network.eval()


def same_weights(left: Swin2SR, right: Swin2SR) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(("upsampler", "upscale"), HEADS)
@pytest.mark.parametrize("resi_connection", ["1conv", "3conv"])
def test_a_pretrained_folder_round_trips(tmp_path, upsampler, upscale, resi_connection):
    """What write_pretrained writes, load_network loads: the same configuration and weights, in evaluation mode."""
    network = tiny_network(upsampler=upsampler, upscale=upscale, resi_connection=resi_connection, qkv_bias=upscale != 3)
    write_pretrained(network, tmp_path / "new" / "folder")
    loaded = load_network(tmp_path / "new" / "folder")
    assert loaded.config == network.config
    assert same_weights(loaded, network)
    assert not loaded.training


@pytest.mark.parametrize("name", ["network.safetensors", "network.pth"])
@pytest.mark.parametrize(("upsampler", "upscale"), HEADS)
def test_official_files_round_trip(tmp_path, name, upsampler, upscale):
    """Both official forms give the configuration and every weight without another file."""
    restoring = {"window_size": 7, "img_range": 255.0, "num_channels": 1} if upsampler is None else {}
    network = tiny_network(upsampler=upsampler, upscale=upscale, **restoring)
    write_official(network, tmp_path / name)
    loaded = load_network(tmp_path / name)
    assert loaded.config == network.config
    assert same_weights(loaded, network)


def test_official_index_buffers_are_the_authors_own(tmp_path):
    """The index buffers of a written .pth equal those that the official code saved."""
    network = tiny_network(upsampler=None, upscale=1, window_size=7, img_range=255.0, depths=(2, 3), num_heads=(2, 4))
    write_official(network, tmp_path / "network.pth")
    written = torch.load(tmp_path / "network.pth", weights_only=True)
    golden, _ = golden_state("jpeg_color")
    buffers = [key for key in golden if is_derived(key)]
    assert len(buffers) == 10
    for key in buffers:
        torch.testing.assert_close(written[key], golden[key], rtol=0, atol=1e-6)


def test_a_pth_without_a_readable_configuration_is_not_written(tmp_path):
    """An activation leaves no trace in a .pth, so writing one is refused; .safetensors contains it."""
    network = tiny_network(hidden_act="relu")
    with pytest.raises(ValueError, match=r"\.safetensors"):
        write_official(network, tmp_path / "network.pth")
    assert not (tmp_path / "network.pth").exists()
    write_official(network, tmp_path / "network.safetensors")
    assert load_network(tmp_path / "network.safetensors").config.hidden_act == "relu"


def test_another_ending_is_not_written(tmp_path):
    """Official weights go to .safetensors or .pth."""
    with pytest.raises(ValueError, match="onnx"):
        write_official(tiny_network(), tmp_path / "network.onnx")


@pytest.mark.parametrize("wrap", ["flat", "params", "params_ema", "both", "module"])
def test_every_wrapping_of_a_pth_is_unwrapped(tmp_path, wrap):
    """A flat dictionary, params, params_ema (preferred) and a module. prefix hold the same network."""
    network = tiny_network()
    write_official(network, tmp_path / "flat.pth")
    state = torch.load(tmp_path / "flat.pth", weights_only=True)
    zeros = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    content = {
        "flat": state,
        "params": {"params": state},
        "params_ema": {"params_ema": state},
        "both": {"params": zeros, "params_ema": state, "iter": 5},
        "module": {f"module.{key}": tensor for key, tensor in state.items()},
    }[wrap]
    torch.save(content, tmp_path / "wrapped.pth")
    assert same_weights(load_network(tmp_path / "wrapped.pth"), network)


def test_bin_is_read_where_there_are_no_safetensors(tmp_path):
    """A Hugging Face folder with pytorch_model.bin loads, old index buffers and unknown fields and all."""
    network = tiny_network()
    write_pretrained(network, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    state["swin2sr.encoder.stages.0.layers.0.attention.self.relative_position_index"] = torch.zeros(64, 64)
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = json.loads((tmp_path / "config.json").read_text()) | {"path_norm": True, "num_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same_weights(load_network(tmp_path), network)


def test_safetensors_are_preferred_to_bin(tmp_path):
    """Where both are present the safetensors are read and the pickled file is not touched."""
    network = tiny_network()
    write_pretrained(network, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not weights")
    assert read_checkpoint(tmp_path).file.name == "model.safetensors"
    assert same_weights(load_network(tmp_path), network)


def test_weights_take_the_type_asked_for(tmp_path):
    """bfloat16 weights load as float32 unless another type is requested."""
    network = tiny_network().to(torch.bfloat16)
    write_official(network, tmp_path / "network.safetensors")
    assert load_file(tmp_path / "network.safetensors")["norm.weight"].dtype == torch.bfloat16
    assert load_network(tmp_path / "network.safetensors").swin2sr.layernorm.weight.dtype == torch.float32
    double = load_network(tmp_path / "network.safetensors", dtype=torch.float64)
    assert {parameter.dtype for parameter in double.parameters()} == {torch.float64}


@pytest.mark.parametrize("layout", ["official", "huggingface"])
def test_an_error_names_the_file_and_the_keys(tmp_path, layout):
    """Missing, unexpected and misshaped weights are named as the file names them, all at once."""
    network = tiny_network()
    if layout == "official":
        file = tmp_path / "network.safetensors"
        write_official(network, file)
        names = ("layers.1.residual_group.blocks.1.attn.qkv.weight", "conv_last.weight", "conv_first.bias")
    else:
        file = tmp_path / "model.safetensors"
        write_pretrained(network, tmp_path)
        names = (
            "swin2sr.encoder.stages.1.layers.1.attention.self.key.weight",
            "upsample.final_convolution.weight",
            "swin2sr.first_convolution.bias",
        )
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)
    missing, misshaped, removed = names
    del state[missing], state[removed]
    state[misshaped] = torch.zeros(3, 64, 1, 1)
    state["surprise.weight"] = torch.zeros(1)
    save_file(state, file, metadata)
    with pytest.raises(CheckpointError) as caught:
        load_network(file if layout == "official" else tmp_path)
    assert caught.value.missing == tuple(sorted((missing, removed)))
    assert caught.value.unexpected == ("surprise.weight",)
    assert caught.value.misshaped == (misshaped,)
    for word in (str(file), *names, "surprise.weight", "(3, 64, 1, 1)", "(3, 64, 3, 3)"):
        assert word in str(caught.value)


def test_a_long_error_is_cut_and_says_so(tmp_path):
    """A file with everything missing names some keys and the number of the others."""
    network = tiny_network()
    file = tmp_path / "network.safetensors"
    write_official(network, file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({"conv_first.weight": torch.zeros(12, 3, 3, 3)}, file, metadata)
    with pytest.raises(CheckpointError, match=r"and \d+ more") as caught:
        load_network(file)
    assert len(caught.value.missing) == len(to_official(network.state_dict())) - 1


class Exploding:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    """A .pth that would run code when unpickled is refused by name, and its code does not run."""
    monkeypatch.chdir(tmp_path)
    torch.save({"params": Exploding()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil\.pth"):
        load_network(tmp_path / "evil.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["network.safetensors", "network.pth"])
@pytest.mark.parametrize("length", [0, 5, 1000])
def test_a_truncated_file_is_an_error_with_its_name(tmp_path, name, length):
    """A file cut short is a CheckpointError that names it, never another exception."""
    write_official(tiny_network(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:length] if length < 1000 else content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=name):
        load_network(tmp_path / name)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content", [b"GIF89a", b"PK\x03\x04", b"\x80\x02}q\x00.", b"{}", b"\x80\x05\x95\xff\xff\xff\xff"]
)
def test_bytes_that_are_no_checkpoint_are_refused(tmp_path, content):
    """Whatever torch.load stumbles over becomes a CheckpointError."""
    (tmp_path / "network.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"network\.pth"):
        load_network(tmp_path / "network.pth")


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(1)], {}, {"params": {}}, {"conv_first.weight": 3}, {7: torch.zeros(1)}],
    ids=["list", "empty", "empty params", "number", "number key"],
)
def test_a_pickle_without_weights_is_refused(tmp_path, content):
    """A .pth that holds something other than named tensors is refused by name."""
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        load_network(tmp_path / "odd.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_an_old_style_pickle_is_refused(tmp_path):
    """A plain pickle file is not a checkpoint."""
    (tmp_path / "odd.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        load_network(tmp_path / "odd.pth")


def test_missing_files_are_reported(tmp_path):
    """The errors for a missing file, an empty folder and an unknown extension differ."""
    with pytest.raises(CheckpointError, match="does not exist"):
        load_network(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match=r"model\.safetensors nor pytorch_model\.bin"):
        load_network(tmp_path)
    (tmp_path / "network.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"expected \.safetensors"):
        load_network(tmp_path / "network.onnx")


def test_the_unreleased_head_is_refused_by_name(tmp_path):
    """pixelshuffle_hf is named in the error, whether keys or a configuration ask for it."""
    network = tiny_network()
    write_official(network, tmp_path / "network.pth")
    state = torch.load(tmp_path / "network.pth", weights_only=True)
    torch.save(state | {"conv_first_hf.weight": torch.zeros(1)}, tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match="pixelshuffle_hf"):
        load_network(tmp_path / "network.pth")
    write_pretrained(network, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"upsampler": "pixelshuffle_hf"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="pixelshuffle_hf"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("key", "word"), [("absolute_pos_embed", "use_absolute_embeddings"), ("conv_first.weight", "conv_first")]
)
def test_other_networks_are_refused(tmp_path, key, word):
    """Absolute position embeddings, and a file that is no Swin2SR at all, are refused with the reason."""
    write_official(tiny_network(), tmp_path / "network.pth")
    state = torch.load(tmp_path / "network.pth", weights_only=True)
    if state.pop(key, None) is None:
        state[key] = torch.zeros(1)
    torch.save(state, tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match=word):
        load_network(tmp_path / "network.pth")


def test_without_index_buffers_the_configuration_is_a_separate_file(tmp_path):
    """Without index buffers the window cannot be inferred: the error says so, and NAME.json next to the file has it."""
    network = tiny_network()
    file = tmp_path / "mine.pth"
    torch.save(to_official(network.state_dict()), file)
    with pytest.raises(CheckpointError, match="window"):
        load_network(file)
    (tmp_path / "mine.json").write_text(json.dumps(network.config.to_dict()))
    assert same_weights(load_network(file), network)


def test_hugging_face_names_need_a_configuration(tmp_path):
    """model.safetensors without config.json is refused with the name of what is missing."""
    write_pretrained(tiny_network(), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_network(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"embed_dim": "wide"}', '{"embed_dim": 13}'])
def test_a_bad_configuration_is_a_checkpoint_error(tmp_path, text):
    """A configuration that is no JSON object, or impossible, is an error that names its file."""
    write_pretrained(tiny_network(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config"):
        load_network(tmp_path)
    file = tmp_path / "official.safetensors"
    save_file(to_official(tiny_network().state_dict()), file, {"config": text})
    with pytest.raises(CheckpointError, match="official"):
        load_network(file)


@pytest.mark.parametrize(
    "key", ["conv_first.weight", "layers.0.residual_group.blocks.0.attn.logit_scale", "upsample.0.weight"]
)
@pytest.mark.parametrize("shape", [(), (0,), (0, 0, 3, 3), (1, 1, 1, 1), (7, 5, 3, 3)])
def test_odd_shapes_never_escape_as_other_errors(tmp_path, key, shape):
    """However a decisive weight is shaped, the answer is a CheckpointError."""
    write_official(tiny_network(), tmp_path / "network.pth")
    state = torch.load(tmp_path / "network.pth", weights_only=True)
    state[key] = torch.zeros(shape)
    torch.save(state, tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match=r"network\.pth"):
        load_network(tmp_path / "network.pth")


def test_configuration_in_metadata_wins(tmp_path):
    """The embedded configuration is used as it stands: fields without a trace in the weights survive."""
    config = tiny_config(layer_norm_eps=1e-3, hidden_act="selu", image_size=48)
    write_official(Swin2SR(config), tmp_path / "network.safetensors")
    assert load_network(tmp_path / "network.safetensors").config == config
    assert read_checkpoint(tmp_path / "network.safetensors").config.to_dict() == config.to_dict()


@pytest.mark.shared
def test_the_real_weights_load(shared):
    """The authors' lightweight weights load strictly, and are as many as published."""
    folder = shared / "checkpoints" / "swin2SR-lightweight-x2-64"
    network = load_network(folder)
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_005_348
