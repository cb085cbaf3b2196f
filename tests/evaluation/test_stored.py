from pathlib import Path

import pytest
import torch

import tiny
from lightly_distill import SyntheticSet
from lightly_distill.evaluation.stored import Footprint, most_within, stored_bytes
from lightly_distill.runtime.words import size_text
from lightly_distill.synthetic import artifact, set_facts
from lightly_distill.synthetic.describe import describe


def made(count: int, **facts: str) -> SyntheticSet:
    scales = torch.ones(40)
    rows = torch.randn(count, 40, generator=torch.Generator().manual_seed(0)).mul(20).round().clamp(-127, 127)
    return SyntheticSet(
        tiny.images(count), rows, scales=scales, mean=(0.5,) * 3, std=(0.25,) * 3, provenance={"x": facts}
    )


def test_a_few_images_say_what_many_take() -> None:
    footprint = Footprint.of(made(128), made(128))
    assert footprint.bytes(600) == pytest.approx(artifact.stored_bytes(made(600)), rel=0.1)
    assert footprint.count(footprint.bytes(300)) in (299, 300, 301)
    assert footprint.count(100) <= 0
    assert Footprint.of(made(2), made(2)).each > 0


def test_a_set_without_a_record_is_given_that_of_the_distilled_one(tmp_path: Path) -> None:
    own = made(10, told="x" * 5000)
    bare = own.part(torch.arange(10))
    assert stored_bytes(bare, own) == stored_bytes(own, own) > artifact.stored_bytes(bare) + 5000
    other = made(10, told="y")
    assert stored_bytes(other, own) == artifact.stored_bytes(other)  # it has one
    large = made(2500)
    assert stored_bytes(large, own) == pytest.approx(artifact.stored_bytes(large), rel=0.1)
    assert stored_bytes(large, large) == artifact.stored_bytes(large)  # exactly, as others will see it


def test_one_number_of_bytes_is_told_everywhere(tmp_path: Path) -> None:
    """By inspect, on the card, and in an evaluation: what somebody fetches to use the set."""
    own = made(10, told="x")
    folder = own.save(tmp_path / "set")
    fetched = [set_facts.FACTS, *set_facts.hashed(set_facts.read_facts(folder))]
    size = sum((folder / name).stat().st_size for name in fetched)
    assert stored_bytes(own, own) == artifact.stored_bytes(own) == size
    assert f"{size_text(size)} ({size} bytes), without its card" in describe(folder)
    assert f"| size | {size_text(size)} on disk, without this card |" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("Mine.")
    assert set_facts.bytes_on_disk(folder) == size


@pytest.mark.parametrize("count", [2, 7, 20, 60])  # the preview of a small set has all of its images
def test_as_many_images_as_fit_are_found_whatever_is_fixed(count: int) -> None:
    many = made(60)

    def bytes_of(images: int) -> int:
        return stored_bytes(many.part(torch.arange(images)), many)

    assert most_within(bytes_of(count), bytes_of, 60) == count
    assert most_within(bytes_of(count) + 1, bytes_of, 60) == count
    assert most_within(bytes_of(count) - 1, bytes_of, 60) == max(2, count - 1)
