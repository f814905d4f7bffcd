"""SVHN: read as torchvision reads it, downloaded and checked, damaged files named."""

import hashlib

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import savemat

from tests import fake_data
from zoo.data import SVHN


def test_what_is_read_equals_torchvisions(tmp_path, monkeypatch):
    fake_data.svhn(tmp_path)
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda _: True)  # of the published files
    data = SVHN(root=str(tmp_path), val_split=0)
    for split in ("train", "test"):
        theirs = torchvision.datasets.SVHN(str(tmp_path), split)
        x, y = data.datasets[split].tensors
        assert torch.equal(x, torch.from_numpy(theirs.data))
        assert torch.equal(y, torch.from_numpy(theirs.labels))
        assert (x.dtype, y.min(), y.max()) == (torch.uint8, 0, 9)
    spec = data.spec()
    assert (spec.num_classes, spec.in_channels, spec.image_size) == (10, 3, 32)
    assert spec.class_names == list("0123456789")


def test_download_from_a_server_checks_the_files(tmp_path, monkeypatch, server):
    folder = fake_data.svhn(tmp_path / "server")
    published = {}
    for part in ("train", "test"):
        file = f"{part}_32x32.mat"
        published[part] = [f"{server}/server/{file}", file, hashlib.md5((folder / file).read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", published)
    here = tmp_path / "here"
    data = SVHN(root=str(here), download=True)
    known = SVHN(root=str(folder))
    assert torch.equal(data.datasets["train"].tensors[0], known.datasets["train"].tensors[0])
    (here / "test_32x32.mat").unlink()
    (folder / "train_32x32.mat").unlink()
    assert len(SVHN(root=str(here), download=True).datasets["test"]) == 50, "only what is missing is downloaded"
    published["test"][2] = "0" * 32
    published["train"] = published["test"]
    with pytest.raises(ValueError, match=r"^SVHN: test_32x32.mat could not be downloaded .*put it into .* by hand$"):
        _ = SVHN(root=str(tmp_path / "other"), download=True).datasets


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:3000]), "is damaged"),
        (lambda path: path.write_text("a web page"), "is damaged"),
        (lambda path: savemat(path, {"z": np.zeros(3)}), "holds no images of SVHN"),
        (lambda path: savemat(path, {"X": np.zeros((32, 32, 3, 2)), "y": np.ones((3, 1))}), "holds no images of SVHN"),
    ],
    ids=["cut", "text", "other", "shapes"],
)
def test_damaged_files_are_named(tmp_path, spoil, message):
    path = fake_data.svhn(tmp_path) / "train_32x32.mat"
    spoil(path)
    with pytest.raises(ValueError, match=f"^{path} {message}.*: delete it and use --data.download true") as error:
        _ = SVHN(root=str(tmp_path)).datasets
    assert "\n" not in str(error.value)
