"""Where a set comes from: its real images and its target model, given by the user or named by the run that made it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightly_distill.data.decode import Frame
from lightly_distill.data.pixels import resized
from lightly_distill.data.reading import Reading
from lightly_distill.data.source import Source, find_images, open_source
from lightly_distill.errors import UsageError
from lightly_distill.method.brought import Brought
from lightly_distill.method.config import DistillConfig, as_recorded, make_config
from lightly_distill.method.projection import fit_projection
from lightly_distill.method.representation_cache import Keeper
from lightly_distill.method.sight import Sight
from lightly_distill.method.split import Split
from lightly_distill.method.target_maps import TargetMaps, kept_maps
from lightly_distill.method.truth import TargetTruth
from lightly_distill.method.views import Views
from lightly_distill.models.encoders import is_checkpoint
from lightly_distill.models.projection import Projection
from lightly_distill.models.targets import Target, as_target, load_target
from lightly_distill.runs.representations import find_representations, keeper, reader
from lightly_distill.runs.result import as_set
from lightly_distill.runs.run_folder import run_config
from lightly_distill.runtime import seeding
from lightly_distill.synthetic.synthetic_set import SyntheticSet

CHUNK = 256  # images to the target at a time, of those that are no real ones
MOST = 4096  # pixels a side that a record may ask for


@dataclass
class RealSide:
    """The real images, the target model, and the target's representations and maps of the images, computed once.

    Args:
        source: Real images.
        target: Frozen target model, on `device`.
        device: Where representations are computed.
        frame: What the target sees of each real image; by default what students see.
        keeper: What has or keeps the representations of the images; by default they are computed.
        target_maps: Which map of the target is wanted; None: none.
        projection: Applied to all representations: those of a set are compared with others in its own coordinates.
        recorded: Of a set that has coordinates without their projection, which is found again: how it was made.
        stored: Quality of images, None without loss, and bits of targets of the set that they are compared with; None:
            they are float32.
        bf16: Whether the target computes in bfloat16.
    """

    source: Source
    target: Target
    device: torch.device
    frame: Frame | None = None
    keeper: Keeper | None = None
    target_maps: TargetMaps | None = None
    projection: Projection | None = None
    recorded: DistillConfig | None = None
    stored: tuple[int | None, int] | None = None
    bf16: bool = False

    @cached_property
    def truth(self) -> TargetTruth:
        """What is true of the images as they are."""
        truth = TargetTruth(
            self.source,
            self.target,
            Views(0, len(self.source), 0),
            self.device,
            self.keeper,
            self.frame,
            target_maps=self.target_maps,
            bf16=self.bf16,
        )
        self.target.to(self.device)  # where the truth has taken it from
        projection, made = self.projection, self.recorded
        if projection is None and made is not None and made.target_dims is not None:
            train = Split.of(self.source, made).train
            projection = fit_projection(truth.vectors, train, made.target_dims, whiten=made.target_whiten)
        truth.projection = None if projection is None else projection.to(self.device)
        return truth

    @cached_property
    def rows(self) -> Tensor:
        """Representations and maps of all real images, float32, shape (n, D); see `models/rows.py`."""
        return self.truth.of_images(torch.arange(len(self.source)))

    @property
    def representations(self) -> Tensor:
        """Of all real images, float32, shape (n, d)."""
        return self.truth.layout.split(self.rows)[0]

    @property
    def target_size(self) -> int:
        """Height and width, in pixels, of the images that the target sees."""
        return (self.frame or self.source.frame).size

    def represent(self, images: Tensor) -> Tensor:
        """Returns representations and maps of images that are no real ones, float32, shape (B, D).

        Args:
            images: uint8, shape (B, 3, S, S). They are enlarged to what the target sees.
        """
        batches = (resized(batch, self.target_size) for batch in torch.split(images, CHUNK))
        return self.truth.of_others(batches, len(images))

    def chosen(self, indices: Tensor) -> SyntheticSet:
        """Returns these real images, stored as the set is, with the target's representations and maps of them."""
        return self._as_set(self.source.read(indices), self.rows[indices], indices)

    def noise(self, count: int, seed: int) -> SyntheticSet:
        """Returns uniform noise and the target's representations of it."""
        size = self.source.image_size
        generator = seeding.generator(seed, "arm", "noise")
        images = torch.randint(256, (count, 3, size, size), generator=generator).byte()
        return self._as_set(images, self.represent(images), None)

    def _as_set(self, images: Tensor, rows: Tensor, indices: Tensor | None) -> SyntheticSet:
        layout = self.truth.layout
        rest: dict[str, Any] = {"mean": self.target.mean, "std": self.target.std, "source_index": indices}
        if self.stored is None:
            return SyntheticSet(images, layout.split(rows)[0].contiguous(), **rest)
        quality, target_bits = self.stored
        return as_set(images, rows, layout, image_quality=quality, target_bits=target_bits, **rest)


