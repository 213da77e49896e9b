"""The one error that a user's mistake raises."""


class InputError(ValueError):
    """Something the user gave is wrong: a file, a folder, a field of a recipe.

    The message is one sentence that says which file or field, what was found, what was expected and what to
    do. The command line prints it and leaves with exit code 2; everything else is a defect of posereid.
    """
