"""What users give that cannot be used is told in one line that names it; what only looks odd is used."""

import io
import os
import threading
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

import tiny
from lightly_distill import DistillationStage, SyntheticSet, UsageError, as_target, evaluate, pretrain, publish
from lightly_distill.data.source import open_source


@pytest.fixture(scope="module")
def images() -> Tensor:
    return tiny.images(24)


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1)).eval()


class Failing:
    """A dataset of which each third item fails."""

    def __init__(self, images: Tensor, error: Exception) -> None:
        self.images, self.error = images, error

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        if index % 3 == 2:
            raise self.error
        return to_pil_image(self.images[index])


@pytest.mark.parametrize(
    "error",
    [ConnectionError("reset by peer"), TimeoutError("timed out"), OSError("No space left"), SyntaxError("mine")],
)
def test_what_fails_for_another_reason_than_its_image_ends_the_reading(error: Exception, images: Tensor) -> None:
    with pytest.raises(UsageError, match=f"Item 2 of Failing: the dataset fails with {type(error).__name__}: {error}"):
        open_source(Failing(images, error))


def test_a_file_of_a_dataset_that_is_not_there_is_skipped(images: Tensor) -> None:
    source = open_source(Failing(images, FileNotFoundError(2, "No such file", "x.png")))
    assert source.skipped == {"not there": 8}


def test_files_in_memory_are_images(images: Tensor) -> None:
    def content(image: Tensor) -> bytes:
        buffer = io.BytesIO()
        to_pil_image(image).save(buffer, "PNG")
        return buffer.getvalue()

    kinds = (bytearray, memoryview, io.BytesIO)
    source = open_source([kinds[number % 3](content(image)) for number, image in enumerate(images)])
    assert torch.equal(source.read(torch.arange(24)), images)


def test_a_single_split_needs_no_name(images: Tensor) -> None:
    rows = datasets.Dataset.from_dict({"image": [to_pil_image(image) for image in images]})
    assert torch.equal(open_source(datasets.DatasetDict(train=rows)).read(torch.arange(24)), images)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_tensors_of_few_bits_are_images(kind: torch.dtype, images: Tensor) -> None:
    shown = open_source((images.float() / 255).to(kind)).read(torch.arange(24))
    assert (shown.int() - images.int()).abs().max() <= 1


def test_names_of_files_say_what_is_wrong_with_them(tmp_path: Path, images: Tensor) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    to_pil_image(images[0]).save(tmp_path / "good.png")
    listed = [str(tmp_path / "good.png"), str(tmp_path / "pipe.png"), "gone.png", "https://example.org/x.png"]
    assert open_source(listed).skipped == {"a pipe": 1, "not there": 1, "a URL, which is not fetched": 1}
    closed = Image.open(tmp_path / "good.png")
    closed.close()
    with pytest.raises(UsageError, match="Item 0 of list: the image was closed; give it open, or its file"):
        open_source([closed])


