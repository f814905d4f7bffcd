"""What users of images get wrong, through the command line: one line, or said once and gone on with."""

from pathlib import Path

import pytest
from PIL import Image

from tests import fake_data

FIT = ["fit", "--trainer.max_steps", 2, "--trainer.limit_val_batches", 1]
RESNET = ["--model", "ResNetClassifier", "--model.width", 8]
PHOTOS = ["--data", "ImageFolder", "--data.root"]


@pytest.fixture
def photos(here):
    return fake_data.image_folder(here / "photos", n=20)


def told(zoo, *args) -> str:
    """The one line of a command that ends with 2 and leaves nothing."""
    code, _, err = zoo(*args)
    assert code == 2, err
    assert err.count("\n") == 1, err
    assert err.startswith("zoo: error: ")
    assert not Path("runs").exists()
    return err


def test_a_size_that_no_patch_divides(zoo, photos):
    err = told(zoo, *FIT, "--model", "ViTClassifier", "--model.patch_size", 5, *PHOTOS, photos)
    assert "image_size 24 is not divisible by patch_size 5: take images of 20 or 25 pixels" in err


def test_grey_images_into_three_channels_are_converted_and_said_once(zoo, photos):
    for path in photos.rglob("*.jpg"):
        Image.open(path).convert("L").save(path)
    code, _, err = zoo(*FIT, *RESNET, "--model.in_channels", 3, *PHOTOS, photos)
    line = "zoo: ImageFolder: grey images become three equal channels, as the model asks for in_channels 3\n"
    assert (code, err) == (0, line)


def test_one_class(zoo, here):
    fake_data.image_folder(here / "photos", ["ant"])
    assert "photos has only one class folder, 'ant'" in told(zoo, *FIT, *RESNET, *PHOTOS, "photos")


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_among_many_when_streamed(zoo, photos, workers):
    """Two files are named, by each process that meets them once, not in every epoch; or the first one stops all."""
    path = next((photos / "ant").glob("*.jpg"))
    path.write_bytes(path.read_bytes()[:300])
    (photos / "bee" / "text.jpg").write_text("no image")
    stream = [*RESNET, *PHOTOS, "photos", "--data.cache", "stream", "--data.num_workers", workers]
    refused = told(zoo, "fit", "--trainer.max_epochs", 1, *stream, "--data.unreadable", "refuse")
    assert refused.endswith(") cannot be read; --data.unreadable skip leaves such files out\n")
    assert "photos/ant/" in refused or "photos/bee/text.jpg (cannot identify image file)" in refused
    code, _, err = zoo("fit", "--trainer.max_epochs", 4, *stream, "--data.val_split", 0.02, "--data.test_split", 0.02)
    lines = err.splitlines()
    assert code == 0
    assert set(lines) <= {
        f"zoo: photos/ant/{path.name} cannot be read and is left out (Truncated File Read)",
        "zoo: photos/bee/text.jpg cannot be read and is left out (cannot identify image file)",
    }
    assert all(1 <= lines.count(line) <= 1 + workers for line in set(lines))


@pytest.fixture
def trained(zoo, photos):
    """A checkpoint of a small ResNet-18 for three classes of photographs."""
    code, _, err = zoo(*FIT, *RESNET, *PHOTOS, photos, "--run_dir", "first")
    assert (code, err) == (0, "")
    return "first/checkpoints/last.ckpt"


def test_weights_of_another_architecture(zoo, photos, trained):
    weights = ["--model.weights", trained, *PHOTOS, photos]
    small_vit = ["ViTClassifier", "--model.patch_size", 4, "--model.depth", 1]
    err = told(zoo, *FIT, "--model", *small_vit, *weights)
    assert "last.ckpt does not fit this ViT: it has " in err
    assert "122 unexpected (conv1.weight, bn1.weight, ...)" in err
    assert "last.ckpt does not fit this ResNet: it has " in told(zoo, *FIT, *RESNET, "--model.depth", 50, *weights)
    assert "width=8 instead of 16" in told(zoo, *FIT, "--model", "ResNetClassifier", "--model.width", 16, *weights)


def test_weights_of_other_classes_get_a_fresh_head(zoo, here, trained):
    fake_data.image_folder(here / "more", ["a", "b", "c", "d"])
    code, _, err = zoo(*FIT, *RESNET, "--model.weights", trained, *PHOTOS, "more")
    line = f"zoo: {trained}: its head of 3 classes is replaced by a fresh one of 4\n"
    assert (code, err) == (0, line)


@pytest.mark.parametrize("cache", ["disk", "auto"])
def test_a_cache_on_a_full_disk(zoo, photos, monkeypatch, cache):
    """A device that is always full stands in the way of the cache's file."""
    monkeypatch.setattr("zoo.data.images.image_cache.free_memory", lambda: 1000)
    opened = open

    def full(file, mode="r", *args, **kwargs):
        return opened("/dev/full" if str(file).endswith("images.bin") else file, mode, *args, **kwargs)

    monkeypatch.setattr("zoo.data.images.image_cache.open", full, raising=False)
    args = [*FIT, *RESNET, *PHOTOS, photos, "--data.cache", cache, "--data.cache_dir", "cache"]
    if cache == "disk":
        err = told(zoo, *args)
        assert "GB cannot be written to cache (No space left on device): --data.cache_dir names another folder" in err
    else:
        code, _, err = zoo(*args)
        assert code == 0
        assert err.endswith("cannot be written to cache (No space left on device): decoding images every time\n")
        assert err.count("\n") == 1
    assert [p.suffix for p in Path("cache").iterdir()] == [".lock"], "nothing half-written"
