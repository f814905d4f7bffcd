"""Features of images, by which generated images are compared with real ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.checkpoints import Checkpoint

# Characters of another library's error that are quoted.
MAX_REASON = 240


class ClassifierFeatures(nn.Module):
    """Features of an image classifier: the inputs of its last linear layer, and its logits.

    Args:
        classifier: maps normalized images to logits ``(b, k)``.
        mean: mean of each channel that images are normalized with, for pixels in [0, 1].
        std: standard deviation of each channel that images are normalized with.
        image_size: side in pixels of the images that it was trained on; None if unknown.
        class_names: names of the classes; None if unknown.
        name: name of the classifier in error messages.
    """

    def __init__(
        self,
        classifier: nn.Module,
        mean: list[float],
        std: list[float],
        image_size: int | None = None,
        class_names: list[str] | None = None,
        name: str = "the classifier",
    ) -> None:
        super().__init__()
        self.classifier = classifier.float().eval().requires_grad_(False)
        self.image_size = image_size
        self.class_names = class_names
        self.name = name
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))  # (c, 1, 1)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        # Inputs of the linear layer that was called last.
        self._inputs: Tensor | None = None
        for layer in classifier.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_pre_hook(self._save_input)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a checkpoint of an image classifier, with EMA weights if there are any and its own normalization.

        Args:
            path: a checkpoint of ``zoo fit``.

        Raises:
            ValueError: it is no such checkpoint.
        """
        if not Path(path).is_file():
            raise ValueError(f"no classifier {path}: a checkpoint of an image classifier is needed")
        with torch.random.fork_rng(devices=[]):  # constructors initialize weights at random
            try:
                checkpoint = Checkpoint(path)
                model: Any = checkpoint.build()
                if getattr(model, "task", None) != "multiclass":
                    raise ValueError(f"it holds a {type(model).__name__}, which is not a multi-class classifier")
                data: Any = checkpoint.build_data()
            except Exception as error:
                raise ValueError(f"{path} is not a checkpoint of a zoo classifier: {one_line(error)}") from None
            mean, std = normalization(model, data, path)
        image_size = getattr(data, "image_size", None)
        return cls(model, mean, std, image_size, model.class_names, f"the classifier {path}")

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a ValueError where images differ in shape from those that the classifier was trained on.

        Args:
            shape: shape of an image, ``(c, h, w)``.
        """
        side = self.image_size
        expected = (len(self.mean), side or shape[1], side or shape[1])
        if tuple(shape) != expected:
            raise ValueError(f"{self.name} takes images of {describe(expected)}, got {describe(shape)}")

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k"]]:
        """Return features and logits of images with pixels in [0, 1]."""
        self.check(tuple(images.shape[1:]))
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits = self.classifier((images.float() - self.mean) / self.std)
        features = self._inputs
        self._inputs = None
        if features is None or features.ndim != 2:
            raise ValueError(f"{self.name} has no linear layer at its end, whose inputs are the features to compare")
        return features, logits

    def _save_input(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._inputs = inputs[0]

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)


class InceptionFeatures(nn.Module):
    """The 2,048 features of the Inception network that defines FID, from a file with its weights.

    Needs torch-fidelity, which torchmetrics takes the network from; nothing is downloaded.

    Args:
        path: ``pt_inception-2015-12-05-6726825d.pth``, as torch-fidelity and pytorch-fid name it.
    """

    name = "Inception"

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise ValueError(f"no weights of Inception {path}: FID needs pt_inception-2015-12-05-6726825d.pth")
        if importlib.util.find_spec("torch_fidelity") is None:
            raise ValueError("FID takes Inception from torch-fidelity, which is missing: pip install torch-fidelity")
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            # torch-fidelity would unpickle any file, and so run code in it.
            torch.load(path, map_location="meta", weights_only=True)
            with torch.random.fork_rng(devices=[]):  # the constructor initializes weights at random
                self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        except Exception as error:
            raise ValueError(f"{path} does not hold the weights of FID's Inception: {one_line(error)}") from None

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a ValueError where images ``(c, h, w)`` are neither grayscale nor RGB."""
        if shape[0] not in (1, 3):
            raise ValueError(f"FID is for images with 1 or 3 channels, got {shape[0]}")

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d"], None]:
        """Return features of images with pixels in [0, 1], and no logits."""
        self.check(tuple(images.shape[1:]))
        rgb = images.float().expand(-1, 3, -1, -1)  # (b, 3, h, w)
        pixels = (rgb * 255).round().to(torch.uint8)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.net(pixels), None


def normalization(model: Any, data: Any, path: str | Path) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation that the images of a classifier were normalized with.

    Args:
        model: the classifier.
        data: its datamodule.
        path: its checkpoint, for errors.
    """
    preprocessing = getattr(model, "preprocessing", None) or {}
    chosen_by_user = getattr(data, "given", None) is not None
    if not chosen_by_user and preprocessing.get("mean") and preprocessing.get("std"):
        # Those of the pretrained weights that it started from.
        return list(preprocessing["mean"]), list(preprocessing["std"])
    try:
        return list(data.mean), list(data.std)
    except Exception as error:
        raise ValueError(
            f"the classifier {path}: mean and std of its images cannot be determined: {one_line(error)}; train it with "
            "--data.mean and --data.std"
        ) from None


def describe(shape: tuple[int, ...]) -> str:
    """Describe the shape ``(c, h, w)`` of an image."""
    channels, height, width = shape
    plural = "" if channels == 1 else "s"
    return f"{height} x {width} pixels and {channels} channel{plural}"


def one_line(error: Exception) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split())[:MAX_REASON]
