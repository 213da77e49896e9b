"""The demo's report: pictures first, then the figures with what they mean."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from posereid.augmentation.drawing import draw
from posereid.config import EvaluationRecipe, Recipe
from posereid.curves import loss_curves
from posereid.data.batches import CropImages, PosePairs, to_float
from posereid.data.crops import Crop, CropTable
from posereid.evaluation.evaluate import evaluate_run
from posereid.evaluation.fused_table import headline_cells
from posereid.evaluation.generator_quality import pick_test_pairs
from posereid.evaluation.headlines import HEADLINES
from posereid.evaluation.search import Search
from posereid.evaluation_report import quality_section, search_sections
from posereid.generator.generator import PoseTransferGenerator
from posereid.pictures import RankedRow, contact_sheet, ranked_list_sheet, save_png
from posereid.pose.canonical import CANONICAL_POSES, canonical_pose
from posereid.pose.drawing import draw_skeleton
from posereid.report import Cell, ReportPicture, Section, Table, write_report
from posereid.training.checkpoint import load_generator
from posereid.training.samples import pose_pair_sheet

PAIRS_SHOWN = 16
QUERIES_SHOWN = 8
PEOPLE_SHOWN = 6


def write_demo_report(
    path: Path,
    summary: dict[str, Any],
    crops: CropTable,
    recipe: Recipe,
    *,
    generator_run: Path,
    search_run: Path,
    cache: Path,
    logs: Sequence[Path],
) -> Path:
    """Write one self-contained page about a demo and return its path; ``pictures`` beside it holds its pictures."""
    generator = load_generator(generator_run)
    modes = tuple(next(iter(summary["fusion"].values()))["rows"])
    evaluation = evaluate_run(search_run, crops=crops, fusion=modes, generator_run=generator_run, cache=cache)
    assert evaluation.search is not None  # a re-ID run has an embedder
    scale = max(1, 192 // recipe.data.height)
    pairs, canonical = _pairs(generator, crops, scale), _canonical(generator, crops, scale)
    ranked = _ranked(evaluation.search, crops)
    for name, picture in (("pairs", pairs), ("canonical", canonical), ("ranked", ranked)):
        save_png(path.parent / "pictures" / f"{name}.png", picture)
    searched = search_sections(evaluation)
    waiting = summary["waiting_for_data"]
    sections = [
        Section(
            "People redrawn in the poses of other crops",
            "Nobody here was seen in training. The generator gets the source picture, its joints and the target's "
            "joints; it never sees the real target, which stands beside its answer. Backgrounds cannot be known "
            "from the source: the camera is another one.",
            pictures=[ReportPicture(pairs, "Pairs of held-out people, drawn by chance.")],
        ),
        Section(
            "The same people in eight poses that nobody took",
            "The source picture, then the eight canonical poses that `posereid transfer` knows by name.",
            pictures=[ReportPicture(canonical, "Held-out people, canonical poses.")],
        ),
        quality_section(summary["generator"]),
        Section(
            "Who is found again",
            "Rank-1 is the share of queries whose first answer is right; crops that the query's own camera took of "
            "the same person do not count. Intervals are over people; another training seed would move the figures, "
            "too, and that is not in them.",
            tables=[
                _reid_table(summary["reid"]),
                _comparison_table(summary["comparison"]),
                *(
                    Table(("trained on " + name, *header[1:]), rows)
                    for name, fusion in summary["fusion"].items()
                    for header, rows in (headline_cells(fusion),)
                ),
            ],
            pictures=[
                ReportPicture(
                    ranked,
                    "Queries drawn by chance and their first answers, found by the network trained on real crops. A "
                    "solid green frame is right, a dashed red one is wrong.",
                )
            ],
        ),
        *(replace(section, heading=f"{section.heading} (real crops only)") for section in searched),
        Section(
            "How training went",
            "Each term of equation 14 by step. The adversarial terms begin after their warm-up.",
            pictures=[ReportPicture(loss_curves(log), f"Losses of {log.parent.name}.") for log in logs],
        ),
        Section(
            "Where the time went, and with what",
            tables=[
                Table(
                    ("stage", "seconds", "of it waiting for data"),
                    [
                        (name, f"{seconds:.1f}", f"{waiting[name]:.1%}" if name in waiting else "")
                        for name, seconds in summary["seconds"].items()
                    ],
                ),
                Table(("version of", ""), list(summary["versions"].items())),
            ],
        ),
    ]
    facts = {
        "seed": summary["seed"],
        "device": f"{summary['device']}, {summary['threads']} threads, {summary['machine']}",
        "precision of the joint training": summary["precision"],
        "peak memory": f"{summary['peak_memory_gb']} GB",
    }
    write_report(path, title="posereid: the whole job on the synthetic world", summary=facts, sections=sections)
    return path


def _reid_table(rows: dict[str, dict[str, Any]]) -> Table:
    cells: list[tuple[Cell, ...]] = []
    for name, row in rows.items():
        figures = (f"{row[key]:.1f} [{low:.1f}, {high:.1f}]" for key, (low, high) in row["intervals"].items())
        cells.append((name, *figures))
    chance = next(iter(rows.values()))["chance_rank1"]
    header = ("trained on", *(f"{label} % and interval" for label in HEADLINES.values()))
    return Table(header, [*cells, ("a random order", f"{chance:.1f}", "", "", "", "")])


def _comparison_table(comparison: dict[str, Any]) -> Table:
    header = ("generated crops added: figure", "real %", "real and generated %", "difference", "interval", "verdict")
    rows = [
        (
            HEADLINES[name],
            f"{row['first']:.1f}",
            f"{row['second']:.1f}",
            f"{row['difference']:+.1f}",
            f"[{row['low']:+.1f}, {row['high']:+.1f}]",
            ("better" if row["difference"] > 0 else "worse") if row["real"] else "cannot be told apart",
        )
        for name, row in comparison["differences"].items()
    ]
    return Table(header, rows)


@torch.no_grad()
def _pairs(generator: PoseTransferGenerator, crops: CropTable, scale: int) -> Image.Image:
    test = [*crops.query, *crops.gallery]
    rows = pick_test_pairs(test, EvaluationRecipe(pairs=PAIRS_SHOWN, pairs_seed=1))
    pairs = PosePairs(CropImages(test, *generator.crop_size), {crop.identity: 0 for crop in test})
    batch = pairs[[(0, source, target) for source, target in rows]]
    generated = generator(to_float(batch.source_images), batch.source_poses, batch.target_poses, batch.target_cameras)
    return pose_pair_sheet(batch, generated, scale=scale, columns=2)


def _canonical(generator: PoseTransferGenerator, crops: CropTable, scale: int) -> Image.Image:
    height, width = generator.crop_size
    people = _one_of_each([crop for crop in crops.query if crop.can_pose], PEOPLE_SHOWN)
    images = CropImages(people, height, width)
    poses = [canonical_pose(name, height, width) for name in CANONICAL_POSES]
    blank = np.zeros((height, width, 3), np.uint8)
    rows = [[blank, *(draw_skeleton(pose, height, width) for pose in poses)]]
    for position in range(len(people)):
        source = images.image(position)
        drawn = draw(generator, source.expand(len(poses), -1, -1, -1), [images.joints(position)] * len(poses), poses)
        rows.append([_picture(source), *map(_picture, drawn)])
    return contact_sheet(rows, ("source", *(name.replace("_", " ") for name in CANONICAL_POSES)), scale=scale)


def _one_of_each(crops: Sequence[Crop], count: int) -> list[Crop]:
    first = {crop.identity: crop for crop in reversed(crops)}
    chosen = np.random.default_rng(1).permutation(sorted(first))[:count]
    return [first[int(identity)] for identity in chosen]


def _ranked(search: Search, crops: CropTable) -> Image.Image:
    query, gallery = crops.query, crops.gallery
    matched = np.flatnonzero(search.result.first_hit_ranks > 0)
    chosen = np.random.default_rng(1).permutation(matched)[:QUERIES_SHOWN]
    height = 64
    rows = []
    for index in map(int, chosen):
        found = search.ranked(index)
        pictures = CropImages([query[index], *(gallery[int(g)] for g in found.gallery_indices)], height, height // 2)
        shown = [_picture(pictures.image(position)) for position in range(len(pictures))]
        cameras = [gallery[int(g)].camera for g in found.gallery_indices]
        rows.append(RankedRow(shown[0], shown[1:], found.right, query[index].camera, cameras))
    return ranked_list_sheet(rows, scale=2)


def _picture(pixels: torch.Tensor) -> npt.NDArray[np.uint8]:
    return pixels.permute(1, 2, 0).cpu().numpy()
