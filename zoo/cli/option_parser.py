"""Options of zoo's own subcommands, and what is said of a mistake in them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from zoo.cli.error_messages import nearest
from zoo.errors import UserError


class OptionParser(argparse.ArgumentParser):
    """A parser whose errors are one line, and name a misspelt option rather than what is missing without it.

    Args:
        command: name of the subcommand.
        description: what it does.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(f"zoo {command}", description=description, allow_abbrev=False)
        self.command = command

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        for word in words[: words.index("--")] if "--" in words else words:
            name = word.partition("=")[0]
            # As argparse sees it: a word with a blank is a value.
            if name.startswith("--") and " " not in word and name not in self._option_string_actions:
                self.error(f"there is no option {name}{nearest(name, self._option_string_actions)}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.command}: {message}; see zoo {self.command} --help")
