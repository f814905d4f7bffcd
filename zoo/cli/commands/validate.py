"""``zoo validate``: compute the validation metrics of a checkpoint."""

from __future__ import annotations

from typing import Any

name = "validate"
help = "compute the validation metrics of a checkpoint"
needs_trainer = True


def add_arguments(parser: Any) -> None:
    from zoo.cli.common_options import add_evaluation_options

    add_evaluation_options(parser)


def trainer_arguments(cli: Any) -> dict[str, Any]:
    from zoo.cli.evaluation import evaluation_callbacks

    return {"callbacks": evaluation_callbacks(cli)}


def run(cli: Any) -> None:
    from zoo.cli.evaluation import evaluate

    evaluate(cli, cli.trainer.validate)
