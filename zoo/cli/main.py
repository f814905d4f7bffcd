"""The entry point of the command line: ``--help``, dispatch and exit codes. It imports no torch.

Exit codes: 0 done; 1 a check failed; 2 a mistake of the user, in one line on stderr; 3 the training became non-finite;
130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 138 SIGUSR1; 141 the reader of the output has left.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any

from zoo import __version__
from zoo.catalog.shipped_configs import expand_configs
from zoo.cli.commands import all_commands, command_names, load_command
from zoo.cli.suggestions import nearest
from zoo.errors import Stopped, UserError
from zoo.terminal import error_line

DONE = 0
CHECK_FAILED = 1
MISTAKE = 2
NON_FINITE = 3
INTERRUPTED = 130
BROKEN_PIPE = 141

HELP = """\
usage: zoo COMMAND [options]

Train, inspect and reuse architectures, datasets and callbacks for PyTorch Lightning.

commands:
{commands}

options:
  -h, --help  show this help; `zoo COMMAND --help` shows the options of a command
  --version   show the version of zoo

examples:
  zoo fit -c mlp_digits
  zoo list models
"""


def main(argv: Sequence[str] | None = None, callbacks: Sequence[Any] = ()) -> int:
    """Run a command and return its exit code.

    Args:
        argv: the command and its options; None takes those of the process.
        callbacks: Lightning callbacks to add to the trainer of the command.
    """
    if argv is None:
        argv = sys.argv[1:]
    try:
        code = run_command(list(argv), callbacks)
        sys.stdout.flush()
        return code
    except Stopped as stop:
        return stop.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has left. Python would flush once more at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except SystemExit as stop:
        return code_of(stop)
    except Exception as error:
        return report(error)


def run_command(argv: list[str], callbacks: Sequence[Any]) -> int:
    """Run a command, or print the help or the version of zoo."""
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print_help()
        return DONE
    if name == "--version":
        print(f"zoo {__version__}")
        return DONE
    command = load_command(name)
    if command is None:
        raise unknown_command(name)
    argv = expand_configs(argv)
    if getattr(command, "needs_trainer", False):
        if any(is_help(arg) for arg in argv):
            skip_imports_of_plots()
        from zoo.cli.session import run_with_trainer

        return run_with_trainer(command, argv, callbacks)
    from zoo.cli.option_parser import OptionParser

    parser = OptionParser(
        name,
        f"{command.help[0].upper()}{command.help[1:]}.",
        passes_options_on=getattr(command, "passes_options_on", False),
    )
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv[1:])) or DONE


def print_help() -> None:
    """Print the commands, each with its line of help."""
    commands = list(all_commands())
    width = max(len(command.name) for command in commands)
    lines = [f"  {command.name:{width}}  {command.help}" for command in commands]
    print(HELP.format(commands="\n".join(lines)), end="")


def unknown_command(name: str) -> UserError:
    """Return the error for a first argument that is no command."""
    if name.startswith("-"):
        suggestion = nearest(name, ["--help", "--version"])
        return UserError(f"unknown option '{name}' before the command{suggestion or '; see `zoo --help`'}")
    suggestion = nearest(name, command_names())
    return UserError(f"unknown command '{name}'{suggestion or '; see `zoo --help`'}")


def is_help(arg: str) -> bool:
    """Return whether an argument asks for a help text, as ``--help`` and ``--model.help`` do."""
    return arg in ("-h", "--help") or arg.endswith(".help")


def skip_imports_of_plots() -> None:
    """Keep torchmetrics, which Lightning imports, from importing matplotlib and transformers for a help text.

    Its module of flags is loaded first and the flags of the two are set to False. A process that goes on to train must
    not do this.
    """
    package = importlib.util.find_spec("torchmetrics")
    if package is None or not package.submodule_search_locations:
        return
    name = "torchmetrics.utilities.imports"
    path = f"{package.submodule_search_locations[0]}/utilities/imports.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        return
    flags = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(flags)
    for flag in list(vars(flags)):
        if flag.startswith(("_MATPLOTLIB", "_TRANSFORMERS")):
            setattr(flags, flag, False)
    sys.modules[name] = flags


def code_of(stop: SystemExit) -> int:
    """Return the exit code of a SystemExit; its text, if it has one, goes to stderr as Python would print it."""
    if stop.code is None:
        return DONE
    if isinstance(stop.code, int):
        return stop.code
    print(stop.code, file=sys.stderr)
    return 1


def report(error: Exception) -> int:
    """Print one line about an error and return the exit code; raise what may be a bug, with its traceback."""
    if isinstance(error, UserError) and os.environ.get("ZOO_DEBUG") != "1":
        # This one needs no torch.
        print(f"zoo: error: {error_line(str(error))}", file=sys.stderr)
        return MISTAKE
    from zoo.callbacks import NonFiniteError
    from zoo.cli.error_messages import explain

    if isinstance(error, NonFiniteError):
        print(f"zoo: error: {error_line(str(error))}", file=sys.stderr)
        return NON_FINITE
    if os.environ.get("ZOO_DEBUG") == "1":
        raise error
    text = explain(error)
    if text is None:
        raise error
    print(f"zoo: error: {error_line(text)}", file=sys.stderr)
    return MISTAKE
