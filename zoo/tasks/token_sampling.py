"""How the next token is drawn from logits, and from what of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

PART = 256  # tokens of a part of a large vocabulary
LARGE = 4096  # tokens above which a vocabulary is looked at in parts
CANDIDATES = 1024  # tokens among which top-p is looked for first


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is drawn from logits: penalty, temperature, top-k, top-p, min-p, in this order, as in transformers.

    Args:
        temperature: logits are divided by it; 0 takes the most probable token, whatever the rest.
        top_k: only so many of the most probable tokens; null for all.
        top_p: only the most probable tokens that together have this probability (Holtzman et al. 2019,
            https://arxiv.org/abs/1904.09751).
        min_p: only tokens at least this share as probable as the most probable (Nguyen et al. 2024,
            https://arxiv.org/abs/2407.01082).
        repetition_penalty: above 1 makes tokens of the text so far less probable: their logits are divided by it, or
            multiplied below 0 (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, fine, allowed in (
            ("temperature", 0 <= self.temperature < float("inf"), "a number from 0 up"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
        ):
            if not fine:
                raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)}")


def apply_repetition_penalty(
    logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"], penalty: float
) -> Float[Tensor, "b v"]:
    """Make tokens that were there less probable."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Float[Tensor, "b v"], k: int) -> Float[Tensor, "b v"]:
    """Minus infinity for all tokens less probable than the k-th."""
    least = logits.topk(min(k, logits.shape[1])).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Minus infinity for the least probable tokens that together have a probability of at most ``1 - p``."""
    weights = logits.softmax(1)
    if logits.shape[1] > LARGE and (least := _least_of_top_p(logits, weights, p)) is not None:
        return logits.masked_fill(logits < least, -torch.inf)
    order = logits.argsort()
    rare = weights.gather(1, order).cumsum(1, dtype=torch.float64) <= 1 - p
    rare[:, -1] = False
    return logits.masked_fill(rare.scatter(1, order, rare), -torch.inf)


def _least_of_top_p(
    logits: Float[Tensor, "b v"], weights: Float[Tensor, "b v"], p: float
) -> Float[Tensor, "b 1"] | None:
    """The least logits that top-p keeps, without the order of all, where they certainly are the same.

    Not so where more tokens than ``CANDIDATES`` are kept, where only some of several alike are, and where a probability
    is so close to ``1 - p`` that the order of a sum in float64 (whose error is below 1e-11) would decide.
    """
    top, order = logits.topk(CANDIDATES)
    rest = weights.sum(1, keepdim=True, dtype=torch.float64) - weights.gather(1, order).cumsum(1, dtype=torch.float64)
    last = (rest > 1 - p).sum(1, keepdim=True)  # from it on, what is behind a token is rare
    inside = last.clamp(max=CANDIDATES - 2)
    least = top.gather(1, inside)
    alone = least > top.gather(1, inside + 1)
    clear = (rest - (1 - p)).abs().amin(1, keepdim=True) > 1e-9
    return least if bool(((last == inside) & alone & clear).all()) else None


def keep_min_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Minus infinity for tokens less than ``p`` times as probable as the most probable."""
    probabilities = logits.softmax(1)
    rare = probabilities < p * probabilities.amax(1, keepdim=True)
    return logits.masked_fill(rare.scatter(1, probabilities.argmax(1, keepdim=True), False), -torch.inf)


def process_logits(
    logits: Float[Tensor, "b v"], sampling: SamplingConfig, seen: Bool[Tensor, "b v"] | None = None
) -> Float[Tensor, "b v"]:
    """Logits of the distribution that a token is drawn from.

    Args:
        logits: of the network.
        sampling: how to draw; with temperature 0 only the penalty matters.
        seen: tokens of the text so far, where there is a penalty.
    """
    if seen is not None and sampling.repetition_penalty != 1:
        logits = apply_repetition_penalty(logits, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def sample_tokens(logits: Float[Tensor, "b v"], uniform: Float[Tensor, "b 1"]) -> Int[Tensor, " b"]:
    """The tokens in whose share of the probability, laid end to end, numbers from [0, 1) fall.

    Of a large vocabulary the part is found first, then the token in it: a sum is much faster than a running one.
    """
    weights = logits.softmax(1)
    size = weights.shape[1]
    if size <= LARGE:
        ends = weights.cumsum(1, dtype=torch.float64)
        return _find_interval(ends, uniform * ends[:, -1:]).squeeze(1)
    whole = size - size % PART
    sums = [weights[:, :whole].unflatten(1, (-1, PART)).sum(2), weights[:, whole:].sum(1, keepdim=True)]
    ends = torch.cat(sums, 1).cumsum(1, dtype=torch.float64)
    point = uniform * ends[:, -1:]
    part = _find_interval(ends, point)
    tokens = part * PART + torch.arange(PART, device=part.device)
    inside = weights.gather(1, tokens.clamp(max=size - 1)).where(tokens < size, 0.0)
    rest = point - F.pad(ends, (1, 0)).gather(1, part)
    return (part * PART + _find_interval(inside.cumsum(1, dtype=torch.float64), rest)).squeeze(1)


def _find_interval(ends: Float[Tensor, "b n"], point: Float[Tensor, "b 1"]) -> Int[Tensor, "b 1"]:
    """In which of several stretches, by where they end, a point is; one of length 0 holds none."""
    point = point.minimum(ends[:, -1:].nextafter(torch.zeros_like(point)))  # rounding may have moved it beyond
    return torch.searchsorted(ends, point, right=True)


def row_uniforms(seed: int, rows: Sequence[int], n: int) -> Float[Tensor, "b n"]:
    """Random numbers of each row, the same whatever other rows there are."""
    found = torch.empty(len(rows), n, dtype=torch.float64)
    for numbers, row in zip(found, rows, strict=True):
        digest = hashlib.blake2b(f"{seed},{row}".encode(), digest_size=8).digest()
        torch.rand(n, generator=torch.Generator().manual_seed(int.from_bytes(digest, "big")), out=numbers)
    return found
