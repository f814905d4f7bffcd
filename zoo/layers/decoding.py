"""Greedy and beam search, a batch of sequences at a time, over any decoder that goes one token on a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Step = Callable[[Int[Tensor, " n"], Any], tuple[Float[Tensor, "n v"], Any]]
"""From the last token of each sequence and a state to the logits of the next token and a new state."""


class Generated(NamedTuple):
    """What a search found: tokens ``(b, t)``, each row up to its end-of-sequence and then padding, and a score each.

    The score is the sum of the tokens' log-probabilities, divided by their number to the power of ``length_penalty``.
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
    """Take the most probable token at each step, until all sequences have ended.

    Args:
        step: the decoder.
        state: its state before the first token.
        first: the token that each sequence begins with; it is not part of the result.
        eos_id: the token that ends a sequence.
        pad_id: what stands behind the end.
        max_new_tokens: how many tokens a sequence has at most, its end included.
        length_penalty: exponent of the length in the score.
    """
    token, found = first, []
    ended, lengths = torch.zeros_like(first, dtype=torch.bool), torch.zeros_like(first)
    total: Any = 0.0
    for _ in range(max_new_tokens):
        logits, state = step(token, state)
        best, token = _log_probabilities(logits, pad_id).max(1)
        token, total = token.masked_fill(ended, pad_id), total + best.masked_fill(ended, 0.0)
        lengths, ended = lengths + ~ended, ended | (token == eos_id)
        found.append(token)
        if bool(ended.all()):
            break
    return Generated(torch.stack(found, 1), total / lengths**length_penalty)


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
    early_stopping: bool | Literal["never"] = False,
) -> Generated:
    """Keep the ``num_beams`` most probable beginnings at each step; return the best sequence of each row.

    As in transformers: of the ``2 * num_beams`` best continuations those that end, if among the best ``num_beams``, are
    put aside, and the best others go on. A row is done when nothing that goes on can beat the worst put aside.

    Args:
        step: the decoder; it is called with ``num_beams`` rows for each sequence, those of a sequence together.
        state: its state before the first token, with that many rows.
        first: the token that each sequence begins with, ``(b,)``; it is not part of the result.
        reorder: from a state and row numbers to the state of these rows.
        eos_id: the token that ends a sequence.
        pad_id: what stands behind the end.
        max_new_tokens: how many tokens a sequence has at most, its end included.
        num_beams: width of the beam.
        length_penalty: exponent of the length by which a sum of log-probabilities is divided; above 0 prefers long
            sequences, below 0 short ones.
        early_stopping: true: a row is done when ``num_beams`` sequences have ended; false: also when its best beginning
            falls behind them if it ended now; ``never``: only when it would whatever its length.
    """
    b, k = len(first), num_beams
    rows = torch.arange(b, device=first.device).unsqueeze(1) * k
    token, tokens = first.repeat_interleave(k), first.new_full((b, k, max_new_tokens), pad_id)
    done_tokens, settled = tokens, torch.zeros_like(first, dtype=torch.bool)
    running = done = torch.empty(0)
    for n in range(1, max_new_tokens + 1):
        logits, state = step(token, state)
        scores = _log_probabilities(logits, pad_id).view(b, k, -1)
        if n == 1:
            done = scores.new_full((b, k), -torch.inf)
            running = done.index_fill(1, rows.new_zeros(1), 0.0)  # all beams are alike: the first stands for them
        top, index = (scores + running.unsqueeze(2)).flatten(1).topk(2 * k)
        beam, token = index // scores.shape[2], index % scores.shape[2]
        grown = _gather_rows(tokens, beam)
        grown[:, :, n - 1] = token
        ends = (token == eos_id) | (n == max_new_tokens)
        # put aside
        score = (top / n**length_penalty).masked_fill(~ends | settled.unsqueeze(1), -torch.inf)[:, :k]
        done, chosen = torch.cat([done, score], 1).topk(k)
        done_tokens = _gather_rows(torch.cat([done_tokens, grown[:, :k]], 1), chosen)
        # go on
        running, chosen = top.masked_fill(ends, -torch.inf).topk(k)
        tokens, token = _gather_rows(grown, chosen), token.gather(1, chosen).flatten()
        state = reorder(state, (rows + beam.gather(1, chosen)).flatten())
        # done?
        longest = max_new_tokens if early_stopping == "never" and length_penalty > 0 else n
        hopeless = running[:, 0] / longest**length_penalty <= done[:, -1]
        settled = settled | (done[:, -1].isfinite() & (hopeless | (early_stopping is True)))
        if bool(settled.all()):
            break
    best = done_tokens[:, 0]
    return Generated(best[:, : int((best != pad_id).sum(1).max())], done[:, 0])


def _log_probabilities(logits: Tensor, pad_id: int) -> Tensor:
    scores = logits.log_softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
    scores[:, pad_id] = -torch.inf  # padding stands behind the end only
    return scores


def _gather_rows(tokens: Int[Tensor, "b k t"], index: Int[Tensor, "b m"]) -> Int[Tensor, "b m t"]:
    return tokens.gather(1, index.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
