import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightly_distill import SyntheticSet, adapters
from lightly_distill.errors import DistillError, UsageError
from lightly_distill.method.rounding import fit_scales, round_targets
from lightly_distill.models.rows import Layout
from lightly_distill.runtime.device import resolve_device
from lightly_distill.runtime.seeding import generator, global_seed
from lightly_distill.synthetic.pretrain import pretrain

PLAIN = {"mixup": False, "crop_and_flip": False, "color_jitter": 0}
STUDENT = "convnet_4_8"


def synthetic(count: int = 6, size: int = 8) -> SyntheticSet:
    draw = torch.Generator().manual_seed(0)
    return SyntheticSet(
        torch.randn(count, 3, size, size, generator=draw),
        torch.randn(count, 5, generator=draw),
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        provenance={"target": "mine"},
    )


def run(**settings: Any) -> nn.Module:
    settings = {"synthetic": synthetic(), "steps": 3, "batch_size": 4, "device": "cpu", "verbose": False} | settings
    return pretrain(settings.pop("student", STUDENT), **settings)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().float() for tensor in model.state_dict().values()])


def test_the_student_learns_to_predict_the_representations() -> None:
    data = synthetic(count=20)
    student = run(synthetic=data, steps=60, batch_size=20, lr=0.01, weight_decay=0.0, **PLAIN)
    features = torch.cat([student(data.images), torch.ones(20, 1)], dim=1).detach()
    untrained = run(synthetic=data, steps=1, lr=1e-12)
    before = torch.cat([untrained(data.images), torch.ones(20, 1)], dim=1).detach()

    def residual(inputs: torch.Tensor) -> float:  # of ridge regression, with a penalty that makes the width matter
        gram = inputs @ inputs.T
        penalty = 1e-2 * gram.trace() * torch.eye(20)
        return (data.representations - gram @ torch.linalg.solve(gram + penalty, data.representations)).norm().item()

    assert residual(features) < 0.9 * residual(before)


def test_a_step_is_sgd_on_the_mean_squared_error_in_train_mode() -> None:
    data = synthetic()
    student = run(steps=1, lr=0.1, momentum=0.0, weight_decay=0.5, batch_size=8, **PLAIN)
    with global_seed(0, "pretrain", "init"):
        reference = timm.create_model(STUDENT, num_classes=0, img_size=8).train()
        head = nn.Linear(8 * 2 * 2, 5)
    (head(reference(data.images)) - data.representations).square().mean().backward()
    for name, parameter in reference.named_parameters():
        expected = parameter - 0.1 * (parameter.grad + 0.5 * parameter)
        torch.testing.assert_close(student.get_parameter(name), expected)


def test_one_seed_gives_one_student_whatever_was_drawn_before() -> None:
    first = run(seed=1)
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(weights(run(seed=1)), weights(first))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(weights(run(seed=2)), weights(first))


@contextmanager
def batches_seen() -> Iterator[list[Tensor]]:
    """Yields what students are given while they train: the inputs of their first convolutions in train mode."""
    seen: list[Tensor] = []

    def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(layer, nn.Conv2d) and layer.in_channels == 3 and layer.training:
            seen.append(inputs[0].detach().clone())

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def which(batches: list[Tensor], data: SyntheticSet) -> list[int]:
    """Returns the numbers of the images of training batches, of which the first two or so only try the student out."""
    known = {image.numpy().tobytes(): number for number, image in enumerate(data.images.contiguous())}
    found = [[known.get(image.contiguous().numpy().tobytes()) for image in batch] for batch in batches]
    return [number for batch in found for number in batch if number is not None]


