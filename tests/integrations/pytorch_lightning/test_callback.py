import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import tiny
from lightly_distill import DistillationCallback, DistillationStage, DistillError, SyntheticSet, UsageError, as_target

OPTIONS: dict[str, Any] = {
    "student": "convnet_4_4",
    "num_images": 8,
    "steps": 3,
    "batch_size": 16,
    "log_every": 1,
    "pool": {"size": 2, "max_age": 3},
}


class Views(Dataset[tuple[list[Tensor], int]]):
    """In the manner of Lightly: a transform makes random views."""

    def __init__(self) -> None:
        self.images = tiny.images(40)
        self.transform: Any = lambda image: [image.float() / 255 + 0.1 * torch.randn(3, 8, 8) for _ in range(2)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), 0


class SimCLR(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1))
        self.projection_head = nn.Linear(6, 4)
        self.modes: list[bool] = []

    def training_step(self, batch: Any, _: int) -> Tensor:
        self.modes.append(self.backbone.training)
        first, second = (self.projection_head(self.backbone(view).flatten(1)) for view in batch[0])
        return (first - second).square().mean() + (first.std(0) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, *callbacks: DistillationCallback, epochs: int = 4, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, "enable_checkpointing": False, **options},
    )


def fit(folder: Path, *callbacks: DistillationCallback, **options: Any) -> SimCLR:
    torch.manual_seed(1)
    model = SimCLR()
    loader = DataLoader(Views(), batch_size=10, shuffle=True)
    trainer(folder, *callbacks, **options).fit(model, loader)
    return model


def test_after_fit_the_set_is_written_from_the_trained_model_and_the_trainers_images(tmp_path: Path) -> None:
    callback = DistillationCallback(**OPTIONS)
    model = fit(tmp_path, callback)
    assert callback.synthetic is not None
    synthetic = SyntheticSet.load(tmp_path / "distilled")
    assert torch.equal(synthetic.images, callback.synthetic.images)
    known = synthetic.provenance
    assert known["target"]["encoder"] == "SimCLR.backbone" and known["source"]["images"] == 40
    assert synthetic.source_index.max() < 40
    assert known["target"]["sha256"] == as_target(model).weights_sha256()


def test_representations_are_kept_for_whoever_distils_the_same_model_again(tmp_path: Path) -> None:
    callback = DistillationCallback(representations=tmp_path / "kept", target_dims=3, **OPTIONS)
    model = fit(tmp_path, callback)
    assert callback.synthetic is not None and callback.synthetic.dim == 3
    target, shown = as_target(model), []
    target.register_forward_pre_hook(lambda module, inputs: shown.append(len(inputs[0])))
    images = Views().images
    DistillationStage(target, **OPTIONS).run(images, representations=tmp_path / "kept")
    assert max(shown) == 4  # that are tried before the work


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, workers: int) -> None:
    def run(*callbacks: DistillationCallback) -> SimCLR:
        torch.manual_seed(1)
        model = SimCLR()
        loader = DataLoader(Views(), batch_size=10, shuffle=True, num_workers=workers)
        trainer(tmp_path, *callbacks).fit(model, loader)
        return model

    plain, watched = run(), run(DistillationCallback(every_n_epochs=1, **OPTIONS))
    assert all(
        torch.equal(*pair) for pair in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True)
    )
    assert watched.modes == plain.modes and all(watched.modes)
    assert all(parameter.requires_grad for parameter in watched.parameters())


def test_it_runs_each_k_epochs_and_once_more_after_fit_only_if_the_last_did_not(tmp_path: Path) -> None:
    fit(tmp_path, DistillationCallback(every_n_epochs=2, **OPTIONS), epochs=5)
    assert sorted(path.name for path in (tmp_path / "distilled").iterdir()) == ["epoch-2", "epoch-4", "epoch-5"]
    fit(tmp_path / "b", DistillationCallback(every_n_epochs=2, out=tmp_path / "own", **OPTIONS), epochs=4)
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["epoch-2", "epoch-4"]


