"""ConvNeXt's published weights: torchvision's and timm's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.weights.files import write
from zoo.weights.formats.image import ImageFormat, State, infer_head
from zoo.weights.renaming import invert, rename_keys

NUM_STAGES = 4


class ConvNeXtFormat(ImageFormat):
    """Adapter for ConvNeXt.

    Args:
        sizes: depths and dims of each stage, by the name in torchvision.
    """

    formats = ("torchvision", "timm")
    input_conv = "features.0.0.weight"
    # convnext_xxlarge has another epsilon, and the smallest ones and convnextv2 have other blocks.
    timm_names = r"convnext_(tiny|small|base|large|xlarge)(_in22k|_in22ft1k|_384_in22ft1k)?"
    timm_example = "convnext_tiny, convnext_small, convnext_base, convnext_large and convnext_xlarge"

    def __init__(self, sizes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
        self.sizes = sizes
        self.enums = tuple(f"ConvNeXt_{name}_Weights" for name in sizes)

    def enum(self, arguments: Mapping[str, Any]) -> str | None:
        if arguments["patch_size"] != 4:
            return None
        for name, (depths, dims) in self.sizes.items():
            if list(depths) == arguments["depths"] and list(dims) == arguments["dims"]:
                return f"ConvNeXt_{name}_Weights"
        return None

    def convert(self, state: State) -> State:
        if "stem.0.weight" not in state:
            return state
        state = rename_keys(state, timm_names())
        for key in state:
            if key.endswith(".layer_scale"):
                state[key] = state[key].view(-1, 1, 1)  # timm stores (c,)
        return state

    def infer_from_shapes(self, state: State) -> dict[str, Any]:
        dim, in_channels, _, patch_size = state[self.input_conv].shape
        arguments: dict[str, Any] = {"in_channels": in_channels, "patch_size": patch_size}
        depths = []
        dims = [dim]
        for stage in range(NUM_STAGES):
            prefix = f"features.{2 * stage + 1}."
            blocks = {key.split(".")[2] for key in state if key.startswith(prefix)}
            depths.append(len(blocks))
        for stage in range(1, NUM_STAGES):
            kernel = state.get(f"features.{2 * stage}.1.weight")
            if kernel is not None:
                dims.append(len(kernel))
        if all(depths) and len(dims) == NUM_STAGES:
            arguments |= {"depths": depths, "dims": dims}
        return arguments | infer_head(state, "classifier.2")

    def write(self, path: Path, state: State, format: str, metadata: dict[str, Any]) -> None:
        if format == "timm":
            for key in state:
                if key.endswith(".layer_scale"):
                    state[key] = state[key].flatten()  # (c,)
            state = rename_keys(state, invert(timm_names()))
        write(path, state, **metadata)


def timm_names() -> dict[str, str]:
    """Return the table from timm's parameter names to torchvision's."""
    table = {
        "stem": "features.0",
        "head.norm": "classifier.0",
        "head.fc": "classifier.2",
    }
    for stage in range(NUM_STAGES):
        block = f"features.{2 * stage + 1}.{{}}"
        table |= {
            f"stages.{stage}.downsample": f"features.{2 * stage}",
            f"stages.{stage}.blocks.{{}}.gamma": f"{block}.layer_scale",
            f"stages.{stage}.blocks.{{}}.conv_dw": f"{block}.block.0",
            f"stages.{stage}.blocks.{{}}.norm": f"{block}.block.2",
            f"stages.{stage}.blocks.{{}}.mlp.fc1": f"{block}.block.3",
            f"stages.{stage}.blocks.{{}}.mlp.fc2": f"{block}.block.5",
        }
    # The first stage does not downsample, and features.0 is the stem.
    del table["stages.0.downsample"]
    return table
