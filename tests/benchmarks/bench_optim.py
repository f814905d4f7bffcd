"""Time of one optimizer step against lion-pytorch, timm and torch, on the parameters of ResNet-50 and GPT-2 small.

Run as ``python tests/benchmarks/bench_optim.py``. Both sides take turns, and the ratio is the median over pairs of
neighbours, so that noise of the machine falls on both. A peer that is not installed is left out.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torchvision
from timm.optim.lion import Lion as TimmLion
from timm.optim.muon import Muon as TimmMuon
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from zoo.optim import BatchedMuon, Lion, ParamGroupRule, build_optimizer, fused_by_default


class Transformer(nn.Module):
    """The parameters of a GPT, none of its computation."""

    def __init__(self, dim: int, depth: int, vocab: int, context: int) -> None:
        super().__init__()
        self.wte, self.wpe, self.ln_f = nn.Embedding(vocab, dim), nn.Embedding(context, dim), nn.LayerNorm(dim)
        sizes = {"qkv": (dim, 3 * dim), "proj": (dim, dim), "fc": (dim, 4 * dim), "out": (4 * dim, dim)}
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {"ln_1": nn.LayerNorm(dim), "ln_2": nn.LayerNorm(dim)} | {k: nn.Linear(*s) for k, s in sizes.items()}
            )
            for _ in range(depth)
        )


NETS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-50": torchvision.models.resnet50,
    "GPT-2 small": partial(Transformer, 768, 12, 50257, 1024),
    "char GPT": partial(Transformer, 128, 4, 97, 64),
}


def with_gradients(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.grad = 1e-3 * torch.randn(p.shape, generator=generator)
    return net


def lions() -> dict[str, Callable[[nn.Module], Optimizer]]:
    sides: dict[str, Callable[[nn.Module], Optimizer]] = {
        "zoo": lambda net: Lion(net.parameters(), 1e-4, weight_decay=0.1),
        "timm": lambda net: TimmLion(net.parameters(), lr=1e-4, weight_decay=0.1),
    }
    if find_spec("lion_pytorch"):
        from lion_pytorch import Lion as LionPytorch

        sides["lion-pytorch"] = lambda net: LionPytorch(net.parameters(), lr=1e-4, weight_decay=0.1)
    return sides


def muons() -> dict[str, Callable[[nn.Module], Optimizer]]:
    """Muon for the matrices of the blocks, AdamW for the rest; timm's Muon has an AdamW of its own for these."""

    def routed(muon: type[Optimizer], adamw: Callable) -> Callable[[nn.Module], Optimizer]:
        rules = [ParamGroupRule("blocks", optimizer=partial(muon, weight_decay=0.1), matrices=True)]
        return lambda net: build_optimizer(net, adamw, 1e-3, rules)

    def timm(net: nn.Module) -> Optimizer:
        matrices = [p for n, p in net.named_parameters() if "blocks" in n and p.ndim == 2]
        rest = [p for n, p in net.named_parameters() if not ("blocks" in n and p.ndim == 2)]
        groups = [{"params": matrices}, {"params": rest, "use_fallback": True, "weight_decay": 0.0}]
        return TimmMuon(groups, lr=1e-3, weight_decay=0.1, adjust_lr_fn="original")

    return {
        "zoo": routed(BatchedMuon, fused_by_default(AdamW)),
        "torch": routed(Muon, AdamW),
        "timm": timm,
    }


def adamws() -> dict[str, Callable[[nn.Module], Optimizer]]:
    return {
        "zoo": lambda net: build_optimizer(net, fused_by_default(AdamW), 1e-3),
        "torch": lambda net: AdamW(net.parameters(), 1e-3),
    }


def milliseconds(optimizer: Optimizer) -> float:
    begin = time.perf_counter()
    optimizer.step()
    return 1e3 * (time.perf_counter() - begin)


def compare(name: str, net: str, sides: dict[str, Callable[[nn.Module], Optimizer]], rounds: int) -> list[dict]:
    """One row per peer: ours over theirs."""
    optimizers = {side: build(with_gradients(NETS[net]())) for side, build in sides.items()}
    for optimizer in optimizers.values():
        optimizer.step()  # sets up its state
    times = [{side: milliseconds(optimizer) for side, optimizer in optimizers.items()} for _ in range(rounds)]
    return [
        {
            "name": f"{name}, {net}",
            "ours_ms": statistics.median(t["zoo"] for t in times),
            "peer": peer,
            "peer_ms": statistics.median(t[peer] for t in times),
            "ratio": statistics.median(t["zoo"] / t[peer] for t in times),
            "target": 1.0,
        }
        for peer in sides
        if peer != "zoo"
    ]


def run(rounds: int = 15) -> list[dict]:
    """All comparisons.

    Args:
        rounds: pairs of steps; Muon on GPT-2, at seconds a step, gets a third of them.

    Returns:
        Rows with ``name``, ``ours_ms``, ``peer``, ``peer_ms``, ``ratio`` (ours over the peer's) and ``target``.
    """
    return [
        *compare("Lion", "ResNet-50", lions(), rounds),
        *compare("Lion", "GPT-2 small", lions(), rounds),
        *compare("AdamW", "ResNet-50", adamws(), rounds),
        *compare("Muon + AdamW", "char GPT", muons(), 3 * rounds),
        *compare("Muon + AdamW", "GPT-2 small", muons(), max(3, rounds // 3)),
    ]


if __name__ == "__main__":
    for row in run():
        verdict = "ok" if row["ratio"] <= row["target"] else "MISSED"
        print("{name:28} {ours_ms:9.2f} ms  {peer:12} {peer_ms:9.2f} ms  ratio {ratio:.2f}".format(**row), verdict)
