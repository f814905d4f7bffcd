"""Diagnosis: all checks in order, within a real trainer that stops before its first training step."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from zoo.callbacks.state_snapshot import StateSnapshot
from zoo.diagnosis.behaviour_checks import BEHAVIOUR
from zoo.diagnosis.data_checks import DATA
from zoo.diagnosis.failures import failure_of_preparation, first_line
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
    """Check a module and its data for common faults before training; both are left unchanged.

    Args:
        module: any LightningModule.
        datamodule: its data.
        batches: number of training batches to check.
        overfit_steps: optimizer steps in which the model should overfit one batch.
        device: ``cpu``, ``cuda`` or another accelerator of Lightning.
    """
    accelerator = "gpu" if device.startswith("cuda") else device
    with _quiet():
        trainer = L.Trainer(
            max_epochs=10,
            accelerator=accelerator,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    return run(
        trainer,
        module,
        datamodule,
        batches=batches,
        overfit_steps=overfit_steps,
    )


def run(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: L.LightningDataModule,
    *,
    batches: int = 2,
    overfit_steps: int = 200,
) -> Report:
    """Diagnose with an existing trainer: its precision, clipping and schedule are used, its callbacks are not called.

    Args:
        trainer: a trainer on one process, neither used before nor to be used afterwards.
        module: any LightningModule.
        datamodule: its data.
        batches: number of training batches to check.
        overfit_steps: optimizer steps in which the model should overfit one batch.
    """
    if batches < 1 or overfit_steps < 20:
        raise ValueError(f"batches={batches}, overfit_steps={overfit_steps}: must be at least 1 and 20")
    if trainer.world_size > 1:
        raise ValueError(f"a diagnosis runs on one process, but the trainer has {trainer.world_size}: use devices=1")
    start = time.monotonic()
    snapshot = StateSnapshot()
    snapshot.add(module)
    for container in (vars(datamodule), vars(trainer)):
        snapshot.add(container, deep=False)
    runner = _CheckRunner(batches, overfit_steps)
    with isolate_rng(), _quiet():
        _prepare(trainer, runner)
        try:
            trainer.fit(module, datamodule=datamodule)
        except _Done:
            pass
        except Exception as error:
            # Before any check: the module or its data failed in a hook.
            failure = failure_of_preparation(error, module, datamodule)
            if failure is None:
                raise
            runner.findings = [failure]
        finally:
            snapshot.restore()
    if runner.interrupted:
        raise KeyboardInterrupt
    if not runner.findings:
        raise ValueError(f"{type(datamodule).__name__} yields no training batch")
    return Report(
        module=type(module).__name__,
        data=type(datamodule).__name__,
        findings=runner.findings,
        seconds=time.monotonic() - start,
    )


def _prepare(trainer: Any, runner: _CheckRunner) -> None:
    """Make the runner the only callback of a trainer without loggers, sanity check and gradient accumulation."""
    trainer.callbacks = [runner]
    trainer.loggers = []
    trainer.num_sanity_val_steps = 0
    trainer.accumulate_grad_batches = 1


class _Done(Exception):
    """Ends the fit before its first step, without the hooks of a regular end."""


class _CheckRunner(L.Callback):
    def __init__(self, batches: int, overfit_steps: int) -> None:
        self.batches = batches
        self.overfit_steps = overfit_steps
        self.findings: list[Finding] = []
        self.probe: Probe | None = None
        self.interrupted = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # Not in an earlier hook: only now have all hooks run in which a module may prepare its training.
        probe = Probe(trainer, pl_module, trainer.datamodule, self.batches, self.overfit_steps)
        self.probe = probe
        try:
            for name in CHECKS:
                self.findings += self._run_check(name, probe)
        except KeyboardInterrupt:
            # Lightning would turn it into an exit.
            self.interrupted = True
        finally:
            probe.close()
        raise _Done

    def _run_check(self, name: str, probe: Probe) -> list[Finding]:
        """Return the findings of a check, under its name."""
        try:
            result = CHECKS[name](probe)
        except Skip as reason:
            result = Finding("skipped", str(reason))
        except Exception as problem:
            result = self._failed_check(problem)
        finally:
            probe.restore()
        findings = result if isinstance(result, list) else [result]
        return [replace(finding, name=name) for finding in findings]

    def _failed_check(self, problem: Exception) -> Finding:
        """Return the finding for a check that raised: what it did not check may be wrong, so it is an error."""
        message = f"the check failed: {first_line(problem)}"
        if any(finding.status == "error" for finding in self.findings):
            # A consequence of that error, as a rule.
            return Finding("skipped", f"{message}; repair the errors above first")
        return Finding(
            "error",
            f"{message}; nothing is known about this point",
            "if the module can handle every batch of its data, in training and in eval mode, this is a bug of zoo",
        )

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.probe is not None:
            self.probe.record_gradients(optimizer)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without Lightning's hints and warnings, which refer to a training that does not take place."""
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
