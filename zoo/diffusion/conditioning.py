"""Conditions for sampling: one for each image, or an error that says what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def check_conditions(
    n: int, guidance_scale: float, labels: Any, texts: Any, condition: str, cond_drop_prob: float
) -> None:
    """Say so where a model cannot do what is asked for.

    Args:
        n: how many images.
        guidance_scale: 1 is the condition alone.
        labels: classes, if they are given.
        texts: what to make images of, if that is given.
        condition: what the model makes images by: ``class``, ``text`` or ``none``.
        cond_drop_prob: share of its training samples whose condition was left out.
    """
    if n < 1:
        raise ValueError(f"n={n}: at least 1 image can be made")
    if not 0 <= guidance_scale < math.inf:
        raise ValueError(f"guidance_scale is 0 or more, got {guidance_scale}")
    if labels is not None and condition != "class":
        raise ValueError(f"this model knows no classes (condition: {condition})")
    if texts is not None and condition != "text":
        raise ValueError(f"this model reads no texts (condition: {condition})")
    if texts is None and condition == "text":
        raise ValueError("this model makes images of texts: give one")
    if guidance_scale != 1 and (condition == "none" or not cond_drop_prob):
        lack = "has no condition" if condition == "none" else "was trained with cond_drop_prob 0"
        raise ValueError(f"guidance_scale={guidance_scale:g}: this model {lack}, so it cannot be guided; leave it at 1")


def class_labels(labels: int | Sequence[int] | Tensor | None, n: int, classes: int, first: int = 0) -> list[int]:
    """The class of each of ``n`` images, the first of which has the number ``first``.

    Args:
        labels: class of all, or of each; null takes all classes in turn.
        n: how many images.
        classes: how many there are.
        first: number of the first image.
    """
    if labels is None:
        return [i % classes for i in range(first, first + n)]
    conditions = (
        labels.tolist() if isinstance(labels, Tensor) else [labels] if isinstance(labels, int) else list(labels)
    )
    if bad := [c for c in conditions if not 0 <= c < classes]:
        raise ValueError(f"unknown class {bad[0]}: there are 0 to {classes - 1}")
    return broadcast(conditions, n)


def broadcast(conditions: Sequence[Any], n: int) -> list[Any]:
    """One condition for each of ``n`` images, or the one for all of them."""
    if len(conditions) not in (1, n):
        raise ValueError(f"{len(conditions)} conditions for n={n} images")
    return list(conditions) * n if len(conditions) == 1 else list(conditions)
