"""UNet against diffusers: outputs and gradients with its weights at small sizes, names and shapes at full size."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models import embeddings

from tests.parity.compare import assert_near, on_meta, randomize, shapes
from zoo.models import UNet

SMALL = {"channels": (8, 16), "groups": 4, "blocks": 1, "in_channels": 3}
DIFFUSERS = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1,
    "num_class_embeds": 4,
}  # fmt: skip


def plain(**kwargs) -> UNet2DModel:
    types = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(**{**DIFFUSERS, **types, "attention_head_dim": 8, **kwargs})


def reading(**kwargs) -> UNet2DConditionModel:
    types = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**{**DIFFUSERS, **types, "cross_attention_dim": 12, **kwargs})


CASES = {
    "pixels": (plain, {"attention": (False, True), "head_dim": 8}, {}),
    "heads": (reading, {"attention": (True, False), "heads": 2, "text_dim": 12}, {"attention_head_dim": 2}),
    "head_dim": (
        reading,
        {"attention": (True, False), "head_dim": 4, "text_dim": 12, "linear_projection": True},
        {"attention_head_dim": (2, 4), "use_linear_projection": True},
    ),
}


def exact_waves(t, dim, *args, **kwargs):
    """diffusers' time embedding, which rounds to float32, in the type of the time."""
    rates = torch.exp(-math.log(10000) * torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = t.double()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], 1)


def run(net, text):
    """Outputs, and the gradients of a loss in all parameters, the image and the text."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 8, generator=generator).double().requires_grad_()
    t, labels = torch.tensor([3.25, 871.5], dtype=torch.float64), torch.tensor([1, 3])
    states = torch.randn(2, 5, 12, generator=generator).double().requires_grad_()
    if isinstance(net, UNet):
        out = net(x, t, labels, states if text else None)
    elif text:
        out = net(x, t, encoder_hidden_states=states, class_labels=labels).sample
    else:
        out = net(x, t, class_labels=labels).sample
    (out.square() + torch.linspace(-1, 1, out.numel()).double().view_as(out) * out).mean().backward()
    grads = {k: p.grad for k, p in net.named_parameters()} | {"x": x.grad, "text": states.grad if text else x.grad}
    return out.detach(), grads


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_equals_diffusers(case, exact, monkeypatch):
    make, ours, theirs = CASES[case]
    reference, net = make(**theirs), UNet(**SMALL, num_classes=3, **ours)
    randomize(reference)
    net.load_state_dict(reference.state_dict())
    if exact:
        monkeypatch.setattr(embeddings, "get_timestep_embedding", exact_waves)
        monkeypatch.setattr(
            UNet2DConditionModel, "get_time_embed", lambda self, sample, timestep: self.time_proj(timestep)
        )
    text = "text_dim" in ours
    (out, grads), (expected, theirs_grads) = run(net.double(), text), run(reference.double(), text)
    assert expected.abs().max() > 1e-2
    assert grads.keys() == theirs_grads.keys()
    for name, value, other in [("output", out, expected), *((k, grads[k], theirs_grads[k]) for k in grads)]:
        assert other.abs().max() > 1e-9 or name.endswith("to_k.bias"), name  # which the softmax takes out
        assert_near(name, value, other, torch.float64 if exact else torch.float32)


@pytest.mark.parametrize(
    ("preset", "theirs"),
    [
        ("sd-1.5", {"cross_attention_dim": 768, "attention_head_dim": 8}),
        (
            "sd-2.1",
            {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        ),
    ],
)
def test_stable_diffusion_has_the_same_names_and_shapes(preset, theirs):
    expected = on_meta(lambda: UNet2DConditionModel(sample_size=64, **theirs))
    net = on_meta(lambda: UNet.preset(preset))
    assert shapes(net) == shapes(expected)
    assert sum(p.numel() for p in net.parameters()) in (859_520_964, 865_910_724)


def test_no_label_is_the_last_class():
    net = UNet(**SMALL, attention=(False, True), num_classes=3)
    randomize(net)  # a fresh one begins without its blocks
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 500])
    assert torch.equal(net(x, t), net(x, t, torch.tensor([3, 3])))
    assert not torch.allclose(net(x, t), net(x, t, torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("arguments", "inputs", "message"),
    [
        ({}, {"x": torch.zeros(1, 3, 9, 8)}, "divisible by 2 .* got 9x8"),
        ({}, {"labels": torch.tensor([0])}, "not class-conditional"),
        ({}, {"text": torch.zeros(1, 2, 12)}, "has no cross-attention"),
        ({"text_dim": 12}, {}, "got none"),
        ({"groups": 3}, {}, "groups=3 does not divide the 8 channels"),
        ({"head_dim": 5}, {}, "head_dim=5 does not divide the 16 channels"),
        ({"heads": 2, "head_dim": 4}, {}, "not both"),
        ({"attention": (True,)}, {}, "attention needs 2 values, one per stage"),
    ],
)
def test_mistakes_give_one_line(arguments, inputs, message):
    given = {"x": torch.zeros(1, 3, 8, 8), "t": torch.tensor([1]), **inputs}
    with pytest.raises(ValueError, match=message) as error:
        UNet(**{**SMALL, "attention": (False, True), **arguments})(**given)
    assert "\n" not in str(error.value)


def test_unknown_preset():
    with pytest.raises(ValueError, match="take pixels-8, pixels-32"):
        UNet.preset("sd-3")
