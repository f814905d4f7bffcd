"""``zoo test``: compute the test metrics of a checkpoint."""

from __future__ import annotations

from typing import Any

name = "test"
help = "compute the test metrics of a checkpoint"
needs_trainer = True


def add_arguments(parser: Any) -> None:
    from zoo.cli.common_options import add_evaluation_options

    add_evaluation_options(parser)
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="file for the predictions on the test split beside the truth, .csv, .jsonl or .parquet",
    )
    parser.add_argument(
        "--plots",
        type=bool,
        default=True,
        help="for images, plot the confusion matrix and the worst misclassifications into the folder of the run",
    )


def trainer_arguments(cli: Any) -> dict[str, Any]:
    from zoo.callbacks import MisclassifiedImages, PredictionWriter
    from zoo.cli.evaluation import evaluation_callbacks

    callbacks: list[Any] = []
    if cli.config.out:
        callbacks.append(PredictionWriter(cli.config.out))
    if cli.config.plots and cli.config.ckpt_path:
        callbacks.append(MisclassifiedImages())
    callbacks += evaluation_callbacks(cli)
    return {"callbacks": callbacks}


def run(cli: Any) -> None:
    from zoo.callbacks import MisclassifiedImages
    from zoo.cli.evaluation import evaluate
    from zoo.cli.predictions import predict_test_split, write_metrics
    from zoo.cli.report import relative

    write_metrics(cli, evaluate(cli, cli.trainer.test))
    for callback in cli.trainer.callbacks:
        if isinstance(callback, MisclassifiedImages) and callback.written:
            print(f"  plots: {', '.join(relative(path) for path in callback.written)}")
    if cli.config.out:
        predict_test_split(cli, cli.config.out)
