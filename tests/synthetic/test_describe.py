from pathlib import Path

import pytest
import torch

from lightly_distill import SyntheticSet, UsageError
from lightly_distill.synthetic import set_facts
from lightly_distill.synthetic.describe import describe, describe_set
from synthetic_sets import MEAN, STD, make_set


def test_sizes_statistics_origin_and_pictures_are_told(tmp_path: Path) -> None:
    make_set().save(tmp_path / "run" / "set")
    told = describe(tmp_path / "run")
    size = set_facts.bytes_on_disk(tmp_path / "run" / "set")
    for part in (
        "6 of 3x8x8",
        "6 of 5 numbers, mean ",
        "5 real images, 1 of noise",
        f"({size} bytes), without its card, in {tmp_path / 'run' / 'set'}",
        "Café#train, 60 images, fingerprint abababababab\n",
        "measured linear  distilled (0.5, 0.25)",
        "mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)",
        str(tmp_path / "run" / "set" / "preview.png"),
    ):
        assert part in told


def test_statistics_are_those_of_the_numbers() -> None:
    images = torch.tensor([-30.0, 30.0, 0.0, 0.0]).repeat(3, 1).view(1, 3, 1, 4)
    told = describe_set(SyntheticSet(images, torch.ones(1, 2), mean=MEAN, std=STD), None)
    assert "mean 0, std 21.21, -30 to 30, float32, normalised" in told
    assert "50.0% of the pixel values black or white" in told
    assert "on disk" not in told and "picture" not in told


def test_the_conditions_of_a_run_are_shown() -> None:
    ours = make_set()
    sessions = [{"from_step": 0, "threads": 2}, {"from_step": 7, "threads": 1}]
    conditions = {"chunk_size": 4, "threads": 1, "tf32": "off", "device": "CPU x86_64, AVX2", "sessions": sessions}
    ours.provenance = {"steps": 9, "versions": {"torch": "2.9.0"}, **conditions}
    lines = {" ".join(line.split()) for line in describe_set(ours, None).splitlines()}
    assert {
        "device CPU x86_64, AVX2",
        "chunk size 4 of 6 images at a time",
        "threads 1",
        "TF32 off",
        "resumed at step 7 with threads: 2 -> 1",
        "versions torch 2.9.0",
    } <= lines


def test_columns_are_aligned_and_lines_short_whatever_a_stranger_wrote() -> None:
    ours = make_set()
    ours.provenance = {
        "source": "\x1b[2J clears\nthe screen",
        "target": {"name": "long " * 10_000},
        **{f"part{i}": {"a": i, "deeper": {"b": None, "c": 0.1 + 0.2}} for i in range(40)},
    }
    lines = describe_set(ours, None).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    assert all(line.isprintable() for line in lines)
    assert lines[-1].endswith("... all of it is in lightly_distill.json")
    column = lines[0].index("6 of 3x8x8")
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)
    assert sum("long" in line for line in lines) == 5 and any(line.startswith("part9") for line in lines)


def test_a_label_of_what_was_measured_is_whole() -> None:
    ours = make_set()
    ours.metrics = {"near_copies": {"pixels": {"near": 0}, "representations": {"near": 1}}}
    lines = [line.split("  ", 1) for line in describe_set(ours, None).splitlines()]
    told = {name: text.strip() for name, text in lines}
    assert told["measured near_copies pixels"] == "near 0"
    assert told["measured near_copies representations"] == "near 1"


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        describe(tmp_path / "nowhere")
