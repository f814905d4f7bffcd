"""All checks, one after the other, inside a real trainer that stops before its first training step."""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from zoo.callbacks.state_snapshot import StateSnapshot
from zoo.diagnosis.behaviour_checks import BEHAVIOUR
from zoo.diagnosis.data_checks import DATA
from zoo.diagnosis.gradient_checks import GRADIENTS
from zoo.diagnosis.learning_checks import LEARNING
from zoo.diagnosis.output_checks import OUTPUTS
from zoo.diagnosis.probe import Probe
from zoo.diagnosis.report import Finding, Report, Skip
from zoo.diagnosis.sequence_checks import SEQUENCES

CHECKS = {**OUTPUTS, **DATA, **GRADIENTS, **BEHAVIOUR, **SEQUENCES, **LEARNING}


def diagnose(
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    *,
    batches: int = 2,
    overfit_steps: int = 200,
    device: str = "cpu",
) -> Report:
    """Check a module and its data for what goes wrong before training; both are left as they were.

    Args:
        module: any LightningModule.
        datamodule: its data.
        batches: training batches to look at.
        overfit_steps: optimizer steps in which the model should overfit one batch.
        device: ``cpu``, ``cuda`` or another accelerator of Lightning.
    """
    with _quiet():
        trainer = L.Trainer(
            max_epochs=10,
            accelerator="gpu" if device.startswith("cuda") else device,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    return run(trainer, module, datamodule, batches=batches, overfit_steps=overfit_steps)


def run(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    *,
    batches: int = 2,
    overfit_steps: int = 200,
) -> Report:
    """Diagnose with a trainer that exists: its precision, clipping and schedule count; its callbacks are not called.

    Args:
        trainer: on one process, neither used before nor to be used afterwards.
        module: any LightningModule.
        datamodule: its data.
        batches: training batches to look at.
        overfit_steps: optimizer steps in which the model should overfit one batch.
    """
    if batches < 1 or overfit_steps < 20:
        raise ValueError(f"batches={batches} and overfit_steps={overfit_steps}: at least 1 and 20 are needed")
    if trainer.world_size > 1:
        raise ValueError(f"a diagnosis runs on one process, the trainer has {trainer.world_size}: use devices=1")
    start, snapshot, check_runner = time.monotonic(), StateSnapshot(), _CheckRunner(batches, overfit_steps)
    snapshot.add(module)
    for container in (vars(datamodule), vars(trainer)):
        snapshot.add(container, deep=False)
    with isolate_rng(), _quiet():
        trainer.callbacks, trainer.loggers = [check_runner], []  # type: ignore[attr-defined]
        trainer.num_sanity_val_steps, trainer.accumulate_grad_batches = 0, 1  # type: ignore[attr-defined]
        try:
            trainer.fit(module, datamodule=datamodule)
        except _Done:
            pass
        finally:
            snapshot.restore()
    if check_runner.interrupted:
        raise KeyboardInterrupt
    if not check_runner.findings:
        raise ValueError(f"{type(datamodule).__name__} gives no training batch")
    return Report(type(module).__name__, type(datamodule).__name__, check_runner.findings, time.monotonic() - start)


class _Done(Exception):
    """Ends the fit before its first step, without the hooks of an ordinary end."""


class _CheckRunner(L.Callback):
    def __init__(self, batches: int, overfit_steps: int) -> None:
        self.batches, self.overfit_steps = batches, overfit_steps
        self.findings: list[Finding] = []
        self.probe: Probe | None = None
        self.interrupted = False

    # Not earlier: only now have all the hooks run that a module may prepare its training in.
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        probe = self.probe = Probe(trainer, pl_module, trainer.datamodule, self.batches, self.overfit_steps)
        try:
            for name, check in CHECKS.items():
                try:
                    result = check(probe)
                except Skip as reason:
                    result = Finding("skipped", str(reason))
                except Exception as problem:  # a module that does something unforeseen: say so and go on
                    result = Finding("skipped", f"the check failed: {type(problem).__name__}: {problem}")
                finally:
                    probe.restore()
                self.findings += [replace(f, name=name) for f in (result if isinstance(result, list) else [result])]
        except KeyboardInterrupt:  # which Lightning would turn into an exit
            self.interrupted = True
        finally:
            probe.close()
        raise _Done

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.probe is not None:
            self.probe.record_gradients(optimizer)


@contextmanager
def _quiet():
    """Without Lightning's hints, which are about a training that does not take place."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