def test_what_each_stage_of_a_fit_would_say_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="lightly_distill")
    callback = DistillationCallback(every_n_epochs=2, **OPTIONS)
    for _ in range(2):  # the next fit says it anew
        caplog.clear()
        fit(tmp_path, callback)
        assert caplog.text.count("Target: SimCLR.backbone") == 1 and caplog.text.count("Image size: 8") == 1
        assert sum(line.startswith("Distilling") for line in caplog.messages) == 2


def test_losses_go_to_the_trainers_loggers_and_the_set_beside_their_files(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(tmp_path, DistillationCallback(**{**OPTIONS, "student": "convnet_4_4,convnet_8_8"}), logger=logger)
    rows = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    assert "distill/loss" in rows[0] and "distill/heldout_loss" in rows[0]
    assert "distill/heldout_loss_by_student/convnet_8_8" in rows[0]
    assert len(rows) == 1 + 4  # steps 0 to 3
    assert SyntheticSet.load(Path(logger.log_dir, "distilled")).dim == 6


def test_images_can_be_given(tmp_path: Path) -> None:
    callback = DistillationCallback(dataset=tiny.images(30), **OPTIONS)
    fit(tmp_path, callback)
    assert callback.synthetic is not None and callback.synthetic.provenance["source"]["images"] == 30


class NoTraining(SimCLR):
    def training_step(self, batch: Any, _: int) -> Tensor:
        pytest.fail("trained")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student": "convnet_4_4_4_4"}, "4 blocks need images of 16x16 or more, not 8x8"),
        ({"encoder": "trunk"}, "has no module 'trunk'"),
        ({"dataset": "nowhere/at/all/x"}, "There is no file or folder 'nowhere/at/all/x'"),
        ({"device": "cuda:77"}, "torch finds"),
        ({"num_images": 38}, r"has 40 usable images \(4 of them held out .*: ask for at most 36, keep none aside"),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    callback = DistillationCallback(**{**OPTIONS, **options})
    with pytest.raises(UsageError, match=message):
        trainer(tmp_path, callback).fit(NoTraining(), DataLoader(Views(), batch_size=10))


def test_a_folder_that_is_taken_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "distilled").mkdir()
    (tmp_path / "distilled" / "mine").touch()
    with pytest.raises(UsageError, match="is not empty"):
        trainer(tmp_path, DistillationCallback(**OPTIONS)).fit(NoTraining(), DataLoader(Views(), batch_size=10))


def test_a_folder_of_a_later_epoch_that_is_taken_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "distilled" / "epoch-4").mkdir(parents=True)
    (tmp_path / "distilled" / "epoch-4" / "mine").touch()
    callback = DistillationCallback(every_n_epochs=2, **OPTIONS)
    with pytest.raises(UsageError, match=r"epoch-4 is not empty"):
        trainer(tmp_path, callback, epochs=5).fit(NoTraining(), DataLoader(Views(), batch_size=10))


def test_an_encoder_that_returns_no_representation_is_refused_before_training(tmp_path: Path) -> None:
    model = NoTraining()
    model.backbone.forward = lambda images: (images, images)  # type: ignore[method-assign]
    with pytest.raises(DistillError, match="returned a tuple"):
        trainer(tmp_path, DistillationCallback(**OPTIONS)).fit(model, DataLoader(Views(), batch_size=10))


def test_a_training_that_was_finished_before_distils_nothing(tmp_path: Path) -> None:
    first = trainer(tmp_path, epochs=1)
    loader = DataLoader(Views(), batch_size=10)
    first.fit(SimCLR(), loader)
    first.save_checkpoint(tmp_path / "last.ckpt")
    callback = DistillationCallback(**OPTIONS)
    trainer(tmp_path, callback, epochs=1).fit(SimCLR(), loader, ckpt_path=tmp_path / "last.ckpt")
    assert callback.synthetic is None


def test_several_loaders_ask_for_the_images(tmp_path: Path) -> None:
    loaders = [DataLoader(Views(), batch_size=10) for _ in range(2)]
    with pytest.raises(UsageError, match=r"The training data is list, .*DistillationCallback\(dataset="):
        trainer(tmp_path, DistillationCallback(**OPTIONS)).fit(NoTraining(), loaders)


