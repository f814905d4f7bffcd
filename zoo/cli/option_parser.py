"""The argparse parser of commands that build no trainer, with errors of one line. It imports no torch."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from zoo.cli.suggestions import nearest
from zoo.errors import UserError


class OptionParser(argparse.ArgumentParser):
    """An argparse parser with errors of one line that report a misspelt option before a missing one.

    Args:
        command: name of the command.
        description: what the command does.
        passes_options_on: whether options that the parser does not know belong to another command.
    """

    def __init__(self, command: str, description: str, passes_options_on: bool = False) -> None:
        super().__init__(f"zoo {command}", description=description, allow_abbrev=False)
        self.command = command
        self.passes_options_on = passes_options_on

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        if self.passes_options_on:
            # argparse would leave a --help behind the first positional argument to the other command.
            if "-h" in words or "--help" in words:
                self.print_help()
                self.exit()
        else:
            self._check_names(words)
        return super().parse_known_args(args, namespace)

    def _check_names(self, words: list[str]) -> None:
        known = {"--help", *re.findall(r"--[\w-]+", self.format_usage())}
        if "--" in words:
            words = words[: words.index("--")]
        for word in words:
            name = word.partition("=")[0]
            # To argparse a word with a blank is a value.
            is_option = name.startswith("--") and " " not in word
            if is_option and name not in known:
                self.error(f"there is no option {name}{nearest(name, known)}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.command}: {message}; see zoo {self.command} --help")
