"""What augmentation draws for each image is spread as torchvision draws it, one image at a time."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from tests.smooth_images import images
from zoo.data.augment import (
    AlternatingFlip,
    ColorJitter,
    CutMix,
    Cutout,
    MixUp,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomVerticalFlip,
    TrivialAugmentWide,
)
from zoo.data.augment.base import as_bytes, as_float
from zoo.data.augment.chain import Chain
from zoo.data.augment.mix import beta
from zoo.data.augment.policies import OPERATIONS


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_factors_are_spread_as_torchvisions(name):
    """Grey values behind our jitter and behind torchvision's have the same quantiles."""
    pixel = torch.tensor([0.6, 0.5, 0.3]).view(3, 1, 1).repeat(1, 2, 2)
    pixel[:, 0] *= 0.5
    bounds = [-0.3, 0.1] if name == "hue" else [0.5, 1.3]
    torch.manual_seed(0)
    ours = ColorJitter(**{name: bounds})(pixel.expand(4000, -1, -1, -1))
    theirs = torch.stack([v2.ColorJitter(**{name: bounds})(pixel) for _ in range(1500)])
    at = torch.linspace(0.05, 0.95, 10)
    gap = (ours[:, 0, 1, 1].quantile(at) - theirs[:, 0, 1, 1].quantile(at)).abs().max()
    assert gap < 0.1 * float(ours[:, 0, 1, 1].max() - ours[:, 0, 1, 1].min())


def test_the_pipeline_of_the_notes_is_spread_as_torchvisions():
    """Mean and deviation of every pixel, over many draws of one image."""
    x = images(1, side=12)[:, :, :, :12]
    ours = Chain([RandomCrop(12, 4), RandomHorizontalFlip(), ColorJitter(0.2, 0.2, 0.2), RandomRotation(10)],
                 [0.0] * 3, [1.0] * 3)  # fmt: skip
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.RandomCrop(12, 4), v2.RandomHorizontalFlip(),
                         v2.ColorJitter(0.2, 0.2, 0.2), v2.RandomRotation(10)])  # fmt: skip
    torch.manual_seed(0)
    a, n = ours(x.expand(6000, -1, -1, -1), training=True)[0], 1500
    b = torch.stack([theirs(x[0]) for _ in range(n)])
    spread = b.std(0) / n**0.5 + 1e-3
    off = (a.mean(0) - b.mean(0)).abs() / spread
    assert off.mean() < 1.3, "on average 0.8 deviations of the mean; 0.9 with our own sampling error"
    assert off.max() < 5.5
    assert ((a.std(0) - b.std(0)).abs() < 0.1 * b.std(0) + 0.01).all()


def test_flips_and_orders_are_even():
    torch.manual_seed(0)
    x = torch.zeros(4000, 1, 2, 2)
    x[:, :, :, 0] = 1
    assert abs(float(RandomHorizontalFlip(0.3)(x)[:, 0, 0, 1].mean()) - 0.3) < 0.03
    assert abs(float(RandomVerticalFlip(0.5)(x.mT)[:, 0, 1, 0].mean()) - 0.5) < 0.03
    grey = RandomGrayscale(0.2)(images(2000, side=4, dtype=torch.float32))
    assert abs(float((grey[:, 0] == grey[:, 1]).flatten(1).all(1).double().mean()) - 0.2) < 0.03


