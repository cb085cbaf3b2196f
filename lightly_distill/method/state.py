"""The state of a distillation: all that a run changes, and what a checkpoint holds."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lightly_distill.errors import DistillError
from lightly_distill.method.config import DistillConfig
from lightly_distill.method.pool import StudentBuilder, StudentPool
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.rounding import Rounding
from lightly_distill.method.start import initial
from lightly_distill.method.step import RealBatch
from lightly_distill.method.target_maps import TargetMaps
from lightly_distill.models.projection import Projection
from lightly_distill.models.recipe import fused
from lightly_distill.models.rows import Layout
from lightly_distill.runtime.processes import ALONE, Processes, Team

_PROJECTION, _MAPS = "projection.", "maps."  # begin the names of their tensors


@dataclass
class DistillState:
    """All that a run changes.

    Attributes:
        images: Synthetic images, shape (M, C, H, W), normalised, before they are rounded; see `learned`.
        representations: Synthetic targets before they are rounded, rows of shape (M, D).
        targets: Layout of these rows.
        source_index: Index in the source of the real image that each started from, -1 where it was noise, shape (M,).
        pool: Online students.
        optimizer: AdamW over images and representations.
        team: The processes, and how they work together.
        step: Outer steps done.
        jitters: How often a ridge penalty had to grow.
        losses: Outer losses of the steps since the last row of measurements.
        rounding: To 8 bits; None where images and targets are float32.
        projection: Of the target's representations, on the CPU; None where they are its own.
        target_maps: Which map of the target the targets have; None where they have none.
        precision: Of the students' features, `fp32` or `bf16`: what `auto` was found to be.
        initial: What `held_out_loss` returned before the first step; empty until then.
    """

    images: Tensor
    representations: Tensor
    targets: Layout
    source_index: Tensor
    pool: StudentPool
    optimizer: torch.optim.AdamW
    team: Team
    step: int = 0
    jitters: int = 0
    losses: list[float] = field(default_factory=list)
    initial: dict[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    rounding: Rounding | None = None
    projection: Projection | None = None
    target_maps: TargetMaps | None = None

    @classmethod
    def start(
        cls,
        real: RealImages,
        students: Sequence[tuple[str, StudentBuilder]],
        config: DistillConfig,
        processes: Processes = ALONE,
        *,
        chosen: tuple[Tensor, RealBatch] | None = None,
    ) -> "DistillState":
        """Makes the initial state, with an untrained pool.

        Args:
            real: Real images.
            students: Name and builder of each architecture.
            config: All settings.
            processes: Of the run.
            chosen: Indices and batch that the set starts from. Default: as `config.init` says, see `initial`.
        """
        team = Team.of(processes, config.parallel)
        index, batch = chosen or initial(real, config)
        images, representations = (each.contiguous().clone() for each in (batch.images, batch.representations))
        processes.copy_from_main(images, representations)  # on a GPU, computed twice they need not be the same
        targets = real.truth.layout
        # a selection trains no student: one of each kind, or of each process, is enough
        few = replace(config.pool, size=max(len(students), team.split.count))
        own = config.pool if config.steps else few
        pool = StudentPool(students, own, images, targets, config.seed, team, compile=config.compile)
        learned = [{"params": [images]}, {"params": [representations]}]
        optimizer = torch.optim.AdamW(learned, weight_decay=0.0, fused=fused(images.device))
        state = cls(images, representations, targets, index, pool, optimizer, team)
        state.precision = "bf16" if config.precision == "bf16" else "fp32"
        state.projection, state.target_maps = real.projection, real.target_maps
        state.rounding = real.rounding(config) if config.eight_bits else None
        if state.rounding is not None:
            processes.copy_from_main(state.rounding.scales)
        return state

    def learned(self) -> tuple[Tensor, Tensor]:
        """Returns images and targets as the set has them, rounded if it is to have 8 bits; leaves that require grad."""
        images, representations = self.images.detach(), self.representations.detach()
        if self.rounding is not None:
            images, representations = self.rounding.images(images), self.rounding.targets(representations)
        return images.requires_grad_(), representations.requires_grad_()

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of the state by flat name."""
        tensors = self.pool.tensors()
        tensors |= {"images": self.images, "representations": self.representations, "source_index": self.source_index}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adamw.{number}.{name}": value for name, value in moments.items()}
        if self.rounding is not None:
            tensors["scales"] = self.rounding.scales
        if self.projection is not None:
            tensors |= {_PROJECTION + name: value for name, value in self.projection.tensors().items()}
        if self.target_maps is not None:
            tensors |= {_MAPS + name: value for name, value in self.target_maps.projection.tensors().items()}
        return tensors

    def facts(self) -> dict[str, Any]:
        """Returns the numbers of the state, JSON-able."""
        losses = [fmean(each) for each in zip(*self.team.split.gather(self.losses), strict=True)]
        own = {"jitters": self.jitters, "losses": losses, "initial": self.initial, "slots": self.pool.counts()}
        return {**own, "chunk_size": self.pool.chunk_size, "precision": self.precision}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Sets the state to what `tensors` and `facts` returned when it was saved, after `facts["step"]` steps.

        Raises:
            DistillError: If a part is missing or does not fit the others. The step is the random state of a run, since
                every draw follows from it and the seed (see `runtime/seeding.py`), so it is compared with AdamW's own.
        """
        try:
            with torch.no_grad():
                self.images.copy_(tensors["images"])
                self.representations.copy_(tensors["representations"])
                if self.rounding is not None:
                    self.rounding.scales.copy_(tensors["scales"])
            self.source_index = tensors["source_index"]
            moments = _moments(tensors) if facts["step"] or "adamw.0.step" in tensors else {}
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
            self.pool.restore(tensors, facts["slots"])
            self.step, self.jitters, self.initial = facts["step"], facts["jitters"], facts["initial"]
            self.losses = list(facts["losses"])
            self.pool.chunk_size = facts["chunk_size"]
            self.precision = facts.get("precision", self.precision)
            if any(int(own["step"]) != self.step for own in moments.values()):
                raise ValueError(f"it is of step {self.step}, AdamW in it of step {int(moments[0]['step'])}")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split())
            why = f"it lacks {why}" if isinstance(error, KeyError) else why
            raise DistillError(
                f"The checkpoint does not hold the whole state of this run ({why}): start again with --overwrite."
            ) from error


def saved_projection(tensors: dict[str, Tensor]) -> Projection | None:
    """Returns the projection of representations among the tensors of a state, None where there is none."""
    return _projection(tensors, _PROJECTION)


def saved_maps(tensors: dict[str, Tensor], grid: int) -> TargetMaps | None:
    """Returns which maps a state was made with, None where there are none."""
    projection = _projection(tensors, _MAPS)
    return TargetMaps(grid, projection) if projection is not None else None


def _projection(tensors: dict[str, Tensor], prefix: str) -> Projection | None:
    parts = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return Projection(**parts) if parts else None


def _moments(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Returns the state of AdamW over images (0) and representations (1); copies, since it steps them in place."""
    names = ("step", "exp_avg", "exp_avg_sq")
    return {number: {name: tensors[f"adamw.{number}.{name}"].clone() for name in names} for number in (0, 1)}
