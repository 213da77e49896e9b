"""Typed recipes. Every default is the paper's section 4, or the decision taken where the paper is silent."""

import difflib
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from posereid.errors import InputError
from posereid.plain_yaml import plain_yaml

Probability = Annotated[float, Field(ge=0, le=1)]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
KeptShare = Annotated[float, Field(gt=0, le=1)]


_LARGEST_RECIPE = 2**18


Layout = Literal["auto", "market1501", "dukemtmc", "cuhk03", "msmt17", "csv", "shards"]
"""How a data set lies on disk; auto looks at what is there."""

TargetPolicy = Literal["random", "clusters", "gaps"]
"""Where the target poses of generated crops come from."""

WorldPreset = Literal["easy", "default", "hard"]
"""How hard the synthetic world is (docs/synthetic-world.md)."""

FusionMode = Literal["off", "flip", "fusion", "fusion+flip", "nfc", "all"]
"""What is averaged into an embedding at search time; nfc is neighbour feature centralisation."""


class Section(BaseModel):
    """Part of a recipe: checked, complete and unchangeable."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self, **values: Any) -> Self:
        """The same section with other values, checked; pydantic's own copy does not check them."""
        return type(self)(**self.model_dump() | values)


class DataRecipe(Section):
    """Which crops to read, and their size."""

    root: Path | None = Field(None, description="Folder of the data set, or a CSV with path,identity,camera.")
    layout: Layout = Field("auto", description="Layout of the folder; auto looks at what is there.")
    keypoints: tuple[Path, ...] | None = Field(
        None,
        description="Keypoint files; without any, the root's *annotation-{train,query,test}.csv.",
    )
    height: int = Field(128, ge=16, le=1024, description="Height in pixels to which crops are resized.")
    width: int = Field(64, ge=16, le=1024, description="Width in pixels to which crops are resized.")
    validation_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the training identities that no training sees; on them settings of fusion are chosen.",
    )


class WorldRecipe(Section):
    """The synthetic world that `posereid demo` renders, at the height of the data section."""

    identities: int = Field(64, ge=4, description="People, half for training and half for test.")
    crops_per_identity: int = Field(24, ge=4, description="Crops of each person over all cameras, on average.")
    cameras: int = Field(4, ge=2, le=9, description="Cameras.")
    preset: WorldPreset = Field("default", description="How hard the world is (docs/synthetic-world.md).")


class GeneratorRecipe(Section):
    """The pose-transfer generator (section 3.1 and 3.2)."""

    blocks: int = Field(4, ge=2, le=5, description="N, the number of PAAN and of PAGN blocks.")
    base_width: int = Field(32, ge=4, le=512, description="Channels at full resolution; doubled at each halving.")
    max_width: int = Field(512, ge=4, le=2048, description="Most channels that any map has.")
    adain: Literal["literal", "pose_content"] = Field(
        "pose_content", description="Which side of equation 3 takes the other's statistics."
    )
    start: Literal["pose", "appearance"] = Field(
        "pose", description="What PAGN's appearance stream starts from: the smallest target-pose map, or f_N^I."
    )
    content: Literal["last", "same_scale"] = Field(
        "last", description="What equation 3 takes of the source: f_N^I resized, or PAAN's map at the block's scale."
    )
    texture: Literal["none", "limbs"] = Field(
        "none",
        description="Beyond the paper: limbs lays the source's pixels over the target pose, part by part of the body.",
    )
    cameras: bool = Field(False, description="Beyond the paper: the generator is told which camera the target is from.")


class DiscriminatorRecipe(Section):
    """D_I and D_P, two instances of one class (Figure 7)."""

    base_width: int = Field(64, ge=4, le=512, description="Channels after the first convolution.")
    layers: int = Field(3, ge=1, le=5, description="Convolutions of stride 2 before the patch logits.")


class EmbedderRecipe(Section):
    """E, the re-ID network (section 4)."""

    backbone: str = Field("resnet50", description="Any timm backbone.")
    pretrained: bool = Field(
        True,
        description="Start from ImageNet weights; false trains from scratch. Never falls back in silence.",
    )
    input_height: int = Field(256, ge=16, le=1024, description="Height to which E resizes its images.")
    input_width: int = Field(128, ge=16, le=1024, description="Width to which E resizes its images.")
    dropout: Probability = Field(0.5, description="Dropout of the classifier's middle layer.")


