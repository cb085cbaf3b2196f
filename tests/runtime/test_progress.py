import logging
from types import SimpleNamespace

import pytest

from lightly_distill.runtime import progress
from lightly_distill.runtime.progress import Progress


def test_the_time_left_does_not_count_what_was_slow_at_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    caplog.set_level(logging.INFO, logger="lightly_distill")
    with Progress("Distilling", 1000, "step", done=100) as bar:
        for seconds in [50.0, *[2.0] * 40]:
            now[0] += seconds
            bar.add()
    first, second, third = caplog.messages
    assert first == "Distilling: 101 of 1,000, 0.02 steps a second, 12.5 h left."  # nothing else is known yet
    assert second == "Distilling: 116 of 1,000, 0.5 steps a second, 29 min left."
    assert third == "Distilling: 131 of 1,000, 0.5 steps a second, 29 min left."


def test_nothing_is_said_of_a_speed_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    caplog.set_level(logging.INFO, logger="lightly_distill")
    with Progress("Warming up the pool", 10, "step") as bar:
        bar.add(0)
    assert not caplog.messages
