"""What the commands ``validate``, ``test`` and ``predict`` share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from zoo.checkpoints import Checkpoint
from zoo.cli.lightning_cli import ZooCLI
from zoo.cli.report import print_metrics, print_samples_per_class
from zoo.cli.run_data import describe_data
from zoo.cli.validation import has_weights
from zoo.distributed import is_main_process


def evaluation_callbacks(cli: ZooCLI) -> list[Any]:
    """Return the callbacks that ``validate`` and ``test`` take from the config."""
    metrics = cli.config_init.get("generation_metrics")
    return [metrics] if metrics else []


def evaluate(cli: ZooCLI, loop: Callable[..., Any]) -> list[dict[str, float]]:
    """Compute the metrics of a checkpoint, print and return them.

    Args:
        cli: with model, data and trainer.
        loop: ``validate`` or ``test`` of the trainer.
    """
    warn_if_untrained(cli)
    results = loop(
        cli.model,
        datamodule=cli.datamodule,
        ckpt_path=cli.config.ckpt_path,
        weights_only=True,
        verbose=False,
    )
    print_metrics(results, cli.model)
    print_data(cli)
    print_samples_per_class(cli.trainer)
    return results


def print_data(cli: ZooCLI) -> None:
    """Print which files the data come from, and whether they are those of the training."""
    if not is_main_process():
        return
    checkpoint = cli.config.ckpt_path
    for line in describe_data(Checkpoint(checkpoint) if checkpoint else None, cli.data_fingerprint):
        print(f"  data: {line}")


def warn_if_untrained(cli: ZooCLI) -> None:
    """Print that a model without a checkpoint is as it was built."""
    if not has_weights(cli.config) and is_main_process():
        print(f"zoo: no --ckpt_path: {cli.model_name} is untrained", file=sys.stderr)