class LossRecipe(Section):
    """The weights of equation 14 and when each term counts. A weight of 0 switches its term off."""

    adversarial: Weight = Field(5.0, description="λ_GAN, of equations 7 and 8.")
    reconstruction: Weight = Field(10.0, description="λ_R, of equation 9.")
    structure: Weight = Field(
        0.0, description="Beyond the paper: weight of 1 - SSIM between drawn and target crops, in parts of λ_R."
    )
    semantic: Weight = Field(10.0, description="λ_S, of equation 10.")
    quartet: Weight = Field(1.0, description="λ_quartet, of equation 12.")
    identity: Weight = Field(1.0, description="λ_id, of equation 13.")
    appearance_discriminator: bool = Field(True, description="Whether D_I takes part (an ablation of Table 3).")
    pose_discriminator: bool = Field(True, description="Whether D_P takes part (an ablation of Table 3).")
    saturating: bool = Field(
        False,
        description="Use the literal log(1 - D) for the generator instead of the non-saturating -log D.",
    )
    norms: Literal["mean", "sum"] = Field(
        "mean",
        description="Whether equations 9 and 10 are means over elements, or the sums over each image's pixels and each "
        "embedding's dimensions that ‖·‖₁ says.",
    )
    margin: float = Field(-1.0, description="τ1 of equation 12.")
    intra_margin: float = Field(0.01, description="τ2 of equation 12.")
    semantic_teaches_embedder: bool = Field(
        True, description="Whether the gradient of equation 10 reaches E; if not, it moves the generator alone."
    )
    quartets_with_generated: bool = Field(True, description="Whether quartets may hold generated images.")
    perceptual: Weight = Field(
        0.0,
        description="Beyond the paper: weight of the distance between what E sees of drawn and target crops, its "
        "feature maps and its embedding, ramped in as the semantic term is.",
    )
    embedder_learns_generated: bool = Field(
        True, description="Whether E's identity and quartet terms hold generated images; if not, E stays a judge."
    )
    adversarial_warmup: int = Field(0, ge=0, description="Steps before the adversarial terms begin.")
    adversarial_ramp: int = Field(0, ge=0, description="Steps over which their weight then rises to its full value.")
    semantic_warmup: int = Field(0, ge=0, description="Steps before the semantic-consistency term begins.")
    semantic_ramp: int = Field(0, ge=0, description="Steps over which its weight then rises to its full value.")

    @model_validator(mode="after")
    def _structure_stands_beside_reconstruction(self) -> "LossRecipe":
        if self.structure and not self.reconstruction:
            raise ValueError(
                f"structure is {self.structure:g}, in parts of reconstruction, which is 0; give reconstruction a weight"
            )
        return self


class OptimiserRecipe(Section):
    """Adam, constant for the first part of training, then linear to zero (section 4)."""

    learning_rate: float = Field(2e-4, gt=0, description="Learning rate before the decay.")
    betas: tuple[DecayRate, DecayRate] = Field((0.5, 0.999), description="Adam's two decay rates.")
    weight_decay: Weight = Field(0.0, description="Adam's L2 penalty.")
    constant_share: Probability = Field(0.5, description="Share of training before the linear decay begins.")


class JointRecipe(Section):
    """Joint training of generator, discriminators and embedder (equation 14)."""

    epochs: int = Field(800, ge=1, description="Passes of pairs_per_epoch pairs.")
    pairs_per_epoch: int = Field(4000, ge=1, description="Random pose pairs that make one epoch.")
    batch_size: int = Field(16, ge=3, description="Pairs in one step over all processes; each of another identity.")
    flip: Probability = Field(0.5, description="Share of pairs that are mirrored, joints and all.")
    generator: OptimiserRecipe = Field(default_factory=OptimiserRecipe, description="Adam of the generator.")
    discriminators: OptimiserRecipe = Field(default_factory=OptimiserRecipe, description="Adam of D_I and D_P.")
    embedder: OptimiserRecipe = Field(default_factory=OptimiserRecipe, description="Adam of E.")
    log_every: int = Field(10, ge=1, description="Steps between two records of the log.")
    sample_every: int = Field(500, ge=1, description="Steps between two contact sheets.")
    checkpoint_every: int = Field(1000, ge=1, description="Steps between two checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that stay on disk.")


class AugmentationRecipe(Section):
    """Drawing the training identities in new poses."""

    poses_per_crop: int = Field(1, ge=1, description="K, target poses per training crop.")
    target_poses: TargetPolicy = Field(
        "random",
        description="Where target poses come from: random other crops; random clusters of poses, each as often; or "
        "clusters and directions that the identity lacks.",
    )
    pose_clusters: int = Field(8, ge=1, le=512, description="Clusters of poses for the policies clusters and gaps.")
    batch_size: int = Field(32, ge=1, description="Crops drawn at a time.")
    workers: int = Field(2, ge=1, le=64, description="Threads that encode and write crops.")


