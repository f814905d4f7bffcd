"""ResNet is torchvision's, and timm's."""

import pytest
import timm
import torch
import torchvision.models as theirs

from tests.parity.compare import assert_same, on_meta, shapes
from zoo.models import ResNet
from zoo.models.resnet import DEPTHS


@pytest.mark.parametrize("depth", DEPTHS)
def test_all_names_and_shapes(depth):
    net = on_meta(lambda: ResNet(3, 1000, depth))
    assert shapes(net) == shapes(on_meta(getattr(theirs, f"resnet{depth}")))
    assert shapes(net) == shapes(on_meta(lambda: timm.create_model(f"resnet{depth}")))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_outputs_and_gradients(depth, dtype, train):
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert_same(ResNet(3, 5, depth), getattr(theirs, f"resnet{depth}")(num_classes=5), x, dtype, train)


@pytest.mark.parametrize(("depth", "zero"), [(18, False), (50, True)])
def test_begins_as_torchvision_does(depth, zero):
    torch.manual_seed(0)
    ours = ResNet(3, 10, depth, zero_init_residual=zero).state_dict()
    torch.manual_seed(0)
    expected = getattr(theirs, f"resnet{depth}")(num_classes=10, zero_init_residual=zero).state_dict()
    assert all(torch.equal(ours[k], v) for k, v in expected.items())


def test_the_cifar_stem_keeps_the_size():
    net = ResNet(3, 10, 18, stem="cifar")
    seen = []
    net.layer1.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    net.layer4.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    net(torch.randn(2, 3, 32, 32))
    assert seen == [(2, 64, 32, 32), (2, 512, 4, 4)]
