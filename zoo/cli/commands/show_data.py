"""``zoo show-data``: print statistics of the data and plot training inputs."""

from __future__ import annotations

from typing import Any

name = "show-data"
help = "print splits, class balance and statistics of the data, and plot augmented training images"
needs_trainer = True


def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="file for the plot, .png; null is runs/<config name>/data.png",
    )


def run(cli: Any) -> None:
    from pathlib import Path

    from zoo.cli.data_report import data_report
    from zoo.errors import UserError
    from zoo.runs import run_folder
    from zoo.terminal import visible

    if cli.datamodule is None:
        raise UserError("show-data needs data: give --data NAME, or a config with -c FILE")
    path = run_folder.ROOT / cli.run_name / "data.png"
    if cli.config.out is not None:
        path = Path(cli.config.out)
    print(visible(data_report(cli.datamodule, path)))
