"""The distillation stage as a callback of PyTorch Lightning."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import Unpack

from lightly_distill.errors import UsageError
from lightly_distill.method.auto import AUTO
from lightly_distill.method.config import DistillConfig, DistillOptions, make_config
from lightly_distill.models.students import check_names
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runs.stage import DistillationStage
from lightly_distill.runs.trackers import numbers
from lightly_distill.runtime.console import aloud
from lightly_distill.runtime.processes import launched
from lightly_distill.runtime.settings import check_known
from lightly_distill.synthetic.synthetic_set import SyntheticSet

_SHARDING = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")

_logger = logging.getLogger(__name__)


class DistillationCallback(Callback):
    """Distils the model that a `Trainer` trains, after `fit` or each few epochs, from the images it trains on.

    The set, its pictures and measurements are written to a folder, and the losses to the trainer's loggers. Training
    goes on as if nothing had happened: the model, its mode, and all random states come back as they were. Several
    processes share the work, each on its own device; see `DistillConfig.parallel`. One callback serves several fits,
    one after the other, each of which is distilled anew.

    A trainer that is only tried (`fast_dev_run`, `overfit_batches`, `barebones`) takes two steps on a few images and
    keeps nothing; see `DistillationStage.rehearse`. Where nothing is trained (`max_steps=0`), nothing is distilled.

    Args:
        out: Folder of the run; with `every_n_epochs`, of the runs, one `epoch-N` each. It may not hold a run already.
            Default: `distilled` in the trainer's `log_dir`, or in `default_root_dir` if it has none; of a further fit
            with the same folder `distilled-2`, and so on.
        every_n_epochs: Run after each so many epochs too, not only after `fit`.
        dataset: Real images, where they are not those of the trainer's training data; see `DistillationStage.run`.
        encoder: The encoder inside the model or its attribute path, where it cannot be found.
        preset: As for `DistillationStage`.
        resume: Go on with the run that is in the folder, if there is one.
        overwrite: Replace the run that is in the folder.
        representations: Where the target's representations are kept; see `DistillationStage.run`. A model that has
            trained on is another target, of other representations.
        options: Fields of `DistillConfig`, such as `student="resnet18"`, `num_images=1000`; see `DistillationStage`.

    Attributes:
        synthetic: The newest synthetic set; None before there is one.

    Raises:
        UsageError: If an option is unknown or out of range, or no student has this name. When training starts: if the
            encoder, the images or the students cannot be used, the folder is taken, or the strategy shards the model.

    Example:
        >>> trainer = Trainer(max_epochs=100, callbacks=[DistillationCallback(student="resnet18", num_images=1000)])
        >>> trainer.fit(model, dataloader)
    """

    def __init__(
        self,
        *,
        out: str | Path | None = None,
        every_n_epochs: int | None = None,
        dataset: Any = None,
        encoder: str | None = None,
        preset: str | None = None,
        resume: bool = False,
        overwrite: bool = False,
        representations: Any = None,
        **options: Unpack[DistillOptions],
    ) -> None:
        if every_n_epochs is not None and not (hasattr(every_n_epochs, "__index__") and every_n_epochs >= 1):
            raise UsageError(f"every_n_epochs must be a positive whole number; got {every_n_epochs!r}.")
        check_known(options, DistillationCallback, DistillConfig)
        check_names(make_config(None if preset == AUTO else preset, **options).students)  # refuses a wrong one now
        self.synthetic: SyntheticSet | None = None
        self._given = None if out is None else Path(out)
        self._out: Path | None = None  # of this fit
        self._written: set[Path] = set()  # by fits before
        self._every_n_epochs = every_n_epochs
        self._dataset = dataset
        self._encoder = encoder
        self._preset = preset
        self._flags = {"resume": resume, "overwrite": overwrite}
        self._representations = representations
        self._options = options
        self._told: set[str] = set()  # lines, by the stages before
        self._started = False
        self._distilled_at: int | None = None  # epochs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the fit before."""
        self._started, self._distilled_at, self._out, self._told = False, None, None, set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what cannot work before the training, which is long."""
        strategy = type(trainer.strategy).__name__
        if strategy in _SHARDING:
            raise UsageError(f"{strategy} shards the model, which the stage needs whole: train with strategy='ddp'.")
        # asked in every process: with loggers, they agree on it
        log_dir = trainer.log_dir or trainer.default_root_dir
        self._out = self._given or _next(Path(log_dir, "distilled"), self._written)
        self._started = True

        with _apart(), aloud(told=self._told):
            stage = self._stage(trainer, pl_module)
            processes, _ = launched("cpu")
            for folder in [] if _trial(trainer) else map(self._folder, self._times(trainer)):
                processes.in_main(partial(RunFolder.check, folder, **self._flags_of(folder)))
            stage.check(self._images(trainer), representations=self._representations)
        limit = trainer.limit_train_batches
        if (limit != 1.0 or isinstance(limit, int)) and not _trial(trainer):  # 1 is one batch, 1.0 is all
            _logger.warning(
                "The trainer takes a part of the images only (limit_train_batches=%s), and the distillation takes all "
                "of them: give fewer with DistillationCallback(dataset=...) if this is a trial.",
                trainer.limit_train_batches,
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the stage if it is time."""
        if self._every_n_epochs and (trainer.current_epoch + 1) % self._every_n_epochs == 0:
            self._distil(trainer, pl_module, trainer.current_epoch + 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs the stage, unless the last epoch did or nothing was trained."""
        if self._started and self._distilled_at != trainer.current_epoch:
            self._distil(trainer, pl_module, trainer.current_epoch)

    def _distil(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        self._distilled_at = epochs
        trial = _trial(trainer)
        if trial:
            with _apart(), aloud(told=self._told):
                self._stage(trainer, pl_module).rehearse(self._images(trainer))
            _logger.info("%s: two steps of the distillation were tried, and nothing was kept.", trial)
            return
        assert self._out is not None  # since the start of training
        self._written.add(self._out)
        # each run counts its own steps
        log = _ToLoggers(trainer, f"distill/epoch-{epochs}" if self._every_n_epochs else "distill")
        with _apart(), aloud(told=self._told):
            stage = self._stage(trainer, pl_module)
            folder = self._folder(epochs)
            self.synthetic = stage.run(
                self._images(trainer),
                out=folder,
                log=log,
                representations=self._representations,
                **self._flags_of(folder),
            )
            for logger in trainer.loggers:
                logger.save()

    def _stage(self, trainer: Trainer, pl_module: LightningModule) -> DistillationStage:
        device = trainer.strategy.root_device
        options: DistillOptions = {"device": str(device) if device.type == "cuda" else "cpu", **self._options}
        return DistillationStage(pl_module, encoder=self._encoder, preset=self._preset, **options)

    def _times(self, trainer: Trainer) -> list[int]:
        """Returns after how many epochs the stage will run, as far as is known."""
        every, first, last = self._every_n_epochs, trainer.current_epoch + 1, trainer.max_epochs or 0
        if every is None:
            return [max(first, last)]
        start = -(-first // every) * every
        return sorted({*range(start, max(last, start) + 1, every), max(last, first)})

    def _folder(self, epochs: int) -> Path:
        assert self._out is not None  # since the start of training
        return self._out / f"epoch-{epochs}" if self._every_n_epochs else self._out

    def _flags_of(self, folder: Path) -> dict[str, bool]:
        """Returns the flags of `DistillationStage.run`: only what is there can be resumed."""
        begun = folder.is_dir() and any(folder.iterdir())
        return {**self._flags, "resume": self._flags["resume"] and begun}

    def _images(self, trainer: Trainer) -> Any:
        if self._dataset is not None:
            return self._dataset
        loader = trainer.train_dataloader
        dataset = getattr(loader, "dataset", None)
        if dataset is None:
            raise UsageError(
                f"The training data is {type(loader).__name__}, not one DataLoader with a dataset: name the real "
                "images with DistillationCallback(dataset=...)."
            )
        return dataset


def _trial(trainer: Trainer) -> str:
    """Returns the flag of a trainer that is only tried, empty where it trains in earnest."""
    flags = ("fast_dev_run", "overfit_batches", "barebones")
    return next((name for name in flags if getattr(trainer, name, False)), "")


def _next(folder: Path, written: set[Path]) -> Path:
    """Returns the folder, or the first of `-2`, `-3` that an earlier fit has not written."""
    names = chain([folder], (folder.with_name(f"{folder.name}-{number}") for number in count(2)))
    return next(name for name in names if name not in written)


class _ToLoggers:
    """A `RunLog` that hands measurements to a trainer's loggers, their names with a prefix."""

    def __init__(self, trainer: Trainer, prefix: str) -> None:
        self._trainer = trainer
        self._prefix = prefix

    def start(self) -> None:
        """Does nothing: the trainer has started its loggers."""

    def log(self, row: dict[str, Any]) -> None:
        """Hands one row on."""
        values = {f"{self._prefix}/{name}": value for name, value in numbers(row).items()}
        for logger in self._trainer.loggers:
            logger.log_metrics(values, step=row["step"])


@contextmanager
def _apart() -> Iterator[None]:
    """With gradients, whatever the trainer says; restores the random states of Python, NumPy and torch."""
    states = random.getstate(), np.random.get_state()
    try:
        forked = torch.random.fork_rng(devices=range(torch.cuda.device_count()))
        with forked, torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
