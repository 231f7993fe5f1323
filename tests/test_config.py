"""The configuration: defaults, files, and what is refused."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from model import Swin2SRModel
from model.checkpoints import CheckpointError, read_checkpoint
from model.config import Swin2SRConfig


def test_the_defaults_are_the_classical_x2_network():
    """As on the page that defines the Python surface."""
    config = Swin2SRConfig()
    assert (config.embed_dim, config.depths, config.num_heads) == (180, (6,) * 6, (6,) * 6)
    assert (config.upscale, config.upsampler, config.window_size, config.shift_size) == (2, "pixelshuffle", 8, 4)
    assert (config.hidden_size, config.num_layers, config.out_channels) == (180, 6, 3)


def test_a_configuration_round_trips_through_its_file(tmp_path):
    """What is written is read back, by folder and by file, and is what Hugging Face expects of a config.json."""
    config = Swin2SRConfig(embed_dim=60, depths=(6, 6), num_heads=(6, 6), upsampler=None, upscale=1, img_range=255.0)
    config.save_pretrained(tmp_path / "new")
    assert Swin2SRConfig.from_pretrained(tmp_path / "new") == config
    assert Swin2SRConfig.from_pretrained(tmp_path / "new" / "config.json") == config
    written = json.loads((tmp_path / "new" / "config.json").read_text())
    assert written["model_type"] == "swin2sr"
    assert written["upsampler"] == ""


def test_unknown_fields_are_passed_over():
    """Files on the hub spell one field path_norm, and carry versions."""
    assert Swin2SRConfig.from_dict({"path_norm": True, "transformers_version": "4.27", "upscale": 4}).upscale == 4


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"patch_size": 4}, "patch_size"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings"),
        ({"upsampler": "pixelshuffle_hf"}, "pixelshuffle_hf"),
        ({"upsampler": "bilinear"}, "upsampler"),
        ({"upscale": 5}, "upscale"),
        ({"upsampler": "nearest+conv", "upscale": 2}, "upscale"),
        ({"upsampler": None, "upscale": 2}, "upscale"),
        ({"upsampler": None, "upscale": 1, "num_channels_out": 1}, "num_channels_out"),
        ({"resi_connection": "2conv"}, "resi_connection"),
        ({"resi_connection": "3conv", "embed_dim": 90}, "embed_dim"),
        ({"hidden_act": "swish"}, "hidden_act"),
        ({"depths": (6, 6)}, "depths"),
        ({"depths": (), "num_heads": ()}, "depths"),
        ({"depths": (6, 0), "num_heads": (6, 6)}, "depths"),
        ({"depths": (6.5,), "num_heads": (6,)}, "depths"),
        ({"num_heads": (3.0,) * 6}, "num_heads"),
        ({"embed_dim": 0}, "embed_dim"),
        ({"embed_dim": -12}, "embed_dim"),
        ({"window_size": 8.5}, "window_size"),
        ({"window_size": 1}, "window_size"),
        ({"num_channels": 3.0}, "channels"),
        ({"mlp_ratio": 0.001}, "mlp_ratio"),
        ({"img_range": math.nan}, "img_range"),
        ({"layer_norm_eps": math.inf}, "layer_norm_eps"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"depths": 6}, "wrong type"),
    ],
)
def test_the_impossible_is_refused_by_name(fields, named):
    """Every impossible value is a ValueError that names its field, before any network is built."""
    with pytest.raises(ValueError, match=named):
        Swin2SRConfig.from_dict(fields)


def test_heads_that_do_not_divide_the_width_are_refused_when_a_network_is_built(tmp_path):
    """Configurations of Transformers can be built and written first; a file of weights is named."""
    config = Swin2SRConfig(embed_dim=37)
    assert Swin2SRConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="must divide embed_dim 37"):
        Swin2SRModel(config)
    config.save_pretrained(tmp_path)
    save_file({"swin2sr.layernorm.weight": torch.zeros(37)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: num_heads"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"), [("{", "not JSON"), ("[]", "not the config"), ('{"model_type": "vit"}', "Swin2SR")]
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, text, says):
    """The message has the file and the fault."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        Swin2SRConfig.from_pretrained(tmp_path)
    assert "config.json" in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    """As is a name that is nothing here."""
    with pytest.raises(ValueError, match="cannot be read"):
        Swin2SRConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor in the local Hugging Face cache"):
        Swin2SRConfig.from_pretrained("nobody/nothing-that-exists")
