from collections.abc import Sequence
from typing import Any, get_type_hints

import pytest
from torch import nn
from typing_extensions import Unpack

from lightly_distill import DistillationCallback, DistillationStage
from lightly_distill.errors import UsageError
from lightly_distill.method.auto import auto_settings
from lightly_distill.method.config import (
    PRESETS,
    DistillConfig,
    DistillOptions,
    OuterConfig,
    OuterOptions,
    PoolConfig,
    PoolOptions,
    RidgeConfig,
    RidgeOptions,
    make_config,
)
from lightly_distill.runtime.settings import differences, to_dict, update


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_image": 5}, "Unknown option 'num_image'. Did you mean 'num_images'?"),
        ({"pool": {"max_ages": 5}}, "Unknown option 'max_ages'. Did you mean 'max_age'?"),
        ({"num_images": 0}, "num_images must be at least 2, a whole number; got 0."),
        ({"num_images": 2.5}, "num_images must be at least 2, a whole number; got 2.5."),
        ({"steps": "200"}, "steps must be at least 0, a whole number; got '200'."),
        ({"image_size": -1}, "image_size must be a positive whole number; got -1."),
        ({"outer": {"lr_images": float("nan")}}, "outer.lr_images must be a positive number; got nan."),
        ({"outer": {"final_lr": 2}}, "outer.final_lr is a fraction"),
        ({"pool": {"lr": -0.1}}, "pool.lr must be a positive number; got -0.1."),
        ({"target_bits": 9}, "target_bits is at most 8; got 9."),
        ({"image_quality": 101}, "image_quality is at most 100, or null: without loss; got 101."),
        ({"image_quality": -1}, "image_quality must be at least 0, a whole number; got -1."),
        ({"ridge": {"strength": 0}}, "ridge.strength must be a positive number; got 0."),
        ({"ridge": {"dtype": "float16"}}, "ridge.dtype must be one of float32, float64; got 'float16'."),
        ({"init": "nois"}, "init must be one of random, kmeans, noise; got 'nois'."),
        ({"precision": "fp16"}, "precision must be one of auto, fp32, bf16; got 'fp16'."),
        ({"source_views": -1}, "source_views must be a number of views or 'random'; got -1."),
        ({"source_views": True}, "source_views must be a number of views or 'random'; got True."),
        ({"student": nn.Linear(2, 2)}, "from which fresh students are made; got a Linear."),
        ({"student": ["a", 3]}, "from which fresh students are made; got ['a', 3]."),
        (
            {"student": 3},
            "student is a name, such as 'resnet18', or a sequence of names, from which fresh students are made; got 3.",
        ),
        ({"student": []}, "student must be a timm name or several, comma separated; got ''."),
        ({"device": 3}, "device must be a name; got 3."),
        ({"seed": "x"}, "seed must be at least 0, a whole number; got 'x'."),
        ({"holdout": -1}, "holdout must be at least 0, a whole number; got -1."),
        ({"pool": {"momentum": -1}}, "pool.momentum must be at least 0, a number; got -1."),
        ({"outer": {"final_lr": "x"}}, "outer.final_lr must be at least 0, a number; got 'x'."),
        ({"outer": {"lr_images": float("inf")}}, "outer.lr_images must be a positive number; got inf."),
        ({"source_views": "randm"}, "source_views must be a number of views or 'random'; got 'randm'."),
        ({"student": "resnet18,"}, "student must be a timm name or several, comma separated; got 'resnet18,'."),
        ({"student": "a,b,c", "pool": {"size": 2}}, "pool.size must be at least 3, one for each student; got 2."),
        ({"pool": 5}, "Option 'pool' takes a PoolConfig or a mapping; got 5."),
        ({"preset": "cifar100"}, "Unknown preset 'cifar100'. Did you mean 'cifar'?"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        make_config(**options)  # type: ignore[arg-type]
    assert message in str(refused.value)


def test_presets_are_the_papers() -> None:
    cifar = make_config("cifar")
    assert (cifar.num_images, cifar.image_size, cifar.student) == (1000, 32, "convnet_128_256_512")
    assert (cifar.steps, cifar.batch_size, cifar.source_views) == (160_000, 1024, "random")
    assert cifar.outer == OuterConfig(lr_images=1e-4, lr_representations=1e-4, final_lr=1e-3, grain=1)
    pool = {"size": 10, "max_age": 1000, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
    assert cifar.pool == PoolConfig(**pool, mixup=False, crop_and_flip=False)
    assert (cifar.target_dims, cifar.target_map, cifar.eight_bits) == (None, 0, False)
    assert cifar.ridge == RidgeConfig(strength=1e-6)
    tiny = make_config("tinyimagenet")
    assert (tiny.num_images, tiny.image_size, tiny.outer.lr_images) == (2000, 64, 1e-5)
    assert make_config("imagenet64").num_images == 1000
    assert set(PRESETS) == {"cifar", "tinyimagenet", "imagenet64"}


def test_options_have_the_last_word_over_a_preset() -> None:
    config = make_config("cifar", num_images=50, pool={"size": 2})
    assert (config.num_images, config.pool.size, config.pool.max_age) == (50, 2, 1000)


def test_a_configuration_comes_back_from_plain_values() -> None:
    config = make_config("tinyimagenet", seed=3, pool={"lr": 0.05})
    assert update(DistillConfig(), to_dict(config)) == config


def test_differences_name_each_leaf() -> None:
    old, new = to_dict(make_config()), to_dict(make_config(num_images=5, pool={"lr": 0.2}))
    assert differences(old, new) == ["num_images: 1000 -> 5", "pool.lr: None -> 0.2"]
    assert differences(old, old) == []


def test_students_are_split_at_commas_and_a_sequence_of_them_is_kept_comma_separated() -> None:
    assert make_config(student="resnet18, convnet_32_64_128").students == ("resnet18", "convnet_32_64_128")
    for given in (["resnet18", "convnet_32_64_128"], ("resnet18", "convnet_32_64_128")):
        config = make_config(student=given)
        assert config == make_config(student="resnet18,convnet_32_64_128")
        assert to_dict(config)["student"] == "resnet18,convnet_32_64_128"


@pytest.mark.parametrize(
    ("options", "config"),
    [
        (OuterOptions, OuterConfig),
        (PoolOptions, PoolConfig),
        (RidgeOptions, RidgeConfig),
        (DistillOptions, DistillConfig),
    ],
)
def test_the_typed_keywords_are_the_fields_of_the_dataclass(options: Any, config: Any) -> None:
    parts = {
        "outer": OuterConfig | OuterOptions,
        "pool": PoolConfig | PoolOptions,
        "ridge": RidgeConfig | RidgeOptions,
        "student": str | Sequence[str],  # kept as text
    }
    fields = get_type_hints(config)
    assert get_type_hints(options) == {name: parts.get(name, kind) for name, kind in fields.items()}
    assert list(options.__annotations__) == list(fields) and not options.__required_keys__


@pytest.mark.parametrize("function", [make_config, DistillationStage.__init__, DistillationCallback.__init__])
def test_what_takes_options_takes_them_typed(function: Any) -> None:
    assert get_type_hints(function)["options"] == Unpack[DistillOptions]


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (40, 32, (10, 300, "convnet_32_64_128", 8)),
        (500, 32, (50, 300, "convnet_32_64_128", 8)),
        (10_000, 32, (300, 600, "convnet_32_64_128", 8)),
        (10_000, 64, (300, 600, "convnet_32_64_128_256", 8)),
        (100_000, 32, (300, 1000, "convnet_32_64_128", 12)),
        (10**7, 32, (1000, 2000, "convnet_32_64_128", 20)),
        (None, 32, (1000, 2000, "convnet_32_64_128", 20)),
    ],
)
def test_the_preset_auto_goes_by_number_and_size_of_the_images(
    count: int | None, size: int, expected: tuple[int, int, str, int]
) -> None:
    config = make_config(**auto_settings(count, size))
    assert (config.num_images, config.steps, config.student, config.pool.size) == expected
    assert config.image_size == size
