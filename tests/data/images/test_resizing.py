"""Evaluation shows a network with published weights the images that its publisher showed it."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from zoo.data import CIFAR10, ImageFolder
from zoo.data.augment import RandomResizedCrop
from zoo.data.images.resizing import ResizeView, published_view
from zoo.models import ResNetClassifier

NORMALISED = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
PUBLISHED = {"image_size": 24, "interpolation": "bicubic", "crop_pct": 0.875, **NORMALISED}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rows, columns = np.mgrid[0:40, 0:60]
    for i in range(8):
        wave = 127 + 100 * np.sin(columns / (2 + i)) * np.cos(rows / 3)
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(wave.astype(np.uint8)).convert("RGB").save(path)
    return folder


class FirstBatch(L.Callback):
    def on_test_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self.images = batch[0].clone()


def seen_in_test(root: Path, preprocessing: dict | None = None, **options) -> torch.Tensor:
    first = FirstBatch()
    model = ResNetClassifier(
        stem="cifar", width=4, in_channels=3, num_classes=2, preprocessing=preprocessing or PUBLISHED
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    data = ImageFolder(root=str(root), image_size=24, val_split=0.25, test_split=0.5, **options)
    L.Trainer(callbacks=[first], **quiet).test(model, data, verbose=False)
    return first.images


def timms_images(root: Path, **view) -> torch.Tensor:
    transform = create_transform(input_size=(3, 24, 24), **NORMALISED, **view)
    return torch.stack([transform(Image.open(file).convert("RGB")) for file in sorted(root.rglob("*.png"))])


def distance(images: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of any image from the one that is nearest to it."""
    return max(float((expected - image).abs().amax((1, 2, 3)).min()) for image in images)


@pytest.mark.parametrize(
    "view",
    [
        {"interpolation": "bicubic", "crop_pct": 0.875},
        {"interpolation": "bicubic", "crop_pct": 0.95},
        {"interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "squash"},
    ],
    ids=["crop", "small margin", "squash"],
)
def test_images_of_a_test_are_those_of_the_publisher(root, view, capfd):
    stated = {**PUBLISHED, **view}
    if stated.pop("crop_mode", None):
        stated["stretch"] = True
    images = seen_in_test(root, stated)
    assert distance(images, timms_images(root, **view)) < 1e-5
    assert distance(images, timms_images(root, interpolation="nearest", crop_pct=1.0)) > 0.1
    assert f"as the model's weights ask for ({view['interpolation']}, " in capfd.readouterr().err


def test_options_of_the_user_come_first(root):
    images = seen_in_test(root, interpolation="bilinear", crop_pct=1.0, resize="crop")
    assert distance(images, timms_images(root, interpolation="bilinear", crop_pct=1.0)) < 1e-5


def test_training_images_and_a_crop_of_ones_own_stay_as_they_are(root):
    data = ImageFolder(root=str(root), image_size=24, augment=[RandomResizedCrop(16)])
    data.follow_view(published_view(PUBLISHED))
    assert data.train_view == ResizeView("crop", "bilinear", 1.0)
    assert data.eval_view == ResizeView("crop", "bicubic", 1.0), "24 pixels, of which 16 are cropped"


def test_what_is_not_done_is_one_line(root, tmp_path, capfd):
    CIFAR10(root=str(tmp_path)).follow_view(published_view(PUBLISHED))
    line = "images are not resized as the model's weights ask for (bicubic, crop, crop_pct 0.875); ImageFolder does so"
    assert line in capfd.readouterr().err
    ImageFolder(root=str(root)).follow_view(published_view(PUBLISHED))
    assert "images keep their own size; --data.image_size resizes them" in capfd.readouterr().err
    assert published_view({"mean": [0.5], "std": [0.5]}) is None
    with pytest.raises(ValueError, match=r"crop_pct is a share above 0 and up to 1, got 1\.2"):
        ImageFolder(root=str(root), crop_pct=1.2)
