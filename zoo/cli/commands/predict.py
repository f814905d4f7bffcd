"""``zoo predict``: predict new samples, or the test split, with a checkpoint."""

from __future__ import annotations

from typing import Any

name = "predict"
help = "predict new files, or the test split, with a checkpoint"
needs_trainer = True

SOURCES_HELP = (
    "what to predict: files, folders or patterns of what the model reads (images; tables as .csv, .jsonl, .parquet; "
    "texts as .txt, .jsonl, .csv), or - for stdin; without any, the test split. The data of training are not needed"
)


def add_arguments(parser: Any) -> None:
    from zoo.cli.common_options import add_evaluation_options, hide_options_of_lightning

    parser.add_argument("sources", nargs="*", metavar="SOURCE", help=SOURCES_HELP)
    add_evaluation_options(parser)
    hide_options_of_lightning(parser, "return_predictions")
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="file for the predictions, .csv, .jsonl or .parquet; null prints the first ones",
    )
    parser.add_argument(
        "--probabilities",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="of a classifier, also a column with the probability of each class",
    )


def trainer_arguments(cli: Any) -> dict[str, Any]:
    from zoo.callbacks import PredictionWriter

    return {"callbacks": [PredictionWriter(cli.config.out)]}


def run(cli: Any) -> int:
    from zoo.cli.evaluation import warn_if_untrained
    from zoo.cli.predictions import predict, read_sources

    warn_if_untrained(cli)
    if cli.config.sources:
        read_sources(cli)
    return predict(cli, cli.config.out)
