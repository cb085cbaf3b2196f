import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from golden.scenario import KEPT
from lightly_distill import DistillError, SyntheticSet, UsageError
from synthetic_sets import MEAN, STD, make_set, same_bits


def test_save_and_load_give_every_bit_back(tmp_path: Path) -> None:
    ours = make_set()
    assert ours.save(tmp_path / "set") == tmp_path / "set"
    again = SyntheticSet.load(str(tmp_path / "set"))
    assert same_bits(again.images, ours.images) and same_bits(again.representations, ours.representations)
    assert torch.equal(again.source_index, ours.source_index)
    assert (again.mean, again.std, again.provenance, again.metrics) == (MEAN, STD, ours.provenance, ours.metrics)


@pytest.mark.filterwarnings("error")
def test_loaded_tensors_may_be_written_to(tmp_path: Path) -> None:
    make_set().save(tmp_path / "set")
    torch.set_warn_always(True)  # else torch tells once per process that it was given memory not to be written to
    try:
        SyntheticSet.load(tmp_path / "set").images[0] = 5.0
    finally:
        torch.set_warn_always(False)


def test_a_strided_set_that_needs_gradient_is_saved_as_it_is(tmp_path: Path) -> None:
    images = torch.randn(4, 8, 8, 3).permute(0, 3, 1, 2).requires_grad_()
    ours = SyntheticSet(images, torch.randn(5, 4).T, mean=MEAN, std=STD)
    ours.save(tmp_path / "set")
    again = SyntheticSet.load(tmp_path / "set")
    assert same_bits(again.images, images.detach()) and same_bits(again.representations, ours.representations)
    assert again.source_index.tolist() == [-1] * 4
    assert not ours.images.requires_grad


def test_a_run_folder_is_accepted_and_what_is_no_set_is_named(tmp_path: Path) -> None:
    make_set().save(tmp_path / "run" / "set")
    assert len(SyntheticSet.load(tmp_path / "run")) == 6
    with pytest.raises(UsageError, match="no synthetic set at my/sets/cifar10-1k: no such folder"):
        SyntheticSet.load("my/sets/cifar10-1k")  # no name on the Hub either
    with pytest.raises(UsageError, match=f"{tmp_path} holds no synthetic set: there is no lightly_distill.json"):
        SyntheticSet.load(tmp_path)


@pytest.mark.parametrize("told", ["7 of 12", "7"])
def test_a_run_that_is_not_finished_is_told_from_a_folder_without_a_set(tmp_path: Path, told: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(KEPT / "interrupted", run)
    if told == "7":
        (run / "config.yaml").unlink()
    message = rf"run holds no synthetic set yet: .* of step {told}\. Go on with it: distill --resume --out {run} "
    with pytest.raises(UsageError, match=message):
        SyntheticSet.load(run)


def test_a_data_loader_gives_batches_of_both() -> None:
    ours = make_set()
    images, representations = next(iter(DataLoader(ours, batch_size=4)))
    assert torch.equal(images, ours.images[:4]) and torch.equal(representations, ours.representations[:4])
    assert len(ours) == 6 and repr(ours) == "SyntheticSet(6 images 3x8x8, representations of 5)"


def test_displayable_undoes_the_normalisation_and_clips() -> None:
    images = torch.zeros(1, 3, 1, 3)
    images[0, :, 0, 1], images[0, :, 0, 2] = 100, -100
    shown = SyntheticSet(images, torch.zeros(1, 2), mean=MEAN, std=STD).displayable()
    assert shown.dtype == torch.uint8
    assert shown[0, :, 0].T.tolist() == [[124, 116, 104], [255] * 3, [0] * 3]


IMAGES, REPRESENTATIONS = torch.zeros(3, 3, 8, 8), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"images": np.zeros((3, 3, 8, 8))},
            "images of a synthetic set must be a tensor, torch.float32 .*; got ndarray",
        ),
        (
            {"images": IMAGES[0]},
            r"images .* must be torch.float32 of shape \(m, C, H, W\).*float32 of shape \(3, 8, 8\)",
        ),
        ({"images": IMAGES.double()}, "got torch.float64"),
        ({"images": IMAGES[:0]}, r"none of them 0; got torch.float32 of shape \(0, 3, 8, 8\)"),
        ({"images": IMAGES[:, :1]}, r"has 3 channels; got images of shape \(3, 1, 8, 8\)"),
        ({"images": torch.full_like(IMAGES, float("nan"))}, "images of a synthetic set must be finite"),
        ({"representations": REPRESENTATIONS[:2]}, "'images': 3, 'representations': 2"),
        ({"representations": REPRESENTATIONS[:, 0]}, r"representations .* of shape \(m, d\).*of shape \(3,\)"),
        ({"representations": torch.full((3, 4), float("inf"))}, "representations of a synthetic set must be finite"),
        ({"source_index": torch.zeros(3)}, r"source_index .* must be torch.int64 of shape \(m\)"),
        ({"source_index": torch.arange(4)}, "'source_index': 4"),
        ({"mean": (0.5,)}, r"3 channels; .* mean \[0.5\]"),
        ({"std": (0.2, 0.0, 0.2)}, "std positive; got .*0.0"),
        ({"mean": (0.2, float("nan"), 0.2)}, "mean and std must be finite"),
    ],
)
def test_what_is_no_set_is_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"images": IMAGES, "representations": REPRESENTATIONS, "mean": MEAN, "std": STD}
    SyntheticSet(**good)
    with pytest.raises(UsageError, match=message):
        SyntheticSet(**{**good, **change})


def test_impossible_numbers_in_a_sound_file_are_the_files_fault(tmp_path: Path) -> None:
    ours = make_set()
    ours.images[0, 0, 0, 0] = float("nan")  # after the check
    ours.save(tmp_path / "set")
    with pytest.raises(DistillError, match=f"{tmp_path / 'set'} holds no synthetic set: .*must be finite") as caught:
        SyntheticSet.load(tmp_path / "set")
    assert not isinstance(caught.value, UsageError)
