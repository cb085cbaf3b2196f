import gc
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import tiny
from lightly_distill import DistillationStage
from lightly_distill.runtime.seeding import generator

SIZE, SAMPLES = 16, 30


@pytest.mark.slow
@pytest.mark.parametrize("steps", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_resident_memory_is_flat(steps: int, tmp_path: Path) -> None:
    resident: list[int] = []

    def log(row: dict[str, Any]) -> None:
        gc.collect()
        resident.append(psutil.Process().memory_info().rss)

    images = torch.randint(256, (200, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator(0, "memory"))
    target = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    stage = DistillationStage(
        target=target,
        student="convnet_4_4",
        num_images=40,
        batch_size=40,
        steps=steps,
        log_every=steps // SAMPLES,
        checkpoint_every=20,
        source_views=2,
        pool={"size": 3, "max_age": 5},  # so that students are born all the time
    )
    stage.run(images, out=tmp_path / "run", log=tiny.EachRow(log))
    warm, rest = resident[: SAMPLES // 3], resident[SAMPLES // 3 :]
    # one image set kept in each step would be 23 MiB in 200 steps
    assert max(rest) - max(warm) < 4 * 2**20
