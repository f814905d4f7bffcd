"""Latents that are kept: equal to fresh ones, made once for each content and encoder, whole or not at all."""

import copy

import lightning as L
import pytest
import torch

from tests import fake_data
from tests.small_autoencoders import trained_autoencoders
from zoo.callbacks import DeterministicSteps
from zoo.cli import main
from zoo.data import Digits, ImageFolder, Latents
from zoo.data.augment import RandomHorizontalFlip
from zoo.data.images import latent_cache
from zoo.data.images.latents import Moments
from zoo.models import LatentDiffusion

SIZES = {"preset": "pixels-8", "channels": [16, 32], "head_dim": 16, "in_channels": 1, "image_size": 8}


def trainer(folder, epochs: int = 1, **kwargs) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder,
        enable_model_summary=False, callbacks=[DeterministicSteps()], num_sanity_val_steps=0,
        **{"enable_checkpointing": False, "limit_train_batches": 3, "limit_val_batches": 1, **kwargs},
    )  # fmt: skip


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory):
    return trained_autoencoders(tmp_path_factory.mktemp("autoencoders"))


@pytest.fixture
def model(autoencoders):
    def build(number: int = 0, **kwargs) -> LatentDiffusion:
        torch.manual_seed(0)
        return LatentDiffusion(**{**SIZES, "num_classes": 10, "autoencoder": autoencoders[number], **kwargs})

    return build


@pytest.fixture
def encoded(monkeypatch):
    """How many images were encoded, call by call."""
    calls, real = [], LatentDiffusion.moments
    monkeypatch.setattr(LatentDiffusion, "moments", lambda self, x: calls.append(len(x)) or real(self, x))
    return calls


def digits(**kwargs) -> Digits:
    return Digits(**{"mean": [0.5], "std": [0.5], **kwargs})


def latents(folder, data=None, **kwargs) -> Latents:
    return Latents(digits() if data is None else data, cache_dir=str(folder / "cache"), **kwargs)


def attach(data: Latents, model: LatentDiffusion) -> Latents:
    """Data as it is inside a trainer."""
    run = trainer(None)
    run.strategy.connect(model)
    data.trainer = run
    data.setup("fit")
    return data


