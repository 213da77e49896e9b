"""Where each pixel of a target pose lies on the source's picture: a rigid piece of cloth for each part of the body.

No part of the paper. Appearance that travels as channel statistics loses stripes and logos; what two skeletons say
about where a forearm was and where it goes carries them over pixel by pixel, without anything to learn (as the
deformable skip connections of Siarohin et al. 2018, "Deformable GANs for pose-based human image generation", do with
feature maps).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from posereid.pose.joints import TORSO, joint_index
from posereid.pose.maps import SIGMA_PER_HEIGHT

_LIMBS = tuple(
    (joint_index(f"{side}_{near}"), joint_index(f"{side}_{far}"))
    for side in ("right", "left")
    for near, far in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))
)
_OPPOSITE = (4, 5, 6, 7, 0, 1, 2, 3)
_LIMB_RADII = (0.13, 0.11, 0.17, 0.14) * 2
_HEAD_RADIUS = 0.26
_TORSO_REACH = 1.15
"""Radii as shares of the torso's length: the limbs' and the head's; the torso's as a share of its half width."""

_LIMB_ENDS = ((-0.35, 1.35), (-0.35, 1.35), (-0.35, 1.35), (-0.35, 1.6)) * 2
_TORSO_ENDS = (-0.3, 1.5)
_HEAD_ENDS = (-0.35, 2.2)
"""How far a part's cloth goes beyond its two ends, in lengths: the shin's covers the foot, the head's the hair."""

_NARROWEST_TORSO = 0.2
_JOINTS_TO_FLESH = 1.25
"""A torso seen from the side is this wide in its lengths; clothes are so much wider than shoulders and hips."""

_FACE = tuple(joint_index(name) for name in ("nose", "right_eye", "left_eye", "right_ear", "left_ear"))
_EARS = tuple(joint_index(name) for name in ("right_ear", "left_ear"))
_SIDEWAYS = 0.06  # of a torso's length between nose and ears, from which a head looks to a side
_SHORTEST = 8 / 128  # of the crop's height: a torso that is shorter is taken for so long