class FilteringRecipe(Section):
    """Which generated crops are kept: the best share by each measure. A share of 1 switches a measure off."""

    identity: KeptShare = Field(1.0, description="Share kept by distance between embeddings of source and drawing.")
    pose: KeptShare = Field(1.0, description="Share kept by how well the drawing shows its target pose.")
    pose_by: Literal["discriminator", "keypoints"] = Field(
        "discriminator", description="Whether D_P's score or the error of keypoints found says how well."
    )
    realism: KeptShare = Field(1.0, description="Share kept by D_I's score.")
    near_duplicate: float = Field(
        3.0, ge=0, description="Two drawings of one crop whose pixels differ less on average (0 … 255) are duplicates."
    )
    batch_size: int = Field(64, ge=1, description="Crops scored at a time.")


class ReidRecipe(Section):
    """Training of E on real and generated crops (section 3.7)."""

    epochs: int = Field(60, ge=1, description="Passes of quartets_per_epoch quartets.")
    quartets_per_epoch: int = Field(4000, ge=1, description="Random quartets that make one epoch.")
    quartets_per_batch: int = Field(16, ge=2, description="Quartets in one step over all processes: 4 images each.")
    optimiser: OptimiserRecipe = Field(
        default_factory=lambda: OptimiserRecipe(betas=(0.9, 0.999)), description="Adam of E."
    )
    flip: Probability = Field(0.5, description="Share of crops that are mirrored.")
    padding: int = Field(4, ge=0, description="Pixels by which a crop is shifted at most, each way.")
    generated_in_quartets: bool = Field(
        True,
        description="Whether generated crops enter quartets; if not, they enter the identity loss alone.",
    )
    generated_labels: Literal["source", "smoothed", "uniform"] = Field(
        "source",
        description="What the identity loss says of generated crops: they are their source's identity, are it up to "
        "label_smoothing, or may be anybody (LSRO), which keeps them out of quartets.",
    )
    label_smoothing: Probability = Field(
        0.1, description="Probability that smoothed labels spread evenly over all identities."
    )
    generated_share: float | None = Field(
        None,
        gt=0,
        le=0.9,
        description="Share of generated crops in each batch, to the nearest image in quartets; beside them at least "
        "one per quartet. Without it they are drawn as they come.",
    )
    generated_warmup: int = Field(0, ge=0, description="Epochs on generated crops alone before real ones join in.")
    log_every: int = Field(10, ge=1, description="Steps between two records of the log.")
    checkpoint_every: int = Field(1000, ge=1, description="Steps between two checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that stay on disk.")


class RerankingRecipe(Section):
    """k-reciprocal re-ranking (Zhong et al. 2017), with their values for Market-1501."""

    k1: int = Field(20, ge=1, description="Neighbours within which two crops must list each other.")
    k2: int = Field(6, ge=1, description="Neighbours over which a crop's neighbourhood is averaged.")
    lambda_value: Probability = Field(0.3, description="Weight of the original distance in the final one.")


class FusionRecipe(Section):
    """Embeddings averaged over generated poses, and over neighbours, at search time."""

    poses: int = Field(1, ge=0, le=64, description="Canonical poses in which each crop is drawn; 1 or more to fuse.")
    pose_file: Path | None = Field(
        None, description="Keypoint file of canonical poses (from `posereid poses`); without it the eight named ones."
    )
    weight: Probability = Field(
        0.0,
        description="Weight of the generated poses' mean beside the crop's own embedding; 0, the control, until "
        "`posereid tune-fusion` has chosen one.",
    )
    by_realism: bool = Field(False, description="Weigh each generated pose by D_I's word on it.")
    neighbours: int = Field(2, ge=1, description="Nearest crops that neighbour feature centralisation looks at.")
    mutual_within: int = Field(2, ge=1, description="How near a crop must be to its neighbour, as a rank, in return.")
    pool_sides: bool = Field(False, description="Whether queries and gallery may be neighbours of each other.")
    batch_size: int = Field(32, ge=1, description="Crops drawn at a time.")


