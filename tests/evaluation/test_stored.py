import pytest
import torch

import tiny
from lightly_distill import SyntheticSet
from lightly_distill.evaluation.stored import Footprint, stored_bytes
from lightly_distill.synthetic import artifact


def made(count: int, **facts: str) -> SyntheticSet:
    scales = torch.ones(40)
    rows = torch.randn(count, 40, generator=torch.Generator().manual_seed(0)).mul(20).round().clamp(-127, 127)
    return SyntheticSet(
        tiny.images(count), rows, scales=scales, mean=(0.5,) * 3, std=(0.25,) * 3, provenance={"x": facts}
    )


def test_a_few_images_say_what_many_take() -> None:
    footprint = Footprint.of(made(128))
    assert footprint.bytes(600) == pytest.approx(artifact.stored_bytes(made(600)), rel=0.1)
    assert footprint.count(footprint.bytes(300)) in (299, 300, 301)
    assert footprint.count(100) <= 0
    assert Footprint.of(made(2)).each > 0


def test_the_record_of_a_set_does_not_count_and_a_large_one_is_not_written_whole() -> None:
    assert stored_bytes(made(10, told="x" * 5000)) == stored_bytes(made(10))
    assert stored_bytes(made(2500)) == pytest.approx(artifact.stored_bytes(made(2500)), rel=0.1)
