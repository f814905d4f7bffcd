"""Folders of images by class: every kind of file, every layout, and what is wrong with some."""

import shutil

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from tests import fake_data
from zoo.data import ImageFolder
from zoo.data.images import image_files
from zoo.data.images.resizing import ResizeView


def test_every_kind_of_image_is_read(tmp_path):
    expected = fake_data.odd_images(tmp_path / "odd")
    fake_data.corrupt_images(tmp_path / "bad")
    for name, pixels in expected.items():
        found = image_files.decode(tmp_path / "odd" / name, 3).transpose(1, 2, 0)
        bound = 12 if name.endswith("jpg") else 1
        assert found.shape == pixels.shape, name
        assert np.abs(found.astype(int) - pixels).max() <= bound, name
        grey = image_files.decode(tmp_path / "odd" / name, 1)
        assert grey.shape == (1, *pixels.shape[:2]), name
    for name in sorted(p.name for p in (tmp_path / "bad").iterdir()):
        with pytest.raises((OSError, SyntaxError)):
            image_files.decode(tmp_path / "bad" / name, 3)


@pytest.mark.parametrize(("w", "h"), [(40, 25), (25, 40), (33, 33), (16, 50)])
def test_resizing_equals_torchvisions(tmp_path, w, h):
    image = Image.fromarray(fake_data.pictures(1, 1, 64)[0][0][:h, :w])
    image.save(tmp_path / "a.png")
    theirs = v2.functional.pil_to_tensor(v2.Compose([v2.Resize(20), v2.CenterCrop(20)])(image))
    assert np.array_equal(image_files.decode(tmp_path / "a.png", 3, 20), theirs.numpy())
    theirs = v2.functional.pil_to_tensor(v2.Resize((20, 20))(image))
    assert np.array_equal(image_files.decode(tmp_path / "a.png", 3, 20, ResizeView("stretch")), theirs.numpy())


@pytest.mark.parametrize("cache", ["memory", "disk", "stream"])
def test_a_folder_equals_torchvisions(tmp_path, cache):
    root = fake_data.image_folder(tmp_path / "photos", side=20)
    (root / "ant" / "._0001.jpg").write_bytes(b"what another system leaves")
    (root / "ant" / "readme.txt").write_text("no image")
    data = ImageFolder(str(root), cache=cache, cache_dir=str(tmp_path / "cache"), val_split=0.25, test_split=0.25)
    shutil.rmtree(root / "..hidden", ignore_errors=True)
    (root / "ant" / "._0001.jpg").unlink()
    theirs = torchvision.datasets.ImageFolder(str(root), v2.PILToTensor())
    assert data.class_names == theirs.classes
    assert (data.num_classes, data.in_channels, data.image_size) == (3, 3, 20)
    assert {k: len(v) for k, v in data.datasets.items()} == {"train": 18, "val": 9, "test": 9}
    found = {x.numpy().tobytes(): int(y) for s in data.datasets.values() for x, y in (s[i] for i in range(len(s)))}
    assert found == {x.numpy().tobytes(): y for x, y in theirs}
    for split in data.datasets.values():
        assert split.labels.bincount().unique().numel() == 1, "each class in the same share"
    x, y = next(iter(data.val_dataloader()))
    assert (x.shape, x.dtype, y.dtype) == ((9, 3, 20, 20), torch.uint8, torch.long)


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        (("train", "val", "test"), {"train": 36, "val": 36, "test": 36}),
        (("train", "valid"), {"train": 36, "val": 36}),
        (("Train", "Testing"), {"train": 33, "val": 3, "test": 36}),
    ],
)
def test_folders_of_splits(tmp_path, splits, sizes):
    fake_data.image_folder(tmp_path, splits=splits)
    data = ImageFolder(str(tmp_path))
    assert {k: len(v) for k, v in data.datasets.items()} == sizes
    train = sorted(p.name for p in tmp_path.iterdir())[-1 if "train" not in splits else 0]
    assert train.lower() in ("train", "test", "testing")
    if "test" not in sizes:
        with pytest.raises(ValueError, match="ImageFolder has no test split, only train, val"):
            data.test_dataloader()
    no_val = ImageFolder(str(tmp_path), val_split=0)
    assert len(no_val.datasets["val"]) == 36


def test_a_class_named_train_is_a_class(tmp_path):
    fake_data.image_folder(tmp_path, ("train", "plane", "car"))
    assert ImageFolder(str(tmp_path)).class_names == ["car", "plane", "train"]


def test_nested_folders_and_links(tmp_path):
    fake_data.image_folder(tmp_path / "a")
    (tmp_path / "a" / "ant" / "more").mkdir()
    shutil.copy(tmp_path / "a" / "ant" / "0000.jpg", tmp_path / "a" / "ant" / "more" / "x.JPEG")
    (tmp_path / "a" / "dog").symlink_to(tmp_path / "a" / "cat")
    data = ImageFolder(str(tmp_path / "a"))
    assert data.class_names == ["ant", "bee", "cat", "dog"]
    assert len(data.listing.files) == 36 + 1 + 12