def test_options_are_checked_when_it_is_made() -> None:
    with pytest.raises(UsageError, match=r"Unknown option 'num_image'\. Did you mean 'num_images'"):
        DistillationCallback(num_image=3)
    with pytest.raises(UsageError, match=r"Unknown option 'every_n_epoch'\. Did you mean 'every_n_epochs'\?"):
        DistillationCallback(student="convnet_4_4", every_n_epoch=2)
    with pytest.raises(UsageError, match=r"Unknown option 'foo'\. Known: .*every_n_epochs.*num_images"):
        DistillationCallback(foo=1)
    with pytest.raises(UsageError, match="every_n_epochs must be a positive whole number; got 0"):
        DistillationCallback(every_n_epochs=0)
    with pytest.raises(UsageError, match="every_n_epochs must be a positive whole number; got '2'"):
        DistillationCallback(every_n_epochs="2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Unknown preset"):
        DistillationCallback(preset="cifar100")
    with pytest.raises(UsageError, match=r"timm knows no model 'resnt18'. Did you mean 'resnet18'"):
        DistillationCallback(student="resnt18")


SCRIPT = """
import sys
from pathlib import Path
from torch.utils.data import DataLoader
sys.path[:0] = [{tests!r}, {here!r}]
from test_callback import OPTIONS, SimCLR, Views, trainer
from lightly_distill import DistillationCallback

callback = DistillationCallback(every_n_epochs=1, **{{**OPTIONS, **{options!r}}})
run = trainer({folder!r}, callback, epochs=2, strategy="ddp", devices=2)
run.fit(SimCLR(), DataLoader(Views(), batch_size=10))
Path({folder!r}, f"rank{{run.global_rank}}").write_text(str(callback.synthetic is not None))
"""


def _two_processes(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    script = folder / "train.py"
    here = Path(__file__).parent
    script.write_text(SCRIPT.format(tests=str(here.parents[1]), here=str(here), folder=str(folder), options=options))
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, cwd=folder)


