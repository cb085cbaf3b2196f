import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightly_distill.errors import DistillError
from lightly_distill.method import representation_cache
from lightly_distill.method.representation_cache import RepresentationCache, shard_size
from lightly_distill.runtime import progress
from lightly_distill.runtime.files import replacing
from lightly_distill.runtime.seeding import generator

COUNT, SHARD = 25, 10
TRUTH = torch.randn(2, COUNT, 3, generator=generator(0, "truth"))
FACTS = {"source": "a", "target": "b"}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(representation_cache, "SHARD", SHARD)


class Compute:
    """Knows the truth and counts what it is asked for."""

    def __init__(self, fails_at: int = COUNT) -> None:
        self.asked: list[int] = []
        self.fails_at = fails_at

    def __call__(self, indices: Tensor) -> Iterator[Tensor]:
        for chunk in torch.split(indices, 4):  # no divisor of a shard
            if self.fails_at in chunk:
                raise KeyboardInterrupt
            self.asked += chunk.tolist()
            yield TRUTH[:, chunk].clone()


def everything(cache: RepresentationCache, compute: Compute, views: str = "v") -> Tensor:
    kept = cache.keep(views, COUNT, compute)
    return torch.stack([kept.gather(torch.full((COUNT,), view), torch.arange(COUNT)) for view in (0, 1)])


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_kept_representations_are_the_computed_ones_in_memory_and_on_disk(tmp_path: Path) -> None:
    for cache in (RepresentationCache(), RepresentationCache(tmp_path, FACTS), RepresentationCache(tmp_path, FACTS)):
        kept = cache.keep("v", COUNT, Compute())
        views, indices = torch.tensor([1, 0, 0, 1, 1]), torch.tensor([24, 3, 12, 12, 0])
        assert torch.equal(kept.gather(views, indices), TRUTH[views, indices])
        assert torch.equal(everything(cache, Compute()), TRUTH)
    assert [path.name.split("-")[0] for path in files(tmp_path)] == ["000000000", "000000010", "000000020"]
    assert everything(cache, compute := Compute()) is not None and compute.asked == []


@pytest.mark.parametrize(("count", "size"), [(48, 128), (2000, 128), (8000, 500), (10_000, 625), (10**6, 8192)])
def test_a_source_of_any_size_is_in_parts_that_processes_divide_evenly(
    count: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(representation_cache, "SHARD", 8192)
    assert shard_size(count) == size
    parts = [len(part) for part in torch.split(torch.arange(count), size)]
    assert count <= size or max(sum(parts[rank::2]) for rank in (0, 1)) <= 0.55 * count


def test_the_larger_shards_of_older_versions_are_read_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(representation_cache, "PARTS", 1)
    everything(RepresentationCache(tmp_path, FACTS), Compute())
    files(tmp_path)[1].unlink()
    monkeypatch.setattr(representation_cache, "PARTS", 16)
    monkeypatch.setattr(representation_cache, "LEAST", 1)
    assert shard_size(COUNT) == 2
    compute = Compute()
    assert torch.equal(everything(RepresentationCache(tmp_path, FACTS), compute), TRUTH)
    assert compute.asked == list(range(10, 20)) and len(files(tmp_path)) == 3


def test_what_was_computed_before_an_interruption_is_not_computed_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        everything(RepresentationCache(tmp_path, FACTS), Compute(fails_at=17))
    compute = Compute()
    assert torch.equal(everything(RepresentationCache(tmp_path, FACTS), compute), TRUTH)
    assert compute.asked == list(range(10, COUNT))


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "text"])
def test_a_shard_that_is_not_whole_is_told_and_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    everything(RepresentationCache(tmp_path, FACTS), Compute())
    shard = files(tmp_path)[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes({"bit": content, "cut": content[:-40], "empty": b"", "text": b"hello"}[damage])
    compute = Compute()
    assert torch.equal(everything(RepresentationCache(tmp_path, FACTS), compute), TRUTH)
    assert compute.asked == list(range(10, 20))
    assert f"{shard} are not whole: computing them again" in caplog.text
    assert len(files(tmp_path)) == 3


def test_a_change_of_source_target_or_views_makes_new_ones_and_the_old_can_be_forgotten(tmp_path: Path) -> None:
    everything(RepresentationCache(tmp_path, FACTS), Compute())
    for facts, views in (
        ({**FACTS, "source": "other"}, "v"),
        ({**FACTS, "target": "other"}, "v"),
        (FACTS, "other"),
    ):
        compute = Compute()
        cache = RepresentationCache(tmp_path, facts)
        everything(cache, compute, views)
        assert compute.asked == list(range(COUNT))
    assert len(list(tmp_path.iterdir())) == 4
    cache.forget_others()
    assert len(list(tmp_path.iterdir())) == 1
    compute = Compute()
    everything(RepresentationCache(tmp_path, FACTS), compute, "other")
    assert compute.asked == []
    RepresentationCache(tmp_path, FACTS).forget_others()  # every step draws its own views: none is in use
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_told_by_name_and_leaves_whole_shards_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.fsync, []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) > 2:  # a shard and the folder
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DistillError, match=r"000000010-\w+.npy cannot be written: .*No space left on device"):
            everything(RepresentationCache(tmp_path, FACTS), Compute())
    assert len(files(tmp_path)) == 1
    (files(tmp_path)[0].parent / "000000010-x.npy.partial").write_bytes(b"of a killed run")
    assert torch.equal(everything(RepresentationCache(tmp_path, FACTS), Compute()), TRUTH)
    assert len(files(tmp_path)) == 3


