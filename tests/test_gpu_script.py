"""The script for the day that a GPU is there runs on a CPU, on little."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightly_distill.method.config import make_config
from lightly_distill.method.krr import kernel_ridge
from lightly_distill.models.rows import Layout

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def roofline(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("roofline")


def part(folder: Path, name: str, *options: str) -> tuple[int, dict[str, Any]]:
    command = ["sh", str(BENCHMARKS / "gpu.sh"), str(folder), name, "--device", "cpu", "--small", *options]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert ended.returncode in (0, 1), ended.stderr
    return ended.returncode, json.loads((folder / f"{name}.json").read_text())


def test_right_that_is_out_of_time_keeps_what_it_has(tmp_path: Path) -> None:
    code, written = part(tmp_path, "right", "--minutes", "0")
    assert code == 1 and not written["done"]
    assert list(written["results"].values()) == ["passed"]  # one test, so that each call makes progress


@pytest.mark.slow
def test_right_goes_on_where_it_stopped(tmp_path: Path) -> None:
    _, before = part(tmp_path, "right", "--minutes", "0")
    code, written = part(tmp_path, "right")
    assert code == 0 and written["done"] and len(written["results"]) == 3
    assert before["results"].items() <= written["results"].items()


@pytest.mark.slow
def test_fast_measures_three_presets_against_reference_and_card(tmp_path: Path) -> None:
    code, written = part(tmp_path, "fast")
    assert code == 0 and written["done"]
    presets, sides = ("cifar", "tinyimagenet", "imagenet64"), ("reference", "plain")
    assert set(written["results"]) == {f"{preset} {side}" for preset in presets for side in sides}
    for name, result in written["results"].items():
        assert result["seconds"] > 0 and result["roofline_seconds"] > 0 and result["memory_gib"] > 0, name
        # all that a run of 160,000 steps takes, and the target's pass in each
        assert result["run_hours"] >= 160_000 * result["seconds"] / 3600
        if name.endswith("plain"):
            assert result["loss_gap"] < 1e-3 and sum(result["phases"].values()) > 0
    assert part(tmp_path, "fast") == (0, written)  # nothing is measured again


@pytest.mark.slow
def test_good_runs_the_transfer_setting(tmp_path: Path, real_data: Path) -> None:
    code, written = part(tmp_path, "good")
    assert code == 0 and written["done"]
    assert [each["setting"]["student"] for each in written["results"]["transfer"]] == ["convnet_16_32", "convnet_8_8"]


def test_the_operations_that_are_counted_are_those_of_a_step(roofline: Any) -> None:
    config = make_config(student="convnet_4_4", num_images=10, batch_size=16, image_size=8)
    target = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten())
    phases = roofline.step_operations(config, target, Layout(5))
    flops = {phase: sum(each[0] for each in operations) for phase, operations in phases.items()}
    per_image = 2 * 9 * (3 * 4 * 64 + 4 * 4 * 16)  # two 3x3 convolutions, on 8x8 and 4x4
    assert flops["real features"] == 16 * per_image
    # a forward pass, and one back to the images: twice that of each convolution
    assert flops["synthetic features and backward"] == 2 * 10 * per_image
    # back to the weights too, but for the first layer not to the images; and a head of 16 features to 5 targets
    first, head = 2 * 9 * 3 * 4 * 64, 2 * 16 * 5
    assert flops["pool update"] == 10 * (3 * per_image - first + 3 * head)
    assert flops["target"] == 16 * 2 * 9 * 3 * 6 * 36
    # of an operation: the larger of what it computes and what it moves
    card = roofline.Card(flops=100.0, full_flops=10.0, bandwidth=50.0, launch=1.0)
    assert card.seconds([(1000.0, 10.0, False), (1000.0, 10.0, True), (0.0, 500.0, False), (1.0, 1.0, False)]) == 121


@pytest.mark.parametrize(("m", "f"), [(60, 200), (200, 60)])
def test_the_products_of_the_ridge_are_counted(roofline: Any, m: int, f: int) -> None:
    syn, rows = torch.randn(m, f, requires_grad=True), torch.randn(m, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        loss = kernel_ridge(torch.randn(90, f), syn, rows).values.square().mean()
        torch.autograd.grad(loss, [syn, rows])
    # torch counts neither the factor nor the triangles: the products alone
    products = sum(flops for flops, *_ in roofline.ridge(90, m, f, 16)[:-1])
    assert products == pytest.approx(counter.get_total_flops(), rel=0.25)
