"""Writing on, token by token: how the next one is drawn, and the loop with keys and values kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.losses.embeddings import at_least_float32
from zoo.text.tokenizer import Tokenizer

PART = 256  # tokens of a part of the vocabulary
OnToken = Callable[[int, int], bool | None]
"""Called with a row and its new token; the row ends where it returns True."""


@dataclass(frozen=True)
class Sampling:
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


# Drawing --------------------------------------------------------------------------------------------------------------


def penalize(logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"], penalty: float) -> Float[Tensor, "b v"]:
    """Make tokens that were there less probable."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Float[Tensor, "b v"], k: int) -> Float[Tensor, "b v"]:
    """Minus infinity for all tokens less probable than the k-th."""
    least = logits.topk(min(k, logits.shape[1])).values[:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def keep_top_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Minus infinity for the least probable tokens that together have a probability of at most ``1 - p``."""
    rising, order = logits.sort()
    rare = rising.softmax(1).cumsum(1) <= 1 - p
    rare[:, -1] = False
    return logits.masked_fill(rare.scatter(1, order, rare), -torch.inf)


def keep_min_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Minus infinity for tokens less than ``p`` times as probable as the most probable."""
    probabilities = logits.softmax(1)
    rare = probabilities < p * probabilities.amax(1, keepdim=True)
    return logits.masked_fill(rare.scatter(1, probabilities.argmax(1, keepdim=True), False), -torch.inf)


def shape(
    logits: Float[Tensor, "b v"], sampling: Sampling, seen: Bool[Tensor, "b v"] | None = None
) -> Float[Tensor, "b v"]:
    """Logits of the distribution that a token is drawn from.

    Args:
        logits: of the network.
        sampling: how to draw; with temperature 0 only the penalty matters.
        seen: tokens of the text so far, where there is a penalty.
    """
    if seen is not None and sampling.repetition_penalty != 1:
        logits = penalize(logits, seen, sampling.repetition_penalty)
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


def draw(logits: Float[Tensor, "b v"], uniform: Float[Tensor, "b 1"]) -> Int[Tensor, " b"]:
    """The tokens in whose share of the probability, laid end to end, numbers from [0, 1) fall.

    The part of the vocabulary is found first, then the token in it: a sum over all is much faster than a running one.
    """
    weights = logits.softmax(1)
    parts = F.pad(weights, (0, -weights.shape[1] % PART)).unflatten(1, (-1, PART))
    sums = parts.sum(2).double()
    part, rest = _find(sums, uniform * sums.sum(1, keepdim=True))
    token, _ = _find(parts[torch.arange(len(parts), device=parts.device), part.squeeze(1)], rest)
    return (part * PART + token).squeeze(1)


def _find(
    lengths: Float[Tensor, "b n"], point: Float[Tensor, "b 1"]
) -> tuple[Int[Tensor, "b 1"], Float[Tensor, "b 1"]]:
    """In which of lengths laid end to end a point is, and how far into it; one of length 0 holds none."""
    ends = lengths.double().cumsum(1)
    point = point.minimum(ends[:, -1:].nextafter(torch.zeros_like(point)))  # rounding may have moved it beyond
    found = torch.searchsorted(ends, point, right=True)
    return found, point - F.pad(ends, (1, 0)).gather(1, found)


def uniforms(seed: int, rows: Sequence[int], n: int) -> Float[Tensor, "b n"]:
    """Random numbers of each row, the same whatever other rows there are."""
    found = torch.empty(len(rows), n, dtype=torch.float64)
    for numbers, row in zip(found, rows, strict=True):
        digest = hashlib.blake2b(f"{seed},{row}".encode(), digest_size=8).digest()
        torch.rand(n, generator=torch.Generator().manual_seed(int.from_bytes(digest, "big")), out=numbers)
    return found


# The loop -------------------------------------------------------------------------------------------------------------


def window_start(n: int, block_size: int) -> int:
    """The first of ``n`` tokens that the network sees: when the context is full, its last half stays."""
    step = block_size - block_size // 2
    return step * max(0, -(-(n - block_size) // step))


@torch.inference_mode()
def generate(
    net: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    block_size: int,
    eos_id: int | None = None,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    vocab_size: int | None = None,
    cache: bool = True,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """Write on from prompts; return the new tokens of each, without the end-of-text.

    Prompts need not be of one length: all start with the shortest, and a longer one's own tokens are taken while they
    last. Of a prompt longer than ``block_size`` the end counts. Once the context is full, its last half is read anew
    and goes on from there. A row's text does not depend on the other rows.

    Args:
        net: in eval mode; maps tokens ``(b, t)`` to logits ``(b, t, v)``, and has ``make_cache``.
        prompts: tokens, at least one each.
        max_new_tokens: how many at most.
        sampling: how to draw them.
        block_size: tokens that the network sees at most.
        eos_id: the token that ends a text; null for none.
        seed: of the draws.
        rows: numbers of the prompts, which decide their draws with ``seed``; null counts from 0.
        vocab_size: draw from so many tokens, where the network has room for more than there are; null for all.
        cache: keep keys and values in place of computing them again for every token.
        on_token: told of each new token; ends a row by returning True.
    """
    own = [list(prompt)[-block_size:] for prompt in prompts]
    if not own or not all(own):
        raise ValueError("a prompt has no tokens: it takes at least one to go on from")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens starts at 1, got {max_new_tokens}")
    device = next(net.parameters()).device
    lengths = [len(prompt) for prompt in own]
    n, total = min(lengths), max(lengths) + max_new_tokens
    tokens, numbers = torch.zeros(len(own), total, dtype=torch.long), torch.zeros(len(own), total, dtype=torch.float64)
    drawn = uniforms(seed, range(len(own)) if rows is None else rows, max_new_tokens)
    for i, prompt in enumerate(own):
        tokens[i, : len(prompt)] = torch.tensor(prompt)
        numbers[i, len(prompt) : len(prompt) + max_new_tokens] = drawn[i]
    tokens, numbers, limits = tokens.to(device), numbers.to(device), torch.tensor(lengths, device=device)
    state = _Context(net, tokens, block_size, cache, min(total, block_size))
    seen: Tensor | None = None
    found: list[list[int]] = [[] for _ in own]
    live = set(range(len(own)))
    while live:
        logits = at_least_float32(state.next_logits(n)[:, :vocab_size])
        if sampling.repetition_penalty != 1:
            if seen is None:
                seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, tokens[:, :n], True)
            else:
                seen.scatter_(1, tokens[:, n - 1 : n], True)
        shaped = shape(logits, sampling, seen)
        new = shaped.argmax(1) if sampling.temperature == 0 else draw(shaped, numbers[:, n : n + 1])
        if n < max(lengths):
            new = torch.where(n < limits, tokens[:, n], new)
        tokens[:, n] = new
        n += 1
        for i, token in enumerate(new.tolist()):
            if i not in live or n <= lengths[i]:
                continue
            if token == eos_id:
                live.discard(i)
                continue
            found[i].append(token)
            if (on_token is not None and on_token(i, token)) or len(found[i]) == max_new_tokens:
                live.discard(i)
    return found


class _Context:
    """What the network has seen of the tokens, and what it says of the next."""

    def __init__(self, net: nn.Module, tokens: Tensor, block_size: int, cache: bool, room: int) -> None:
        self.net, self.tokens, self.block_size = net, tokens, block_size
        self.cache: Any = net.make_cache(len(tokens), room) if cache else None  # type: ignore[operator]
        self.start = 0

    def next_logits(self, n: int) -> Float[Tensor, "b v"]:
        """Of the token behind the first ``n``."""
        start = window_start(n, self.block_size)
        if self.cache is None:
            return self.net(self.tokens[:, start:n])[:, -1]
        if start != self.start:
            self.start = start
            self.cache.reset()
        return self.net(self.tokens[:, start + self.cache.position : n], cache=self.cache)[:, -1]


# Text -----------------------------------------------------------------------------------------------------------------


class TextStream:
    """The text of tokens as they come, up to the first of some strings that end it.

    What may still become another character, or the beginning of such a string, is held back.

    Args:
        tokenizer: of the tokens.
        before: tokens of the prompt, on which the first new one may depend (a space, say).
        stop: strings that end the text and do not belong to it.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.ids = list(before)[-8:]
        self.told, self.read = 0, len(self.ids)  # tokens that text is compared from, and whose text is known
        self.held, self.ended = "", False

    def push(self, token: int) -> str:
        """Take a token; return the text that is certain now."""
        self.ids.append(token)
        before = self.tokenizer.decode(self.ids[self.told : self.read])
        text = self.tokenizer.decode(self.ids[self.told :])
        if text.endswith("\ufffd") and len(self.ids) - self.read < 4:  # half a character has at most three bytes
            return ""
        self.told, self.read = self.read, len(self.ids)
        return self._sure(text[len(before) :])

    def finish(self) -> str:
        """Return what was held back, at the end of the tokens."""
        if self.ended:
            return ""
        before = self.tokenizer.decode(self.ids[self.told : self.read])
        text = self._sure(self.tokenizer.decode(self.ids[self.told :])[len(before) :])
        return text if self.ended else text + self.held

    def _sure(self, text: str) -> str:
        text = self.held + text
        ends = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        if ends:
            self.held, self.ended = "", True
            return text[: min(ends)]
        kept = max((n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept]
