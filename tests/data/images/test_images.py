"""Published sets of images and the digits: read in their true formats, split, converted, refused."""

import gzip
import hashlib
import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torchvision.transforms import v2

import zoo.data
from tests import fake_data
from zoo.data import CIFAR10, MNIST, Digits
from zoo.data.augment import RandomCrop
from zoo.data.images.downloadable import DownloadableImages

KINDS = [kind for kind in vars(zoo.data).values() if isinstance(kind, type) and issubclass(kind, DownloadableImages)]
sets = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
# In MNIST's or CIFAR's file format; those in another one have a test file of their own.
idx_or_pickle = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if issubclass(kind, (MNIST, CIFAR10))], ids=lambda kind: kind.__name__
)


def written(kind: type[DownloadableImages], root: Path) -> Path:
    return getattr(fake_data, kind.__name__.lower())(root)


def tensors(data, split="train"):
    return data.datasets[split].tensors


@idx_or_pickle
def test_what_is_read_equals_torchvisions(kind, tmp_path, monkeypatch):
    written(kind, tmp_path)
    reference = getattr(torchvision.datasets, kind.__name__)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)  # of the published files
    if issubclass(kind, MNIST):
        for file, _ in reference.resources:
            packed = tmp_path / kind.__name__ / "raw" / file
            packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    data = kind(root=str(tmp_path), val_split=0)
    for split, train in (("train", True), ("test", False)):
        theirs = reference(str(tmp_path), train=train)
        x, y = tensors(data, split)
        pixels = torch.as_tensor(theirs.data)
        assert torch.equal(x, pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2))
        assert torch.equal(y, torch.as_tensor(theirs.targets))
    assert x.dtype == torch.uint8
    assert (data.in_channels, data.image_size) == tuple(x.shape[1:3])
    assert len(data.class_names) == data.num_classes
    if not issubclass(kind, MNIST):
        assert data.class_names == theirs.classes


@sets
def test_validation_is_held_out_of_training_by_class(kind, tmp_path):
    written(kind, tmp_path)
    data = kind(root=str(tmp_path), val_split=0.25)
    (x, y), (vx, vy) = tensors(data), tensors(data, "val")
    assert len(vy) == pytest.approx(0.25 * (len(y) + len(vy)), abs=1)
    assert (vy.bincount() - y.bincount() / 3).abs().max() <= 1
    seen = {i.numpy().tobytes() for i in x}
    assert not seen & {i.numpy().tobytes() for i in vx}
    again = kind(root=str(tmp_path), val_split=0.25)
    assert torch.equal(tensors(again, "val")[0], vx)
    assert not torch.equal(tensors(kind(root=str(tmp_path), val_split=0.25, seed=1), "val")[0], vx)
    whole = kind(root=str(tmp_path), val_split=0)
    assert torch.equal(tensors(whole, "val")[0], tensors(whole, "test")[0])


@sets
def test_a_missing_set_is_one_line(kind, tmp_path):
    with pytest.raises(ValueError, match=f"^{kind.__name__}: .*--data.download true downloads") as told:
        _ = kind(root=str(tmp_path / "none")).datasets
    assert str(tmp_path / "none") in str(told.value)
    assert not (tmp_path / "none").exists()
    folder = written(kind, tmp_path)
    lost = next(p for p in sorted(folder.iterdir()) if "batch" in p.name or "train" in p.name)
    lost.unlink()
    with pytest.raises(ValueError, match=f"{folder} lacks {re.escape(lost.name)};"):
        _ = kind(root=str(tmp_path)).datasets


