"""Fusion at search time: embeddings averaged over flips, generated poses and neighbours."""

from posereid.fusion.combine import fuse, fuse_sides, is_transductive, mode_cost_ms, uses_flips, uses_poses
from posereid.fusion.costs import PartCost, PartCosts
from posereid.fusion.neighbours import centralise
from posereid.fusion.parts import EmbeddingParts, can_be_drawn, canonical_targets, embed_parts, every_target

__all__ = [
    "EmbeddingParts",
    "PartCost",
    "PartCosts",
    "can_be_drawn",
    "canonical_targets",
    "centralise",
    "embed_parts",
    "every_target",
    "fuse",
    "fuse_sides",
    "is_transductive",
    "mode_cost_ms",
    "uses_flips",
    "uses_poses",
]
