"""Errors that a user is told of in one line."""


class UserError(ValueError):
    """A user's mistake: the command line prints it as one line and exits with code 2."""
