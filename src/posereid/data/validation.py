"""Training identities that no training sees, and a search among them: there settings are chosen, not on the test."""

import hashlib
from collections import defaultdict
from dataclasses import replace

from posereid.data.crops import Crop, CropTable
from posereid.errors import InputError

LEAST_IDENTITIES = 2
"""With fewer identities there is nobody to be mistaken for, in training as in a search."""


def validation_identities(crops: CropTable, share: float) -> frozenset[int]:
    """Identities of the training split that are held out, round(``share`` · all) of them; none for a share of 0.

    They are those whose numbers have the lowest SHA-256: the choice depends on no seed, a larger share holds a smaller
    one's, and one identity more in the set moves at most one other. Crops that belong to nobody and generated ones
    do not count. Raises :class:`InputError` for a share outside [0, 1) and where fewer than two identities would be
    held out or remain.
    """
    if not 0 <= share < 1:
        raise InputError(f"data.validation_share is {share}; it lies in [0, 1), for example 0.1.")
    if share == 0:
        return frozenset()
    known = {crop.identity for crop in crops.train if crop.identified and not crop.generated}
    held = round(share * len(known))
    if min(held, len(known) - held) < LEAST_IDENTITIES:
        raise InputError(
            f"data.validation_share is {share:g}: of the {len(known)} training identities of {crops.root}, {held} "
            f"would be held out and {len(known) - held} stay; each side needs {LEAST_IDENTITIES}, choose another share."
        )
    in_order = sorted(known, key=lambda identity: hashlib.sha256(str(identity).encode()).digest())
    return frozenset(in_order[:held])


def without_validation(crops: CropTable, share: float) -> CropTable:
    """The table without the training crops of held-out identities, generated ones included; a share of 0 changes none.

    A note of the table says how many were held out. Raises :class:`InputError` as :func:`validation_identities`.
    """
    held = validation_identities(crops, share)
    if not held:
        return crops
    kept = [crop for crop in crops if crop.split != "train" or crop.identity not in held]
    note = (
        f"{len(held)} training identities ({len(crops) - len(kept)} crops) are held out for validation; no training "
        "sees them."
    )
    return replace(crops, crops=tuple(kept), notes=(*crops.notes, note))


def validation_search(crops: CropTable, share: float) -> CropTable:
    """The real crops of the held-out identities as a search of their own, for :func:`embed_test` and the like.

    Of each identity in each camera the first crop by name becomes a query, the rest are gallery. A query that no
    gallery crop of another camera would answer stays in the gallery instead, and with it identities that one camera
    alone saw. The table's notes count both sides. Raises :class:`InputError` as :func:`validation_identities`, for a
    share of 0, and where no query is left.
    """
    held = validation_identities(crops, share)
    if not held:
        raise InputError(
            "data.validation_share is 0, so no identities are held out; train with a share above 0, for example 0.1."
        )
    groups: dict[int, dict[int, list[Crop]]] = defaultdict(lambda: defaultdict(list))
    for crop in crops.train:
        if crop.identity in held and not crop.generated:
            groups[crop.identity][crop.camera].append(crop)
    queries: list[Crop] = []
    gallery: list[Crop] = []
    searched = set()
    for identity, by_camera in sorted(groups.items()):
        in_order = {camera: sorted(found, key=lambda crop: crop.name) for camera, found in sorted(by_camera.items())}
        answering = {camera for camera, found in in_order.items() if len(found) > 1}
        for camera, found in in_order.items():
            if answering - {camera}:
                queries.append(replace(found[0], split="query"))
                searched.add(identity)
                found = found[1:]
            gallery += [replace(crop, split="gallery") for crop in found]
    if not queries:
        raise InputError(
            f"{crops.root}: none of the {len(held)} identities that are held out for validation was seen by two "
            "cameras, by one of them twice, as a search needs; train with a larger data.validation_share."
        )
    note = (
        f"Validation: {len(queries)} queries of {len(searched)} identities, gallery of {len(gallery)} crops of "
        f"{len(held)} identities; {len(held) - len(searched)} identities are in the gallery alone."
    )
    return replace(crops, crops=(*queries, *gallery), notes=(note,))
