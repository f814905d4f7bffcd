"""Random augmentation of tokenized texts (Wei and Zou 2019, https://arxiv.org/abs/1901.11196)."""

from __future__ import annotations

import torch
from torch import Tensor

CHANGES = ("mask", "delete", "swap")
PAD_ID = 0
UNKNOWN_ID = 1


def augment_tokens(
    x: Tensor,
    lengths: Tensor,
    mask: float = 0.0,
    delete: float = 0.0,
    swap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Change tokens of all texts of a batch at random; at least one token of each text is kept.

    Args:
        x: token ids ``(b, t)``, padded with 0.
        lengths: lengths of the texts, ``(b,)``.
        mask: fraction of the tokens that become the unknown token.
        delete: fraction of the tokens that are deleted.
        swap: fraction of the tokens that are swapped with a neighbour.

    Returns:
        New token ids, as many columns as the longest text has left, and new lengths.
    """
    x = x.clone()
    b, t = x.shape
    inside = torch.arange(t) < lengths.unsqueeze(1)  # (b, t), False in the padding
    if swap and t > 1:
        x = _swap_neighbours(x, lengths, swap)
    if mask:
        x[(torch.rand(b, t) < mask) & inside] = UNKNOWN_ID
    if delete:
        kept = (torch.rand(b, t) >= delete) & inside
        spared = (torch.rand(b) * lengths).long()  # (b,), kept where nothing else is
        kept[torch.arange(b), spared] |= ~kept.any(1)
        lengths = kept.sum(1)
        # What is kept moves to the front, in order.
        order = (~kept).byte().argsort(dim=1, stable=True)
        x = (x * kept).gather(1, order)[:, : int(lengths.max())]
    return x, lengths


def _swap_neighbours(x: Tensor, lengths: Tensor, fraction: float) -> Tensor:
    b, t = x.shape
    steps = torch.arange(t)
    # Pairs (0, 1), (2, 3), ... of some texts and (1, 2), (3, 4), ... of the others, so that no token moves twice.
    in_pair = steps % 2 == torch.randint(0, 2, (b, 1))
    has_right = steps + 1 < lengths.unsqueeze(1)
    left = in_pair & has_right & (torch.rand(b, t) < fraction)  # (b, t), the first of a pair to swap
    right = left.roll(1, 1)
    swapped = torch.where(right, x.roll(1, 1), x)
    return torch.where(left, x.roll(-1, 1), swapped)
