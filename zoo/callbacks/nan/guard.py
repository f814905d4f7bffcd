"""NaNGuard: stop training before a non-finite value reaches the weights, and name the operation that produced it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from zoo._lightning import step_arguments
from zoo._torch import map_tensors
from zoo.callbacks.fail_safe import FailSafeCallback, fail_safe
from zoo.callbacks.nan.advice import format_report
from zoo.callbacks.nan.attribution import blame_update, names_of_bad_gradients, unexplained
from zoo.callbacks.nan.buffer_copies import BufferCopies
from zoo.callbacks.nan.replay import find_producer, random_state, set_random_state, side_effect_free_step
from zoo.callbacks.nan.tensors import batch_length, dense_local, is_finite, to_containers
from zoo.callbacks.nan.trace import Finding, check_output
from zoo.callbacks.output_folder import output_folder
from zoo.files import atomic_file, write_text


class NonFiniteError(RuntimeError):
    """Training produced NaN or infinity; the message names the origin."""


def all_finite(loss: Tensor, gradients: list[Tensor]) -> Tensor:
    """Return whether the loss and all gradients are finite, without synchronising with the device.

    Args:
        loss: the loss.
        gradients: the gradients; a sum that overflows makes the result false although each value is finite.
    """
    loss = dense_local(loss)
    if loss.ndim:
        loss = loss.sum()
    dense: list[Tensor] = []
    for gradient in gradients:
        plain = type(gradient) is Tensor and gradient.layout is torch.strided
        dense.append(gradient if plain else dense_local(gradient))
    if loss.device.type != "cpu":
        norm = torch.nn.utils.get_total_norm(dense)
        return torch.isfinite(loss + norm.to(loss.device))
    # Both read the memory once, but on a CPU sums run in parallel and norms do not.
    return torch.isfinite(torch.stack([loss, *(gradient.sum() for gradient in dense)]).sum())


class NaNGuard(FailSafeCallback, L.Callback):
    """Stop before a non-finite loss or gradient reaches the weights, and name the operation that produced it.

    The batch is replayed under observation of every operation. Writes ``nan_report.json`` and ``nan_batch.pt`` to the
    run folder; logs no keys. Weights and buffers keep their values from before the step. Infinite gradients under a
    GradScaler are left to the scaler until its scale falls below 1. An error of the guard itself switches it off with
    a warning and does not end the training.

    Args:
        action: ``raise`` a NonFiniteError, or ``skip`` the batch with a warning and continue.
        always_on: also check the output of every module in every step, which names the module even if the replay does
            not reproduce the value; 5 to 20 % slower on a CPU, and one synchronisation per module on a GPU.
        every_n_batches: batches between two checks; with more than 1, non-finite values may reach the weights.
        save_batch: save the batch next to the report.
        dirpath: folder for both files; null for the logger's, or else the trainer's ``default_root_dir``.
        patience: number of consecutive skipped batches after which ``skip`` raises, too.
    """

    def __init__(
        self,
        action: Literal["raise", "skip"] = "raise",
        always_on: bool = False,
        every_n_batches: int = 1,
        save_batch: bool = True,
        dirpath: str | Path | None = None,
        patience: int = 10,
    ) -> None:
        if action not in ("raise", "skip"):
            raise ValueError(f"NaNGuard: action must be 'raise' or 'skip', got {action!r}")
        if every_n_batches < 1 or patience < 1:
            raise ValueError(
                f"NaNGuard: every_n_batches and patience must be at least 1, got {every_n_batches} and {patience}"
            )
        self.action = action
        self.always_on = always_on
        self.every_n_batches = every_n_batches
        self.save_batch = save_batch
        self.dirpath = dirpath
        self.patience = patience
        self.skipped = 0
        self._folder = Path()
        self._hooks: list[Any] = []
        self._buffers: BufferCopies | None = None
        self._batch: Any = None
        self._batch_idx = 0
        self._loss: Tensor | None = None
        self._random: dict[str, Any] = {}
        self._output_finding: Finding | None = None
        self._checking = False
        self._skip_step = False
        self._stepped = False
        self._consecutive_skips = 0

    # Start and end of a run -------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Last of all callbacks, so that the random state is copied after others have changed it before a batch. In a
        # new list, because the trainer is iterating over the old one.
        if stage == "fit":
            callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
            others = [callback for callback in callbacks if callback is not self]
            trainer.callbacks = [*others, self]  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise ValueError(
                "NaNGuard needs automatic optimization: with manual optimization it cannot stop before the optimizer"
                " step"
            )
        self.switched_off = False
        self._begin(trainer, pl_module)

    @fail_safe()
    def _begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._folder = output_folder(trainer, self.dirpath)  # a collective call: log_dir is sent to all ranks
        self._buffers = BufferCopies(module)
        self._consecutive_skips = 0
        self._skip_step = False
        self._stepped = False
        self._checking = False
        self._output_finding = None
        if self.always_on:
            for path, part in module.named_modules():
                self._hooks.append(part.register_forward_hook(self._output_hook(trainer, path)))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.release()

    def release(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        # The data of the run must not be kept alive.
        self._batch = None
        self._loss = None
        self._skip_step = False

    # A batch ----------------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._checking = trainer.fit_loop.epoch_loop.total_batch_idx % self.every_n_batches == 0
        if self._checking:
            self._prepare(pl_module, batch, batch_idx)

    @fail_safe()
    def _prepare(self, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what a replay of the step needs."""
        self._batch = batch
        self._batch_idx = batch_idx
        self._output_finding = None
        self._random = random_state(module.device)
        assert self._buffers is not None
        self._buffers.update()

    @fail_safe()
    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    @torch.no_grad()
    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._checking:
            return
        # With several processes all take part in the collective calls, also one whose guard has switched itself off.
        if trainer.world_size == 1 and self._loss is None:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # With such a scale, overflowing gradients are left to the scaler.
        scaled = scaler is not None and scaler.get_scale() >= 1
        if self._reduce(trainer, self._sum_is_finite(trainer, scaled), "min"):
            self._consecutive_skips = 0
            return
        # The sum of finite values may have overflowed: check them one by one.
        if not self._reduce(trainer, self._each_is_finite(trainer, scaled), "min"):
            self._handle(trainer, pl_module, scaled)

    @fail_safe()
    def _sum_is_finite(self, trainer: L.Trainer, scaled: bool) -> Tensor | None:
        if self._loss is None:
            return None
        return all_finite(self._loss, self._gradients(trainer, scaled))

    @fail_safe()
    def _each_is_finite(self, trainer: L.Trainer, scaled: bool) -> Tensor | None:
        if self._loss is None:
            return None
        tensors = [self._loss, *self._gradients(trainer, scaled)]
        return torch.tensor(all(is_finite(tensor) for tensor in tensors))

    def _gradients(self, trainer: L.Trainer, scaled: bool) -> list[Tensor]:
        """Return the gradients that the optimizers get; none if they are left to a scaler."""
        gradients: list[Tensor] = []
        if scaled:
            return gradients
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    # Read once: building the attribute costs time with many parameters.
                    gradient = weight.grad
                    if gradient is not None:
                        gradients.append(gradient)
        return gradients

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if self._skip_step:
            pl_module.zero_grad(set_to_none=True)
        else:
            self._stepped = True
        self._skip_step = False

    def on_train_batch_end(self, *args: Any) -> None:
        self._batch = None
        self._loss = None

    # A non-finite value -----------------------------------------------------------------------------------------------

    def _handle(self, trainer: L.Trainer, module: L.LightningModule, scaled: bool) -> None:
        """Report a non-finite value; raise or skip the step. All ranks take part."""
        finding, remark = self._find(trainer, module, scaled)
        # The lowest rank with a finding reports it; all ranks stop once its files are written.
        no_rank = trainer.world_size
        rank = no_rank if finding is None else trainer.global_rank
        reporting_rank = self._reduce(trainer, torch.tensor(rank), "min")
        if reporting_rank == no_rank and scaled:
            return  # the scaled loss overflowed, not the loss
        reporting_rank %= no_rank
        text = f"Rank {reporting_rank} produced a non-finite value; its report is in {self._folder}."
        if trainer.global_rank == reporting_rank:
            text = self._report(trainer, module, finding, remark)
        trainer.strategy.barrier("nan_guard")
        self._consecutive_skips += 1
        self.skipped += 1
        if self.action == "raise" or self._consecutive_skips >= self.patience:
            raise NonFiniteError(text)
        rank_zero_warn(f"NaNGuard skips this step. {text}")
        # A scaler skips the step by itself.
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            self._skip_step = True
            module.zero_grad(set_to_none=True)  # optimizers ignore weights without a gradient

    def _find(self, trainer: L.Trainer, module: L.LightningModule, scaled: bool) -> tuple[Finding | None, str]:
        """Return the finding on this step, or None and a remark."""
        output_finding = self._output_finding  # before the replay, which triggers the same hooks
        if self._loss is None:
            return None, "NaNGuard is off on this rank."
        try:
            finding, remark = self._replay(trainer, module, scaled)
            finding = finding or output_finding
            if finding is not None and finding.kind == "weight":
                blame_update(trainer, module, finding, updated=self._stepped and self.every_n_batches == 1)
        except Exception as error:
            return output_finding, f"The replay failed with {type(error).__name__}: {error}."
        return finding, remark

    def _report(self, trainer: L.Trainer, module: L.LightningModule, finding: Finding | None, remark: str) -> str:
        """Write the report; return it as text, also where a part of it fails."""
        try:
            assert self._loss is not None
            bad_gradients = names_of_bad_gradients(module)
            if finding is None:
                finding = unexplained(module, self._loss, bad_gradients, remark)
            return self._write(trainer, finding, bad_gradients)
        except Exception as error:
            return (
                f"Step {trainer.global_step} produced a non-finite loss or gradient. {remark} Its report failed with"
                f" {type(error).__name__}: {error}."
            )

    def _replay(self, trainer: L.Trainer, module: L.LightningModule, scaled: bool) -> tuple[Finding | None, str]:
        arguments = step_arguments(module, self._batch, self._batch_idx)
        backward: Callable[[Tensor], Any] = module.backward
        if scaled:
            backward = _no_backward

        def step() -> Tensor:
            output: Any = module.training_step(*arguments)
            if isinstance(output, dict):
                return output["loss"]
            return output

        assert self._buffers is not None
        with side_effect_free_step(module, self._buffers.restore), trainer.precision_plugin.train_step_context():
            set_random_state(self._random, module.device)
            return find_producer(module, self._batch, step, backward)

    def _write(self, trainer: L.Trainer, finding: Finding, bad_gradients: list[str]) -> str:
        """Write the report and the batch; return the report as text."""
        assert self._loss is not None
        loss: Any = self._loss.float().sum().item()
        if not np.isfinite(loss):
            loss = str(loss)  # JSON has no such numbers
        report = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "batch_idx": self._batch_idx,
            "batch_size": batch_length(self._batch),
            "rank": trainer.global_rank,
            "loss": loss,
            "non_finite_gradients": bad_gradients,
            **dataclasses.asdict(finding),
        }
        del report["intentional"]  # of use to the search only
        text = format_report(report)
        path = self._folder / "nan_report.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(report, indent=2, allow_nan=False) + "\n")
            if self.save_batch:
                batch = map_tensors(lambda tensor: tensor.detach().cpu().clone(), to_containers(self._batch))
                saved = {
                    "batch": batch,
                    "batch_idx": self._batch_idx,
                    "torch_rng_state": self._random["torch"],
                }
                with atomic_file(self._folder / "nan_batch.pt") as temporary:
                    torch.save(saved, temporary)
        except Exception as error:
            # A full disk or a batch that cannot be saved must not hide what was found.
            return f"{text} The report could not be written: {error}."
        return f"{text} Report: {path}."

    # Helpers ----------------------------------------------------------------------------------------------------------

    def _output_hook(self, trainer: L.Trainer, path: str) -> Any:
        @torch.compiler.disable
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._output_finding is None and trainer.training and self._checking:
                self._check_output(module, path, args, output)

        return hook

    @fail_safe()
    def _check_output(self, module: nn.Module, path: str, args: Any, output: Any) -> None:
        self._output_finding = check_output(module, path, args, output, batch_length(self._batch))

    def _reduce(self, trainer: L.Trainer, value: Tensor | None, how: str) -> int:
        """Return a value reduced over all ranks; None, from a guard that is off, counts as true."""
        if value is None:
            value = torch.tensor(True)
        if trainer.world_size == 1:
            return int(value)
        value = value.to(trainer.strategy.root_device, torch.float32)
        return int(trainer.strategy.reduce(value, reduce_op=how))


def _no_backward(loss: Tensor) -> None:
    """Take the place of the backward pass where its gradients do not matter."""
