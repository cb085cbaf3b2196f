"""The settings of a distillation: small frozen dataclasses, checked when they are made, saved with every result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import torch
from typing_extensions import Unpack

from lightly_distill.data.reading import Reading, as_range, check_column
from lightly_distill.errors import UsageError, did_you_mean
from lightly_distill.models.recipe import Recipe, RecipeOptions
from lightly_distill.runtime.settings import check_bool, check_number, check_one_of, update


@dataclass(frozen=True)
class OuterConfig:
    """How the synthetic images and representations are stepped (AdamW, linear decay)."""

    lr_images: float = 2e-2
    """Initial learning rate of the synthetic images, in normalised pixel units a step."""
    lr_representations: float = 2e-2
    """Initial learning rate of the synthetic representations."""
    final_lr: float = 1e-3
    """What the learning rates fall towards in equal steps, as a fraction of the initial ones."""
    grain: int = 2
    """Pixels of a side that are changed together, smoothly: images stay smooth, as real ones are, and take fewer bytes.
    1: each pixel by itself."""

    def __post_init__(self) -> None:
        check_number(self, "lr_images", "lr_representations", prefix="outer.")
        check_number(self, "final_lr", least=0, prefix="outer.")
        check_number(self, "grain", prefix="outer.")
        if self.final_lr > 1:
            raise UsageError(f"outer.final_lr is a fraction of the initial rate, from 0 to 1; got {self.final_lr}.")


class OuterOptions(TypedDict, total=False):
    """Fields of `OuterConfig`, as a part of `DistillOptions`."""

    lr_images: float
    lr_representations: float
    final_lr: float
    grain: int


@dataclass(frozen=True)
class PoolConfig(Recipe):
    """The pool of online students and how each is trained on the synthetic set, as pre-training does."""

    size: int = 20
    """Number of students, l in the paper. A short run wants many: images fitted to few networks fit only those."""
    max_age: int = 500
    """Training steps after which a student is replaced by a fresh one, T in the paper. Before the first step each
    student takes up to so many: fewer start sooner and make the set worse; more than the default gained nothing."""

    prefix = "pool."

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "size", "max_age", prefix=self.prefix)


class PoolOptions(RecipeOptions, total=False):
    """Fields of `PoolConfig`, as a part of `DistillOptions`."""

    size: int
    max_age: int


@dataclass(frozen=True)
class RidgeConfig:
    """The closed-form inner solve."""

    strength: float = 1e-6
    """Penalty as a fraction of the kernel's trace. No unit."""
    map_strength: float = 1e-5
    """The same, of the regression at the positions of the maps."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of kernel and solve; never lower than float32, whatever `precision` says."""

    def __post_init__(self) -> None:
        check_number(self, "strength", "map_strength", prefix="ridge.")
        check_one_of("ridge.dtype", self.dtype, ("float32", "float64"))


class RidgeOptions(TypedDict, total=False):
    """Fields of `RidgeConfig`, as a part of `DistillOptions`."""

    strength: float
    map_strength: float
    dtype: Literal["float32", "float64"]


