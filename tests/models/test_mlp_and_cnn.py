"""MLP and small CNN, layer by layer, and every layer that can be given by name."""

import pytest
import torch
from torch import nn

from zoo.layers import Stack, activation, build, norm
from zoo.models import MLP, SmallCNN


def kinds(net: nn.Module) -> list[str]:
    return [type(m).__name__ for m in net.modules() if not list(m.children())]


def equal(net: nn.Module, reference: nn.Module, x: torch.Tensor) -> None:
    """Copy the weights over in order; outputs and gradients must agree in train mode with the same dropout."""
    reference.load_state_dict(dict(zip(reference.state_dict(), net.state_dict().values(), strict=True)))
    results = []
    for model in (net, reference):
        model.double().train()
        torch.manual_seed(1)
        out = model(x)
        out.square().mean().backward()
        results.append((out, [p.grad for p in model.parameters()]))
    assert (results[0][0] - results[1][0]).abs().max() < 1e-10
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert (a - b).abs().max() < 1e-10


def test_three_layer_mlp_equals_plain_layers():
    reference = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    net = MLP(20, [64, 64], 3)
    equal(net, reference, torch.randn(7, 20, dtype=torch.float64))
    assert sum(p.numel() for p in net.parameters()) == 20 * 64 + 64 + 64 * 64 + 64 + 64 * 3 + 3


def test_dropout_mlp_equals_plain_layers():
    reference = nn.Sequential(
        nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 2)
    )
    equal(MLP(10, [32, 32], 2, dropout=0.2), reference, torch.randn(7, 10, dtype=torch.float64))


def test_layernorm_mlp_equals_plain_layers():
    reference = nn.Sequential(
        nn.Linear(20, 128),
        nn.LayerNorm(128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 1),
    )
    net = MLP(20, [128, 64], 1, norm=["layer", "none"], dropout=[0.3, 0.0])
    equal(net, reference, torch.randn(7, 20, dtype=torch.float64))


def test_regularized_mlp_equals_plain_layers():
    reference = nn.Sequential(
        nn.Linear(20, 128), nn.BatchNorm1d(128), nn.GELU(), nn.Dropout(0.3),
        nn.Linear(128, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, 2),
    )  # fmt: skip
    net = MLP(20, [128, 64], 2, activation="GELU", norm=["batch", "layer"], dropout=[0.3, 0.2])
    equal(net, reference, torch.randn(7, 20, dtype=torch.float64))


class ReferenceBlock(nn.Sequential):
    def __init__(self, i, o):
        super().__init__(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


def test_pooled_cnn_equals_plain_layers():
    reference = nn.Sequential(
        ReferenceBlock(3, 32), ReferenceBlock(32, 64), nn.MaxPool2d(2), ReferenceBlock(64, 128),
        ReferenceBlock(128, 128), nn.MaxPool2d(2), ReferenceBlock(128, 256), nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, 10),
    )  # fmt: skip
    equal(SmallCNN(3, 10), reference, torch.randn(3, 3, 32, 32, dtype=torch.float64))


def test_flattened_cnn_equals_plain_layers():
    reference = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10),
    )  # fmt: skip
    net = SmallCNN(3, 10, [[32], [64]], head="flatten", norm="none", dropout=0.3, image_size=32)
    equal(net, reference, torch.randn(3, 3, 32, 32, dtype=torch.float64))


def test_flatten_says_when_the_image_is_too_small():
    with pytest.raises(ValueError, match="needs images of 8 pixels or more, got image_size=4"):
        SmallCNN(1, 2, [[4], [4], [4]], head="flatten", image_size=4)


@pytest.mark.parametrize("name", ["ReLU", "LeakyReLU", "GELU", "SiLU", "Swish", "Tanh", "Sigmoid", "Softmax"])
def test_every_activation_trains(name):
    net = MLP(6, [8], 3, activation=name)
    net(torch.randn(4, 6)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert type(activation(name)).__name__ in (name, "SiLU")


@pytest.mark.parametrize("name", ["BatchNorm1d", "LayerNorm", "GroupNorm", "InstanceNorm1d", "none"])
def test_every_1d_normalisation_trains(name):
    net = MLP(6, [8], 3, norm=name)
    net(torch.randn(4, 6)).square().sum().backward()
    assert name == "none" or name in kinds(net)


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm", "InstanceNorm2d", "none"])
@pytest.mark.parametrize("pool", ["MaxPool2d", "AvgPool2d"])
def test_every_2d_normalisation_and_pooling_trains(name, pool):
    net = SmallCNN(1, 3, [[4], [8]], norm=name, pool=pool)
    net(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert name == "none" or name in kinds(net)
    assert pool in kinds(net)


@pytest.mark.parametrize("name", ["Dropout", "AlphaDropout"])
def test_dropout_types(name):
    assert name in kinds(MLP(6, [8], 3, dropout=0.5, dropout_type=name))


@pytest.mark.parametrize("name", ["Dropout1d", "Dropout2d", "Dropout3d"])
def test_spatial_dropout_by_name(name):
    assert build({"class_path": name, "init_args": {"p": 0.25}}).p == 0.25


def test_arguments_of_a_layer():
    leaky = activation({"class_path": "torch.nn.LeakyReLU", "init_args": {"negative_slope": 0.3}})
    assert leaky.negative_slope == 0.3
    assert norm({"class_path": "GroupNorm", "init_args": {"num_groups": 2}}, 8).num_groups == 2
    assert norm("GroupNorm", 48).num_groups == 24


def test_unknown_layer_names_the_nearest():
    with pytest.raises(ValueError, match=r"no layer 'Gelu'; did you mean .*GELU"):
        build("Gelu")
    with pytest.raises(ValueError, match="cannot be built"):
        build({"class_path": "LeakyReLU", "init_args": {"slope": 1}})


def test_one_value_for_each_layer():
    with pytest.raises(ValueError, match="dropout has 3 values for 2 hidden layers"):
        MLP(4, [8, 8], 2, dropout=[0.1, 0.2, 0.3])


def test_stack_holds_any_layers():
    net = Stack([nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 2)])
    assert net(torch.randn(3, 4)).shape == (3, 2)
