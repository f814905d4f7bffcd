"""Greedy and beam search over batches, for any decoder that takes one token per call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Step = Callable[[Int[Tensor, " n"], Any], tuple[Float[Tensor, "n v"], Any]]
"""From the last token of each sequence and the decoder's state to the logits of the next token and a new state."""

EarlyStopping = bool | Literal["never"]


class Generated(NamedTuple):
    """Generated sequences: tokens ``(b, t)``, each row up to its end-of-sequence token and then padding, and scores.

    A score is the sum of the tokens' log-probabilities, divided by their number to the power of ``length_penalty``.
    """

    tokens: Int[Tensor, "b t"]
    scores: Float[Tensor, " b"]


@torch.no_grad()
def greedy_search(
    step: Step,
    state: Any,
    first: Int[Tensor, " b"],
    eos_id: int,
    pad_id: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
) -> Generated:
    """Greedy search: take the most probable token at each step, until all sequences have ended.

    Args:
        step: the decoder.
        state: its state before the first token.
        first: first token of each sequence; not part of the result.
        eos_id: end-of-sequence token.
        pad_id: padding token.
        max_new_tokens: maximum number of generated tokens, end-of-sequence included.
        length_penalty: exponent of the length in the score.
    """
    token = first
    tokens = []
    ended = torch.zeros_like(first, dtype=torch.bool)
    lengths = torch.zeros_like(first)
    total: Any = 0.0
    for _ in range(max_new_tokens):
        logits, state = step(token, state)
        best, token = _log_probabilities(logits, pad_id).max(1)
        token = token.masked_fill(ended, pad_id)
        total = total + best.masked_fill(ended, 0.0)
        lengths = lengths + ~ended
        ended = ended | (token == eos_id)
        tokens.append(token)
        if bool(ended.all()):
            break
    return Generated(torch.stack(tokens, 1), total / lengths**length_penalty)


@torch.no_grad()
def beam_search(
    step: Step,
    state: Any,
    first: Int[Tensor, " b"],
    reorder: Callable[[Any, Int[Tensor, " n"]], Any],
    eos_id: int,
    pad_id: int,
    max_new_tokens: int,
    num_beams: int,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False,
) -> Generated:
    """Beam search as in transformers; return the best sequence of each row.

    Of the ``2 * num_beams`` best continuations, those that end and are among the best ``num_beams`` are kept as
    finished; the best that do not end continue. A row is done when no continuation can beat its worst finished one.

    Args:
        step: the decoder; called with ``num_beams`` adjacent rows for each sequence.
        state: its state before the first token, with ``b * num_beams`` rows.
        first: first token of each sequence; not part of the result.
        reorder: from a state and row indices to the state of these rows.
        eos_id: end-of-sequence token.
        pad_id: padding token.
        max_new_tokens: maximum number of generated tokens, end-of-sequence included.
        num_beams: number of beams.
        length_penalty: exponent of the length by which a sum of log-probabilities is divided; above 0 favours long
            sequences, below 0 short ones.
        early_stopping: when a row is done. True: when ``num_beams`` sequences have finished. False: also when its best
            continuation would score below them if it ended now. ``never``: only when it would score below them at any
            length.
    """
    b = len(first)
    k = num_beams
    offsets = torch.arange(b, device=first.device).unsqueeze(1) * k  # first row of each sequence
    token = first.repeat_interleave(k)  # (b * k,)
    tokens = first.new_full((b, k, max_new_tokens), pad_id)
    done_tokens = tokens
    settled = torch.zeros_like(first, dtype=torch.bool)
    running = done = torch.empty(0)  # scores of beams that continue, and of finished ones: (b, k) each
    for n in range(1, max_new_tokens + 1):
        logits, state = step(token, state)
        scores = _log_probabilities(logits, pad_id).view(b, k, -1)  # (b, k, v)
        if n == 1:
            done = scores.new_full((b, k), -torch.inf)
            running = done.index_fill(1, offsets.new_zeros(1), 0.0)  # all beams are equal: use the first only
        totals = scores + running.unsqueeze(2)
        top, index = totals.flatten(1).topk(2 * k)
        beam = index // scores.shape[2]  # (b, 2k)
        token = index % scores.shape[2]  # (b, 2k)
        grown = _gather_rows(tokens, beam)  # (b, 2k, t)
        grown[:, :, n - 1] = token
        ends = (token == eos_id) | (n == max_new_tokens)

        # finished sequences: the best k of the old and the new ones
        not_finished = ~ends | settled.unsqueeze(1)
        finished = (top / n**length_penalty).masked_fill(not_finished, -torch.inf)[:, :k]
        done, chosen = torch.cat([done, finished], 1).topk(k)
        done_tokens = _gather_rows(torch.cat([done_tokens, grown[:, :k]], 1), chosen)

        # sequences that continue
        running, chosen = top.masked_fill(ends, -torch.inf).topk(k)
        tokens = _gather_rows(grown, chosen)
        token = token.gather(1, chosen).flatten()
        rows = offsets + beam.gather(1, chosen)
        state = reorder(state, rows.flatten())

        settled = settled | _is_settled(running, done, n, max_new_tokens, length_penalty, early_stopping)
        if bool(settled.all()):
            break
    best = done_tokens[:, 0]
    longest = int((best != pad_id).sum(1).max())
    return Generated(best[:, :longest], done[:, 0])


def _is_settled(
    running: Float[Tensor, "b k"],
    done: Float[Tensor, "b k"],
    length: int,
    max_length: int,
    length_penalty: float,
    early_stopping: EarlyStopping,
) -> Bool[Tensor, " b"]:
    """Return the rows with ``k`` finished sequences that no continuation can beat (or need not, if stopping early)."""
    if early_stopping == "never" and length_penalty > 0:
        length = max_length  # the length at which a continuation scores best
    complete = done[:, -1].isfinite()
    if early_stopping is True:
        return complete
    hopeless = running[:, 0] / length**length_penalty <= done[:, -1]
    return complete & hopeless


def _log_probabilities(logits: Float[Tensor, "n v"], pad_id: int) -> Float[Tensor, "n v"]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    scores = logits.log_softmax(1, dtype=dtype)
    scores[:, pad_id] = -torch.inf  # padding is never generated
    return scores


def _gather_rows(tokens: Int[Tensor, "b k t"], index: Int[Tensor, "b m"]) -> Int[Tensor, "b m t"]:
    index = index.unsqueeze(2).expand(-1, -1, tokens.shape[2])  # (b, m, t)
    return tokens.gather(1, index)
