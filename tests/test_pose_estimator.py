from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection import KeypointRCNN_ResNet50_FPN_Weights

from posereid.data.batches import CropImages, to_float
from posereid.data.crops import CropTable
from posereid.errors import InputError
from posereid.pose.joints import FLIP_ORDER, JOINT_COUNT, joint_index
from posereid.pose.maps import flip_heat_maps, flip_keypoints, heat_maps
from posereid.pose_estimator import (
    KeypointRcnn,
    PoseEstimator,
    build_keypoint_rcnn,
    build_pose_estimator,
    find_peaks,
    load_keypoint_rcnn,
)
from posereid.training.pose import heat_map_loss


def small(map_stride: int = 2, crop_size: tuple[int, int] = (64, 32), backbone: str = "test_resnet") -> PoseEstimator:
    torch.manual_seed(0)
    return build_pose_estimator(backbone, width=16, map_stride=map_stride, crop_size=crop_size)


@pytest.mark.parametrize("map_stride", [2, 4])
@pytest.mark.parametrize("crop_size", [(64, 32), (128, 64), (52, 28), (44, 36)])
@pytest.mark.parametrize("backbone", ["test_resnet", "resnet10t"])
def test_maps_have_one_cell_for_each_stride(map_stride: int, crop_size: tuple[int, int], backbone: str) -> None:
    estimator = small(map_stride, crop_size, backbone).eval()
    maps = estimator(torch.zeros(2, 3, *crop_size))
    height, width = (size // map_stride for size in crop_size)
    assert maps.shape == (2, JOINT_COUNT, height, width)
    keypoints, present = estimator.estimate(torch.zeros(2, 3, *crop_size))
    assert keypoints.shape == (2, JOINT_COUNT, 2)
    assert keypoints.dtype == torch.float32
    assert present.shape == (2, JOINT_COUNT)
    assert present.dtype == torch.bool
    assert estimator.target_maps(keypoints, present).shape == maps.shape


def test_every_weight_learns() -> None:
    estimator = small()
    # timm begins residual branches at 0, where what is before them learns nothing in the first step.
    with torch.no_grad():
        for weight in estimator.backbone.parameters():
            weight += 0.01 * torch.randn_like(weight)
    F.mse_loss(estimator(torch.randn(4, 3, 64, 32)), torch.rand(4, JOINT_COUNT, 32, 16)).backward()
    still = [n for n, weight in estimator.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert still == []


PLACES = st.lists(
    st.tuples(st.floats(1, 13, width=32), st.floats(1, 29, width=32)), min_size=JOINT_COUNT, max_size=JOINT_COUNT
).map(lambda places: torch.tensor([places]))
EVERY = torch.ones(1, JOINT_COUNT, dtype=torch.bool)


@given(PLACES, st.floats(0.8, 3))
def test_the_peak_of_a_gaussian_is_found_exactly(cells: Tensor, sigma: float) -> None:
    found, heights = find_peaks(heat_maps(cells, EVERY, 32, 16, sigma))
    torch.testing.assert_close(found, cells, rtol=0, atol=2e-3)
    assert (heights > 0.5).all()
    assert (heights <= 1).all()


def test_peaks_at_the_border_and_in_flat_maps_stay_on_their_cell() -> None:
    maps = torch.zeros(1, 4, 8, 6)
    maps[0, 0, 0, 0] = maps[0, 1, 7, 5] = 1
    maps[0, 2] = -0.3
    found, heights = find_peaks(maps)
    assert found[0, :2].tolist() == [[0, 0], [5, 7]]
    assert heights[0, :3].tolist() == pytest.approx([1, 1, -0.3])
    assert found.isfinite().all()


def test_a_peak_between_two_equal_cells_lies_half_way() -> None:
    maps = torch.full((1, 1, 8, 6), 0.1)
    maps[0, 0, 3, 2:4] = 1
    assert find_peaks(maps)[0][0, 0].tolist() == [2.5, 3]


@pytest.mark.parametrize("map_stride", [2, 4])
@pytest.mark.parametrize("factor", [1, 2])
def test_target_maps_give_back_the_joints_in_pixels_of_the_image(map_stride: int, factor: int) -> None:
    estimator = small(map_stride)
    torch.manual_seed(1)
    keypoints = 6 + torch.rand(3, JOINT_COUNT, 2) * torch.tensor([18.0, 50.0])
    maps = estimator.target_maps(keypoints, EVERY.expand(3, -1))
    mirrored = flip_heat_maps(maps)
    estimator.forward = lambda images: mirrored if images[0, 0, 0, 0] else maps  # type: ignore[method-assign]
    images = torch.zeros(3, 3, 64 * factor, 32 * factor)
    images[..., -1] = 1
    found, _ = estimator.find_joints(images)
    torch.testing.assert_close(found, (keypoints + 0.5) * factor - 0.5, rtol=0, atol=0.02 * factor)


def test_joints_below_the_threshold_are_absent_at_zero() -> None:
    estimator = small().eval()
    images = torch.randn(2, 3, 64, 32)
    _, confidence = estimator.find_joints(images)
    estimator.threshold.fill_(confidence.median())
    keypoints, present = estimator.estimate(images)
    assert torch.equal(present, confidence > confidence.median())
    assert present.any()
    assert not present.all()
    assert not keypoints[~present].any()
    assert not keypoints.requires_grad


def test_the_threshold_belongs_to_the_weights() -> None:
    one, other = small(), small()
    one.threshold.fill_(0.25)
    other.load_state_dict(one.state_dict())
    assert other.threshold == 0.25


@pytest.mark.parametrize("map_stride", [2, 4])
def test_a_mirrored_picture_has_the_mirrored_joints(map_stride: int) -> None:
    estimator = small(map_stride).eval()
    images = torch.randn(3, 3, 64, 32)
    keypoints, confidence = estimator.find_joints(images)
    mirrored, mirrored_confidence = estimator.find_joints(images.flip(-1))
    expected, _ = flip_keypoints(keypoints, EVERY.expand(3, -1), 32)
    torch.testing.assert_close(mirrored_confidence, confidence[:, list(FLIP_ORDER)])
    torch.testing.assert_close(mirrored, expected, rtol=0, atol=1e-2)


def test_a_crop_size_between_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of map_stride 4"):
        small(4, (64, 30))


def test_six_crops_are_learned_by_heart_sides_and_all(crops: CropTable) -> None:
    posed = [crop for crop in crops.train if crop.can_pose][::4][:6]
    images = CropImages(posed, 64, 32)
    pixels = to_float(torch.stack([images.image(n) for n in range(len(posed))]))
    keypoints = torch.stack([torch.tensor(images.joints(n).xy) for n in range(len(posed))])
    present = torch.stack([torch.tensor(images.joints(n).present) for n in range(len(posed))])
    mirrored, mirrored_present = flip_keypoints(keypoints, present, 32)
    both_ways = torch.cat([pixels, pixels.flip(-1)])
    estimator = small()
    optimiser = torch.optim.Adam(estimator.parameters(), lr=5e-3)
    target = torch.cat([estimator.target_maps(keypoints, present), estimator.target_maps(mirrored, mirrored_present)])
    for _ in range(120):
        loss = heat_map_loss(estimator(both_ways), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    estimator.eval()
    found, found_present = estimator.estimate(pixels)
    assert (found_present == present).float().mean() > 0.95
    assert (found - keypoints).norm(dim=-1)[found_present & present].quantile(0.9) < 2
    # Asked about the mirrored pictures alone, the network gives the mirrored joints, each on its new side.
    cells, _ = find_peaks(estimator(pixels.flip(-1)).detach())
    distance = ((cells + 0.5) * 2 - 0.5 - mirrored).norm(dim=-1)
    assert distance[mirrored_present].quantile(0.9) < 2


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("resnet1o", {}, r"no model 'resnet1o'; did you mean .*resnet1"),
        ("vit_tiny_patch16_224", {}, r"feature maps of strides \[16, 16.*choose another backbone"),
        ("convnext_atto", {"map_stride": 2}, r"strides \[4, 8, 16, 32\].*map_stride 2 needs .*another map_stride"),
        ("test_resnet", {"pretrained": True}, r"pose_estimator\.pretrained"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_refused(
    backbone: str, options: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    create = timm.create_model

    def without_network(name: str, pretrained: bool = False, **more: object) -> torch.nn.Module:
        if pretrained:
            raise OSError("no network")
        return create(name, **more)

    monkeypatch.setattr(timm, "create_model", without_network)
    with pytest.raises(InputError, match=message):
        build_pose_estimator(backbone, **options)


# --- Keypoint R-CNN ----------------------------------------------------------------------------------------


def test_keypoint_rcnn_speaks_of_the_18_joints() -> None:
    torch.manual_seed(0)
    detector = build_keypoint_rcnn()
    # Smaller and fewer than in use, to be quick.
    detector.transform.min_size, detector.roi_heads.detections_per_img = (64,), 2
    keypoints, present = KeypointRcnn(detector).eval().estimate(torch.zeros(1, 3, 128, 64))
    assert keypoints.shape == (1, JOINT_COUNT, 2)
    assert present.shape == (1, JOINT_COUNT)
    assert not keypoints[~present].any()


def test_the_likeliest_persons_joints_are_taken_and_the_neck_lies_between_the_shoulders() -> None:
    names = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.meta["keypoint_names"]
    places = torch.arange(17.0)[:, None].expand(17, 3) + 0.5
    scores = torch.full((17,), 5.0)
    scores[names.index("left_knee")] = 0
    somebody = {
        "labels": torch.tensor([1, 1, 2]),
        "scores": torch.tensor([0.3, 0.8, 0.9]),
        "keypoints": torch.stack([0 * places, places, 0 * places]),
        "keypoints_scores": torch.stack([0 * scores, scores, scores]),
    }
    nobody = {name: value[:0] for name, value in somebody.items()}

    class Detector(torch.nn.Module):
        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            assert [image.amax() for image in images] == [1, 1]
            return [somebody, nobody]

    keypoints, present = KeypointRcnn(Detector()).estimate(torch.ones(2, 3, 128, 64))
    for number, name in enumerate(names):
        expected = 0 if name == "left_knee" else number
        assert keypoints[0, joint_index(name)].tolist() == [expected, expected]
    shoulders = [names.index("left_shoulder"), names.index("right_shoulder")]
    assert keypoints[0, joint_index("neck")].tolist() == [sum(shoulders) / 2] * 2
    assert present[0].sum() == JOINT_COUNT - 1
    assert not present[1].any()


def test_keypoint_rcnn_is_never_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"keypointrcnn_resnet50_fpn_coco-\w+\.pth: no such weights"):
        load_keypoint_rcnn()
    name = KeypointRCNN_ResNet50_FPN_Weights.COCO_V1.url.rsplit("/", 1)[1]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).write_bytes(b"no weights")
    with pytest.raises(InputError, match="does not hold the weights"):
        load_keypoint_rcnn()