def missing_origin(synthetic: Any, data: Any, target: Any) -> str:
    """Returns which of `data` and `target` neither the user nor the set's run names, such as `data and target`."""
    known = config_of_run(synthetic)
    there = {
        "data": data is not None or known.get("data") is not None,
        "target": target is not None or _is_only_weights(known),
    }
    return " and ".join(name for name, is_there in there.items() if not is_there)


def real_side(
    synthetic: Any,
    data: Any,
    target: Any,
    own: SyntheticSet,
    device: torch.device,
    *,
    representations: Any = None,
    in_its_coordinates: bool = False,
    reading: Reading | None = None,
) -> RealSide:
    """Opens the real images and the target, which the configuration of a run names where the user does not.

    Args:
        synthetic: The set, its folder, or that of the run that made it.
        data: The real images, or None.
        target: The target model or its specification, or None.
        own: The set, which records what the target saw of each image.
        device: Where representations are computed.
        representations: Of the images, see `find_representations`. Default: what the run has kept of them, if any.
        in_its_coordinates: Whether the representations are to be like those of the set, or the target's own.
        reading: How the images are read, where it is not as the set records.

    Raises:
        UsageError: If one of them is missing, or cannot be opened.
    """
    missing = missing_origin(synthetic, data, target)
    if missing:
        raise UsageError(f"The real images and the target model are needed: give {missing}.")
    known = config_of_run(synthetic)
    data = data if data is not None else known["data"]
    if target is None:
        target = load_target(known["target"], known.get("target_encoder"), weights=known.get("target_weights"))
    model = load_target(target) if isinstance(target, str) else as_target(target)
    found = find_representations(representations)
    made, grid = recorded_config(own), own.layout.grid
    if isinstance(found, Brought):
        if grid and in_its_coordinates:
            raise UsageError(f"{found.name} has representations, and the set also has maps: leave them out.")
        grid = 0
        found.check(views=0, items=None, dim=_target_dim(own, made))
    source = open_recorded(data, own, reading)
    sha256, frame = model.weights_sha256(), _recorded_frame(own)
    kept = kept_by_run(synthetic, known, source, sha256) if found is None else keeper(found, source, sha256, None)
    target_maps = None
    if grid and own.map_projection is not None:
        target_maps = TargetMaps(grid, own.map_projection)
    elif grid:
        sight, dims = Sight(source, frame or source.frame), made.map_dims if made else own.layout.channels
        target_maps = kept_maps(sight, model.to(device), len(source), device, grid, dims, kept)
    return RealSide(
        source,
        model.to(device),
        device,
        frame,
        kept,
        target_maps,
        own.projection if in_its_coordinates else None,
        made if in_its_coordinates else None,
        stored=None if own.pixels is None else (made.image_quality, made.target_bits) if made else (None, 8),
        bf16=device.type == "cuda" and made is not None and made.precision == "bf16",
    )


def _target_dim(own: SyntheticSet, made: DistillConfig | None) -> int | None:
    """Returns how many numbers the representations of the target of a set have, None if it does not know."""
    if own.projection is not None:
        return own.projection.dim
    return own.dim if made is None or made.target_dims is None else None


