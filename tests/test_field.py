"""Defects of Lightning 2.6.6 that users meet: each test shows it in plain Lightning, then that zoo is right.

Others of the kind stand with what they are about: averages in callbacks/test_ema.py, the LR finder in
callbacks/test_lr_finder.py, frozen layers and their resume in callbacks/test_fine_tuning.py, accumulation of samples in
tasks/test_base.py, plateau schedules after a resume in optim/test_through_the_command_line.py.
"""

import copy
import csv

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.tokens import Sentences, Tagger
from zoo.callbacks import BestAndLast, DeterministicSteps
from zoo.data import BatchTensorDataset, DataModule
from zoo.models import MLPClassifier
from zoo.optim import ParamGroupRule

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Seen(L.LightningModule):
    """Remembers which samples it was trained on."""

    def __init__(self, schedule: bool = False):
        super().__init__()
        self.net, self.seen, self.schedule = nn.Linear(1, 1), [], schedule

    def training_step(self, batch, _):
        self.seen += batch[0].flatten().tolist()
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-3)
        if not self.schedule:
            return optimizer
        _ = self.trainer.estimated_stepping_batches
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 100)}


X = torch.arange(40.0).unsqueeze(1)


class Forty(DataModule):
    def splits(self):
        return {"train": BatchTensorDataset(X)}


def stopped_and_resumed(folder, data, callbacks, **module) -> list[float]:
    """Train 6 of the 10 batches of an epoch, then go on from the checkpoint to its end."""
    L.seed_everything(0)
    first = Seen(**module)
    trainer = L.Trainer(max_steps=6, default_root_dir=folder, callbacks=callbacks(), **QUIET)
    trainer.fit(first, data())
    path = next(folder.rglob("last.ckpt"), None) or next(folder.rglob("*.ckpt"))
    second = Seen(**module)
    trainer = L.Trainer(max_epochs=1, default_root_dir=folder / "x", callbacks=callbacks(), **QUIET)
    trainer.fit(second, data(), ckpt_path=path, weights_only=True)
    return first.seen + second.seen


@pytest.mark.parametrize("estimated", [False, True])
def test_resume_in_mid_epoch(tmp_path, estimated):
    """Rows "resume in mid-epoch" and, where the schedule asks for the total, "stateful loaders"."""

    def plain() -> DataLoader:
        return DataLoader(TensorDataset(X), batch_size=4, shuffle=True)

    lightnings = stopped_and_resumed(
        tmp_path / "a", plain, lambda: [ModelCheckpoint(every_n_train_steps=6)], schedule=estimated
    )
    assert sorted(lightnings) != X.flatten().tolist(), "Lightning repeats samples and leaves others out"
    ours = stopped_and_resumed(
        tmp_path / "b", lambda: Forty(batch_size=4), lambda: [DeterministicSteps(0), BestAndLast()], schedule=estimated
    )
    assert sorted(ours) == X.flatten().tolist()


class Boring(BoringModel):
    """Leaves its optimizer to the command line."""

    def configure_optimizers(self): ...


def test_cli_schedulers(zoo, here):
    """Row "CLI schedulers": Lightning's CLI steps a schedule once an epoch only; zoo's are stepped every step."""
    defaults = {"max_epochs": 2, "limit_train_batches": 12, "enable_checkpointing": False, **QUIET}
    args = ["fit", "--optimizer", "SGD", "--optimizer.lr", "0.1", "--lr_scheduler", "CosineAnnealingLR"]
    cli = LightningCLI(Boring, BoringDataModule, trainer_defaults=defaults, save_config_callback=None,
                       args=[*args, "--lr_scheduler.T_max", "24"])  # fmt: skip
    assert (cli.trainer.lr_scheduler_configs[0].scheduler.last_epoch, cli.trainer.global_step) == (2, 24)
    code, _, err = zoo("fit", "-c", "configs/mlp_iris.yaml", "--trainer.max_epochs", "2", "--run_dir", "r",
                       "--model.lr_scheduler", "WarmupCosine")  # fmt: skip
    assert code == 0, err
    saved = torch.load(here / "r/checkpoints/last.ckpt", weights_only=True)
    assert saved["lr_schedulers"][0]["last_epoch"] == saved["global_step"] > 2


class BuiltLate(Boring):
    def configure_model(self):
        self.layer = self.layer or nn.Linear(32, 2)

    def __init__(self):
        super().__init__()
        self.layer = None


class BuiltLateClassifier(MLPClassifier):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.late = self.net
        del self.net

    def configure_model(self):
        self.net = self.late


def test_cli_optimizers(tmp_path, monkeypatch):
    """Row "CLI optimizers": one group only, of what is there while parsing; here groups by rule, built at the start."""
    defaults = {"fast_dev_run": True, **QUIET}
    options = {"trainer_defaults": defaults, "save_config_callback": None}
    args = ["fit", "--optimizer", "SGD", "--optimizer.lr", "0.1"]
    cli = LightningCLI(Boring, BoringDataModule, args=args, **options)
    assert len(cli.trainer.optimizers[0].param_groups) == 1, "and no argument that could make two"
    with pytest.raises(ValueError, match="empty parameter list"):
        LightningCLI(BuiltLate, BoringDataModule, args=args, **options)

    monkeypatch.chdir(tmp_path)
    module = BuiltLateClassifier(
        hidden=[8], input_dim=1, num_classes=2, param_groups=[ParamGroupRule(match="^3", lr_scale=10.0)]
    )
    data = DataLoader(TensorDataset(torch.randn(8, 1), torch.zeros(8, dtype=torch.long)), batch_size=4)
    trainer = L.Trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False, **QUIET)
    trainer.fit(module, data)
    rates = {g["lr"] for g in trainer.optimizers[0].param_groups}
    assert rates == {1e-3, 1e-2}


