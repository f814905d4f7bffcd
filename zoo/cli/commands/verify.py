"""``zoo verify resume``: check that resuming is exact."""

from __future__ import annotations

import argparse
from typing import Any

name = "verify"
help = "check that a run killed and resumed equals an uninterrupted one, bit for bit: `zoo verify resume -c CONFIG`"
passes_options_on = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "zoo verify resume -c CONFIG [--kills N] [options of zoo fit]"
    parser.add_argument("what", choices=["resume"], help="what to check")
    parser.add_argument("--kills", metavar="N", help="how many times the run is killed, at random steps (default: 4)")
    parser.add_argument("fit_options", nargs=argparse.REMAINDER, help="options of zoo fit; see `zoo fit --help`")


def run(args: Any) -> int:
    from zoo.cli.argv import option, options, without_option
    from zoo.cli.parser import check_config
    from zoo.cli.resume_check import verify_resume
    from zoo.cli.set_up import set_up
    from zoo.errors import UserError

    # argparse leaves everything behind `resume` to the options of fit.
    argv = args.fit_options
    kills = option(argv, "--kills") or args.kills or "4"
    argv = without_option(argv, "--kills")
    if not argv:
        raise UserError("verify: nothing to train; give -c CONFIG; see zoo verify --help")
    if not kills.isdigit() or int(kills) < 1:
        raise UserError(f"--kills must be a whole number from 1 up, got {kills}")
    set_up(options(argv, "--allow-import"))
    for config in options(argv, "-c", "--config"):
        check_config(config)
    difference = verify_resume(argv, int(kills))
    if difference:
        print(f"differs: {difference}")
        return 1
    print("resumed equals uninterrupted, bit for bit")
    return 0
