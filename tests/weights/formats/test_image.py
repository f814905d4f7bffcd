"""What computes otherwise with tensors of the same names is read as it computes, or refused in one line."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tests.parity.compare import on_meta, randomize
from zoo.errors import UserError
from zoo.models import VGG, ConvNeXt, EfficientNet, EfficientNetClassifier, ResNet, ViT, ViTClassifier
from zoo.weights.formats.timm import read_timm_config

TINY_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5}


def timm_folder(folder: Path, net: nn.Module, architecture: str, **config) -> str:
    """Write a folder as timm does."""
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": architecture, **config}))
    return str(folder)


def images(pixels: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))


# EfficientNet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["efficientnet_b5", "efficientnet_lite0", "tf_efficientnet_b0", "tf_efficientnet_b7"])
def test_epsilon_and_padding_follow_timms_architecture(name):
    theirs = on_meta(lambda: timm.create_model(name))
    ours = EfficientNet.weights_format.arguments_of_config({"architecture": name})
    assert ours["norm_eps"] == theirs.bn1.eps
    assert (ours["padding"] == "same") == (type(theirs.conv_stem).__name__ == "Conv2dSame")


def test_weights_from_tensorflow_give_their_outputs(tmp_path):
    """With tensors of the same names and shapes as efficientnet_b0."""
    theirs = timm.create_model("tf_efficientnet_b0", num_classes=5).eval()
    randomize(theirs)
    path = timm_folder(tmp_path / "tf", theirs, "tf_efficientnet_b0")
    net = EfficientNet.from_pretrained(path)
    assert (net.arguments["norm_eps"], net.arguments["padding"]) == (1e-3, "same")
    with torch.no_grad():
        assert torch.allclose(net(images(65)), theirs(images(65)), atol=1e-4)
    line = r"does not fit this EfficientNet: it has norm_eps=0.001 instead of 1e-05, padding=same instead of symmetric"
    with pytest.raises(UserError, match=line):
        EfficientNetClassifier(in_channels=3, num_classes=5, weights=path)
    module = EfficientNetClassifier(in_channels=3, num_classes=5, weights=path, norm_eps=1e-3, padding="same").eval()
    with torch.no_grad():
        assert torch.equal(module(images(64)), net(images(64)))


def test_a_file_of_zoo_states_its_variant(tmp_path):
    """b0 and b5 of the same width have the same shapes, but another epsilon."""
    small = {"width_mult": 0.25, "depth_mult": 0.3}
    EfficientNet(3, 4, "b5", **small).save_pretrained(tmp_path / "b5.safetensors")
    with pytest.raises(UserError, match=r"it has norm_eps=0\.001 instead of 1e-05"):
        EfficientNet(3, 4, "b0", **small).load_pretrained(tmp_path / "b5.safetensors")
    EfficientNet(3, 4, "b0", norm_eps=1e-3, **small).load_pretrained(tmp_path / "b5.safetensors")


# Architectures of timm ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "config", "reason"),
    [
        (ResNet, {"architecture": "resnetaa50"}, "timm's resnetaa50, which computes something else than ResNet"),
        (ResNet, {"architecture": "resnetblur18"}, "ResNet reads resnet18, resnet34"),
        (ResNet, {"architecture": "resnet18", "global_pool": "max"}, "resnet18 with global_pool=max"),
        (ResNet, {"architecture": "resnet18", "model_args": {"output_stride": 8}}, r"output_stride=8 \(model_args\)"),
        (ResNet, {"model_type": "resnet"}, "a model of type 'resnet': ResNet reads no model of transformers"),
        (VGG, {"architecture": "vgg11"}, "VGG reads torchvision's files"),
        (EfficientNet, {"architecture": "efficientnet_b3_pruned"}, "timm's efficientnet_b3_pruned"),
        (EfficientNet, {"architecture": "efficientnet_b0", "model_args": {"act_layer": "relu"}}, "act_layer=relu"),
        (ConvNeXt, {"architecture": "convnext_xxlarge"}, "timm's convnext_xxlarge"),
        (ConvNeXt, {"architecture": "convnext_tiny", "model_args": {"norm_eps": 1e-5}}, "norm_eps=1e-05"),
        (ViT, {"architecture": "vit_base_patch16_clip_quickgelu_224"}, "vit_base_patch16_clip_quickgelu_224"),
        (ViT, {"architecture": "vit_small_patch8_224", "global_pool": "map"}, "global_pool=map"),
        (ViT, {"model_type": "deit"}, "a model of type 'deit': ViT reads vit"),
    ],
)
def test_other_architectures_are_named_before_tensors_are_read(network, config, reason, tmp_path):
    path = timm_folder(tmp_path / "x", nn.Linear(1, 1), "")
    (tmp_path / "x/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=reason) as caught:
        network.from_pretrained(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (ResNet, "resnet50.a1_in1k"),
        (ResNet, "tv_resnet152"),
        (EfficientNet, "tf_efficientnet_b7_ns"),
        (ConvNeXt, "convnext_base_384_in22ft1k"),
        (ViT, "vit_base_patch16_224_in21k"),
        (ViT, "deit_tiny_patch16_224"),
    ],
)
def test_plain_architectures_pass(network, name, tmp_path):
    config = {"architecture": name, "model_args": {"drop_path_rate": 0.1, "img_size": 224, "in_chans": 3}}
    path = timm_folder(tmp_path / "x", nn.Linear(1, 1), **config)
    with pytest.raises(UserError, match=rf"is no {network.__name__}: it has no .*weight, but bias, weight$"):
        network.from_pretrained(path)


def test_plain_networks_of_timm_give_its_outputs(tmp_path):
    theirs = timm.create_model("resnet18", num_classes=3).eval()
    randomize(theirs)
    config = {"global_pool": "avg", "model_args": {"num_classes": 3}}
    net = ResNet.from_pretrained(timm_folder(tmp_path / "r", theirs, "resnet18", **config))
    with torch.no_grad():
        assert torch.allclose(net(images(32)), theirs(images(32)), atol=1e-4)


def test_a_config_of_another_library_states_no_architecture_of_timm():
    assert read_timm_config({"model_type": "vit", "architectures": ["ViTModel"]}) is None
    assert read_timm_config({"pretrained_cfg": {"architecture": "resnet18.tv"}}).architecture == "resnet18"


# ViT ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"global_pool": "avg"}, r"a class token and averages the patch tokens \(global_pool=avg\)"),
        ({"global_pool": "avg", "class_token": False, "fc_norm": False}, "normalizes before it averages"),
    ],
)
def test_pooling_of_timm_that_zoo_has_not(kwargs, reason, tmp_path):
    net = timm.models.VisionTransformer(**TINY_VIT, **kwargs)
    save_file(net.state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=reason):
        ViT.from_pretrained(tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=reason):
        ViT(3, 5, 32, 8, 48, 2, 4).load_pretrained(tmp_path / "vit.safetensors")


def test_heads_of_timms_config_are_taken(tmp_path):
    theirs = timm.models.VisionTransformer(**TINY_VIT).eval()
    randomize(theirs)
    config = {"global_pool": "token", "model_args": {"num_heads": 4}}
    path = timm_folder(tmp_path / "vit", theirs, "vit_tiny_patch16_224", **config)
    net = ViT.from_pretrained(path)
    assert torch.allclose(net(images(32)), theirs(images(32)), atol=1e-5)
    with pytest.raises(UserError, match="it has heads=4 instead of 3"):
        ViT(3, 5, 32, 8, 48, 2, 3).load_pretrained(path)


def hugging_face_folder(folder: Path, **config) -> str:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 192}
    net = ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=5, **config))
    net.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu_new", "relu"])
def test_another_activation_is_refused(activation, tmp_path):
    path = hugging_face_folder(tmp_path / "vit", hidden_act=activation)
    with pytest.raises(UserError, match=f"hidden_act={activation}, but zoo's ViT computes with hidden_act=gelu"):
        ViT.from_pretrained(path)
    with pytest.raises(UserError, match=f"hidden_act={activation}"):
        ViTClassifier(
            patch_size=8, dim=48, depth=2, heads=3, norm_eps=1e-12, image_size=32, in_channels=3, num_classes=5,
            weights=path,
        )  # fmt: skip


def test_epsilon_and_heads_of_hugging_face_are_compared(tmp_path):
    path = hugging_face_folder(tmp_path / "vit", layer_norm_eps=1e-5)
    assert ViT.from_pretrained(path).arguments["norm_eps"] == 1e-5
    with pytest.raises(UserError, match="it has norm_eps=1e-05 instead of 1e-06"):
        ViT(3, 5, 32, 8, 48, 2, 3).load_pretrained(path)
    config = json.loads((tmp_path / "vit/config.json").read_text())
    for name in ("layer_norm_eps", "num_attention_heads", "hidden_act"):
        del config[name]
    (tmp_path / "vit/config.json").write_text(json.dumps(config))
    arguments = ViT.pretrained_arguments(path)
    assert (arguments["norm_eps"], arguments["heads"]) == (1e-12, 12), "what transformers takes for granted"


def test_heads_of_a_checkpoint_follow_the_name_of_its_size(tmp_path):
    module = ViTClassifier(size="Ti", depth=1, dim=384, patch_size=16, image_size=32, in_channels=3, num_classes=2)
    saved = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(saved, tmp_path / "vit.ckpt")
    assert ViT.from_pretrained(tmp_path / "vit.ckpt").arguments["heads"] == 3


# Wrong files ----------------------------------------------------------------------------------------------------------

NETWORKS = {
    "ResNet": lambda: ResNet(3, 4, 18, "cifar", 8),
    "VGG": lambda: VGG(3, 4, 11, width=8, pool=1, hidden=8),
    "EfficientNet": lambda: EfficientNet(3, 4, width_mult=0.25, depth_mult=0.3),
    "ConvNeXt": lambda: ConvNeXt(3, 4, [1, 1, 1, 1], [8, 8, 8, 8]),
    "ViT": lambda: ViT(3, 4, 32, 8, 48, 1, 3),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    written = {}
    for name, build in NETWORKS.items():
        for suffix in ("safetensors", "pth"):
            written[f"{name}.{suffix}"] = folder / f"{name}.{suffix}"
            build().save_pretrained(folder / f"{name}.{suffix}")
    return written


@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_other_architectures_are_one_line(name, files):
    net = NETWORKS[name]()
    for file, path in files.items():
        if file.startswith(name):
            continue
        for read in (type(net).from_pretrained, net.load_pretrained):
            with pytest.raises(UserError) as caught:
                read(path)
            assert str(caught.value).startswith(str(path))
            assert "\n" not in str(caught.value)


def test_features_without_a_head_need_the_number_of_classes(tmp_path):
    net = NETWORKS["ResNet"]()
    torch.save({k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}, tmp_path / "features.pth")
    with pytest.raises(UserError, match=r"features.pth does not state num_classes of a ResNet: .*give it as"):
        ResNet.from_pretrained(tmp_path / "features.pth")
    assert ResNet.from_pretrained(tmp_path / "features.pth", num_classes=7).fc.out_features == 7
