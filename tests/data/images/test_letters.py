"""Printed letters: drawn by seed, legible, split by class."""

import pytest
import torch
import torch.nn.functional as F

from zoo.data import Letters
from zoo.data.images.letters import LETTERS


@pytest.fixture(scope="module")
def data():
    return Letters(n=37 * 40)


def test_drawn_by_seed(data):
    x, y = data.datasets["train"].tensors
    assert (x.shape[1:], x.dtype, data.num_classes) == ((1, 8, 8), torch.uint8, len(data.class_names))
    again = Letters(n=37 * 40).datasets["train"].tensors
    assert all(torch.equal(a, b) for a, b in zip((x, y), again, strict=True))
    other = Letters(n=37 * 40, seed=1).datasets["train"].tensors[0]
    assert not torch.equal(x[:100], other[:100])
    assert len({image.numpy().tobytes() for image in x}) > 0.99 * len(x), "hardly two are alike"


def test_each_class_is_in_each_split(data):
    counts = {name: torch.bincount(part.labels, minlength=len(LETTERS)) for name, part in data.datasets.items()}
    assert {name: set(count.tolist()) for name, count in counts.items()} == {"train": {32}, "val": {4}, "test": {4}}


def test_letters_are_legible(data):
    """The class of the nearest of 1,184 others, by pixels, is right ten times as often as chance."""
    (x, y), (others, theirs) = (data.datasets[part].tensors for part in ("test", "train"))
    near = [F.normalize(part.flatten(1).double()) for part in (x, others)]
    right = theirs[torch.cdist(*near).argmin(1)] == y
    assert right.double().mean() > 10 / len(LETTERS)
    assert x.flatten(1).amax(1).min() > 100, "no image is empty"


def test_larger_images_show_more():
    x = Letters(n=400, image_size=24).datasets["train"].tensors[0]
    assert x.shape[2:] == (24, 24)
    back = F.interpolate(F.interpolate(x.float(), (8, 8), mode="area"), (24, 24))
    assert (x - back).abs().mean() > 5, "not the small ones enlarged"


def test_too_few():
    with pytest.raises(ValueError, match="n is 100, but 37 classes need 370 images or more"):
        Letters(n=100)
