"""The table of arms: what a student is pre-trained on, the synthetic set and all that it is compared with.

Another arm is another entry of `ARMS`. Help, report, evaluation and sweep read all that they know of it there.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_distill.data.reading import Reading
from lightly_distill.data.source import Source
from lightly_distill.errors import UsageError
from lightly_distill.evaluation.baselines.labelled import LabelledSide, check_classes, labelled_side
from lightly_distill.evaluation.baselines.matching import distribution_matching
from lightly_distill.evaluation.baselines.ridge import supervised_ridge
from lightly_distill.evaluation.results import DISTILLED, FULL, RANDOM, RANDOM_OF_BYTES, SCRATCH, TIMES
from lightly_distill.evaluation.stored import MOST_WRITTEN, Footprint, most_within, stored_bytes
from lightly_distill.evaluation.tasks import Task
from lightly_distill.method.kmeans import nearest_to_centroids
from lightly_distill.method.sight import Sight
from lightly_distill.runs.origin import RealSide, check_origin, missing_origin, real_side
from lightly_distill.runtime import seeding
from lightly_distill.runtime.device import free_memory
from lightly_distill.synthetic.synthetic_set import SyntheticSet

Need = Literal["real", "labels"]  # the real images and the target; the real images and their labels
_COPIES = 7  # of the targets of a set, at most, while it is made and checked
_SAMPLE = 128  # images, of which the bytes of an image are found
Made = SyntheticSet | nn.Module | None  # to pre-train on; a model that is ready; None: a student is not pre-trained


@dataclass(frozen=True)
class Inputs:
    """What arms are made of, opened once for all of them.

    Args:
        own: The synthetic set.
        real_side: The real images and the target, where an arm needs "real".
        labelled_side: The real images and their labels, where an arm needs "labels".
    """

    own: SyntheticSet
    real_side: RealSide | None = None
    labelled_side: LabelledSide | None = None

    @cached_property
    def own_bytes(self) -> int:
        """Bytes on disk of the synthetic set."""
        return stored_bytes(self.own, self.own)

    def bytes_of(self, made: SyntheticSet) -> int:
        """Returns the bytes of what an arm made."""
        return self.own_bytes if made is self.own else stored_bytes(made, self.own)

    @cached_property
    def target(self) -> "TargetBackbone":
        """The target as a backbone, one for all seeds: it keeps what it has seen of the tasks."""
        return TargetBackbone(self.real)

    @property
    def real(self) -> RealSide:
        """The real images and the target, of arms that need "real"."""
        assert self.real_side is not None, 'the arm lacks "real" in `needs`'
        return self.real_side

    @property
    def labelled(self) -> LabelledSide:
        """The real images and their labels, of arms that need "labels"."""
        assert self.labelled_side is not None, 'the arm lacks "labels" in `needs`'
        return self.labelled_side


def _fits(_inputs: Inputs) -> None:
    """Refuses nothing."""


@dataclass(frozen=True)
class Arm:
    """One kind of pre-training that is measured.

    Attributes:
        name: What a user asks for, and the row of the tables.
        words: What students are pre-trained on, for --help and the report.
        needs: What has to be opened for it.
        is_ceiling: Whether it needs what a synthetic set saves, so that it is never called the best.
        size_matters: Whether the number of synthetic images changes it. An arm that no size changes is measured once by
            a sweep; if it has images, they are the whole source, and they are trained on for `full_epochs`.
        longer: How many times the steps of the recipe its students are trained for, of the whole source at least: more
            images want more.
        make: From the inputs and a seed to what students are pre-trained on.
        check: Refuses inputs that `make` cannot take, before any long work.
    """

    name: str
    words: str
    needs: tuple[Need, ...] = ()
    is_ceiling: bool = False
    size_matters: bool = True
    longer: int = 1
    make: Callable[[Inputs, int], Made] = field(kw_only=True)
    check: Callable[[Inputs], None] = field(default=_fits, kw_only=True)


def _random(inputs: Inputs, seed: int) -> SyntheticSet:
    order = torch.randperm(len(inputs.real.source), generator=seeding.generator(seed, "arm", "random"))
    return inputs.real.chosen(order[: len(inputs.own)])


def _random_of_bytes(times: int) -> Callable[[Inputs, int], Made]:
    """Returns how as many real images are drawn as take so many times the bytes of the set."""

    def make(inputs: Inputs, seed: int) -> SyntheticSet:
        order = torch.randperm(len(inputs.real.source), generator=seeding.generator(seed, "arm", "random"))

        budget, some = times * inputs.own_bytes, inputs.real.chosen(order[:_SAMPLE])
        about = Footprint.of(some, inputs.own).count(budget)
        enough = inputs.real.chosen(order[: max(_SAMPLE, about + about // 4)])
        if about > MOST_WRITTEN:  # so large a set is not written to see its bytes
            return enough.part(torch.arange(min(about, len(enough))))

        def bytes_of(count: int) -> int:
            return inputs.bytes_of(enough.part(torch.arange(count)))

        return enough.part(torch.arange(most_within(budget, bytes_of, len(enough))))

    return make


def _kmeans(inputs: Inputs, seed: int) -> SyntheticSet:
    return inputs.real.chosen(nearest_to_centroids(inputs.real.representations, len(inputs.own), seed))


def _full(inputs: Inputs, _seed: int) -> SyntheticSet:
    return inputs.real.chosen(torch.arange(len(inputs.real.source)))


def _check_memory(inputs: Inputs) -> None:
    """Refuses `full` where the real images and their targets do not fit, in memory or on the GPU."""
    count, size, device = len(inputs.real.source), inputs.real.source.image_size, inputs.real.device
    pixels, targets = count * 3 * size * size, count * inputs.own.layout.width * 4
    needs = {torch.device("cpu"): 2 * pixels + _COPIES * targets}  # pixels as they are and as they are stored
    if device.type == "cuda":
        needs[device] = pixels + targets
    for place, need in needs.items():
        free = free_memory(place)
        if need > free:
            raise UsageError(
                f"The arm full needs {need / 2**30:.1f} GiB of memory ({place}) for all {count:,} real images, "
                f"{free / 2**30:.1f} are free: leave it out."
            )


def _check_classes(inputs: Inputs) -> None:
    check_classes(inputs.labelled.config.num_images, inputs.labelled.labels)


class TargetBackbone(nn.Module):
    """The target as a backbone: takes normalised images, as students do, and enlarges them to what it sees.

    Args:
        real: The target and what it sees of real images.
    """

    def __init__(self, real: RealSide) -> None:
        super().__init__()
        self.target, self._real = real.target, real
        self._tests: dict[str, Tensor] = {}
        self._train: dict[str, dict[int, Tensor]] = {}  # by task and index

    def forward(self, images: Tensor) -> Tensor:
        """Maps normalised images (B, 3, S, S) to representations (B, d)."""
        target, size = self.target, (self._real.target_size,) * 2
        shown = images * target._std + target._mean
        if shown.shape[-2:] != size:
            shown = F.interpolate(shown, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        representation: Tensor = target(shown)
        return representation

    def features(self, task: Task, chosen: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns representations of images of a task, seen as the target sees real images, (n, d) and (k, d).

        Args:
            task: With its sources; their images are decoded again at the target's size, a few at a time.
            chosen: Indices of the n images for training that are wanted; all k for testing are.
        """
        assert task.sources is not None
        train, test = task.sources
        if task.name not in self._tests:
            self._tests[task.name] = self._of(test, torch.arange(len(test)))
        known, wanted = self._train.setdefault(task.name, {}), chosen.tolist()
        missing = [index for index in wanted if index not in known]
        if missing:
            known |= dict(zip(missing, self._of(train, torch.tensor(missing)), strict=True))
        return torch.stack([known[index] for index in wanted]).numpy(), self._tests[task.name].numpy()

    def _of(self, source: Source, indices: Tensor) -> Tensor:
        sight = Sight(source, self._real.frame or source.frame)
        return sight.represented(self.target, indices, self._real.device)


