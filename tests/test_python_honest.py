"""Nothing is silently wrong in Python: what is replaced, hooked or changed in a model is what computes (promise 28)."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize
from torch.optim import swa_utils

from model import Swin2SRConfig, Swin2SRForImageSuperResolution, Upscaler
from model.hooks import HeartbeatHook
from model.inference.cpu import can_infer, infer
from tests.networks import tiny_network
from tests.optional import peft, transformers

QUERY = "swin2sr.encoder.stages.0.layers.0.attention.self.query"
BIAS_NETWORK = ("continuous_position_bias_mlp.0", "continuous_position_bias_mlp.2")
LINEAR = ("query", "key", "value", "dense", "0", "2")
"""The last names of the linear layers: of attention, projections and MLP, and of the position bias network."""


def tiny(**options) -> Swin2SRForImageSuperResolution:
    torch.manual_seed(0)
    fields = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2), "upsampler": "pixelshuffledirect"}
    model = Swin2SRForImageSuperResolution(Swin2SRConfig(**{**fields, "drop_path_rate": 0.0, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.eval()


PIXELS = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
LABELS = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def answer(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=PIXELS).reconstruction


def is_fast(model: nn.Module) -> bool:
    with torch.no_grad():
        return can_infer(model, PIXELS) and infer(model) is not None


class LoRA(nn.Module):
    """A linear layer with a low-rank addition."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base = layer
        self.a = nn.Parameter(torch.randn(2, layer.in_features) / 4)
        self.b = nn.Parameter(torch.randn(layer.out_features, 2) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T

    def merge(self) -> nn.Linear:
        layer = copy.deepcopy(self.base)
        layer.weight.data += (self.b @ self.a).detach()
        return layer


def replace(model: nn.Module, kind: type[nn.Module], make, name: str | None = None) -> nn.Module:
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, kind) and name in (None, child_name):
                setattr(parent, child_name, make(child))
    return model


def test_an_untouched_model_takes_the_fast_pass_and_computes_the_same():
    """With gradients on it does not; both give the same image."""
    model = tiny()
    assert is_fast(model)
    assert not can_infer(model, PIXELS)
    assert not is_fast(copy.deepcopy(model).train())
    assert (answer(model) - model(PIXELS).reconstruction).abs().max() < 1e-5


@pytest.mark.parametrize("name", LINEAR)
def test_lora_on_any_linear_layer_is_honoured(name: str):
    """The answer is that of merged weights, and the adapter gets a gradient."""
    adapted = replace(tiny(), nn.Linear, LoRA, name)
    merged = replace(copy.deepcopy(adapted), LoRA, LoRA.merge)
    assert not is_fast(adapted)
    assert (answer(adapted) - answer(merged)).abs().max() < 1e-5
    adapted(PIXELS, labels=LABELS).loss.backward()
    adapters = [p for n, p in adapted.named_parameters() if n.endswith((".a", ".b"))]
    assert adapters
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters)


@pytest.mark.slow
def test_lora_of_peft_on_every_linear_layer_is_honoured():
    """As people write it."""
    plain = tiny()
    config = peft.LoraConfig(r=2, target_modules=[*LINEAR[:4], *BIAS_NETWORK], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(plain), config).eval()
    found = answer(adapted)
    with adapted.disable_adapter():
        assert (answer(adapted) - answer(plain)).abs().max() < 1e-5
    merged = answer(copy.deepcopy(adapted).merge_and_unload().eval())
    assert (found - merged).abs().max() < 1e-5
    assert (found - answer(plain)).abs().max() > 1e-4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_dynamic_int8_computes_in_int8():
    """Its layers are called, and change the answer by little."""
    quantised = torch.ao.quantization.quantize_dynamic(tiny(), {nn.Linear}, dtype=torch.qint8)
    assert 1e-6 < (answer(quantised) - answer(tiny())).abs().max() < 0.5


@pytest.mark.parametrize("how", ["copied in place", "through .data", "AveragedModel"])
def test_an_average_of_weights_is_seen_in_evaluation_mode(how: str):
    """After steps of training the average's answer is that of a fresh model with its weights."""
    model = tiny().train()
    average = copy.deepcopy(model).eval()
    if how == "AveragedModel":
        average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5)).eval()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        model(PIXELS, labels=LABELS).loss.backward()
        optimiser.step()
        answer(average)
        if how == "AveragedModel":
            average.update_parameters(model)
            continue
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                target = old.data if how == "through .data" else old
                target.mul_(0.5).add_(new, alpha=0.5)
    fresh = tiny()
    fresh.load_state_dict((average.module if how == "AveragedModel" else average).state_dict())
    assert torch.equal(answer(average), answer(fresh))
    assert not torch.equal(answer(average), answer(tiny()))


