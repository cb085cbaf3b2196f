from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo import config
from torch._dynamo.utils import counters

import tiny
from lightly_distill import DistillationStage, SyntheticSet
from lightly_distill.method import compiled

# six: tried, measured, trained and distilled, in part first with one number of images and then with any
OF_EACH = 6


@pytest.fixture(autouse=True)
def without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are the same, whatever makes code of them."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()


def distilled(students: str, **options: Any) -> SyntheticSet:
    options = {**tiny.QUICK, "pool": {"size": 6, "max_age": 3}, "steps": 8, "target_dims": None, **options}
    return DistillationStage(tiny.encoder(), **{**options, "student": students}).run(tiny.images())


@pytest.mark.parametrize("target_map", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_each_architecture_of_a_mixed_pool_is_compiled_once(target_map: int, caplog: pytest.LogCaptureFixture) -> None:
    distilled("convnet_4_4,convnet_4_8,convnet_8_8", target_map=target_map, compile=True)
    # the six first students, and those that took their places
    assert counters["stats"]["unique_graphs"] <= 3 * OF_EACH
    assert counters["frames"]["ok"] == counters["frames"]["total"] > 8  # torch's own limit
    assert "uncompiled" not in caplog.text


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_costs_no_graph(precision: str) -> None:
    distilled("convnet_4_4", precision=precision, compile=True)
    assert counters["frames"]["ok"] == counters["frames"]["total"] <= OF_EACH


def test_a_student_past_the_limit_is_told_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "GRAPHS", 1)
    with config.patch(cache_size_limit=4):
        made = distilled("convnet_4_4,convnet_4_8", compile=True)
        assert config.cache_size_limit == 4 and not config.fail_on_cache_limit_hit
    told = [record.getMessage() for record in caplog.records if "uncompiled" in record.getMessage()]
    assert sorted(told) == [
        f"Student '{name}' goes on uncompiled: torch would compile it more than 4 times."
        for name in ("convnet_4_4", "convnet_4_8")
    ]
    plain = distilled("convnet_4_4,convnet_4_8")
    assert torch.equal(made.images, plain.images) and torch.equal(made.representations, plain.representations)
