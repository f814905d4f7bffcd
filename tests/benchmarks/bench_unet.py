"""A training step of the UNet for 32 pixels against diffusers' with the same weights, and the memory of both.

Both sides: the preset ``pixels-32`` (diffusers' ``UNet2DModel`` of the same sizes), the same noise to predict, forward,
squared error, backward, AdamW. diffusers: the usual float32 loop, its arrangement in memory and its optimizer left as
they are. zoo: float32 too, with the fused AdamW that `zoo fit` takes by itself; the second row is zoo as it is fastest
here, in ``bf16-mixed``, against the same loop. Steps of both run in turn in one process and are measured in seconds of
the CPU. The last row is memory: how far each side's peak in a process of its own lies above what it holds before the
first step; its two columns are MiB.

The limit. Convolutions are 139 billion operations a step as diffusers does them. Where an image is doubled zoo's meets
each pixel once, which leaves 129: 0.76 s at the 170 billion a second that this CPU reaches in products of float32
matrices. Normalisations pass 100 MB of numbers; to read and write them once forward, and three times backward, is
another 0.05 s at 10 GB/s, and sums, optimizer and attention are 0.08 s: 0.9 s in all, 0.7 of diffusers' step. What a
step takes beyond that (a sixth) is in torch's own kernels: convolutions at 90 % of the matrices' rate, and
normalisations that with channels last take three times what their bytes would.

A row's name says how many operations a second the convolutions and products come to in the whole step, zoo's /
diffusers', beside that of the matrices.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.models import UNet

BATCH, SIDE = 16, 32


def ours() -> nn.Module:
    return UNet.preset("pixels-32", in_channels=3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def theirs() -> nn.Module:
    from diffusers import UNet2DModel

    channels = tuple(UNet.preset("pixels-32", in_channels=3).arguments["channels"])
    return UNet2DModel(
        in_channels=3, out_channels=3, block_out_channels=channels, attention_head_dim=64,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, BATCH, 3, SIDE, SIDE, generator=generator)
    return x, torch.randint(0, 1000, (BATCH,), generator=generator), noise


def step(net: nn.Module, bf16: bool = False) -> Callable[[], None]:
    """A training step of either side."""
    zoo = isinstance(net, UNet)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True if zoo else None)
    x, t, noise = batch()

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = net(x, t) if zoo else net(x, t).sample
        F.mse_loss(out.float(), noise).backward()
        optimizer.step()

    return run


def seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def peak_rate(n: int = 1024, times: int = 8) -> float:
    """Floating-point operations a second of the CPU in a product of two square matrices."""
    a = torch.randn(n, n)
    return 2 * n**3 / min(seconds(lambda: a @ a) for _ in range(times))


def operations(net: nn.Module) -> int:
    x, t, noise = batch()
    with FlopCounterMode(display=False) as counter:
        F.mse_loss(net(x, t) if isinstance(net, UNet) else net(x, t).sample, noise).backward()
    net.zero_grad()
    return counter.get_total_flops()


def peak_memory(side: str) -> float:
    """MiB that two steps of a side take above what is held before them, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, side], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report_memory(side: str) -> None:
    net = ours() if side == "ours" else theirs()
    run = step(net)
    before = held("VmRSS")
    run()
    run()
    print(json.dumps(held("VmHWM") - before))


def held(which: str) -> float:
    """MiB of this process: ``VmRSS`` now, ``VmHWM`` at most so far (``ru_maxrss`` would count its parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{which}:"))


def run(rounds: int = 8) -> list[dict[str, Any]]:
    theirs_net = theirs()
    nets = {"float32": ours(), "bf16-mixed": ours()}
    for net in nets.values():
        net.load_state_dict(theirs_net.state_dict())
    x, t, _ = batch()
    with torch.no_grad():
        torch.testing.assert_close(nets["float32"](x, t), theirs_net(x, t).sample, atol=1e-4, rtol=1e-4)
    work, peers_work, rate = operations(nets["float32"]), operations(theirs_net), peak_rate()
    sides = {"loop": step(theirs_net), **{k: step(net, k != "float32") for k, net in nets.items()}}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, one in sides.items():
            times[name].append(seconds(one))
    results = []
    for name, target in (("float32", 0.8), ("bf16-mixed", 0.8)):
        pairs = list(zip(times[name][1:], times["loop"][1:], strict=True))
        mine, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
        said = f"{work / mine / 1e9:.0f} / {peers_work / peer / 1e9:.0f} GFLOP/s, matrices {rate / 1e9:.0f}"
        results.append({"name": f"UNet step, 32 px, batch {BATCH}, {name}: {said}", "ours_ms": mine * 1e3,
                        "peer": "diffusers, float32 loop", "peer_ms": peer * 1e3,
                        "ratio": statistics.median(a / b for a, b in pairs), "target": target})  # fmt: skip
    mine, peer = peak_memory("ours"), peak_memory("theirs")
    results.append({"name": f"the same, memory of a step, batch {BATCH}, float32 (MiB)", "ours_ms": mine,
                    "peer": "diffusers", "peer_ms": peer, "ratio": mine / peer, "target": 1.0})  # fmt: skip
    return results


if __name__ == "__main__":
    if sys.argv[1:]:
        report_memory(sys.argv[1])
    else:
        for row in run():
            print(row)
