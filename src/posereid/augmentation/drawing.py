"""The training identities drawn in new poses: a generated set on disk, with a manifest of who made what."""

import hashlib
import json
import platform
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import posereid
from posereid.augmentation.reading import PosesBySize, read_batches
from posereid.augmentation.sets import (
    SCHEMA_VERSION,
    GeneratedSetInfo,
    check_generated_set,
    manifest_rows,
    train_folder,
    write_side_files,
)
from posereid.augmentation.targets import plan_drawings, plan_facts
from posereid.augmentation.unfinished import JPEG_QUALITY, CropWriter, Plan, UnfinishedSet
from posereid.config import AugmentationRecipe
from posereid.data.batches import pose_maps, to_float, to_pixels
from posereid.data.check import require_joint_scale
from posereid.data.crops import CropTable
from posereid.errors import InputError, SharedError, Stopped
from posereid.generator.generator import PoseTransferGenerator
from posereid.pose.joints import Joints
from posereid.processes import another_process_ended, process_count
from posereid.progress import progress_bar
from posereid.training.run_folder import lock_run

_LONGER_THAN_ANY_SET = timedelta(days=60)


@dataclass(frozen=True)
class GeneratedSet:
    """What :func:`augment` wrote: the folder, crops in it, and training crops without a usable pose.

    ``found`` of the crops had been written by an earlier call that did not come to its end.
    """

    folder: Path
    drawn: int
    without_pose: int
    found: int


@torch.no_grad()
def draw(
    generator: PoseTransferGenerator,
    images: torch.Tensor,
    source: Sequence[Joints],
    target: Sequence[Joints],
    cameras: Sequence[int] | None = None,
) -> torch.Tensor:
    """Redraw people: (B, 3, H, W) uint8 pixels and joints in pixels of H × W to (B, 3, H, W) uint8 pixels.

    ``cameras`` are numbers for a generator that knows cameras; without them it draws for any. Runs where the
    generator's weights lie; H × W is its ``crop_size``.
    """
    device = next(generator.parameters()).device
    size = (images.shape[-2], images.shape[-1])
    maps = [pose_maps(poses, size, device) for poses in (source, target)]
    numbers = None if cameras is None else torch.tensor(cameras, device=device)
    return to_pixels(generator(to_float(images.to(device)), *maps, numbers)).cpu()


def augment(
    generator: PoseTransferGenerator,
    crops: CropTable,
    out: Path,
    recipe: AugmentationRecipe,
    *,
    seed: int,
    checkpoint: str,
    restart: bool = False,
    progress: bool = True,
) -> GeneratedSet:
    """Draw the training split of ``crops`` in new poses and write the result as a set of its own.

    ``out`` gets the crops in the source set's own layout (see :func:`posereid.augmentation.sets.listing_files`), their
    keypoints, ``manifest.csv`` and ``set.json``; it appears complete or not at all. ``checkpoint`` is the digest of the
    generator's weights. Memory does not grow with the set but for its plan: pictures are read, drawn and written batch
    by batch.

    Until it is complete the set lies in ``.NAME.unfinished`` beside ``out``. A call that ended early, in whatever way,
    is taken up by the next one with the same arguments, which draws only what is missing and ends with the same bytes;
    ``restart`` begins anew. Where several processes were launched (torch.distributed), all call this alike, each draws
    its share of the batches, and the set is that of one process, byte for byte: all use as many threads as the first.

    Raises InputError for bad arguments, crops that cannot be read, a full disk, another process that writes the same
    set, and an unfinished set begun with other arguments; Stopped (a KeyboardInterrupt) after SIGINT.
    """
    train = crops.train
    require_joint_scale(train)
    work = UnfinishedSet(out, train_folder(crops.layout))
    try:
        return _Augmentation(generator, train, work, recipe, seed, checkpoint, progress).run(restart=restart)
    except KeyboardInterrupt:
        raise Stopped(
            signal.SIGINT,
            f"SIGINT: stopped; the crops that are written stay in {work.folder}, and the same command goes on there.",
        ) from None
    except RuntimeError as error:
        if another_process_ended(error):
            raise InputError(
                f"another of the {process_count()} processes that draw {out} has ended, and this one with it; its own "
                "message may say why, and the same command goes on from the crops that are written."
            ) from error
        raise


