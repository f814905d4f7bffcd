"""Augmentations in a row: kinds and sizes kept, images kept apart, seeds, evaluation, and mistakes."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from tests.smooth_images import SIDE, B, alike, images
from zoo.data.augment import (
    AlternatingFlip,
    ColorJitter,
    CutMix,
    Cutout,
    MixUp,
    Normalize,
    RandAugment,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    TrivialAugmentWide,
)
from zoo.data.augment.base import as_float
from zoo.data.augment.chain import Chain, seeded

NOTES = [RandomCrop(SIDE, padding=4), RandomHorizontalFlip(), ColorJitter(0.2, 0.2, 0.2), RandomRotation(10)]
ALL = [
    *NOTES, RandomVerticalFlip(), AlternatingFlip(), RandomResizedCrop(SIDE), ColorJitter(0.4, 0.4, 0.4, 0.1),
    RandomAffine(20, (0.1, 0.2), (0.8, 1.2), [-5, 5, -9, 9], "bilinear", 128), RandomErasing(value="random"),
    Cutout(5), RandomGrayscale(), RandAugment(), TrivialAugmentWide(),
]  # fmt: skip
by_name = pytest.mark.parametrize("step", ALL, ids=lambda s: type(s).__name__)


@by_name
@pytest.mark.parametrize("channels", [1, 3])
def test_kind_shape_and_samples_are_kept_apart(step, channels):
    x = images(channels=channels)[:, :, :, :SIDE]
    for given in (x, as_float(x)):
        torch.manual_seed(3)
        before, out = given.clone(), step(given)
        assert torch.equal(given, before), "the batch given is not written to"
        assert out.dtype == given.dtype
        assert out.shape == (B, channels, SIDE, SIDE)
        torch.manual_seed(3)
        other = given.clone()
        other[1:] = other[1:].flip(1, 2, 3)
        assert torch.equal(step(other)[0], out[0]), "an image does not depend on the others"
        assert out.isfinite().all()
        white = 1 if given.is_floating_point() else 255
        assert -1e-6 <= float(out.min()) <= float(out.max()) <= white + 1e-6


@pytest.mark.parametrize("step", [s for s in ALL if not isinstance(s, AlternatingFlip)], ids=lambda s: type(s).__name__)
def test_every_image_has_its_own_draw(step):
    torch.manual_seed(0)
    out = step(images(1)[:, :, :, :SIDE].expand(32, -1, -1, -1))
    assert len({o.numpy().tobytes() for o in out}) > 1


@by_name
def test_nothing_waits_for_the_device(step):
    """On the meta device there are no values: looking at one raises."""
    x = images()[:, :, :, :SIDE].to("meta")
    chain = Chain([step, MixUp(), CutMix()], [0.5] * 3, [0.5] * 3, num_classes=4)
    out, y = chain(x, torch.arange(B, device="meta") % 4, training=True)
    assert (out.shape, y.shape, out.device.type) == ((B, 3, SIDE, SIDE), (B, 4), "meta")


def test_only_normalisation_outside_of_training():
    x, y = images()[:, :, :, :SIDE], torch.arange(B) % 4
    chain = Chain([*NOTES, MixUp()], [0.4] * 3, [0.2] * 3, num_classes=4)
    out, labels = chain(x, y)
    assert torch.equal(out, Normalize([0.4] * 3, [0.2] * 3)(x))
    assert labels is y
    out, labels = chain(x, y, training=True)
    assert out.dtype == torch.float32
    assert labels.shape == (B, 4)


@pytest.mark.parametrize(("stored", "side"), [(16, 12), (16, 16), (12, 20)])
def test_evaluation_sees_the_centre_at_the_size_of_the_crops(stored, side):
    x = images(side=stored)[:, :, :, :stored]
    chain = Chain([RandomResizedCrop(side)], [0.0] * 3, [1.0] * 3)
    out = chain(x)[0]
    assert out.shape == chain(x, training=True)[0].shape == (B, 3, side, side)
    if stored >= side:
        alike(out, tv.to_dtype(tv.center_crop(x, [side, side]), torch.float32, scale=True))
    else:
        alike(out, tv.to_dtype(tv.resize(x.float(), [side, side]).round().byte(), torch.float32, scale=True), 0.01)


def test_torchvisions_transforms_draw_for_each_image_and_other_modules_take_the_batch():
    seen = []

    class Whole(torch.nn.Module):
        def forward(self, x):
            seen.append((x.shape, x.dtype))
            return x

    x = images(1).expand(64, -1, -1, -1)
    chain = Chain([v2.RandomHorizontalFlip(), v2.ColorJitter(0.5), Whole()], [0.0] * 3, [1.0] * 3)
    torch.manual_seed(0)
    out = chain(x, training=True)[0]
    assert len({o.numpy().tobytes() for o in out}) == 64
    assert seen == [((64, *x.shape[1:]), torch.float32)]
    with pytest.raises(ValueError, match="RandomResize gives images of different sizes"):
        Chain([v2.RandomResize(8, 16)], [0.0] * 3, [1.0] * 3)(x, training=True)


def test_draws_follow_from_the_seed_and_disturb_no_others():
    x = images()[:, :, :, :SIDE]
    chain = Chain(ALL, [0.0] * 3, [1.0] * 3)

    def at(seed: int) -> Tensor:
        with seeded(seed, x.device):
            return chain(x, training=True)[0]

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = at(1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, at(1))
    assert not torch.equal(first, at(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "RandomCrop: size starts at 1"),
        (lambda: RandomCrop(40)(images()), "images of 16x18 with padding=0 are below size=40"),
        (lambda: RandomCrop(8, 20, padding_mode="reflect")(images()), "needs images larger than that"),
        (lambda: RandomHorizontalFlip(1.5), "RandomHorizontalFlip: p is 1.5"),
        (lambda: ColorJitter(brightness=-1), "brightness is -1, but must be a number from 0 up"),
        (lambda: ColorJitter(hue=0.7), r"hue is 0.7, but must .* within \[-0.5, 0.5\]"),
        (lambda: ColorJitter(contrast=[1, 2, 3]), "must be one number or two"),
        (lambda: RandomResizedCrop(8, (0.5, 0.1)), "RandomResizedCrop: size starts at 1, scale is"),
        (lambda: RandomErasing(scale=(0.5, 0.1)), "RandomErasing: scale is"),
        (lambda: RandomAffine(10, translate=(2, 0)), "RandomAffine: translate is"),
        (lambda: RandomRotation([10, -10]), "RandomRotation: degrees is"),
        (lambda: RandAugment(magnitude=31), "magnitude lies in 0 to 30"),
        (lambda: MixUp(alpha=0), "MixUp: alpha is 0, but must be above 0"),
        (lambda: Chain([MixUp()], [0.0], [1.0])(images(), None, True), "MixUp mixes labels, and this data has none"),
        (lambda: Chain([v2.MixUp(num_classes=2)], [0.0], [1.0]), "needs labels; give MixUp alone"),
        (lambda: Normalize(std=[0.0]), "deviations must be above 0"),
        (lambda: Normalize([0.5], [0.5])(images()), "1 means and 1 standard deviations for images of 3 channels"),
    ],
)  # fmt: skip
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
