"""The mistakes of a user. Needs no torch, so that whoever only reads a command line starts at once."""


class InputError(ValueError):
    """Something the user can mend: a file, a row, a setting. Its message is one clear sentence.

    The command line prints the message alone; a program can catch it like any ``ValueError``.
    """

    is_everywhere = False  # whether all processes of a training raise one at this same step


class NoAttentionError(InputError):
    """A model that translates and cannot show where its heads look."""