def test_every_parameter_has_a_gradient_in_evaluation_mode():
    """The position bias network included."""
    model = tiny()
    model(PIXELS, labels=LABELS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_hidden_states_and_attentions_are_on_the_way_to_the_answer(training: bool):
    """After retain_grad they have the answer's gradient."""
    output = tiny().train(training)(PIXELS, output_hidden_states=True, output_attentions=True)
    middle = (output.hidden_states[0], output.hidden_states[-1], output.attentions[0])
    for state in middle:
        state.retain_grad()
    output.reconstruction.sum().backward()
    assert all(state.grad is not None and state.grad.abs().max() > 0 for state in middle)


def test_other_weights_of_a_functional_call_are_used():
    """torch.func.functional_call gives the answer of a model with these weights, and leaves the model's own."""
    model, other = tiny(), tiny(initializer_range=0.1)
    with torch.no_grad():
        called = torch.func.functional_call(model, dict(other.named_parameters()), kwargs={"pixel_values": PIXELS})
    assert torch.equal(called.reconstruction, answer(other))
    assert not torch.equal(answer(model), answer(other))
    model.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(answer(model), answer(other))


class Twice(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def doubled() -> Swin2SRForImageSuperResolution:
    model = tiny()
    with torch.no_grad():
        for parameter in model.get_submodule(QUERY).parameters():
            parameter.mul_(2)
    return model


CHANGES = {
    "parametrisation": lambda layer: [
        parametrize.register_parametrization(layer, n, Twice()) for n in ("weight", "bias")
    ],
    "forward hook": lambda layer: layer.register_forward_hook(lambda _module, _inputs, output: 2 * output),
    "pre-hook": lambda layer: layer.register_forward_pre_hook(lambda _module, inputs: (inputs[0],)),
    "instance forward": lambda layer: setattr(layer, "forward", lambda x: 2 * nn.Linear.forward(layer, x)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_promise_28_a_changed_layer_is_honoured(change: str):
    """A parametrisation, hooks and a replaced forward make the fast pass stand back."""
    model = tiny()
    CHANGES[change](model.get_submodule(QUERY))
    assert not is_fast(model)
    expected = answer(tiny() if change == "pre-hook" else doubled())
    assert (answer(model) - expected).abs().max() < 1e-5


def test_a_hook_for_all_modules_sees_them():
    """As profilers and activation viewers register it."""
    model, seen = tiny(), []
    handle = register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    answer(model)
    handle.remove()
    assert {"Linear", "LayerNorm", "Swin2SRSelfAttention"} <= set(seen)


REFLECTING = nn.Conv2d(24, 24, 3, padding=1, padding_mode="reflect")
REPLACED = {
    "an activation": ("swin2sr.encoder.stages.0.layers.0.intermediate.intermediate_act_fn", nn.Tanh()),
    "a norm": ("swin2sr.layernorm", nn.Identity()),
    "a norm without weights": ("swin2sr.layernorm", nn.LayerNorm(24, elementwise_affine=False)),
    "a convolution with reflection": (
        "swin2sr.conv_after_body",
        nn.Conv2d(24, 24, 3, padding=1, padding_mode="reflect"),
    ),
    "a head": ("upsample", nn.Upsample(scale_factor=2)),
    "a stage": ("swin2sr.encoder.stages.0", None),
}


@pytest.mark.parametrize("part", REPLACED)
def test_a_replaced_part_is_called(part: str):
    """The answer with gradients, which the reference gives, is the answer without."""
    model = tiny()
    name, module = REPLACED[part]
    if part == "a head":
        module = nn.Sequential(nn.Conv2d(24, 3, 1), module)
    if module is None:
        stage = model.get_submodule(name)

        class Same(type(stage)):
            def forward(self, tokens, *_, **__):
                return tokens, None

        module = stage
        module.__class__ = Same
    else:
        model.set_submodule(name, module)
    assert (answer(model) - model(PIXELS).reconstruction).abs().max() < 1e-5
    assert (answer(model) - answer(tiny())).abs().max() > 1e-5


LAYER = "swin2sr.encoder.stages.0.layers.1"
ATTRIBUTES = [
    (f"{LAYER}.layernorm_before", "eps", 1.0),
    (f"{LAYER}.layernorm_after", "eps", 1.0),
    ("swin2sr.layernorm", "eps", 1.0),
    (LAYER, "shift_size", 2),
    (LAYER, "shift_size", 0),
    (f"{LAYER}.intermediate.intermediate_act_fn", "approximate", "tanh"),
    ("swin2sr.conv_after_body", "padding_mode", "reflect"),
    ("swin2sr.config", "img_range", 2.0),
    ("swin2sr", "img_range", 2.0),
]


@pytest.mark.parametrize(("part", "attribute", "value"), ATTRIBUTES)
def test_a_changed_attribute_takes_effect(part: str, attribute: str, value: object):
    """After a pass too: the answer without gradients is the one with gradients, which the reference gives."""
    model = tiny()
    before = answer(model)
    owner = model.swin2sr.config if part == "swin2sr.config" else model.get_submodule(part)
    setattr(owner, attribute, value)
    assert (answer(model) - model(PIXELS).reconstruction).abs().max() < 1e-5
    assert (answer(model) - before).abs().max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0, 2, 3, 5])
def test_a_layer_of_another_shift_masks_its_own_windows(shift: int):
    """As Transformers does, whose layers make their masks themselves; with gradients and without."""
    model, other = tiny(), None
    other = transformers.Swin2SRForImageSuperResolution(transformers.Swin2SRConfig(**model.config.to_dict())).eval()
    other.load_state_dict(model.state_dict(), strict=False)
    for network in (model, other):
        network.swin2sr.encoder.stages[0].layers[1].shift_size = shift
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert (model(PIXELS).reconstruction - other(PIXELS).reconstruction).abs().max() < 1e-5


@pytest.mark.parametrize("method", ["get_attn_mask", "position_bias", "scale"])
def test_a_replaced_method_of_a_layer_takes_effect(method: str):
    """An instance attribute, without gradients too."""
    model = tiny()
    before = answer(model)
    layer = model.get_submodule(LAYER)
    owner = layer if method == "get_attn_mask" else layer.attention.self
    original = getattr(owner, method)
    changed = {
        "get_attn_mask": lambda *_, **__: None,
        "position_bias": lambda: 2 * original(),
        "scale": lambda: 2 * original(),
    }
    setattr(owner, method, changed[method])
    assert (answer(model) - model(PIXELS).reconstruction).abs().max() < 1e-5
    assert (answer(model) - before).abs().max() > 1e-5


def test_a_changed_scale_of_the_configuration_changes_nothing():
    """As in Transformers: the head was built for the scale before."""
    model = tiny()
    before = answer(model)
    model.config.upscale = 4
    assert torch.equal(answer(model), before)


def test_heads_that_do_not_fit_the_weights_fail_without_gradients_too():
    """As the reference does."""
    model = tiny()
    model.get_submodule(f"{LAYER}.attention.self").num_attention_heads = 1
    with pytest.raises(RuntimeError):
        model(PIXELS)
    with pytest.raises(RuntimeError):
        answer(model)


def test_copies_compute_the_same_without_the_first_ones_memory():
    """Deepcopy and pickle, before and after a forward pass."""
    model = tiny()
    expected = answer(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(answer(other), expected)
        assert other.workspace is not model.workspace
        assert other.config == model.config


def test_an_upscaler_honours_hooks_that_come_later():
    """Its packed weights stand back for the network, and its heartbeat is no such hook."""
    network = tiny_network()
    upscaler, beats, seen = Upscaler(network, device="cpu", precision="exact"), [], []
    tile = (PIXELS[0].permute(1, 2, 0) * 255).byte().numpy()
    [expected] = upscaler.forward([tile])
    upscaler.on_progress(lambda: beats.append(1))
    [again] = upscaler.forward([tile])
    assert (again == expected).all()
    assert len(beats) > sum(network.config.depths)
    assert any(isinstance(hook, HeartbeatHook) for hook in network.swin2sr._forward_pre_hooks.values())
    network.swin2sr.layernorm.register_forward_hook(lambda *_: seen.append(1))
    [watched] = upscaler.forward([tile])
    assert seen
    assert abs(watched - expected).max() < 1e-5
