"""The arithmetic that all tasks share: averaging, logging, schedules, what is saved."""

import copy
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn

from zoo.data import Digits, Quadrants
from zoo.models import MLPClassifier, MLPRegressor
from zoo.optim import WarmupCosine
from zoo.tasks import Classifier, Regressor

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def train(module, data, folder, **kwargs) -> L.Trainer:
    trainer = L.Trainer(accelerator="cpu", default_root_dir=folder, **(QUIET | kwargs))
    trainer.fit(module, data)
    return trainer


class Gradients(L.Callback):
    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append([p.grad.clone() for p in module.parameters()])


@pytest.mark.parametrize("samples", [1000, 1037])
def test_accumulating_four_batches_equals_a_batch_four_times_as_large(tmp_path, samples):
    """FIELD: gradient accumulation, the last partial window. 1037 leaves a window of 2 batches, one of them short."""
    torch.manual_seed(0)
    first = MLPClassifier(hidden=[16], input_dim=2, num_classes=4)
    found = []
    for batch, windows in ((64, 4), (256, 1)):
        gradients = Gradients()
        data = Quadrants(samples=samples, batch_size=batch)
        train(copy.deepcopy(first), data, tmp_path, max_epochs=2, precision="64-true",
              accumulate_grad_batches=windows, callbacks=[gradients])  # fmt: skip
        found.append(gradients.steps)
    assert len(found[0]) == len(found[1])
    for small, large in zip(*found, strict=True):
        for a, b in zip(small, large, strict=True):
            assert (a - b).abs().max() < 1e-12


def test_plain_lightning_still_gets_the_partial_window_wrong(tmp_path):
    class Plain(MLPClassifier):
        def training_step(self, batch, batch_idx):
            return self.step(batch, "train")

        def on_after_backward(self):
            pass

    torch.manual_seed(0)
    first = Plain(hidden=[16], input_dim=2, num_classes=4)
    found = []
    for batch, windows in ((64, 4), (256, 1)):
        gradients = Gradients()
        data = Quadrants(samples=1037, batch_size=batch)
        train(copy.deepcopy(first), data, tmp_path, max_epochs=1, precision="64-true",
              accumulate_grad_batches=windows, callbacks=[gradients])  # fmt: skip
        found.append(gradients.steps)
    last = [(a - b).abs().max() for a, b in zip(found[0][-1], found[1][-1], strict=True)]
    assert max(last) > 1e-3, "Lightning 2.6.6 divides a window of 2 by 4"


def test_training_loss_is_the_mean_over_samples(tmp_path):
    class Recorder(MLPClassifier):
        seen: list = []

        def step(self, batch, stage):
            loss = super().step(batch, stage)
            if stage == "train":
                self.seen.append((float(loss), len(batch[1])))
            return loss

    Recorder.seen = []
    module = Recorder(hidden=[8], input_dim=2, num_classes=4)
    trainer = train(module, Quadrants(batch_size=96), tmp_path, max_epochs=1)
    expected = sum(loss * n for loss, n in module.seen) / sum(n for _, n in module.seen)
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(expected, rel=1e-6)
    assert len({n for _, n in module.seen}) == 2, "the last batch is of another size"


def test_training_loss_is_logged_where_lightning_logs(tmp_path):
    from zoo.runs.loggers import MetricsCSV

    logger = MetricsCSV(tmp_path)
    module = MLPClassifier(hidden=[8], input_dim=2, num_classes=4)
    train(module, Quadrants(batch_size=50), tmp_path, max_epochs=2, logger=logger, log_every_n_steps=5)
    steps = [r["step"] for r in logger.rows if r.get("train/loss")]
    assert steps == [4, 9, 14, 15, 19, 24, 29, 31]


@pytest.mark.parametrize(("windows", "limit", "total"), [(1, 1.0, 48), (4, 1.0, 12), (5, 1.0, 12), (1, 7, 21)])
def test_total_of_a_schedule_is_found(tmp_path, windows, limit, total):
    module = MLPClassifier(hidden=[8], input_dim=2, num_classes=4, lr_scheduler=partial(WarmupCosine, warmup=3))
    rates = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    train(module, Quadrants(batch_size=50), tmp_path, max_epochs=3, accumulate_grad_batches=windows,
          limit_train_batches=limit, callbacks=[Rates()])  # fmt: skip
    schedule = WarmupCosine(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3), total_steps=total, warmup=3)
    assert len(rates) == total
    assert rates == pytest.approx([1e-3 * schedule.factor(s) for s in range(total)], rel=1e-12)


def test_schedule_without_an_end_is_refused(tmp_path):
    module = MLPClassifier(hidden=[8], input_dim=2, num_classes=4, lr_scheduler=WarmupCosine)
    with pytest.raises(ValueError, match=r"give --trainer.max_epochs or --trainer.max_steps"):
        train(module, Quadrants(), tmp_path, max_epochs=-1)


