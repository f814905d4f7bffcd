"""Combinations of options: what is warned of, and what may stay."""

import pytest
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Timer

from zoo.callbacks import EMA, BestAndLast, EarlyStopping, FineTuning, NaNGuard
from zoo.callbacks.phases import Phase
from zoo.cli.validation import (
    LAUNCHER_VARIABLES,
    check_callbacks,
    check_processes,
    check_trainer,
    is_untrained,
    warn_of_untrained,
)
from zoo.errors import UserError

SLOTS = {"ema": (EMA, ""), "early_stopping": (EarlyStopping, ""), "checkpoint": (BestAndLast, "")}


def model(path: str = "zoo.models.ResNetClassifier", **init) -> Namespace:
    return Namespace(model=Namespace(class_path=path, init_args=Namespace(**init)))


def test_two_callbacks_of_one_class_may_differ():
    check_callbacks({"early_stopping": EarlyStopping("val/loss")}, [EarlyStopping("val/f1"), Timer(), Timer()], SLOTS)
    check_callbacks({"ema": EMA()}, [NaNGuard()], SLOTS)
    with pytest.raises(UserError, match=r"EarlyStopping is both in --early_stopping and in trainer\.callbacks"):
        check_callbacks({"early_stopping": EarlyStopping("val/loss")}, [EarlyStopping("val/loss")], SLOTS)
    with pytest.raises(UserError, match=r"EMA is twice in trainer\.callbacks"):
        check_callbacks({"ema": None}, [EMA(), EMA(0.9)], SLOTS)
    with pytest.raises(UserError, match="both in --checkpoint and"):
        check_callbacks({}, [BestAndLast()], SLOTS)


def test_numbers_that_a_trainer_can_take():
    check_trainer(Namespace(accumulate_grad_batches=4, gradient_clip_val=None))
    check_trainer(Namespace(accumulate_grad_batches=1, gradient_clip_val=0.0))


def test_what_may_have_been_trained():
    assert is_untrained(model(weights=None))
    assert is_untrained(model("zoo.tasks.Classifier", net=Namespace(class_path="torch.nn.Linear")))
    assert not is_untrained(model(weights="letters.ckpt"))
    assert not is_untrained(Namespace(ckpt_path="best.ckpt", **vars(model())))
    assert not is_untrained(model("zoo.tasks.Classifier", net=Namespace(class_path="mine.Pretrained")))


def test_a_warning_of_layers_that_know_nothing(recwarn):
    head, plan = FineTuning([Phase(train="head")]), FineTuning([Phase(until="1 epochs"), Phase(train="head")])
    warn_of_untrained(model(weights=None), [None, plan])
    warn_of_untrained(model(weights="letters.ckpt"), [head])
    warn_of_untrained(model("mine.Net"), [head])
    warn_of_untrained(Namespace(ckpt_path="last.ckpt", **vars(model(weights=None))), [head])
    warn_of_untrained(model(teacher=None, teacher_checkpoint="t.ckpt"), [])
    assert [str(w.message) for w in recwarn] == []
    with pytest.warns(UserWarning, match="frozen layers are untrained: give --model.weights"):
        warn_of_untrained(model(weights=None), [head])
    with pytest.warns(UserWarning, match="teacher is untrained: give --model.teacher_checkpoint"):
        warn_of_untrained(model(teacher=Namespace(class_path="zoo.models.MLP"), teacher_checkpoint=None), [])


@pytest.mark.parametrize(
    ("trainer", "data", "text"),
    [
        (
            {"num_nodes": 3},
            {},
            r"^--trainer.num_nodes is 3, but nothing says which of the machines this is: .*torchrun",
        ),
        ({}, {"num_workers": 9999999}, r"^--data.num_workers is 9999999: with \d+ CPU cores at most \d+ processes"),
        ({"accelerator": "cpu", "devices": "9999"}, {}, r"^--trainer.devices is 9999: with \d+ CPU cores"),
    ],
)
def test_processes_that_will_not_come_are_refused(trainer, data, text, monkeypatch):
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    config = Namespace(trainer=Namespace(trainer), data=Namespace(init_args=Namespace(data)))
    with pytest.raises(UserError, match=text):
        check_processes(config)


def test_processes_of_a_launcher_are_taken(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "somewhere")
    check_processes(Namespace(trainer=Namespace(num_nodes=3, devices="auto"), data=None))
    check_processes(Namespace(trainer=Namespace(devices=[0, 1]), data=Namespace(init_args=Namespace(num_workers=8))))