class PoseEstimatorRecipe(Section):
    """The network that finds joints in generated pictures, trained on the real crops, and its training."""

    backbone: str = Field("resnet18", description="Any timm backbone whose maps halve from stage to stage.")
    pretrained: bool = Field(False, description="Start from ImageNet weights. Never falls back in silence.")
    width: int = Field(128, ge=4, le=512, description="Channels of the transposed convolutions.")
    map_stride: Literal[2, 4] = Field(4, description="Pixels of the crop, each way, to one cell of a heat map.")
    epochs: int = Field(60, ge=1, description="Passes of the posed training crops.")
    batch_size: int = Field(32, ge=2, description="Crops in one step over all processes.")
    optimiser: OptimiserRecipe = Field(
        default_factory=lambda: OptimiserRecipe(learning_rate=1e-3, betas=(0.9, 0.999), constant_share=0.1),
        description="Its Adam.",
    )
    log_every: int = Field(10, ge=1, description="Steps between two records of the log.")
    checkpoint_every: int = Field(1000, ge=1, description="Steps between two checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints that stay on disk.")


class EvaluationRecipe(Section):
    """Evaluation on the test split."""

    metric: Literal["cosine", "euclidean"] = Field("cosine", description="Distance between embeddings.")
    same_camera_rule: bool = Field(
        True, description="Whether gallery crops of the query's person from the query's own camera are dropped."
    )
    average_precision: Literal["hits", "trapezoid"] = Field(
        "hits", description="Precision averaged at the hits, or the trapezoid of the original Market-1501 code."
    )
    multi_query: Literal["none", "mean", "max"] = Field(
        "none", description="How a person's crops from one camera are pooled into one query."
    )
    rerank: bool = Field(False, description="Rank by k-reciprocal distances too.")
    reranking: RerankingRecipe = Field(default_factory=RerankingRecipe, description="How re-ranking works.")
    false_match_rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (1e-2, 1e-3, 1e-4), min_length=1, description="False-match rates for which a threshold is chosen."
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="Confidence of every interval.")
    resamples: int = Field(2000, ge=100, description="Draws of people from which intervals are made.")
    resampling_seed: int = Field(0, ge=0, description="Seed of those draws; the same for every run.")
    batch_size: int = Field(64, ge=1, description="Crops embedded or drawn at a time.")
    pairs: int = Field(2000, ge=1, description="Test pose pairs on which image quality is measured.")
    pairs_file: Path | None = Field(
        None, description="CSV with columns from,to that names the test pairs, instead of a random draw."
    )
    pairs_seed: int = Field(0, ge=0, description="Seed that picks those pairs; the same for every run.")
    max_rank: int = Field(50, ge=1, le=100_000, description="Length of the CMC curve.")
    fusion: FusionRecipe = Field(default_factory=FusionRecipe, description="Fusion at search time.")

    @model_validator(mode="after")
    def _resamples_reach_the_tails(self) -> "EvaluationRecipe":
        needed = math.ceil(2 / (1 - self.confidence))
        if self.resamples < needed:
            raise ValueError(
                f"resamples is {self.resamples}; intervals of confidence {self.confidence:g} need at least {needed}"
            )
        return self


