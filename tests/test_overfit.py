"""The whole generator can learn: four pairs by heart."""

import pytest
import torch

from posereid.data.batches import CropImages, PosePairs, class_labels, to_float
from posereid.data.crops import CropTable
from posereid.data.sampling import PosePairSampler
from posereid.generator.generator import build_generator
from posereid.generator.pagn import AdaINReading
from posereid.losses import reconstruction_loss

STEPS = 120


@pytest.mark.parametrize("adain", ["literal", "pose_content"])
def test_the_generator_learns_four_pairs_by_heart(crops: CropTable, adain: AdaINReading) -> None:
    train = crops.train
    pairs = PosePairs(CropImages(train, 64, 32), class_labels(train))
    rows = PosePairSampler(train, batch_size=4, pairs_per_epoch=4, seed=0).batch(0, 0)
    batch = pairs[[(0, int(source), int(target)) for source, target in rows]]
    order = torch.channels_last
    source, target = (to_float(pixels) for pixels in (batch.source_images, batch.target_images))
    source, source_pose, target_pose = (
        maps.contiguous(memory_format=order) for maps in (source, batch.source_poses, batch.target_poses)
    )

    torch.manual_seed(0)
    generator = build_generator(blocks=3, base_width=32, max_width=256, adain=adain).to(memory_format=order)
    optimiser = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(STEPS):
        loss = reconstruction_loss(generator(source, source_pose, target_pose), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    assert sum(losses[-10:]) / 10 < 0.05
    # One picture for all four, and each pair's source as its answer, are far worse: this was learned.
    same_for_all = reconstruction_loss(target.mean(0, keepdim=True), target).item()
    assert min(same_for_all, reconstruction_loss(source, target).item()) > 0.1
    # And the answers belong to their questions: another pair's source and poses give another picture.
    with torch.no_grad():
        shifted = generator(*(maps.roll(1, 0) for maps in (source, source_pose, target_pose)))
        assert reconstruction_loss(shifted, target).item() > 0.1
        assert reconstruction_loss(shifted.roll(-1, 0), target).item() < 0.05
