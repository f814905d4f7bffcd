"""Run a command that trains or evaluates: resume, signals, and the folder of a run that fails."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import lightning as L

from zoo.callbacks import NonFiniteError
from zoo.cli.argv import RESUME, Arguments, expand_resume, has_option, option, options, without_option
from zoo.cli.lightning_cli import ZooCLI
from zoo.cli.report import resume_command
from zoo.cli.set_up import set_up
from zoo.cli.signals import StopSignals, is_requeued
from zoo.distributed import is_main_process, say
from zoo.errors import Stopped
from zoo.runs import run_folder
from zoo.runs.lock import unlock_all


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
    signals = StopSignals()
    try:
        with signals:
            arguments = Arguments(without_option(argv[1:], "--allow-import"))
            if command.name == "fit":
                arguments = expand_resume(requeued(argv, arguments.argv))
            cli = ZooCLI(
                command,
                arguments.argv,
                typed=argv,
                resumed=arguments.resumed,
                callbacks=callbacks,
                signals=signals,
            )
            code = command.run(cli) or 0
        if signals.received is not None:
            raise Stopped(signals.received)
        return code
    except KeyboardInterrupt:
        print_resume_command(cli)
        signals.requeue()
        raise
    except SystemExit:
        # Lightning ends the process after a KeyboardInterrupt.
        if signals.received is None:
            raise
        print_resume_command(cli)
        signals.requeue()
        raise Stopped(signals.received) from None
    except NonFiniteError:
        raise  # the folder of the run keeps the report
    except Exception:
        if cli is not None:
            cli.discard_failed_run()
        raise
    finally:
        unlock_all()
        os.environ.pop("ZOO_RUN_DIR", None)


def requeued(typed: list[str], argv: list[str]) -> list[str]:
    """Return the options of a fit with ``--resume``, if SLURM has started again the job that began the run.

    Args:
        typed: the command line.
        argv: the options of ``zoo fit``.
    """
    if not is_requeued() or has_option(argv, RESUME):
        return argv
    run = run_folder.of_job(shlex.join(["zoo", *typed]), option(argv, "--run_dir"))
    if run is None:
        return argv
    say(f"SLURM has requeued the job: {run} goes on")
    return [*without_option(argv, "--run_dir"), f"{RESUME}={run}"]


def print_resume_command(cli: ZooCLI | None) -> None:
    """Print how to resume an interrupted run, if it has a checkpoint."""
    if cli is None or cli.run_dir is None or not is_main_process():
        return
    if run_folder.saved(cli.run_dir) or (cli.run_dir / "config.yaml").exists():
        print(f"stopped; to resume: {resume_command(cli.run_dir, cli.typed)}", file=sys.stderr)