def test_networks_losses_and_optimizers_are_no_hyperparameters(tmp_path):
    module = Classifier(nn.Linear(2, 4), num_classes=4, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, lr=0.1)
    assert (module.hparams["num_classes"], module.hparams["lr"]) == (4, 0.1)
    assert {"net", "loss", "optimizer"}.isdisjoint(module.hparams)
    trainer = train(module, Quadrants(), tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["hyper_parameters"] == dict(module.hparams)
    again = Classifier.load_from_checkpoint(tmp_path / "a.ckpt", net=nn.Linear(2, 4), loss=nn.CrossEntropyLoss())
    assert torch.equal(again.net.weight, module.net.weight)
    assert (again.num_classes, again.lr) == (4, 0.1)


def test_anybodys_net(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    trainer = train(Classifier(net=net, num_classes=10, lr=1e-2), Digits(), tmp_path, max_epochs=3)
    assert trainer.callback_metrics["val/accuracy"] > 0.8


class Odd(L.LightningDataModule):
    """Three evaluation batches of uneven size, any task."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def val_dataloader(self):
        return torch.utils.data.DataLoader([(self.x[i], self.y[i]) for i in range(len(self.x))], batch_size=7)

    test_dataloader = val_dataloader


def evaluate(module, x, y, folder) -> dict[str, float]:
    trainer = L.Trainer(accelerator="cpu", default_root_dir=folder, **QUIET)
    return trainer.validate(module, Odd(x, y), verbose=False)[0]


def test_multiclass_metrics(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(19, 8), torch.randint(0, 8, (19,))
    out = evaluate(Classifier(nn.Identity(), num_classes=8), x, y, tmp_path)
    assert out["val/accuracy"] == pytest.approx((x.argmax(1) == y).float().mean().item())
    assert out["val/loss"] == pytest.approx(nn.functional.cross_entropy(x, y).item(), rel=1e-5)
    assert out["val/top5"] == pytest.approx((x.topk(5).indices == y[:, None]).any(1).float().mean().item())
    assert set(out) == {"val/accuracy", "val/loss", "val/top5", "val/f1", "val/auroc"}


@pytest.mark.parametrize("width", [1, 2])
def test_binary_metrics(tmp_path, width):
    from sklearn.metrics import f1_score, roc_auc_score

    torch.manual_seed(0)
    x, y = torch.randn(19, width), torch.randint(0, 2, (19,))
    logit = x[:, 0] if width == 1 else x[:, 1] - x[:, 0]
    out = evaluate(Classifier(nn.Identity(), num_classes=2, task="binary"), x, y, tmp_path)
    expected = nn.functional.binary_cross_entropy_with_logits(logit, y.float())
    assert out["val/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert out["val/auroc"] == pytest.approx(roc_auc_score(y, logit), rel=1e-5)
    assert out["val/f1"] == pytest.approx(f1_score(y, logit > 0, average="macro"), rel=1e-5)
    assert out["val/accuracy"] == pytest.approx(((logit > 0) == y).float().mean().item())


def test_multilabel_metrics(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(19, 3), torch.randint(0, 2, (19, 3))
    module = Classifier(nn.Identity(), num_classes=3, task="multilabel")
    out = evaluate(module, x, y, tmp_path)
    assert out["val/accuracy"] == pytest.approx(((x > 0) == y).float().mean().item(), rel=1e-5)
    columns = module.predict_step((x,), 0)
    assert columns["class"] == [(row > 0).nonzero().flatten().tolist() for row in x]


def test_regression_metrics_are_in_the_targets_units(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(19, 1)
    y = 50 + 10 * x[:, 0] + torch.randn(19)
    out = evaluate(Regressor(nn.Identity(), target_mean=50.0, target_std=10.0), x, y, tmp_path)
    predicted = 50 + 10 * x[:, 0]
    assert out["val/mae"] == pytest.approx((predicted - y).abs().mean().item(), rel=1e-4)
    assert out["val/rmse"] == pytest.approx((predicted - y).square().mean().sqrt().item(), rel=1e-4)
    assert out["val/r2"] == pytest.approx(
        1 - ((predicted - y) ** 2).sum().item() / ((y - y.mean()) ** 2).sum().item(), rel=1e-4
    )
    assert out["val/loss"] == pytest.approx(((predicted - y) / 10).square().mean().item(), rel=1e-4)


def test_confusion_matrix_after_a_test(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(19, 3), torch.randint(0, 3, (19,))
    module = Classifier(nn.Identity(), num_classes=3)
    assert module.confusion_matrix is None
    L.Trainer(accelerator="cpu", default_root_dir=tmp_path, **QUIET).test(module, Odd(x, y), verbose=False)
    expected = torch.zeros(3, 3, dtype=torch.long)
    for truth, guess in zip(y, x.argmax(1), strict=True):
        expected[truth, guess] += 1
    assert torch.equal(module.confusion_matrix, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classifier(nn.Linear(2, 2), num_classes=3, task="binary"), "a binary task has 2 classes"),
        (lambda: Classifier(nn.Linear(2, 2), num_classes=2, class_names=["a"]), "1 class_names for num_classes=2"),
        (lambda: Classifier(nn.Linear(2, 2)), "Classifier needs num_classes"),
        (lambda: Classifier(nn.Linear(2, 2), num_classes=2, lr=-1), "lr must be above 0, got -1"),
        (lambda: Regressor(nn.Linear(2, 1), target_std=0.0), "target_std must be above 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("width", "label", "message"),
    [
        (4, 4, "label 4 is out of range: num_classes=4 allows labels from 0 to 3"),
        (4, -1, "label -1 is out of range"),
        (5, 0, r"outputs of shape \(3, 5\) do not fit num_classes=4"),
    ],
)
def test_wrong_labels_and_widths_are_said_in_words(width, label, message):
    with pytest.raises(ValueError, match=message):
        Classifier(nn.Linear(2, width), num_classes=4).step((torch.randn(3, 2), torch.tensor([0, 1, label])), "train")


def test_regressor_counts_targets():
    module = MLPRegressor(hidden=[4], input_dim=3, output_dim=2)
    with pytest.raises(ValueError, match="the network predicts 2 numbers per sample, but the data has 1 targets"):
        module.step((torch.randn(5, 3), torch.randn(5)), "train")
