"""Splits of texts into training, validation and test: texts that are equal stay together."""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence

import torch

from zoo.data.base import split_indices
from zoo.distributed import say


def split_texts(
    texts: Sequence[Hashable],
    shares: dict[str, float],
    seed: int,
    labels: Sequence[str] | None = None,
    what: str = "texts",
) -> dict[str, list[int]]:
    """Split texts at random, equal ones into the same split: no text of the test was trained on, and none is lost.

    How many occur more than once is printed, as the splits may be larger or smaller for it than their shares.

    Args:
        texts: the texts, or whatever of them must not be in two splits.
        shares: share of the different texts in each split, adding up to 1.
        seed: decides the split.
        labels: classes of the texts for a stratified split; of equal texts the class of the first counts.
        what: what the texts are called in messages.

    Returns:
        The indices of each split, in order.

    Raises:
        ValueError: a split would be empty.
    """
    numbers: dict[Hashable, int] = {}  # of each different text
    first: list[int] = []  # where it occurs first
    for i, text in enumerate(texts):
        if text not in numbers:
            numbers[text] = len(first)
            first.append(i)
    classes = None
    if labels is not None:
        index = {name: i for i, name in enumerate(sorted(set(labels)))}
        classes = torch.tensor([index[labels[i]] for i in first], dtype=torch.long)
    parts = split_indices(len(first), list(shares.values()), seed, classes)
    split_of: dict[int, str] = {}
    for split, part in zip(shares, parts, strict=True):
        if not len(part):
            count = f"{len(first):,} different {what}" if len(first) < len(texts) else f"{len(first):,} {what}"
            raise ValueError(f"{count} are too few: nothing is left for {split}")
        split_of |= dict.fromkeys(part.tolist(), split)
    if len(first) < len(texts) and len(shares) > 1:
        say(f"{len(first):,} of {len(texts):,} {what} are different: equal ones are in the same split")
    found: dict[str, list[int]] = {split: [] for split in shares}
    for i, text in enumerate(texts):
        found[split_of[numbers[text]]].append(i)
    return found


def split_shares(found: Container[str], val_split: float, test_split: float) -> dict[str, float]:
    """Return the share of each split that the training texts are split into: those without a file of their own.

    Args:
        found: names of the splits that have a file.
        val_split: share of ``val``.
        test_split: share of ``test``.
    """
    shares = {}
    for split, share in (("val", val_split), ("test", test_split)):
        if split not in found:
            shares[split] = share
    return {"train": 1 - sum(shares.values()), **shares}
