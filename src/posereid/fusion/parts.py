"""What a fused embedding is made of: a crop, its mirror image, and its drawings in several poses, each embedded."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from posereid.config import FusionRecipe
from posereid.data.crops import Crop
from posereid.discriminator import PatchDiscriminator
from posereid.embedder import Embedder
from posereid.errors import InputError
from posereid.fusion.costs import PartCosts
from posereid.fusion.embedding import CropCache, PartsEmbedder
from posereid.generator.generator import PoseTransferGenerator
from posereid.messages import complaint, shown
from posereid.pose.canonical import canonical_pose
from posereid.pose.files import read_keypoints
from posereid.pose.joints import Joints
from posereid.progress import progress_bar

CANONICAL_ORDER = ("front", "back", "left", "right", "front_left", "front_right", "back_left", "back_right")
"""The eight named poses, so that the first one, two and four are spread over all directions."""

# Keypoint files of poses are in pixels of a crop of Market-1501's size.
_POSE_FILE_SIZE = (128, 64)
_SAVE_SECONDS = 120


@dataclass(frozen=True, eq=False)
class EmbeddingParts:
    """The embeddings of n crops that fusion combines; P poses, D dimensions, all of unit length, float32.

    ``own`` (n, D) of the crops, ``flipped`` (n, D) of their mirror images; ``posed`` (n, P, D) of the drawings,
    ``posed_flipped`` (n, P, D) of those mirrored; ``realism`` (n, P) in [0, 1], the mean over patches of
    σ(D_I(I_c ‖ I_g)); ``has_pose`` (n,) says which crops have both shoulders and both hips and so can be drawn. The
    others' posed parts are zero. ``costs`` is what the parts took, of all crops in the cache where there is one.
    ``flips`` says whether mirror images were embedded (zeros otherwise), ``judged`` whether D_I looked (ones
    otherwise).
    """

    own: npt.NDArray[np.float32]
    flipped: npt.NDArray[np.float32]
    posed: npt.NDArray[np.float32]
    posed_flipped: npt.NDArray[np.float32]
    realism: npt.NDArray[np.float32]
    has_pose: npt.NDArray[np.bool_]
    costs: PartCosts = field(default_factory=PartCosts)
    flips: bool = True
    judged: bool = False

    def __len__(self) -> int:
        return len(self.own)

    @property
    def without_pose(self) -> int:
        """How many crops cannot be drawn and keep their own embedding."""
        return int((~self.has_pose).sum())


def canonical_targets(recipe: FusionRecipe, crop_size: tuple[int, int]) -> list[tuple[str, Joints]]:
    """Names and joints of the recipe's target poses, in pixels of a crop of ``crop_size`` (height, width).

    The first ``poses`` of :data:`CANONICAL_ORDER`, or of the recipe's ``pose_file``, whose joints are in pixels of a
    128×64 crop. Raises InputError where more poses are asked for than there are, for a file that holds no pose, and
    for a pose without a joint.
    """
    found = every_target(recipe, crop_size)
    if not 1 <= recipe.poses <= len(found):
        source = "the named poses" if recipe.pose_file is None else recipe.pose_file
        raise InputError(
            f"fusion.poses is {recipe.poses}, and there are {len(found)} in {source}; ask for 1 to {len(found)}."
        )
    return found[: recipe.poses]


def every_target(recipe: FusionRecipe, crop_size: tuple[int, int]) -> list[tuple[str, Joints]]:
    """All poses that :func:`canonical_targets` may take the first of. Raises InputError as that does."""
    height, width = crop_size
    if recipe.pose_file is None:
        return [(name, canonical_pose(name, height, width)) for name in CANONICAL_ORDER]
    scale = (width / _POSE_FILE_SIZE[1], height / _POSE_FILE_SIZE[0])
    found = [(name, joints.resized(*scale)) for name, joints in read_keypoints(recipe.pose_file).items()]
    if not found:
        raise complaint(recipe.pose_file, "no pose", "one line for each", "write it with `posereid poses`")
    for name, joints in found:
        if not joints.present.any():
            raise complaint(
                recipe.pose_file, f"the pose {shown(name, 80)} without a joint", "joints to draw", "delete its line"
            )
    return found


@torch.no_grad()
def embed_parts(
    embedder: Embedder,
    crops: Sequence[Crop],
    *,
    embedder_digest: str,
    generator: PoseTransferGenerator | None = None,
    generator_digest: str | None = None,
    discriminator: PatchDiscriminator | None = None,
    discriminator_digest: str | None = None,
    poses: Sequence[Joints] = (),
    flips: bool = True,
    batch_size: int = 32,
    cache: Path | None = None,
    keep_drawings: bool = False,
    progress: bool = False,
) -> EmbeddingParts:
    """Embed crops, their mirror images, and their drawings in ``poses``, in the crops' order.

    ``poses`` are in pixels of the generator's ``crop_size``; ``discriminator`` is D_I. Each network runs where its
    weights lie. ``batch_size`` crops are drawn at a time, pose by pose, which bounds the memory.

    With a folder ``cache`` only what is not there yet is made: each part is kept by what it depends on, a crop known
    by the SHA-256 of its file (and its joints, for drawings), networks by the digests of their weights, as
    ``Checkpoint.digest`` gives them, a pose by its joints. ``keep_drawings`` keeps the pictures there too, for other
    embedders: P times the size of the uncompressed crops.
    An interrupted call keeps what it has done. Raises InputError for a crop that cannot be read, a batch size below 1,
    and a folder that cannot be read or written to; ValueError for poses without a generator, or a network without its
    digest where there is a cache.
    """
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}; it must be at least 1.")
    if poses and generator is None:
        raise ValueError("poses are drawn by a generator, and none is given")
    if not poses:
        generator = discriminator = None
    kept = None
    if cache is not None:
        networks = {"embedder": embedder, "generator": generator, "discriminator": discriminator}
        digests = {"embedder": embedder_digest, "generator": generator_digest, "discriminator": discriminator_digest}
        kept = CropCache(cache, crops, networks, digests)
    has_pose = np.array([can_be_drawn(crop) for crop in crops], bool)
    drawable = np.flatnonzero(has_pose).tolist()
    work = PartsEmbedder(embedder, generator, discriminator, poses, flips, crops, drawable, kept, keep_drawings)
    todo = work.lacking()
    with (
        _evaluating(embedder, generator, discriminator),
        _saving(work) as save_now_and_then,
        progress_bar(len(todo), "embedding", "crop", show=progress) as bar,
    ):
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            work.embed(batch)
            save_now_and_then()
            bar.update(len(batch))
    for table in work.tables:
        table.share_rows()
    return EmbeddingParts(
        **work.arrays, has_pose=has_pose, costs=work.costs, flips=flips, judged=discriminator is not None
    )


@contextmanager
def _saving(work: PartsEmbedder) -> Iterator[Callable[[], None]]:
    """Save what was embedded and drawn when the block ends, however it ends; the function given saves the embeddings
    before, now and then.
    """
    last = time.monotonic()

    def save_now_and_then() -> None:
        nonlocal last
        if time.monotonic() - last > _SAVE_SECONDS:
            for table in work.tables:
                table.save()
            last = time.monotonic()

    # What cannot be saved keeps nothing else from being saved.
    with ExitStack() as at_the_end:
        for table in work.tables:
            at_the_end.callback(table.save)
        if work.drawings is not None:
            at_the_end.callback(work.drawings.save)
        yield save_now_and_then


def can_be_drawn(crop: Crop) -> bool:
    """Whether a crop has both shoulders and both hips, from which it is drawn in other poses."""
    return crop.joints is not None and crop.joints.has_torso


@contextmanager
def _evaluating(*networks: nn.Module | None) -> Iterator[None]:
    """Networks in evaluation mode, and in the mode that they were in afterwards."""
    modes = [(network, network.training) for network in networks if network is not None]
    try:
        for network, _ in modes:
            network.eval()
        yield
    finally:
        for network, mode in modes:
            network.train(mode)
