"""airbench94's network against the equations of its paper, and what is particular to it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.compare import assert_near, randomize
from zoo.models import Airbench, AirbenchClassifier


def as_published(x: Tensor, w: dict[str, Tensor], groups: int) -> Tensor:
    """Section 2 and listing 4 of the paper, on bare functions; batch statistics as in training."""

    def normalised(x: Tensor, name: str) -> Tensor:
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (var + 1e-12).sqrt() * w[f"{name}.weight"].view(-1, 1, 1) + w[f"{name}.bias"].view(-1, 1, 1)

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    x = gelu(F.conv2d(x, w["whiten.weight"], w["whiten.bias"]))
    for g in (f"groups.{i}" for i in range(groups)):
        x = gelu(normalised(F.max_pool2d(F.conv2d(x, w[f"{g}.conv1.weight"], padding="same"), 2), f"{g}.norm1"))
        x = gelu(normalised(F.conv2d(x, w[f"{g}.conv2.weight"], padding="same"), f"{g}.norm2"))
    return F.max_pool2d(x, 3).flatten(1) @ w["head.weight"].T * (1 / 9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_outputs_and_gradients(dtype):
    torch.manual_seed(0)
    net = Airbench(3, 10, (8, 16, 16))
    randomize(net)
    net, x = net.to(dtype).train(), torch.randn(4, 3, 32, 32).to(dtype).requires_grad_()
    weights = {k: v.detach().clone().requires_grad_() for k, v in net.named_parameters()}
    own_x = x.detach().clone().requires_grad_()
    out, expected = net(x), as_published(own_x, weights, 3)
    assert expected.abs().max() > 1e-2
    assert_near("output", out, expected, dtype)
    out.square().mean().backward()
    expected.square().mean().backward()
    assert_near("gradient of the input", x.grad, own_x.grad, dtype)
    learnt = {k: p for k, p in net.named_parameters() if p.requires_grad}
    assert weights.keys() - learnt.keys() == {f"groups.{i}.norm{j}.weight" for i in range(3) for j in (1, 2)}
    for name, parameter in learnt.items():
        assert_near(f"gradient of {name}", parameter.grad, weights[name].grad, dtype)


def test_size_is_that_of_the_paper():
    assert round(sum(p.numel() for p in Airbench(3, 10).parameters()) / 1e6, 2) == 1.97


def test_convolutions_begin_by_handing_on_their_input():
    x = torch.randn(2, 24, 8, 8)
    group = Airbench(3, 10, (64, 32, 32)).groups[0]
    assert torch.allclose(group.conv1(x)[:, :24], x, atol=1e-6)
    narrowing = Airbench(3, 10, (8, 8, 8)).groups[0].conv1
    assert torch.allclose(narrowing(x), x[:, :8], atol=1e-6)


def test_images_that_are_too_small_are_named():
    module = AirbenchClassifier(channels=[8, 8, 8], in_channels=1, num_classes=10)
    assert module(torch.zeros(2, 1, 9, 9)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"needs images of 9x9 pixels or more, got shape \(2, 1, 8, 8\)"):
        module(torch.zeros(2, 1, 8, 8))
