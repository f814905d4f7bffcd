"""Run a command that trains or evaluates: resume, Ctrl-C, and the folder of a run that fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import lightning as L

from zoo.callbacks import NonFiniteError
from zoo.cli.argv import Arguments, expand_resume, options, without_option
from zoo.cli.lightning_cli import ZooCLI
from zoo.cli.report import resume_command
from zoo.cli.set_up import set_up
from zoo.distributed import is_main_process
from zoo.runs import run_folder


def run_with_trainer(command: Any, argv: list[str], callbacks: Sequence[L.Callback] = ()) -> int:
    """Build model, data and trainer from the options, run the command, and return its exit code.

    Args:
        command: module of the command, see :mod:`zoo.cli.commands`.
        argv: the name of the command and its options, as typed.
        callbacks: added to the trainer.
    """
    set_up(options(argv, "--allow-import"))
    if is_main_process():
        # Set by this process for those that Lightning launches; an earlier command may have left it.
        os.environ.pop("ZOO_RUN_DIR", None)
    cli: ZooCLI | None = None
    try:
        arguments = Arguments(without_option(argv[1:], "--allow-import"))
        if command.name == "fit":
            arguments = expand_resume(arguments.argv)
        cli = ZooCLI(command, arguments.argv, typed=argv, resumed=arguments.resumed, callbacks=callbacks)
        return command.run(cli) or 0
    except KeyboardInterrupt:
        print_resume_command(cli)
        raise
    except SystemExit:
        if cli is not None and cli.interrupted:
            print_resume_command(cli)
            raise KeyboardInterrupt from None
        raise
    except NonFiniteError:
        raise  # the folder of the run keeps the report
    except Exception:
        if cli is not None:
            cli.discard_failed_run()
        raise
    finally:
        os.environ.pop("ZOO_RUN_DIR", None)


def print_resume_command(cli: ZooCLI | None) -> None:
    """Print how to resume an interrupted run, if it has a checkpoint."""
    if cli is None or cli.run_dir is None or not is_main_process():
        return
    if run_folder.saved(cli.run_dir):
        print(f"stopped; to resume: {resume_command(cli.run_dir, cli.typed)}", file=sys.stderr)
