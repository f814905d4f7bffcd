"""Autoregressive generation: the loop over tokens with a KV cache, and streaming of the text."""

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
    """Return the index of the first of ``n`` tokens in the context: when the context is full, its last half stays."""
    step = block_size - block_size // 2
    overflow = n - block_size
    steps = -(-overflow // step)  # rounded up
    return step * max(0, steps)


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
    """Generate continuations of the prompts; return the new token ids of each, without the end-of-text.

    Prompts may differ in length: generation starts behind the shortest, and the tokens of longer prompts replace the
    sampled ones while they last. Prompts longer than ``block_size`` are cut on the left. When the context is full, its
    last half is processed again and generation continues from there. A row does not depend on the other rows.

    Args:
        net: a network in eval mode that maps tokens ``(b, t)`` to logits ``(b, t, v)``, or to the logits of the last
            token if its forward takes ``logits_to_keep``. One without ``make_cache`` is used without a cache.
        prompts: token ids, at least one each.
        max_new_tokens: maximum number of new tokens.
        sampling: sampling options.
        block_size: context length of the network, in tokens.
        eos_ids: tokens that end a text.
        seed: seed of the sampling.
        rows: numbers of the prompts, which with ``seed`` determine their samples; None counts from 0.
        vocab_size: number of tokens to sample from, where the network's vocabulary is padded; None for all.
        cache: keep keys and values instead of computing them again for every token.
        on_token: called with each new token; ends the row by returning True.
    """
    prompts = [list(prompt)[-block_size:] for prompt in prompts]
    if not prompts or not all(prompts):
        raise ValueError("a prompt is empty: generation needs at least one token")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if rows is None:
        rows = range(len(prompts))
    uniform = row_uniforms(seed, rows, max_new_tokens)
    state = _GenerationState(net, prompts, uniform, block_size, cache)
    outputs: list[list[int]] = [[] for _ in prompts]
    while state.rows:
        tokens = next_tokens(state, sampling, vocab_size)
        finished = set()
        for row, token in state.append(tokens):
            if token in eos_ids:
                finished.add(row)
                continue
            outputs[row].append(token)
            stopped = on_token is not None and on_token(row, token)
            if stopped or len(outputs[row]) == max_new_tokens:
                finished.add(row)
        if finished:
            state.remove(finished)
    return outputs


def next_tokens(state: _GenerationState, sampling: SamplingConfig, vocab_size: int | None) -> Int[Tensor, " b"]:
    """Return the next token of each row, sampled or the most probable one."""
    logits = state.next_logits()[:, :vocab_size]
    logits = at_least_float32(logits)
    seen = None
    if sampling.repetition_penalty != 1:
        seen = state.seen(logits.shape[1])
    logits = process_logits(logits, sampling, seen)
    if sampling.temperature == 0:
        return logits.argmax(1)
    uniform = state.uniform[:, state.n, None]  # (b, 1)
    return sample_tokens(logits, uniform)


class _GenerationState:
    """The rows of a batch that are still generated, and the network's state for them.

    Args:
        net: the network.
        prompts: token ids, at most ``block_size`` each.
        uniform: uniform random numbers for the new tokens of each prompt.
        block_size: context length of the network.
        cache: whether to keep keys and values.
    """

    def __init__(
        self,
        net: nn.Module,
        prompts: list[list[int]],
        uniform: Float[Tensor, "b n"],
        block_size: int,
        cache: bool,
    ) -> None:
        device = next(net.parameters()).device
        self.net = net
        self.block_size = block_size
        self.rows = list(range(len(prompts)))
        self.prompt_lengths = [len(prompt) for prompt in prompts]
        self.longest = max(self.prompt_lengths)
        # Number of tokens so far, prompt included; longer prompts are read along.
        self.n = min(self.prompt_lengths)
        # Index of the first token of the context that the cache holds.
        self.start = 0
        max_new_tokens = uniform.shape[1]
        tokens = torch.zeros(len(prompts), self.longest + max_new_tokens, dtype=torch.long)  # (b, t)
        # Aligned with the tokens, so that a row's samples do not depend on the lengths of other prompts.
        numbers = torch.zeros(tokens.shape, dtype=torch.float64)
        for i, prompt in enumerate(prompts):
            end = len(prompt)
            tokens[i, :end] = torch.tensor(prompt)
            numbers[i, end : end + max_new_tokens] = uniform[i]
        self.tokens = tokens.to(device)
        self.uniform = numbers.to(device)
        self.limits = torch.tensor(self.prompt_lengths, device=device)
        self._seen: Tensor | None = None
        self.cache: Any = None
        self.decoder: SingleTokenDecoder | None = None
        if cache and hasattr(net, "make_cache"):
            length = min(tokens.shape[1], block_size)
            self.cache = net.make_cache(len(prompts), length)  # type: ignore[operator]
            self.decoder = SingleTokenDecoder.for_network(net, self.cache)
        # Logits of the last token alone, if the network can do that.
        self.options = {}
        if "logits_to_keep" in inspect.signature(net.forward).parameters:
            self.options["logits_to_keep"] = 1

    def next_logits(self) -> Float[Tensor, "b v"]:
        """Return the logits of the next token."""
        start = window_start(self.n, self.block_size)
        if self.cache is None:
            context = self.tokens[:, start : self.n]  # (b, t)
            return self.net(context, **self.options)[:, -1]
        if start != self.start:
            self.start = start
            self.cache.reset()
        first = start + self.cache.position  # the first token that is not in the cache
        if self.decoder is not None and first == self.n - 1:
            return self.decoder(self.tokens[:, first])
        new = self.tokens[:, first : self.n]
        return self.net(new, cache=self.cache, **self.options)[:, -1]

    def seen(self, vocab_size: int) -> Bool[Tensor, "b v"]:
        """Return which tokens the texts contain so far."""
        if self._seen is None:
            new = self.tokens[:, : self.n]
            self._seen = self.tokens.new_zeros(len(self.rows), vocab_size, dtype=torch.bool)
        else:
            new = self.tokens[:, self.n - 1 : self.n]
        return self._seen.scatter_(1, new, True)

    def append(self, tokens: Int[Tensor, " b"]) -> list[tuple[int, int]]:
        """Append a token to every row; return the rows and tokens that are new, and not part of a longer prompt."""
        if self.n < self.longest:
            tokens = torch.where(self.n < self.limits, self.tokens[:, self.n], tokens)
        self.tokens[:, self.n] = tokens
        self.n += 1
        new = []
        for row, token in zip(self.rows, tokens.tolist(), strict=True):
            if self.n > self.prompt_lengths[row]:
                new.append((row, token))
        return new

    def remove(self, finished: set[int]) -> None:
        """Remove finished rows, so that nothing more is computed for them."""
        kept = [place for place, row in enumerate(self.rows) if row not in finished]
        self.rows = [self.rows[place] for place in kept]
        if not kept:
            return
        places = torch.tensor(kept, device=self.tokens.device)
        self.tokens = self.tokens[places]
        self.uniform = self.uniform[places]
        self.limits = self.limits[places]
        if self._seen is not None:
            self._seen = self._seen[places]
        if self.cache is not None:
            self.cache.reorder(places)
            self.decoder = SingleTokenDecoder.for_network(self.net, self.cache)


# Text -----------------------------------------------------------------------------------------------------------------


class TextStream:
    """The text of tokens as they are generated, up to the first stop string.

    Text that may still change with the next token, or that may begin a stop string, is held back.

    Args:
        tokenizer: the tokenizer.
        before: tokens of the prompt, on which the text of the first new one may depend (a space, say).
        stop: strings that end the text and are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.ids = list(before)[-8:]
        # ids[decode_start:decode_end] are decoded as context; the text of later ids is still to come.
        self.decode_start = 0
        self.decode_end = len(self.ids)
        self.pending = ""
        self.ended = False

    def push(self, token: int) -> str:
        """Add a token; return the text that is certain now."""
        self.ids.append(token)
        text = self._new_text()
        # A character of UTF-8 has up to four bytes, so at most three tokens leave it incomplete.
        if text.endswith("\ufffd") and len(self.ids) - self.decode_end < 4:
            return ""
        self.decode_start = self.decode_end
        self.decode_end = len(self.ids)
        return self._without_stop(text)

    def finish(self) -> str:
        """Return the text that was held back, after the last token."""
        if self.ended:
            return ""
        text = self._without_stop(self._new_text())
        if self.ended:
            return text
        return text + self.pending

    def _new_text(self) -> str:
        before = self.tokenizer.decode(self.ids[self.decode_start : self.decode_end])
        whole = self.tokenizer.decode(self.ids[self.decode_start :])
        return whole[len(before) :]

    def _without_stop(self, text: str) -> str:
        """Cut text at the first stop string, and hold back an end that may begin one."""
        text = self.pending + text
        positions = [text.find(stop) for stop in self.stop if stop in text]
        if positions:
            self.pending = ""
            self.ended = True
            return text[: min(positions)]
        held = 0
        for stop in self.stop:
            for length in range(1, len(stop)):
                if text.endswith(stop[:length]):
                    held = max(held, length)
        self.pending = text[len(text) - held :]
        return text[: len(text) - held]
