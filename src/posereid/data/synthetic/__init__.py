"""The synthetic pedestrian world: dressed people before different cameras, with exact joints and masks.

:func:`synthesize` writes a data set in the Market-1501 layout. :class:`World` gives the same people, cameras
and crops in memory, and :func:`render_crop` draws any person in any pose before any camera.
"""

from posereid.data.synthetic.appearance import Appearance, Pattern
from posereid.data.synthetic.body import Proportions
from posereid.data.synthetic.cameras import Camera, Shot
from posereid.data.synthetic.crop import Person, RenderedCrop, render_crop, render_shot, sample_person
from posereid.data.synthetic.plan import PlannedCrop
from posereid.data.synthetic.poses import Limb, Pose, sample_pose
from posereid.data.synthetic.world import World, synthesize

__all__ = [
    "Appearance",
    "Camera",
    "Limb",
    "Pattern",
    "Person",
    "PlannedCrop",
    "Pose",
    "Proportions",
    "RenderedCrop",
    "Shot",
    "World",
    "render_crop",
    "render_shot",
    "sample_person",
    "sample_pose",
    "synthesize",
]
