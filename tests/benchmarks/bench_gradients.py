"""Training with `GradientDiagnostics` at its default interval against training without.

Both sides take turns, step by step, in one run of Lightning's Trainer: without, with but not measured, without, and
measured. A ratio is the median over such turns; one step in `every` is measured, and that is its weight. Processor time
is taken, all of it being spent on the CPU: two percent cannot be seen on the clock of a machine that others use too.
"""

import tempfile
from collections.abc import Callable
from statistics import median
from time import process_time

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from zoo.callbacks.gradients.diagnostics import GradientDiagnostics

TARGET = 1.02
NEVER = 10**12


class LanguageModel(nn.Module):
    def __init__(self, vocabulary: int = 96, context: int = 64, dim: int = 128, depth: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(context, dim)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, nn.ReLU(), batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(dim, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        return self.head(x).transpose(1, 2)


class Turns(pl.LightningModule):
    """Trains, and after each step says who is on next and writes down how long it took."""

    def __init__(self, net: nn.Module, spy: GradientDiagnostics) -> None:
        super().__init__()
        self.net, self.spy = net, spy
        self.times: list[list[float]] = [[], [], [], []]
        self.clock = 0.0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        now = process_time()
        self.times[batch_idx % 4].append(1000 * (now - self.clock))
        turn = (batch_idx + 1) % 4
        self.spy.every_n_steps = 1 if turn == 3 else NEVER
        self.trainer.callbacks = [self.spy] if turn in (1, 3) else []
        self.clock = process_time()


def compare(name: str, net: nn.Module, batch: tuple[Tensor, Tensor], turns: int) -> dict:
    spy = GradientDiagnostics(heatmap=False)
    every, module = spy.every_n_steps, Turns(net, spy)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[spy],
            gradient_clip_val=1.0,
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader([batch] * (4 * (turns + 2)), batch_size=None))
    plain, quiet, plain_too, measured = (times[2:] for times in module.times)
    each = median(ours / theirs for ours, theirs in zip(quiet, plain, strict=True))
    rare = median(ours / theirs for ours, theirs in zip(measured, plain_too, strict=True))
    ratio = ((every - 1) * each + rare) / every
    peer = median(plain + plain_too)
    print(f"{name}: an ordinary step {each:.3f}, a measured one {rare:.3f} of a step without")
    return {
        "name": f"training step, {name}",
        "ours_ms": peer * ratio,
        "peer": "no diagnostics",
        "peer_ms": peer,
        "ratio": ratio,
        "target": TARGET,
    }


def run(turns: int = 20) -> list[dict]:
    torch.manual_seed(0)
    labels, tokens = torch.randint(10, (64,)), torch.randint(96, (12, 65))
    cases: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, Tensor]]] = {
        "ResNet-18, 32 px, batch 64": (lambda: resnet18(num_classes=10), (torch.randn(64, 3, 32, 32), labels)),
        "4-layer transformer, width 128, 12 x 64 tokens": (LanguageModel, (tokens[:, :-1], tokens[:, 1:])),
    }
    return [compare(name, make(), batch, turns) for name, (make, batch) in cases.items()]


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads")
    for row in run():
        print("{name}: {ours_ms:.1f} ms; {peer} {peer_ms:.1f} ms; ratio {ratio:.3f}, target {target}".format(**row))
