"""``zoo diagnose``: check a model and its data before training."""

from __future__ import annotations

from typing import Any

name = "diagnose"
help = "check a model and its data for common bugs before training; exit code 1 if a check fails"
needs_trainer = True


def add_arguments(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(cli: Any) -> int:
    from zoo import diagnosis
    from zoo.errors import UserError
    from zoo.terminal import visible

    if cli.datamodule is None:
        raise UserError("diagnose needs data: give --data NAME, or a config with -c FILE")
    # The checks train by themselves and must not be watched.
    cli.trainer.callbacks.clear()
    report = diagnosis.run(cli.trainer, cli.model, cli.datamodule)
    print(report.to_json() if cli.config.json else visible(str(report)))
    return 0 if report.ok else 1