@idx_or_pickle
def test_download_from_a_server_checks_the_files(kind, tmp_path, monkeypatch, server):
    folder = written(kind, tmp_path / "server")
    source = getattr(torchvision.datasets, kind.__name__)

    def md5(path):
        return hashlib.md5(path.read_bytes()).hexdigest()

    if issubclass(kind, MNIST):
        monkeypatch.setattr(source, "mirrors", [f"{server}/nowhere/", f"{server}/{folder.relative_to(tmp_path)}/"])
        monkeypatch.setattr(source, "resources", [(f, md5(folder / f)) for f, _ in source.resources])
    else:
        packed = fake_data.archive(folder, tmp_path / "server" / source.filename)
        monkeypatch.setattr(source, "url", f"{server}/server/{source.filename}")
        monkeypatch.setattr(source, "tgz_md5", md5(packed))
    here = tmp_path / "here"
    data = kind(root=str(here), download=True)
    assert torch.equal(tensors(data, "test")[0], tensors(kind(root=str(tmp_path / "server")), "test")[0])
    assert len(kind(root=str(here)).datasets["train"]) > 0, "found again without a download"
    monkeypatch.setattr(source, "tgz_md5", "0" * 32, raising=False)
    monkeypatch.setattr(
        source, "resources", [(f, "0" * 32) for f, _ in getattr(source, "resources", [])], raising=False
    )
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: .*could not be downloaded .*put it into .* by hand$"):
        _ = kind(root=str(tmp_path / "other"), download=True).datasets


def test_damaged_files_are_named(tmp_path):
    path = fake_data.mnist(tmp_path) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"{path} is damaged .*: delete it and use --data.download true"):
        _ = MNIST(root=str(tmp_path)).datasets
    path.write_bytes(gzip.compress(gzip.compress(b"") + b"\0\0\x08\x03"))
    with pytest.raises(ValueError, match="is damaged"):
        _ = MNIST(root=str(tmp_path)).datasets
    path = fake_data.cifar10(tmp_path) / "data_batch_2"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        _ = CIFAR10(root=str(tmp_path)).datasets


def test_a_pickle_that_would_run_something_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    path = fake_data.cifar10(tmp_path) / "data_batch_2"
    path.write_bytes(pickle.dumps({"data": Harm()}, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_2 is damaged \(it asks for (io|_io|builtins|__builtin__).open\)"):
        _ = CIFAR10(root=str(tmp_path)).datasets
    assert not (tmp_path / "harm").exists()


def test_known_statistics_and_computed_ones(tmp_path):
    fake_data.cifar10(tmp_path)
    assert CIFAR10(root=str(tmp_path)).mean == [0.4914, 0.4822, 0.4465]
    grey = CIFAR10(root=str(tmp_path), channels=1)
    pixels = tensors(grey)[0].double() / 255
    assert pixels.shape[1] == grey.in_channels == 1
    assert grey.mean == pytest.approx([float(pixels.mean())])
    assert grey.std == pytest.approx([float(pixels.std(correction=0))])
    x, _ = grey.prepare(tensors(grey)[0])
    assert abs(float(x.mean())) < 1e-5
    assert abs(float(x.std()) - 1) < 1e-3
    given = CIFAR10(root=str(tmp_path), mean=[0.5] * 3, std=[0.25] * 3)
    assert torch.allclose(given.prepare(tensors(given)[0])[0], (tensors(given)[0] / 255 - 0.5) / 0.25, atol=1e-6)


@pytest.mark.parametrize("side", [16, 48])
def test_resized_to_image_size(tmp_path, side):
    fake_data.cifar10(tmp_path)
    data = CIFAR10(root=str(tmp_path), image_size=side, mean=[0.0] * 3, std=[1.0] * 3, val_split=0)
    x, _ = data.prepare(tensors(data)[0])
    assert data.image_size == side
    assert tensors(data)[0].shape[-1] == min(side, 32), "small images stay small in memory"
    theirs = v2.functional.resize(tensors(CIFAR10(root=str(tmp_path), val_split=0))[0].float() / 255, [side, side])
    assert (x - theirs).abs().max() < 0.003


def test_grey_images_into_three_channels_is_said_once(tmp_path, zoo):
    fake_data.mnist(tmp_path / "data")
    fit = ["fit", "--model", "SmallCNNClassifier", "--model.stages", "[[4]]", "--model.in_channels", "3", "--data",
           "MNIST", "--trainer.max_epochs", "1"]  # fmt: skip
    code, _, err = zoo(*fit)
    assert code == 0
    assert err == "zoo: MNIST: grey images become three equal channels, as the model asks for in_channels 3\n"
    code, out, err = zoo("test", "--ckpt_path", "runs/smallcnnclassifier_mnist/1/checkpoints/last.ckpt")
    assert (code, err.count("three equal channels")) == (0, 1)
    assert "test/accuracy" in out
    code, _, err = zoo(*fit, "--data.channels", "3")
    assert (code, err) == (0, "")
    code, _, err = zoo(*fit, "--data.channels", "1")
    assert (code, err) == (2, "zoo: error: --model.in_channels is 3, but MNIST has in_channels 1\n")
    fake_data.cifar10(tmp_path / "data")
    code, _, err = zoo(*fit[:6], "1", "--data", "CIFAR10")
    assert (code, err) == (2, "zoo: error: --model.in_channels is 1, but CIFAR10 has in_channels 3\n")


def test_three_channels_are_equal(tmp_path):
    fake_data.mnist(tmp_path)
    data = MNIST(root=str(tmp_path), channels=3)
    x, _ = data.prepare(tensors(data)[0])
    assert x.shape[1] == data.in_channels == 3
    assert torch.equal(x[:, 0], x[:, 2])
    assert tensors(data)[0].shape[1] == 1, "one is kept"
    digits = Digits()
    assert digits.override_spec("in_channels", 3)
    assert not digits.override_spec("image_size", 16)
    x, _ = digits.on_after_batch_transfer(digits.datasets["train"].batch(torch.arange(5)), 0)
    assert x.shape == (5, 3, 8, 8)
    assert not Digits(channels=1).override_spec("in_channels", 3)


def test_digits_that_were_scaled_before_are_scaled_as_the_next_model_asks(tmp_path):
    from lightning import Trainer

    from zoo.models import LatentDiffusion

    data = Digits()
    assert float(tensors(data)[0].max()) > 1.5
    model = LatentDiffusion("pixels-8", in_channels=1, image_size=8, num_classes=10)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    Trainer(limit_val_batches=1, default_root_dir=tmp_path, **quiet).validate(model, data, verbose=False)
    x = tensors(data)[0]
    assert (data.mean, float(x.min()), float(x.max())) == ([0.5], -1, 1)


def test_digits_take_a_mean_of_each_channel():
    data = Digits(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.0], channels=3)
    x, _ = data.prepare(torch.zeros(1, 1, 8, 8))
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([-0.1 / 0.5, -0.2 / 0.6, -0.3]))
    with pytest.raises(ValueError, match="mean and std have 3 numbers for images of 1 channels"):
        _ = Digits(mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]).datasets


