"""Pictures for tests of augmentation, and what counts as equal to torchvision's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.data.augment.base import as_bytes

B, SIDE = 12, 16


def images(n: int = B, channels: int = 3, side: int = SIDE, dtype: torch.dtype = torch.uint8, seed: int = 0) -> Tensor:
    """Smooth pictures, as photographs are: neighbours alike, all values used."""
    small = torch.rand(n, channels, 5, 5, generator=torch.Generator().manual_seed(seed))
    x = F.interpolate(small, (side, side + 2), mode="bicubic").sub(0.5).mul(1.6).add(0.5).clamp(0, 1)
    return x if dtype.is_floating_point else as_bytes(x)


def alike(ours: Tensor, theirs: Tensor, rare: float = 0.0) -> None:
    """Equal to rounding; bytes may differ by one, and a share ``rare`` of pixels may come from a neighbour."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    off = (ours.double() - theirs.double()).abs()
    bound = 2e-5 if ours.is_floating_point() else 0
    share = float((off > bound).double().mean())
    assert share <= rare, f"{share:.4f} of the values differ, at most by {float(off.max()):.3g}"
