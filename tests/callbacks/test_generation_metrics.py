"""GenerationMetrics: real and collapsed samples, training that does not change, the command line, two processes."""

import re
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.types import STEP_OUTPUT

from tests.conftest import ROOT
from zoo.callbacks import EMA, BestAndLast, GenerationMetrics
from zoo.cli import main
from zoo.data import Digits
from zoo.metrics import ClassifierFeatures, FrechetDistance
from zoo.models import LatentDiffusion

SMALL = {"preset": "pixels-8", "channels": [16, 32], "head_dim": 16}
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1"]


def fit(folder: Path, config: str, *more: str) -> str:
    assert main(["fit", "-c", str(ROOT / f"configs/{config}.yaml"), "--run_dir", str(folder / config), *more]) == 0
    return str(folder / config / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> str:
    """A small classifier of digits that has learned them."""
    more = ["--model.stages", "[[16],[32]]", "--model.lr", "1e-2", "--trainer.max_epochs", "4"]
    return fit(tmp_path_factory.mktemp("judge"), "small_cnn_digits", *more)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A diffusion model of digits, hardly trained."""
    more = ["--model.channels", "[16,32]", "--model.head_dim", "16", "--trainer.callbacks", "[]"]
    return fit(tmp_path_factory.mktemp("model"), "diffusion_digits", *SHORT, *more)


class Copies(L.LightningModule):
    """Makes training images of the classes asked for, or of one class whatever is asked for."""

    def __init__(self, only: int | None = None, classes: int | None = 10) -> None:
        super().__init__()
        self.only, self.num_classes = only, classes
        self.class_names = Digits.class_names
        self.weight = torch.nn.Parameter(torch.zeros(1))
        data = Digits(mean=[0.0], std=[1.0])
        self.images, self.labels = data.datasets["train"].batch(torch.arange(1200))

    def sample(self, n: int, seed: int, labels: list[int] | None = None, **_: object) -> torch.Tensor:
        targets = [i % 10 for i in range(n)] if labels is None else labels
        of = [self.images[self.labels == (c if self.only is None else self.only)] for c in range(10)]
        return torch.stack([of[c][i // 10 % len(of[c])] for i, c in enumerate(targets)])

    def validation_step(self, batch: object, i: int) -> STEP_OUTPUT:
        return None

    test_step = validation_step


def trainer(folder, *callbacks: L.Callback, epochs: int = 1, **kwargs) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder,
        enable_model_summary=False, callbacks=list(callbacks), **{"enable_checkpointing": False, **kwargs},
    )  # fmt: skip


def measured(folder, judge, module: L.LightningModule, **options) -> tuple[dict[str, float], GenerationMetrics]:
    callback = GenerationMetrics(judge, **options)
    return trainer(folder, callback).validate(module, Digits(), verbose=False)[0], callback


def test_real_images_score_well_and_a_collapsed_model_does_not(judge, tmp_path):
    near, callback = measured(tmp_path, judge, Copies(), n=400)
    assert set(near) == {"val/frechet_distance", "val/precision", "val/recall", "val/sample_accuracy",
                         "val/sample_accuracy_worst"}  # fmt: skip
    assert callback.confusion.sum(1).tolist() == [40] * 10
    assert near["val/sample_accuracy"] > 0.9
    assert min(near["val/precision"], near["val/recall"]) > 0.8
    far, callback = measured(tmp_path, judge, Copies(only=3), n=400)
    assert far["val/sample_accuracy"] < 0.2
    assert far["val/sample_accuracy_worst"] == 0
    assert callback.confusion.sum(0)[3] > 300
    assert far["val/precision"] > 0.8
    assert far["val/recall"] < 0.3
    assert far["val/frechet_distance"] > 20 * near["val/frechet_distance"]
    unasked, _ = measured(tmp_path, judge, Copies(classes=None), n=100)
    assert unasked["val/sample_classes"] == 10
    assert "val/sample_accuracy" not in unasked


def test_metrics_equal_a_computation_by_hand(judge, tmp_path):
    torch.manual_seed(0)
    module = LatentDiffusion(**SMALL, in_channels=1, image_size=8, num_classes=10)
    found, _ = measured(tmp_path, judge, module, n=60, steps=2, guidance_scale=1.5, seed=3, batch_size=25)
    features = ClassifierFeatures.load(judge)
    generated, logits = features(module.sample(60, steps=2, guidance_scale=1.5, seed=3))
    real, _ = features(Digits()._parts["val"][0] / 16)
    distance = FrechetDistance(real.shape[1])
    distance.update(real, True)
    distance.update(generated, False)
    assert found["val/frechet_distance"] == pytest.approx(float(distance.compute()), rel=1e-4)
    right = (logits.argmax(1) == torch.arange(60) % 10).float().mean()
    assert found["val/sample_accuracy"] == pytest.approx(float(right), abs=1e-6)


def test_training_is_unchanged_and_checkpoints_can_monitor_it(judge, tmp_path):
    weights, seen = [], []
    for measures in (False, True):
        torch.manual_seed(0)
        module = LatentDiffusion(**SMALL, in_channels=1, image_size=8, num_classes=10, dropout=0.1, lr=3e-3)
        L.seed_everything(0)
        own = [GenerationMetrics(judge, n=30, steps=2)] if measures else []
        best = BestAndLast("val/frechet_distance" if measures else None, dirpath=str(tmp_path / str(measures)))
        average, limits = EMA(0.5), {"limit_train_batches": 3, "limit_val_batches": 1, "enable_checkpointing": True}
        run = trainer(tmp_path, *own, average, best, epochs=2, **limits)
        run.fit(module, Digits(mean=[0.5], std=[0.5]))
        weights.append([p.detach().clone() for p in module.parameters()])
        seen.append((best, run.callback_metrics))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    best, logged = seen[1]
    assert best.best_path is not None
    assert best.mode == "min"
    assert best.best is not None
    assert best.best <= float(logged["val/frechet_distance"])


def test_every_second_validation(judge, tmp_path, monkeypatch):
    times = []
    monkeypatch.setattr(
        GenerationMetrics, "compute", lambda self, trainer, *_: times.append(trainer.current_epoch) or {}
    )
    module = LatentDiffusion(**SMALL, in_channels=1, image_size=8, num_classes=10)
    callback = GenerationMetrics(judge, every_n_validations=2)
    limits = {"limit_train_batches": 1, "limit_val_batches": 1}
    trainer(tmp_path, callback, epochs=5, **limits).fit(module, Digits())
    assert times == [1, 3]
    assert callback.state_dict() == {"validations": 5}


def test_unsupported_options_fail_before_training(judge, tmp_path):
    module = LatentDiffusion(**SMALL, in_channels=1, image_size=8, num_classes=10)
    with pytest.raises(ValueError, match=r"sampler must be one of ddpm, .* got 'x'"):
        trainer(tmp_path, GenerationMetrics(judge, every_n_validations=10, sampler="x")).fit(module, Digits())
    assert module.trainer.global_step == 0
    blind = ClassifierFeatures(torch.nn.Flatten(), [0.5], [0.5])
    with pytest.raises(ValueError, match="has no linear layer at its end"):
        trainer(tmp_path, GenerationMetrics(blind, every_n_validations=10, steps=2)).fit(module, Digits())
    assert module.trainer.global_step == 0


def numbers(out: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^\s+(\w+/\w+)\s+(\S+)$", out, re.MULTILINE)}


def test_one_command_measures_a_checkpoint_on_two_processes_too(judge, model, zoo, here):
    options = [
        "--generation_metrics.classifier",
        judge,
        "--generation_metrics.n",
        "40",
        "--generation_metrics.steps",
        "3",
    ]
    code, out, err = zoo("test", "--ckpt_path", model, *options, "--generation_metrics.guidance_scale", "1.5")
    assert (code, err) == (0, "")
    assert re.search(r"generated images by predicted class: 0: \d+, 1: \d+", out)
    assert {"test/frechet_distance", "test/recall", "test/sample_accuracy", "test/loss"} <= set(numbers(out))
    alone = zoo("validate", "--ckpt_path", model, *options)[1]
    two = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    code, out, err = zoo("validate", "--ckpt_path", model, *options, *two)
    assert code == 0, err
    assert numbers(out) == pytest.approx(numbers(alone), rel=1e-3)
    assert len(numbers(out)) == 10


def test_noise_levels_without_samples_on_one_process(model, zoo):
    few = ["validate", "--ckpt_path", model, "--trainer.limit_val_batches", "1", "--data.eval_batch_size"]
    alone = numbers(zoo(*few, "4")[1])
    two = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    code, out, err = zoo(*few, "2", *two)
    assert code == 0, err
    assert len(alone) == 5
    assert numbers(out) == pytest.approx(alone, rel=1e-3)


def test_two_processes_train_with_it(judge, zoo):
    more = ["--model.channels", "[16,32]", "--model.head_dim", "16", "--trainer.callbacks", "[]"]
    options = [
        "--generation_metrics.classifier",
        judge,
        "--generation_metrics.n",
        "9",
        "--generation_metrics.steps",
        "2",
    ]
    two = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    decides = ["--checkpoint.monitor", "val/recall"]
    code, out, err = zoo("fit", "-c", "configs/diffusion_digits.yaml", *SHORT, *more, *options, *two, *decides)
    assert code == 0, err
    assert re.search(r"val/frechet_distance +\d", out)
    saved = torch.load("runs/diffusion_digits/1/checkpoints/best.ckpt", weights_only=True)["callbacks"]
    assert saved["BestAndLast"]["monitor"] == "val/recall"
    assert 0 <= saved["BestAndLast"]["best"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--generation_metrics.classifier nowhere.ckpt", "no classifier nowhere.ckpt"),
        ("--generation_metrics.classifier MODEL", "it holds a LatentDiffusion, which is not a multi-class classifier"),
        ("--generation_metrics.inception nowhere.pth", "no weights of Inception nowhere.pth"),
        (
            "--generation_metrics.n 5",
            "GenerationMetrics needs a classifier (a checkpoint of zoo) or inception (a file)",
        ),
        (
            "--generation_metrics.classifier JUDGE --generation_metrics.n 0",
            "n, every_n_validations and batch_size must be at least 1: got n=0",
        ),
        ("--generation_metrics.classifier JUDGE --generation_metrics.n 1", "less than n: got neighbors=3, n=1"),
        (
            "--generation_metrics.classifier JUDGE --generation_metrics.neighbors 0",
            "neighbors must be at least 1 and less than n",
        ),
    ],
)
def test_mistakes_on_the_command_line(options, message, judge, model, zoo):
    names = {"JUDGE": judge, "MODEL": model}
    code, out, err = zoo("test", "--ckpt_path", model, *[names.get(word, word) for word in options.split()])
    assert (code, out) == (2, "")
    assert err.startswith("zoo: error: ")
    assert len(err.splitlines()) == 1
    assert message in err


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"num_classes": 7}, "has 10 classes, but the model generates 7"),
        ({"class_names": list("abcdefghij")}, "has a class '0' where the model generates 'a'"),
        ({"image_size": 16}, "takes images of 8 x 8 pixels and 1 channel, got 16 x 16"),
        ({"in_channels": 3}, "got 8 x 8 pixels and 3 channels"),
    ],
)
def test_a_classifier_of_other_images(spec, message, judge, tmp_path):
    module = LatentDiffusion(**{**SMALL, "in_channels": 1, "image_size": 8, "num_classes": 10, **spec})
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, GenerationMetrics(judge)).validate(module, Digits(), verbose=False)


def test_mistakes_in_python(judge, tmp_path):
    with pytest.raises(ValueError, match="needs a model that generates images, and BoringModel has no sample"):
        trainer(tmp_path, GenerationMetrics(judge)).validate(BoringModel())
    module = LatentDiffusion(**SMALL, in_channels=1, image_size=8, num_classes=10)
    callbacks = [GenerationMetrics(judge, every_n_validations=2), BestAndLast("val/recall", dirpath=str(tmp_path))]
    with pytest.raises(
        ValueError, match=r"monitor is 'val/recall', which needs GenerationMetrics with every_n_validations: 1"
    ):
        trainer(tmp_path, *callbacks, enable_checkpointing=True).fit(module, Digits())
