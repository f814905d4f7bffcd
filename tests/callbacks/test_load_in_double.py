"""A checkpoint in double precision is loaded with all its bits."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn

from zoo.callbacks.load_in_double import LoadInDouble


class Module(L.LightningModule):
    """Weights from the constructor, from `setup` and from `configure_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)

    def setup(self, stage: str) -> None:
        self.second = nn.Linear(2, 2)

    def configure_model(self) -> None:
        self.third = nn.Linear(2, 1)

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        assert batch.dtype == self.first.weight.dtype


def test(path: Path, module: L.LightningModule, *callbacks: L.Callback) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "barebones": False}
    trainer = L.Trainer(accelerator="cpu", precision="64-true", callbacks=list(callbacks), **quiet)
    loader = torch.utils.data.DataLoader(torch.ones(2, 3))
    trainer.test(module, loader, ckpt_path=path, verbose=False, weights_only=True)


test.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    whole = Module()
    whole.setup("test")
    whole.configure_model()
    state = {name: torch.randn(tensor.shape, dtype=torch.float64) for name, tensor in whole.state_dict().items()}
    version = {"pytorch-lightning_version": L.__version__, "callbacks": {}, "epoch": 0, "global_step": 0}
    torch.save({"state_dict": state, **version}, tmp_path / "double.ckpt")
    return tmp_path / "double.ckpt"


def test_every_bit_is_loaded(saved):
    state = torch.load(saved, weights_only=True)["state_dict"]
    module = Module()
    test(saved, module, LoadInDouble())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    module.float().load_state_dict(state)
    assert module.first.weight.dtype == torch.float32, "the hook is removed"


def test_lightning_alone_rounds(saved):
    """The reason for the callback: once Lightning converts first, it can go."""
    state = torch.load(saved, weights_only=True)["state_dict"]
    module = Module()
    test(saved, module)
    assert not torch.equal(module.first.weight, state["first.weight"])
    assert torch.equal(module.first.weight, state["first.weight"].float().double())
