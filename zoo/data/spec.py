"""The data spec: what a dataset tells the model that is trained on it, such as the number of classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class DataSpec:
    """What a dataset tells a model: an argument of the model with one of these names, left at null, takes its value.

    A field that is None is not known, or does not apply.

    Args:
        num_classes: number of classes.
        class_names: their names, in the order of the class indices.
        task: ``binary`` or ``multiclass``.
        input_dim: number of features of a sample, or of a time step.
        output_dim: number of regression targets.
        target_mean: mean of the regression targets in the training split.
        target_std: standard deviation of the regression targets in the training split.
        in_channels: channels of the images.
        image_size: height and width of the images, in pixels.
        vocab_size: number of tokens in the vocabulary.
        src_vocab_size: the same of the source language.
        tgt_vocab_size: the same of the target language.
        pad_id: token id of padding.
        bos_id: token id at the beginning of a sequence.
        eos_id: token id at the end of a sequence.
        max_new_tokens: number of tokens after which generation stops.
        block_size: number of tokens in a training sequence.
        horizon: number of time steps to forecast.
        future_dim: number of features that are known for the time steps to forecast.
    """

    num_classes: int | None = None
    class_names: list[str] | None = None
    task: str | None = None
    input_dim: int | None = None
    output_dim: int | None = None
    target_mean: float | None = None
    target_std: float | None = None
    in_channels: int | None = None
    image_size: int | None = None
    vocab_size: int | None = None
    src_vocab_size: int | None = None
    tgt_vocab_size: int | None = None
    pad_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    max_new_tokens: int | None = None
    block_size: int | None = None
    horizon: int | None = None
    future_dim: int | None = None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all fields, in order."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_attributes(cls, owner: Any, names: Iterable[str] | None = None) -> Self:
        """Return the spec that the attributes of an object give, each under the name of its field.

        Args:
            owner: the object, such as a datamodule with ``num_classes = 10``.
            names: fields to read; null reads all of them.
        """
        if names is None:
            names = cls.names()
        return cls(**{name: getattr(owner, name, None) for name in names})

    def known(self) -> dict[str, Any]:
        """Return the values that are not None, by the name of their field."""
        values = {name: getattr(self, name) for name in self.names()}
        return {name: value for name, value in values.items() if value is not None}
