"""Redraw people in new poses and match them across cameras.

The names below are what other projects may rely on; each is imported when it is first asked for, so that
``import posereid`` costs nothing.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posereid.data.layouts import load_crops
    from posereid.errors import InputError
    from posereid.evaluation.ranking import rank_features, rank_gallery
    from posereid.evaluation.reranking import k_reciprocal
    from posereid.evaluation.verification import verify_pairs
    from posereid.features import embed_crops
    from posereid.pose.files import pose_pairs, read_keypoints, write_keypoints
    from posereid.pose.maps import heat_maps
    from posereid.training.checkpoint import load_embedder, load_generator
    from posereid.transfer import redraw

_HOMES = {
    "InputError": "posereid.errors",
    "embed_crops": "posereid.features",
    "heat_maps": "posereid.pose.maps",
    "k_reciprocal": "posereid.evaluation.reranking",
    "load_crops": "posereid.data.layouts",
    "load_embedder": "posereid.training.checkpoint",
    "load_generator": "posereid.training.checkpoint",
    "pose_pairs": "posereid.pose.files",
    "rank_features": "posereid.evaluation.ranking",
    "rank_gallery": "posereid.evaluation.ranking",
    "read_keypoints": "posereid.pose.files",
    "redraw": "posereid.transfer",
    "verify_pairs": "posereid.evaluation.verification",
    "write_keypoints": "posereid.pose.files",
}

__all__ = [
    "InputError",
    "embed_crops",
    "heat_maps",
    "k_reciprocal",
    "load_crops",
    "load_embedder",
    "load_generator",
    "pose_pairs",
    "rank_features",
    "rank_gallery",
    "read_keypoints",
    "redraw",
    "verify_pairs",
    "write_keypoints",
]

try:
    __version__ = version("posereid")
except PackageNotFoundError:
    __version__ = "0.0.0+source"


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'posereid' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
