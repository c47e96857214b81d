"""The mistakes of a user. Needs no torch, so that whoever only reads a command line starts at once."""


class InputError(ValueError):
    """Something the user can mend: a file, a row, a setting. Its message is one clear sentence.

    The command line prints the message alone; a program can catch it like any ``ValueError``.
    """

    is_everywhere = False  # whether all processes of a training raise one at this same step


ROOM_FOR_A_MODEL = "another device or machine is needed, or a smaller model"


def short_of_memory(error: RuntimeError) -> str | None:
    """What has no room left, if that is what torch says, in this process or in a worker's."""
    if type(error).__name__ == "OutOfMemoryError":  # torch is not imported for this
        return "the device"
    return "this machine" if "DefaultCPUAllocator" in str(error) else None


class NoAttentionError(InputError):
    """A model that translates and cannot show where its heads look."""


class NoTranslationError(InputError):
    """A network that gives a sentence no translation of finite log probability.

    Args:
        row: The sentence in the batch of the search, from 0.
        name: What its user knows it by; None for the row.
    """

    def __init__(self, row: int, name: str | None = None) -> None:
        super().__init__(row, name)  # so that it comes whole out of a worker process
        self.row, self.name = row, name

    def __str__(self) -> str:
        """The sentence for the user."""
        name = self.name or f"src row {self.row}"
        return (
            f"network gave {name} no translation of finite log_prob; its logits hold NaN or infinite numbers, perhaps "
            "because the training diverged: take an earlier checkpoint"
        )