def weights_of(module: L.LightningModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


# Equal to fresh ones --------------------------------------------------------------------------------------------------


def test_kept_latents_are_fresh_ones_bit_for_bit(model, tmp_path):
    module, images = model(), digits()
    data = attach(latents(tmp_path, images), module)
    for split in ("train", "val", "test"):
        rows = torch.arange(64)  # as many as were encoded together: others round differently
        x, y = images.datasets[split].batch(rows)
        kept, labels = data.datasets[split].batch(rows)
        mean, logvar = module.moments(x)
        assert torch.equal(kept.mean, mean)
        assert torch.equal(kept.logvar, logvar)
        assert torch.equal(labels, y)
        assert len(data.datasets[split]) == len(images.datasets[split])
        mixed = torch.tensor([5, 0, len(images.datasets[split]) - 1])
        kept, labels = data.datasets[split].batch(mixed)
        x, y = images.datasets[split].batch(mixed)
        torch.testing.assert_close(kept.mean, module.moments(x)[0])
        assert torch.equal(labels, y)


@pytest.mark.parametrize("stage", ["train", "val"])
def test_the_loss_of_kept_latents_is_that_of_the_images(model, stage):
    module = model()
    x, y = digits().datasets["train"].batch(torch.arange(16))
    losses = []
    for given in (x, Moments(*module.moments(x))):
        module._num_evaluated = 0
        torch.manual_seed(3)
        losses.append(module.losses((given, y), stage))
    assert torch.equal(*losses)
    assert module.num_items((Moments(*module.moments(x)), y)) == 16


def test_training_goes_as_with_the_images(model, tmp_path):
    found = []
    for data in (digits(), latents(tmp_path)):
        module = model(lr=3e-3)
        L.seed_everything(0)
        run = trainer(tmp_path, 2)
        run.fit(module, data)
        found.append((weights_of(module), run.callback_metrics))
    (fresh, metrics), (kept, others) = found
    assert all(torch.allclose(fresh[name], kept[name], atol=1e-4) for name in fresh)
    assert metrics.keys() == others.keys()
    assert all(float(others[name]) == pytest.approx(float(metrics[name]), rel=1e-3) for name in metrics)


def test_resumed_equals_uninterrupted(model, tmp_path):
    def run(epochs: int, path=None) -> dict[str, torch.Tensor]:
        module = model(lr=3e-3)
        L.seed_everything(7)
        going = trainer(tmp_path, epochs)
        going.fit(module, latents(tmp_path, batch_size=32), ckpt_path=path, weights_only=True if path else None)
        going.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return weights_of(module)

    whole = run(2)
    run(1)
    resumed = run(2, tmp_path / "1.ckpt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_texts_and_images_alone_stay_with_their_latents(model, tmp_path):
    module = model()
    asking = copy.copy(module)
    asking.num_classes = None  # for no classes; to make latents it needs no text encoder
    data = attach(latents(tmp_path, digits(captions="the digit {}")), asking)
    rows = torch.tensor([7, 3])
    y = digits().datasets["val"].batch(rows)[1]
    assert data.datasets["val"].batch(rows)[1] == [f"the digit {i}" for i in y.tolist()]

    root = fake_data.image_folder(tmp_path / "photos")
    folder = ImageFolder(str(root), image_size=8, channels=1, drop_labels=True, mean=[0.5], std=[0.5], cache="stream")
    alone = attach(latents(tmp_path, folder), model(condition="none"))
    batch = alone.datasets["train"].batch(rows)
    assert batch[1] is None
    x, _ = folder.prepare(folder.datasets["train"].batch(rows))
    torch.testing.assert_close(batch[0].mean, module.moments(x)[0])
    assert model(condition="none").losses(batch, "train").isfinite().all()


def test_predictions_name_the_files(model, tmp_path):
    root = str(fake_data.image_folder(tmp_path / "photos"))
    images = ImageFolder(root, image_size=8, channels=1, mean=[0.5], std=[0.5], predict_folder=root)
    run = trainer(tmp_path)
    rows = run.predict(model(condition="none"), data := latents(tmp_path, images)) or []
    assert data.predict_names == images.predict_names
    assert len(data.predict_names or []) == sum(len(row["loss"]) for row in rows) > 0
    assert latents(tmp_path).predict_names is None, "digits have no files"


def test_mirrored_images_are_kept_too(model, tmp_path):
    module, images = model(), digits()
    data = attach(latents(tmp_path, images, flip=True), module)
    x, _ = images.datasets["train"].batch(torch.arange(64))
    plain, mirrored = module.moments(x)[0], module.moments(x.flip(-1))[0]
    torch.manual_seed(0)
    kept = data.datasets["train"].batch(torch.arange(64))[0].mean
    flipped = torch.tensor([torch.equal(k, m) for k, m in zip(kept, mirrored, strict=True)])
    assert all(torch.equal(k, p) for k, p, f in zip(kept, plain, flipped, strict=True) if not f)
    assert 20 < int(flipped.sum()) < 44
    x, _ = images.datasets["val"].batch(torch.arange(64))
    assert torch.equal(data.datasets["val"].batch(torch.arange(64))[0].mean, module.moments(x)[0]), "in training only"


# Made once ------------------------------------------------------------------------------------------------------------


def test_latents_are_made_once_for_each_content_and_encoder(model, tmp_path, encoded):
    def make(number: int = 0, change=lambda module: None, **kwargs) -> int:
        encoded.clear()
        module = model(number)
        change(module)
        trainer(tmp_path).validate(module, latents(tmp_path, digits(**kwargs)), verbose=False)
        return sum(encoded)

    def decoder(module: LatentDiffusion) -> None:
        module.autoencoder.decoder.conv_in.weight.mul_(2)

    def encoder(module: LatentDiffusion) -> None:
        module.autoencoder.encoder.conv_in.weight[0, 0, 0, 0] += 1e-4

    whole = len(digits().datasets["val"])
    assert make() == whole
    assert make() == 0
    assert make(batch_size=16) == 0
    assert make(change=decoder) == 0, "no latent depends on it"
    assert make(change=encoder) == whole
    assert make(number=1) == whole
    assert make(seed=1) == whole, "another split"
    assert make() == 0
    assert len(list((tmp_path / "cache").glob("*/index.json"))) == 4
    assert not list((tmp_path / "cache").glob(".*.new-*"))


@pytest.mark.parametrize("cache", ["memory", "stream"])
def test_changed_files_are_encoded_anew(model, tmp_path, encoded, cache):
    root = fake_data.image_folder(tmp_path / "photos")

    def make() -> int:
        encoded.clear()
        data = ImageFolder(str(root), image_size=8, channels=1, mean=[0.5], std=[0.5], cache=cache)
        attach(latents(tmp_path, data), model(num_classes=3)).datasets["train"].batch(torch.arange(2))
        return sum(encoded)

    whole = make()
    assert whole > 20
    assert make() == 0
    for path in root.glob("*/0*.jpg"):
        path.write_bytes(next(other for other in root.glob("*/*.jpg") if other != path).read_bytes())
    assert make() == whole


def test_the_same_data_serves_another_model_with_its_own_latents(model, tmp_path):
    data, run = latents(tmp_path), trainer(tmp_path)
    for number in (0, 1):
        module = model(number)
        run.validate(module, data, verbose=False)
        x, _ = data.data.datasets["val"].batch(torch.arange(64))
        assert torch.equal(data.datasets["val"].batch(torch.arange(64))[0].mean, module.moments(x)[0])


def test_what_is_interrupted_leaves_nothing(model, tmp_path, monkeypatch):
    real, calls = LatentDiffusion.moments, []

    def interrupted(self, x):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, x)

    monkeypatch.setattr(LatentDiffusion, "moments", interrupted)
    data = attach(latents(tmp_path), model())
    with pytest.raises(KeyboardInterrupt):
        len(data.datasets["train"])
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]
    assert len(data.datasets["train"]) == len(digits().datasets["train"])


