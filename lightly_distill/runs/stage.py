"""What a script adds: the stage from a dataset and a target model to a synthetic set."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
from typing_extensions import Unpack

from lightly_distill.data.loader import Decoder
from lightly_distill.data.shared import open_together
from lightly_distill.data.source import Source, first_items
from lightly_distill.errors import UsageError
from lightly_distill.method.auto import AUTO, suited_settings
from lightly_distill.method.brought import Brought
from lightly_distill.method.config import DistillConfig, DistillOptions, make_config
from lightly_distill.method.distill import distill
from lightly_distill.method.pool import StudentBuilder
from lightly_distill.method.projection import MOST, check_dims
from lightly_distill.method.real_images import RealImages
from lightly_distill.method.representation_cache import RepresentationCache
from lightly_distill.method.sight import find_for_target, try_target
from lightly_distill.method.split import held_out_of, require_count, require_enough
from lightly_distill.method.state import DistillState, saved_maps, saved_projection
from lightly_distill.method.target_maps import find_grid
from lightly_distill.models.recipe import check_bf16
from lightly_distill.models.rows import Layout
from lightly_distill.models.students import check_names, student_builder
from lightly_distill.models.targets import Target, as_target, load_target
from lightly_distill.runs import curves
from lightly_distill.runs.lock import locked
from lightly_distill.runs.provenance import provenance, run_facts, session_facts, versions
from lightly_distill.runs.representations import Found, find_representations, keeper
from lightly_distill.runs.result import finished
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runs.run_log import RunLog, require_run_log
from lightly_distill.runtime.console import aloud
from lightly_distill.runtime.device import resolve_device
from lightly_distill.runtime.files import writing
from lightly_distill.runtime.processes import Processes, launched
from lightly_distill.runtime.settings import check_known, update
from lightly_distill.runtime.terms import on_own_terms
from lightly_distill.runtime.together import failing_together
from lightly_distill.runtime.words import called, duration
from lightly_distill.synthetic import set_facts
from lightly_distill.synthetic.synthetic_set import SyntheticSet

_REHEARSED = 64  # images

_logger = logging.getLogger(__name__)


class DistillationStage:
    """Distils the images that a model was trained on into a small synthetic set.

    Args:
        target: The self-supervised model of the script (its encoder is found, see `as_target`; the model itself is not
            changed), a `Target`, a function from images to representations, or a specification such as
            `timm:resnet18@weights.safetensors`.
        encoder: The encoder inside the model or its attribute path, where it cannot be found or is to be another; with
            a specification, the path.
        preset: Settings of the paper: `cifar`, `tinyimagenet` or `imagenet64`. Or `auto`: what suits number and size of
            the images, which is decided when they are given.
        config: All settings at once, instead of preset and options.
        verbose: Shows progress, and what is found and written: by logging, or on the console where the script has not
            set up any. False: only warnings.
        options: Fields of `DistillConfig`, such as `student="resnet18"`, `num_images=1000`, `steps=5000`, `seed=0`;
            several students as a sequence, and parts as mappings, such as `pool={"size": 5}`.

    Raises:
        UsageError: If an option is unknown or out of range, no student has this name, or the target's encoder cannot
            be found.

    Example:
        >>> stage = DistillationStage(target=model, student="resnet18", num_images=1000)
        >>> synthetic = stage.run(dataset)
        >>> synthetic.save("runs/cifar10-simclr")
    """

    def __init__(
        self,
        target: Any,
        *,
        encoder: Any = None,
        preset: str | None = None,
        config: DistillConfig | None = None,
        verbose: bool = True,
        **options: Unpack[DistillOptions],
    ) -> None:
        """Loads or wraps the target, and checks the settings.

        The options, each explained by `lightly-distill distill --help`, are student, num_images, steps, batch_size,
        image_size, target_size, num_workers, column, value_range, source_views, init, target_dims, target_whiten,
        target_map, map_dims, eight_bits, image_quality, target_bits, holdout, seed, device, precision, compile,
        parallel, chunk_size, log_every, checkpoint_every and checkpoint_minutes; and of the parts outer, pool and
        ridge, as mappings, the fields of `OuterConfig`, `PoolConfig` and `RidgeConfig`.
        """
        if config is not None and (preset is not None or options):
            raise UsageError("Give either config or preset and options; use dataclasses.replace to change a config.")
        check_known(options, DistillationStage, DistillConfig)
        self.config = config or make_config(None if preset == AUTO else preset, **options)
        self._open_options = options if preset == AUTO else None
        self.verbose = verbose
        check_names(self.config.students)
        with aloud(verbose):
            self.target = load_target(target, encoder) if isinstance(target, str) else as_target(target, encoder)

    @on_own_terms()
    def check(
        self,
        dataset: Any,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        representations: Any = None,
    ) -> None:
        """Refuses what can be seen to be wrong from the settings, the folder and the first images; see `run`."""
        RunFolder.check(None if out is None else Path(out), resume=resume, overwrite=overwrite)
        versions()
        with aloud(self.verbose), _back_in_place(self.target):
            self.settle(dataset)
            self._look_at(dataset, resolve_device(self.config.device), find_representations(representations))

    @on_own_terms()
    def rehearse(self, dataset: Any) -> None:
        """Checks as `check` does and takes two steps on the first few images, all small. Nothing is kept.

        Args:
            dataset: As for `run`.

        Raises:
            UsageError: As `run`.
            DistillError: As `run`.
        """
        with aloud(self.verbose):
            self.check(dataset)
            config = replace(
                self.config,
                num_images=min(self.config.num_images, _REHEARSED // 4),
                batch_size=min(self.config.batch_size, _REHEARSED // 4),
                steps=min(self.config.steps, 2),
                target_dims=None,  # so few images do not have as many
                target_whiten=False,
                holdout=0,
                pool=replace(self.config.pool, max_age=min(self.config.pool.max_age, 2)),
            )
            DistillationStage(self.target, config=config, verbose=self.verbose).run(first_items(dataset, _REHEARSED))

    @on_own_terms()
    def run(
        self,
        dataset: Any,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        overwrite: bool = False,
        strict: bool = False,
        log: RunLog | None = None,
        representations: Any = None,
    ) -> SyntheticSet:
        """Distils a dataset.

        Args:
            dataset: Real images: a torchvision, Lightly or Hugging Face dataset, a list or tensor of images, a folder,
                or anything else that `open_source` takes. Labels are not looked at.
            out: Folder for the configuration, measurements, checkpoints, pictures and the set. None keeps nothing. Of
                several processes, what the main one is given counts, and so it does for the three flags.
            resume: Go on from the newest good checkpoint in `out`.
            overwrite: Replace an old run in `out`.
            strict: With `resume`: refuse a damaged newest checkpoint instead of going on from the one before it.
            log: Its method `start` is called before the long work, and its method `log` is given each row of
                measurements as it is taken, such as `{"step": 10, "loss": 0.1}`.
            representations: Where the target's representations of the images are kept, so that they are computed once:
                a folder, which several runs may share, or that of another run. Or what there is of them already: a file
                or a Hugging Face dataset; see `find_representations`. Default: in `out`.

        Returns:
            The synthetic set, on the CPU, with its provenance.

        Raises:
            UsageError: If dataset, students, settings, folder and log do not fit together; before any long work.
            DistillError: If the version of a package cannot be found, before any long work; or if the run cannot go on:
                the newest checkpoint is intact.
            KeyboardInterrupt: After SIGINT (Ctrl-C). The step in hand is done and saved, if this is the main thread.
            SystemExit: After SIGTERM or SIGUSR1, likewise; its code is 128 + the number of the signal.
        """
        processes, device = launched(self.config.device)
        with ExitStack() as held:
            held.enter_context(aloud(self.verbose))
            held.enter_context(failing_together(processes))
            held.enter_context(_back_in_place(self.target))
            self.settle(dataset)

            def occupy() -> tuple[Path | None, bool, bool]:
                if strict and not resume:
                    raise UsageError(
                        "--strict is about the checkpoint that --resume goes on from: give both, or neither."
                    )
                require_run_log(log)
                folder = Path(out) if out is not None else None
                RunFolder.check(folder, resume=resume, overwrite=overwrite)
                if resume:
                    RunFolder.check_settings(folder, self.config)
                held.enter_context(locked(folder))
                return folder, resume, strict

            # a script may give them to its main process only, and processes that disagree would wait for each other
            folder, resume, strict = processes.in_main(occupy)
            found = find_representations(representations)
            named = {"representations": str(representations)} if isinstance(representations, str | Path) else {}
            return self._run(
                dataset, folder, processes, resolve_device(device), found, named, resume=resume, strict=strict, log=log
            )

    def settle(self, dataset: Any) -> None:
        """Decides what the preset `auto` leaves open, by number and size of the images; `check` and `run` do it too."""
        if self._open_options is None:
            return
        given = update(DistillConfig(), self._open_options)
        suits = suited_settings(dataset, given.image_size, given.reading)
        self.config = update(update(DistillConfig(), suits), self._open_options)

    def _run(
        self,
        dataset: Any,
        folder: Path | None,
        processes: Processes,
        device: torch.device,
        found: Found,
        named: dict[str, str],
        *,
        resume: bool,
        strict: bool,
        log: RunLog | None,
    ) -> SyntheticSet:
        target = self.target
        session = session_facts(device, processes)
        _require_processes(self.config, processes)
        images, students, config = self._look_at(dataset, device, found)  # before all images are read
        # after distributed training, batch norm's statistics differ
        processes.copy_from_main(*target.state_dict().values())
        source = open_together(images, processes)
        if len(set(processes.gather((source.fingerprint, target.weights_sha256())))) > 1:
            raise UsageError("The processes were given different real images or targets: give all the same.")
        held = require_enough(source, config)
        _require_batch(len(source) - held, config, processes)
        aside = f"; {held} of them are held out to measure the loss" if held else ""
        _logger.info("Distilling %d images of %s into %d%s", len(source), called(source.name), config.num_images, aside)

        started = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # what the script used before is not ours
        facts = run_facts(source, target, config, processes, found if isinstance(found, Brought) else None)
        keeps = keeper(found, source, facts["target"]["sha256"], folder, processes)
        run = RunFolder(
            folder, facts, log, processes, session, keeps if isinstance(keeps, RepresentationCache) else None
        )
        saved = run.load_checkpoint(strict=strict) if resume else None
        fitted = _saved(saved[0], config) if saved else {}
        real = RealImages.of_target(source, target, config, device, keeps, processes=processes, **fitted)
        state = DistillState.start(real, students, config, processes)
        _require_spread(state, target.name)
        initial = state.learned()[0].detach().clone()
        if saved is not None:
            state.restore(*saved)
        # what a command line could name
        data = {"data": source.name} if source.located else {}
        run.begin(resumed=saved is not None, config={**data, **target.options, **named, **facts["config"]})
        with run:
            distill(state, real, config, run)

        synthetic = finished(
            state,
            mean=target.mean,
            std=target.std,
            provenance=provenance(facts, state, run, held, device, run.seconds_before + time.perf_counter() - started),
            image_quality=config.image_quality,
            keep_projection=isinstance(config.target_dims, int),
        )
        _logger.info("Measured: %s", _cost(synthetic, run))
        losses = synthetic.provenance["heldout_loss"]
        if losses["initial"] is not None and losses["final"] is not None and losses["final"] > losses["initial"]:
            _logger.info(
                "The loss on held-out real images rose, from %.4g to %.4g: what was learned does not carry over. Try "
                "lower learning rates (outer.lr_images, outer.lr_representations; on the command line "
                "--outer.lr-images, --outer.lr-representations), more images or a larger pool.",
                losses["initial"],
                losses["final"],
            )
        if folder is not None and processes.main:
            synthetic.save(folder / "set", overwrite=True)  # before what is only to be looked at
            with writing(folder / "pictures"):
                _draw(folder / "pictures", initial.cpu(), synthetic, run)
            _logger.info("Wrote %s", folder)
        return synthetic

    def _look_at(
        self, dataset: Any, device: torch.device, found: Found = None
    ) -> tuple[Source | Decoder, list[tuple[str, StudentBuilder]], DistillConfig]:
        """Finds the images, and tries students, target and representations that were brought on the first of them.

        Returns:
            Images, students, and the settings, in which the target's map is what this target has.
        """
        config = self.config
        images, frame = find_for_target(
            dataset,
            self.target,
            image_size=config.image_size,
            target_size=config.target_size,
            at_random=config.source_views == "random",
            reading=config.reading,
        )
        items = _items(images)
        if isinstance(found, Brought):
            found.check(views=config.source_views, items=items, dim=None)
        batch_size = min(2, config.num_images)
        students = [(name, student_builder(name, images.image_size, batch_size=batch_size)) for name in config.students]
        if config.precision == "bf16" and device.type == "cpu":
            for name, build in students:
                check_bf16(build(), name, torch.zeros(1, 3, images.image_size, images.image_size))
        dim = try_target(images, self.target.to(device), frame, device)
        grid = _grid(config, self.target, frame.size, device, found)
        config = replace(config, target_map=grid)
        if dim is not None:
            if isinstance(found, Brought):
                found.check(views=config.source_views, items=None, dim=dim)
            if config.target_dims is not None:
                train = None if items is None else items - held_out_of(items, config)
                check_dims(config.target_dims, images=train, dim=dim)
                dim = min(MOST, dim) if config.target_dims == "auto" else config.target_dims
            sides = (3, images.image_size, images.image_size)
            shape = dict(zip(set_facts.MAX_SHAPE, (config.num_images, *sides, dim), strict=True))
            targets = Layout(dim, config.map_dims, grid) if grid else Layout(dim)
            # saving it would, at the end
            set_facts.check_contents(shape, targets, "The synthetic set asked for", UsageError)
        if items is not None:
            require_count(items, images.items.name if isinstance(images, Decoder) else images.name, config)
        return images, students, config


@contextmanager
def _back_in_place(target: Target) -> Iterator[None]:
    """Leaves a target on the device where it was; it may be the user's own, who goes on with it."""
    device = next(chain(target.parameters(), target.buffers())).device
    try:
        yield
    finally:
        target.to(device)


