"""Image classification with a network that can start from pretrained weights."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from zoo.tasks.classification import Classifier
from zoo.weights.pretrained import PretrainedNet


class ImageClassifier(Classifier):
    """Image classifier, trained from scratch or fine-tuned from published weights.

    A checkpoint contains the weights and ``preprocessing``, so loading it needs neither the name nor the file of the
    pretrained weights.

    Args:
        weights: pretrained weights: a name such as ``ResNet50_Weights.IMAGENET1K_V2`` (downloaded once and cached), a
            ``.safetensors``, ``.pth`` or ``.ckpt`` file, or a folder; null trains from scratch.
        preprocessing: image preprocessing of the weights: ``image_size``, ``mean``, ``std``, ``interpolation``,
            ``crop_pct``; null takes it from the weights.
    """

    def __init__(
        self,
        net: PretrainedNet,
        weights: str | None = None,
        preprocessing: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._weights = weights
        super().__init__(net=net, **kwargs)
        net.preprocessing = preprocessing or net.preprocessing
        # The checkpoint holds the weights themselves, so it does not read the file again.
        self.hparams.update(weights=None, preprocessing=net.preprocessing)

    def adapt(self) -> None:
        if self._weights is not None:
            self.net.load_pretrained(self._weights)  # type: ignore[operator]
        super().adapt()

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """Image preprocessing of the pretrained weights as plain values, or None if it is unknown."""
        return self.net.preprocessing  # type: ignore[return-value]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        channels = self.net.arguments["in_channels"]  # type: ignore[index]
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"{type(self).__name__} takes images (b, {channels}, h, w), got {tuple(x.shape)}")
        return super().forward(x)