def test_save_last_with_save_top_k_1(tmp_path):
    """Row "save_last": with Lightning `last.ckpt` holds the best epoch; here best is best and last is last."""

    class Worse(Seen):
        def validation_step(self, batch, _):
            self.log("val/loss", float(self.current_epoch))

    data = DataLoader(TensorDataset(X), batch_size=8)
    trainer = L.Trainer(
        max_epochs=3, default_root_dir=tmp_path, num_sanity_val_steps=0, **QUIET,
        callbacks=[ModelCheckpoint(tmp_path / "l", monitor="val/loss", save_top_k=1, save_last=True),
                   BestAndLast(dirpath=str(tmp_path / "z"))],
    )  # fmt: skip
    trainer.fit(Worse(), data, data)

    def epoch(path) -> int:
        return torch.load(path, weights_only=True)["global_step"] // 5

    assert epoch(tmp_path / "l/last.ckpt") == 1, "Lightning's last is the best"
    assert (epoch(tmp_path / "z/best.ckpt"), epoch(tmp_path / "z/last.ckpt")) == (1, 3)


class Sized(BoringModel):
    widths: list[int] = []

    def __init__(self, width: int = 4):
        super().__init__()
        self.save_hyperparameters()
        self.widths.append(width)


def test_flags_win_over_the_checkpoint(zoo, here):
    """Row "--ckpt_path in test and validate": with Lightning's CLI the checkpoint's values win in silence."""
    options = {"save_config_callback": None, "trainer_defaults": {"fast_dev_run": True, **QUIET}}
    Sized.widths = []
    cli = LightningCLI(Sized, BoringDataModule, run=False, args=["--model.width", "8"], **options)
    cli.trainer.strategy.connect(cli.model)
    cli.trainer.save_checkpoint("sized.ckpt")
    LightningCLI(
        Sized, BoringDataModule, args=["validate", "--model.width", "16", "--ckpt_path", "sized.ckpt"], **options
    )
    assert Sized.widths == [8, 8], "Lightning takes 8, though 16 was asked for"

    assert zoo("fit", "-c", "configs/mlp_iris.yaml", "--trainer.max_epochs", "1", "--run_dir", "r")[0] == 0
    best = here / "r/checkpoints/best.ckpt"
    fit = ("fit", "--ckpt_path", best, "--run_dir", "s", "--trainer.max_epochs", "2")
    code, _, err = zoo(*fit, "--model.lr", "0.5")
    assert (code, "--model.lr would change nothing" in err) == (2, True), "training goes on with its optimizer"
    code, _, err = zoo(*fit, "--data.batch_size", "7")
    assert code == 0, err
    assert "batch_size: 7" in (here / "s/config.yaml").read_text()
    assert "hidden:\n    - 32" in (here / "s/config.yaml").read_text(), "what is not said comes from the checkpoint"


def test_data_facts(zoo, here):
    """Row "data facts": skipped in silence by Lightning's links; here filled in, saved, and refused when they clash."""
    assert zoo("fit", "-c", "configs/mlp_iris.yaml", "--trainer.max_epochs", "1", "--run_dir", "r")[0] == 0
    saved = torch.load(here / "r/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert (saved["num_classes"], saved["input_dim"]) == (3, 4)
    code, _, err = zoo("fit", "-c", "configs/mlp_iris.yaml", "--model.num_classes", "7")
    assert code == 2
    assert "--model.num_classes is 7, but Tabular has num_classes 3" in err


def test_metrics_of_a_resumed_run_are_appended(zoo, here):
    """Lightning's CSVLogger deletes the file of the run it continues."""
    argv = ["fit", "-c", "configs/mlp_iris.yaml", "--run_dir", "r", "--trainer.max_epochs"]
    assert zoo(*argv, 2)[0] == 0
    assert zoo("fit", "--resume", "r", "--trainer.max_epochs", "4")[0] == 0
    with open(here / "r/metrics.csv", newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [0, 1, 2, 3]


class _Gradients(L.Callback):
    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append(torch.cat([p.grad.flatten() for p in module.parameters()]))


def test_gradient_accumulation_of_padded_tokens(tmp_path):
    """Row "gradient accumulation": with Lightning tokens weigh by micro-batch, and a partial window counts for less."""

    class Plain(Tagger):
        backward = L.LightningModule.backward
        on_after_backward = L.LightningModule.on_after_backward

    def apart(kind) -> float:
        torch.manual_seed(0)
        first, found = kind(lr=1e-3), []
        for batch, windows in ((8, 4), (32, 1)):  # 90 sentences: the third window is one of 26, in batches of 8 and 2
            gradients = _Gradients()
            trainer = L.Trainer(max_epochs=2, accumulate_grad_batches=windows, callbacks=[gradients],
                                default_root_dir=tmp_path, enable_checkpointing=False, **QUIET)  # fmt: skip
            trainer.fit(copy.deepcopy(first), Sentences(batch_size=batch))
            found.append(torch.stack(gradients.steps))
        assert found[0].shape == found[1].shape
        return float((found[0] - found[1]).abs().max())

    assert apart(Plain) > 1e-2, "Lightning 2.6.6 averages means of unequal batches"
    assert apart(Tagger) < 1e-6
