"""Conditions for sampling, classes or texts: checked, and one for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def check_conditions(
    n: int,
    guidance_scale: float,
    labels: Any,
    texts: Any,
    condition: str,
    cond_drop_prob: float,
) -> None:
    """Raise an error where a model cannot sample what is asked for.

    Args:
        n: number of images.
        guidance_scale: scale of classifier-free guidance; 1 is without guidance.
        labels: class indices, or None.
        texts: prompts, or None.
        condition: what the model is conditioned on: ``class``, ``text`` or ``none``.
        cond_drop_prob: probability with which the condition was dropped in training.

    Raises:
        ValueError: a number is out of range, or the model is not conditioned on what is given.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 <= guidance_scale < math.inf:
        raise ValueError(f"guidance_scale must be a finite number from 0 up, got {guidance_scale}")
    if labels is not None and condition != "class":
        raise ValueError(f"labels need a class-conditional model; this one has condition: {condition}")
    if texts is not None and condition != "text":
        raise ValueError(f"texts need a text-conditional model; this one has condition: {condition}")
    if texts is None and condition == "text":
        raise ValueError("this model is conditioned on text: give a prompt")
    if guidance_scale == 1:
        return
    if condition == "none":
        raise ValueError(f"guidance_scale={guidance_scale:g} needs a conditional model, and this one has no condition")
    if not cond_drop_prob:
        raise ValueError(
            f"guidance_scale={guidance_scale:g} needs a model trained with cond_drop_prob above 0; leave it at 1"
        )


def class_labels(
    labels: int | Sequence[int] | Tensor | None,
    n: int,
    classes: int,
    first: int = 0,
) -> list[int]:
    """Return the class index of each of ``n`` images.

    Args:
        labels: one class index for all images, or one for each; None cycles through the classes.
        n: number of images.
        classes: number of classes.
        first: index of the first image, from which the cycle continues.

    Raises:
        ValueError: a class index is out of range, or there are neither 1 nor ``n``.
    """
    if labels is None:
        return [i % classes for i in range(first, first + n)]
    if isinstance(labels, Tensor):
        labels = labels.tolist()
    if isinstance(labels, int):
        labels = [labels]
    for label in labels:
        if not 0 <= label < classes:
            raise ValueError(f"unknown class {label}: class indices are 0 to {classes - 1}")
    return broadcast(labels, n)


def broadcast(conditions: Sequence[Any], n: int) -> list[Any]:
    """Return one condition for each of ``n`` images, given one for all or one for each."""
    if len(conditions) == n:
        return list(conditions)
    if len(conditions) != 1:
        raise ValueError(f"{len(conditions)} conditions for n={n} images: give 1 or {n}")
    return list(conditions) * n
