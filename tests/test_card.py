from typing import Any

import pytest
import torch

from lightly_distill import SyntheticSet, card


def make(provenance: dict[str, Any]) -> SyntheticSet:
    images, reps = torch.zeros(2, 3, 8, 8), torch.zeros(2, 4)
    return SyntheticSet(images, reps, mean=(0.5,) * 3, std=(0.2,) * 3, provenance=provenance)


def test_the_card_tells_what_is_recorded() -> None:
    text = card.text(
        make(
            {
                "source": {"name": "cifar10#train", "images": 50000, "fingerprint": "a" * 64},
                "heldout_loss": {"initial": 0.25, "final": 0.125},
                "seconds": 61.5,
                "device": "cpu",
                "peak_memory_bytes": 3 * 2**30,
            }
        )
    )
    for part in (
        "| source | cifar10#train, 50000 images, hash aaaaaaaaaaaa |",
        "| outer loss, held-out images | 0.25 at the start, 0.125 at the end |",
        "| time | 61.5 s, cpu |",
        "| peak memory | 3 GiB |",
        "2 learned images of 8x8 pixels",
        "mean (0.5, 0.5, 0.5)",
    ):
        assert part in text


@pytest.mark.parametrize("provenance", [{}, {"source": "x"}, {"source": {}}, {"seconds": 3}, {"heldout_loss": None}])
def test_a_card_of_little_known_is_still_a_card(provenance: dict[str, Any]) -> None:
    assert "# A synthetic set of 2 images" in card.text(make(provenance))


def test_a_name_cannot_break_the_table() -> None:
    assert "| source | a/b c |" in card.text(make({"source": {"name": "a|b\nc"}}))
