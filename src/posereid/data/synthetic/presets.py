"""How hard a synthetic world is: every number in which the presets differ."""

from dataclasses import dataclass, replace

from posereid.config import WorldPreset


@dataclass(frozen=True)
class Preset:
    """The numbers of one preset. Rates are probabilities, angles radians, box shifts shares of the crop's size."""

    # Who is seen from where.
    train_cameras: tuple[int, int]
    """Fewest and most cameras that see a training identity, as far as there are cameras and crops."""
    test_cameras: tuple[int, int]
    """The same for test identities."""
    crops_spread: float
    """Standard deviation over mean of an identity's crops beyond the least it must have."""
    one_sided: float
    """Rate of training identities that all cameras see from one direction."""
    heading_jitter: float
    """Largest deviation of a walk from its planned direction."""
    turn_jitter: float
    """Standard deviation of the direction within a walk."""
    stray: float
    """Rate of crops in which the person has turned anywhere."""
    own_activity: float
    """Rate of crops that show an activity of their own, not the walk's."""
    phase_step: float
    """Radians of the gait cycle from one crop of a walk to the next."""
    limb_jitter: float
    """Standard deviation of joint angles within a walk."""

    # What people wear.
    outfit_group: int
    """People in a group, neighbours in number."""
    outfit_shared: float
    """Rate of groups whose people share an outfit; the others dress by themselves."""
    dye: float
    """Largest share of a random colour in a garment's; the less, the more garments have the same few colours."""
    open_jacket: float
    """Rate of open jackets among garments for the trunk other than dresses."""
    logo: float
    """Rate of a print on the chest, where the garment has room for one."""
    back_print: float
    """Rate of a print on the back."""
    backpack: float
    bag: float
    """Rate of shoulder bags and handbags; nobody has both them and a backpack."""

    # What cameras do.
    cast: float
    """Standard deviation of the logarithm of the factor between red and blue."""
    exposure: float
    """Standard deviation of the logarithm of a camera's brightness; a crop's own varies half as much."""
    gamma: float
    """Standard deviation of the logarithm of gamma."""
    contrast: tuple[float, float]
    ambient: tuple[float, float]
    """Share of light that comes from everywhere; the less, the harder the shadows."""
    blur: float
    """Largest standard deviation of the lens's blur, in pixels of a crop 128 high."""
    native_shares: tuple[float, ...]
    """Real rows of the sensor over rows of the crop, one drawn for each camera."""
    furniture: int
    """Posts, trees, cars, bins and bystanders that stand about in a camera's scene."""

    # What boxes and the pose detector do.
    fill: tuple[float, float]
    """Height of the person over the height of the box; above 1 it cuts a little off."""
    occluded: float
    """Rate of crops with something in front of the person."""
    cut: float
    """Rate of boxes that miss a part of the person."""
    loose: float
    """Rate of boxes with much room around the person."""
    shift: tuple[float, float]
    """Standard deviations of the box's misplacement across and down."""
    misses: float
    """Factor on the rates at which a pose detector misses joints that can be seen (cameras.DETECTOR_MISSES)."""


_DEFAULT = Preset(
    train_cameras=(2, 3),
    test_cameras=(2, 4),
    crops_spread=0.7,
    one_sided=0.2,
    heading_jitter=0.35,
    turn_jitter=0.17,
    stray=0.0,
    own_activity=0.0,
    phase_step=0.8,
    limb_jitter=0.05,
    outfit_group=2,
    outfit_shared=0.15,
    dye=1.0,
    open_jacket=0.2,
    logo=0.5,
    back_print=0.25,
    backpack=0.26,
    bag=0.26,
    cast=0.045,
    exposure=0.045,
    gamma=0.07,
    contrast=(0.92, 1.06),
    ambient=(0.52, 0.66),
    blur=0.6,
    native_shares=(1.0, 1.0, 1.0, 0.75),
    furniture=1,
    fill=(0.90, 1.03),
    occluded=0.08,
    cut=0.07,
    loose=0.02,
    shift=(0.05, 0.025),
    misses=1.0,
)

PRESETS: dict[WorldPreset, Preset] = {
    "easy": replace(
        _DEFAULT,
        train_cameras=(2, 4),
        crops_spread=0.0,
        one_sided=0.0,
        heading_jitter=0.5,
        turn_jitter=0.45,
        stray=0.12,
        own_activity=1.0,
        outfit_group=1,
        outfit_shared=0.0,
        open_jacket=0.15,
        logo=0.4,
        back_print=0.1,
        backpack=0.24,
        bag=0.28,
        cast=0.03,
        exposure=0.03,
        gamma=0.05,
        contrast=(0.94, 1.05),
        ambient=(0.54, 0.66),
        blur=0.5,
        native_shares=(1.0, 1.0, 1.0, 0.75),
        fill=(0.85, 0.98),
        cut=0.05,
        loose=0.0,
        shift=(0.045, 0.018),
        misses=0.0,
    ),
    "default": _DEFAULT,
    "hard": replace(
        _DEFAULT,
        test_cameras=(2, 3),
        one_sided=0.45,
        outfit_group=3,
        outfit_shared=0.5,
        dye=0.8,
        open_jacket=0.25,
        logo=0.6,
        back_print=0.35,
        backpack=0.28,
        cast=0.08,
        exposure=0.09,
        gamma=0.12,
        contrast=(0.74, 1.08),
        ambient=(0.44, 0.66),
        blur=0.85,
        native_shares=(1.0, 0.75, 0.55, 0.45),
        furniture=6,
        occluded=0.12,
        cut=0.12,
        loose=0.05,
        shift=(0.06, 0.03),
    ),
}
