"""Sampling of the next token: repetition penalty, temperature, top-k, top-p, min-p."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Above this vocabulary size sums and sorts are done in two levels.
LARGE_VOCABULARY = 4096
# Tokens in a chunk of a large vocabulary.
CHUNK = 256
# Most probable tokens among which the threshold of top-p is searched before all tokens are sorted.
CANDIDATES = 1024


@dataclass(frozen=True)
class SamplingConfig:
    """Options of token sampling, applied in the order of transformers: penalty, temperature, top-k, top-p, min-p.

    Args:
        temperature: divides the logits; 0 is greedy decoding.
        top_k: sample from the k most probable tokens; null for all.
        top_p: nucleus sampling: sample from the most probable tokens whose probabilities sum to ``top_p`` (Holtzman et
            al. 2019, https://arxiv.org/abs/1904.09751).
        min_p: sample from tokens at least ``min_p`` times as probable as the most probable one (Nguyen et al. 2024,
            https://arxiv.org/abs/2407.01082).
        repetition_penalty: above 1 makes tokens of the text so far less probable: positive logits are divided by it,
            negative ones multiplied (Keskar et al. 2019, https://arxiv.org/abs/1909.05858).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        self._require("temperature", 0 <= self.temperature < math.inf, "a number from 0 up")
        if self.top_k is not None:
            self._require("top_k", self.top_k >= 1, "1 or more")
        if self.top_p is not None:
            self._require("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        if self.min_p is not None:
            self._require("min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        self._require("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0")

    def _require(self, name: str, valid: bool, allowed: str) -> None:
        if not valid:
            raise ValueError(f"{name} must be {allowed}, got {getattr(self, name)}")


# Filters of the logits ------------------------------------------------------------------------------------------------


def apply_repetition_penalty(
    logits: Float[Tensor, "b v"],
    seen: Bool[Tensor, "b v"],
    penalty: float,
) -> Float[Tensor, "b v"]:
    """Make tokens that occurred before less probable."""
    penalized = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalized, logits)


def keep_top_k(logits: Float[Tensor, "b v"], k: int) -> Float[Tensor, "b v"]:
    """Top-k filtering: set all logits below the k-th largest to minus infinity."""
    k = min(k, logits.shape[1])
    threshold = logits.topk(k).values[:, -1:]  # (b, 1)
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Top-p filtering: set the least probable tokens, of total probability at most ``1 - p``, to minus infinity."""
    probabilities = logits.softmax(1)
    if logits.shape[1] > LARGE_VOCABULARY:
        threshold = _top_p_threshold(logits, probabilities, p)
        if threshold is not None:
            return logits.masked_fill(logits < threshold, -torch.inf)
    order = logits.argsort()  # ascending
    ascending = probabilities.gather(1, order)
    # float64, in which sums of many small numbers are exact enough to compare
    cumulative = ascending.cumsum(1, dtype=torch.float64)
    removed = cumulative <= 1 - p
    removed[:, -1] = False  # rounding must not remove the most probable token
    return logits.masked_fill(removed.scatter(1, order, removed), -torch.inf)


def _top_p_threshold(
    logits: Float[Tensor, "b v"],
    probabilities: Float[Tensor, "b v"],
    p: float,
) -> Float[Tensor, "b 1"] | None:
    """Return the smallest logit that top-p keeps, from a partial sort, or None where that may differ from a full sort.

    It may if more than ``CANDIDATES`` tokens are kept, if the threshold separates equal logits, or if a cumulative
    probability is so close to ``1 - p`` that the order of a float64 sum (with an error below 1e-11) decides.
    """
    top, order = logits.topk(CANDIDATES)  # (b, CANDIDATES), descending
    total = probabilities.sum(1, keepdim=True, dtype=torch.float64)
    descending = probabilities.gather(1, order)
    # Total probability of the tokens below each candidate.
    rest = total - descending.cumsum(1, dtype=torch.float64)
    # Index of the last token that is kept.
    last = (rest > 1 - p).sum(1, keepdim=True)  # (b, 1)
    index = last.clamp(max=CANDIDATES - 2)
    threshold = top.gather(1, index)
    enough_candidates = last == index
    separates = threshold > top.gather(1, index + 1)
    distance = (rest - (1 - p)).abs().amin(1, keepdim=True)
    unambiguous = distance > 1e-9
    is_certain = enough_candidates & separates & unambiguous
    return threshold if is_certain.all() else None


def keep_min_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Min-p filtering: set tokens less than ``p`` times as probable as the most probable to minus infinity."""
    probabilities = logits.softmax(1)
    removed = probabilities < p * probabilities.amax(1, keepdim=True)
    most_probable = probabilities.argmax(1, keepdim=True)  # stays, whatever rounding does
    return logits.masked_fill(removed.scatter(1, most_probable, False), -torch.inf)


def process_logits(
    logits: Float[Tensor, "b v"],
    sampling: SamplingConfig,
    seen: Bool[Tensor, "b v"] | None = None,
) -> Float[Tensor, "b v"]:
    """Return the logits of the distribution that a token is sampled from.

    Args:
        logits: logits of the network.
        sampling: sampling options; with temperature 0 only the penalty is applied.
        seen: which tokens the text so far contains, for the penalty.
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


# Sampling -------------------------------------------------------------------------------------------------------------


def sample_tokens(logits: Float[Tensor, "b v"], uniform: Float[Tensor, "b 1"]) -> Int[Tensor, " b"]:
    """Sample tokens by inverting the cumulative distribution at uniform numbers from [0, 1)."""
    probabilities = logits.softmax(1)
    if probabilities.shape[1] > LARGE_VOCABULARY:
        return _sample_by_chunks(probabilities, uniform)
    cumulative = probabilities.cumsum(1, dtype=torch.float64)
    return _find_interval(cumulative, uniform * cumulative[:, -1:]).squeeze(1)


def _sample_by_chunks(probabilities: Float[Tensor, "b v"], uniform: Float[Tensor, "b 1"]) -> Int[Tensor, " b"]:
    """Sample a chunk of the vocabulary first, then a token in it, as a sum is much faster than a cumulative sum."""
    size = probabilities.shape[1]
    whole = size - size % CHUNK
    chunks = probabilities[:, :whole].unflatten(1, (-1, CHUNK))  # (b, chunks, CHUNK)
    last_chunk = probabilities[:, whole:]  # shorter, or empty
    chunk_sums = torch.cat([chunks.sum(2), last_chunk.sum(1, keepdim=True)], 1)
    cumulative = chunk_sums.cumsum(1, dtype=torch.float64)
    point = uniform * cumulative[:, -1:]
    chunk = _find_interval(cumulative, point)  # (b, 1)
    tokens = chunk * CHUNK + torch.arange(CHUNK, device=chunk.device)  # (b, CHUNK)
    within = probabilities.gather(1, tokens.clamp(max=size - 1))
    within = within.where(tokens < size, 0.0)
    # What remains of the point beyond the chunks before this one.
    rest = point - F.pad(cumulative, (1, 0)).gather(1, chunk)
    offset = _find_interval(within.cumsum(1, dtype=torch.float64), rest)
    return (chunk * CHUNK + offset).squeeze(1)


def _find_interval(ends: Float[Tensor, "b n"], point: Float[Tensor, "b 1"]) -> Int[Tensor, "b 1"]:
    """Return the index of the interval, given by interval ends, that contains a point; empty intervals contain none."""
    below_end = ends[:, -1:].nextafter(torch.zeros_like(point))
    point = point.minimum(below_end)  # rounding may have moved it past the end
    return torch.searchsorted(ends, point, right=True)


def row_uniforms(seed: int, rows: Sequence[int], n: int) -> Float[Tensor, "b n"]:
    """Return uniform random numbers for each row that do not depend on the other rows."""
    numbers = torch.empty(len(rows), n, dtype=torch.float64)
    for out, row in zip(numbers, rows, strict=True):
        digest = hashlib.blake2b(f"{seed},{row}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        torch.rand(n, generator=generator, out=out)
    return numbers
