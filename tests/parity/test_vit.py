"""ViT is torchvision's, timm's and Hugging Face's."""

import pytest
import timm
import torch
import torchvision.models as theirs

from tests.parity.compare import assert_near, assert_same, on_meta, randomize, shapes
from zoo.models import ViT
from zoo.models.vit import SIZES, resample
from zoo.weights import write

TINY = {"dim": 48, "depth": 3, "heads": 4}


def images(n: int = 3, pixels: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))


def reference(**kwargs) -> torch.nn.Module:
    return theirs.VisionTransformer(32, 8, 3, 4, 48, 192, num_classes=5, **kwargs)


def sizes(name: str) -> dict[str, int]:
    return dict(zip(("dim", "depth", "heads"), SIZES[name], strict=True))


@pytest.mark.parametrize(("size", "patch"), [("B", 16), ("B", 32), ("L", 16), ("L", 32), ("H", 14)])
def test_all_names_and_shapes_of_torchvision(size, patch):
    net = on_meta(lambda: ViT(3, 1000, 224, patch, **sizes(size)))
    assert shapes(net) == shapes(on_meta(getattr(theirs, f"vit_{size.lower()}_{patch}")))
    assert net.weights_format.enum(net.arguments) == f"ViT_{size}_{patch}_Weights"


@pytest.mark.parametrize(("size", "name"), [("Ti", "tiny"), ("S", "small"), ("B", "base"), ("L", "large")])
def test_sizes_are_those_of_timm(size, name):
    net = on_meta(lambda: ViT(3, 1000, 224, 16, **sizes(size)))
    theirs = on_meta(lambda: timm.create_model(f"vit_{name}_patch16_224"))
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert net.encoder.layers[0].self_attention.heads == theirs.blocks[0].attn.num_heads


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_outputs_and_gradients(dtype):
    assert_same(ViT(3, 5, 32, 8, **TINY), reference(), images(), dtype)


def test_dropout_is_where_torchvision_has_it(monkeypatch):
    """Without chance in it, as the two lay tokens out in memory in different orders, and so draw other ones."""
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, p, training, inplace=False: x * (1 - p * x.sin()))
    ours = ViT(3, 5, 32, 8, **TINY, dropout=0.3)
    assert_same(ours, reference(dropout=0.3), images(), torch.float64, train=True)
    with pytest.raises(AssertionError):
        assert_same(ViT(3, 5, 32, 8, **TINY, dropout=0.2), reference(dropout=0.3), images(), torch.float64, train=True)


@pytest.mark.parametrize("kwargs", [{}, {"class_token": False, "global_pool": "avg"}], ids=["class", "mean"])
def test_files_of_timm(kwargs, tmp_path):
    model = timm.models.VisionTransformer(32, 8, 3, 5, embed_dim=48, depth=3, num_heads=4, **kwargs).eval()
    randomize(model)
    write(tmp_path / "timm.safetensors", model.state_dict())
    net = ViT.from_pretrained(str(tmp_path / "timm.safetensors"), heads=4)  # no file of weights tells the heads
    expected = model.double()(images().double())
    assert_near("output", net.double()(images().double()), expected, torch.float64)
    net.save_pretrained(tmp_path / "ours.pth", format="timm")
    model.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True))
    assert_near("output", model.double()(images().double()), expected, torch.float64)


def test_folders_of_hugging_face(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    model = ViTForImageClassification(config).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "theirs")
    net = ViT.from_pretrained(str(tmp_path / "theirs"))
    assert net.arguments["heads"] == 4
    assert net.arguments["norm_eps"] == 1e-12
    expected = model.double()(images().double()).logits
    assert_near("output", net.double()(images().double()), expected, torch.float64)

    net.preprocessing = {"image_size": 32, "mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bicubic"}
    net.float().save_pretrained(tmp_path / "ours", format="huggingface")
    again = ViTForImageClassification.from_pretrained(tmp_path / "ours").double().eval()
    assert_near("output", again(images().double()).logits, expected, torch.float64)
    back = ViT.from_pretrained(str(tmp_path / "ours"))
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in net.state_dict().items())
    assert back.preprocessing == {**net.preprocessing}


def test_old_files_of_torchvision(tmp_path):
    """Its published files name the perceptron's layers linear_1 and linear_2."""
    model = reference().eval()
    randomize(model)
    old = {
        k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for k, v in model.state_dict().items()
    }
    torch.save(old, tmp_path / "vit.pth")
    net = ViT.from_pretrained(str(tmp_path / "vit.pth"), heads=4)
    assert torch.allclose(net(images()), model(images()), atol=1e-5)


def test_positions_are_interpolated_as_timm_does():
    from timm.layers import resample_abs_pos_embed

    positions = torch.randn(1, 17, 48, generator=torch.Generator().manual_seed(0))
    for grid in ((6, 6), (3, 5)):
        assert torch.allclose(resample(positions, *grid), resample_abs_pos_embed(positions, grid), atol=1e-6)
        mean = resample_abs_pos_embed(positions[:, 1:], grid, num_prefix_tokens=0)
        assert torch.allclose(resample(positions[:, 1:], *grid), mean, atol=1e-6)
    assert resample(positions, 4, 4) is positions


def test_images_of_another_size_than_built_for():
    model = timm.models.VisionTransformer(32, 8, 3, 5, embed_dim=48, depth=3, num_heads=4, dynamic_img_size=True).eval()
    randomize(model)
    net = ViT(3, 5, 32, 8, **TINY).eval()
    net.load_state_dict(ViT.weights_format.convert(model.state_dict()))
    assert torch.allclose(net(images(pixels=48)), model(images(pixels=48)), atol=1e-5)


def test_stochastic_depth_rises_evenly_and_keeps_the_mean():
    net = ViT(3, 5, 32, 8, **TINY, stochastic_depth=0.4)
    assert [block.stochastic_depth.p for block in net.encoder.layers] == [0.0, 0.2, 0.4]
    drop = net.encoder.layers[2].stochastic_depth.train()
    torch.manual_seed(0)
    dropped = drop(torch.ones(4000, 2, 3))
    assert sorted(set(dropped.flatten().tolist())) == [0.0, pytest.approx(1 / 0.6)]
    assert (dropped.std((1, 2)) == 0).all(), "a sample is dropped as a whole"
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
