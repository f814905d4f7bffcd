"""The first layer whitens what it sees; it is set once, the same on all processes, and never again in a resumed run."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests import fake_data
from zoo.callbacks.whiten import WhitenFirstLayer, patch_moments
from zoo.cli import main
from zoo.cli.resume_check import verify_resume

ARGS = ["fit", "--model", "AirbenchClassifier", "--model.channels", "[8,8,8]", "--model.optimizer", "SGD",
        "--model.lr", "0.1", "--data", "CIFAR10", "--data.augment", "[AlternatingFlip]",
        "--trainer.max_epochs", "2", "--trainer.callbacks", "[WhitenFirstLayer]"]  # fmt: skip


class Module(L.LightningModule):
    """Not zoo's; its first convolution is not the first layer."""

    def __init__(self, filters: int = 24, lr: float = 0.1) -> None:
        super().__init__()
        self.stem, self.lr = nn.BatchNorm2d(3, affine=False, track_running_stats=False), lr
        self.conv, self.late = nn.Conv2d(3, filters, 2), nn.Conv2d(filters, 2, 1)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        return self.late(self.conv(self.stem(x))).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def images(n: int = 64) -> torch.Tensor:
    """Smooth, so that the pixels of a patch go together; channels too."""
    generator = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.randn(n, 3, 4, 4, generator=generator), 16, mode="bicubic")
    return x + 0.5 * x.mean(1, keepdim=True) + 0.02 * torch.randn(n, 3, 16, 16, generator=generator)


def fit(module: L.LightningModule, callback: L.Callback, folder, epochs: int = 1, ckpt: str | None = None) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(images()), 32), ckpt_path=ckpt)
    return trainer


def second_moments(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    y = F.conv2d(x, weight).movedim(1, 3).flatten(0, 2)
    return y.mT @ y / len(y)


def test_moments_are_those_of_all_patches():
    x = images(40).double()
    patches = F.unfold(x, (3, 2)).movedim(1, 2).flatten(0, 1)
    assert torch.allclose(patch_moments(x, (3, 2)), patches.mT @ patches / len(patches), atol=1e-12)


def test_patches_of_the_first_batch_become_white(tmp_path):
    module = Module()
    fit(module, WhitenFirstLayer(eps=0.0), tmp_path)
    x = images()[:32]
    half = module.conv.weight[:12].detach()
    assert torch.allclose(second_moments(x, half), torch.eye(12), atol=1e-3)
    assert torch.equal(module.conv.weight[12:], -half)
    assert not torch.allclose(second_moments(x, torch.randn(12, 3, 2, 2) / 12**0.5), torch.eye(12), atol=0.1)


def test_with_few_filters_the_strongest_directions_are_taken(tmp_path):
    module = Module(filters=5)
    fit(module, WhitenFirstLayer(eps=0.0), tmp_path)
    weight = module.conv.weight.detach()
    assert torch.equal(weight[3:], -weight[:2])
    assert torch.allclose(second_moments(images()[:32], weight[:3]), torch.eye(3), atol=1e-3)
    norms = weight.flatten(1).norm(dim=1)
    assert norms[0] < norms[1] < norms[2], "what varies most is divided by most"


def test_surplus_filters_stay_and_eps_tames_noise(tmp_path):
    module, tamed = Module(filters=30), Module()
    before = module.conv.weight.detach().clone()
    fit(module, WhitenFirstLayer(eps=0.0), tmp_path)
    fit(tamed, WhitenFirstLayer(eps=0.1), tmp_path)
    assert torch.equal(module.conv.weight[24:], before[24:])
    assert not torch.equal(module.conv.weight[:24], before[:24])
    assert tamed.conv.weight.norm() < module.conv.weight.norm() / 2


def test_filters_are_frozen_and_the_rest_trains(tmp_path):
    frozen, free = Module(), Module()
    fit(frozen, WhitenFirstLayer(), tmp_path)
    fit(free, WhitenFirstLayer(freeze=False), tmp_path)
    assert not torch.equal(frozen.conv.weight, free.conv.weight)
    assert frozen.conv.weight.grad is None
    for module in (frozen, free):
        assert module.conv.bias.grad is not None


def test_a_resumed_run_keeps_its_filters(tmp_path):
    whole, part, other = Module(), Module(), Module()
    for module in (part, other):
        module.load_state_dict(whole.state_dict())
    fit(whole, WhitenFirstLayer(freeze=False), tmp_path, 2)
    fit(part, WhitenFirstLayer(freeze=False), tmp_path, 1).save_checkpoint(tmp_path / "a.ckpt")
    fit(other, WhitenFirstLayer(freeze=False), tmp_path, 2, str(tmp_path / "a.ckpt"))
    assert torch.equal(other.conv.weight, whole.conv.weight)
    assert not torch.equal(part.conv.weight, whole.conv.weight)
    again = WhitenFirstLayer(freeze=False)
    again.load_state_dict({"done": True})  # as a run that was stopped within its first batch left it
    started = part.conv.weight.detach().clone()
    part.lr = 0.0
    fit(part, again, tmp_path)
    assert torch.equal(part.conv.weight, started)


@pytest.mark.slow
def test_a_killed_run_leaves_no_trace(here):
    fake_data.cifar10(here / "data", train=300)
    assert verify_resume([*ARGS[1:], "--trainer.precision", "bf16-mixed", "--model.channels_last", "true",
                   "--ema.decay", "0.9"], kills=1, seed=3) is None  # fmt: skip


def test_two_processes_whiten_what_both_see(here):
    """200 images, in an order that is the same for one process with 64 a step as for two with 32 each."""
    fake_data.cifar10(here / "data", train=200)
    two = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    assert main([*ARGS, "--run_dir", "one", "--data.batch_size", "64"]) == 0
    assert main([*ARGS, "--run_dir", "two", "--data.batch_size", "32", *two]) == 0
    filters = [
        torch.load(here / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]["net.whiten.weight"]
        for run in ("one", "two")
    ]
    assert filters[0].abs().max() > 1
    assert torch.allclose(filters[0], filters[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layer": "net.head"}, "layer net.head is not a 2-dimensional convolution; those are conv, late"),
        ({"eps": -1.0}, "eps is -1.0, but must be at least 0"),
    ],
)
def test_mistakes_are_named(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        fit(Module(), WhitenFirstLayer(**options), tmp_path)


def test_batches_without_images_are_named(tmp_path):
    class Vectors(Module):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.ones(4, 6)), 2)

    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path, callbacks=[WhitenFirstLayer()],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"images \(b, c, h, w\), got \(2, 6\)"):
        trainer.fit(Vectors())
