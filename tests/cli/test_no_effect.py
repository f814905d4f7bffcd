"""Options that cannot act are named before training, or refused."""

from __future__ import annotations

import re

import pytest

from zoo.data import Digits

FIT = ["fit", "--model", "MLPClassifier", "--data", "Digits", "--data.batch_size", "256", "--trainer.max_epochs", "2"]
# 5 steps an epoch

# Options, and what the line before training says.
LINES = {
    "--trainer.limit_val_batches 0 --early_stopping.patience 1": (
        "early stopping has no effect: it watches val/loss, and this run has no validation: "
        "trainer.limit_val_batches is 0"
    ),
    "--trainer.check_val_every_n_epoch 3 --early_stopping EarlyStopping": (
        "early stopping has no effect: it watches val/loss, and this run has no validation: "
        "trainer.check_val_every_n_epoch is 3, and trainer.max_epochs is 2"
    ),
    "--trainer.max_steps 4 --early_stopping EarlyStopping": (
        "early stopping has no effect: it watches val/loss, and this run has no validation: "
        "it ends after 4 batches, before the first one"
    ),
    "--early_stopping.patience 2": "its patience is 2 validations, and this run has 2 in all",
    "--trainer.limit_val_batches 0 --checkpoint.monitor val/loss": "checkpoint.monitor has no effect: it is val/loss",
    "--ema.start_step 10": "EMA has no effect: start_step is 10, and this run has 10 steps",
    "--ema.every_n_steps 11": "EMA has no effect: every_n_steps is 11, and this run has 10 steps",
    "--gradients.every_n_steps 11": "GradientDiagnostics has no effect: every_n_steps is 11, and this run has 10 steps",
    "--trainer.accumulate_grad_batches 6": "accumulate_grad_batches is 6, but an epoch has 5 batches and",
    "--trainer.gradient_clip_algorithm norm": "gradient_clip_algorithm has no effect without trainer.gradient_clip_val",
    "--trainer.min_epochs 3": "trainer.min_epochs has no effect: it is 3, and trainer.max_epochs is 2",
    "--trainer.enable_checkpointing false": "trainer.enable_checkpointing false has no effect",
    "--trainer.logger false": "trainer.logger false has no effect",
}
# Options that are refused.
REFUSED = {
    "--trainer.limit_val_batches 0 --model.lr_scheduler ReduceLROnPlateau": (
        "the learning rate is to fall by val/loss, but this run has no validation: trainer.limit_val_batches is 0"
    ),
    "--trainer.default_root_dir x": "--run_dir DIR is the folder of a run",
    "--resume x --run_dir y": "--run_dir has no effect with --resume",
    "--resume x --ckpt_path CKPT": "--ckpt_path has no effect with --resume",
    "--ckpt_path CKPT --model.lr 0.5": "--model.lr would change nothing: training goes on with the optimizer of",
    "--ckpt_path CKPT --model.optimizer SGD": "--model.optimizer would change nothing",
}


@pytest.fixture
def checkpoint(zoo) -> str:
    assert zoo(*FIT, "--run_dir", "x")[0] == 0
    return "x/checkpoints/last.ckpt"


@pytest.mark.parametrize("options", LINES)
def test_a_line_before_training(options, zoo, here):
    with pytest.warns(UserWarning, match=re.escape(LINES[options])):
        code, _, err = zoo(*FIT, *options.split())
    assert code == 0, err


@pytest.mark.parametrize("options", REFUSED)
def test_a_mistake_is_refused_in_one_line(options, zoo, checkpoint):
    code, _, err = zoo(*FIT, "--trainer.max_epochs", 4, *options.replace("CKPT", checkpoint).split())
    assert code == 2
    assert err.splitlines()[-1].startswith("zoo: error: ")
    assert REFUSED[options] in err.splitlines()[-1]


def test_a_checkpoint_with_the_same_optimizer_goes_on(zoo, checkpoint, recwarn):
    code, _, err = zoo(*FIT, "--trainer.max_epochs", 3, "--ckpt_path", checkpoint, "--lr_finder", "LRFinder")
    assert code == 0, err
    assert [w for w in recwarn if "lr_finder has no effect with --ckpt_path" in str(w.message)]


def test_options_of_training_in_a_test(zoo, checkpoint):
    options = ["--trainer.max_epochs", "3", "--ema.decay=0.5"]
    with pytest.warns(UserWarning, match=r"no effect in zoo test: --trainer.max_epochs, --ema.decay$"):
        assert zoo("test", "--ckpt_path", checkpoint, *options)[0] == 0
    code, _, err = zoo("test", "--model", "MLPClassifier", "--data", Digits.__name__, "--weights", "ema")
    assert (code, err) == (
        2,
        "zoo: error: --weights chooses between those in a checkpoint: give --ckpt_path FILE, too\n",
    )


def test_an_ordinary_run_says_nothing(zoo, here, recwarn):
    options = ["--ema.start_step", 9, "--early_stopping.patience", 1, "--trainer.accumulate_grad_batches", 5]
    assert zoo(*FIT, "--trainer.max_epochs", 10, *options)[0] == 0
    assert not [warning for warning in recwarn if "effect" in str(warning.message)]
