"""What images somebody wishes for: the condition of each, or what is wrong with the wish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def check_wishes(n: int, guidance: float, labels: Any, texts: Any, condition: str, trained_without: float) -> None:
    """Say so where a model cannot do what is wished for.

    Args:
        n: how many images.
        guidance: 1 is the condition alone.
        labels: classes, if they are given.
        texts: what to make images of, if that is given.
        condition: what the model makes images by: ``class``, ``text`` or ``none``.
        trained_without: share of its training samples whose condition was left out.
    """
    if n < 1:
        raise ValueError(f"n={n}: at least 1 image can be made")
    if not 0 <= guidance < math.inf:
        raise ValueError(f"guidance is 0 or more, got {guidance}")
    if labels is not None and condition != "class":
        raise ValueError(f"this model knows no classes (condition: {condition})")
    if texts is not None and condition != "text":
        raise ValueError(f"this model reads no texts (condition: {condition})")
    if texts is None and condition == "text":
        raise ValueError("this model makes images of texts: give one")
    if guidance != 1 and (condition == "none" or not trained_without):
        lack = "has no condition" if condition == "none" else "was trained with drop_condition 0"
        raise ValueError(f"guidance={guidance:g}: this model {lack}, so it cannot be guided; leave it at 1")


def wished_classes(labels: int | Sequence[int] | Tensor | None, n: int, classes: int, first: int = 0) -> list[int]:
    """The class of each of ``n`` images, the first of which has the number ``first``.

    Args:
        labels: class of all, or of each; null takes all classes in turn.
        n: how many images.
        classes: how many there are.
        first: number of the first image.
    """
    if labels is None:
        return [i % classes for i in range(first, first + n)]
    wishes = labels.tolist() if isinstance(labels, Tensor) else [labels] if isinstance(labels, int) else list(labels)
    if bad := [c for c in wishes if not 0 <= c < classes]:
        raise ValueError(f"unknown class {bad[0]}: there are 0 to {classes - 1}")
    return of_each(wishes, n)


def of_each(wishes: Sequence[Any], n: int) -> list[Any]:
    """One wish for each of ``n`` images, or the one for all of them."""
    if len(wishes) not in (1, n):
        raise ValueError(f"{len(wishes)} conditions for n={n} images")
    return list(wishes) * n if len(wishes) == 1 else list(wishes)
