"""Targets of third parties: a function in a script, and a package with an entry point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from lightly_distill import UsageError, as_target, register_target
from lightly_distill.synthetic.describe import describe
from lightly_distill.synthetic.synthetic_set import SyntheticSet

IMAGES = torch.rand(2, 3, 8, 8)


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)  # where Lightly's adapter would look
        self.trunk = nn.Conv2d(3, 5, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images)


class Bare(Mine):
    """Of a kind of its own, as what is registered stays so for the whole process."""


class Wrong(Mine):
    """Likewise."""


def test_a_registered_function_comes_before_the_installed_adapters() -> None:
    model = Mine()
    assert as_target(model).encoder_name == "Mine.backbone"

    @register_target
    def trunk_of_mine(candidate: nn.Module) -> nn.Module | None:
        return candidate.trunk if isinstance(candidate, Mine) else None

    target = as_target(model)
    assert target.encoder_name == "Mine.trunk" and target(IMAGES).shape == (2, 5)
    assert target.reason.startswith("as ") and target.reason.endswith("trunk_of_mine says")
    assert as_target(nn.Flatten()).encoder_name == "Flatten"  # others are not its kind


def test_a_cell_that_runs_again_replaces_its_registration() -> None:
    asked = []
    for width in (6, 7):

        @register_target
        def again(model: nn.Module, width: int = width) -> nn.Module | None:
            asked.append(width)
            return nn.Conv2d(3, width, 3) if isinstance(model, Bare) else None

    assert as_target(Bare())(IMAGES).shape == (2, 7)
    as_target(nn.Flatten())  # nobody's: all registered functions are asked
    assert 6 not in asked and 7 in asked


def test_a_registered_function_that_returns_no_module_is_told() -> None:
    @register_target
    def wrong(model: nn.Module) -> nn.Module | None:
        return 3 if isinstance(model, Wrong) else None  # type: ignore[return-value]

    with pytest.raises(UsageError, match=r"registered function .*wrong returned int, expected a module"):
        as_target(Wrong())


ADAPTER = """
import torch
from torch import nn

from lightly_distill.adapters import FoundEncoder


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.projection = nn.Linear(width, 2)


def load(spec):
    return Net(int(spec))


def find_encoder(model):
    return FoundEncoder(model.stem, "stem", "tinynet says so") if isinstance(model, Net) else None
"""
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "tinynet"
version = "1.0"

[project.entry-points."lightly_distill.targets"]
tinynet = "tinynet_adapter"

[tool.setuptools]
py-modules = ["tinynet_adapter"]
"""


def test_an_installed_package_brings_its_targets_to_the_command_line(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "tinynet_adapter.py").write_text(ADAPTER)
    (project / "pyproject.toml").write_text(PROJECT)
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(site), str(project)], check=True, timeout=120)

    from torchvision.transforms.functional import to_pil_image

    (tmp_path / "photos").mkdir()
    for number, image in enumerate(tiny.images(40)):
        to_pil_image(image).save(tmp_path / "photos" / f"{number:02d}.png")
    options = "--student convnet_4_4 --num-images 8 --steps 2 --pool.size 2 --pool.max-age 3 --out run"
    command = [sys.executable, "-m", "lightly_distill", "distill", "--data", "photos", "--target", "tinynet:6"]
    done = subprocess.run(
        [*command, *options.split()],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    target = SyntheticSet.load(tmp_path / "run").provenance["target"]
    assert (target["name"], target["encoder"], target["reason"]) == ("tinynet:6", "Net.stem", "tinynet says so")
    assert "tinynet says so" in describe(tmp_path / "run")
