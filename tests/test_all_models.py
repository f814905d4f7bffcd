"""One sweep over every exported LightningModule: it learns, reloads, keeps samples apart, keeps its keys."""

import inspect

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

import zoo.models
from zoo.tasks import Classifier, Regressor

FACTS = {"num_classes": 3, "input_dim": 12, "in_channels": 1, "image_size": 8, "output_dim": 2}
MODULES = [
    c
    for c in (getattr(zoo.models, n) for n in zoo.models.__all__)
    if inspect.isclass(c) and issubclass(c, L.LightningModule)
]
pytestmark = pytest.mark.parametrize("cls", MODULES, ids=lambda c: c.__name__)


def make(cls, **kwargs) -> L.LightningModule:
    torch.manual_seed(0)
    return cls(**{k: v for k, v in FACTS.items() if k in inspect.signature(cls).parameters}, **kwargs)


def batch(cls, n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = "in_channels" in inspect.signature(cls).parameters
    x = torch.randn(n, *([1, 8, 8] if images else [12]), generator=generator)
    y = torch.randint(0, 3, (n,), generator=generator)
    return x, (y if issubclass(cls, Classifier) else torch.randn(n, 2, generator=generator))


def fit(module: L.LightningModule, data, folder, epochs: int = 60, **kwargs) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **kwargs,
    )  # fmt: skip
    trainer.fit(module, DataLoader([data], batch_size=None))
    return trainer


def test_loss_falls_on_one_batch(cls, tmp_path):
    module, data = make(cls, lr=0.1 if "Scratch" in cls.__name__ else 1e-2), batch(cls)

    def loss() -> float:
        with torch.no_grad():
            return float(module.eval().step(data, "val"))

    before = loss()
    fit(module, data, tmp_path)
    assert loss() < before / 3


def test_state_reloads_with_weights_only(cls, tmp_path):
    module, data = make(cls), batch(cls)
    trainer = fit(module, data, tmp_path, epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert FACTS.items() >= {k: v for k, v in saved["hyper_parameters"].items() if k in FACTS}.items()
    again = cls.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    module.eval(), again.eval()
    assert torch.equal(module(data[0]), again(data[0]))


def test_samples_of_a_batch_do_not_mix(cls):
    module, (x, _) = make(cls).eval(), batch(cls)
    x.requires_grad_()
    module(x)[0].sum().backward()
    moved = x.grad.flatten(1).abs().sum(1)
    assert moved[0] > 0
    assert moved[1:].max() == 0


def test_compile_keeps_the_keys(cls):
    module = make(cls)
    keys, (x, _) = list(module.state_dict()), batch(cls)
    expected = module.eval()(x)
    module.net.compile(backend="aot_eager")
    assert list(module.state_dict()) == keys
    assert torch.allclose(module(x), expected, atol=1e-6)


def test_network_knows_nothing_of_lightning(cls):
    assert not isinstance(make(cls).net, L.LightningModule)
    assert issubclass(cls, (Classifier, Regressor))


def test_missing_fact_is_named(cls):
    facts = [k for k in FACTS if k in inspect.signature(cls).parameters]
    with pytest.raises(ValueError, match=f"{cls.__name__} needs {facts[0]}|needs"):
        cls()
