"""Every callback of Lightning can be configured, and the config of its run saved and read again."""

from __future__ import annotations

import inspect

import lightning.pytorch.callbacks as callbacks
import pytest
import yaml
from jsonargparse import Namespace

from zoo.cli.commands import load_command
from zoo.cli.lightning_cli import ZooCLI, make_plain

ARGUMENTS = {
    "BackboneFinetuning": {},
    "BatchSizeFinder": {},
    "EarlyStopping": {"monitor": "val/loss"},
    "GradientAccumulationScheduler": {"scheduling": {2: 4}},
    "LearningRateFinder": {},
    "ModelPruning": {"pruning_fn": "l1_unstructured", "amount": 0.5},
    "OnExceptionCheckpoint": {"dirpath": "kept"},
    "StochasticWeightAveraging": {"swa_lrs": 0.01},
    "Timer": {"duration": "00:00:10:00"},
}
# Bases, and what takes functions, which configs cannot hold.
LEFT_OUT = {"BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "LambdaCallback", "ProgressBar"}
LEFT_OUT |= {"ThroughputMonitor"}
NAMES = sorted(
    name
    for name, cls in vars(callbacks).items()
    if inspect.isclass(cls) and issubclass(cls, callbacks.Callback) and name not in LEFT_OUT
)


@pytest.fixture(scope="module")
def cli():
    fit = ["--model", "MLPClassifier", "--data", "Digits", "--trainer.fast_dev_run", "true"]
    return ZooCLI(load_command("fit"), fit)


@pytest.mark.parametrize("name", NAMES)
def test_a_callback_is_configured_saved_and_read_again(name, cli, tmp_path):
    given = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": ARGUMENTS.get(name, {})}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [given]}}))
    for again in (False, True):
        cli.config = cli.parser.parse_args([*cli.argv, "-c", str(tmp_path / ("two.yaml" if again else "one.yaml"))])
        make_plain(cli.config)
        saved = cli.dump_config()
        (tmp_path / "two.yaml").write_text(yaml.safe_dump(saved))
        trainer = Namespace()
        for key, value in cli.config.items():
            if key.startswith("trainer."):
                trainer[key] = value
        (built,) = cli.parser.instantiate_classes(trainer).trainer.callbacks
        assert type(built).__name__ == name
