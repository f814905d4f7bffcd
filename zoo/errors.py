"""Errors that the command line reports in one line, and the end by a signal."""


class UserError(ValueError):
    """A mistake in the arguments, configs or files of a user: one line ``zoo: error: ...`` and exit code 2."""


class Stopped(KeyboardInterrupt):
    """The end of a command by a signal.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code that shells report for a process that the signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number
