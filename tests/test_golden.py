"""What the code did before it moved into folders, it does still: see `golden/scenario.py`."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from golden import scenario
from lightly_distill import DistillationStage, SyntheticSet

CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}  # on another processor; on that of the record it is the very bits


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(scenario.EXPECTED.read_text())
    return read


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        return scenario.play(tmp_path_factory.mktemp("golden"))


def test_the_set_is_the_same(played: dict[str, Any], expected: dict[str, Any]) -> None:
    kept = SyntheticSet.load(scenario.KEPT / "set")
    torch.testing.assert_close(played["tensors"]["images"], kept.images, **CLOSE)
    torch.testing.assert_close(played["tensors"]["representations"], kept.representations, **CLOSE)
    assert played["source_index"] == expected["source_index"] == kept.source_index.tolist()
    if scenario.machine() == expected["machine"]:
        assert scenario.digest(played["tensors"]) == expected["sha256"]


@pytest.mark.parametrize("part", ["student", "provenance", "metrics", "config"])
def test_what_is_recorded_is_the_same(played: dict[str, Any], expected: dict[str, Any], part: str) -> None:
    same(played[part], expected[part], part)


def test_each_arm_measures_the_same(played: dict[str, Any], expected: dict[str, Any]) -> None:
    assert played["bytes"] == pytest.approx(expected["bytes"], rel=0.01)  # libraries compress a little differently
    assert list(played["arms"]) == list(expected["arms"])
    for arm, values in expected["arms"].items():
        assert list(played["arms"][arm]) == list(values)
        for measure, accuracies in values.items():  # on another processor, two of the hundred digits may change sides
            assert played["arms"][arm][measure] == pytest.approx(accuracies, abs=0.021), (arm, measure)


def test_the_same_files_are_written(played: dict[str, Any], expected: dict[str, Any]) -> None:
    assert _names(played["files"]) == _names(expected["files"])


def _names(files: list[str]) -> list[str]:
    """Returns names of files without the hashes of what is in them, which another processor may change."""
    return [re.sub("[0-9a-f]{64}", "*", file) for file in files]


def test_the_card_is_the_same(played: dict[str, Any], expected: dict[str, Any]) -> None:
    if scenario.machine() == expected["machine"]:
        assert played["card"] == expected["card"]
    assert headings(played["card"]) == headings(expected["card"])


def test_an_old_interrupted_run_goes_on_to_the_same_set(tmp_path: Path) -> None:
    shutil.copytree(scenario.KEPT / "interrupted", tmp_path / "run")
    images, labels = scenario.digits()
    source = [(image, label) for image, label in zip(images[:500], labels, strict=False)]
    synthetic = DistillationStage(scenario.model(), **scenario.STAGE).run(source, out=tmp_path / "run", resume=True)
    torch.testing.assert_close(synthetic.images, SyntheticSet.load(scenario.KEPT / "set").images, **CLOSE)
    assert [row["step"] for row in scenario.rows(tmp_path / "run" / "metrics.jsonl")] == list(range(scenario.STEPS + 1))


def test_an_old_published_set_and_its_card_load() -> None:
    published, kept = SyntheticSet.load(scenario.KEPT / "published"), SyntheticSet.load(scenario.KEPT / "set")
    assert torch.equal(published.images, kept.images) and torch.equal(published.representations, kept.representations)
    assert "distilled" in published.metrics["transfer"][0]["arms"]


def test_an_old_student_loads_by_the_lines_of_its_day() -> None:
    from lightly_distill_integrations import convnets

    convnets.register(scenario.STUDENT)
    path = scenario.KEPT / "student" / "model.safetensors"
    backbone = timm.create_model(scenario.STUDENT, num_classes=0, img_size=8, checkpoint_path=str(path)).eval()
    assert set(backbone.state_dict()) == set(load_file(path))
    assert backbone(torch.zeros(2, 3, 8, 8)).shape == (2, 32)


def headings(card: list[str]) -> list[str]:
    return [line for line in card if line.startswith(("#", "| source", "| student", "- ", "license"))]


def same(found: Any, known: Any, where: str) -> None:
    """Asserts that two values are alike, numbers nearly."""
    if isinstance(known, dict):
        assert set(found) == set(known), where
        for name, value in known.items():
            same(found[name], value, f"{where}.{name}")
    elif isinstance(known, list):
        assert len(found) == len(known), where
        for number, (one, other) in enumerate(zip(found, known, strict=True)):
            same(one, other, f"{where}.{number}")
    elif isinstance(known, float):
        assert found == pytest.approx(known, rel=5e-3, abs=1e-5), where
    else:
        assert found == known, where
