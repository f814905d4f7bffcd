"""Normal noise with a generator for each sample, so that a sample is the same in a batch of any size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class Noise:
    """Standard normal noise of samples with numbers: what one gets follows from the seed and its number alone.

    Drawn on the CPU, so that a GPU makes the same pictures.

    Args:
        seed: of all of them.
        numbers: of the samples in a batch.
    """

    def __init__(self, seed: int, numbers: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(_mixed(seed, number)) for number in numbers]

    def __call__(self, like: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The next noise for a batch, of the shape, type and place of ``like``."""
        drawn = [torch.randn(like.shape[1:], generator=g, dtype=torch.float32) for g in self.generators]
        return torch.stack(drawn).to(like)

    def normal(self, *shape: int) -> Float[Tensor, "b ..."]:
        """The next noise of a shape a sample, in float32 on the CPU."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])


def _mixed(*numbers: int) -> int:
    """One seed from several numbers, without the neighbours of one seed being those of the next."""
    text = "/".join(map(str, numbers))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
