"""Augmentation of batches: each operation equals torchvision's at given parameters, and the draws are spread alike."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from tests.smooth_images import SIDE, B, alike, images
from zoo.data.augment import (
    Normalize,
    RandAugment,
    RandomCrop,
    TrivialAugmentWide,
)
from zoo.data.augment.affine import affine, inverse, rotation
from zoo.data.augment.base import as_float
from zoo.data.augment.colour import jitter
from zoo.data.augment.crops import crop, flip, resized_crop
from zoo.data.augment.erase import boxes, erase
from zoo.data.augment.mix import cutmix, mixup
from zoo.data.augment.policies import OPERATIONS, operate

kinds = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["bytes", "floats"])


def each(x: Tensor, function, *columns) -> Tensor:
    """One image at a time, as torchvision does it."""
    values = [c.tolist() if isinstance(c, Tensor) else c for c in columns]
    return torch.stack([function(image, *v) for image, *v in zip(x, *values, strict=True)])


def draw(low: float, high: float, n: int = B, seed: int = 1) -> Tensor:
    return torch.empty(n).uniform_(low, high, generator=torch.Generator().manual_seed(seed))


@kinds
def test_crop_and_flips(dtype):
    x = images(dtype=dtype)
    top, left, which = torch.arange(B) % 7, torch.arange(B) % 9, torch.arange(B) % 2 == 0
    alike(crop(x, top, left, 10), each(x, lambda i, t, u: tv.crop(i, t, u, 10, 10), top, left))
    alike(flip(x, which, -1), each(x, lambda i, w: tv.horizontal_flip(i) if w else i, which))
    alike(flip(x, which, -2), each(x, lambda i, w: tv.vertical_flip(i) if w else i, which))


@kinds
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_random_crops_are_windows_of_the_padded_image(dtype, mode):
    x = images(1, side=6, dtype=dtype).expand(200, -1, -1, -1)
    torch.manual_seed(0)
    out = RandomCrop(6, padding=2, fill=255, padding_mode=mode)(x)
    padded = tv.pad(x[0], [2, 2], fill=255 if dtype == torch.uint8 else 1.0, padding_mode=mode)
    windows = padded.unfold(1, 6, 1).unfold(2, 6, 1).flatten(1, 2).transpose(0, 1)
    found = [[i for i, w in enumerate(windows) if torch.equal(w, o)] for o in out]
    assert all(found)
    assert len({f[0] for f in found}) == len(windows), "every place is drawn"


@kinds
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_change_of_colour(dtype, channels, name):
    x, kind = images(channels=channels, dtype=dtype), ["brightness", "contrast", "saturation", "hue"].index(name)
    factors = draw(-0.5, 0.5) if name == "hue" else draw(0.3, 1.9)
    ours = jitter(x, torch.full((B, 1), kind), factors.unsqueeze(1).expand(-1, 4))
    theirs = each(x, getattr(tv, f"adjust_{name}"), factors)
    # a byte is rounded down: where the product is whole but for rounding, it may be one less
    alike(ours, theirs, 0.0 if dtype.is_floating_point else 0.01)
    assert (ours.double() - theirs.double()).abs().max() <= (2e-5 if dtype.is_floating_point else 1)


@kinds
def test_colour_jitter_in_every_order(dtype):
    orders = torch.tensor(list(itertools.permutations(range(4))))
    x = images(len(orders), dtype=dtype)
    factors = torch.stack([draw(0.5, 1.5, len(x), s) for s in range(3)] + [draw(-0.2, 0.2, len(x))], 1)
    kernels = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    expected = []
    for image, order, own in zip(x, orders.tolist(), factors.tolist(), strict=True):
        for kind in order:
            image = kernels[kind](image, own[kind])
        expected.append(image)
    ours, theirs = jitter(x, orders, factors), torch.stack(expected)
    alike(ours, theirs, 0.0 if dtype.is_floating_point else 0.05)
    assert (ours.double() - theirs.double()).abs().max() <= (2e-5 if dtype.is_floating_point else 4)


@kinds
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_rotation(dtype, mode):
    x, angles = images(dtype=dtype), draw(-170, 170)
    how = {"nearest": v2.InterpolationMode.NEAREST, "bilinear": v2.InterpolationMode.BILINEAR}[mode]
    alike(affine(x, rotation(angles), mode), each(x, lambda i, a: tv.rotate(i, a, how), angles), 0.001)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_affine_maps(mode):
    x, how = images(dtype=torch.float32), v2.InterpolationMode(mode)
    angle, right, down = draw(-40, 40), draw(-4, 4, seed=2).round(), draw(-4, 4, seed=3).round()
    scale, sx, sy = draw(0.5, 2, seed=4), draw(-20, 20, seed=5), draw(-20, 20, seed=6)
    theirs = each(
        x, lambda i, a, r, d, s, p, q: tv.affine(i, a, [r, d], s, [p, q], how), angle, right, down, scale, sx, sy
    )
    alike(affine(x, inverse(angle, right, down, scale, sx, sy), mode), theirs, 0.001)


def test_what_comes_from_outside_is_filled():
    x, angles = images(), draw(20, 70)
    alike(affine(x, rotation(angles), "nearest", 200), each(x, lambda i, a: tv.rotate(i, a, fill=200), angles), 0.001)
    white = torch.full((1, 3, 8, 8), 1.0)
    assert torch.allclose(affine(white, rotation(torch.tensor([30.0])), "bilinear", 255), white)


@kinds
@pytest.mark.parametrize("antialias", [True, False])
def test_resized_crop(dtype, antialias):
    x = images(side=40, dtype=dtype)
    top, left = torch.arange(B) % 5, torch.arange(B) % 3
    height, width = 3 + torch.arange(B) * 2, 35 - torch.arange(B) * 2
    ours = resized_crop(x, top, left, height, width, SIDE, antialias)
    theirs = each(
        x, lambda i, t, u, h, w: tv.resized_crop(i, t, u, h, w, [SIDE, SIDE], antialias=antialias),
        top, left, height, width,
    )  # fmt: skip
    if dtype.is_floating_point:
        alike(ours, theirs)
    else:
        assert (ours.int() - theirs.int()).abs().max() <= 1, "torchvision's bytes are computed in whole numbers"


@kinds
def test_erasing(dtype):
    x = images(dtype=dtype)
    top, left, h, w = torch.arange(B) % 4, torch.arange(B) % 6, torch.arange(B) % 5, torch.arange(B) % 7
    value = torch.tensor(80 if dtype == torch.uint8 else 80 / 255, dtype=dtype).view(1, 1, 1)
    theirs = each(x, lambda i, t, u, a, b: tv.erase(i, t, u, a, b, value), top, left, h, w)
    alike(erase(x, boxes(x, top, left, h, w), 80), theirs)
    noise = erase(x, boxes(x, top * 0, left * 0, h * 0 + 99, w * 0 + 99), "random")
    assert abs(float(as_float(noise).mean()) - 0.5) < 0.02


@pytest.mark.parametrize("channels", [1, 3])
def test_mixing_images_and_labels(channels, monkeypatch):
    x, y = images(channels=channels, dtype=torch.float32), torch.arange(B) % 4
    rows = F.one_hot(y, 4).float()
    monkeypatch.setattr(v2.MixUp, "make_params", lambda *_: {"lam": 0.3})
    theirs = v2.MixUp(num_classes=4)(x, y)
    for ours, expected in zip(mixup(x, rows, torch.full((B,), 0.3)), theirs, strict=True):
        alike(ours, expected)
    area = (9 - 2) * (8 - 3) / (x.shape[2] * x.shape[3])
    monkeypatch.setattr(v2.CutMix, "make_params", lambda *_: {"box": (3, 2, 8, 9), "lam_adjusted": 1 - area})
    theirs = v2.CutMix(num_classes=4)(x, y)
    same = torch.ones(B, dtype=torch.long)
    for ours, expected in zip(cutmix(x, rows, 2 * same, 9 * same, 3 * same, 8 * same), theirs, strict=True):
        alike(ours, expected)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("policy", [RandAugment, TrivialAugmentWide])
def test_operations_of_the_policies(name, policy):
    x, reference = images(), getattr(v2, policy.__name__)()
    table = policy().table(*x.shape[2:])[OPERATIONS.index(name)]
    expected, signed = reference._AUGMENTATION_SPACE[name]
    expected = expected(31, *x.shape[2:])
    for i in (0, 9, 17, 30):
        sign = -1 if signed and i % 2 else 1
        magnitude = 0.0 if expected is None else float(expected[i]) * sign
        theirs = each(x, lambda im, m=magnitude: reference._apply_image_or_video_transform(
            im, name, m, v2.InterpolationMode.NEAREST, {tv_tensors.Image: None, Tensor: None}))  # fmt: skip
        ours = operate(x, name, table[i].expand(B) * sign)
        alike(ours, theirs, 0.01 if name in ("Brightness", "Contrast", "Color", "Sharpness") else 0.002)


@kinds
def test_normalise(dtype):
    x = images(dtype=dtype)
    mean, std = [0.1, 0.5, 0.7], [0.2, 0.3, 0.4]
    alike(Normalize(mean, std)(x), tv.normalize(tv.to_dtype(x, torch.float32, scale=True), mean, std))
