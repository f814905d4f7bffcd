"""Pictures of what a model makes: mistakes told before training, texts one after the other, the logger's copy."""

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT

from zoo.callbacks import ImageSamples
from zoo.data import Digits
from zoo.models import LatentDiffusion

SMALL = {
    "preset": "pixels-8",
    "channels": [16, 32],
    "head_dim": 16,
    "in_channels": 1,
    "image_size": 8,
    "num_classes": 10,
}


def fit(folder, module: L.LightningModule, *callbacks: L.Callback, **kwargs) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        enable_checkpointing=False, limit_train_batches=1, limit_val_batches=1, callbacks=list(callbacks),
        **{"logger": False, **kwargs},
    )  # fmt: skip
    trainer.fit(module, Digits(mean=[0.5], std=[0.5]))
    return trainer


@pytest.mark.parametrize(
    ("options", "more", "said"),
    [
        ({"sampler": "nonsense"}, {}, "sampler='nonsense': there are ddpm"),
        ({"steps": 2000}, {}, "a sampler takes 1 to 1000 steps"),
        ({"guidance_scale": 2.0}, {"condition": "none"}, "this model has no condition, so it cannot be guided"),
        ({"texts": ["a"]}, {}, r"this model reads no texts \(condition: class\)"),
    ],
)
def test_a_wish_that_cannot_be_met_is_told_before_training(options, more, said, tmp_path):
    """Not when the first picture is due, after ten epochs here."""
    module = LatentDiffusion(**SMALL, **more)
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, module, ImageSamples(every_n_validations=10, dirpath=str(tmp_path), **options))
    assert module.trainer.global_step == 0


class Reads(L.LightningModule):
    """Tells which texts it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.told: list[list[str] | None] = []

    def sample(self, n: int, texts: list[str] | None = None, **_: object) -> torch.Tensor:
        self.told.append(texts)
        return torch.rand(n, 1, 8, 8)

    def training_step(self, batch: object, i: int) -> STEP_OUTPUT:
        return self.weight.sum()

    def validation_step(self, batch: object, i: int) -> STEP_OUTPUT:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_texts_one_after_the_other(tmp_path):
    module = Reads()
    fit(tmp_path, module, ImageSamples(n=5, texts=["a", "b"], dirpath=str(tmp_path)))
    assert module.told == [["a"], ["a", "b", "a", "b", "a"]]
    module = Reads()
    fit(tmp_path, module, ImageSamples(n=5, texts=[], dirpath=str(tmp_path)))
    assert module.told == [None, None]


def test_a_try_leaves_no_picture(tmp_path, monkeypatch):
    """Under fast_dev_run there is no run folder, so it would lie in the current one."""
    monkeypatch.chdir(tmp_path)
    module = Reads()
    fit(tmp_path, module, ImageSamples(texts=["a", "b"]), fast_dev_run=True)
    assert module.told == [["a"]]
    assert not list(tmp_path.iterdir())


def test_the_logger_has_the_picture_too(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(tmp_path, Reads(), ImageSamples(n=2), logger=logger)
    assert (tmp_path / "samples.png").is_file()
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Images("samples")] == [1]
