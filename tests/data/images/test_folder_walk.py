"""Folders of images as people have them: what is read, and what is left out and counted."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import ImageFolder

WHOLE = {"val_split": 0.0, "test_split": 0.0}


def image(path: Path, value: int = 0, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path, **options)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two classes of six images each."""
    for kind in ("cat", "dog"):
        for i in range(6):
            image(tmp_path / "photos" / kind / f"{i}.png", 10 * i)
    return tmp_path / "photos"


def files(root: Path, **options) -> list[str]:
    return [str(Path(file)) for file in ImageFolder(str(root), **options).listing.files]


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.JPG", "a.webp", "a.bmp", "a.tif", "a.gif", "a.jp2", "a.ico",
                                  "a", "a.jpg_large", "a.jpg!d"])  # fmt: skip
def test_images_of_any_name_are_read(root, name, capsys):
    formats = {".jfif": "JPEG", ".jpe": "JPEG", ".jpg_large": "JPEG", ".jpg!d": "WEBP", "": "PNG"}
    image(root / "cat" / name, format=formats.get(Path(name).suffix))
    assert f"cat/{name}" in files(root)
    assert len(ImageFolder(str(root), **WHOLE).datasets["train"]) == 13
    assert capsys.readouterr().err == ""


def test_what_is_no_image_is_counted(root, capsys):
    for name in ("1.txt", "2.txt", "notes.docx", "photo.heic", "no_suffix"):
        (root / "cat" / name).write_text("no image")
    assert len(files(root)) == 12
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "photos: 5 of 17 files are no images and are left out (2 .txt, 1 " in err
    for suffix in (".docx", ".heic", "without a suffix"):
        assert f"1 {suffix}" in err


def test_files_of_the_system_are_left_out_without_a_word(root, capsys):
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/0-checkpoint.png",
                 "__MACOSX/._0.png", "@eaDir/0.png"):  # fmt: skip
        (root / "cat" / name).parent.mkdir(exist_ok=True)
        (root / "cat" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "__MACOSX").mkdir()
    assert len(files(root)) == 12
    assert ImageFolder(str(root)).class_names == ["cat", "dog"]
    assert capsys.readouterr().err == ""


def test_links(root, capsys):
    (root / "cat" / "again.png").symlink_to(root / "dog" / "0.png")
    (root / "cat" / "more").symlink_to(root / "dog")
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "cat" / "up").symlink_to(root / "cat")
    (root / "cat" / "itself.png").symlink_to("itself.png")
    assert len(files(root)) == 12 + 1 + 6
    assert "2 of 21 files are no images" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["_other", "ночь", "with space", "100%", "a.b", "[x]", "#1", "-dash", "日本"])
def test_classes_of_any_name(root, name):
    image(root / name / "0.png")
    image(root / name / "1.png")
    assert set(ImageFolder(str(root)).class_names) == {"cat", "dog", name}


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_file_name_that_is_not_in_utf8(root, tmp_path, cache):
    """As an archive from another country unpacks it."""
    place = os.fsencode(root / "cat") + b"/caf\xe9.png"
    (root / "cat" / "0.png").rename(os.fsdecode(place))
    data = ImageFolder(str(root), cache=cache, cache_dir=str(tmp_path / "cache"), **WHOLE)
    assert len(data.datasets["train"]) == 12


def test_images_beside_classes_and_folders_beside_splits_are_counted(root, capsys):
    image(root / "loose.png")
    image(root / "loose2.png")
    assert len(files(root)) == 12
    assert "2 images beside the class folders are left out; the first is loose.png" in capsys.readouterr().err
    split = root.parent / "split"
    for part in ("train", "dev", "holdout"):
        for kind in ("a", "b"):
            image(split / part / kind / "0.png")
    assert set(ImageFolder(str(split)).listing.parts) == {"train", "val"}
    assert "split: holdout left out, as the other folders are splits (dev, train)" in capsys.readouterr().err


def test_the_same_name_in_two_folders(tmp_path):
    for kind in ("a", "b"):
        for part in ("x", "y"):
            image(tmp_path / kind / part / "0.png")
    assert files(tmp_path) == ["a/x/0.png", "a/y/0.png", "b/x/0.png", "b/y/0.png"]


def test_empty_and_truncated_files_are_named(root, capsys):
    (root / "cat" / "empty.jpg").touch()
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "half.png").write_bytes(whole[: len(whole) // 2])
    assert len(ImageFolder(str(root), cache="memory", **WHOLE).datasets["train"]) == 12
    err = capsys.readouterr().err
    assert "2 of 14 images cannot be read and are left out: cat/empty.jpg (" in err
    assert "cat/half.png (" in err
