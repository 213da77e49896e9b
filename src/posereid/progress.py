"""One look for every progress bar: what is done, the rate, the time that is left."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, what: str, unit: str, *, show: bool, first: int = 0) -> "tqdm[Any]":
    """A bar over ``total`` units of which ``first`` are done; where nobody watches, a line now and then."""
    return tqdm(
        total=total,
        initial=first,
        desc=what,
        unit=unit,
        disable=not show,
        mininterval=0.5 if sys.stderr.isatty() else 20,
        dynamic_ncols=True,
    )
