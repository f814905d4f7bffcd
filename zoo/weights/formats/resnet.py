"""ResNet's published weights: torchvision's and timm's files, which have the same parameter names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.weights.formats.image import ImageFormat, State, infer_head


class ResNetFormat(ImageFormat):
    """Adapter for ResNet.

    Args:
        depths: number of blocks of each stage, by depth.
    """

    formats = ("torchvision", "timm")
    input_conv = "conv1.weight"
    # resnetaa, resnetblur and others pool otherwise, with tensors of the same names and shapes.
    timm_names = r"(tv_|gluon_|ssl_|swsl_)?resnet(18|34|50|101|152)(_v1b)?"
    timm_example = "resnet18, resnet34, resnet50, resnet101 and resnet152"

    def __init__(self, depths: Mapping[int, tuple[int, ...]]) -> None:
        self.depths = depths
        self.enums = tuple(f"ResNet{depth}_Weights" for depth in depths)

    def enum(self, arguments: Mapping[str, Any]) -> str | None:
        if arguments["width"] != 64 or arguments["stem"] != "imagenet":
            return None
        return f"ResNet{arguments['depth']}_Weights"

    def infer_from_shapes(self, state: State) -> dict[str, Any]:
        kernel = state[self.input_conv]
        arguments: dict[str, Any] = {
            "in_channels": kernel.shape[1],
            "width": kernel.shape[0],
            "stem": "imagenet" if kernel.shape[-1] == 7 else "cifar",
        }
        arguments |= infer_head(state, "fc")
        depth = self.infer_depth(state)
        if depth is not None:
            arguments["depth"] = depth
        return arguments

    def infer_depth(self, state: State) -> int | None:
        """Return the depth that a state dict has by its blocks, or None if it is of no known ResNet."""
        stages = []
        for i in range(1, 5):
            blocks = {key.split(".")[1] for key in state if key.startswith(f"layer{i}.")}
            stages.append(len(blocks))
        # 34 and 50 layers have the same number of blocks.
        has_bottlenecks = "layer1.0.conv3.weight" in state
        for depth, num_blocks in self.depths.items():
            if tuple(stages) == num_blocks and has_bottlenecks == (depth >= 50):
                return depth
        return None