@pytest.mark.parametrize("ours", [RandomErasing(1.0), RandomErasing(1.0, (0.3, 0.9), (0.1, 10.0))])
def test_erased_rectangles_are_spread_as_torchvisions(ours):
    theirs = v2.RandomErasing(1.0, ours.scale, ours.ratio)
    x = torch.ones(1, 1, 24, 20)
    torch.manual_seed(0)
    a = 1 - ours(x.expand(6000, -1, -1, -1))
    b = 1 - torch.stack([theirs(x[0]) for _ in range(1500)])
    assert (a.mean(0) - b.mean(0)).abs().max() < 0.06, "where"
    areas = a.mean((1, 2, 3)), b.mean((1, 2, 3))
    at = torch.linspace(0.05, 0.95, 7)
    assert (areas[0].quantile(at) - areas[1].quantile(at)).abs().max() < 0.04, "how large"


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.95, 1.0)])
def test_resized_crops_are_spread_as_torchvisions(scale):
    theirs = v2.RandomResizedCrop(4, scale, (0.5, 3.0))
    x = torch.stack(torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")) / 30
    torch.manual_seed(0)
    a = RandomResizedCrop(4, scale, (0.5, 3.0))(x.expand(6000, -1, -1, -1))
    b = torch.stack([theirs(x) for _ in range(1500)])
    at = torch.linspace(0.05, 0.95, 7)
    for corner in ((0, 0, 0), (1, 0, 0), (0, 3, 3), (1, 3, 3)):
        ours, reference = (t[:, corner[0], corner[1], corner[2]].quantile(at) for t in (a, b))
        assert (ours - reference).abs().max() < 0.04


def test_cutout_is_a_square_clipped_at_the_border():
    torch.manual_seed(0)
    x = 1 - Cutout(6)(torch.ones(3000, 1, 12, 12))
    rows, columns = x.amax(3).sum(2), x.amax(2).sum(2)
    assert set(rows.unique().tolist()) == {3.0, 4.0, 5.0, 6.0}
    assert torch.equal(x.sum((1, 2, 3)), (rows * columns)[:, 0])
    assert abs(float(1 - Cutout(2, p=0.25, value=255)(torch.ones(9, 1, 4, 4)).min())) == 0


def test_shares_of_mixtures():
    torch.manual_seed(0)
    share = beta(torch.zeros(20000), 0.4)
    reference = torch.distributions.Beta(0.4, 0.4)
    assert abs(float(share.mean()) - 0.5) < 0.01
    assert abs(float(share.var()) - float(reference.variance)) < 0.005
    assert beta(torch.zeros(5000), 0.01).isfinite().all()
    x, y = images(2000, side=16, dtype=torch.float32), F.one_hot(torch.arange(2000) % 3, 3).float()
    mixed, labels = MixUp(p=0.25)(x, y)
    same = (mixed == x).flatten(1).all(1)
    assert abs(float(same.double().mean()) - 0.75) < 0.04
    assert torch.equal(labels[same], y[same])
    assert torch.allclose(labels.sum(1), torch.ones(2000))
    ones, zeros = torch.ones(1, 1, 16, 18), torch.zeros(1, 1, 16, 18)
    mixed, labels = CutMix()(torch.cat([ones, zeros] * 1000), torch.eye(2).repeat(1000, 1))
    assert torch.allclose(mixed.mean((1, 2, 3)), labels[:, 0], atol=1e-6), "a label is worth the area of its image"
    theirs = torch.stack([v2.CutMix(num_classes=2)(torch.cat([ones, zeros]), torch.arange(2))[1][0, 0]
                          for _ in range(1000)])  # fmt: skip
    at = torch.linspace(0.1, 0.9, 9)
    assert (labels[::2, 0].quantile(at) - theirs.quantile(at)).abs().max() < 0.08


def test_policies_draw_every_operation_for_each_image():
    torch.manual_seed(0)
    x = images(1)
    out = TrivialAugmentWide()(x.expand(400, -1, -1, -1))
    assert len({bytes(o.numpy().tobytes()) for o in out}) > 200
    chosen, bins = TrivialAugmentWide().draw(30000)
    assert (chosen.bincount() / 30000 - 1 / len(OPERATIONS)).abs().max() < 0.01
    assert (bins.bincount(minlength=31) / 30000 - 1 / 31).abs().max() < 0.01
    same = (RandAugment(num_ops=1, magnitude=0)(x.expand(400, -1, -1, -1)) == x).flatten(1).all(1)
    assert same.double().mean() > 0.6, "at magnitude 0 only autocontrast, equalize and solarize do something"


def test_alternating_flip_shows_both_sides_in_two_epochs():
    x, step = images(64), AlternatingFlip()
    first = step(x)
    step.epoch = 1
    second = step(x)
    mirrored = (first != x).flatten(1).any(1)
    assert 16 < int(mirrored.sum()) < 48
    assert torch.equal(second, torch.where(mirrored.view(-1, 1, 1, 1), x, x.flip(-1)))
    assert torch.equal(as_bytes(step(as_float(x))), second)
