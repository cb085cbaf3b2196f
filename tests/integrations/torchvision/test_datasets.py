import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, FakeData

from lightly_distill.data.source import open_source
from lightly_distill.errors import UsageError
from lightly_distill_integrations.torchvision import datasets


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTLY_DISTILL_DATA", str(tmp_path))


@pytest.fixture
def tiny_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """CIFAR-10 as torchvision keeps it, with two images in each split. Returns them, shape (2, 2, 3072)."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 3072), dtype=np.uint8)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    batches = [write(name, {"data": data, "labels": [0, 1]}) for name, data in zip("ab", pixels, strict=True)]
    meta = write("batches.meta", {"label_names": ["cat", "dog"]})
    monkeypatch.setattr(CIFAR10, "train_list", batches[:1])
    monkeypatch.setattr(CIFAR10, "test_list", batches[1:])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return pixels


@pytest.mark.parametrize(("spec", "row"), [("", 0), ("#train", 0), ("#test", 1)])
def test_a_split_is_mapped_to_the_train_argument(
    spec: str, row: int, tiny_cifar: np.ndarray, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = CIFAR10._check_integrity
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: print("Files already downloaded") or check(self))
    opened = open_source(f"torchvision:CIFAR10{spec}")
    assert opened.name == f"torchvision:CIFAR10{spec or '#train'}"
    assert np.array_equal(opened.read(torch.arange(2)).flatten(1).numpy(), tiny_cifar[row])
    assert capsys.readouterr().out == ""


def test_fake_data_works_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeData, "__len__", lambda self: 5)  # of 1000
    assert open_source("torchvision:FakeData").read(torch.arange(5)).shape == (5, 3, 64, 64)
    with pytest.raises(UsageError, match=r"'torchvision:FakeData' has no splits; leave '#test' out"):
        open_source("torchvision:FakeData#test")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("CIFAR01", r"torchvision has no dataset 'CIFAR01'\. Did you mean 'CIFAR10'\?"),
        ("cifar10", r"torchvision has no dataset 'cifar10'\. Did you mean 'CIFAR10'\?"),
        ("VisionDataset", "torchvision has no dataset 'VisionDataset'"),
        ("CIFAR10#val", r"'torchvision:CIFAR10' has no split 'val'\. Known: test, train\."),
        (
            "SVHN#val",
            "torchvision cannot provide 'SVHN' in .*: Unknown value 'val' for argument split. Valid values are",
        ),
        ("EMNIST", "torchvision cannot provide 'EMNIST' in .*: Unknown value 'train' for argument split"),
        ("CocoCaptions", "torchvision's CocoCaptions also needs annFile: build it in Python and pass the object"),
        ("ImageNet", "torchvision cannot provide 'ImageNet' in "),
    ],
)
def test_what_torchvision_cannot_give_is_told_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_source(f"torchvision:{spec}")
    assert "\n" not in str(caught.value)


def test_a_failed_download_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("<urlopen error\n no route to host>")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(
        UsageError, match=f"torchvision cannot provide 'CIFAR10' in '{tmp_path}': <urlopen error no route"
    ):
        open_source("torchvision:CIFAR10")
    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", offline)
    with pytest.raises(UsageError, match=r"'EMNIST' in .*: <urlopen error no route"):  # download is its base class's
        open_source("torchvision:EMNIST#letters")


def test_without_a_data_folder_the_users_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.delenv("LIGHTLY_DISTILL_DATA")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(
        CIFAR10, "__init__", lambda self, root, train=True, download=False: seen.append((root, download))
    )
    datasets.open("CIFAR10", None)
    assert seen == [(str(tmp_path / ".cache" / "lightly_distill" / "torchvision"), True)]
