"""Writing on, token by token: the loop with keys and values kept, and the text as it comes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.layers.cpu.single_token_decoder import SingleTokenDecoder
from zoo.losses.embeddings import at_least_float32
from zoo.tasks.token_sampling import SamplingConfig, process_logits, row_uniforms, sample_tokens
from zoo.text.tokenizer import Tokenizer

OnToken = Callable[[int, int], bool | None]
"""Called with a row and its new token; the row ends where it returns True."""


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
    sampling: SamplingConfig,
    block_size: int,
    eos_ids: Collection[int] = (),
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
        net: in eval mode; maps tokens ``(b, t)`` to logits ``(b, t, v)``, or of the last token alone where its forward
            takes ``logits_to_keep``. One without ``make_cache`` is used without a cache.
        prompts: tokens, at least one each.
        max_new_tokens: how many at most.
        sampling: how to draw them.
        block_size: tokens that the network sees at most.
        eos_ids: tokens that end a text.
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
    uniform = row_uniforms(seed, range(len(own)) if rows is None else rows, max_new_tokens)
    texts = _GenerationState(net, own, uniform, block_size, cache)
    found: list[list[int]] = [[] for _ in own]
    while texts.rows:
        logits = at_least_float32(texts.next_logits()[:, :vocab_size])
        seen = texts.seen(logits.shape[1]) if sampling.repetition_penalty != 1 else None
        processed = process_logits(logits, sampling, seen)
        new = (
            processed.argmax(1)
            if sampling.temperature == 0
            else sample_tokens(processed, texts.numbers[:, texts.n, None])
        )
        ended = set()
        for row, token in texts.add(new):
            if token not in eos_ids:
                found[row].append(token)
                if not (on_token is not None and on_token(row, token)) and len(found[row]) < max_new_tokens:
                    continue
            ended.add(row)
        if ended:
            texts.drop(ended)
    return found


class _GenerationState:
    """Rows of tokens that are written on, and what the network says of the next ones.

    Args:
        net: the network.
        prompts: tokens, at most ``block_size`` each.
        uniform: random numbers for the new tokens of each.
        block_size: tokens that the network sees at most.
        cache: whether to keep keys and values.
    """

    def __init__(
        self, net: nn.Module, prompts: list[list[int]], uniform: Float[Tensor, "b n"], block_size: int, cache: bool
    ) -> None:
        device = next(net.parameters()).device
        self.net, self.block_size = net, block_size
        self.rows, self.lengths = list(range(len(prompts))), [len(prompt) for prompt in prompts]
        self.n, self.longest = min(self.lengths), max(self.lengths)  # tokens so far
        self.start = 0  # of the window in the cache
        tokens = torch.zeros(len(prompts), self.longest + uniform.shape[1], dtype=torch.long)
        numbers = torch.zeros(tokens.shape, dtype=torch.float64)
        for i, prompt in enumerate(prompts):
            tokens[i, : len(prompt)] = torch.tensor(prompt)
            numbers[i, len(prompt) : len(prompt) + uniform.shape[1]] = uniform[i]
        self.tokens, self.numbers = tokens.to(device), numbers.to(device)
        self.limits = torch.tensor(self.lengths, device=device)
        self._seen: Tensor | None = None
        room = min(tokens.shape[1], block_size)
        has_cache = cache and hasattr(net, "make_cache")
        self.cache: Any = net.make_cache(len(prompts), room) if has_cache else None  # type: ignore[operator]
        self.step = SingleTokenDecoder.for_network(net, self.cache) if has_cache else None
        last_only = "logits_to_keep" in inspect.signature(net.forward).parameters
        self.options = {"logits_to_keep": 1} if last_only else {}

    def next_logits(self) -> Float[Tensor, "b v"]:
        """Of the token behind those so far."""
        start = window_start(self.n, self.block_size)
        if self.cache is None:
            return self.net(self.tokens[:, start : self.n], **self.options)[:, -1]
        if start != self.start:
            self.start = start
            self.cache.reset()
        first = start + self.cache.position
        if self.step is not None and first == self.n - 1:
            return self.step(self.tokens[:, first])
        return self.net(self.tokens[:, first : self.n], cache=self.cache, **self.options)[:, -1]

    def seen(self, vocab_size: int) -> Bool[Tensor, "b v"]:
        """Which tokens were there."""
        if self._seen is None:
            self._seen = self.tokens.new_zeros(len(self.rows), vocab_size, dtype=torch.bool)
            return self._seen.scatter_(1, self.tokens[:, : self.n], True)
        return self._seen.scatter_(1, self.tokens[:, self.n - 1 : self.n], True)

    def add(self, new: Int[Tensor, " b"]) -> list[tuple[int, int]]:
        """Go on by a token; return rows and their new ones. A prompt that is not at its end goes on by its own."""
        if self.n < self.longest:
            new = torch.where(self.n < self.limits, self.tokens[:, self.n], new)
        self.tokens[:, self.n] = new
        self.n += 1
        return [(row, token) for row, token in zip(self.rows, new.tolist(), strict=True) if self.n > self.lengths[row]]

    def drop(self, ended: set[int]) -> None:
        """Compute nothing more for rows that have ended."""
        kept = [place for place, row in enumerate(self.rows) if row not in ended]
        self.rows = [self.rows[place] for place in kept]
        if not kept:
            return
        places = torch.tensor(kept, device=self.tokens.device)
        self.tokens, self.numbers, self.limits = self.tokens[places], self.numbers[places], self.limits[places]
        self._seen = self._seen[places] if self._seen is not None else None
        if self.cache is not None:
            self.cache.reorder(places)
            self.step = SingleTokenDecoder.for_network(self.net, self.cache)


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
        self.decode_start, self.decode_end = (
            0,
            len(self.ids),
        )  # tokens that text is compared from, and whose text is known
        self.pending, self.ended = "", False

    def push(self, token: int) -> str:
        """Take a token; return the text that is certain now."""
        self.ids.append(token)
        before = self.tokenizer.decode(self.ids[self.decode_start : self.decode_end])
        text = self.tokenizer.decode(self.ids[self.decode_start :])
        if text.endswith("\ufffd") and len(self.ids) - self.decode_end < 4:  # half a character has at most three bytes
            return ""
        self.decode_start, self.decode_end = self.decode_end, len(self.ids)
        return self._certain_text(text[len(before) :])

    def finish(self) -> str:
        """Return what was held back, at the end of the tokens."""
        if self.ended:
            return ""
        before = self.tokenizer.decode(self.ids[self.decode_start : self.decode_end])
        text = self._certain_text(self.tokenizer.decode(self.ids[self.decode_start :])[len(before) :])
        return text if self.ended else text + self.pending

    def _certain_text(self, text: str) -> str:
        text = self.pending + text
        ends = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        if ends:
            self.pending, self.ended = "", True
            return text[: min(ends)]
        kept = max((n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self.pending = text[len(text) - kept :]
        return text[: len(text) - kept]