_TABLE = (
    Arm(SCRATCH, "no pre-training: random weights", size_matters=False, make=lambda _inputs, _seed: None),
    Arm(
        RANDOM,
        "as many real images, drawn at random, with the target model's representations",
        ("real",),
        make=_random,
    ),
    *(
        Arm(
            f"{RANDOM_OF_BYTES}-x{times}" if times > 1 else RANDOM_OF_BYTES,
            "as many random real images, with targets of the same kinds, as take "
            + (f"{times} times the bytes of the set" if times > 1 else "the bytes of the set"),
            ("real",),
            longer=min(times, 2),
            make=_random_of_bytes(times),
        )
        for times in TIMES
    ),
    Arm(
        "kmeans",
        "as random, but the real images nearest to the centres of as many clusters of the representations",
        ("real",),
        make=_kmeans,
    ),
    Arm(
        "noise",
        "as random, but images of noise",
        ("real",),
        make=lambda inputs, seed: inputs.real.noise(len(inputs.own), seed),
    ),
    Arm(
        "krr-labels",
        "supervised kernel ridge, after KIP (Nguyen et al., 2021) and FRePo (Zhou et al., 2022): as many images that "
        "the same stage distils from real images and their labels, to predict the learned labels by mean squared "
        "error. Labels are one-hot minus 1/C, made as long, with zeros, and as large as the set's representations",
        ("labels",),
        make=lambda inputs, seed: inputs.labelled.distil(supervised_ridge, seed),
    ),
    Arm(
        "dm",
        "distribution matching (Zhao & Bilen, WACV 2023): as many images, distilled from real images and their labels "
        "in as many steps, to predict their labels, those of krr-labels, by mean squared error",
        ("labels",),
        make=lambda inputs, seed: inputs.labelled.distil(distribution_matching, seed),
        check=_check_classes,
    ),
    Arm(DISTILLED, "the synthetic set", make=lambda inputs, _seed: inputs.own),
    Arm(
        FULL,
        "all real images, a ceiling",
        ("real",),
        is_ceiling=True,
        size_matters=False,
        longer=4,
        make=_full,
        check=_check_memory,
    ),
    Arm(
        "target",
        "the target model itself, a ceiling",
        ("real",),
        is_ceiling=True,
        size_matters=False,
        make=lambda inputs, _seed: inputs.target,
    ),
)
ARMS = {arm.name: arm for arm in _TABLE}  # in the order of the tables
BASELINES = tuple(name for name in ARMS if name != DISTILLED)
GIVEN = "another set that was given"