def test_under_ddp_the_processes_share_the_work(tmp_path: Path) -> None:
    done = _two_processes(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["True", "True"]
    assert sorted(path.name for path in (tmp_path / "distilled").iterdir()) == ["epoch-1", "epoch-2"]
    assert SyntheticSet.load(tmp_path / "distilled" / "epoch-2").provenance["source"]["images"] == 40


@pytest.mark.slow
def test_under_ddp_a_failure_ends_both_processes(tmp_path: Path) -> None:
    done = _two_processes(tmp_path, outer={"lr_images": 1e30}, eight_bits=False)
    assert done.returncode != 0
    assert "DistillError: Stopped " in done.stderr
    assert not list(tmp_path.glob("rank*"))


def test_a_sharding_strategy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightly_distill_integrations.pytorch_lightning.callback._SHARDING", ("SingleDeviceStrategy",))
    with pytest.raises(UsageError, match="SingleDeviceStrategy shards the model"):
        trainer(tmp_path, DistillationCallback(**OPTIONS)).fit(NoTraining(), DataLoader(Views(), batch_size=10))


# --- several fits, and trials


def test_each_fold_is_distilled_anew_into_its_own_log_directory(tmp_path: Path) -> None:
    callback, found = DistillationCallback(**OPTIONS), []
    for _ in range(3):
        fit(tmp_path, callback, epochs=1, logger=CSVLogger(tmp_path))
        found.append(callback.synthetic)
        callback.synthetic = None
    assert all(found)
    for version in range(3):
        SyntheticSet.load(tmp_path / "lightning_logs" / f"version_{version}" / "distilled")


def test_a_fold_whose_folder_was_moved_away_is_distilled(tmp_path: Path) -> None:
    callback = DistillationCallback(out=tmp_path / "run", **OPTIONS)
    fit(tmp_path, callback, epochs=1)
    (tmp_path / "run").rename(tmp_path / "fold-0")
    fit(tmp_path, callback, epochs=1)
    SyntheticSet.load(tmp_path / "run")


def test_a_second_fit_of_a_trainer_is_distilled_beside_the_first(tmp_path: Path) -> None:
    callback = DistillationCallback(**OPTIONS)
    trained = trainer(tmp_path, callback, epochs=1)
    loader = DataLoader(Views(), batch_size=10)
    trained.fit(SimCLR(), loader)
    trained.fit_loop.max_epochs = 2
    trained.fit(SimCLR(), loader)
    first, second = (SyntheticSet.load(tmp_path / name) for name in ("distilled", "distilled-2"))
    assert first.provenance["target"]["sha256"] != second.provenance["target"]["sha256"]


def test_a_folder_that_is_taken_can_be_replaced_or_gone_on_with(tmp_path: Path) -> None:
    fit(tmp_path, DistillationCallback(**OPTIONS), epochs=1)
    with pytest.raises(UsageError, match=r"is not empty: .* \(resume=True, overwrite=True in Python\)"):
        fit(tmp_path, DistillationCallback(**OPTIONS), epochs=1)
    callback = DistillationCallback(resume=True, **OPTIONS)
    fit(tmp_path, callback, epochs=1)
    assert callback.synthetic is not None
    assert callback.synthetic.provenance["steps"] == 3
    fit(tmp_path, DistillationCallback(overwrite=True, **{**OPTIONS, "num_images": 6}), epochs=1)
    assert len(SyntheticSet.load(tmp_path / "distilled")) == 6
    fresh = DistillationCallback(resume=True, out=tmp_path / "fresh", **OPTIONS)
    fit(tmp_path, fresh, epochs=1)
    assert fresh.synthetic is not None


@pytest.mark.parametrize("flag", [{"fast_dev_run": True}, {"overfit_batches": 2}, {"barebones": True}])
def test_a_trial_takes_two_steps_and_leaves_nothing(
    tmp_path: Path, flag: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    run = DistillationStage.run

    def counted(self: DistillationStage, *args: Any, **options: Any) -> Any:
        made = run(self, *args, **options)
        taken.append(made.provenance["steps"])
        return made

    monkeypatch.setattr(DistillationStage, "run", counted)
    monkeypatch.chdir(tmp_path)
    callback = DistillationCallback(**{**OPTIONS, "steps": 500, "num_images": 30, "target_dims": 4})
    model, loader = SimCLR(), DataLoader(Views(), batch_size=10)
    options: dict[str, Any] = {} if "barebones" in flag else {"enable_progress_bar": False}
    Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        enable_checkpointing=False,
        **({"logger": False} if "barebones" not in flag else {}),
        **options,
        **flag,
    ).fit(model, loader)
    assert taken == [2]
    assert callback.synthetic is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", [{"max_steps": 0}, {"max_epochs": 0}, {"limit_train_batches": 0}])
def test_where_nothing_is_trained_nothing_is_distilled(tmp_path: Path, flag: dict[str, Any]) -> None:
    callback = DistillationCallback(**OPTIONS)
    own = {"max_epochs": 1, **flag}
    Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **own,
    ).fit(SimCLR(), DataLoader(Views(), batch_size=10))
    assert callback.synthetic is None and not (tmp_path / "distilled").exists()


def test_a_part_of_the_batches_is_told_apart_from_a_part_of_the_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, DistillationCallback(**OPTIONS), epochs=1, limit_train_batches=2)
    assert "takes a part of the images only (limit_train_batches=2), and the distillation takes all" in caplog.text


def test_the_twin_package_calls_it_too(tmp_path: Path) -> None:
    twin = pytest.importorskip("lightning.pytorch")

    class Twin(twin.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1))

        def training_step(self, batch: Any, _: int) -> Tensor:
            loss: Tensor = self.backbone(batch[0][0]).square().mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = DistillationCallback(out=tmp_path / "set", **OPTIONS)
    options: dict[str, Any] = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
    trained = twin.Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **options)
    trained.fit(Twin(), DataLoader(Views(), batch_size=10))
    assert callback.synthetic is not None