def test_unreadable_images_are_named_and_left_out_or_refused(tmp_path, capsys):
    root = fake_data.image_folder(tmp_path / "photos")
    bad = fake_data.corrupt_images(root / "bee")
    data = ImageFolder(str(root), val_split=0.25, test_split=0.25)
    assert sum(len(s) for s in data.datasets.values()) == 36
    err = capsys.readouterr().err
    assert err.startswith(f"zoo: {root}: 4 of 40 images cannot be read and are left out: bee/z_cut.jpg (")
    assert all(f"bee/{name} (" in err for name in bad)
    assert err.count("\n") == 1
    with pytest.raises(ValueError, match=rf"{root}/bee/z_cut.jpg \(.*\) cannot be read; --data.unreadable skip"):
        _ = ImageFolder(str(root), unreadable="refuse").datasets
    stream = ImageFolder(str(root), cache="stream", val_split=0.25, test_split=0.25, eval_batch_size=100)
    seen = sum(len(y) for loader in (stream.val_dataloader(), stream.test_dataloader()) for _, y in loader)
    train = stream.datasets["train"]
    assert seen + len(train.batch(torch.arange(len(train)))[1]) == 36
    assert "z_text.jpg cannot be read and is left out" in capsys.readouterr().err
    strict = ImageFolder(str(root), cache="stream", unreadable="refuse", val_split=0.25, test_split=0.25)
    with pytest.raises(ValueError, match="cannot be read"):
        [strict.datasets[s][i] for s in strict.datasets for i in range(len(strict.datasets[s]))]


def folder_of_one_class(root):
    fake_data.image_folder(root, ["ant"])


def loose_images(root):
    fake_data.image_folder(root / "x", ["ant"])
    shutil.copy(root / "x" / "ant" / "0000.jpg", root / "a.jpg")
    shutil.rmtree(root / "x")


def no_images(root):
    (root / "ant").mkdir()
    (root / "bee").mkdir()


def an_empty_class(root):
    fake_data.image_folder(root)
    (root / "dog").mkdir()


def a_class_of_the_test_alone(root):
    fake_data.image_folder(root, splits=["train", "test"])
    (root / "test" / "ant").rename(root / "test" / "cow")


def several_sizes(root):
    fake_data.image_folder(root)
    fake_data.image_folder(root / "cat", ["big"], side=30)


def a_class_that_cannot_be_read(root):
    fake_data.image_folder(root)
    fake_data.corrupt_images(root / "dog")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root.rmdir(), "does not exist: --data.root names a folder"),
        (lambda root: (root.rmdir(), root.write_text("x")), "is a file: --data.root names a folder"),
        (lambda root: None, "has no images: each class needs a folder of its own"),
        (folder_of_one_class, "has only one class folder, 'ant': each class needs a folder of its own"),
        (loose_images, "has images but no class folders: each class needs a folder"),
        (no_images, r"ant holds no image \(jpg, jpeg, png"),
        (an_empty_class, "dog holds no image"),
        (a_class_of_the_test_alone, "test has a class 'cow' that training has not"),
        (several_sizes, r"differ in size \(.* has 24x24, .* has 30x30\): give --data.image_size"),
        (a_class_that_cannot_be_read, "no image of class 'dog' can be read or is left for training"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_mistakes_in_folders(tmp_path, make, message):
    root = tmp_path / "photos"
    root.mkdir()
    make(root)
    with pytest.raises(ValueError, match=message) as told:
        _ = ImageFolder(str(root)).datasets
    assert str(root) in str(told.value)
    assert "\n" not in str(told.value)


def test_one_image_of_another_size_among_many_is_told(tmp_path, monkeypatch):
    fake_data.image_folder(tmp_path)
    fake_data.image_folder(tmp_path / "cat", ["big"], n=1, side=30)
    monkeypatch.setattr(image_files, "inspect_images", lambda *_: image_files.ImageHeaders(3, (24, 24), ""))
    monkeypatch.setattr("zoo.data.images.image_folder.inspect_images", image_files.inspect_images)
    with pytest.raises(ValueError, match="the images differ in size, 24x24 and 30x30: give"):
        _ = ImageFolder(str(tmp_path)).datasets
    assert ImageFolder(str(tmp_path), image_size=16).datasets["train"][0][0].shape == (3, 16, 16)


def test_a_folder_of_grey_images_is_grey(tmp_path):
    for label in ("a", "b"):
        fake_data.odd_images(tmp_path / label)
        for path in (tmp_path / label).iterdir():
            if not path.name.startswith(("grey", "deep", "bilevel")):
                path.unlink()
    data = ImageFolder(str(tmp_path), image_size=16)
    assert (data.in_channels, data.datasets["train"][0][0].shape) == (1, (1, 16, 16))
    assert data.override_spec("in_channels", 3)
    assert data.prepare(data.datasets["train"].batch(torch.arange(2))[0])[0].shape == (2, 3, 16, 16)
    assert ImageFolder(str(tmp_path), image_size=16, channels=3).in_channels == 3
    assert data.shape[0] == 1