class _Augmentation:
    """One call of :func:`augment`."""

    def __init__(
        self,
        generator: PoseTransferGenerator,
        train: CropTable,
        work: UnfinishedSet,
        recipe: AugmentationRecipe,
        seed: int,
        checkpoint: str,
        progress: bool,
    ) -> None:
        self.generator, self.train, self.work, self.recipe, self.seed = generator, train, work, recipe, seed
        if drawn := sum(crop.generated for crop in train):
            raise SharedError(
                f"{train.root}: {drawn} of its {len(train)} training crops were drawn by a generator themselves; give "
                "the set of real crops."
            )
        try:
            self.drawings = plan_drawings(train, recipe, seed)
        except InputError as error:
            # Every process plans alike.
            raise SharedError(str(error)) from None
        self.rows = manifest_rows(train, self.drawings, checkpoint)
        self.checkpoint = checkpoint
        self.poses = PosesBySize(train, *generator.crop_size)
        self.rank = dist.get_rank() if process_count() > 1 else 0
        self.progress = progress and not self.rank
        # A process waits for the slowest as long as it takes; where one ends, its connections end at once.
        self._group: Any = None
        if process_count() > 1:
            self._group = dist.new_group(backend="gloo", timeout=_LONGER_THAN_ANY_SET)

    def run(self, *, restart: bool) -> GeneratedSet:
        device = next(self.generator.parameters()).device
        plan, finished, problem = self._plan(device), frozenset[str](), None
        with ExitStack() as held:
            if not self.rank:
                try:
                    held.enter_context(lock_run(self.work.folder))
                    plan = self.work.begin(plan, restart=restart)
                    finished = self._finished()
                except InputError as error:
                    problem = error
            plan, finished = self._from_first((plan, finished), problem)
            with _reproducible(plan["threads"]):
                self._draw(finished)
            self._wait()
            problem = None
            if not self.rank:
                try:
                    self._finish(plan)
                except InputError as error:
                    problem = error
            self._from_first(None, problem)
        if not self.rank:
            self.work.remove()
        without_pose = sum(not crop.can_pose for crop in self.train)
        return GeneratedSet(self.work.out, len(self.drawings), without_pose, len(finished))

    def _plan(self, device: torch.device) -> Plan:
        height, width = self.generator.crop_size
        # How many threads write does not change what they write.
        section = self.recipe.model_dump(mode="json", exclude={"workers"})
        recipe = {"augmentation": section, "height": height, "width": width}
        kind = device.type if device.type != "cuda" else f"cuda ({torch.cuda.get_device_name(device)})"
        return {
            "schema_version": SCHEMA_VERSION,
            "checkpoint": self.checkpoint,
            "seed": self.seed,
            "source_fingerprint": self.train.fingerprint,
            "recipe": recipe,
            "recipe_sha256": _digest(recipe),
            "plan_sha256": _digest([(each.name, each.source, each.target) for each in self.drawings]),
            "joints_sha256": _joints_digest(self.train),
            "creation": {
                "versions": _versions(),
                "device": kind,
                "precision": "32-true",
                "jpeg_quality": JPEG_QUALITY,
            },
            "threads": torch.get_num_threads(),
        }

    def _finished(self) -> frozenset[str]:
        if self.work.complete:
            return frozenset(each.name for each in self.drawings)
        names = (each.name for each in self.drawings)
        return self.work.written(names, self.generator.crop_size, self.recipe.workers)

    def _draw(self, finished: frozenset[str]) -> None:
        """Draw this process's share of the batches that are not finished, and write what they lack."""
        size = self.recipe.batch_size
        batches = [self.drawings[start : start + size] for start in range(0, len(self.drawings), size)]
        missing = [batch for batch in batches if any(each.name not in finished for each in batch)]
        own = missing[self.rank :: process_count()]
        done = sum(map(len, batches)) - sum(map(len, missing)) if process_count() == 1 else 0
        self.generator.eval()
        with (
            progress_bar(done + sum(map(len, own)), "augment", "crop", show=self.progress, first=done) as bar,
            CropWriter(self.work, self.recipe.workers, 2 * size) as writer,
        ):
            for batch in read_batches(own, self.train, self.poses):
                drawn = draw(
                    self.generator,
                    batch.images,
                    batch.source_poses,
                    batch.target_poses,
                    [self.train[each.source].camera for each in batch.drawings],
                )
                for each, pixels in zip(batch.drawings, drawn, strict=True):
                    if each.name not in finished:
                        writer.put(each.name, pixels)
                bar.update(len(drawn))

    def _finish(self, plan: Plan) -> None:
        """Write what lies beside the crops and give the set its name."""
        if self.work.complete:
            check_generated_set(self.work.out, checkpoint=self.checkpoint)
        else:
            folder = self.work.set
            joints = {each.name: self.poses.joints(each.target) for each in self.drawings}
            write_side_files(folder, self.train.layout, self.rows, joints, self._info(plan))
            check_generated_set(folder, checkpoint=self.checkpoint)
            self.work.finish()

    def _info(self, plan: Plan) -> GeneratedSetInfo:
        threads = {"threads": plan["threads"]} if plan["creation"]["device"] == "cpu" else {}
        return GeneratedSetInfo(
            source_root=self.train.root.name,
            checkpoint=self.checkpoint,
            seed=self.seed,
            drawn=len(self.drawings),
            schema_version=SCHEMA_VERSION,
            source_fingerprint=plan["source_fingerprint"],
            layout=self.train.layout,
            recipe=plan["recipe"],
            recipe_sha256=plan["recipe_sha256"],
            training_crops_without_pose=sum(not crop.can_pose for crop in self.train),
            identities=len({row.identity for row in self.rows}),
            plan={name: plan[name] for name in ("plan_sha256", "joints_sha256")}
            | plan_facts(self.train, self.drawings, self.recipe),
            creation=plan["creation"] | threads,
        )

    def _from_first(self, value: Any, problem: InputError | None) -> Any:
        """What the first process knows; where it has a problem, all raise it."""
        if self._group is None:
            if problem:
                raise problem
            return value
        known = [value, str(problem) if problem else None]
        dist.broadcast_object_list(known, src=0, group=self._group)
        if known[1]:
            raise SharedError(known[1])
        return known[0]

    def _wait(self) -> None:
        if self._group is not None:
            dist.barrier(self._group)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _joints_digest(crops: CropTable) -> str:
    """The fingerprint of a table does not know where its joints are."""
    digest = hashlib.sha256()
    for crop in crops:
        if crop.joints is not None:
            digest.update(crop.name.encode() + crop.joints.xy.tobytes() + crop.joints.present.tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {
        "posereid": posereid.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("numpy", "pillow")},
    }


@contextmanager
def _reproducible(threads: int) -> Iterator[None]:
    """Make the same batch give the same pixels in every process and call, on the same kind of device.

    Sums on the CPU depend on how many threads share them, and cuDNN has transposed convolutions that add in any order.
    """
    before = torch.get_num_threads(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before[1:]
