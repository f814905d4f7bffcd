"""Images in a trainer: augmented by seed and step, normalised on their way to the network."""

import lightning as L
import torch
from torch import nn

from tests import fake_data
from zoo.data import CIFAR10, Digits, ImageFolder
from zoo.data.augment import MixUp, Normalize, RandomCrop, RandomHorizontalFlip, RandomResizedCrop


def tensors(data, split="train"):
    return data.datasets[split].tensors


class Look(L.LightningModule):
    """Keeps the batches it gets."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(1)), {"train": [], "val": [], "predict": []}

    def training_step(self, batch, _):
        self.seen["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch, _):
        self.seen["val"].append(batch)

    def predict_step(self, batch, _):
        self.seen["predict"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder, **kwargs) -> L.Trainer:
    return L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
                     enable_model_summary=False, default_root_dir=folder, **kwargs)  # fmt: skip


def test_training_is_augmented_by_seed_and_step_and_evaluation_is_not(tmp_path):
    fake_data.cifar10(tmp_path)

    def data():
        return CIFAR10(root=str(tmp_path), batch_size=60, augment=[RandomCrop(32, 4), RandomHorizontalFlip(), MixUp()])

    runs = []
    for _ in range(2):
        module, module_data = Look(), data()
        torch.manual_seed(len(runs))  # what was drawn before does not matter
        trainer(tmp_path, max_epochs=2).fit(module, module_data)
        runs.append(module.seen)
    first, second = runs
    assert len(first["train"]) == 6
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
               for a, b in zip(first["train"], second["train"], strict=True))  # fmt: skip
    x, y = first["train"][0]
    assert (x.dtype, y.shape, y.dtype) == (torch.float32, (60, 10), torch.float32)
    plain = data()
    expected = Normalize(plain.mean, plain.std)(tensors(plain, "val")[0])
    assert torch.equal(first["val"][-1][0], expected)
    assert first["val"][-1][1].ndim == 1
    trainer(tmp_path).predict(module, plain)
    assert torch.equal(module.seen["predict"][0][0], Normalize(plain.mean, plain.std)(tensors(plain, "test")[0]))


def test_images_are_normalised_as_those_of_the_weights(tmp_path, capsys):
    fake_data.cifar10(tmp_path)
    for given, expected in (({}, [0.5, 0.4, 0.3]), ({"mean": [0.1] * 3, "std": [1.0] * 3}, [0.1] * 3)):
        module, data = Look(), CIFAR10(root=str(tmp_path), **given)
        module.preprocessing = {"image_size": 224, "mean": [0.5, 0.4, 0.3], "std": [0.2] * 3}
        trainer(tmp_path).predict(module, data)
        assert data.mean == expected
        assert torch.equal(module.seen["predict"][0][0], Normalize(data.mean, data.std)(tensors(data, "test")[0]))
        said = "zoo: CIFAR10: images are normalised as the model asks for\n"
        assert capsys.readouterr().err.count(said) == (not given)


def test_precision_is_the_trainers(tmp_path):
    module = Look()
    trainer(tmp_path, max_steps=1, precision="bf16-true").fit(module, Digits(augment=[RandomCrop(8, 1)]))
    assert module.seen["train"][0][0].dtype == torch.bfloat16


def test_crops_decide_the_size_of_the_images(tmp_path):
    fake_data.image_folder(tmp_path, side=40)
    data = ImageFolder(str(tmp_path), image_size=36, augment=[RandomResizedCrop(24)])
    assert data.image_size == 24
    x = data.datasets["train"].batch(torch.arange(4))[0]
    assert x.shape[-1] == 36
    assert data.prepare(x)[0].shape == data.prepare(x, training=True)[0].shape == (4, 3, 24, 24)


def test_checkpoints_stay_plain(tmp_path):
    data, module = Digits(augment=[RandomCrop(8, 1)]), Look()
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert saved["batch_size"] == 64
    assert "augment" not in saved
