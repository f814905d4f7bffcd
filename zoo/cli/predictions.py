"""Predictions of a command: reading sources, running the Trainer, and what is printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from zoo.callbacks import PredictionWriter
from zoo.checkpoints import Checkpoint
from zoo.cli.tables import format_cell, text_table
from zoo.data.base import DataModule
from zoo.data.sources import refuse_urls
from zoo.distributed import is_main_process
from zoo.errors import UserError
from zoo.prediction.loading import restore_data
from zoo.terminal import one_line

FAILED = 1  # exit code where samples cannot be read
MAX_LISTED = 100  # samples that cannot be read
MAX_CELL = 60  # characters


def read_sources(cli: Any) -> None:
    """Let the datamodule predict the files that the user names, by the state in the checkpoint."""
    data = cli.datamodule
    checkpoint = cli.config.ckpt_path
    if not isinstance(data, DataModule):
        kind = "no data" if data is None else f"data of the class {type(data).__name__}"
        raise UserError(f"{checkpoint} has {kind}, which reads no files to predict; datasets of zoo do")
    if checkpoint:
        restore_data(data, Checkpoint(checkpoint))
    follow_model = getattr(data, "follow_model", None)
    if follow_model is not None:
        follow_model(cli.model)
    refuse_urls(cli.config.sources)
    data.predict_samples(data.read_samples([Path(source) for source in cli.config.sources]))


def predict(cli: Any, out: str | None) -> int:
    """Run ``predict`` of the Trainer with a :class:`PredictionWriter`, print the result, and return the exit code."""
    if cli.config.get("probabilities"):
        if not hasattr(cli.model, "all_probabilities"):
            raise UserError(f"--probabilities: a {cli.model_name} predicts no classes")
        cli.model.all_probabilities = True
    cli.trainer.predict(
        cli.model,
        datamodule=cli.datamodule,
        ckpt_path=cli.config.ckpt_path,
        weights_only=True,
        return_predictions=False,
    )
    if not is_main_process():
        return 0
    writer = next(callback for callback in cli.trainer.callbacks if isinstance(callback, PredictionWriter))
    return print_result(writer, out)


def print_result(writer: PredictionWriter, out: str | None) -> int:
    """Print what was written, or the first rows; list samples that cannot be read, and return the exit code."""
    for sample, why in writer.failed[:MAX_LISTED]:
        print(f"zoo: {one_line(sample)} cannot be read: {one_line(why)}", file=sys.stderr)
    if len(writer.failed) > MAX_LISTED:
        print(f"zoo: and {len(writer.failed) - MAX_LISTED:,} more", file=sys.stderr)
    if not writer.rows and writer.failed:
        raise UserError(f"none of the {len(writer.failed)} samples can be read")
    if not writer.rows:  # processes that were forked have written them
        if out is None:
            raise UserError("the predictions were made by forked processes, which print nothing: give --out FILE.csv")
        print(f"predictions in {out}")
    elif out is not None:
        print(f"{writer.rows} predictions in {out}")
    else:
        print(table(writer.shown))
        if writer.rows > len(writer.shown):
            print(f"  ... {writer.rows - len(writer.shown):,} more rows; --out FILE.csv writes all of them")
    return FAILED if writer.failed else 0


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as a table for the terminal, with short cells."""
    header = list(rows[0])
    texts = []
    for row in rows:
        cells = [format_cell(row.get(name)) for name in header]
        texts.append([cell if len(cell) <= MAX_CELL else f"{cell[: MAX_CELL - 3]}..." for cell in cells])
    return text_table(header, texts, indent=2)
