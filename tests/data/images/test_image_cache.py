"""Where decoded images are kept: whole or not at all, once for each content, and on a full disk."""

import resource
import shutil
import signal
import time

import pytest
import torch
from PIL import Image

from tests import fake_data
from tests.conftest import abandoned
from zoo.data import ImageFolder
from zoo.data.downloads import locked
from zoo.data.images import image_cache, image_files, image_reader


def tensors(data, split="train"):
    return data.datasets[split].tensors


def on_disk(root, folder, **kwargs) -> ImageFolder:
    return ImageFolder(str(root), cache="disk", cache_dir=str(folder), image_size=16, **kwargs)


def test_a_cache_is_built_once_for_each_content(tmp_path, monkeypatch):
    root, folder = fake_data.image_folder(tmp_path / "photos"), tmp_path / "cache"
    fake_data.corrupt_images(root / "cat")
    first = tensors(on_disk(root, folder))
    opened = []
    monkeypatch.setattr(image_reader, "decode_all", lambda *a: opened.append(a) or iter(()))
    again = on_disk(root, folder)
    assert torch.equal(tensors(again)[0], first[0])
    assert torch.equal(tensors(again)[1], first[1])
    assert next(iter(image_cache_files(folder))).suffix == ".bin"
    monkeypatch.undo()
    count = len(list(folder.glob("*/index.json")))
    changed = root / "ant" / "0000.jpg"
    image = Image.open(changed).rotate(90)
    image.save(changed)
    other = on_disk(root, folder)
    sums = [sorted(float(x.sum()) for s in d.datasets.values() for x in s.tensors[0]) for d in (other, again)]
    assert sums[0] != sums[1]
    _ = on_disk(root, folder, resize="stretch").datasets
    assert len(list(folder.glob("*/index.json"))) == count + 2
    assert not list(folder.glob(".*.new-*"))


def image_cache_files(folder):
    return folder.glob("*/images.bin")


def test_a_cache_is_whole_or_not_there(tmp_path, monkeypatch):
    root, folder = fake_data.image_folder(tmp_path / "photos"), tmp_path / "cache"
    real = image_files.decode_all

    def interrupted(*args):
        for i, image in enumerate(real(*args)):
            if i == 20:
                raise KeyboardInterrupt
            yield image

    monkeypatch.setattr(image_reader, "decode_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _ = on_disk(root, folder).datasets
    assert not list(folder.glob("*/*"))
    monkeypatch.undo()
    assert len(on_disk(root, folder).datasets["train"]) == 30
    (built,) = (path for path in folder.iterdir() if path.is_dir())
    shutil.rmtree(built)
    left = abandoned(built)
    left.mkdir()  # of a process that was killed
    assert len(on_disk(root, folder).datasets["train"]) == 30
    assert not left.exists()


@pytest.mark.parametrize("cache", ["disk", "auto"])
def test_a_full_disk(tmp_path, monkeypatch, capsys, cache):
    root, folder = fake_data.image_folder(tmp_path / "photos"), tmp_path / "cache"
    monkeypatch.setattr(image_cache, "free_memory", lambda: 1000)
    data = ImageFolder(str(root), cache=cache, cache_dir=str(folder), image_size=64)
    _ = data.listing
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        if cache == "disk":
            with pytest.raises(
                ValueError, match=rf"the cache of .* GB cannot be written to {folder} \(File too large\)"
            ):
                _ = data.datasets
        else:
            assert len(data.datasets["train"]) == 30
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(folder.glob("*/*"))
    if cache == "auto":
        assert data.datasets["train"][0][0].shape == (3, 64, 64)
        assert "File too large): decoding images every time" in capsys.readouterr().err


@pytest.mark.parametrize(("memory", "disk", "way"), [(1 << 40, 0, "memory"), (0, 1 << 40, "disk"), (0, 0, "stream")])
def test_where_images_are_kept(tmp_path, monkeypatch, memory, disk, way):
    root = fake_data.image_folder(tmp_path / "photos")
    monkeypatch.setattr(image_cache, "free_memory", lambda: memory)
    monkeypatch.setattr("zoo.data.images.image_reader.shutil.disk_usage", lambda _: type("D", (), {"free": disk}))
    data = ImageFolder(str(root), cache_dir=str(tmp_path / "cache"))
    assert None not in [data.datasets["train"][i] for i in range(30)]
    files = [path.name for path in (tmp_path / "cache").glob("*/*")]
    assert bool(files) == (way == "disk")
    (root / "ant").rename(tmp_path / "away")  # the files of one class
    again = [data.datasets["train"][i] for i in range(30)]
    assert (None in again) == (way == "stream"), "files that are gone are missed only where they are read every time"


def test_one_process_at_a_time(tmp_path):
    import os

    with locked(tmp_path / "x"):
        pid = os.fork()
        if pid == 0:
            with locked(tmp_path / "x"):
                (tmp_path / "second").touch()
            os._exit(0)
        time.sleep(0.2)
        assert not (tmp_path / "second").exists()
    os.waitpid(pid, 0)
    assert (tmp_path / "second").exists()
