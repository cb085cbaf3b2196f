"""The distillation stage as a callback of PyTorch Lightning."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import Unpack

from lightly_distill.errors import UsageError
from lightly_distill.method.config import DistillOptions, make_config
from lightly_distill.runs.run_folder import RunFolder
from lightly_distill.runs.stage import DistillationStage
from lightly_distill.runs.trackers import numbers
from lightly_distill.runtime.processes import launched
from lightly_distill.synthetic.synthetic_set import SyntheticSet

_SHARDING = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


class DistillationCallback(Callback):
    """Distils the model that a `Trainer` trains, after `fit` or each few epochs, from the images it trains on.

    The set, its pictures and measurements are written to a folder, and the losses to the trainer's loggers. Training
    goes on as if nothing had happened: the model, its mode, and all random states come back as they were. Several
    processes share the work, each on its own device; see `DistillConfig.parallel`.

    Args:
        out: Folder of the run; with `every_n_epochs`, of the runs, one `epoch-N` each. It may not hold a run already.
            Default: `distilled` in the trainer's `log_dir`, or in `default_root_dir` if it has none.
        every_n_epochs: Run after each so many epochs too, not only after `fit`.
        dataset: Real images, where they are not those of the trainer's training data; see `DistillationStage.run`.
        encoder: The encoder inside the model or its attribute path, where it cannot be found.
        preset: Settings of the paper: `cifar`, `tinyimagenet` or `imagenet64`.
        representations: Where the target's representations are kept; see `DistillationStage.run`. A model that has
            trained on is another target, of other representations.
        options: Fields of `DistillConfig`, such as `student="resnet18"`, `num_images=1000`; see `DistillationStage`.

    Attributes:
        synthetic: The newest synthetic set; None before there is one.

    Raises:
        UsageError: If an option is unknown or out of range. When training starts: if the encoder, the images or the
            students cannot be used, the folder is taken, or the strategy shards the model.

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
        representations: Any = None,
        **options: Unpack[DistillOptions],
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise UsageError(f"every_n_epochs must be a positive whole number; got {every_n_epochs!r}.")
        make_config(preset, **options)  # refuses a wrong one now
        self.synthetic: SyntheticSet | None = None
        self._out = None if out is None else Path(out)
        self._every_n_epochs = every_n_epochs
        self._dataset = dataset
        self._encoder = encoder
        self._preset = preset
        self._representations = representations
        self._options = options
        self._started = False
        self._distilled_at: int | None = None  # epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what cannot work before the training, which is long."""
        strategy = type(trainer.strategy).__name__
        if strategy in _SHARDING:
            raise UsageError(f"{strategy} shards the model, which the stage needs whole: train with strategy='ddp'.")
        # asked in every process: with loggers, they agree on it
        self._out = self._out or Path(trainer.log_dir or trainer.default_root_dir, "distilled")
        self._started = True

        with _apart():
            stage = self._stage(trainer, pl_module)
            processes, _ = launched("cpu")
            for folder in map(self._folder, self._times(trainer)):
                processes.in_main(partial(RunFolder.check, folder, resume=False, overwrite=False))
            stage.check(self._images(trainer), representations=self._representations)

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
        # each run counts its own steps
        log = _ToLoggers(trainer, f"distill/epoch-{epochs}" if self._every_n_epochs else "distill")
        with _apart():
            stage = self._stage(trainer, pl_module)
            self.synthetic = stage.run(
                self._images(trainer), out=self._folder(epochs), log=log, representations=self._representations
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
