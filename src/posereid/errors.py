"""The error that a user's mistake raises, and the end that a user asks for."""


class InputError(ValueError):
    """Something the user gave is wrong: a file, a folder, a field of a recipe.

    The message is one sentence that says which file or field, what was found, what was expected and what to
    do. The command line prints it and leaves with exit code 2; everything else is a defect of posereid.
    """


class SharedError(InputError):
    """An InputError that all processes of a run raise together; only the first needs to say it."""


class Stopped(KeyboardInterrupt):
    """Training was asked to stop by SIGINT (Ctrl-C) or SIGTERM, and its state is saved.

    The command line prints the message and leaves with exit code 128 + ``signal_number``.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
