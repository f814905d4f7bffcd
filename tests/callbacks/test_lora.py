"""The callback LoRA: only the adapter is trained, saved and averaged, and a resumed run equals an uninterrupted one."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.adapters import load_adapter
from zoo.callbacks import EMA, FineTuning, LoRA
from zoo.errors import UserError

BATCHES = 4


class Module(L.LightningModule):
    """Somebody else's module, whose batches depend on their number alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02, weight_decay=0.1)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        torch.manual_seed(100 * self.current_epoch + batch_idx)
        x = torch.randn(16, 6)
        return nn.functional.cross_entropy(self(x), (x[:, 0] > 0).long())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(BATCHES, 1))


def fit(folder, module, callbacks, epochs=2, **options):
    saver = ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=epochs, callbacks=[*callbacks, saver], **quiet)
    trainer.fit(module, **options)
    return trainer


def lora(**options):
    return LoRA(rank=2, alpha=4.0, target="stem.0", modules_to_save="head", dropout=0.1, **options)


TRAINED = {"stem.0.lora_A", "stem.0.lora_B", "head.weight", "head.bias"}


def read(path):
    return torch.load(path, weights_only=True)


def test_only_the_adapter_is_trained_saved_and_optimized(tmp_path):
    module = Module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = fit(tmp_path, module, [lora()])
    after = module.state_dict()
    assert {name for name in after if name not in before or not torch.equal(after[name], before[name])} == TRAINED
    checkpoint = read(tmp_path / "epoch=1.ckpt")
    assert set(checkpoint["state_dict"]) == TRAINED
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for name, p in module.named_parameters() if name in TRAINED}
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(TRAINED)
    assert checkpoint["adapter"]["layers"] == {"stem.0": []}


def with_ema():
    return [lora(), EMA(decay=0.5)]


def with_fine_tuning():
    return [lora(), FineTuning([{"until": "5 steps", "train": "head"}, {"train": "all", "lr_scale": 0.5}])]


@pytest.mark.parametrize("callbacks", [lambda: [lora()], lambda: [lora(dora=True)], with_ema, with_fine_tuning])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, callbacks):
    whole = fit(tmp_path / "whole", Module(), callbacks(), epochs=3)
    fit(tmp_path / "part", Module(), callbacks(), epochs=1)
    resumed = fit(tmp_path / "part", Module(), callbacks(), epochs=3, ckpt_path=tmp_path / "part" / "epoch=0.ckpt")
    first = read(tmp_path / "whole" / "epoch=2.ckpt")
    second = read(tmp_path / "part" / "epoch=2.ckpt")
    for key in ("state_dict", "raw_params", "ema_params"):
        assert first.get(key, {}).keys() == second.get(key, {}).keys()
        for name, value in first.get(key, {}).items():
            assert torch.equal(value, second[key][name]), name
    states = [content["optimizer_states"][0]["state"] for content in (first, second)]
    for index, state in states[0].items():
        assert all(torch.equal(value, states[1][index][name]) for name, value in state.items())
    for name, value in whole.lightning_module.state_dict().items():
        assert torch.equal(value, resumed.lightning_module.state_dict()[name])


def test_ema_averages_the_adapter_alone(tmp_path):
    fit(tmp_path, Module(), with_ema())
    assert set(read(tmp_path / "epoch=1.ckpt")["ema_params"]) == TRAINED


def test_fine_tuning_phases_the_adapter_and_the_base_stays_frozen(tmp_path):
    module = Module()
    before = module.stem[0].weight.clone()
    fit(tmp_path, module, with_fine_tuning(), epochs=1)  # 4 steps, all in the first phase
    assert torch.equal(module.stem[0].lora_B, torch.zeros(8, 2))
    assert not torch.equal(module.head.weight, Module().head.weight)
    fit(tmp_path, module, with_fine_tuning(), epochs=2)
    assert not torch.equal(module.stem[0].lora_B, torch.zeros(8, 2))
    assert torch.equal(module.stem[0].weight, before)


def test_an_adapter_is_loaded_into_its_base_alone(tmp_path):
    module = Module()
    fit(tmp_path, module, [lora()])
    x = torch.randn(5, 6)
    fresh = Module().eval()
    load_adapter(fresh, tmp_path / "epoch=1.ckpt")
    assert torch.allclose(fresh(x), module.eval()(x), atol=1e-6)
    other = Module()
    other.stem[0].weight.data += 1e-3
    with pytest.raises(UserError, match="adapter of other base weights"):
        load_adapter(other, tmp_path / "epoch=1.ckpt")
    with pytest.raises(UserError, match="adapter of other base weights"):
        fit(tmp_path / "again", other, [lora()], epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")


def test_a_whole_checkpoint_is_no_adapter(tmp_path):
    fit(tmp_path, Module(), [])
    with pytest.raises(UserError, match=r"lora\.base"):
        fit(tmp_path / "again", Module(), [lora()], epochs=3, ckpt_path=tmp_path / "epoch=1.ckpt")
    with pytest.raises(UserError, match="holds no adapter"):
        load_adapter(Module(), tmp_path / "epoch=1.ckpt")


def test_a_layer_that_is_not_called_is_named(tmp_path):
    class ReadsWeight(Module):
        def forward(self, x: Tensor) -> Tensor:
            stem = nn.functional.linear(x, self.stem[0].weight, self.stem[0].bias)
            return self.head(self.stem[1:](stem))

    with pytest.warns(UserWarning, match=r"1 layers have no gradient.*stem\.0"):
        fit(tmp_path, ReadsWeight(), [lora()], epochs=1)


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}])
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LoRA(**options)


def test_an_optimizer_of_a_task_holds_the_adapter_alone():
    from zoo.models import MLPClassifier
    from zoo.optim import ParamGroupRule

    module = MLPClassifier(hidden=[8], input_dim=6, num_classes=3, param_groups=[ParamGroupRule("bias", lr_scale=2.0)])
    partial(LoRA, rank=2)().apply(module)
    optimizer = module.configure_optimizers()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in params} == {id(p) for p in module.parameters() if p.requires_grad}
