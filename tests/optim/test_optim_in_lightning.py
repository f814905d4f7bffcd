"""The combined optimizer and a schedule under Lightning: clipped in every precision, saved, resumed for longer."""

from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim import SGD, AdamW, Muon
from torch.utils.data import DataLoader, TensorDataset

from zoo.cli import main
from zoo.cli.error_messages import explain
from zoo.models import MLPClassifier
from zoo.optim import MultiOptimizer, ParamGroupRule, WarmupCosine, build_optimizer, fused_by_default


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
        rules = [ParamGroupRule("", 10.0, optimizer=Muon, matrices=True)]
        optimizer = build_optimizer(self.net, fused_by_default(AdamW), 1e-2, rules)
        schedule = WarmupCosine(optimizer, int(self.trainer.estimated_stepping_batches), warmup=2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": schedule.interval}}


class Rates(Callback):
    def __init__(self):
        self.used = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        assert isinstance(optimizer, MultiOptimizer)
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


# Clipping. With SGD at a rate of 1 the step is the clipped gradient itself.

INPUTS, LABELS = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3
CLIPPED = {"norm": lambda g: g * (0.05 / g.norm()), "value": lambda g: g.clamp(-0.05, 0.05)}


def first_step(precision, how, factory, accumulate=1) -> tuple[torch.Tensor, torch.Tensor]:
    """What one update takes from the weights, and the gradient of the whole batch."""
    torch.manual_seed(0)
    module = MLPClassifier(hidden=[16], input_dim=8, num_classes=3, lr=1.0, optimizer=factory)
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    with torch.autocast("cpu", dtype or torch.float16, enabled=dtype is not None):
        loss = nn.functional.cross_entropy(module(INPUTS), LABELS)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
    before = nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    # Lightning's own flag for fp16 means bf16 on a CPU; so the plugin that it would take on a GPU, with torch's scaler.
    fp16 = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))
    flags = {"plugins": [fp16]} if precision == "16-mixed" else {"precision": precision}
    trainer = Trainer(
        accelerator="cpu", max_steps=1, gradient_clip_val=0.05, gradient_clip_algorithm=how, logger=False,
        accumulate_grad_batches=accumulate, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **flags,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(INPUTS, LABELS), 32 // accumulate))
    return before - nn.utils.parameters_to_vector(module.parameters()).detach(), gradient


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("how", CLIPPED)
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-6), ("bf16-mixed", 1e-3), ("16-mixed", 3e-4)])
def test_clipping_is_measured_after_unscaling(precision, tolerance, how, accumulate):
    """Clipped while scaled by 4096, a gradient would be that much too small, or all signs."""
    step, gradient = first_step(precision, how, SGD, accumulate)
    assert gradient.norm() > 0.2, "there is something to clip"
    assert gradient.abs().max() > 0.06
    torch.testing.assert_close(step, CLIPPED[how](gradient), rtol=0, atol=tolerance)
    if how == "norm":
        assert step.norm() == pytest.approx(0.05, rel=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
@pytest.mark.parametrize("cls", [SGD, AdamW])
def test_fused_optimizers_are_clipped_in_fp16_too(cls, options):
    """Fused ones would unscale by themselves, and Lightning refuses to clip them; here the scaler does it for them."""
    fp16, _ = first_step("16-mixed", "norm", partial(cls, **options))
    fp32, _ = first_step("32-true", "norm", cls)
    if cls is SGD:
        torch.testing.assert_close(fp16, fp32, rtol=0, atol=3e-4)
    else:  # steps of 1 by the sign of the gradient: those that round to 0 apart
        assert (fp16 - fp32).abs().lt(0.1).float().mean() > 0.95


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_through_the_command_line(here, precision):
    def trained(lr: str, *clip: str) -> torch.Tensor:
        run = f"{lr}-{'-'.join(clip[-1:])}"
        argv = ["fit", "-c", "configs/mlp_iris.yaml", "--model.optimizer", "SGD", "--model.lr", lr, "--run_dir", run]
        assert main([*argv, "--trainer.precision", precision, "--trainer.max_steps", "1", *clip]) == 0
        saved = torch.load(here / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        return torch.cat([saved[key].flatten() for key in sorted(saved) if key.startswith("net.")])

    start, free = trained("1e-30"), trained("1")
    limit = ["--trainer.gradient_clip_val", "0.01", "--trainer.gradient_clip_algorithm"]
    norm, value = trained("1", *limit, "norm") - start, trained("1", *limit, "value") - start
    assert (free - start).norm() > 0.1
    assert norm.norm() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(value, (free - start).clamp(-0.01, 0.01), rtol=0, atol=1e-6)


def test_out_of_memory_is_one_line_of_advice(zoo, here):
    (here / "own.py").write_text(
        "import torch\n"
        "from zoo.models import MLPClassifier\n"
        "class Huge(MLPClassifier):\n"
        "    def step(self, batch, stage):\n"
        "        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 40 GiB')\n"
    )
    code, _, err = zoo("fit", "--model", "own.Huge", "--data", "Quadrants", "--model.hidden", "[4]")
    assert (code, len(err.splitlines())) == (2, 1)
    for advice in ("--data.batch_size", "--trainer.accumulate_grad_batches", "--trainer.precision bf16-mixed"):
        assert advice in err
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert "out of memory" in (explain(raised.value) or ""), "memory of the machine too"
