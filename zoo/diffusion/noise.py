"""Standard normal noise with one generator per sample, so that a sample does not depend on its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class Noise:
    """Standard normal noise for a batch of numbered samples, determined by the seed and each sample's number alone.

    It is generated on the CPU, so that images are the same on every device.

    Args:
        seed: seed shared by all samples.
        numbers: number of each sample in the batch.
    """

    def __init__(self, seed: int, numbers: Sequence[int]) -> None:
        self.generators = []
        for number in numbers:
            generator = torch.Generator().manual_seed(_combined_seed(seed, number))
            self.generators.append(generator)

    def __call__(self, like: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Return the next noise for a batch, with the shape, dtype and device of ``like``."""
        return self.normal(*like.shape[1:]).to(like)

    def normal(self, *shape: int) -> Float[Tensor, "b ..."]:
        """Return the next noise of the given shape per sample, in float32 on the CPU."""
        samples = [torch.randn(shape, generator=generator, dtype=torch.float32) for generator in self.generators]
        return torch.stack(samples)  # (b, *shape)


def _combined_seed(*numbers: int) -> int:
    """Hash several numbers to one seed: adjacent seeds must not share the noise of adjacent samples."""
    text = "/".join(map(str, numbers))
    digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