@dataclass(frozen=True)
class Correspondence:
    """Where the pixels of a target pose lie on the source.

    ``columns`` and ``rows`` (B, H, W) are in pixels of the source's crop and may lie outside of it. ``confidence``
    (B, H, W) in [0, 1] is 1 on the axis of a part of the body and falls off like a Gaussian over the part's radius; it
    is 0 where no part is known in both poses. ``turn`` (B, 2): the signed half widths of the torso in its lengths,
    source and target; above 0 the person faces the camera.
    """

    columns: Float[Tensor, "b h w"]
    rows: Float[Tensor, "b h w"]
    confidence: Float[Tensor, "b h w"]
    turn: Float[Tensor, "b 2"]

    def carried(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The source's picture (or map of its size) laid over the target pose, bilinear, its border repeated."""
        height, width = image.shape[-2:]
        # grid_sample's coordinates of pixel centres, without aligned corners.
        grid = torch.stack([(2 * self.columns + 1) / width - 1, (2 * self.rows + 1) / height - 1], dim=-1)
        return F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def joints_of_maps(
    maps: Float[Tensor, "b 18 h w"],
) -> tuple[Float[Tensor, "b 18 2"], Bool[Tensor, "b 18"]]:
    """The joints that :func:`posereid.pose.maps.heat_maps` rendered: (x, y) in pixels, and which are there.

    For its own σ. Exact up to rounding: the logarithm of a Gaussian is a parabola, which three points fix.
    """
    maps = maps.float()
    height, width = maps.shape[-2:]
    variance = (SIGMA_PER_HEIGHT * height) ** 2
    top, where = maps.flatten(2).max(dim=-1)
    row, column = where // width, where % width
    along_row = maps.gather(2, row[..., None, None].expand(-1, -1, 1, width)).squeeze(2)
    along_column = maps.gather(3, column[..., None, None].expand(-1, -1, height, 1)).squeeze(3)
    xy = torch.stack([_top(along_row, column, variance), _top(along_column, row, variance)], dim=-1)
    return xy, top > 1e-6


def _top(line: Float[Tensor, "b 18 n"], near: Tensor, variance: float) -> Float[Tensor, "b 18"]:
    before, after = (near - 1).clamp(min=0), (near + 1).clamp(max=line.shape[-1] - 1)
    values = [line.gather(2, at[..., None]).squeeze(2).clamp(min=1e-30).log() for at in (before, after)]
    return (before + after) / 2 + (values[1] - values[0]) * variance / (after - before)


@dataclass(frozen=True)
class PosedPictures:
    """Pictures (B, C, H, W) and the joints of the people on them, (x, y) in pixels."""

    images: Float[Tensor, "b c h w"]
    keypoints: Float[Tensor, "b 18 2"]
    present: Bool[Tensor, "b 18"]


def correspondence(source: PosedPictures, target_maps: Float[Tensor, "b 18 h w"]) -> Correspondence:
    """Which pixel of the source each pixel of the target pose shows, as far as two skeletons can say.

    Ten parts: head, torso, upper arms, forearms, thighs and shins with feet. Each is a flat piece that is moved, turned
    and stretched along its axis; a pixel belongs to the part that is nearest in the part's radii. A limb that the
    source hides is taken from the opposite side, since clothes are mostly alike on both. When the person turns from
    front to back, pieces are mirrored.
    """
    height, width = target_maps.shape[-2:]
    before = _Body(source.keypoints, source.present, height)
    target = _Body(*joints_of_maps(target_maps), height)
    piece = _pieces(before, target)

    axis, length = _direction(piece.target_start, piece.target_end)
    source_axis, source_length = _direction(piece.source_start, piece.source_end)
    columns = torch.arange(width, device=target_maps.device, dtype=torch.float32)
    rows = torch.arange(height, device=target_maps.device, dtype=torch.float32)
    x = columns - piece.target_start[..., 0, None, None]
    y = rows[:, None] - piece.target_start[..., 1, None, None]

    def each(values: Tensor) -> Tensor:
        return values[..., None, None]

    along = (x * each(axis[..., 0]) + y * each(axis[..., 1])) / each(length)
    aside = y * each(axis[..., 0]) - x * each(axis[..., 1])
    beyond = (along - along.clamp(0, 1)) * each(length)
    distance = (aside.square() + beyond.square()) / each(piece.radius * target.torso[:, None]).square()
    distance = torch.where(each(piece.known), distance, torch.full_like(distance, 1e4))
    nearest, part = distance.min(dim=1, keepdim=True)

    ends = along.new_tensor((*_LIMB_ENDS, _TORSO_ENDS, _HEAD_ENDS))[:, :, None, None]
    reach = along.clamp(ends[:, 0], ends[:, 1]) * each(source_length)
    shift = aside * each(piece.widening)
    found_x = each(piece.source_start[..., 0]) + reach * each(source_axis[..., 0]) - shift * each(source_axis[..., 1])
    found_y = each(piece.source_start[..., 1]) + reach * each(source_axis[..., 1]) + shift * each(source_axis[..., 0])
    return Correspondence(
        columns=found_x.gather(1, part).squeeze(1),
        rows=found_y.gather(1, part).squeeze(1),
        confidence=torch.exp(-nearest / 2).squeeze(1),
        turn=torch.stack([before.half_width / before.torso, target.half_width / target.torso], dim=1),
    )


def _direction(start: Float[Tensor, "b p 2"], end: Float[Tensor, "b p 2"]) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, P, 2) from start to end, and lengths (B, P) of 3 pixels at least."""
    length = (end - start).norm(dim=-1).clamp(min=3)
    return (end - start) / length[..., None], length


class _Body:
    """What the pieces are laid by: all in pixels, for a batch of skeletons."""

    def __init__(self, xy: Float[Tensor, "b 18 2"], present: Bool[Tensor, "b 18"], height: int) -> None:
        self.xy, self.present = xy, present
        right_shoulder, left_shoulder, right_hip, left_hip = (xy[:, joint] for joint in TORSO)
        self.has_torso = present[:, TORSO].all(dim=1)
        neck = joint_index("neck")
        self.neck = torch.where(present[:, neck, None], xy[:, neck], (right_shoulder + left_shoulder) / 2)
        self.hips = (right_hip + left_hip) / 2
        down = self.hips - self.neck
        self.torso = down.norm(dim=1).clamp(min=_SHORTEST * height)
        across = torch.stack([-down[:, 1], down[:, 0]], dim=1) / self.torso[:, None]
        widths = ((right_shoulder - left_shoulder + right_hip - left_hip) * across).sum(dim=1) / 4
        narrowest = _NARROWEST_TORSO * self.torso
        width = widths * _JOINTS_TO_FLESH
        signed = torch.where(width < 0, -narrowest, narrowest)
        self.half_width = torch.where(width.abs() < narrowest, signed, width)

        face, seen = _mean_of(xy, present, _FACE)
        self.head = torch.where(seen[:, None], face, self.neck - 0.32 * down)
        ears, heard = _mean_of(xy, present, _EARS)
        nose = joint_index("nose")
        ahead = (xy[:, nose] - torch.where(heard[:, None], ears, self.neck))[:, 0] / self.torso
        self.looking = torch.where(present[:, nose], ahead, torch.zeros_like(ahead))
        """How far to the right of the picture the nose is before the ears, in lengths of the torso."""


def _mean_of(xy: Tensor, present: Tensor, joints: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    weight = present[:, joints, None].float()
    return (xy[:, joints] * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1), present[:, joints].any(dim=1)


@dataclass(frozen=True)
class _Pieces:
    """Axes of the parts in both poses (B, 10, 2), and per part (B, 10): the factor from the target's sides to the
    source's (below 0 it mirrors), the radius in lengths of the target's torso, whether it is known in both.
    """

    target_start: Tensor
    target_end: Tensor
    source_start: Tensor
    source_end: Tensor
    widening: Tensor
    radius: Tensor
    known: Tensor


def _pieces(source: _Body, target: _Body) -> _Pieces:
    near, far = ([limb[end] for limb in _LIMBS] for end in (0, 1))
    own = source.present[:, near] & source.present[:, far]
    opposite = own[:, _OPPOSITE]
    source_near, source_far = (
        torch.where(own[..., None], source.xy[:, ends], source.xy[:, ends][:, _OPPOSITE]) for ends in (near, far)
    )
    both = source.has_torso & target.has_torso
    limbs_known = target.present[:, near] & target.present[:, far] & (own | opposite) & both[:, None]
    turned = torch.sign(source.half_width * target.half_width)
    scale = source.torso / target.torso
    limb_widening = (scale * turned)[:, None] * torch.where(own, 1.0, -1.0)
    sideways = (source.looking.abs() > _SIDEWAYS) & (target.looking.abs() > _SIDEWAYS)
    head_widening = scale * torch.where(sideways, torch.sign(source.looking * target.looking), torch.ones_like(scale))
    torso_widening = source.half_width / target.half_width
    torso_radius = target.half_width.abs() / target.torso * _TORSO_REACH
    limb_radii = scale.new_tensor(_LIMB_RADII).expand(len(scale), -1)

    def parts(limbs: Tensor, torso: Tensor, head: Tensor) -> Tensor:
        return torch.cat([limbs, torso[:, None], head[:, None]], dim=1)

    return _Pieces(
        target_start=parts(target.xy[:, near], target.neck, target.neck),
        target_end=parts(target.xy[:, far], target.hips, target.head),
        source_start=parts(source_near, source.neck, source.neck),
        source_end=parts(source_far, source.hips, source.head),
        widening=parts(limb_widening, torso_widening, head_widening),
        radius=parts(limb_radii, torso_radius, torch.full_like(scale, _HEAD_RADIUS)),
        known=parts(limbs_known, both, both),
    )