@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_a_target_that_says_the_same_of_all_images_is_refused(scale: float, images: Tensor) -> None:
    def collapsed(shown: Tensor) -> Tensor:
        return torch.full((len(shown), 5), scale)

    with pytest.raises(UsageError, match=r"says the same of all images \(of \d+ of them\): it has collapsed, or"):
        DistillationStage(collapsed, **tiny.QUICK).run(images)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Conv2d, r"A target is a model, not its class Conv2d: give Conv2d\(\.\.\.\)"),
        (
            nn.Sequential(nn.LazyConv2d(4, 3)),
            "weights '0.weight' of Sequential are not made yet: give it a batch first",
        ),
        (nn.Conv2d(3, 4, 3, device="meta"), "weights 'weight' of Conv2d are on the meta device: load them first"),
    ],
)
def test_what_is_no_model_yet_is_refused(model: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        as_target(model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda made: pretrain(made, "convnet_4_4"), "The student comes first, then the set"),
        (lambda made: pretrain(nn.Conv2d(3, 3, 3), made), "A student is named, such as 'resnet18'; got Conv2d"),
        (lambda made: pretrain(str(Path(__file__).parent), "resnet18"), "The student comes first, then the set"),
        (
            lambda made: pretrain("resnet10t,resnet18", made),
            "One student is pre-trained at a time, .*'resnet10t,resnet18'",
        ),
        (
            lambda made: evaluate(made, "convnet_4_4", [torch.rand(3)]),
            "A task is a source or a pair of datasets.*; got Tensor",
        ),
        (lambda made: pretrain("convnet_4_4", "nowhere", device="cpu"), "There is no synthetic set at nowhere"),
        (lambda made: pretrain("convnet_4_4", 3), "A student is trained on a synthetic set; got int"),
        (lambda made: SyntheticSet.load(None), "A set is a folder or OWNER/NAME .*; got NoneType"),
        (lambda made: DistillationStage(lambda x: x, num_images=1), "num_images must be at least 2, a whole number"),
    ],
)
def test_what_is_given_for_a_set_or_a_student_is_named(call: Any, message: str, images: Tensor) -> None:
    made = SyntheticSet(torch.rand(4, 3, 8, 8), torch.rand(4, 5), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(UsageError, match=message) as caught:
        call(made)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_and_devices_of_torch_are_settings(images: Tensor, encoder: nn.Module) -> None:
    own = {
        **tiny.QUICK,
        "num_images": np.int64(8),
        "device": torch.device("cpu"),
        "outer": {"lr_images": np.float32(0.1)},
    }
    assert len(DistillationStage(encoder, **own, seed=np.int32(3)).run(images)) == 8


def test_one_task_and_one_label_need_no_list(images: Tensor, encoder: nn.Module) -> None:
    data = [(image, number % 2) for number, image in enumerate(images)]
    made = DistillationStage(encoder, **tiny.QUICK).run(images)
    options: dict[str, Any] = {"baselines": "scratch,random", "probes": "knn", "seeds": 1, "steps": 2, "device": "cpu"}
    (result,) = evaluate(made, "convnet_4_4", ("mine", data, data), labels=12, data=images, target=encoder, **options)
    assert list(result.arms["distilled"].values) == ["mine/knn@12"] and "random" in result.arms
    with pytest.raises(UsageError, match="labels=100 would be 100 of them: give no more than there are"):
        evaluate(made, "convnet_4_4", ("mine", data, data), labels=100, data=images, target=encoder, **options)


def test_an_output_folder_below_a_file_says_so(images: Tensor, encoder: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/x cannot be made: .*file is a file"):
        DistillationStage(encoder, **tiny.QUICK).run(images, out=tmp_path / "file" / "x")


def test_runs_in_several_threads_are_made_one_after_the_other(images: Tensor, encoder: nn.Module) -> None:
    """The settings of torch and its global generator are the process's."""
    alone = DistillationStage(encoder, **tiny.QUICK).run(images)
    found: list[SyntheticSet] = []
    state = torch.get_rng_state()
    threads = [
        threading.Thread(target=lambda: found.append(DistillationStage(encoder, **tiny.QUICK).run(images)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(torch.equal(made.images, alone.images) for made in found)
    assert torch.equal(state, torch.get_rng_state()) and torch.get_default_dtype() == torch.float32


def test_what_a_reviewer_found(images: Tensor, encoder: nn.Module, tmp_path: Path) -> None:
    data = [(image, number % 2) for number, image in enumerate(images)]
    made = DistillationStage(encoder, **tiny.QUICK).run(images)
    two = (("a", data, data), ("b", data, data))  # a tuple of tasks is no task
    (result,) = evaluate(
        made, "convnet_4_4", two, baselines=["scratch"], probes=["knn"], seeds=1, steps=2, device="cpu", verbose=False
    )
    assert list(result.arms["distilled"].values) == ["a/knn", "b/knn"]
    nearly = torch.randn(5, generator=torch.Generator().manual_seed(0))

    def collapsed(shown: Tensor) -> Tensor:
        return 0.7 + 1e-8 * shown.mean((1, 2, 3))[:, None] * nearly

    with pytest.raises(UsageError, match="says the same of all images"):  # also where numbers are centred and scaled
        DistillationStage(collapsed, **{**tiny.QUICK, "target_dims": "auto"}).run(images)
    stage = DistillationStage(encoder, preset="auto", steps=2, pool={"max_age": 2}, device="cpu")
    stage.check(images)
    assert stage.config.image_size == 8
    stage.check(torch.rand(40, 3, 16, 16))
    assert stage.config.image_size == 16
    DistillationStage(encoder, **tiny.QUICK).rehearse(open_source(images))
    with pytest.raises(UsageError, match="A dry run would be written over the set itself"):
        made.save(tmp_path / "set")
        publish(tmp_path / "set", "me/x", dry_run=tmp_path / "set")
