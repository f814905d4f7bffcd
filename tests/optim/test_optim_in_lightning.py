"""The combined optimizer and a schedule under Lightning: clipped, saved, resumed for longer."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.optim import AdamW, Muon
from torch.utils.data import DataLoader, TensorDataset

from zoo.optim import Combined, Rule, WarmupCosine, build_optimizer, fused_by_default


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch):
        return (self.net(batch[0]) - batch[1]).square().mean()

    def configure_gradient_clipping(self, *args, **kwargs):
        super().configure_gradient_clipping(*args, **kwargs)
        assert 0 < nn.utils.get_total_norm([p.grad for p in self.parameters()]) < 0.1001

    def configure_optimizers(self):
        rules = [Rule("", 10.0, optimizer=Muon, matrices=True)]
        optimizer = build_optimizer(self.net, fused_by_default(AdamW), 1e-2, rules)
        schedule = WarmupCosine(optimizer, int(self.trainer.estimated_stepping_batches), warmup=2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": schedule.interval}}


class Rates(Callback):
    def __init__(self):
        self.used = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        assert isinstance(optimizer, Combined)
        self.used.append([group["lr"] for group in optimizer.param_groups])


def fit(folder, epochs, checkpoint=None):
    torch.manual_seed(1)
    x = torch.randn(24, 4)
    rates, module = Rates(), Module()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        callbacks=[rates, ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(x, x[:, :1].sin()), 4), ckpt_path=checkpoint)
    return module, rates.used


@pytest.mark.filterwarnings("ignore")
def test_clipped_saved_and_resumed(tmp_path):
    _, first = fit(tmp_path / "a", 2)
    schedule = WarmupCosine(torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0), 6, warmup=2)
    assert [rates[0] for rates in first] == [0.1 * schedule.factor(i) for i in range(6)]
    assert [rates[1] for rates in first] == [0.01 * schedule.factor(i) for i in range(6)]

    whole, used = fit(tmp_path / "b", 4)
    _, later = fit(tmp_path / "c", 4, tmp_path / "a" / "epoch=1.ckpt")
    assert later == used[6:]  # of the new length, from the first step on
    resumed, _ = fit(tmp_path / "d", 4, tmp_path / "b" / "epoch=1.ckpt")
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), whole.parameters(), strict=True))
