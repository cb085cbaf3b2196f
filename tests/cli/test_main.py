import filecmp
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from datasets import Dataset as HuggingFaceDataset
from PIL import Image
from torchvision.transforms.functional import to_pil_image

import tiny
from lightly_distill import DistillationStage, SyntheticSet
from lightly_distill.cli import evaluate as evaluate_command
from lightly_distill.cli import inspect as inspect_command
from lightly_distill.cli import pretrain as pretrain_command
from lightly_distill.cli import sweep as sweep_command
from lightly_distill.cli.main import main
from lightly_distill.evaluation import measure
from lightly_distill.evaluation.baselines.arms import ARMS, BASELINES
from lightly_distill.evaluation.probes import PROBES
from lightly_distill.evaluation.results import read_evaluation
from synthetic_sets import MEAN, STD
from tensorboard_files import read_back

TARGET = "helper_target:make"
SMALL = [
    "--student",
    "convnet_4_4",
    "--num-images",
    "8",
    "--steps",
    "4",
    "--batch-size",
    "16",
    "--pool.size",
    "2",
    "--pool.max-age",
    "3",
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a folder of images and a module that has a target."""
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(tiny.images(40)):
        to_pil_image(image).save(tmp_path / "photos" / f"{number:02d}.png")
    (tmp_path / "helper_target.py").write_text(
        "import torch\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def distill(*more: str, data: str = "photos", out: str = "run") -> int:
    return main(["distill", "--data", data, "--target", TARGET, "--out", out, *SMALL, *more])


def test_distill_pretrain_and_inspect_work_one_after_the_other(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill() == 0
    assert "Outer loss on held-out real images:" in capsys.readouterr().out
    assert main(["pretrain", "--set", "run", "--student", "convnet_4_4", "--steps", "2", "--out", "student"]) == 0
    recipe = "".join(line[4:] + "\n" for line in capsys.readouterr().out.splitlines() if line.startswith("    "))
    loaded: dict[str, Any] = {}
    exec(recipe, loaded)  # what was printed does what it says
    assert loaded["backbone"](torch.zeros(2, 3, 8, 8)).shape == (2, 16)
    assert {path.name for path in Path("student").iterdir()} == {"model.safetensors", "config.json", "config.yaml"}
    assert main(["pretrain", "--config", "student/config.yaml", "--out", "other"]) == 0
    assert filecmp.cmp("student/model.safetensors", "other/model.safetensors", shallow=False)
    capsys.readouterr()
    assert main(["inspect", "run"]) == 0
    told = capsys.readouterr().out
    assert "8 of 3x8x8" in told and "photos, 40 images" in told


def test_a_runs_configuration_is_taken_back(place: Path) -> None:
    assert distill("--seed", "3", "--source-views", "random", "--outer.lr-images", "0.02") == 0
    assert main(["distill", "--config", "run/config.yaml", "--out", "again"]) == 0
    first, again = SyntheticSet.load("run"), SyntheticSet.load("again")
    assert torch.equal(first.images, again.images) and first.provenance["config"] == again.provenance["config"]
    assert main(["distill", "--config", "run/config.yaml", "--out", "other", "--seed", "4"]) == 0
    config = yaml.safe_load(Path("other/config.yaml").read_text())
    assert (config["seed"], config["source_views"], config["outer"]["lr_images"]) == (4, "random", 0.02)


def test_a_preset_gives_defaults_and_options_have_the_last_word(place: Path) -> None:
    small = [*SMALL, "--image-size", "8"]
    command = ["distill", "--data", "photos", "--target", TARGET, "--out", "run", "--preset", "cifar", *small]
    assert main(command) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["source_views"], config["outer"]["lr_images"], config["pool"]["lr"]) == ("random", 1e-4, 0.1)
    assert (config["num_images"], config["steps"], config["pool"]["max_age"]) == (8, 4, 3)


def test_representations_and_their_principal_components_are_options(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--representations", "kept", "--target-dims", "3", "--target-whiten", "true"]
    assert distill(*options) == 0
    (kept,) = (place / "kept").rglob("*.npy")
    config = yaml.safe_load((place / "run" / "config.yaml").read_text())
    assert (config["representations"], config["target_dims"], config["target_whiten"]) == ("kept", 3, True)
    assert main(["distill", "--config", "run/config.yaml", "--out", "again"]) == 0
    assert list((place / "kept").rglob("*.npy")) == [kept] and not (place / "again" / "representations").exists()
    capsys.readouterr()
    assert main(["inspect", "again"]) == 0
    assert "3 principal components of 6 numbers, whitened, with" in " ".join(capsys.readouterr().out.split())
    assert distill("--representations", str(kept), out="other") == 2
    told = capsys.readouterr().err.strip()
    assert "expected floating point of shape (n, d)" in told and "\n" not in told
    assert main(["publish", "run", "me/x", "--dry-run", "sent", "--target", TARGET, "--representations", "kept"]) == 0
    assert (place / "sent" / "projection.safetensors").exists()


def test_a_picture_of_pairs_that_cannot_be_written_is_left_out(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert distill() == 0
    (place / "run" / "pictures" / "closest_pairs.png").mkdir()  # not even root can write it
    assert main(["publish", "run", "me/x", "--dry-run", "sent", "--target", TARGET]) == 0
    assert "The picture of the nearest pairs is left out: " in caplog.text and "Nearest pairs:" not in caplog.text
    assert "run/pictures/closest_pairs.png cannot be written: [Errno 21]" in caplog.text
    assert SyntheticSet.load("sent").metrics["near_copies"]["images"] == 8


def test_resume_and_overwrite(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill() == 0
    assert distill() == 2
    assert "is not empty: go on with --resume" in capsys.readouterr().err
    assert distill("--resume") == 0
    assert distill("--overwrite", "--seed", "1") == 0
    assert SyntheticSet.load("run").provenance["config"]["seed"] == 1


def test_trackers_are_told_what_metrics_has_and_overwrite_removes_their_files(place: Path) -> None:
    assert distill("--log-with", "tensorboard", "--log-every", "2") == 0
    assert distill("--log-with", "tensorboard", "--log-every", "2", "--overwrite") == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    told = read_back(Path("run/trackers"))["loss"]
    assert [step for step, _ in told] == list(losses)
    assert [value for _, value in told] == pytest.approx(list(losses.values()))
    settings = yaml.safe_load(next(Path("run/trackers").rglob("hparams.yml")).read_text())
    assert (settings["data"], settings["pool.size"]) == ("photos", 2)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ["distill", "--data", "photos", "--target", "no:target", "--out", "x", "--log-with", "tensorbord"],
            2,
            "Unknown tracker 'tensorbord'. Did you mean 'tensorboard'?",
        ),
        (["distill", "--num-imgs", "5"], 2, "Unknown option --num-imgs. Did you mean '--num-images'?"),
        (["distill", "--data", "photos", "--target", TARGET, "--out", "x", "--steps", "many"], 2, "steps"),
        (
            ["distill", "--data", "photos", "--target", TARGET, "--out", "x", "--steps", "-5"],
            2,
            "steps must be at least 0",
        ),
        (["distill", "--data", "photos", "--out", "x"], 2, "target"),
        (["distill", "--data", "phtos", "--target", TARGET, "--out", "x"], 2, "photos"),
        (["distill", "--data", "photos", "--target", "tim:resnet18", "--out", "x"], 2, "Did you mean 'timm:resnet18'?"),
        (["distill", "--data", "photos", "--target", TARGET, "--out", "x", "--student", "resnet81"], 2, "resnet18"),
        (["distill", "--data", "photos", "--target", TARGET, "--out", "x", "--preset", "cifr"], 2, "cifar"),
        (["distill", "--data", "photos", "--target", TARGET, "--out", "x", "--device", "cuda:7"], 2, "cuda:7"),
        (
            ["distill", "--data", "photos", "--target", TARGET, "--out", "x", *SMALL, "--num-images", "50"],
            2,
            "fewer than",
        ),
        (["pretrain", "--set", "nowhere", "--student", "convnet_4_4", "--out", "x"], 2, "no such folder"),
        (["inspect", "photos"], 2, "photos holds no synthetic set"),
        (["publish", "photos", "me/photos"], 2, "photos holds no synthetic set"),
        (
            ["publish", "me/x", "me/y"],
            2,
            "There is no folder me/x: what is published is the folder of a set, or of the",
        ),
        (["publish", "photos", "photos"], 2, "A repository on the Hugging Face Hub is OWNER/NAME"),
        (["distill", "--data", "photos", "--target", TARGET, "--out", "x", "--init", "nois"], 2, "init"),
        (["inspct", "photos"], 2, "inspct"),
        (["students"], 2, "--image-size"),
        (["students", "--image-size", "0"], 2, "--image-size"),
        (["students", "--image-size", "32", "--name", "resent*"], 2, "No student's name matches 'resent*'"),
        ([], 2, None),
    ],
)
def test_wrong_usage_is_one_line_that_names_it(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str | None
) -> None:
    assert main(arguments) == status
    error = capsys.readouterr().err
    if message is not None:
        lines = [line for line in error.splitlines() if "error:" in line]
        assert len(lines) == 1 and message in lines[0] and "Traceback" not in error
    assert not Path("x").exists()


def test_a_failure_in_mid_run_is_one_line_and_debug_shows_where(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--pool.lr", "1e30"]
    assert distill(*arguments) == 1
    error = capsys.readouterr().err
    assert "diverged" in error and "pool.lr" in error and "Traceback" not in error
    with pytest.raises(Exception, match="diverged"):
        distill(*arguments, "--debug", out="debug")


@pytest.mark.parametrize(("options", "heard"), [([], 1), (["--debug"], 4)])
def test_the_many_tries_of_the_hubs_client_are_told_in_one_line(
    options: list[str], heard: int, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def asks_the_hub(options: Any) -> None:
        for number in (1, 2):
            client.warning("'[Errno -2] Name or service not known' thrown while requesting HEAD https://a/b")
            client.warning(f"Retrying in {number}s [Retry {number}/5].")
        client.warning("Something else.")

    client = logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(inspect_command, "run", asks_the_hub)
    assert main(["inspect", "me/photos", *options]) == 0
    *tries, other = caplog.messages
    assert len(tries) == heard and other == "Something else." and not client.filters
    assert options or tries == ["The Hugging Face Hub does not answer; it is asked a few times more."]


def test_a_text_that_somebody_elses_code_exits_with_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect_command, "run", lambda options: sys.exit("no GPU\nfound"))
    assert main(["inspect", "run"]) == 1
    assert capsys.readouterr().err == "lightly-distill: error: no GPU found\n"


def test_what_was_sent_is_not_sent_again_by_the_written_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, representations = torch.randn(8, 3, 8, 8), torch.randn(8, 5)
    SyntheticSet(images, representations, mean=MEAN, std=STD).save(tmp_path / "set")
    sent: list[Any] = []
    monkeypatch.setattr(pretrain_command.address, "find_hub", lambda repo: (MagicMock(), repo))
    monkeypatch.setattr(pretrain_command, "publish_student", lambda *given, **more: sent.append((given, more)))
    command = ["pretrain", "--set", str(tmp_path / "set"), "--student", "convnet_4_4", "--steps", "1"]
    first, again = tmp_path / "first", tmp_path / "again"
    assert main([*command, "--out", str(first), "--push", "me/small", "--private"]) == 0
    assert sent == [((first, "me/small"), {"private": True})]
    assert main(["pretrain", "--config", str(first / "config.yaml"), "--out", str(again)]) == 0
    assert len(sent) == 1 and not {"push", "private"} & yaml.safe_load((again / "config.yaml").read_text()).keys()


def test_a_recipe_is_what_other_options_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    DistillationStage(tiny.encoder(), student="convnet_4_4", num_images=4, steps=0).run(tiny.images(40)).save("set")
    train = ["pretrain", "--set", "set", "--student", "convnet_4_4", "--recipe", "paper"]
    assert main([*train, "--steps", "2", "--momentum", "0.5", "--out", "student"]) == 0
    used = json.loads(Path("student", "config.json").read_text())["lightly_distill"]["pretraining"]
    assert (used["steps"], used["momentum"], used["mixup"], used["optimizer"]) == (2, 0.5, False, "sgd")


@pytest.mark.parametrize("text", ["12-3", "k", "1,5x", "many", "1g"])
def test_bytes_that_are_no_number_are_named(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "--data", "x", "--target", "y", "--student", "z", "--task", "t", "--out", "o", "--bytes", text]
    assert main(command) == 2
    assert "--bytes takes numbers such as 100k, 300k or 1M; got" in capsys.readouterr().err


def test_every_command_explains_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in (
        ("distill", ["--num-images", "Number of synthetic images", "--pool.max-age", "torchvision:NAME", "--resume"]),
        (
            "distill",
            [
                "with the weights that are published, which are fetched",
                "--strict",
                "--checkpoint-minutes",
                "130 SIGINT, 138 SIGUSR1, 143 SIGTERM",
                "a second one ends it",
            ],
        ),
        (
            "pretrain",
            ["--set", "Training steps, whatever the number of images", "--recipe", "--weight-decay", "--push"],
        ),
        (
            "evaluate",
            [
                "random: as many real images",
                "birds/train/CLASS/",
                "linear: logistic regression",
                "--config",
                "--representations",
            ],
        ),
        ("publish", ["REPO_ID", "--private", "--dry-run", "near copies", "--yes", "--pull-request"]),
        ("inspect", ["Synthetic set"]),
        ("demo", ["--seed"]),
        ("students", ["--image-size", "--name", "pixels"]),
        (
            "sweep",
            ["--sizes", "--search", "--trials", "goes on where it stopped", "--pool.max-age", "--task", "--labels"],
        ),
    ):
        assert main([command, "--help"]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert all(word in told for word in words), command


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env={**os.environ})


def test_students_lists_what_fits_by_size_and_keeps_the_answers(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    assert main(["students", "--image-size", "16", "--name", "convnet_*128*"]) == 0
    first = capsys.readouterr().out
    lines = [line.split() for line in first.splitlines()]
    assert lines[0] == ["convnet_32_64_128", "0.09", "M", "parameters", "512", "features"]
    sizes = [float(line[1]) for line in lines[:-1]]
    assert sizes == sorted(sizes) and " ".join(lines[-1]) == f"{len(sizes)} of {len(sizes)} names fit images of 16x16."
    assert main(["students", "--image-size", "16", "--name", "convnet_128*"]) == 0
    assert "convnet_128_256_512_in" in capsys.readouterr().out
    assert main(["students", "--image-size", "4", "--name", "timm:convnet_*128*"]) == 0
    assert capsys.readouterr().out.startswith("0 of ")

    (kept,) = (place / "cache" / "lightly_distill").glob("students-timm*-torch*-16.json")
    with monkeypatch.context() as offline:
        offline.setattr("timm.create_model", lambda *a, **k: pytest.fail("tried again"))
        assert main(["students", "--image-size", "16", "--name", "convnet_*128*"]) == 0
        assert capsys.readouterr().out == first
    for damage in ("", '{"convnet_32_64_128": [1]}', "[]", '{"convnet_32_64_128": "xy"}'):
        kept.write_text(damage)
        assert main(["students", "--image-size", "16", "--name", "convnet_*128*"]) == 0
        assert capsys.readouterr().out == first


def test_importing_imports_no_adapter_library(tmp_path: Path) -> None:
    code = (
        "import sys, json, lightly_distill, lightly_distill.cli.main; "
        "print(json.dumps([n for n in ('lightly', 'timm', 'datasets', 'huggingface_hub', 'pytorch_lightning', "
        "'lightly_distill_integrations') if n in sys.modules]))"
    )
    result = run_python(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


@pytest.mark.slow
def test_the_program_and_the_module_are_the_same(place: Path) -> None:
    program = Path(sys.executable).parent / "lightly-distill"
    for command in ([str(program)], [sys.executable, "-m", "lightly_distill"]):
        result = subprocess.run([*command, "inspect", "photos"], capture_output=True, text=True)
        assert result.returncode == 2
        assert result.stderr.splitlines() == [
            "lightly-distill: error: photos holds no synthetic set: there is no lightly_distill.json in it, "
            "nor in its folder 'set'."
        ]


def test_each_entry_point_loads_and_offers_what_its_protocol_says() -> None:
    from lightly_distill import adapters

    for group, needed in (
        ("targets", ["load", "find_encoder"]),
        ("students", ["build", "list_students", "save", "how_to_load", "how_to_load_from_hub"]),
        ("sources", ["open"]),
    ):
        names = adapters.available(group)  # type: ignore[arg-type]
        assert names
        for name in names:
            adapter = adapters.get(group, name)  # type: ignore[arg-type]
            assert all(callable(getattr(adapter, function)) for function in needed)


def test_a_wrong_source_folder_or_student_is_told_before_the_target_is_loaded(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "costly_target.py").write_text("def make():\n    raise RuntimeError('the target was loaded')\n")
    (place / "used").mkdir()
    (place / "used" / "notes.txt").write_text("mine")
    for data, out, student, message in (
        ("phtos", "run", "convnet_4_4", "photos"),
        ("photos", "used", "convnet_4_4", "is not empty"),
        ("photos", "run", "resnt18", "timm knows no model 'resnt18'. Did you mean 'resnet18'"),
    ):
        options = ["--data", data, "--target", "costly_target:make", "--out", out, *SMALL, "--student", student]
        assert main(["distill", *options]) == 2
        error = capsys.readouterr().err
        assert message in error and "was loaded" not in error


@pytest.mark.parametrize(
    "command",
    [
        ["distill", "--data", "photos", "--target", TARGET, "--student"],
        ["pretrain", "--set", "run", "--student"],
        ["evaluate", "--set", "run", "--task", "animals", "--student"],
        ["sweep", "--data", "photos", "--target", TARGET, "--task", "animals", "--sizes", "4", "--student"],
        ["sweep", "--data", "photos", "--target", TARGET, "--task", "animals", "--sizes", "4", "--evaluate-student"],
    ],
)
def test_an_unknown_student_is_told_with_the_nearest_before_anything_else(
    command: list[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "resnt18", "--out", "x"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("lightly-distill: error: timm knows no model 'resnt18'. Did you mean 'resnet18', ")
    assert len(told.splitlines()) == 1 and not Path("x").exists()


MODEL = """
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1))
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
"""


def test_a_checkpoint_with_its_class_and_encoder_comes_back_from_the_written_configuration(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my_ssl.py").write_text(MODEL)
    namespace: dict[str, Any] = {}
    exec(MODEL, namespace)
    torch.save({"state_dict": namespace["Mine"]().state_dict()}, "last.ckpt")
    command = ["distill", "--data", "photos", "--target", "last.ckpt", "--out", "run", *SMALL]
    assert main(command) == 2
    assert "does not follow from its weights (backbone (2 tensors), trunk (2 tensors))" in capsys.readouterr().err
    assert main([*command, "--target-class", "my_ssl:Mine", "--target-encoder", "trunk"]) == 0
    first = SyntheticSet.load("run")
    assert first.dim == 4
    assert first.provenance["target"]["encoder"] == "Mine.trunk"
    assert main(["distill", "--config", "run/config.yaml", "--out", "again"]) == 0
    again = SyntheticSet.load("again")
    assert torch.equal(again.images, first.images) and again.provenance["target"] == first.provenance["target"]
    assert main(["inspect", "run"]) == 0
    assert "encoder Mine.trunk, reason named by the user" in capsys.readouterr().out


def make_animals() -> None:
    for split, count in (("train", 24), ("test", 12)):
        for number, image in enumerate(tiny.images(count)):
            folder = Path("animals", split, ("cat", "dog")[number % 2])
            folder.mkdir(parents=True, exist_ok=True)
            to_pil_image(image).save(folder / f"{number:02d}.png")


def test_evaluate_tries_a_run_on_a_task_and_writes_a_report(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_animals()
    assert distill() == 0
    command = ["evaluate", "--set", "run", "--student", "convnet_4_4", "--task", "animals", "--pretrain-steps", "2"]
    more = ["--full-epochs", "1", "--seeds", "2", "--baselines", "scratch,random,full", "--labels", "50%,100%"]
    more += ["--target", TARGET]  # a function of the user's is run only where the user names it
    capsys.readouterr()
    assert main([*command, *more, "--arm", "again=run", "--out", "results"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(("Better than", "Not shown better than", "Worse than"))
    written = {"results.json", "report.html", "report.md", "config.yaml"}
    assert {path.name for path in Path("results").iterdir()} == written
    (results,) = json.loads(Path("results/results.json").read_text())
    assert set(results["arms"]) == {"scratch", "random", "distilled", "full", "again"}
    assert set(results["arms"]["random"]) == {f"animals/{p}{n}" for p in ("knn", "linear") for n in ("", "@0.5")}
    assert "Outer loss" in Path("results/report.html").read_text()  # the run's curve
    (published,) = read_evaluation(Path("results"), SyntheticSet.load("run"))  # what `publish` takes for the card
    assert published["student"] == "convnet_4_4" and published["arms"] == results["arms"]
    assert main(["evaluate", "--config", "results/config.yaml", "--out", "again"]) == 0
    assert json.loads(Path("again/results.json").read_text())[0]["arms"] == results["arms"]
    again = ["evaluate", "--config", "results/config.yaml", "--out", "again", "--target", "pkg.not_there:model"]
    assert main(again) == 2  # before the target, which may be a download
    assert "is not empty: go on with --resume, replace its run with --overwrite" in capsys.readouterr().err
    assert main([*again[:-2], "--resume"]) == 0


def test_tasks_are_read_by_the_column_and_range_that_the_real_images_are(
    place: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "test"):
        scans = [Image.fromarray(image[0].numpy().astype("uint16") * 16) for image in tiny.images(20)]
        columns = {"photo": scans, "mask": scans, "label": [0, 1] * 10}
        Path("scans").mkdir(exist_ok=True)
        HuggingFaceDataset.from_dict(columns).to_parquet(f"scans/{split}-00000-of-00001.parquet")
    given = ["--column", "photo", "--value-range", "0,8160"]
    assert distill(*given, data="scans#train") == 0
    command = ["evaluate", "--set", "run", "--student", "convnet_4_4", "--task", "scans", "--pretrain-steps", "1"]
    command += ["--seeds", "1", "--baselines", "random", "--target", TARGET, "--out", "results"]
    capsys.readouterr()
    assert main(command) == 2
    assert "choose one with --column photo" in capsys.readouterr().err
    assert main([*command, *given]) == 0
    (results,) = json.loads(Path("results/results.json").read_text())
    assert results["setting"]["column"] == "photo" and results["setting"]["value_range"] == [0, 8160]
    told = {message for message in caplog.messages if "0 is black, 8160 is white" in message}
    assert {message.split(":")[0] for message in told} == {"Values of scans#train", "Values of scans#test"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "few"], "--labels takes whole numbers, shares such as 1%, or all; got 'few'"),
        (["--labels", "10.7"], "--labels takes whole numbers, shares such as 1%, or all; got '10.7'"),
        (["--labels", "nan"], "--labels takes whole numbers"),
        (["--labels", ","], "Nothing would be measured"),
        (["--arm", "a=run", "--arm", "a=run"], "Two --arm have one name: a, a"),
        (["--arm", "run"], "--arm takes NAME=DIR"),
        (["--baselines", "randm"], "Unknown baseline 'randm'. Did you mean 'random'"),
        (["--probe", "knn,liner"], "Unknown probe 'liner'. Did you mean 'linear'"),
        (["--set", "photos"], "photos"),
    ],
)
def test_a_wrong_evaluation_is_told_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    command = ["evaluate", "--set", "run", "--student", "convnet_4_4", "--task", "animals", "--out", "results"]
    assert main([*command, *options]) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.strip().splitlines()) == 1


SWEEP = ["sweep", "--data", "photos", "--target", TARGET, "--task", "animals", "--sizes", "4,8"]
SHORT = [*SMALL[:2], *SMALL[4:], "--pretrain-steps", "2", "--full-epochs", "1", "--seeds", "1", "--probe", "knn"]


def test_a_sweep_tells_the_smallest_set_and_goes_on_when_given_again(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_animals()
    search = ["--search", "lr", "--trials", "2", "--search-size", "8"]
    assert main([*SWEEP, *SHORT, *search, "--out", "sizes"]) == 0
    told = capsys.readouterr().out
    assert "Smallest set within 1 point of the best:" in told and "Report: sizes/sweep.html" in told
    record = json.loads(Path("sizes/sweep.json").read_text())
    assert record["settings"]["search"] == {"names": ["lr"], "trials": 2, "images": 8}
    assert main(["sweep", "--config", "sizes/config.yaml", "--out", "sizes"]) == 0
    assert json.loads(Path("sizes/sweep.json").read_text())["sizes"] == record["sizes"]
    # what a size leaves is a run like any other, which names its data
    assert yaml.safe_load(Path("sizes/size-4/run/config.yaml").read_text())["data"] == "photos"
    assert main([*SWEEP, *SHORT, *search, "--out", "sizes", "--pool.lr", "0.2"]) == 2
    assert "had other settings (distill.pool.lr: None -> 0.2)" in capsys.readouterr().err


@pytest.mark.parametrize(("written", "tasks"), [("one", ["one"]), (["it's, one", "two"], ["it's, one", "two"])])
def test_a_file_names_one_task_or_several(
    place: Path, monkeypatch: pytest.MonkeyPatch, written: Any, tasks: list[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sweep_command, "sweep", lambda *arguments, **_: seen.append(arguments[3]))
    options = {"data": "photos", "target": TARGET, "sizes": "4,8", "task": written}
    Path("mine.yaml").write_text(yaml.safe_dump(options))
    main(["sweep", "--config", "mine.yaml", "--out", "sizes"])
    assert seen == [tasks]


@pytest.mark.parametrize(
    ("options", "tasks", "arms"),
    [
        ([], ["one", "two"], {"a": "b"}),
        (["--task", "other"], ["other"], {"a": "b"}),
        (["--task", "three", "--arm", "x=y", "--task", "['four']"], ["three", "['four']"], {"x": "y"}),
    ],
)
def test_options_that_repeat_replace_those_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], tasks: list[str], arms: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []
    monkeypatch.setattr(evaluate_command, "evaluate", lambda *given, **more: seen.append((given[2], more["others"])))
    written = {"set": "run", "student": "convnet_4_4", "task": ["one", "two"], "arm": ["a=b"]}
    Path("mine.yaml").write_text(yaml.safe_dump(written))
    main(["evaluate", "--config", "mine.yaml", "--out", "results", *options])
    assert seen == [(tasks, arms)]


@pytest.mark.parametrize(("labels", "counts"), [(100, (100,)), (0.1, (0.1,)), ([100, "all"], (100, None))])
def test_numbers_in_a_file_need_no_quotes(
    place: Path, monkeypatch: pytest.MonkeyPatch, labels: Any, counts: tuple[Any, ...]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sweep_command, "sweep", lambda *given, **more: seen.append((given[2], more["config"].labels)))
    options = {"data": "photos", "target": TARGET, "sizes": 4, "task": "one", "labels": labels}
    Path("mine.yaml").write_text(yaml.safe_dump(options))
    main(["sweep", "--config", "mine.yaml", "--out", "sizes"])
    assert seen == [([4], counts)]


def test_a_file_that_cannot_be_parsed_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("set: &itself [*itself]\n")
    assert main(["distill", "--config", str(file), "--out", str(tmp_path / "run")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    file.write_text("data: 5\n")
    assert main(["distill", "--config", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "--data takes text, which is in quotes in a file where it looks like a number" in capsys.readouterr().err


def test_a_preset_gives_a_sweep_its_defaults(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[Any] = []
    monkeypatch.setattr(sweep_command, "sweep", lambda stage, *_, **__: stages.append(stage))
    main([*SWEEP, "--preset", "cifar", "--pool.size", "3", "--out", "sizes"])
    (stage,) = stages
    assert (stage.config.steps, stage.config.outer.lr_images, stage.config.pool.size) == (160_000, 1e-4, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "4,many"], "--sizes takes whole numbers, such as 50,100,200; got 'many'"),
        (["--sizes", "8,4"], "Sizes increase from one to the next"),
        (["--sizes", "4,99"], "fewer than num_images=99"),
        (["--search", "lrr", "--trials", "2"], "Nothing to search is named 'lrr'. Did you mean 'lr'?"),
        (["--search", "lr"], "--search needs --trials"),
        (["--trials", "2"], "--trials needs --search"),
        (["--num-images", "5"], "Unknown option --num-images"),
        (["--labels", "few"], "--labels takes whole numbers"),
        (["--data", "phtos"], "photos"),
    ],
)
def test_a_wrong_sweep_is_told_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    make_animals()
    assert main([*SWEEP, *SHORT, "--out", "sizes", *options]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1 and message in lines[0] and not Path("sizes").exists()


def test_help_knows_every_arm_and_probe(capsys: pytest.CaptureFixture[str]) -> None:
    def explained(command: str) -> set[str]:
        assert main([command, "--help"]) == 0
        shown = "".join(capsys.readouterr().out.split())  # a line may end within a word
        for name, probe in PROBES.items():
            assert f"{name}:{probe.words}".replace(" ", "") in shown
        return {name for name, arm in ARMS.items() if f"{name}:{arm.words}".replace(" ", "") in shown}

    assert explained("evaluate") == {*BASELINES}
    assert explained("sweep") == {*BASELINES} - {"krr-labels", "dm"}


def test_a_folder_in_which_nothing_was_made_can_be_given_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_animals()
    assert distill() == 0
    train = ["pretrain", "--set", "run", "--student", "convnet_4_4", "--steps", "2", "--out", "student"]
    assert main([*train, "--lr", "1e30"]) == 1
    assert main(train) == 0
    command = ["evaluate", "--set", "run", "--student", "convnet_4_4", "--task", "animals", "--pretrain-steps", "1"]
    command += ["--seeds", "1", "--probe", "knn", "--baselines", "scratch", "--out", "results"]
    with monkeypatch.context() as patched:
        patched.setattr(measure, "pretrain", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(command) == 130
    assert main(command) == 0


# --- the first hour


def test_the_next_commands_are_written_as_a_shell_takes_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill(out="my runs/it's") == 0
    told = capsys.readouterr().out.splitlines()
    commands = [shlex.split(line.partition(": ")[2]) for line in told if ": lightly-distill " in line]
    assert [words[:4] for words in commands] == [
        ["lightly-distill", "pretrain", "--set", "my runs/it's"],
        ["lightly-distill", "publish", "my runs/it's", "OWNER/NAME"],
    ]


def test_a_run_that_is_not_there_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--resume", "--out", str(tmp_path / "nothing")]) == 2
    assert "Nothing to resume: there is no checkpoint in " in capsys.readouterr().err


@pytest.mark.parametrize("words", [1, 10**5])  # written at the end, and as it is printed
def test_output_that_nobody_reads_to_its_end_is_no_error(tmp_path: Path, words: int) -> None:
    code = (
        "import os, sys; from lightly_distill.cli import inspect, main; read, write = os.pipe(); os.close(read); "
        "os.dup2(write, 1); inspect.run = lambda options: "
        f"print('word' * {words}); sys.exit(main.main(['inspect', 'run']))"
    )
    done = run_python(code, tmp_path)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", ["distill", "pretrain", "evaluate", "sweep"])
def test_print_config_works_alone_and_its_output_is_a_config(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--print-config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(printed, dict) and "device" in printed


def test_a_part_of_an_option_is_no_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--num-image", "5"]) == 2
    assert "Unknown option --num-image. Did you mean '--num-images'?" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "lightly-distill 0.1.0\n"


@pytest.mark.parametrize("spec", ["simclr.py:SimCLR", "scripts/simclr.py:SimCLR", "./simclr.py:SimCLR", "simclr.py"])
def test_a_script_is_not_run_to_find_a_target(spec: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("scripts").mkdir()
    for folder in (Path(), Path("scripts")):
        (folder / "simclr.py").write_text("open('ran', 'w')\n")
    assert main(["distill", "--data", "photos", "--target", spec, "--out", "run"]) == 2
    right = f"{'scripts.' * ('scripts' in spec)}simclr:{'SimCLR' if ':' in spec else 'FUNCTION'}"
    assert f"is named by its module: {right}. Importing it runs all of the file" in capsys.readouterr().err
    assert not Path("ran").exists() and not Path("run").exists()


def test_random_weights_of_a_timm_model_try_a_command_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_animals()
    small = ["--student", "convnet_4_4", "--num-images", "6", "--steps", "2", "--batch-size", "8", "--device", "cpu"]
    small += ["--pool.size", "2", "--pool.max-age", "2", "--image-size", "8"]
    target = "timm:test_resnet:random"
    assert main(["distill", "--data", "animals#train", "--target", target, "--out", "tried", *small]) == 0
    first, again = (DistillationStage(target).target.weights_sha256() for _ in range(2))
    assert first == again


def test_a_failure_leaves_no_empty_folder(place: Path) -> None:
    assert distill() == 0
    assert main(["pretrain", "--set", "run", "--student", "convnet_4_4", "--out", "student", "--lr", "1e30"]) == 1
    assert not Path("student").exists()
    assert main(["evaluate", "--set", "run", "--student", "convnet_4_4", "--task", "nothing", "--out", "results"]) == 2
    assert not Path("results").exists()


def test_the_preset_auto_looks_at_the_images(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_animals()
    options = ["--preset", "auto", "--target", "timm:test_resnet:random", "--out", "tried", "--device", "cpu"]
    options += ["--steps", "2", "--pool.max-age", "2", "--student", "convnet_4_4", "--num-images", "5"]
    assert main(["distill", "--data", "animals#train", *options]) == 0
    config = yaml.safe_load(Path("tried/config.yaml").read_text())
    assert (config["batch_size"], config["pool"]["size"], config["num_images"], config["image_size"]) == (256, 8, 5, 8)
    assert main(["distill", "--data", "nowhere/at/all/x", *options]) == 2
    assert "There is no file or folder 'nowhere/at/all/x'" in capsys.readouterr().err
