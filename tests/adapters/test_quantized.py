"""Quantized base weights, and the 8-bit optimizer: exact after a resume, and one line where the package is absent."""

import importlib

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.adapters import AdapterRecord, add_adapter, choose_layers, load_adapter, merge_adapter
from zoo.adapters.quantized import PACKAGES
from zoo.callbacks import LoRA
from zoo.errors import UserError
from zoo.optim import AdamW8bit, build_optimizer


class Module(L.LightningModule):
    def __init__(self, optimizer=torch.optim.AdamW) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))
        self.head = nn.Linear(64, 4)
        self.optimizer = optimizer

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=0.01)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        torch.manual_seed(100 * self.current_epoch + batch_idx)
        x = torch.randn(16, 64)
        return nn.functional.cross_entropy(self(x), (4 * x[:, 0].sigmoid()).long())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(4, 1))


def fit(folder, module, callbacks, epochs, **options):
    saver = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    L.Trainer(max_epochs=epochs, callbacks=[*callbacks, saver], **quiet).fit(module, **options)
    return torch.load(folder / f"epoch={epochs - 1}.ckpt", weights_only=True)


def check_resume(tmp_path, build, callbacks):
    whole = fit(tmp_path / "whole", build(), callbacks(), 3)
    fit(tmp_path / "part", build(), callbacks(), 1)
    resumed = fit(tmp_path / "part", build(), callbacks(), 3, ckpt_path=tmp_path / "part" / "epoch=0.ckpt")
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    return whole


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_quantized_base_is_trained_resumed_and_its_adapter_fits_the_whole_base(tmp_path, kind):
    pytest.importorskip(PACKAGES[kind])
    last = check_resume(tmp_path, Module, lambda: [LoRA(rank=4, quantize=kind)])
    assert all("lora_" in name for name in last["state_dict"])
    module = Module()
    LoRA(rank=4, quantize=kind).apply(module)
    x = torch.randn(8, 64)
    quantized = module(x)
    whole = Module()(x)
    difference = (quantized - whole).norm() / whole.norm()
    assert 0 < difference < {"nf4": 0.2, "int8": 0.02}[kind]
    with pytest.raises(UserError, match="load the adapter into the base as it was"):
        merge_adapter(module)
    fresh = Module()
    load_adapter(fresh, tmp_path / "whole" / "epoch=2.ckpt")
    assert not torch.equal(fresh(x), whole)


def test_8bit_adamw_resumes_exactly_and_has_one_byte_a_moment(tmp_path):
    pytest.importorskip("bitsandbytes")
    last = check_resume(tmp_path, lambda: Module(AdamW8bit), list)
    (weight, *_) = last["optimizer_states"][0]["state"].values()
    moments = weight["__bnb_optimizer_quant_state__"]
    assert moments["state1"].dtype == moments["state2"].dtype == torch.uint8


def absent(name, *args, **options):
    raise ImportError(name)


@pytest.mark.parametrize("kind", PACKAGES)
def test_absent_packages_are_one_line(monkeypatch, kind):
    monkeypatch.setattr(importlib, "import_module", absent)
    net = Module()
    record = AdapterRecord(2, 4.0, choose_layers(net, "all-linear"))
    with pytest.raises(UserError, match=rf"lora\.quantize {kind} needs the package {PACKAGES[kind]}"):
        add_adapter(net, record, quantization=kind)
    with pytest.raises(UserError, match="AdamW8bit needs the package bitsandbytes"):
        build_optimizer(net, AdamW8bit, 1e-3)


def test_dora_of_quantized_weights_is_refused():
    net = Module()
    record = AdapterRecord(2, 4.0, choose_layers(net, "all-linear"), dora=True)
    with pytest.raises(UserError, match="does not go with quantize"):
        add_adapter(net, record, quantization="nf4")
