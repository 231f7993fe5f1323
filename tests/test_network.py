"""The network as a module: shapes, state, tables, training."""

import pytest
import torch

from model.inference.cpu import Inference
from model.network import Swin2SR
from tests.networks import HEADS, random_image, tiny_config, tiny_network


@pytest.mark.parametrize("head", HEADS)
def test_every_head_multiplies_the_size_by_the_scale(head: str):
    """A batch (B, C, H, W) gives (B, C, s H, s W), and the auxiliary image has the input's size."""
    network = tiny_network(head)
    config = network.config
    batch = torch.stack([random_image(network, 2, 1, seed) for seed in (0, 1)])
    image, aux = network(batch)
    assert image.shape == (2, config.out_channels, config.upscale * batch.shape[2], config.upscale * batch.shape[3])
    assert (aux is not None) == (config.upsampler == "pixelshuffle_aux")
    assert aux is None or aux.shape == batch.shape


@pytest.mark.parametrize("shape", [(1, 3, 8, 12), (1, 1, 8, 8), (3, 8, 8)])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...]):
    """A side off the window grid, other channels, or no batch dimension is a ValueError that says so."""
    with pytest.raises(ValueError, match=r"pad the image first|Expected"):
        tiny_network()(torch.zeros(shape))


def test_the_state_dict_holds_weights_alone():
    """Tables and masks are derived: none is saved, so files load strictly once theirs are dropped."""
    names = tiny_network().state_dict().keys()
    assert not [name for name in names if "mask" in name or "relative" in name or "mean" in name]
    assert "swin2sr.encoder.stages.1.layers.2.attention.self.continuous_position_bias_mlp.0.weight" in names
    assert "upsample.conv.weight" in names


@pytest.mark.parametrize("change", ["load_state_dict", "assign", "in place", "data", "cast"])
def test_the_answer_is_that_of_the_unchanged_weights(change: str):
    """However weights are changed, in evaluation mode too, no table is stale."""
    network, other = tiny_network(seed=1), tiny_network(seed=2)
    image = random_image(network, 2, 2)[None]
    with torch.no_grad():
        expected = other(image).image
        assert not torch.allclose(network(image).image, expected, atol=1e-3)
        if change in ("load_state_dict", "assign"):
            network.load_state_dict(other.state_dict(), assign=change == "assign")
        for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
            (mine.data if change == "data" else mine).copy_(theirs)
        network = network.double().float() if change == "cast" else network
        assert torch.equal(network(image).image, expected)


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_is_trained(head: str):
    """In training every weight gets a finite gradient, the position bias's MLP included."""
    network = tiny_network(head, drop_path_rate=0.0).train().requires_grad_()
    image, aux = network(random_image(network, 2, 2)[None])
    (image.square().mean() + (0 if aux is None else aux.square().mean())).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_network_can_be_trained_after_inference():
    """An answer in inference mode is no obstacle to a backward pass."""
    network = tiny_network()
    with torch.inference_mode():
        network(random_image(network, 2, 2)[None])
    batch = random_image(network, 2, 2)[None]
    network.requires_grad_()(batch).image.sum().backward()
    assert network.swin2sr.first_convolution.weight.grad is not None
    network.train()(batch).image.sum().backward()


def test_drop_path_and_dropout_act_in_training_only():
    """Two passes differ in training and are equal in evaluation."""
    network = tiny_network(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, drop_path_rate=0.5)
    image = random_image(network, 2, 2)[None]
    assert torch.equal(network(image).image, network(image).image)
    network.train()
    assert not torch.equal(network(image).image, network(image).image)


def test_training_mode_computes_what_evaluation_computes():
    """Without dropout the differentiable path and the path of inference agree."""
    network = tiny_network("compressed_x4", drop_path_rate=0.0)
    image = random_image(network, 3, 2)[None]
    with torch.inference_mode():
        fast = Inference(network).reconstruct(list(image))[0].image
    assert torch.allclose(network.train()(image).image, fast, atol=2e-5)


def test_a_fresh_network_begins_as_the_official_one():
    """Linear weights have standard deviation 0.02, biases zero, and the logit scale is log 10."""
    torch.manual_seed(0)
    network = Swin2SR(tiny_config(embed_dim=96))
    block = network.swin2sr.encoder.stages[0].layers[0]
    assert abs(block.intermediate.dense.weight.std().item() - 0.02) < 0.001
    assert not block.intermediate.dense.bias.any()
    assert torch.allclose(block.attention.self.logit_scale.exp(), torch.tensor(10.0))
