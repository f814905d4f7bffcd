"""``zoo plan``: print parameter groups and schedules without training."""

from __future__ import annotations

from typing import Any

name = "plan"
help = "print the parameter groups and schedules of a config, without training"
needs_trainer = True


def add_arguments(parser: Any) -> None:
    pass


def run(cli: Any) -> None:
    from zoo.cli.adapters import adapter_report
    from zoo.cli.plan_report import plan_report

    tuning = cli.config_init.get("fine_tuning")
    cli.trainer.run_at_start(
        cli.model,
        cli.datamodule,
        lambda trainer, module: print(plan_report(trainer, module, tuning, adapter_report(module))),
    )
