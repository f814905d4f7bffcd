"""``zoo predict``: write the predictions of a checkpoint to a file."""

from __future__ import annotations

from typing import Any

name = "predict"
help = "write the predictions of a checkpoint to a file"
needs_trainer = True


def add_arguments(parser: Any) -> None:
    from zoo.cli.common_options import add_evaluation_options, hide_options_of_lightning

    add_evaluation_options(parser)
    hide_options_of_lightning(parser, "return_predictions")
    parser.add_argument("--out", type=str | None, default=None, help="file for the predictions, .csv or .jsonl")


def trainer_arguments(cli: Any) -> dict[str, Any]:
    from zoo.callbacks import PredictionWriter

    if not cli.config.out:
        return {}
    return {"callbacks": [PredictionWriter(cli.config.out)]}


def run(cli: Any) -> None:
    from zoo.callbacks import PredictionWriter
    from zoo.cli.evaluation import warn_if_untrained
    from zoo.distributed import is_main_process
    from zoo.errors import UserError

    out = cli.config.out
    if out is None:
        raise UserError("predict needs a file to write to: --out predictions.csv (or .jsonl)")
    warn_if_untrained(cli)
    cli.trainer.predict(
        cli.model,
        datamodule=cli.datamodule,
        ckpt_path=cli.config.ckpt_path,
        weights_only=True,
        return_predictions=False,
    )
    if not is_main_process():
        return
    for callback in cli.trainer.callbacks:
        if isinstance(callback, PredictionWriter):
            print(f"{callback.rows} predictions in {out}")
