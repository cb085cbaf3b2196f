import resource
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from lightly_distill.data.spool import Spool
from lightly_distill.errors import DistillError, UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where TMPDIR is remembered
    return tmp_path


@pytest.fixture
def images() -> Tensor:
    return tiny.images(20)


def test_images_come_back_in_any_order(images: Tensor) -> None:
    spool = Spool("birds", tiny.SIZE, 20)
    for part in images.split(7):
        spool.add(part)
    indices = torch.tensor([19, 0, 7, 7, 3])
    assert len(spool) == 20
    assert torch.equal(spool.read(indices), images[indices])
    spool.add(images[:1].transpose(2, 3))  # not contiguous
    assert torch.equal(spool.read(torch.tensor([20, 19])), torch.stack([images[0].transpose(1, 2), images[19]]))
    assert spool.read(torch.tensor([], dtype=torch.int64)).shape == (0, 3, tiny.SIZE, tiny.SIZE)


def test_the_file_has_no_name_that_could_stay(images: Tensor, folder: Path) -> None:
    spool = Spool("birds", tiny.SIZE)
    spool.add(images)
    assert list(folder.iterdir()) == []
    assert torch.equal(spool.read(torch.arange(20)), images)


def test_a_disk_without_room_is_refused_before_anything_is_read(folder: Path) -> None:
    message = rf"decoded images of birds need 2\.86e\+06 GiB of disk, and {folder} has .* GiB free\. Set TMPDIR to a"
    with pytest.raises(UsageError, match=message):
        Spool("birds", 32, 10**12)


def test_a_disk_that_fills_up_is_one_line(images: Tensor, folder: Path) -> None:
    spool = Spool("birds", tiny.SIZE)
    spool.add(images)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (images.nbytes + 1000, hard))
    try:
        with pytest.raises(DistillError) as caught:
            spool.add(images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"The decoded images of birds do not fit into {folder}, after 20 of them: ")
    assert str(caught.value).endswith(
        "File too large. Set TMPDIR to a folder with more room, or ask for a smaller image_size."
    )


def test_a_folder_that_is_gone_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with pytest.raises(DistillError, match=r"images of birds cannot be kept on disk: .*No such file or directory"):
        Spool("birds", tiny.SIZE)


def test_what_cannot_be_read_back_is_an_error(images: Tensor) -> None:
    spool = Spool("birds", tiny.SIZE)
    spool.add(images)
    with pytest.raises(DistillError, match=r"Decoded image 20 of birds in .* can no longer be read"):
        spool.read(torch.tensor([20]))
