"""Classes by their name in Python, as the documentation of configs writes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.callbacks import FineTuning
from zoo.callbacks.phases import Phase
from zoo.models import MLPClassifier
from zoo.optim import Lion, WarmupCosine
from zoo.tasks.by_name import loss_module, optimizer_class, schedule_class

SIZES = {"input_dim": 4, "num_classes": 3}


def test_optimizer_schedule_and_loss_of_a_module_by_name():
    module = MLPClassifier(**SIZES, optimizer="SGD", lr_scheduler="WarmupCosine", loss="CrossEntropyLoss")
    assert module.optimizer is torch.optim.SGD
    assert module.lr_scheduler is WarmupCosine
    assert isinstance(module.loss, nn.CrossEntropyLoss)
    assert module.hparams["loss"] == "CrossEntropyLoss", "a plain value, which a checkpoint keeps"
    assert optimizer_class("Lion") is Lion
    assert schedule_class("StepLR") is torch.optim.lr_scheduler.StepLR
    assert isinstance(loss_module("FocalLoss"), nn.Module)
    assert optimizer_class(None) is None


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ({"optimizer": "Adamw"}, r"optimizer='Adamw': .* in zoo.optim or torch.optim: did you mean 'AdamW'\?"),
        ({"lr_scheduler": "Cosine"}, r"lr_scheduler='Cosine': there is no such class"),
        ({"loss": "Linear2"}, r"loss='Linear2': there is no such class in zoo.losses or torch.nn"),
        ({"optimizer": "functional"}, r"optimizer='functional'"),
    ],
)
def test_an_unknown_name_is_one_line(argument, text):
    with pytest.raises(ValueError, match=text):
        MLPClassifier(**SIZES, **argument)


def test_phases_of_fine_tuning_as_in_a_config():
    plan = [{"until": "2 epochs", "train": "head"}, {"train": "all", "lr_scale": 0.1}]
    assert FineTuning(plan=plan).plan == [Phase("2 epochs", "head"), Phase(None, "all", 0.1)]
