"""Names of weights: to the Hugging Face layout and back, and what they tell of the configuration."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from model.checkpoints.state_dict_keys import (
    CheckpointError,
    infer_config,
    is_derived,
    is_head,
    to_huggingface,
    to_official,
)
from model.config import Swin2SRConfig

GOLDEN = Path(__file__).with_name("golden")
NAMES = sorted(file.stem for file in GOLDEN.glob("*.safetensors"))


def golden_state(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    """A golden network's official state dict, buffers and all, and the official constructor's arguments."""
    file = GOLDEN / f"{name}.safetensors"
    with safe_open(file, "pt") as opened:
        arguments = json.loads(opened.metadata()["config"])
    weights = {
        key.removeprefix("state_dict."): tensor for key, tensor in load_file(file).items() if "state_dict" in key
    }
    return weights, arguments


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_inferred_from_official_keys_and_shapes(name):
    """Every field that the golden networks' state dicts imply is the constructor's."""
    state, arguments = golden_state(name)
    config = infer_config(state)
    assert config == Swin2SRConfig(
        embed_dim=arguments["embed_dim"],
        depths=arguments["depths"],
        num_heads=arguments["num_heads"],
        window_size=arguments["window_size"],
        mlp_ratio=arguments["mlp_ratio"],
        img_range=arguments["img_range"],
        num_channels=arguments["in_chans"],
        resi_connection=arguments["resi_connection"],
        upsampler=arguments["upsampler"] or None,
        upscale=arguments["upscale"],
    )


def test_there_are_eleven_golden_networks():
    """The parametrised tests run on all of them."""
    assert len(NAMES) == 11


@pytest.mark.parametrize("name", NAMES)
def test_names_lead_to_hugging_face_and_back(name):
    """Renaming to the Hugging Face layout and back returns every key and every bit."""
    state, _ = golden_state(name)
    weights = {key: tensor for key, tensor in state.items() if not is_derived(key)}
    renamed = to_huggingface(weights, infer_config(state))
    assert not renamed.keys() & weights.keys()
    assert all(key.startswith(("swin2sr.", "upsample.", "final_convolution.")) for key in renamed)
    returned = to_official(renamed)
    assert returned.keys() == weights.keys()
    assert all(torch.equal(returned[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", NAMES)
def test_heads_and_bodies_are_distinguished_in_both_layouts(name):
    """The same weights belong to the head under official names and under Hugging Face's."""
    state, _ = golden_state(name)
    weights = {key: tensor for key, tensor in state.items() if not is_derived(key)}
    config = infer_config(state)
    for key, tensor in weights.items():
        renamed = to_huggingface({key: tensor}, config)
        assert (
            {is_head(other) for other in renamed} == {is_head(key)} == {not next(iter(renamed)).startswith("swin2sr.")}
        )


@pytest.mark.parametrize("buffer", ["relative_position_index", "relative_coords_table", "attn_mask"])
def test_any_one_buffer_gives_the_window_size(buffer):
    """Index tables, offset tables and masks each imply the window; without all of them it is an error."""
    state, _ = golden_state("classical_x2")
    kept = {key: tensor for key, tensor in state.items() if not is_derived(key) or key.endswith(buffer)}
    assert infer_config(kept).window_size == 8
    with pytest.raises(CheckpointError, match="window"):
        infer_config({key: tensor for key, tensor in state.items() if not is_derived(key)})


def test_unknown_names_are_kept():
    """A name that neither layout knows passes through, for the strict comparison to report."""
    odd = {"surprise.weight": torch.zeros(1), "swin2sr.surprise": torch.zeros(1)}
    assert to_official(odd).keys() == odd.keys()
    assert to_huggingface(odd, Swin2SRConfig()).keys() == odd.keys()
