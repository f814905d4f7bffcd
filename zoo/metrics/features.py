"""Features of images, by which made ones are compared with real ones."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.checkpoints import load_upgraded
from zoo.class_paths import checked


class ClassifierFeatures(nn.Module):
    """What a classifier of images makes of them: the inputs of its last linear layer, and its logits.

    Args:
        classifier: maps normalised images to logits ``(b, k)``.
        mean: of each channel of pixels in [0, 1], as the classifier takes it off.
        std: deviation of each channel.
        image_size: side of the images in pixels that it was trained on, where it is known.
        class_names: of its logits, where they are known.
        name: by which errors call it.
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
        self.image_size, self.class_names, self.name = image_size, class_names, name
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self._inputs: Tensor | None = None
        for layer in classifier.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_pre_hook(self._save_input)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From a checkpoint of a zoo classifier, averaged weights if it has them; images are normalised as its were.

        Args:
            path: written by ``zoo fit``.
        """
        if not Path(path).is_file():
            raise ValueError(f"no classifier {path}: a checkpoint of a classifier of such images is needed")
        with torch.random.fork_rng(devices=[]):  # the constructor draws weights
            model = _load_from_checkpoint(L.LightningModule, path, "model")
            if getattr(model, "task", None) != "multiclass":
                raise ValueError(f"{path} holds a {type(model).__name__}, which does not tell one class of many")
            data = _load_from_checkpoint(L.LightningDataModule, path, "data")
            mean, std = _normalisation(model, data, path)
        return cls(model, mean, std, getattr(data, "image_size", None), model.class_names, f"the classifier {path}")

    def check(self, shape: tuple[int, ...]) -> None:
        """Say so where images ``(c, h, w)`` are not as those it was trained on."""
        own = (len(self.mean), *[self.image_size or shape[1]] * 2)
        if tuple(shape) != own:
            theirs, mine = (f"{h} x {w} pixels and {c} channel{'s' * (c > 1)}" for c, h, w in (shape, own))
            raise ValueError(f"{self.name} is of images of {mine}, and these have {theirs}")

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b k"]]:
        self.check(tuple(images.shape[1:]))
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits = self.classifier((images.float() - self.mean) / self.std)
        features, self._inputs = self._inputs, None
        if features is None or features.ndim != 2:
            raise ValueError(f"{self.name} ends in no linear layer, whose inputs could be compared")
        return features, logits

    def _save_input(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._inputs = inputs[0]

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


class InceptionFeatures(nn.Module):
    """The 2,048 features of the Inception network that FID is defined by, from a file with its weights.

    Needs torch-fidelity, which torchmetrics takes the network from; nothing is fetched.

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
            torch.load(path, map_location="meta", weights_only=True)  # torch-fidelity would run what is in the file
            with torch.random.fork_rng(devices=[]):  # the constructor draws weights
                self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"{path} does not hold the weights of FID's Inception: {reason}") from None

    def check(self, shape: tuple[int, ...]) -> None:
        """Say so where images ``(c, h, w)`` are neither grey nor coloured."""
        if shape[0] not in (1, 3):
            raise ValueError(f"FID is for images of 1 or 3 channels, and these have {shape[0]}")

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b d"], None]:
        self.check(tuple(images.shape[1:]))
        pixels = (images.float().expand(-1, 3, -1, -1) * 255).round().to(torch.uint8)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.net(pixels), None


def _load_from_checkpoint(kind: Any, path: str | Path, what: str) -> Any:
    """The module or the data that a checkpoint was made by; nothing that may be in the file is run."""
    try:
        file = load_upgraded(path, kind)
        with checked("checkpoint"):
            return kind.load_from_checkpoint(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:240]
        raise ValueError(f"{path} is no checkpoint of a zoo classifier with its {what}: {reason}") from None


def _normalisation(model: Any, data: Any, path: str | Path) -> tuple[list[float], list[float]]:
    """Mean and deviation by which the images of a classifier were normalised."""
    preprocessing = getattr(model, "preprocessing", None) or {}
    if getattr(data, "given", None) is None and preprocessing.get("mean") and preprocessing.get("std"):
        return list(preprocessing["mean"]), list(preprocessing["std"])  # that of the weights it started from
    try:
        return list(data.mean), list(data.std)
    except Exception as error:
        reason = f"mean and std of its images cannot be found: {' '.join(str(error).split())}"
        raise ValueError(f"the classifier {path}: {reason}; train it with --data.mean and --data.std") from None