def test_of_two_processes_one_writes(autoencoders, here, monkeypatch):
    real = latent_cache._write

    def counted(new, made):
        with open(here / "written", "a") as file:
            file.write("once\n")
        real(new, made)

    monkeypatch.setattr(latent_cache, "_write", counted)
    argv = ["fit", "--model", "LatentDiffusion", "--model.preset", "pixels-8", "--model.channels", "[16,32]",
            "--model.head_dim", "16", "--model.autoencoder", autoencoders[0], "--data", "Latents",
            "--data.data", "Digits", "--data.data.mean", "[0.5]", "--data.data.std", "[0.5]", "--data.cache_dir", "c",
            "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.strategy", "ddp_fork",
            "--trainer.devices", "2", "--trainer.accelerator", "cpu", "--run_dir", "r"]  # fmt: skip
    assert main(argv) == 0
    assert (here / "written").read_text() == "once\n" * 2, "training and validation images"
    assert torch.load(here / "r/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_what_is_damaged_and_who_is_missing_is_told(model, tmp_path):
    with pytest.raises(ValueError, match="Latents are computed by the model of a trainer"):
        latents(tmp_path).train_dataloader()
    data = attach(latents(tmp_path), model())
    place = next(iter((tmp_path / "cache").glob("*/moments.bin")), None)
    assert place is None, "nothing is made before it is needed"
    assert len(data.datasets["val"])
    (place,) = (tmp_path / "cache").glob("*/moments.bin")
    place.write_bytes(place.read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"{place.parent} is damaged: delete this folder"):
        len(attach(latents(tmp_path), model()).datasets["val"])
    with pytest.raises(ValueError, match=r"augment \(RandomHorizontalFlip\) out of the data; --data.flip true"):
        latents(tmp_path, digits(augment=[RandomHorizontalFlip()]))


def test_a_full_disk_is_told(model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(latent_cache.os, "fsync", full)
    with pytest.raises(ValueError, match=r"No space left on device\): --data.cache_dir names another folder"):
        len(attach(latents(tmp_path), model()).datasets["val"])
    assert not list((tmp_path / "cache").glob("*/"))
