import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import lightly.models.modules
import pytest
import torch
from torch.nn import functional as F

from lightly_distill import SyntheticSet
from lightly_distill.method.step import RealBatch
from lightly_distill.models.students import student_builder

EXAMPLES = Path(__file__).parent.parent / "examples"
MARK = "# + lightly_distill"
ENCODERS = {
    "simclr": "SimCLR.backbone",
    "barlowtwins": "BarlowTwins.backbone",
    "dino": "DINO.teacher_backbone",
    "mae": "MAE.backbone",
    "simclr_lightning": "SimCLR.backbone",
    "simclr_accelerate": "SimCLR.backbone",
}
SEVERAL_PROCESSES = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"]


def run(script: str, out: Path, *launcher: str) -> str:
    """Runs an example in a folder of its own and returns what it prints."""
    env = {name: value for name, value in os.environ.items() if name != "LIGHTLY_DISTILL_DATA"}
    ended = subprocess.run(
        [sys.executable, *launcher, EXAMPLES / f"{script}.py", "--smoke", "--out", out],
        cwd=out.parent,
        env=env | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


# half a minute and more each, and in all that is ours as simclr
SLOW = ("barlowtwins", "dino", "mae", "simclr_accelerate")


@pytest.mark.parametrize(
    "script", [pytest.param(each, marks=pytest.mark.slow if each in SLOW else ()) for each in ENCODERS]
)
def test_an_example_distils_what_its_model_learned(script: str, tmp_path: Path) -> None:
    if script == "mae" and not hasattr(lightly.models.modules, "MaskedVisionTransformerDecoderTIMM"):
        pytest.skip("Lightly 1.6 brought the decoder of this example")
    out = tmp_path / "run"
    printed = run(script, out, *(SEVERAL_PROCESSES if script == "simclr_accelerate" else []))
    folder = next(out.glob("lightning_logs/*/distilled")) if script == "simclr_lightning" else out
    synthetic = SyntheticSet.load(folder)
    assert synthetic.images.shape == (20, 3, 32, 32)
    assert synthetic.provenance["target"]["name"] == ENCODERS[script]
    assert (folder / "pictures" / "before_after.png").exists()
    held_out = synthetic.provenance["heldout_loss"]
    assert f"Held-out loss: {held_out['initial']:.4f} -> {held_out['final']:.4f}" in printed
    if script == "simclr_accelerate":
        assert "Starting Training on 2 processes" in printed


@pytest.mark.parametrize("script", ENCODERS)
def test_without_the_marked_lines_an_example_is_an_ordinary_script(script: str) -> None:
    lines = (EXAMPLES / f"{script}.py").read_text().splitlines(keepends=True)
    ordinary = "".join(line for line in lines if MARK not in line)
    assert "distill" not in ordinary.partition("import")[2]
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F", "-"]  # undefined names, unused imports
    ended = subprocess.run(check, input=ordinary, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def test_the_stage_takes_at_most_five_lines_of_a_simclr_script() -> None:
    assert sum(line.endswith(MARK) for line in (EXAMPLES / "simclr.py").read_text().splitlines()) <= 5


def test_the_students_of_the_full_runs_exist() -> None:
    students = {name for path in EXAMPLES.glob("*.py") for name in re.findall(r'"student": "(.+?)"', path.read_text())}
    assert len(students) == 2
    for name in students:
        student_builder(name, 32)


@pytest.mark.slow
def test_gradient_bias_shows_the_bias_of_random_views(tmp_path: Path) -> None:
    printed = run("gradient_bias", tmp_path / "run")
    row = r"^{}, .*?(\S+)  \+- +(\S+) +(\S+) +(\S+) +(\S+)$"
    bias, _, sigmas, spread, cosine = map(float, re.findall(row.format("contrastive"), printed, re.MULTILINE)[0])
    assert bias > 0.1 and sigmas > 2 and spread > 0.1 and cosine < 0.9
    ridge = [float(value) for value in re.findall(row.format("ridge"), printed, re.MULTILINE)[0]]
    assert ridge == pytest.approx([0, 0, 0, 0, 1])
    assert (tmp_path / "run" / "gradient_bias.png").stat().st_size > 10_000


@pytest.fixture
def gradient_bias(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("gradient_bias")


@pytest.fixture
def problem() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor, RealBatch]:
    g = torch.Generator().manual_seed(0)
    images, representations, real_images, real_representations = (
        torch.randn(*shape, generator=g, dtype=torch.float64)
        for shape in ((4, 3, 16, 16), (4, 5), (12, 3, 16, 16), (12, 5))
    )
    torch.manual_seed(0)
    student = student_builder("convnet_4_8_in", 16)().double()
    return student, images, representations, RealBatch(real_images, real_representations)


def test_the_gradient_through_the_steps_agrees_with_finite_differences(
    gradient_bias: ModuleType, problem: tuple[torch.nn.Module, torch.Tensor, torch.Tensor, RealBatch]
) -> None:
    student, images, representations, real = problem
    options = {"steps": 2, "lr": 0.1, "num_views": 3, "seed": 1}

    def loss(images: torch.Tensor) -> torch.Tensor:
        """The plain way: SGD, then the outer loss."""
        parameters = {name: parameter.detach().requires_grad_() for name, parameter in student.named_parameters()}
        seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(1)).tolist()
        for seed in seeds:
            inner = sum(gradient_bias.contrastive_losses(student, parameters, images, 3, seed))
            steps = torch.autograd.grad(inner, list(parameters.values()))
            parameters = {
                name: (old - 0.1 * step).detach().requires_grad_()
                for (name, old), step in zip(parameters.items(), steps, strict=True)
            }
        return gradient_bias.readout_loss(student, parameters, images, representations, real).detach()

    gradient = gradient_bias.contrastive_gradient(student, images, representations, real, **options)
    direction = F.normalize(gradient + torch.randn_like(gradient).mul(gradient.std()), dim=0).view_as(images)
    h = 1e-6
    difference = (loss(images + h * direction) - loss(images - h * direction)) / (2 * h)
    torch.testing.assert_close(difference, gradient @ direction.flatten(), rtol=1e-4, atol=0)


def test_without_inner_steps_the_gradient_is_that_of_the_ridge(
    gradient_bias: ModuleType, problem: tuple[torch.nn.Module, torch.Tensor, torch.Tensor, RealBatch]
) -> None:
    unrolled = gradient_bias.contrastive_gradient(*problem, steps=0, lr=0.1, num_views=1, seed=0)
    torch.testing.assert_close(unrolled, gradient_bias.ridge_gradient(*problem), rtol=1e-5, atol=1e-8)


def test_deviation_finds_a_known_bias_and_none_where_there_is_none(gradient_bias: ModuleType) -> None:
    g = torch.Generator().manual_seed(0)
    true = F.normalize(torch.randn(500, generator=g, dtype=torch.float64), dim=0)
    shift = 0.3 * F.normalize(torch.randn(500, generator=g, dtype=torch.float64), dim=0)
    noise = torch.randn(300, 500, generator=g, dtype=torch.float64) / 500**0.5
    reference = true + 0.1 * noise[200:]
    biased = gradient_bias.deviation(true + shift + noise[:200], reference)
    assert biased.bias == pytest.approx(0.3, abs=0.03) and biased.sigmas > 5
    assert biased.spread == pytest.approx(1, abs=0.05)
    # the mean of 200 draws is 0.07 away from the true gradient; that is noise, and not to be called bias
    unbiased = gradient_bias.deviation(true + noise[:200], reference)
    assert abs(unbiased.sigmas) < 3 and unbiased.bias < 0.05
