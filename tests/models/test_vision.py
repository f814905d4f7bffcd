"""What the optimizer and the fine-tuning plan see in the vision networks: their depth, and their head."""

import pytest
import torch

from zoo.callbacks.phases import Phase, matching_tensors
from zoo.models import VGG, EfficientNet, ResNet, ViT
from zoo.optim.param_kinds import layer_ids

# Network, and the layer by name: 0 is the stem, the largest number the head.
CASES = {
    "ResNet": (
        lambda: ResNet(3, 10, 18, head="mlp"),
        {"conv1.weight": 0, "layer1.0.conv1.weight": 1, "layer4.1.bn2.bias": 4, "fc.0.weight": 5, "fc.3.bias": 5},
    ),
    "VGG": (
        lambda: VGG(3, 10, 11, batch_norm=True, pool=1, hidden=8),
        {"features.0.weight": 1, "features.1.bias": 1, "features.26.weight": 8, "classifier.0.weight": 9},
    ),
    "EfficientNet": (
        lambda: EfficientNet(3, 10),
        {
            "features.0.0.weight": 1,
            "features.7.0.block.0.0.weight": 8,
            "features.8.0.weight": 9,
            "classifier.1.bias": 10,
        },
    ),
    "ViT": (
        lambda: ViT(3, 10, 32, 8, 48, 3, 4),
        {
            **{"class_token": 0, "encoder.pos_embedding": 0, "conv_proj.weight": 0},
            **{"encoder.layers.encoder_layer_2.mlp.3.bias": 3, "encoder.ln.weight": 4, "heads.head.bias": 4},
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_depth_for_layer_decay(name):
    build, expected = CASES[name]
    with torch.device("meta"):
        ids = layer_ids(build())
    assert {k: ids[k] for k in expected} == expected
    assert max(ids.values()) == max(expected.values())


@pytest.mark.parametrize("name", CASES)
def test_the_head_of_a_plan_is_all_that_replaces_it(name):
    with torch.device("meta"):
        net = type(CASES[name][0]())(**{**CASES[name][0]().arguments, "head": "mlp"})
    head = net.classifier_names[0]
    named = {k for k, p in net.named_parameters() if p in matching_tensors(net, Phase(train="head"))}
    assert named == {f"{head}.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")}
