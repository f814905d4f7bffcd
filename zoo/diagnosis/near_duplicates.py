"""Near duplicates between splits: the same image stored differently, the same text with small changes."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_DESCRIPTORS = 4000  # samples of a split
IMAGE_SIDE = 16
MIN_IMAGE_SIDE = 8
# Distance of images: the part of the standard deviation that another image does not explain. Compression, resizing and
# brightness change it by less than CLOSE; in healthy data the tenth neighbour is farther than FAR.
CLOSE = 0.06
FAR = 0.3
NEIGHBOURS = 10
THIRD = 2
GAP = 8.0  # by which the third neighbour of a copy is farther than the copy
NGRAM = 5
MIN_NGRAMS = 10
SIMILAR = 0.8  # Jaccard index of the n-grams of two texts
HALF_SIMILAR = 0.5
DISSIMILAR = 0.3
MAX_TEXTS_OF_NGRAM = 50  # n-grams of more texts are boilerplate, and do not lead to candidates


class Descriptors:
    """Descriptors of the samples of a split: small grey images, or sets of token n-grams."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.texts: list[frozenset[int]] = []
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        """Add a batch of images ``(b, c, h, w)`` or token sequences ``(b, t)``; ignore anything else."""
        if self.count >= MAX_DESCRIPTORS:
            return
        if inputs.ndim == 4 and min(inputs.shape[-2:]) >= MIN_IMAGE_SIDE:
            self.count += len(inputs)
            self.images.append(_small_grey(inputs))
        elif inputs.ndim == 2 and not inputs.is_floating_point() and inputs.shape[1] >= NGRAM + MIN_NGRAMS - 1:
            self.count += len(inputs)
            self.texts += [_ngrams(row) for row in inputs.long().numpy()]


def near_duplicates(split: Descriptors, other: Descriptors) -> tuple[int, int]:
    """Count the samples of a split with a near duplicate in another split.

    Args:
        split: descriptors of the split.
        other: descriptors of the other split.

    Returns:
        Number of such samples, and number of compared ones. The first is 0 where neighbours are close throughout: such
        data has no gap between a copy and a similar sample.
    """
    if split.images and other.images:
        if split.images[0].shape[1:] != other.images[0].shape[1:]:
            return 0, 0
        return _near_images(torch.cat(split.images), torch.cat(other.images))
    if split.texts and other.texts:
        return _near_texts(split.texts, other.texts)
    return 0, 0


# Images ---------------------------------------------------------------------------------------------------------------


def _small_grey(images: Tensor) -> Tensor:
    """Return images ``(b, h, w)`` of at most 16x16 pixels, each with mean 0 and norm 1; blank ones are all 0."""
    grey = images.float().mean(1, keepdim=True).nan_to_num(posinf=0.0, neginf=0.0)
    height, width = images.shape[-2:]
    size = (min(IMAGE_SIDE, height), min(IMAGE_SIDE, width))
    grey = F.adaptive_avg_pool2d(grey, size).squeeze(1)  # (b, h, w)
    grey = grey - grey.mean((1, 2), keepdim=True)
    norm = grey.flatten(1).norm(dim=1).view(-1, 1, 1)
    return torch.where(norm > 1e-4, grey / norm.clamp(min=1e-12), 0.0)


def _near_images(images: Tensor, others: Tensor) -> tuple[int, int]:
    images = images[images.flatten(1).any(1)]
    others = others[others.flatten(1).any(1)]
    if len(images) == 0 or len(others) <= NEIGHBOURS:
        return 0, 0
    mirrored = others.flip(2)
    correlation = torch.maximum(
        images.flatten(1) @ others.flatten(1).T,
        images.flatten(1) @ mirrored.flatten(1).T,
    )
    nearest = correlation.topk(NEIGHBOURS, 1).values  # (b, 10)
    distance = (1 - nearest.square()).clamp(min=0).sqrt()
    if float(distance[:, -1].median()) < FAR:
        return 0, len(images)
    # Images of few parameters are close to others, too, but to several of them.
    alone = distance[:, 0] * GAP < distance[:, THIRD]
    # A strong negative correlation would be a negative, not a copy.
    close = (distance[:, 0] < CLOSE) & (nearest[:, 0] > 0) & alone
    return int(close.sum()), len(images)


# Texts ----------------------------------------------------------------------------------------------------------------


def _ngrams(tokens: np.ndarray) -> frozenset[int]:
    """Return the hashes of all n-grams of a sequence without its padding: repetitions of its first or last token."""
    different = np.flatnonzero(tokens[1:] != tokens[:-1])
    if len(different) == 0:
        return frozenset()
    start = different[0] if tokens[0] == tokens[1] else 0
    stop = different[-1] + 2
    tokens = tokens[start:stop]
    if len(tokens) < NGRAM:
        return frozenset()
    windows = np.lib.stride_tricks.sliding_window_view(tokens, NGRAM)
    return frozenset(hash(window.tobytes()) for window in windows)


def _near_texts(texts: list[frozenset[int]], others: list[frozenset[int]]) -> tuple[int, int]:
    index: dict[int, list[int]] = defaultdict(list)
    for number, ngrams in enumerate(others):
        for ngram in ngrams:
            index[ngram].append(number)
    compared = 0
    near = 0
    tenth: list[float] = []
    for ngrams in texts:
        if len(ngrams) < MIN_NGRAMS:
            continue
        compared += 1
        shared: Counter[int] = Counter()
        for ngram in ngrams:
            owners = index.get(ngram, [])
            if len(owners) <= MAX_TEXTS_OF_NGRAM:
                shared.update(owners)
        similarities: list[float] = []
        for number, common in shared.most_common(NEIGHBOURS):
            similarities.append(common / (len(ngrams) + len(others[number]) - common))
        similarities.sort(reverse=True)
        # Overlapping windows of one text are similar to several others.
        third = similarities[THIRD] if len(similarities) > THIRD else 0.0
        near += bool(similarities and similarities[0] >= SIMILAR and third < HALF_SIMILAR)
        tenth.append(similarities[-1] if len(similarities) == NEIGHBOURS else 0.0)
    if compared == 0 or float(np.median(tenth)) > DISSIMILAR:
        return 0, compared
    return near, compared