def given_arm(name: str, synthetic: SyntheticSet, own: SyntheticSet) -> Arm:
    """Makes an arm of a set that the user compares with.

    Raises:
        UsageError: If its images are not of the shape and normalisation of the distilled ones.
    """
    if synthetic.images.shape[1:] != own.images.shape[1:]:
        raise UsageError(
            f"The set '{name}' has images of {_shape(synthetic)}, the distilled one of {_shape(own)}: one student "
            "cannot be tried on both."
        )
    if (synthetic.mean, synthetic.std) != (own.mean, own.std):
        raise UsageError(
            f"The set '{name}' is normalised with mean {synthetic.mean} and std {synthetic.std}, the distilled one "
            f"with {own.mean} and {own.std}: they are of different targets."
        )
    return Arm(name, GIVEN, make=lambda _inputs, _seed: synthetic)


def open_inputs(
    arms: Iterable[Arm],
    synthetic: Any,
    own: SyntheticSet,
    data: Any,
    target: Any,
    device: torch.device,
    representations: Any = None,
    reading: Reading | None = None,
) -> Inputs:
    """Opens what the arms need, and has each of them check it.

    Args:
        arms: That are asked for.
        synthetic: The set, its folder, or that of the run that made it, whose configuration names data and target.
        own: The set.
        data: The real images, or None.
        target: The target model or its specification, or None.
        device: Where the target computes.
        representations: Of the real images, or None; see `find_representations`.
        reading: How the real images are read, where it is not as the set records.

    Raises:
        UsageError: If something is missing, is not what the set was distilled from, or an arm cannot take it.
    """
    arms = list(arms)
    needs = {need for arm in arms for need in arm.needs}
    real = labelled = None
    if "real" in needs:
        missing = missing_origin(synthetic, data, target)
        if missing:
            raise UsageError(
                f"{_those_asked(arms, 'real')} the real images and the target model, which a set without the folder "
                f"of its run does not say: give {missing}, or other baselines."
            )
        real = real_side(
            synthetic,
            data,
            target,
            own,
            device,
            representations=representations,
            in_its_coordinates=True,
            reading=reading,
        )
        check_origin(own, real)
    if "labels" in needs:
        labelled = labelled_side(synthetic, data, own, real, device, _that_need("labels"), reading)
    inputs = Inputs(own, real, labelled)
    for arm in arms:
        arm.check(inputs)
    return inputs


def _that_need(need: Need) -> str:
    *names, last = (arm.name for arm in ARMS.values() if need in arm.needs)
    return f"{', '.join(names)} and {last}"


def _those_asked(arms: Sequence[Arm], need: Need) -> str:
    """Returns the beginning of a sentence on what those of the arms have need of that have it."""
    names = [arm.name for arm in arms if need in arm.needs]
    return f"The arm {names[0]} needs" if len(names) == 1 else f"The arms {', '.join(names[:-1])} and {names[-1]} need"


def _shape(synthetic: SyntheticSet) -> str:
    return "x".join(map(str, synthetic.images.shape[1:]))