@pytest.mark.parametrize(("count", "batch_size"), [(5, 4), (3, 2), (5, 256), (2, 2)])
def test_no_batch_has_a_single_image_and_none_is_lost(count: int, batch_size: int) -> None:
    data = synthetic(count, size=32)
    with batches_seen() as batches:
        student = run(
            student="test_resnet",
            synthetic=data,
            batch_size=batch_size,
            steps=max(1, min(-(-count // batch_size), count // 2)),
            **PLAIN,
        )
    assert weights(student).isfinite().all()
    assert min(map(len, batches)) >= 2
    assert sorted(which(batches, data)) == list(range(count))


def test_batches_are_of_about_one_size() -> None:
    """Three images left over of 259 would be a batch, whose statistics count as much as those of 256."""
    data = synthetic(259)
    with batches_seen() as batches:
        run(synthetic=data, batch_size=256, steps=2, **PLAIN)
    assert [len(batch) for batch in batches][-2:] == [130, 129]


def test_batches_are_shuffled_anew_each_epoch() -> None:
    data = synthetic(50)
    with batches_seen() as batches:
        run(synthetic=data, batch_size=10, steps=10, **PLAIN)
    order = which(batches, data)
    first, second = order[:50], order[50:]
    assert sorted(first) == sorted(second) == list(range(50)) and first != second != list(range(50))


def test_transform_and_color_jitter_change_what_a_student_sees_in_units_of_pixels() -> None:
    data = synthetic(2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
    given: list[Tensor] = []

    def darker(image: Tensor) -> Tensor:
        given.append(image)
        return image / 2

    def shown(**options: Any) -> Tensor:
        with batches_seen() as batches:
            run(synthetic=data, steps=1, **{**PLAIN, **options})
        return batches[-1] * std + mean

    plain = shown()
    torch.testing.assert_close(shown(transform=darker), plain / 2)
    torch.testing.assert_close(torch.stack(given), plain)
    jittered = shown(color_jitter=0.5)
    grey = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    # saturation and contrast move the mean grey of an image nowhere: brightness alone does, in units of pixels
    ratio = (jittered * grey).sum(1).mean((1, 2)) / (plain * grey).sum(1).mean((1, 2))
    assert not torch.allclose(jittered, plain) and ((ratio - 1).abs() < 0.5).all() and ratio[0] != ratio[1]
    assert torch.equal(jittered, shown(color_jitter=0.5))


def test_the_backbone_comes_back_in_eval_mode_without_a_head() -> None:
    student = run()
    assert not student.training
    assert student(torch.rand(2, 3, 8, 8)).shape == (2, 8 * 2 * 2)


def test_the_written_student_is_the_returned_one(tmp_path: Path) -> None:
    student = run(out=tmp_path / "new" / "student")
    folder = tmp_path / "new" / "student"
    loaded = timm.create_model(STUDENT, num_classes=0, img_size=8, checkpoint_path=folder / "model.safetensors")
    assert torch.equal(weights(loaded), weights(student))
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert config["lightly_distill"]["pretraining"]["steps"] == 3
    assert config["lightly_distill"]["synthetic_set"] == {"target": "mine"}


def test_a_loss_that_is_not_finite_names_step_student_and_cure(tmp_path: Path) -> None:
    message = r"The loss of student 'convnet_4_8' is (nan|inf) after step \d of 9\. Try a smaller .* lr=1e\+29\."
    with pytest.raises(DistillError, match=message):
        run(lr=1e30, steps=9, out=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a positive whole number; got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, a whole number; got 1"),
        ({"synthetic": synthetic(count=1)}, "Pre-training needs at least 2 images; the set has 1"),
        ({"color_jitter": -0.1}, "color_jitter must be at least 0, a number; got -0.1"),
        ({"color_jitter": 2}, "color_jitter is a fraction, at most 1; got 2"),
        ({"lr": 0.0}, r"lr must be a positive number; got 0\.0"),
        ({"lr": float("nan")}, "lr must be a positive number; got nan"),
        ({"momentum": -1.0}, "momentum must be at least 0, a number; got -1"),
        ({"step": 3}, r"Unknown option 'step'\. Did you mean 'steps'"),
        ({"student": "convnet"}, "timm knows no model 'convnet'"),
        ({"transform": "flip"}, r"transform is a function of an image \(3, S, S\); got 'flip'"),
        ({"device": "gpu"}, "Unknown device 'gpu'. Expected auto, cpu, cuda, cuda:N, mps or xpu."),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *_: pytest.fail("has begun to train"))
    with pytest.raises(UsageError, match=message):
        run(**settings)


def test_images_that_are_not_square_are_refused() -> None:
    whole = synthetic()
    data = SyntheticSet(whole.images[..., :6], whole.representations, mean=whole.mean, std=whole.std)
    with pytest.raises(UsageError, match="Students take square images, this set's are 8x6"):
        run(synthetic=data)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_an_output_that_is_there_is_not_overwritten(what: str, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    if what == "folder":
        taken.mkdir()
        (taken / "precious").touch()
    else:
        taken.touch()
    with pytest.raises(UsageError, match="taken' exists and is not empty"):
        run(out=taken)


def test_an_output_folder_that_cannot_be_made_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be made"):
        run(out=tmp_path / "file" / "student", steps=10**9)


def test_auto_takes_cuda_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert resolve_device("auto").type == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "Device 'cuda:2' asked for, but torch finds 2 CUDA devices"),
        ("mps", "Device 'mps' asked for, but torch finds none here"),
    ],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UsageError, match=message):
        resolve_device(name)


def rich(count: int = 12, size: int = 16) -> SyntheticSet:
    """Of 8 bits, with maps that a 1x1 convolution can learn: the averages of what is there."""
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, 3, size, size), generator=draw).byte()
    layout = Layout(5, channels=3, grid=4)
    maps = nn.functional.adaptive_avg_pool2d(pixels.float() / 255 - 0.5, 4) * 8
    rows = layout.join(torch.randn(count, 5, generator=draw), maps)
    scales = fit_scales(rows, layout)
    representations, maps_ = layout.split(round_targets(rows, scales))
    return SyntheticSet(
        pixels, representations, maps=maps_, scales=layout.by_channel(scales), mean=(0.5,) * 3, std=(0.25,) * 3
    )


