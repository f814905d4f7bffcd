"""Tests of ``ImageSamples``: unsupported options fail before training, prompts are used in turn, logging."""

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
    ("options", "more", "message"),
    [
        ({"sampler": "nonsense"}, {}, "sampler must be one of ddpm, .* got 'nonsense'"),
        ({"steps": 2000}, {}, "steps must be 1 to 1000"),
        ({"guidance_scale": 2.0}, {"condition": "none"}, "needs a conditional model, and this one has no condition"),
        ({"texts": ["a"]}, {}, r"texts need a text-conditional model; this one has condition: class"),
    ],
)
def test_unsupported_options_fail_before_training(options, more, message, tmp_path):
    """And not only at the first plot, after ten epochs here."""
    module = LatentDiffusion(**SMALL, **more)
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, module, ImageSamples(every_n_validations=10, dirpath=str(tmp_path), **options))
    assert module.trainer.global_step == 0


class PromptRecorder(L.LightningModule):
    """Records the prompts of each call of ``sample``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.prompts: list[list[str] | None] = []

    def sample(self, n: int, texts: list[str] | None = None, **_: object) -> torch.Tensor:
        self.prompts.append(texts)
        return torch.rand(n, 1, 8, 8)

    def training_step(self, batch: object, i: int) -> STEP_OUTPUT:
        return self.weight.sum()

    def validation_step(self, batch: object, i: int) -> STEP_OUTPUT:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_prompts_are_used_in_turn(tmp_path):
    module = PromptRecorder()
    fit(tmp_path, module, ImageSamples(n=5, texts=["a", "b"], dirpath=str(tmp_path)))
    assert module.prompts == [["a"], ["a", "b", "a", "b", "a"]]
    module = PromptRecorder()
    fit(tmp_path, module, ImageSamples(n=5, texts=[], dirpath=str(tmp_path)))
    assert module.prompts == [None, None]


def test_fast_dev_run_writes_no_plot(tmp_path, monkeypatch):
    """Under fast_dev_run there is no run folder, so the file would be written to the current folder."""
    monkeypatch.chdir(tmp_path)
    module = PromptRecorder()
    fit(tmp_path, module, ImageSamples(texts=["a", "b"]), fast_dev_run=True)
    assert module.prompts == [["a"]]
    assert not list(tmp_path.iterdir())


def test_figure_is_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(tmp_path, PromptRecorder(), ImageSamples(n=2), logger=logger)
    assert (tmp_path / "samples.png").is_file()
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Images("samples")] == [1]
