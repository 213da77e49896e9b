"""One process at a time at a cell, on one machine or on several that share the folder."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from posereid.errors import InputError
from posereid.training.run_folder import lock_run


@contextmanager
def try_lock(folder: Path) -> Iterator[bool]:
    """Keep other processes out of something for as long as the block lasts; False where one of them is there."""
    # Made first: a lock that came with its folder would go with it, and with it another one's that waits for it.
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(lock_run(folder))
        except InputError:
            yield False
            return
        yield True


@contextmanager
def waiting_lock(folder: Path, doing: str) -> Iterator[None]:
    """Wait until nobody else is there; ``doing`` says what one does there."""
    said = False
    while True:
        with try_lock(folder) as mine:
            if mine:
                yield
                return
        if not said:
            print(f"Another process {doing}; waiting for it.")
            said = True
        time.sleep(0.5)
