import re
import resource
import time

import pytest
import timm
import torch

from lightly_distill.errors import UsageError
from lightly_distill_integrations.timm import backbones, fit


@pytest.mark.parametrize(
    "name",
    [
        "convnet_32_64_128",
        "resnet10t",
        "mobilenetv3_small_050",
        "test_vit",
        "coatnet_pico_rw_224",
        "test_efficientnet",
        "levit_128s",
    ],
)
def test_shapes_alone_tell_what_a_real_run_tells(name: str) -> None:
    real, shapes = fit.fit(name, 32), fit.fit(name, 32, shapes_only=True)
    assert shapes == real
    assert real.parameters == sum(p.numel() for p in backbones.build(name, 32).parameters())


def test_trying_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    fit.fit.cache_clear()
    fit.fit("test_vit", 48)
    fit.fit("test_vit", 48, shapes_only=True)
    fit.near_names("test_vit", 20)
    assert torch.equal(torch.get_rng_state(), before)


def test_shapes_alone_need_no_memory_for_weights() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fit.fit("vit_giant_patch14_dinov2", 28, shapes_only=True).parameters > 1e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # of the 4e6 that its weights would take


def test_a_model_that_reads_a_number_while_it_is_built_is_tried_by_shapes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def as_in_older_versions(name: str, **arguments: object) -> object:
        assert [value.item() for value in torch.linspace(0, 1, 3)] == [0.0, 0.5, 1.0]
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", as_in_older_versions)
    fit.fit.cache_clear()
    assert fit.fit("test_vit", 32, shapes_only=True).features == 64


def refused(name: str, size: int) -> str:
    with pytest.raises(UsageError) as caught:
        backbones.build(name, size)
    message = str(caught.value)
    assert "\n" not in message
    return message


def near_of(message: str) -> list[str]:
    found = re.search(r"Near names that fit: (.*)\.$", message)
    assert found is not None
    return found[1].split(", ")


def test_a_size_that_does_not_fit_is_refused_with_the_smallest_that_does_and_names_that_fit() -> None:
    message = refused("test_vit", 20)
    assert re.search(r"'test_vit' cannot be used with images of 20x20: .*divisible by patch size \(16\)\.", message)
    assert "The smallest of the usual sizes that it takes is 16x16." in message
    near = near_of(message)
    assert 1 <= len(near) <= 3 and "test_vit" not in near
    for name in near:
        assert backbones.build(name, 20)(torch.rand(2, 3, 20, 20)).ndim == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason", "size"),
    [
        ("halonet_h1", "32x32: AssertionError", 256),
        ("inception_v3", "32x32: Calculated padded input size per channel: (1 x 1).", 75),
        ("csatv2", "32x32: Calculated padded input size per channel", 64),
        ("efficientformer_l1", "32x32: ", 224),
    ],
)
def test_every_kind_of_misfit_is_refused_in_seconds(name: str, reason: str, size: int) -> None:
    started = time.process_time()
    message = refused(name, 32)
    assert time.process_time() - started < 30
    assert reason in message and f"The smallest of the usual sizes that it takes is {size}x{size}." in message
    assert len(near_of(message)) == 3


@pytest.mark.slow
def test_a_model_of_tokens_is_refused_with_the_reason_and_without_a_search_for_a_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **kwargs: made.append(name) or create(name, **kwargs))
    message = refused("qwen3_vit_88m_enc", 32)
    assert made.count("qwen3_vit_88m_enc") < len(fit.SIZES)
    assert "32x32: it returns tokens (2, 1, 1024), not features (2, p)." in message
    assert "smallest" not in message and near_of(message)


def test_small_stems_that_somebody_asked_for_are_not_offered_to_others() -> None:
    backbones.build("test_resnet:stem=small", 32)
    assert "test_resnet_small_stem" in timm.list_models()
    assert "test_resnet_small_stem" not in fit.names()
