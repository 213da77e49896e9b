"""The pose estimator, which finds joints in pictures: a backbone and transposed convolutions to heat maps."""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights, keypointrcnn_resnet50_fpn

from posereid.backbones import create_backbone, require_backbone
from posereid.embedder import IMAGENET_DEVIATION, IMAGENET_MEAN
from posereid.errors import InputError
from posereid.pose.joints import JOINT_COUNT, joint_index
from posereid.pose.maps import flip_heat_maps, heat_maps

SPREAD_PER_HEIGHT = 6 / 128
"""Standard deviation of a joint's bump in the maps to learn, as a share of the crop's height."""

_SMALLEST = 1e-4

_COCO_ORDER = [
    joint_index(name)
    for name in (
        "nose",
        *(f"{side}_{part}" for part in ("eye", "ear", "shoulder", "elbow", "wrist") for side in ("left", "right")),
        *(f"{side}_{part}" for part in ("hip", "knee", "ankle") for side in ("left", "right")),
    )
]
"""Where each of COCO's 17 keypoints stands among the 18 joints; COCO has no neck."""

_NECK, _SHOULDERS = joint_index("neck"), [joint_index("right_shoulder"), joint_index("left_shoulder")]
_PERSON = 1


class PoseEstimator(nn.Module):
    """Image to 18 heat maps, one per joint, zero everywhere for a joint that the picture does not show.

    The network of "Simple Baselines for Human Pose Estimation and Tracking" (Xiao et al. 2018): a backbone, then
    transposed convolutions of 4×4, each doubling the resolution, then a 1×1 convolution. Departures, because crops of
    people are small and the network must be learned from scratch in short time: each doubled map is added to the
    backbone's own map of that resolution, and a 3×3 convolution looks at the last sum; the peak is refined by a
    parabola instead of by a quarter of a cell; and a joint counts as present when its peak is above ``threshold``,
    which belongs to the weights.

    ``channels`` are those of the backbone's maps, from ``map_stride`` on each half the size of the one before. Images
    are (B, 3, H, W) in [-1, 1] and are resized to ``crop_size`` (height, width). Raises ValueError when that is not a
    multiple of ``map_stride``.
    """

    image_mean: Tensor
    image_deviation: Tensor
    threshold: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        channels: Sequence[int],
        width: int = 128,
        map_stride: int = 4,
        crop_size: tuple[int, int] = (128, 64),
    ) -> None:
        super().__init__()
        if any(size % map_stride for size in crop_size):
            # Else the cells of a mirrored crop would not be those of the crop.
            raise ValueError(f"crop_size must be a multiple of map_stride {map_stride}, got {crop_size}")
        self.backbone = backbone
        self.map_stride = map_stride
        self.crop_size = crop_size
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, width, 1, bias=False), nn.BatchNorm2d(width)) for count in channels
        )
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for _ in channels[1:]
        )
        self.last = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Conv2d(width, JOINT_COUNT, 1)
        # Most of a heat map is 0: begin near it.
        nn.init.normal_(self.head.weight, std=0.001)
        self.register_buffer("threshold", torch.tensor(0.5))
        self.register_buffer("image_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_deviation", torch.tensor(IMAGENET_DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 18 map_h map_w"]:
        """Heat maps at ``1 / map_stride`` of the crop's resolution, 1 at a joint that is surely there."""
        if tuple(images.shape[-2:]) != self.crop_size:
            images = F.interpolate(images, size=self.crop_size, mode="bilinear", align_corners=False, antialias=True)
        levels = self.backbone(((images + 1) / 2 - self.image_mean) / self.image_deviation)
        maps = self.lateral[-1](levels[-1])
        for up, lateral, level in zip(self.up, self.lateral[-2::-1], levels[-2::-1], strict=True):
            # A map of odd size was rounded up when it was halved.
            maps = up(maps)[..., : level.shape[-2], : level.shape[-1]] + lateral(level)
        return self.head(self.last(maps))

    def target_maps(
        self, keypoints: Float[Tensor, "b 18 2"], present: Bool[Tensor, "b 18"]
    ) -> Float[Tensor, "b 18 map_h map_w"]:
        """The maps that :meth:`forward` should give for joints in pixels of ``crop_size``."""
        height, width = (size // self.map_stride for size in self.crop_size)
        cells = (keypoints + 0.5) / self.map_stride - 0.5
        return heat_maps(cells, present, height, width, SPREAD_PER_HEIGHT * self.crop_size[0] / self.map_stride)

    def find_joints(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 18 2"], Float[Tensor, "b 18"]]:
        """Each joint's likeliest place, (x, y) in pixels of ``images``, and its peak's height, about 0 … 1.

        Both are read off the mean of the maps of the images and of their mirrored selves, mirrored back (Xiao et al.).
        """
        cells, confidence = find_peaks((self(images).float() + flip_heat_maps(self(images.flip(-1)).float())) / 2)
        height, width = images.shape[-2:]
        # Cells to pixels of the crop to pixels of the images, centres at whole numbers in each.
        scale = cells.new_tensor([width / self.crop_size[1], height / self.crop_size[0]]) * self.map_stride
        return (cells + 0.5) * scale - 0.5, confidence

    @torch.no_grad()
    def estimate(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 18 2"], Bool[Tensor, "b 18"]]:
        """Keypoints, (x, y) in pixels of ``images``, and which of them are present; absent ones lie at (0, 0).

        Call it in evaluation mode; the results lie where the images do.
        """
        keypoints, confidence = self.find_joints(images)
        present = confidence > self.threshold
        return torch.where(present[..., None], keypoints, torch.zeros_like(keypoints)), present


def find_peaks(maps: Float[Tensor, "b n h w"]) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
    """The highest point of each map, (x, y) in cells, and its height.

    Along each axis the cell is refined by a parabola through the logarithms of its own and its neighbours' heights,
    which is exact for a Gaussian (the one-dimensional case of DARK, Zhang et al. 2020); by half a cell at most, and not
    at the border.
    """
    width = maps.shape[-1]
    heights, cells = maps.flatten(2).max(2)
    rows, columns = cells // width, cells % width
    logs = maps.clamp_min(_SMALLEST).log()
    batch, joint = torch.meshgrid(*(torch.arange(n, device=maps.device) for n in maps.shape[:2]), indexing="ij")
    across = _parabola_peak(logs[batch, joint, rows, :], columns)
    down = _parabola_peak(logs[batch, joint, :, columns], rows)
    return torch.stack([columns + across, rows + down], -1), heights


def _parabola_peak(line: Float[Tensor, "b n length"], place: Tensor) -> Float[Tensor, "b n"]:
    """How far from ``place`` the top of the parabola through it and its neighbours lies, -0.5 … 0.5."""
    middle = place.clamp(1, line.shape[-1] - 2)
    before, own, after = line.gather(2, torch.stack([middle - 1, middle, middle + 1], -1)).unbind(-1)
    offset = (before - after) / (2 * (before - 2 * own + after)).clamp_max(-1e-6)
    return torch.where(middle == place, offset.clamp(-0.5, 0.5), torch.zeros_like(offset))


def build_pose_estimator(
    backbone: str = "resnet18",
    *,
    pretrained: bool = False,
    width: int = 128,
    map_stride: int = 4,
    crop_size: tuple[int, int] = (128, 64),
) -> PoseEstimator:
    """A pose estimator on a timm backbone whose maps halve from stage to stage.

    Raises InputError when timm has no such backbone, when it has no map at ``map_stride``, or when its ImageNet
    weights are asked for and cannot be had.
    """
    require_backbone("pose_estimator", backbone)
    strides = _map_strides(backbone)
    wanted = [index for index, stride in enumerate(strides) if stride >= map_stride]
    expected = [map_stride * 2**power for power in range(len(wanted))]
    if not wanted or [strides[index] for index in wanted] != expected:
        raise InputError(
            f"pose_estimator.backbone: {backbone!r} has feature maps of strides {strides}, and map_stride "
            f"{map_stride} needs that and each double of it; choose another backbone, for example resnet18, or another "
            "map_stride."
        )
    trunk = create_backbone(
        "pose_estimator", backbone, pretrained=pretrained, features_only=True, out_indices=tuple(wanted)
    )
    channels: list[int] = trunk.feature_info.channels()  # type: ignore[union-attr, operator]
    return PoseEstimator(trunk, channels, width, map_stride, crop_size)


def _map_strides(backbone: str) -> list[int]:
    """How much smaller than the image each of the backbone's feature maps is; none where it gives no maps."""
    try:
        with torch.device("meta"):
            trunk = timm.create_model(backbone, features_only=True)
            return list(trunk.feature_info.reduction())  # type: ignore[union-attr, operator]
    except (RuntimeError, AttributeError, NotImplementedError):
        return []


class KeypointRcnn(nn.Module):
    """torchvision's Keypoint R-CNN as a pose estimator that was trained on COCO, not on the data set's own crops.

    Of each picture the likeliest person's joints are taken, those whose keypoint score is above ``threshold`` as
    present; the neck, which COCO lacks, is the mean of the shoulders, present when both are.
    """

    def __init__(self, detector: nn.Module, threshold: float = 2.0) -> None:
        super().__init__()
        self.detector = detector
        self.threshold = threshold

    @torch.no_grad()
    def estimate(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 18 2"], Bool[Tensor, "b 18"]]:
        """Keypoints, (x, y) in pixels of ``images``, and which of them are present; absent ones lie at (0, 0).

        Images are in [-1, 1]. Call it in evaluation mode; a picture in which nobody is found has no joints.
        """
        keypoints = torch.zeros(len(images), JOINT_COUNT, 2, device=images.device)
        present = torch.zeros(len(images), JOINT_COUNT, dtype=torch.bool, device=images.device)
        for number, found in enumerate(self.detector([(image + 1) / 2 for image in images])):
            people = (found["labels"] == _PERSON).nonzero()[:, 0]
            if not len(people):
                continue
            best = people[found["scores"][people].argmax()]
            # torchvision counts from the corner of the first pixel, posereid from its centre.
            keypoints[number, _COCO_ORDER] = found["keypoints"][best, :, :2].float() - 0.5
            present[number, _COCO_ORDER] = found["keypoints_scores"][best] > self.threshold
        keypoints[:, _NECK] = keypoints[:, _SHOULDERS].mean(1)
        present[:, _NECK] = present[:, _SHOULDERS].all(1)
        return torch.where(present[..., None], keypoints, torch.zeros_like(keypoints)), present


def load_keypoint_rcnn(device: str | torch.device = "cpu") -> KeypointRcnn:
    """Keypoint R-CNN with torchvision's COCO weights from torch.hub's folder of checkpoints, never downloaded.

    Raises InputError when the file is not there or cannot be used.
    """
    url = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        raise InputError(f"{path}: no such weights; put the file of {url} there, or train a pose estimator instead.")
    detector = build_keypoint_rcnn()
    try:
        detector.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise InputError(
            f"{path} does not hold the weights of {url} ({type(error).__name__}); put that file there again."
        ) from error
    return KeypointRcnn(detector).to(device).eval()


def build_keypoint_rcnn() -> nn.Module:
    """Keypoint R-CNN with random weights; crops are enlarged until their shorter side has 320 pixels."""
    return keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=320, max_size=1333)
