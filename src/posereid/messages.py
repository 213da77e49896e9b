"""How an :class:`InputError` is worded: one sentence in one shape."""

from posereid.errors import InputError


def complaint(where: object, found: str, expected: str, remedy: str) -> InputError:
    """The error to raise: which file or field, what was found, what was expected, what to do.

    >>> str(complaint("market.csv, line 3", "17 joints", "18", "correct the line"))
    'market.csv, line 3: found 17 joints, expected 18; correct the line.'
    """
    return InputError(f"{where}: found {found}, expected {expected}; {remedy}.")


def shown(value: object, limit: int = 40) -> str:
    """A value as a message quotes it: on one line and short."""
    # Measuring a huge whole number by turning it into text would itself raise an error.
    if isinstance(value, int) and abs(value) > 10**limit:
        return f"a whole number beyond 10^{limit}"
    if isinstance(value, list | dict):
        return f"a JSON {'list' if isinstance(value, list) else 'object'} of {len(value)} entries"
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