def _grid(config: DistillConfig, target: Target, size: int, device: torch.device, found: Found) -> int:
    if not config.eight_bits:
        if config.target_map in ("auto", 0):
            return 0
        raise UsageError(
            f"A set of floats (eight_bits=False) keeps no maps: give target_map=0, or leave eight_bits out; got "
            f"target_map={config.target_map}."
        )
    if not isinstance(found, Brought):
        return find_grid(target, size, config.target_map, device)
    if config.target_map not in ("auto", 0):
        raise UsageError(
            f"{found.name} has representations but no maps: give target_map=0, or leave --representations out."
        )
    return 0


def _require_spread(state: DistillState, name: str) -> None:
    """Refuses a target that says the same of all images that the set starts from."""
    vectors, _ = state.targets.split(state.representations.detach().cpu())
    if state.projection is not None:  # whose numbers are centred, and all of one size
        vectors = state.projection.restore(vectors)
    if vectors.std(0).max() <= 1e-6 * vectors.abs().max():
        raise UsageError(
            f"The target {name} says the same of all images (of {len(vectors)} of them): it has collapsed, or "
            "is another part of the model than you mean; name it with encoder= (--target-encoder)."
        )


def _saved(tensors: dict[str, torch.Tensor], config: DistillConfig) -> dict[str, Any]:
    """Returns what a run that goes on has fitted before."""
    assert isinstance(config.target_map, int)
    return {"projection": saved_projection(tensors), "target_maps": saved_maps(tensors, config.target_map)}