def recorded_config(own: SyntheticSet) -> DistillConfig | None:
    """Returns the settings that a set was made with, None if it has no record of them that can be used."""
    recorded = _part(own, "config")
    if not recorded:
        return None
    try:
        return make_config(**{**as_recorded(recorded), "device": "cpu"})
    except UsageError:  # of a newer version, or a stranger's
        return None


def open_recorded(data: Any, own: SyntheticSet, given: Reading | None = None) -> Source:
    """Opens real images as they were shown to the students of a set: at its size and, if not given, read as then."""
    frame, made = _recorded_frame(own), recorded_config(own)
    given, recorded = given or Reading(), made.reading if made else Reading()
    reading = Reading(given.num_workers, given.column or recorded.column, given.value_range or recorded.value_range)
    size, crop = own.images.shape[-1], frame.crop if frame else 1.0
    return open_source(find_images(data, image_size=size, crop=crop, reading=reading))


def _recorded_frame(own: SyntheticSet) -> Frame | None:
    """Returns what the target saw of each real image; None if that is what students saw, as in older versions."""
    known = own.provenance.get("target")
    size = known.get("image_size") if isinstance(known, dict) else None
    if not isinstance(known, dict) or size in (None, own.images.shape[-1]):
        return None
    crop: Any = known.get("crop")
    interpolation: Any = known.get("interpolation")
    sizes = isinstance(size, int) and 0 < size <= MOST and isinstance(crop, float) and 0 < crop <= 1
    if not sizes or interpolation not in ("bicubic", "bilinear"):
        raise UsageError(
            f"The set's record of what its target saw cannot be used: image_size {size!r}, crop {crop!r}, "
            f"interpolation {interpolation!r}."
        )
    return Frame(size, crop, interpolation)


def kept_by_run(synthetic: Any, known: Mapping[str, Any], source: Source, target_sha256: str) -> Keeper | None:
    """Returns what a run has kept of the representations of its real images, to be read only; None without a run."""
    if isinstance(synthetic, SyntheticSet):
        return None
    named = known.get("representations")
    found = find_representations(named) if isinstance(named, str) and Path(named).exists() else None
    folder = Path(synthetic)
    places = [folder, folder.parent] if folder.resolve().name == "set" else [folder]
    return reader(found, source, target_sha256, places)


def _part(own: SyntheticSet, name: str) -> dict[str, Any]:
    """Returns a part of the record of a set, which may be a stranger's."""
    part = own.provenance.get(name)
    return part if isinstance(part, dict) else {}


def config_of_run(synthetic: Any) -> dict[str, Any]:
    """Returns the configuration of the run that a set, given as its folder, is of; empty for a set without one."""
    return {} if isinstance(synthetic, SyntheticSet) else run_config(Path(synthetic))


def _is_only_weights(config: dict[str, Any]) -> bool:
    """Returns whether loading the target runs no code that the file names: a set may come from a stranger."""
    spec = config.get("target")
    weights = isinstance(spec, str) and (spec.startswith(("timm:", "torchvision:")) or is_checkpoint(spec))
    return weights and "target_class" not in config


def check_origin(own: SyntheticSet, real: RealSide) -> None:
    """Refuses real images and a target that the set was not distilled from, as far as the set knows."""
    if (own.mean, own.std) != (real.target.mean, real.target.std):
        raise UsageError(
            f"The set is normalised with mean {own.mean} and std {own.std}, the target with {real.target.mean} and "
            f"{real.target.std}: it was distilled from another target."
        )
    check_recorded("target", own, "sha256", real.target.weights_sha256(), real.target.name)
    check_recorded("source", own, "fingerprint", real.source.fingerprint, real.source.name)


def check_recorded(part: str, own: SyntheticSet, key: str, value: str, name: str) -> None:
    """Refuses a part, `source` or `target`, whose `key` is not what the set recorded of it."""
    recorded = own.provenance.get(part)
    if isinstance(recorded, dict) and recorded.get(key) not in (None, value):
        raise UsageError(
            f"The set was distilled from another {part} than {name}: its record says {recorded.get('name')}, "
            f"{key} {str(recorded[key])[:12]}."
        )
