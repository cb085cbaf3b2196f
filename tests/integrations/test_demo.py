import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightly_distill import SyntheticSet, UsageError
from lightly_distill_integrations import demo


def test_digits_stand_anywhere_and_are_the_same_for_every_seed() -> None:
    images, labels = demo.load_images()
    again, _ = demo.load_images()
    assert torch.equal(images, again)
    assert images.shape == (1797, 3, 32, 32) and sorted(set(labels.tolist())) == list(range(10))
    rows = images[:, 0].amax(2).gt(0).float().argmax(1)  # the first row with ink
    assert rows.min() == 0 and rows.max() >= 10


def test_the_demo_runs_to_its_table_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small: dict[str, Any] = {
        "TARGET": "test_resnet",
        "TARGET_EPOCHS": 1,
        "STUDENT": "convnet_4_8",
        "PRETRAIN_STEPS": 3,
        "SETTINGS": {"num_images": 10, "steps": 5, "batch_size": 32, "pool": {"size": 2, "max_age": 3}},
    }
    for name, value in small.items():
        monkeypatch.setattr(demo, name, value)
    accuracies = demo.run(tmp_path / "demo", seed=1)
    assert list(accuracies) == ["scratch", "random real images", "distilled"]
    assert all(0.05 < value < 1 for arm in accuracies.values() for value in arm.values())
    assert len({tuple(arm.values()) for arm in accuracies.values()}) == 3
    told = capsys.readouterr().out
    for arm, values in accuracies.items():
        assert f"{100 * values['linear']:.1f}%" in next(line for line in told.splitlines() if line.startswith(arm))
    assert {path.name for path in (tmp_path / "demo" / "pictures").iterdir()} == {
        "accuracy.png",
        "before_after.png",
        "loss.png",
    }
    assert json.loads((tmp_path / "demo" / "results.json").read_text()) == accuracies
    assert SyntheticSet.load(tmp_path / "demo").metrics["accuracy"] == accuracies
    with pytest.raises(UsageError, match="is not empty"):
        demo.run(tmp_path / "demo")
