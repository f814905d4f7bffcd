"""Sampling against the loop one writes with diffusers: the same U-Net's weights, noise, sampler, and guidance.

The loop is that of diffusers' pipelines: the batch twice, with the classes and without, then the scheduler's step. Both
sides make the same images, which is checked. Times are of one after the other, in turn.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from torch import Tensor

from zoo.diffusion import Noise
from zoo.models import LatentDiffusion

STEPS = 20
CASES = [("pixels-32", 32, 3, 8), ("pixels-8", 8, 1, 64)]  # preset, side, channels, images
SCHEDULERS = {"dpm++": DPMSolverMultistepScheduler, "ddim": DDIMScheduler}


def peer_of(module: LatentDiffusion) -> UNet2DModel:
    """diffusers' network with the weights of ours."""
    sizes: Any = module.net.arguments
    kinds = ["Attn" if has else "" for has in sizes["attention"]]
    net = UNet2DModel(
        in_channels=sizes["in_channels"],
        out_channels=sizes["in_channels"],
        block_out_channels=tuple(sizes["channels"]),
        layers_per_block=sizes["blocks"],
        norm_num_groups=sizes["groups"],
        attention_head_dim=sizes["head_dim"],
        num_class_embeds=sizes["num_classes"] + 1,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
    )
    net.load_state_dict(module.net.state_dict())
    return net.eval()


@torch.no_grad()
def loop(net: UNet2DModel, sampler: str, noise: Tensor, labels: Tensor, none: int, guidance: float) -> Tensor:
    clipped = {"clip_sample": False} if sampler == "ddim" else {}
    scheduler = SCHEDULERS[sampler](
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing", **clipped
    )
    scheduler.set_timesteps(STEPS)
    x, both = noise, torch.cat([torch.full_like(labels, none), labels])
    for t in scheduler.timesteps:
        said = net(torch.cat([x, x]), t, class_labels=both).sample
        without, given = said.chunk(2)
        x = scheduler.step(without + guidance * (given - without), t, x).prev_sample
    return x


class Unclipped(LatentDiffusion):
    """As the schedulers of the loop are."""

    clip = None


def run(pairs: int = 4, guidance: float = 3.0) -> list[dict[str, Any]]:
    results = []
    for preset, side, channels, n in CASES:
        torch.manual_seed(0)
        module = Unclipped(preset=preset, in_channels=channels, image_size=side, num_classes=10).eval()
        with torch.no_grad():
            for p in module.parameters():  # some begin at zero
                p.add_(0.01 * torch.randn_like(p))
        net, labels = peer_of(module), torch.arange(n) % 10
        ours = {"": module, ", bf16": copy.deepcopy(module).bfloat16()}  # as zoo sample --precision bf16
        noise = torch.cat([Noise(0, [i]).normal(channels, side, side) for i in range(n)])
        for sampler in SCHEDULERS:
            times: dict[str, list[float]] = {name: [] for name in [*ours, "theirs"]}
            for _ in range(pairs + 1):
                began = time.perf_counter()
                theirs = loop(net, sampler, noise, labels, 10, guidance)
                times["theirs"].append(time.perf_counter() - began)
                for name, one in ours.items():
                    began = time.perf_counter()
                    images = one.sample(n, sampler, STEPS, guidance, labels)  # type: ignore
                    times[name].append(time.perf_counter() - began)
                    apart = (images - (theirs / 2 + 0.5).clamp(0, 1)).abs()
                    assert apart.max() < 5e-3 if not name else apart.mean() < 0.05, f"the same images: {apart.max()}"
            times = {name: seconds[1:] for name, seconds in times.items()}
            peer = statistics.median(times["theirs"]) * 1e3
            for name in ours:
                results.append({
                    "name": f"diffusion: {n} images, {preset}, {sampler}, {STEPS} steps, guided{name}",
                    "ours_ms": statistics.median(times[name]) * 1e3, "peer": "diffusers", "peer_ms": peer,
                    "ratio": statistics.median(a / b for a, b in zip(times[name], times["theirs"], strict=True)),
                    "target": 0.8,
                })  # fmt: skip
    return results


if __name__ == "__main__":
    for row in run():
        print(row)
