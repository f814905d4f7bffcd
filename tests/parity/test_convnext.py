"""ConvNeXt is torchvision's and timm's."""

import pytest
import timm
import torch
import torchvision.models as theirs
from torchvision.models.convnext import CNBlockConfig

from tests.parity.compare import assert_near, assert_same, on_meta, randomize, shapes
from zoo.models import ConvNeXt
from zoo.models.convnext import SIZES
from zoo.weights import write

TINY = {"depths": [1, 2, 3, 1], "dims": [8, 16, 24, 32]}


def images(n: int = 3, pixels: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))


def reference(**kwargs) -> torch.nn.Module:
    """torchvision's network with the sizes of TINY."""
    outputs = [*TINY["dims"][1:], None]
    stages = [CNBlockConfig(*stage) for stage in zip(TINY["dims"], outputs, TINY["depths"], strict=True)]
    return theirs.ConvNeXt(stages, num_classes=5, **kwargs)


def timm_reference() -> torch.nn.Module:
    return timm.models.ConvNeXt(num_classes=5, **TINY).eval()


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda size: size.name)
def test_all_names_and_shapes_of_torchvision(size):
    net = on_meta(lambda: ConvNeXt(3, 1000, size.depths, size.dims))
    assert shapes(net) == shapes(on_meta(getattr(theirs, f"convnext_{size.name.lower()}")))
    assert net.weights_format.enum(net.arguments) == f"ConvNeXt_{size.name}_Weights"
    assert hasattr(theirs, net.weights_format.enum(net.arguments))


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda size: size.name)
def test_sizes_are_those_of_timm(size):
    net = on_meta(lambda: ConvNeXt(3, 1000, size.depths, size.dims))
    other = on_meta(lambda: timm.create_model(f"convnext_{size.name.lower()}"))
    converted = ConvNeXt.weights_format.convert(dict(other.state_dict()))
    assert {k: tuple(v.shape) for k, v in converted.items()} == shapes(net)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("layer_scale", [1e-6, 1.0])
def test_outputs_and_gradients(dtype, layer_scale):
    ours = ConvNeXt(3, 5, **TINY, layer_scale=layer_scale)
    assert_same(ours, reference(layer_scale=layer_scale), images(), dtype)


def test_outputs_and_gradients_with_stochastic_depth():
    ours = ConvNeXt(3, 5, **TINY, stochastic_depth=0.5)
    drops = [m.stochastic_depth.p for m in ours.modules() if hasattr(m, "stochastic_depth")]
    assert drops == [0.5 * i / 6 for i in range(7)]
    assert_same(ours, reference(stochastic_depth_prob=0.5), images(), torch.float64, train=True)


@pytest.mark.parametrize("layer_scale", [1e-6, 0.1])
def test_begins_as_torchvision_does(layer_scale):
    torch.manual_seed(0)
    ours = ConvNeXt(3, 5, **TINY, layer_scale=layer_scale).state_dict()
    torch.manual_seed(0)
    expected = reference(layer_scale=layer_scale).state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_files_of_torchvision(name, tmp_path):
    """Read into equal outputs, sizes from the file; written so that torchvision reads them."""
    model = reference().eval()
    randomize(model)
    write(tmp_path / name, model.state_dict())
    net = ConvNeXt.from_pretrained(str(tmp_path / name))
    assert {key: net.arguments[key] for key in TINY} == TINY
    expected = model.double()(images().double())
    assert_near("output", net.double()(images().double()), expected, torch.float64)
    net.save_pretrained(tmp_path / "ours.pth")
    again = reference()
    again.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True))
    assert torch.equal(again.double().eval()(images().double()), expected)


def test_files_of_timm(tmp_path):
    """Read into equal outputs, sizes from the file; written so that timm reads them."""
    model = timm_reference()
    randomize(model)
    write(tmp_path / "timm.safetensors", model.state_dict())
    net = ConvNeXt.from_pretrained(str(tmp_path / "timm.safetensors"))
    assert {key: net.arguments[key] for key in TINY} == TINY
    expected = model.double()(images().double())
    assert expected.abs().max() > 1e-2
    assert_near("output", net.double()(images().double()), expected, torch.float64)
    net.save_pretrained(tmp_path / "ours.pth", format="timm")
    again = timm_reference()
    again.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True))
    assert_near("output", again.double()(images().double()), expected, torch.float64)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


def test_a_new_head_and_grey_images(tmp_path):
    """Weights of 5 classes and 3 channels start a network of 7 classes and 1 channel."""
    model = reference().eval()
    randomize(model)
    write(tmp_path / "weights.pth", model.state_dict())
    net = ConvNeXt(1, 7, **TINY).load_pretrained(str(tmp_path / "weights.pth")).eval()
    grey = images()[:, :1]
    features = model.features(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(net.features(grey), features, atol=1e-5)
    assert net(grey).shape == (3, 7)


def test_weights_of_another_network_are_refused(tmp_path):
    write(tmp_path / "other.pth", theirs.efficientnet_b0(num_classes=5).state_dict())
    with pytest.raises(ValueError, match="does not fit this ConvNeXt"):
        ConvNeXt(3, 5, **TINY).load_pretrained(str(tmp_path / "other.pth"))


def test_other_numbers_of_stages_are_refused():
    with pytest.raises(ValueError, match="ConvNeXt has 4 stages: give 4 depths and dims, got"):
        ConvNeXt(3, 5, [1, 1, 1], [8, 16, 32])
