"""One part of the embeddings of all crops: what was kept of it, and what is still to be made."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from posereid.fusion.cache import PartStore
from posereid.fusion.costs import Costs, PartCost, total


class PartTable:
    """The rows of one part, (n, …), filled from its store where there is one and then by :meth:`add`.

    ``wanted`` are the positions of the crops that have the part at all; ``keys`` the crops' keys in the store, where
    crops of one key share what was made for the first of them. Raises InputError.
    """

    def __init__(
        self,
        values: npt.NDArray[np.float32],
        wanted: Sequence[int],
        keys: Sequence[bytes] = (),
        store: PartStore | None = None,
    ) -> None:
        self.costs: dict[str, PartCost] = {}
        """What all rows took, and with a store all that lies in it."""
        self._values, self._keys, self._store = values, keys, store
        self._lacking = set(wanted)
        self._copies: dict[int, int] = {}
        self._unsaved: list[int] = []
        self._unsaved_costs: dict[str, PartCost] = {}
        if store is not None:
            self._fill(store, wanted)

    def _fill(self, store: PartStore, wanted: Sequence[int]) -> None:
        known, rows, self.costs = store.read()
        row_of = {key: row for row, key in enumerate(known)}
        found = [position for position in wanted if self._keys[position] in row_of]
        self._values[found] = rows[[row_of[self._keys[position]] for position in found]]
        self._lacking -= set(found)
        first: dict[bytes, int] = {}
        for position in sorted(self._lacking):
            if first.setdefault(self._keys[position], position) != position:
                self._copies[position] = first[self._keys[position]]
        self._lacking -= self._copies.keys()

    def lacking(self, positions: Iterable[int]) -> list[int]:
        """Those of the crops whose part is to be made."""
        return [position for position in positions if position in self._lacking]

    def add(self, positions: Sequence[int], values: npt.NDArray[np.float32], costs: Costs) -> None:
        """Fill some crops' rows; ``costs`` is what they took."""
        self._values[positions] = values
        self._lacking -= set(positions)
        self.costs = total([self.costs, costs])
        if self._store is not None:
            self._unsaved += positions
            self._unsaved_costs = total([self._unsaved_costs, costs])

    def save(self) -> None:
        """Write what was added into the store. Raises InputError."""
        if self._store is None or not self._unsaved:
            return
        keys = [self._keys[position] for position in self._unsaved]
        self.costs = self._store.add(keys, self._values[self._unsaved], self._unsaved_costs)
        self._unsaved, self._unsaved_costs = [], {}

    def share_rows(self) -> None:
        """Give crops of one key the row made for the first of them."""
        self._values[list(self._copies)] = self._values[list(self._copies.values())]
