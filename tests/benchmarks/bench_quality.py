"""Time to a Fréchet distance: configs/diffusion_digits.yaml through ``zoo fit`` against a plain DDPM loop.

The plain recipe is that of Ho et al. 2020 (https://arxiv.org/abs/2006.11239) with the same network, data and batches:
it says the noise, 1,000 linear noise levels, Adam at a constant rate, no averages (theirs, of 10,000 steps, would still
hold the first weights), and samples by all 1,000 steps back. Of several rates it takes the one that ends nearest. The
distance to reach is the plain loop's after its last step; both are judged by as many samples, against the same real
digits that neither was trained on, by the features of configs/small_cnn_digits.yaml. zoo's samples are judged with and
without guidance, which brings clear digits early and less variety later. Measuring is left out of the times on both
sides.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import chdir
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.cli import main
from zoo.data import Digits
from zoo.metrics import ClassifierFeatures, FrechetDistance
from zoo.models import LatentDiffusion

CONFIGS = Path(__file__).parent.parent.parent / "configs"
SAMPLES, LEVELS = 250, 1000
RATES = (2e-4, 1e-3, 2e-3)  # the paper's, and what is usual for a network of this size
GUIDANCES = (1.5, 1.0)  # as the config says, and none
Curve = list[tuple[int, float, float]]
"""Steps, seconds, Fréchet distance."""


class Judge:
    """The Fréchet distance of samples from digits that no model was trained on.

    Args:
        features: of a classifier.
    """

    def __init__(self, features: ClassifierFeatures) -> None:
        splits = Digits(mean=[0.0], std=[1.0]).datasets
        images = torch.cat([splits[name].batch(torch.arange(len(splits[name])))[0] for name in ("val", "test")])  # type: ignore
        self.features, self.real = features, features(images)[0]

    def __call__(self, samples: Tensor) -> float:
        distance = FrechetDistance(self.real.shape[1])
        distance.update(self.real, real=True)
        distance.update(self.features(samples)[0], real=False)
        return float(distance.compute())


def network() -> nn.Module:
    torch.manual_seed(0)
    return LatentDiffusion(preset="pixels-8", channels=[32, 64], in_channels=1, image_size=8, num_classes=10).net


BETAS = torch.linspace(1e-4, 0.02, LEVELS)
KEPT = torch.cumprod(1 - BETAS.double(), 0).float()  # alpha bar


def plain(rate: float, stops: Sequence[int]) -> list[tuple[int, float, nn.Module]]:
    """Train by the plain recipe; the network after some of the steps, and the seconds until then."""
    net, found = network(), []
    x, y = (data := Digits(mean=[0.5], std=[0.5]).datasets["train"]).batch(torch.arange(len(data)))  # type: ignore
    optimizer, rows, seconds = torch.optim.Adam(net.parameters(), rate), torch.empty(0), 0.0
    began = time.perf_counter()
    for step in range(1, stops[-1] + 1):
        if not len(rows):
            rows = torch.randperm(len(x))
        batch, rows = rows[:64], rows[64:]
        t, eps = torch.randint(0, LEVELS, (len(batch),)), torch.randn(len(batch), *x.shape[1:])
        kept = KEPT[t].view(-1, 1, 1, 1)
        loss = F.mse_loss(net(kept.sqrt() * x[batch] + (1 - kept).sqrt() * eps, t, y[batch]), eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in stops:
            seconds += time.perf_counter() - began
            found.append((step, seconds, deepcopy(net).eval()))
            began = time.perf_counter()
    return found


@torch.no_grad()
def ancestral(net: nn.Module) -> Tensor:
    """Samples by all the steps back, as the paper's second algorithm takes them, with what they lead to clipped."""
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(SAMPLES, 1, 8, 8, generator=generator), torch.arange(SAMPLES) % 10
    for t in range(LEVELS - 1, -1, -1):
        kept, before, beta = KEPT[t], KEPT[t - 1] if t else torch.ones(()), BETAS[t]
        eps = net(x, torch.full((SAMPLES,), t), labels)
        x0 = ((x - (1 - kept).sqrt() * eps) / kept.sqrt()).clamp(-1, 1)
        x = (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x) / (1 - kept)
        if t:
            x = x + ((1 - before) / (1 - kept) * beta).sqrt() * torch.randn(x.shape, generator=generator)
    return (x / 2 + 0.5).clamp(0, 1)


class Clock(L.Callback):
    """Seconds of training, without those of validation, and how near samples are by then.

    Args:
        judge: who says so.
        every: epochs.
    """

    def __init__(self, judge: Judge, every: int) -> None:
        self.judge, self.every = judge, every
        self.curves: dict[float, Curve] = {guidance: [] for guidance in GUIDANCES}
        self.seconds = self.began = 0.0

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.seconds, self.began = 0.0, time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.seconds += time.perf_counter() - self.began

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and (trainer.current_epoch + 1) % self.every == 0:
            for guidance, curve in self.curves.items():
                samples = pl_module.sample(SAMPLES, guidance_scale=guidance)  # type: ignore[operator]
                curve.append((trainer.global_step, self.seconds, self.judge(samples)))

    def on_validation_end(self, *_: Any) -> None:
        self.began = time.perf_counter()


def fit(config: str, *more: str, callbacks: list[L.Callback] | None = None) -> Path:
    """The last checkpoint of a config, trained in this folder."""
    if code := main(["fit", "-c", str(CONFIGS / f"{config}.yaml"), "--run_dir", config, *more], callbacks or []):
        raise RuntimeError(f"zoo fit ended with code {code}")
    return Path(config) / "checkpoints" / "last.ckpt"


def told(curve: Curve) -> str:
    return ", ".join(f"{distance:.2f} at {seconds:.0f} s" for _, seconds, distance in curve)


def run(
    steps: int = 1000, every: int = 2, rates: Sequence[float] = RATES, more: Sequence[str] = ()
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        judge = Judge(ClassifierFeatures.load(fit("small_cnn_digits")))
        clock = Clock(judge, every)
        fit("diffusion_digits", "--trainer.callbacks", "[]", *more, callbacks=[clock])
    loops = {rate: plain(rate, [steps // 4, steps // 2, steps]) for rate in rates}
    ends = {rate: judge(ancestral(loop[-1][2])) for rate, loop in loops.items()}
    rate = min(ends, key=ends.__getitem__)
    theirs = [(step, seconds, judge(ancestral(net))) for step, seconds, net in loops[rate]]
    target, peer = theirs[-1][2], theirs[-1][1]
    others = ", ".join(f"{end:.2f} with {rate:g}" for rate, end in ends.items())
    other = f"plain DDPM, Adam {rate:g}, {steps} steps: {told(theirs)} (at the end {others})"
    rows = []
    for guidance, curve in clock.curves.items():
        reached = next((seconds for _, seconds, distance in curve if distance <= target), None)
        if reached is None:
            raise RuntimeError(f"a Fréchet distance of {target:.2f} is not reached: {told(curve)}")
        name = f"diffusion of digits, guidance {guidance:g}: time to a Fréchet distance of {target:.2f}: {told(curve)}"
        rows.append({"name": name, "ours_ms": reached * 1e3, "peer": other, "peer_ms": peer * 1e3,
                     "ratio": reached / peer, "target": 1 / 3})  # fmt: skip
    return rows


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for row in run():
        print(row)
