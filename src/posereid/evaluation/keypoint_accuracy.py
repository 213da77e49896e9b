"""PCKh: how many joints of a pose can be found again, within a share of the head's size."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from posereid.pose.joints import JOINT_COUNT, joint_index

HEAD: tuple[int, ...] = tuple(
    joint_index(name) for name in ("nose", "neck", "right_eye", "left_eye", "right_ear", "left_ear")
)
"""The joints whose bounding box is the head of pose transfer's PCKh."""


def pckh_hits(
    estimated: Float[Tensor, "b 18 2"],
    estimated_present: Bool[Tensor, "b 18"],
    target: Float[Tensor, "b 18 2"],
    target_present: Bool[Tensor, "b 18"],
    *,
    share: float = 0.5,
) -> tuple[Bool[Tensor, "b 18"], Bool[Tensor, "b 18"]]:
    """Which joints were found, and which count, by the PCKh of the pose-transfer papers.

    The definition is that of PATN (Zhu et al. 2019; ``tool/calPCKH_market.py`` of
    github.com/tengteng95/Pose-Transfer), which later papers measure with: the head is the bounding box of those of
    the target's nose, neck, eyes and ears that are present, W wide and H high, and a joint is found when
    |Δx| < ``share`` · W and |Δy| < ``share`` · H. Every joint that the target has counts, one that the estimate
    lacks is a miss, and one that only the estimate has is not looked at. Crops whose target has fewer than two of
    the head's joints have no head size, and none of their joints counts. A head that is 0 pixels wide makes all its
    joints misses, as it does there. This is stricter sideways than the PCKh of MPII (Andriluka et al. 2014), where
    the distance counts in all directions alike and the head is a box drawn for the purpose.

    Keypoints are (x, y) in pixels, both of the same crop size. Returns ``hits`` and ``counted``; hits are counted.
    Raises ValueError when the shapes differ or are not of 18 joints.
    """
    _check_shapes(estimated, estimated_present, target, target_present)
    head, on_head = target[:, HEAD], target_present[:, HEAD]
    nowhere = torch.full_like(head, torch.inf)
    lowest = torch.where(on_head[..., None], head, nowhere).amin(1)
    highest = torch.where(on_head[..., None], head, -nowhere).amax(1)
    counted = target_present & (on_head.sum(1) >= 2)[:, None]
    near = ((estimated - target).abs() < share * (highest - lowest)[:, None]).all(-1)
    return near & estimated_present & counted, counted


@dataclass(frozen=True, eq=False)
class KeypointAccuracy:
    """PCKh over all counted joints, and crop by crop.

    ``overall`` is in [0, 1], NaN where no joint counted; ``per_crop`` likewise for each crop. ``joints`` counts the
    joints that ``overall`` is over, ``crops_without_head`` the crops that no head size could be told for.
    """

    overall: float
    per_crop: Float[Tensor, " b"]
    joints: int
    crops_without_head: int


def pckh(
    estimated: Float[Tensor, "b 18 2"],
    estimated_present: Bool[Tensor, "b 18"],
    target: Float[Tensor, "b 18 2"],
    target_present: Bool[Tensor, "b 18"],
    *,
    share: float = 0.5,
) -> KeypointAccuracy:
    """The share of joints found, as PATN counts it: over all joints of all crops together (:func:`pckh_hits`)."""
    hits, counted = pckh_hits(estimated, estimated_present, target, target_present, share=share)
    found, total = hits.sum(1).double(), counted.sum(1).double()
    without_head = target_present[:, HEAD].sum(1) < 2
    return KeypointAccuracy(
        overall=(found.sum() / total.sum()).item(),
        per_crop=(found / total).float(),
        joints=int(total.sum()),
        crops_without_head=int(without_head.sum()),
    )


def _check_shapes(estimated: Tensor, estimated_present: Tensor, target: Tensor, target_present: Tensor) -> None:
    points, flags = (len(target), JOINT_COUNT, 2), (len(target), JOINT_COUNT)
    found = [tuple(tensor.shape) for tensor in (estimated, estimated_present, target, target_present)]
    if found != [points, flags, points, flags]:
        raise ValueError(f"keypoints must be (B, {JOINT_COUNT}, 2) and presence (B, {JOINT_COUNT}), got {found}")
