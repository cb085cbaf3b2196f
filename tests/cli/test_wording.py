"""What the command line says of wrong options, and which settings it takes where they are not given."""

from pathlib import Path

import pytest
import yaml
from torchvision.transforms.functional import to_pil_image

import tiny
from lightly_distill.cli.main import main

DISTILL = ["distill", "--data", "photos", "--target", "t:t", "--out", "x"]
EVALUATE = ["evaluate", "--set", "x", "--student", "y", "--task", "z", "--out", "o"]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of images."""
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(tiny.images(40)):
        to_pil_image(image).save(tmp_path / "photos" / f"{number:02d}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            [*DISTILL, "--preset", "cifar100"],
            "cifar, tinyimagenet or imagenet64; got 'cifar100'. Did you mean 'cifar'?",
        ),
        ([*DISTILL, "--init", "noisee"], "--init takes random, kmeans or noise; got 'noisee'. Did you mean 'noise'?"),
        ([*DISTILL, "--steps", "many"], "--steps takes a whole number; got 'many'."),
        ([*DISTILL, "--source-views", "x"], "--source-views takes a whole number or random; got 'x'."),
        ([*DISTILL, "--outer.lr-images", "x"], "--outer.lr-images takes a number; got 'x'."),
        ([*DISTILL, "--steps"], "--steps needs a value."),
        ([*DISTILL, "--config", "no.yaml"], "--config takes a YAML file of options; there is none at"),
        ([*DISTILL, "more"], "'more' belongs to no option."),
        ([*EVALUATE, "--seeds", "0"], "--seeds takes a whole number above 0; got '0'."),
        ([*EVALUATE, "--seeds", "0,1"], "--seeds takes a whole number above 0; got '0,1'."),
        ([*EVALUATE, "--pretrain-steps", "0"], "--pretrain-steps takes a whole number above 0; got '0'."),
        ([*EVALUATE, "--steps", "5"], "Unknown option --steps. Did you mean '--pretrain-steps'"),
        (["distill", "--size", "5"], "Did you mean '--pool.size', '--image-size' or '--chunk-size'?"),
        (["distil", "--data", "photos"], "Unknown command 'distil'. Did you mean 'distill'?"),
        (["distill", "--target", "t"], "Missing: --data SRC, --out DIR."),
        (["publish", "run"], "Missing: REPO_ID."),
        (["distill", "--preset", "auto", "--print-config"], "--preset auto looks at the images: give --data."),
    ],
)
def test_a_wrong_option_is_told_in_plain_words(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1 and told in lines[0] and "Parser key" not in lines[0]


def test_print_config_has_what_the_preset_chose_and_the_console_says_it(
    photos: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    command = ["distill", "--data", "photos", "--preset", "auto", "--num-images", "7", "--print-config"]
    assert main(command) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["steps"], printed["pool"]["size"], printed["image_size"]) == (300, 8, 8)
    assert (printed["student"], printed["num_images"]) == ("convnet_32_64_128", 7)
    assert "For 40 images at 8 pixels the preset auto takes num_images=10, steps=300" in caplog.text
    caplog.clear()
    assert main(["distill", "--data", "photos", "--preset", "auto", "--target", "no:target", "--out", "x"]) == 2
    assert sum("Image size: 8" in line for line in caplog.messages) == 1
    assert main(["distill", "--preset", "cifar", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["steps"] == 160_000
    assert main(["pretrain", "--recipe", "paper", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["steps"] == 4000


def test_a_run_goes_on_with_its_own_settings_where_its_folder_alone_is_given(
    photos: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "tiny_target.py").write_text("import tiny\n\ndef make():\n    return tiny.encoder()\n")
    small = ["--student", "convnet_4_4", "--num-images", "4", "--steps", "2", "--pool.size", "2", "--pool.max-age", "2"]
    command = ["distill", "--data", "photos", "--target", "tiny_target:make", "--out", "run"]
    assert main([*command, *small, "--seed", "5"]) == 0
    assert main(["distill", "--resume", "--out", "run"]) == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["seed"] == 5
    assert "Going on with the settings in run/config.yaml" in caplog.text
    caplog.clear(), capsys.readouterr()
    options = ["--seed", "6", "--pool.size", "3", "--log-every", "7", "--target", "no:target"]
    assert main(["distill", "--resume", "--out", "run", *options]) == 2
    told = capsys.readouterr().err
    assert "The run in run had other settings (config.pool.size: 2 -> 3; config.seed: 5 -> 6)" in told
    assert len(told.splitlines()) == 1 and not caplog.messages  # before anything else is told
    assert main(["distill", "--resume", "--out", "nowhere"]) == 2
    assert "Nothing to resume: there is no checkpoint in nowhere" in capsys.readouterr().err


def test_help_says_what_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--help"]) == 0
    told = capsys.readouterr().out
    assert "[--target-class" in told and "[--target SPEC" not in told and told.count("(required, type:") == 3
