"""Initialization by rules: the right tensors, the right distributions."""

import math

import pytest
import torch
import torchvision
from torch import nn

from zoo.layers.init import InitRule, initialize, zero_init_residual


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def linear(**rule):
    layer = nn.Linear(400, 600)
    initialize(layer, [InitRule(**rule)])
    return layer


@pytest.mark.parametrize(
    ("rule", "std", "bound"),
    [
        ({"weight": "xavier_uniform"}, math.sqrt(2 / 1000), math.sqrt(6 / 1000)),
        ({"weight": "xavier_normal", "gain": 2.0}, 2 * math.sqrt(2 / 1000), None),
        ({"weight": "kaiming_uniform"}, math.sqrt(2 / 400), math.sqrt(6 / 400)),
        ({"weight": "kaiming_normal", "fan": "fan_out"}, math.sqrt(2 / 600), None),
        ({"weight": "kaiming_normal", "nonlinearity": "linear"}, math.sqrt(1 / 400), None),
        ({"weight": "normal", "std": 0.5}, 0.5, None),
        ({"weight": "trunc_normal"}, 0.02 * 0.8796, 0.04),  # a normal cut at two deviations
    ],
)
def test_distributions(rule, std, bound):
    weight = linear(**rule).weight
    assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert weight.mean().item() == pytest.approx(0, abs=0.01 * std)
    if bound:
        assert 0.99 * bound < weight.abs().max() <= bound


def test_orthogonal_and_constants():
    weight = linear(weight="orthogonal", gain=3.0).weight
    torch.testing.assert_close(weight.T @ weight, 9 * torch.eye(400), rtol=0, atol=1e-4)
    layer = linear(weight="ones", bias="constant", value=0.5)
    assert (layer.weight == 1).all()
    assert (layer.bias == 0.5).all()


def test_rules_match_by_name_and_type_and_later_rules_override():
    net = nn.ModuleDict(
        {"embed": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    )
    done = initialize(
        net,
        [
            InitRule(weight="trunc_normal", bias="ones"),
            InitRule("head", ["Linear"], weight="zeros"),
        ],
    )
    assert done == [n for n, _ in net.named_parameters() if n != "norm.weight"]
    assert (net["norm"].weight == 1).all()  # random methods pass over vectors
    assert (net["norm"].bias == 1).all()
    assert not net["head"].weight.any()
    assert (net["head"].bias == 1).all()
    assert 0 < net["embed"].weight.abs().max() <= 0.04


def test_parameters_of_attention_and_recurrent_layers_are_initialized():
    net = nn.ModuleList([nn.MultiheadAttention(4, 2), nn.LSTM(3, 4)])
    done = initialize(net, [InitRule(weight="zeros", bias="zeros")])
    assert done == [n for n, _ in net.named_parameters()]
    assert not any(p.any() for p in net.parameters())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "hed", "weight": "zeros"}, "'hed' matches no layer in Linear"),
        ({"types": ["Conv2d"], "weight": "zeros"}, "no layer of type Conv2d"),
        ({}, "neither weight nor bias"),
        ({"match": "[", "weight": "zeros"}, "not a regular expression"),
        ({"weight": "he"}, "init method must be one of xavier_uniform, .*, got 'he'"),
    ],
)
def test_mistakes(rule, message):
    with pytest.raises(ValueError, match=message):
        initialize(nn.Linear(2, 2), [InitRule(**rule)])


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zeroed_branches_of_a_resnet(name, last):
    net = getattr(torchvision.models, name)(num_classes=3)
    zeroed = zero_init_residual(net)
    blocks = [n for n, m in net.named_modules() if type(m).__name__ in ("BasicBlock", "Bottleneck")]
    assert sorted(zeroed) == sorted(f"{block}.{last}.{leaf}" for block in blocks for leaf in ("weight", "bias"))
    block = net.layer1[1].eval()
    x = torch.rand(1, block.conv1.in_channels, 4, 4)  # not negative, as after a ReLU
    assert torch.equal(block(x), x)


def test_zeroed_branches_make_transformers_the_identity():
    vit = torchvision.models.VisionTransformer(8, 4, 2, 2, 8, 16).eval()
    x = torch.randn(1, 5, 8)
    assert len(zero_init_residual(vit)) == 8
    assert torch.equal(vit.encoder.layers(x), x)
    block = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True).train()
    zero_init_residual(nn.ModuleList([block]))
    assert torch.equal(block(x), x)


def test_no_branch_to_zero():
    with pytest.raises(ValueError, match="no residual branch"):
        zero_init_residual(nn.Sequential(nn.Linear(2, 2)))
