"""Classification of images by a network that may start from published weights."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from zoo.tasks.classification import Classifier
from zoo.weights.pretrained import PretrainedNet


class ImageClassifier(Classifier):
    """Train a network with published weights to tell images apart, from scratch or from these.

    A checkpoint holds the weights themselves and ``preprocessing``, so it needs neither name nor file again.

    Args:
        weights: to start from: a name such as ``ResNet50_Weights.IMAGENET1K_V2`` (fetched, once, when given), a
            ``.safetensors``, ``.pth`` or ``.ckpt`` file, or a folder; null starts fresh.
        preprocessing: what the images of the weights look like: ``image_size``, ``mean``, ``std``, ``interpolation``,
            ``crop_pct``; null takes it from the weights.
    """

    def __init__(
        self,
        net: PretrainedNet,
        weights: str | None = None,
        preprocessing: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(net=net, **kwargs)
        if weights is not None:
            net.load_pretrained(weights)
        net.preprocessing = preprocessing or net.preprocessing
        self.hparams.update(weights=None, preprocessing=net.preprocessing)

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """What the images of the weights look like, in plain values; None where nobody knows."""
        return self.net.preprocessing  # type: ignore[return-value]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        channels = self.net.arguments["in_channels"]  # type: ignore[index]
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"{type(self).__name__} takes images (b, {channels}, h, w), got {tuple(x.shape)}")
        return super().forward(x)