def test_digits_enlarged():
    data = Digits(image_size=20)
    x = tensors(data)[0]
    assert x.shape[1:] == (1, 20, 20)
    assert (data.image_size, data.input_dim) == (20, 400)
    assert abs(float(x.mean())) < 1e-5
    assert abs(float(x.std()) - 1) < 1e-5
    small = v2.functional.resize(x, [8, 8])
    corner = torch.corrcoef(torch.stack([small.flatten(), tensors(Digits())[0].flatten()]))[0, 1]
    assert corner > 0.95, "the same digits"


def test_augmented_digits_end_where_plain_ones_do():
    plain, data = Digits(), Digits(augment=[RandomCrop(8, 1)])
    assert (tensors(data)[0].amax(), tensors(data)[0].amin()) == (1, 0)
    assert torch.allclose(data.prepare(tensors(data)[0])[0], tensors(plain)[0], atol=1e-5)
    with pytest.raises(ValueError, match="vectors"):
        Digits(flat=True, augment=[RandomCrop(8, 1)])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"channels": 2}, r"channels is 2, but must be 1 \(grey\), 3"),
        ({"image_size": 0}, "image_size starts at 1"),
        ({"mean": [0.5]}, "mean and std belong together"),
        ({"mean": [0.5, 0.5], "std": [1.0]}, "mean and std belong together"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CIFAR10(**kwargs)


def test_bytes_are_written_as_the_real_files_are():
    """The real CIFAR pickles are of Python 2; ours name the same functions."""
    names = []

    class Noting(pickle.Unpickler):
        def find_class(self, module, name):
            names.append((module, name))
            return super().find_class(module, name)

    content = fake_data._python2_pickle({"data": np.zeros((2, 3), np.uint8)})
    Noting(io.BytesIO(content)).load()
    assert ("numpy.core.multiarray", "_reconstruct") in names