def test_two_runs_in_one_folder_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    class Meanwhile(Compute):
        """Another run computes and writes it all while this one is at its second shard."""

        def __call__(self, indices: Tensor) -> Iterator[Tensor]:
            for number, part in enumerate(super().__call__(indices)):
                if number == 4:
                    other = RepresentationCache(tmp_path, FACTS, shared=True)
                    assert torch.equal(everything(other, Compute()), TRUTH)
                yield part

    assert torch.equal(everything(RepresentationCache(tmp_path, FACTS, shared=True), Meanwhile()), TRUTH)
    assert len(files(tmp_path)) == 3
    assert everything(RepresentationCache(tmp_path, FACTS), compute := Compute()) is not None and compute.asked == []


def test_of_two_writers_of_one_file_neither_is_in_the_others_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path, "a") as one, replacing(path, "b") as other:
        one.write_text("whole")
        other.write_text("whole")
    assert path.read_text() == "whole" and files(tmp_path) == [path]


def test_what_another_run_is_writing_stays_and_what_a_killed_one_left_does_not(tmp_path: Path) -> None:
    everything(RepresentationCache(tmp_path, FACTS), Compute())
    folder = files(tmp_path)[0].parent
    young, old = folder / "000000000-x.npy.1-a.partial", folder / "000000010-x.npy.2-b.partial"
    for path in (young, old):
        path.write_bytes(b"begun")
    os.utime(old, (1e9, 1e9))
    everything(RepresentationCache(tmp_path, FACTS, shared=True), Compute())
    assert young.exists() and not old.exists()
    everything(RepresentationCache(tmp_path, FACTS), Compute())  # a folder of one run alone
    assert not young.exists()


def test_what_is_read_elsewhere_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    everything(RepresentationCache(tmp_path / "other", FACTS), Compute())
    damaged = files(tmp_path / "other")[1]
    damaged.write_bytes(b"hello")
    own = RepresentationCache(tmp_path / "own", FACTS, also=[tmp_path / "other"])
    assert torch.equal(everything(own, compute := Compute()), TRUTH)
    assert compute.asked == list(range(10, 20)) and "are not whole" in caplog.text
    assert damaged.read_bytes() == b"hello" and len(files(tmp_path / "own")) == 1
    own.forget_others()
    assert len(files(tmp_path / "other")) == 3


def test_other_precisions_are_other_representations(tmp_path: Path) -> None:
    everything(RepresentationCache(tmp_path, FACTS), Compute())
    compute = Compute()
    RepresentationCache(tmp_path, FACTS).keep("v", COUNT, compute, bf16=True)
    assert compute.asked == list(range(COUNT)) and len(list(tmp_path.iterdir())) == 2


def test_without_a_terminal_the_log_tells_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with caplog.at_level(logging.INFO):
        everything(RepresentationCache(), Compute())
    assert re.search(r"Representations: 24 of 25, [\d.e+]+ images a second, [\d.e+-]+ s left\.", caplog.text)


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    compute = Compute()
    with pytest.raises(DistillError, match="cannot be written"):
        everything(RepresentationCache(tmp_path / "file", FACTS), compute)
    assert compute.asked == []
