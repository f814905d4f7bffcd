"""Predictions of a command: reading sources, running the Trainer, and what is printed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from zoo.callbacks import PredictionWriter
from zoo.callbacks.prediction_files import finite
from zoo.checkpoints import Checkpoint
from zoo.cli.tables import format_cell, text_table
from zoo.data.base import DataModule
from zoo.data.sources import refuse_urls
from zoo.distributed import is_main_process, say
from zoo.errors import UserError
from zoo.files import write_json
from zoo.prediction.loading import fit_to_model, restore_data
from zoo.runs import run_folder
from zoo.runs.fingerprint import summary
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
    fit_to_model(data, cli.model)
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


def predict_test_split(cli: Any, out: str) -> None:
    """Write the predictions on the test split, after its metrics were computed."""
    if isinstance(cli.datamodule, DataModule):
        cli.datamodule.predict_test()
    predict(cli, out)


def write_metrics(cli: Any, results: list[dict[str, float]]) -> None:
    """Write ``test.json`` into the folder of the run: the metrics, and of which weights and data they are."""
    checkpoint = cli.config.ckpt_path
    run = run_folder.of_checkpoint(Path(checkpoint)) if checkpoint else None
    if run is None or not is_main_process() or not results:
        return
    metrics = {name: finite(float(value)) for result in results for name, value in result.items()}
    content = {
        "checkpoint": str(checkpoint),
        "weights": cli.config.weights,
        "command": shlex.join(["zoo", *cli.typed]),
        "metrics": metrics,
        "data": {name: summary(entry) for name, entry in cli.data_fingerprint.items()},
    }
    try:
        write_json(run / "test.json", content)
    except UserError as error:  # a run of others, which may not be written to
        say(str(error))


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
    if "entities" in header:
        header = [name for name in header if name not in ("words", "class", "name", "probability")]
    texts = []
    for row in rows:
        cells = [shown(row.get(name)) for name in header]
        texts.append([cell if len(cell) <= MAX_CELL else f"{cell[: MAX_CELL - 3]}..." for cell in cells])
    return text_table(header, texts, indent=2)


def shown(value: Any) -> str:
    """Return a value for a cell of the table: of a list its values, of an entity its text and type."""
    if isinstance(value, list):
        return " ".join(map(shown, value))
    if isinstance(value, dict):
        return f"[{value.get('text')}: {value.get('type')}]"
    return format_cell(value)
