"""VGG is torchvision's."""

import pytest
import torch
import torchvision.models as theirs

from tests.parity.compare import assert_same, on_meta, shapes
from zoo.models import VGG
from zoo.models.vgg import DEPTHS


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("norm", ["", "_bn"])
def test_all_names_and_shapes(depth, norm):
    expected = shapes(on_meta(getattr(theirs, f"vgg{depth}{norm}")))
    assert shapes(on_meta(lambda: VGG(3, 1000, depth, batch_norm=bool(norm)))) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("norm", ["", "_bn"])
def test_outputs_and_gradients(norm, dtype):
    """With a narrower perceptron, which is 120 of torchvision's 130 million parameters and says nothing more."""
    reference = getattr(theirs, f"vgg11{norm}")(num_classes=5)
    reference.avgpool = torch.nn.AdaptiveAvgPool2d(2)
    reference.classifier[0], reference.classifier[3] = torch.nn.Linear(4 * 512, 64), torch.nn.Linear(64, 64)
    reference.classifier[6] = torch.nn.Linear(64, 5)
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours = VGG(3, 5, 11, batch_norm=bool(norm), pool=2, hidden=64)
    assert_same(ours, reference, x, dtype, train=dtype == torch.float64)


@pytest.mark.slow  # 130 million parameters, twice
def test_begins_as_torchvision_does():
    torch.manual_seed(0)
    ours = VGG(3, 10, 11, batch_norm=True).state_dict()
    torch.manual_seed(0)
    assert all(torch.equal(ours[k], v) for k, v in theirs.vgg11_bn(num_classes=10).state_dict().items())
