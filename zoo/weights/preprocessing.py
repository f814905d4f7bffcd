"""What images weights were trained on: read from files of timm, Hugging Face and torchvision, as plain values.

A dict of ``image_size`` (pixels), ``mean`` and ``std`` (by channel, of pixels in [0, 1]), ``interpolation``
(``nearest``, ``bilinear``, ``bicubic``, ``lanczos``), ``crop_pct`` (share of the resized side that the central crop
keeps), and ``stretch: True`` where both sides are resized, whatever the aspect ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # by PIL's numbers
DEFAULT_CROP_PCT = 0.875  # of timm


def resized_side(image_size: int, crop_pct: float) -> int:
    """Return the side to which images are resized before the central crop."""
    # Rounded down as in timm; the margin is for sides such as 232, which 224 / (224 / 232) just misses.
    return math.floor(image_size / crop_pct + 1e-6)


def timm_preprocessing(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the preprocessing that a ``config.json`` of timm states, or None."""
    cfg = config.get("pretrained_cfg") or {}
    if not {"input_size", "mean", "std"} <= cfg.keys():
        return None
    preprocessing = {
        "image_size": cfg["input_size"][-1],
        "mean": list(cfg["mean"]),
        "std": list(cfg["std"]),
        "interpolation": cfg.get("interpolation", "bicubic"),
        "crop_pct": cfg.get("crop_pct", DEFAULT_CROP_PCT),
    }
    if cfg.get("crop_mode") == "squash":
        preprocessing["stretch"] = True
    return preprocessing


def huggingface_preprocessing(processor: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the preprocessing that a ``preprocessor_config.json`` of transformers states, or None."""
    if not {"size", "image_mean", "image_std"} <= processor.keys():
        return None
    if processor.get("do_normalize") is False:
        return None
    size = processor["size"]
    if not isinstance(size, dict):  # in old files
        name = "shortest_edge" if processor.get("do_center_crop") else "height"
        size = {name: size}
    resized = size.get("height", size.get("shortest_edge"))
    if resized is None:
        return None
    side = resized
    crop = processor.get("crop_size")
    if processor.get("do_center_crop") and crop is not None:
        side = crop["height"] if isinstance(crop, dict) else crop
    preprocessing = {
        "image_size": side,
        "mean": processor["image_mean"],
        "std": processor["image_std"],
        "interpolation": INTERPOLATIONS.get(processor.get("resample", 2), "bilinear"),
        "crop_pct": side / resized,
    }
    if "height" in size:
        preprocessing["stretch"] = True
    return preprocessing


def huggingface_processor(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``preprocessor_config.json`` for ViT."""
    numbers = {name: number for number, name in INTERPOLATIONS.items()}
    side = preprocessing["image_size"]
    return {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": side, "width": side},
        "image_mean": preprocessing["mean"],
        "image_std": preprocessing["std"],
        "resample": numbers[preprocessing["interpolation"]],
    }


def torchvision_preprocessing(entry: Any) -> dict[str, Any]:
    """Return the preprocessing of an entry of a weights enum of torchvision."""
    preset = entry.transforms()
    return {
        "image_size": preset.crop_size[0],
        "mean": list(preset.mean),
        "std": list(preset.std),
        "interpolation": preset.interpolation.value,
        "crop_pct": preset.crop_size[0] / preset.resize_size[0],
    }


def transform(preprocessing: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return the preprocessing as a function from an image, of PIL or ``(c, h, w)``, to floats ``(c, h, w)``."""
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    side = preprocessing["image_size"]
    resized = resized_side(side, preprocessing["crop_pct"])
    size = [resized, resized] if preprocessing.get("stretch") else [resized]
    interpolation = InterpolationMode(preprocessing["interpolation"])

    def apply(image: Any) -> Any:
        image = F.resize(image, size, interpolation, antialias=True)
        image = F.center_crop(image, [side])
        if not isinstance(image, torch.Tensor):
            image = F.pil_to_tensor(image)
        image = F.convert_image_dtype(image, torch.float32)
        return F.normalize(image, list(preprocessing["mean"]), list(preprocessing["std"]))

    return apply