def _require_processes(config: DistillConfig, processes: Processes) -> None:
    """Refuses fewer students or images than there are processes."""
    if config.parallel == "pool" and config.pool.size < processes.count:
        raise UsageError(
            f"pool.size must be at least {processes.count}, one student for each process; got {config.pool.size}."
        )
    _require_batch(config.batch_size, config, processes)


def _items(images: Source | Decoder) -> int | None:
    return images.items.count if isinstance(images, Decoder) else len(images) + sum(images.skipped.values())


def _require_batch(most: int, config: DistillConfig, processes: Processes) -> None:
    """Refuses batches that not every process gets a real image of; `most` is how many images there are for one."""
    size = min(most, config.batch_size)
    if config.parallel == "batch" and size < processes.count:
        raise UsageError(
            f"A batch must have at least {processes.count} real images, one for each process; it has {size} "
            f"(batch_size={config.batch_size}). Give a larger batch or source, or start fewer processes."
        )


def _cost(synthetic: SyntheticSet, run: RunFolder) -> str:
    memory = synthetic.provenance["peak_memory_bytes"] / 2**30
    seconds = [row["seconds_per_step"] for row in run.rows if "seconds_per_step" in row]
    return f"{memory:.2g} GiB at the peak" + (f", {duration(median(seconds))} a step" if seconds else "")


def _draw(folder: Path, initial: torch.Tensor, synthetic: SyntheticSet, run: RunFolder) -> None:
    if not run.rows:  # a selection: nothing was learned
        return
    before = SyntheticSet(initial, synthetic.representations, mean=synthetic.mean, std=synthetic.std)
    curves.before_after(before.displayable(), synthetic.displayable(), folder / "before_after.png")
    curves.loss_curve(run.rows, folder / "loss.png")
