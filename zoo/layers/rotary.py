"""Rotary position embedding (RoPE; Su et al. 2021, https://arxiv.org/abs/2104.09864), also for longer contexts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RotaryEmbedding(nn.Module):
    """Rotary position embedding: rotates pairs of channels by angles proportional to the position.

    The first half of a head is paired with the second (half-split layout, as in Hugging Face and GPT-NeoX).

    Args:
        head_dim: dimension of a head, even.
        theta: base of the wavelengths; the longest is about ``2 pi theta`` tokens.
        scaling: ``factor``, ``low_freq_factor``, ``high_freq_factor`` and ``original_max_position_embeddings`` for
            LLaMA 3.1's scaling (https://arxiv.org/abs/2407.21783); ``rope_type: yarn``, ``factor`` and
            ``original_max_position_embeddings`` for YaRN (Peng et al. 2023, https://arxiv.org/abs/2309.00071), with its
            options by transformers' names; ``factor`` alone for position interpolation (Chen et al. 2023,
            https://arxiv.org/abs/2306.15595); null for none.
    """

    def __init__(self, head_dim: int, theta: float = 10_000.0, scaling: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions rotate pairs of channels: head_dim must be even, got {head_dim}")
        self.head_dim = head_dim
        self.theta = theta
        self.scaling = dict(scaling) if scaling else None
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def forward(
        self, start: int, like: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "t 1 c"], Float[Tensor, "t 1 c"]]:
        """Return cosines and signed sines of positions ``start`` to ``start + t``, on the device and in the dtype of
        ``like``."""
        end = start + like.shape[1]
        key = (like.device, like.dtype)
        table = self._tables.get(key)
        if table is None or len(table[0]) < end:
            length = 1 << max(6, (end - 1).bit_length())  # a power of 2, so that a longer table is rarely needed
            table = self._table(length, like)
            self._tables[key] = table
        cos, sin = table
        return cos[start:end], sin[start:end]

    # Not under inference_mode: its tensors cannot be used in training later.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _table(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the table in float64 and round last: angles of far positions are large."""
        positions = torch.arange(length, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, self.frequencies())  # (t, c / 2)
        scale = self.attention_factor()
        cos = torch.cat([angles, angles], 1).cos() * scale
        sin = torch.cat([-angles, angles], 1).sin() * scale  # the sign of the rotation is in the table
        cos = cos.unsqueeze(1).to(like.device, like.dtype)  # (t, 1, c)
        sin = sin.unsqueeze(1).to(like.device, like.dtype)
        return cos, sin

    def frequencies(self) -> Float[Tensor, " c"]:
        """Return the angle per position of each pair of channels, in radians."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float64, device="cpu") / self.head_dim
        frequencies = self.theta**-exponents
        if self.scaling is None:
            return frequencies
        factor = self.scaling["factor"]
        if self.scaling.get("rope_type") == "yarn":
            kept = yarn_ramp(self.head_dim, self.theta, self.scaling)
            return frequencies * (kept + (1 - kept) / factor)
        if "low_freq_factor" not in self.scaling:
            return frequencies / factor
        # Short waves, of which many periods fit into the original context, stay; long ones are stretched by the
        # factor; in between it is interpolated linearly.
        periods = self.scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        low = self.scaling["low_freq_factor"]
        high = self.scaling["high_freq_factor"]
        kept = ((periods - low) / (high - low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / factor)

    def attention_factor(self) -> float:
        """Return the factor of queries and keys by which YaRN sharpens attention over a longer context."""
        scaling = self.scaling or {}
        if scaling.get("rope_type") != "yarn":
            return 1.0
        if "attention_factor" in scaling:
            return scaling["attention_factor"]
        factor = scaling["factor"]
        if "mscale" in scaling and "mscale_all_dim" in scaling:
            return yarn_mscale(factor, scaling["mscale"]) / yarn_mscale(factor, scaling["mscale_all_dim"])
        return yarn_mscale(factor, 1.0)


def yarn_mscale(factor: float, weight: float) -> float:
    if factor <= 1:
        return 1.0
    return 0.1 * weight * math.log(factor) + 1.0


def yarn_ramp(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> Float[Tensor, " c"]:
    """Return for each pair of channels how far YaRN keeps its frequency: 1 is as it was, 0 is divided by the factor.

    Pairs that turn at least ``beta_fast`` times within the original context are kept, those that turn less than
    ``beta_slow`` times are interpolated; between these two channels the ramp is linear in the channel.
    """

    def channel(turns: float) -> float:
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    length = scaling["original_max_position_embeddings"]
    first = channel(scaling.get("beta_fast", 32.0))
    last = channel(scaling.get("beta_slow", 1.0))
    if scaling.get("truncate", True):
        first = math.floor(first)
        last = math.ceil(last)
    first = max(first, 0)
    last = min(last, head_dim - 1)
    width = last - first or 0.001  # as in the authors' code, against a division by 0
    channels = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu")
    return 1 - ((channels - first) / width).clamp(0, 1)


def apply_rotary(
    x: Float[Tensor, "b t h c"], cos: Float[Tensor, "t 1 c"], sin: Float[Tensor, "t 1 c"]
) -> Float[Tensor, "b t h c"]:
    """Rotate queries or keys."""
    cos = cos.to(x.dtype)  # under autocast the dtypes differ
    sin = sin.to(x.dtype)
    other_half = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, other_half, sin)