@dataclass(frozen=True)
class DistillConfig:
    """Everything that decides a synthetic set, besides the real images and the target model.

    `student` may be given as a sequence of names too, and is kept comma separated, the form in which it is recorded.
    """

    student: str = "convnet_128_256_512"
    """timm name of the online students; several, comma separated, form a mixed pool."""
    num_images: int = 1000
    """Number of synthetic images, m."""
    steps: int = 2000
    """Outer steps. 0 selects: the set is of real images with their targets, and nothing is learned."""
    batch_size: int = 1024
    """Real images in each outer step; fewer if the source has fewer."""
    image_size: int | None = None
    """Side of the square images in pixels. Default: the source's own, at most 64."""
    target_size: int | None = None
    """Side in pixels of the images that the target sees: the region of the original that the students see, decoded at
    this size, never an enlarged small image unless the original is small. Default: the target's own size (of a timm
    model its pretrained configuration's input_size), or the image size where it has none or none of the first
    originals is larger than that. Give the image size to have the target see what the students see."""
    num_workers: int = 0
    """Processes that read the real images. 0: none; files are decoded by threads then, and a dataset of your own is
    read by this process alone, which any dataset allows: one that holds an open archive allows no more."""
    column: str | None = None
    """Name under which a row or a sample has its image, where there are several, such as image and mask; several names,
    comma separated, are tried in turn."""
    value_range: tuple[float, float] | str | None = None
    """LOW,HIGH: the values that become black and white, where pixels have more than 8 bits or are floating point, such
    as 0,4095. The same for all images. Default: found from some of them; floating-point arrays are in 0,1."""
    source_views: int | Literal["random"] = 0
    """0: real images as they are. K: K fixed views (pad-4 crop and flip) of each, their target representations kept.
    "random": a fresh view and a pass of the target in each step, as the paper's authors do."""
    init: Literal["random", "kmeans", "noise"] = "random"
    """What the synthetic images start from. "random": real images, drawn at random. "kmeans": those nearest to as many
    centroids of the target's representations. "noise": no real image, but normal noise that has mean and
    covariance of real images and their representations."""
    target_dims: int | Literal["auto"] | None = "auto"
    """Predict so many principal components of the target's representations, of the real images that are not held out,
    instead of all their numbers, and keep with the set what brings the target's own space back, and that of its map.
    auto: 64, or as many as there are, without that, which would outweigh a small set. null: the target's own
    numbers."""
    target_whiten: bool = False
    """Scale the principal components to the same variance, so that the loss is not ruled by the first of them."""
    target_map: int | Literal["auto"] = "auto"
    """Predict the target's last map too, averaged to so many cells a side: not only what is in an image but where.
    auto: 2, or 0 where it has no map of so many. 0: no map."""
    map_dims: int = 16
    """Principal components of each cell of the target's map."""
    eight_bits: bool = True
    """Keep images and targets in 8 bits: pixels as any image has them, and targets as whole numbers with a scale. They
    are rounded in every step, and take a quarter of float32's bytes or less."""
    image_quality: int | None = 40
    """Quality, 0 to 100, of the lossy WebP in which the images of a set of 8 bits are stored, a third of the bytes of
    lossless ones; what is decoded is the image, for students as for eyes. null: without loss."""
    target_bits: int = 6
    """Of the 8 bits of each number of a target, those that the real images' need; what is learned may grow beyond."""
    holdout: int = 512
    """Real images kept aside to measure the outer loss; at most a tenth of the source."""
    seed: int = 0
    """Root of every random draw."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N, mps or xpu."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the students' features, and on a GPU of the target's; the ridge solve keeps its own. auto: fp32, but
    bf16 on a processor that computes in it, where the outer loss stays the same to a thousandth and no student has
    convolutions in groups, which are slower in it, or a stride on a map of one pixel, of which torch gets the gradient
    wrong."""
    compile: bool = False
    """Compile the students with torch.compile: wide ones are up to a quarter faster on a CPU, after a minute at first.
    Needs a C++ compiler."""
    parallel: Literal["batch", "pool"] = "batch"
    """With several processes. batch: they divide real batch and synthetic images, with the result of one process. pool:
    each has its own part of the pool, draws a student and a batch of its own, and gradients are averaged."""
    chunk_size: int | Literal["auto"] | None = "auto"
    """Synthetic images that a student is given at a time; fewer need less memory and more time. auto: all, where they
    fit into free memory. null: all. In smaller chunks batch norm is trained on each chunk by itself."""
    log_every: int = 10
    """Outer steps between two lines of metrics.jsonl."""
    checkpoint_every: int | None = None
    """Outer steps between two checkpoints. Default: minutes decide alone: quick steps do not wait for a disk."""
    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints, or fewer where `checkpoint_every` says so."""
    outer: OuterConfig = field(default_factory=OuterConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    ridge: RidgeConfig = field(default_factory=RidgeConfig)

    def __post_init__(self) -> None:
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        check_number(self, "num_images", least=2)
        check_number(self, "batch_size", "log_every", "checkpoint_minutes")
        if self.checkpoint_every is not None:
            check_number(self, "checkpoint_every")
        check_number(self, "map_dims")
        check_number(self, "target_bits", least=2)
        if self.target_bits > 8:
            raise UsageError(f"target_bits is at most 8; got {self.target_bits}.")
        if self.image_quality is not None:
            check_number(self, "image_quality", least=0)
            if self.image_quality > 100:
                raise UsageError(f"image_quality is at most 100, or null: without loss; got {self.image_quality}.")
        check_number(self, "steps", "num_workers", least=0)
        if self.value_range is not None:
            object.__setattr__(self, "value_range", tuple(as_range(self.value_range)))
        check_column(self.column)
        if self.image_size is not None:
            check_number(self, "image_size")
        if self.target_size is not None:
            check_number(self, "target_size")
        if self.target_dims not in ("auto", None):
            check_number(self, "target_dims")
        if self.target_map != "auto":
            check_number(self, "target_map", least=0)
        check_bool(self, "target_whiten", "eight_bits", "compile")
        if self.target_whiten and self.target_dims is None:
            raise UsageError("target_whiten scales principal components: give target_dims, how many.")
        check_one_of("precision", self.precision, ("auto", "fp32", "bf16"))
        check_one_of("init", self.init, ("random", "kmeans", "noise"))
        check_one_of("parallel", self.parallel, ("batch", "pool"))
        chunk = self.chunk_size
        if chunk not in ("auto", None) and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 2):
            raise UsageError(f"chunk_size must be a whole number of at least 2, auto or null; got {chunk!r}.")
        check_number(self, "holdout", "seed", least=0)
        views = self.source_views
        if views != "random" and (isinstance(views, bool) or not isinstance(views, int) or views < 0):
            raise UsageError(f"source_views must be a number of views or 'random'; got {views!r}.")
        if not isinstance(self.device, str):
            raise UsageError(f"device must be a name; got {self.device!r}.")
        object.__setattr__(self, "student", _comma_separated(self.student))  # the way of a frozen dataclass
        if not all(self.students):
            raise UsageError(f"student must be a timm name or several, comma separated; got '{self.student}'.")
        if self.pool.size < len(self.students):
            raise UsageError(
                f"pool.size must be at least {len(self.students)}, one for each student; got {self.pool.size}."
            )

    @property
    def students(self) -> tuple[str, ...]:
        """The names of the students, one for each architecture of the pool."""
        return tuple(name.strip() for name in self.student.split(","))

    @property
    def reading(self) -> Reading:
        """How the real images are read."""
        whole = None if self.value_range is None else as_range(self.value_range)
        return Reading(self.num_workers, self.column, whole)


def _comma_separated(students: str | Sequence[str]) -> str:
    if isinstance(students, str):
        return students
    if not isinstance(students, Sequence) or not all(isinstance(name, str) for name in students):
        raise UsageError(
            f"student is a name, such as 'resnet18', or a sequence of names, from which fresh students are made; got "
            f"{_in_short(students)}."
        )
    return ",".join(students)


def _in_short(value: Any) -> str:
    """Returns a value as text; of what is no plain value, such as a model, its type."""
    plain = isinstance(value, int | float | str | list | tuple) and len(repr(value)) < 80
    return repr(value) if plain else f"a {type(value).__name__}"


class DistillOptions(TypedDict, total=False):
    """Fields of `DistillConfig` as keywords: what an editor shows and a type checker checks. See there."""

    student: str | Sequence[str]
    num_images: int
    steps: int
    batch_size: int
    image_size: int | None
    target_size: int | None
    num_workers: int
    column: str | None
    value_range: tuple[float, float] | str | None
    source_views: int | Literal["random"]
    init: Literal["random", "kmeans", "noise"]
    target_dims: int | Literal["auto"] | None
    target_whiten: bool
    target_map: int | Literal["auto"]
    map_dims: int
    eight_bits: bool
    image_quality: int | None
    target_bits: int
    holdout: int
    seed: int
    device: str
    precision: Literal["auto", "fp32", "bf16"]
    compile: bool
    parallel: Literal["batch", "pool"]
    chunk_size: int | Literal["auto"] | None
    log_every: int
    checkpoint_every: int | None
    checkpoint_minutes: float
    outer: OuterConfig | OuterOptions
    pool: PoolConfig | PoolOptions
    ridge: RidgeConfig | RidgeOptions


_PAPER_POOL = {
    "size": 10,
    "max_age": 1000,
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "mixup": False,
    "crop_and_flip": False,
}


def _paper(num_images: int, image_size: int, student: str, lr: float) -> dict[str, Any]:
    return {
        "student": student,
        "num_images": num_images,
        "image_size": image_size,
        "steps": 160_000,
        "batch_size": 1024,
        "source_views": "random",
        "target_dims": None,
        "target_map": 0,
        "eight_bits": False,
        "image_quality": None,
        "target_bits": 8,
        "outer": {"lr_images": lr, "lr_representations": lr, "final_lr": 1e-3, "grain": 1},
        "pool": _PAPER_POOL,
        "ridge": {"strength": 1e-6},
    }


# The settings of the paper's authors; design of each: KRR-ST, arXiv:2310.06511, section 4 and the released code.
PRESETS: dict[str, dict[str, Any]] = {
    "cifar": _paper(1000, 32, "convnet_128_256_512", 1e-4),
    "tinyimagenet": _paper(2000, 64, "convnet_64_128_256_512", 1e-5),
    "imagenet64": _paper(1000, 64, "convnet_64_128_256_512", 1e-5),
}


def as_recorded(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns recorded settings with what the version that recorded them did not know, as it was then."""
    before: dict[str, Any] = {
        "num_workers": 0,
        "column": None,
        "value_range": None,
        "target_dims": None,
        "target_whiten": False,
        "target_map": 0,
        "map_dims": 64,
        "eight_bits": False,
        "image_quality": None,
        "target_bits": 8,
    }
    filled = {**before, **recorded}
    filled.pop("image_bits", None)  # of sets without loss, between two versions
    outer, pool, ridge = filled.get("outer"), filled.get("pool"), filled.get("ridge")
    if isinstance(outer, Mapping):
        filled["outer"] = {"grain": 1, **outer}
    if isinstance(pool, Mapping):
        filled["pool"] = {"mixup": False, "crop_and_flip": False, "optimizer": "sgd", **pool}
    if isinstance(ridge, Mapping):
        filled["ridge"] = {"map_strength": 1e-5, **ridge}
    return filled


def make_config(preset: str | None = None, **options: Unpack[DistillOptions]) -> DistillConfig:
    """Makes a configuration from a preset and single options.

    Args:
        preset: Name of an entry of `PRESETS`, or None for the defaults.
        options: Fields of `DistillConfig`; a part may be given as a mapping of its fields.

    Raises:
        UsageError: If the preset or an option is unknown, or a value is out of range.
    """
    config = DistillConfig()
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(f"Unknown preset '{preset}'.{did_you_mean(preset, PRESETS)}")
        config = update(config, PRESETS[preset])
    return update(config, options)