class RuntimeRecipe(Section):
    """Where and how it runs."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Accelerator; auto takes what is there.")
    devices: int = Field(1, ge=1, description="Processes, one per device.")
    num_nodes: int = Field(1, ge=1, description="Machines.")
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "32-true", description="Fabric's precision; auto takes bf16-mixed where the device has units for bfloat16."
    )
    channels_last: bool = Field(True, description="Keep feature maps in channels-last order.")
    fused_adam: bool = Field(True, description="Update all weights of a network in one kernel.")
    compile: bool = Field(
        False, description="Compile the networks with torch.compile, where it works; a minute or more at the start."
    )
    workers: int = Field(0, ge=0, description="Processes that decode crops; 0 decodes in the training process.")
    crop_cache_gb: float = Field(
        2.0, ge=0, description="Memory that decoded crops may take; what does not fit is decoded each time."
    )


class SafetyRecipe(Section):
    """When a run is stopped, or warned about, because something goes wrong."""

    largest_loss: float = Field(1e4, gt=0, description="A larger loss term counts as exploded, like one not finite.")
    skip_steps: int = Field(
        0, ge=0, description="Steps with exploded losses or gradients that are left out before the run stops."
    )
    unreadable_share: Probability = Field(
        0.01, description="Share of training crops that may prove unreadable before the run stops."
    )
    collapse_steps: int = Field(100, ge=1, description="Steps without a break after which a collapse is reported.")


class Recipe(Section):
    """Everything that decides a run."""

    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of every random choice.")
    data: DataRecipe = Field(default_factory=DataRecipe, description="Crops.")
    world: WorldRecipe = Field(default_factory=WorldRecipe, description="What `posereid demo` renders.")
    generator: GeneratorRecipe = Field(default_factory=GeneratorRecipe, description="E_A, E_P, PAAN, PAGN.")
    discriminator: DiscriminatorRecipe = Field(default_factory=DiscriminatorRecipe, description="D_I and D_P.")
    embedder: EmbedderRecipe = Field(default_factory=EmbedderRecipe, description="E.")
    losses: LossRecipe = Field(default_factory=LossRecipe, description="Equation 14.")
    joint: JointRecipe = Field(default_factory=JointRecipe, description="Joint training.")
    augmentation: AugmentationRecipe = Field(default_factory=AugmentationRecipe, description="Generated crops.")
    filtering: FilteringRecipe = Field(default_factory=FilteringRecipe, description="Which generated crops are kept.")
    reid: ReidRecipe = Field(default_factory=ReidRecipe, description="Re-ID training.")
    pose_estimator: PoseEstimatorRecipe = Field(
        default_factory=PoseEstimatorRecipe, description="Finding joints in generated pictures."
    )
    evaluation: EvaluationRecipe = Field(default_factory=EvaluationRecipe, description="Evaluation.")
    runtime: RuntimeRecipe = Field(default_factory=RuntimeRecipe, description="Device, precision, processes.")
    safety: SafetyRecipe = Field(default_factory=SafetyRecipe, description="When a run is stopped or warned about.")

    @model_validator(mode="after")
    def _sizes_divide(self) -> "Recipe":
        factor = 2**self.generator.blocks
        for name in ("height", "width"):
            size = getattr(self.data, name)
            if size % factor:
                raise ValueError(
                    f"data.{name} is {size}; {self.generator.blocks} blocks halve it {self.generator.blocks} "
                    f"times, so it must be a multiple of {factor}"
                )
        return self


Stage = Literal["joint", "reid", "pose", "ablation"]
"""What a command with a recipe does: train, train-reid, train-pose, ablate."""

_EVERY_STAGE = ("seed", "data", "runtime", "safety")
READ_BY: dict[Stage, tuple[str, ...]] = {
    "joint": (*_EVERY_STAGE, "generator", "discriminator", "embedder", "losses", "joint"),
    "reid": (
        *(*_EVERY_STAGE, "embedder", "reid"),
        *("losses.quartet", "losses.identity", "losses.margin", "losses.intra_margin"),
    ),
    "pose": (*_EVERY_STAGE, "pose_estimator"),
    "ablation": tuple(name for name in Recipe.model_fields if name != "filtering"),
}
"""The sections of a recipe, or the fields of one, that each stage reads; the others its command does not offer."""


def bundled_recipes() -> Path:
    """The folder of the recipes that come with posereid."""
    package = Path(__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def read_recipe(path: str | Path) -> Recipe:
    """A recipe from a YAML file; fields that it leaves out keep their defaults.

    A path ``recipes/NAME.yaml`` that is not there is looked up among the recipes that come with posereid.

    Raises InputError that names the file and the field when the file is missing, is no YAML mapping, or holds a
    field or value that no recipe has.
    """
    path = Path(path)
    bundled = bundled_recipes() / path.name
    if not path.exists() and path.parent == Path("recipes") and bundled.is_file():
        path = bundled
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_RECIPE + 1)
        if len(data) > _LARGEST_RECIPE:
            raise ValueError(f"it has more than {_LARGEST_RECIPE:,} bytes, which no recipe needs")
        content = plain_yaml(data.decode(), _LARGEST_RECIPE)
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe; recipes are YAML files, for example recipes/demo.yaml.") from None
    except (OSError, ValueError, LookupError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        first_line = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: this recipe cannot be read as YAML ({first_line}).") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: a recipe is a mapping of fields, found {type(content).__name__}.")
    return parse_recipe(content, str(path))


def parse_recipe(content: dict[Any, Any], origin: str) -> Recipe:
    """A recipe from nested mappings; ``origin`` names their source in error messages. Raises InputError."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{origin}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """The first thing that is wrong with a recipe, in one sentence, with the nearest field that exists."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    name = _cut(".".join(location))
    if first["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"fields here are {', '.join(sorted(known))}."
        return f"the recipe has no field {name!r}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if not location:
        return f"{message}."
    return f"field {name!r} is {_cut(repr(first['input']))}: {message[0].lower()}{message[1:]}."


def _cut(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}…"


def _fields_at(location: list[str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return list(model.model_fields)


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML text, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