def test_the_papers_recipe_is_sgd_on_batches_of_the_plain_images_step_by_step() -> None:
    data = synthetic(9)
    student = run(synthetic=data, recipe="paper", steps=5, batch_size=4, seed=3)
    with global_seed(3, "pretrain", "init"):
        model = nn.Sequential(timm.create_model(STUDENT, num_classes=0, img_size=8), nn.Linear(8 * 2 * 2, 5)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    orders = [torch.randperm(9, generator=generator(3, "pretrain", number)) for number in range(2)]
    batches = [part for order in orders for part in order.split(3)][:5]  # of one size, at most 4
    for batch in batches:
        loss = (model(data.images[batch]) - data.representations[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(weights(student), weights(model[0]), rtol=1e-4, atol=1e-5)


def test_the_number_of_images_does_not_decide_how_many_steps_there_are() -> None:
    for count in (4, 40):
        with batches_seen() as batches:
            run(synthetic=synthetic(count), steps=7, batch_size=16)
        assert len(batches) == 7 + 1  # the first only tries the student out


def test_a_student_learns_the_maps_too() -> None:
    data = rich()
    vectors = SyntheticSet(data.images, data.representations, mean=data.mean, std=data.std)
    student, without = (
        run(student="convnet_8_8", synthetic=each, steps=150, batch_size=12, **PLAIN) for each in (data, vectors)
    )

    def residual(backbone: nn.Module) -> float:
        assert data.maps is not None
        with torch.no_grad():
            cells = backbone.forward_features(data.images).permute(0, 2, 3, 1).flatten(0, 2)  # type: ignore[operator]
        inputs = torch.cat([cells, torch.ones(len(cells), 1)], 1)
        truth = data.maps.permute(0, 2, 3, 1).flatten(0, 2)
        return float((inputs @ torch.linalg.lstsq(inputs, truth).solution - truth).square().mean())

    assert residual(student) < residual(without)


def test_a_transformer_is_trained_by_adamw_and_a_cosine_ends_at_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW, *args: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    run(student="test_vit", synthetic=synthetic(6, size=32), steps=10, schedule="cosine")
    assert rates[0] == pytest.approx(1e-3) and 0 < rates[-1] < 1e-4 and rates == sorted(rates, reverse=True)
    rates.clear()
    run(synthetic=synthetic(), optimizer="adamw", lr=0.01, steps=3)
    assert rates == [0.01] * 3


@pytest.mark.parametrize(
    ("computes", "student", "size", "taken"),
    [
        (True, "convnet_4_4", 16, "bf16"),
        (False, "convnet_4_4", 16, "fp32"),
        (True, "test_efficientnet", 32, "fp32"),  # with convolutions in groups
        (True, "test_resnet", 64, "bf16"),
        (True, "test_resnet", 16, "fp32"),  # with a stride on a map of one pixel
    ],
)
def test_auto_is_bf16_where_the_student_is_quicker_in_it(
    computes: bool, student: str, size: int, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightly_distill.models.recipe.computes_bf16", lambda device: computes)
    trained = {
        precision: weights(pretrain(student, rich(size=size), steps=4, precision=precision, device="cpu", lr=0.01))
        for precision in ("auto", "fp32", taken)
    }
    assert torch.equal(trained["auto"], trained[taken])
    gap = (trained["auto"] - trained["fp32"]).norm() / trained["fp32"].norm()
    assert gap < 0.05 and (gap > 0) == (taken == "bf16")


def test_bf16_is_refused_where_the_gradient_of_the_student_is_wrong_in_it() -> None:
    with pytest.raises(UsageError, match=r"precision=bf16 does not suit student 'test_resnet' at 16 pixels: a convol"):
        pretrain("test_resnet", rich(size=16), steps=1, precision="bf16", device="cpu")
    pretrain("test_resnet", rich(size=64), steps=1, precision="bf16", device="cpu")


def test_an_unknown_recipe_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"Unknown recipe 'papers'\. Did you mean 'paper'"):
        run(recipe="papers")


# one of each way in which families of timm take images of 32 pixels
FAMILIES = [
    "test_resnet",
    "test_resnet:stem=small",
    "convnet_4_4",
    "test_vit",
    "mixer_s32_224",
    "levit_128s",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_student_carries_size_and_normalisation_of_the_set_however_it_is_loaded(name: str, tmp_path: Path) -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    made = SyntheticSet(images, torch.rand(4, 5), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    options: dict[str, Any] = {"steps": 1, "device": "cpu", "verbose": False}
    returned = pretrain(name, made, **options)
    pretrain(name, made, out=tmp_path / "student", **options)
    adapter = adapters.get("students", "timm")
    lines = adapter.how_to_load(returned, name, str(tmp_path / "student"))
    assert "local-dir:" in lines
    found: dict[str, Any] = {}
    exec(lines, found)  # what the command prints
    classifier = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True, num_classes=10)
    assert classifier.eval()(images).shape == (4, 10)
    for model in (returned, found["backbone"], classifier):
        known = timm.data.resolve_data_config(model=model)
        told = [tuple(known[key]) for key in ("input_size", "mean", "std")]
        assert told == [(3, 32, 32), made.mean, made.std]
        assert (known["crop_pct"], known["interpolation"]) == (1.0, "bilinear")
        weights = dict(model.named_parameters())
        same = [torch.equal(value, weights[key]) for key, value in returned.named_parameters() if key in weights]
        assert same and all(same)


def test_a_transformer_of_few_patches_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    made = SyntheticSet(torch.rand(4, 3, 32, 32), torch.rand(4, 5), mean=(0.5,) * 3, std=(0.5,) * 3)
    for _ in range(2):
        pretrain("deit_tiny_patch16_224", made, steps=1, device="cpu", verbose=False)
    (line,) = [text for text in caplog.messages if "patches" in text]
    assert line.startswith("'deit_tiny_patch16_224' sees images of 32 pixels as 2x2 patches: one with smaller patches")
