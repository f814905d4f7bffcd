"""Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864), stretched as in LLaMA 3.1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """Turn pairs of a head's numbers by an angle that grows with the position, so that scores see distances only.

    The first half of a head is paired with the second, as in Hugging Face's files and GPT-NeoX.

    Args:
        head_dim: width of a head, which is even.
        theta: base of the wavelengths: the longest is ``2 pi theta`` tokens.
        scaling: ``factor``, ``low_freq_factor``, ``high_freq_factor`` and ``original_max_position_embeddings`` of
            LLaMA 3.1 (https://arxiv.org/abs/2407.21783); ``factor`` alone divides all positions (Chen et al. 2023,
            https://arxiv.org/abs/2306.15595); null for none.
    """

    def __init__(self, head_dim: int, theta: float = 10_000.0, scaling: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions turn pairs: a head of {head_dim} numbers is odd")
        self.head_dim, self.theta, self.scaling = head_dim, theta, dict(scaling) if scaling else None
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def forward(
        self, start: int, like: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "t 1 c"], Float[Tensor, "t 1 c"]]:
        """Return cosines and signed sines of the positions of ``like``, the first of which is ``start``."""
        end, key = start + like.shape[1], (like.device, like.dtype)
        if key not in self._tables or len(self._tables[key][0]) < end:
            self._tables[key] = self._table(1 << max(6, (end - 1).bit_length()), like)
        cos, sin = self._tables[key]
        return cos[start:end], sin[start:end]

    # Not under inference_mode, whose tensors no training may use later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _table(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """In float64 until the last moment, as angles of far positions are large."""
        angles = torch.outer(torch.arange(length, dtype=torch.float64, device="cpu"), self.frequencies())
        cos, sin = torch.cat([angles, angles], 1).cos(), torch.cat([-angles, angles], 1).sin()
        return tuple(x.unsqueeze(1).to(like.device, like.dtype) for x in (cos, sin))  # type: ignore[return-value]

    def frequencies(self) -> Float[Tensor, " c"]:
        """Angle from one position to the next, of each pair."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device="cpu") / self.head_dim
        frequencies = self.theta**-exponents
        if self.scaling is None:
            return frequencies
        s = self.scaling
        if "low_freq_factor" not in s:
            return frequencies / s["factor"]
        # Waves that fit often into the old context stay, those that hardly do are stretched, between them a ramp.
        turns = s["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low, high = s["low_freq_factor"], s["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / s["factor"])


def apply_rotary(
    x: Float[Tensor, "b t h d"], cos: Float[Tensor, "t 1 d"], sin: Float[Tensor, "t 1 d"]
) -> Float[Tensor, "b t h d"]:
    """Turn queries or keys."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)  # which differ under autocast
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
