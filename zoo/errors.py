"""Errors that the command line reports in one line."""


class UserError(ValueError):
    """A mistake in the arguments, configs or files of a user: one line ``zoo: error: ...`` and exit code 2."""
