"""Any timm name, and our ConvNets, as student or as target."""

import copy
import json
import logging
import re
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lightly_distill.adapters import FoundEncoder, MapReader
from lightly_distill.errors import DistillError, UsageError, did_you_mean, first_line
from lightly_distill.runtime.files import make_ordinary
from lightly_distill_integrations import checkpoints, convnets, small_stems
from lightly_distill_integrations.timm import fit, maps
from lightly_distill_integrations.timm.catalogue import list_students as list_students

# before, timm reads a folder as pickle
_READS_FOLDERS = tuple(int(part) for part in re.findall(r"\d+", timm.__version__)[:3]) >= (1, 0, 31)
_SAVED = ("hf_hub:", "hf-hub:", "local-dir:")  # how timm names a model that was saved with its configuration


_RANDOM = ":random"
_FEW_PATCHES = 4  # of a side
_logger = logging.getLogger(__name__)


def check_name(name: str) -> None:
    """Refuses a name that timm does not know, and an option that there is not.

    Raises:
        UsageError: If it is one.
    """
    _resolve(name)


def build(name: str, image_size: int) -> nn.Module:
    """Builds a freshly initialised backbone without a head.

    Args:
        name: Name of a timm model, or `convnet_<widths>[_in]`; with `:stem=small` its stem is 3x3 without pooling.
        image_size: Height and width of the images, in pixels.

    Returns:
        Images `(B, 3, image_size, image_size)` to features `(B, p)`. Its weights come from torch's global generator,
        and the first call draws the same as any later one.

    Raises:
        UsageError: If timm does not know the name, or the model does not take images of this size.
    """
    name = _resolve(name)
    try:
        arguments = fit.fit(name, image_size).arguments
    except fit.UnfitError as unfit:
        raise fit.refusal(name, image_size, unfit) from unfit
    model: Any = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    model.build_arguments = arguments  # for `save`
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if isinstance(grid, tuple) and max(grid) < _FEW_PATCHES:
        _hint(name, image_size, grid)
    built: nn.Module = model
    return built


@cache
def _hint(name: str, image_size: int, grid: tuple[int, ...]) -> None:
    _logger.warning(
        "'%s' sees images of %d pixels as %s patches: one with smaller patches, such as vit_small_patch8_224, learns "
        "more of them.",
        name,
        image_size,
        "x".join(map(str, grid)),
    )


def save(model: nn.Module, folder: str, metadata: dict[str, Any]) -> None:
    """Writes a student as timm writes a model, so that `timm.create_model` takes it back.

    Args:
        model: A model from `build`.
        folder: Existing folder, gets `model.safetensors` and `config.json`.
        metadata: JSON values, stored in the configuration under `lightly_distill`. Its `mean`, `std` and
            `input_size` (channels, height, width), where given, become the model's own.
    """
    # A contiguous copy of each tensor: safetensors refuses shared memory and other memory formats.
    weights = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in model.state_dict().items()
    }
    save_file(weights, Path(folder, "model.safetensors"), metadata={"format": "pt"})
    make_ordinary(Path(folder, "model.safetensors"))
    configure(model, metadata)
    # timm's own `save_for_hf` needs a huggingface_hub that fits it, which old versions of timm do not ask for.
    known: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    kept = ("mean", "std", "input_size", "first_conv", "classifier", "num_classes", "crop_pct", "interpolation")
    config = {
        "architecture": known["architecture"],
        "num_classes": 0,
        "model_args": model.build_arguments,
        "pretrained_cfg": {key: known.get(key) for key in kept},
        "lightly_distill": metadata,
    }
    Path(folder, "config.json").write_text(json.dumps(config, indent=2) + "\n")


def configure(model: nn.Module, metadata: dict[str, Any]) -> None:
    """Makes size and normalisation of the set those of the model's own configuration, which timm prepares images by.

    Args:
        model: A model from `build`.
        metadata: As for `save`.
    """
    own = {key: tuple(metadata[key]) for key in ("mean", "std", "input_size") if key in metadata}
    known: Any = model.pretrained_cfg
    # not of published weights: what is said of them, such as the size of a test, is not true of these
    kept = {key: known.get(key) for key in ("mean", "std", "input_size", "first_conv", "classifier", "architecture")}
    changed: Any = {**kept, **own, "num_classes": 0, "crop_pct": 1.0, "interpolation": "bilinear"}
    model.pretrained_cfg = model.default_cfg = changed


def how_to_load(model: nn.Module, name: str, folder: str) -> str:
    """Returns the lines of Python that load what `save` wrote into `folder`, with its configuration."""
    name = _resolve(name)
    lines = _imports(name)
    if _READS_FOLDERS:
        return "\n".join([*lines, f"backbone = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)"])
    built_with: Any = model.build_arguments
    arguments = "".join(f", {key}={value}" for key, value in built_with.items())
    weights = str(Path(folder, "model.safetensors"))
    lines.append(f"backbone = timm.create_model({name!r}, num_classes=0{arguments}, checkpoint_path={weights!r})")
    return "\n".join(lines)


def how_to_load_from_hub(name: str, repo_id: str) -> str:
    """Returns the lines of Python that load what `save` wrote from a model repository on the Hugging Face Hub."""
    lines = _imports(_resolve(name))
    return "\n".join([*lines, f"backbone = timm.create_model({f'hf_hub:{repo_id}'!r}, pretrained=True)"])


def _imports(name: str) -> list[str]:
    """Returns the lines after which timm knows a name; networks of our own have to be registered."""
    lines = ["import timm"]
    for family in (convnets, small_stems):
        if family.register(name):
            module = family.__name__.rpartition(".")[2]
            lines.append(f"from lightly_distill_integrations import {module}; {module}.register({name!r})")
    return lines


def load(spec: str) -> nn.Module:
    """Loads a model with weights, without its head.

    Args:
        spec: `NAME` for the weights that timm publishes, `NAME:random` for random ones, or `NAME@FILE` for a
            checkpoint; names in the file may have a prefix (`backbone.vit.`). A `config.json` beside the file, as
            `save` writes it, gives image size and normalisation. Or `hf_hub:OWNER/NAME` or `local-dir:DIR`, as timm
            names a model with its configuration.

    Raises:
        UsageError: If the name is unknown or the file is not there or not of this model.
        DistillError: If published weights cannot be fetched.
    """
    if spec.startswith(_SAVED):
        return _load_saved(spec)
    name, separator, file = spec.partition("@")
    if name.endswith(_RANDOM):
        name = _resolve(name.removesuffix(_RANDOM), target=True)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
        model.random_weights = True  # type: ignore[assignment]
        return model
    name = _resolve(name, target=True)
    if separator:
        return _load_file(name, Path(file).expanduser())
    if not timm.is_model_pretrained(name):
        raise UsageError(f"timm publishes no weights for '{name}'. Give a file: timm:{name}@weights.safetensors")
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the kinds of failure of a download are without number
        raise DistillError(
            f"The weights of '{name}' cannot be fetched ({first_line(error)}). "
            f"Without network, give them as a file, timm:{name}@weights.safetensors, or take random ones for trying "
            f"out: timm:{name}:random"
        ) from error
    return model


def find_encoder(model: nn.Module) -> FoundEncoder | None:
    """Returns a copy of a timm model without its head, or None if the model is not timm's.

    The copy carries the normalisation, crop and interpolation of its configuration, and its size: as `input_size`
    where it takes images of one size only, else as `own_size`.
    """
    if not is_timm(model):
        return None
    encoder: Any = copy.deepcopy(model)
    if hasattr(encoder, "reset_classifier"):  # bare encoders, such as MobileNetV5Encoder, have no head
        encoder.reset_classifier(0)
    known = encoder.pretrained_cfg
    encoder.mean, encoder.std = tuple(known["mean"]), tuple(known["std"])
    size, fixed = _size(encoder)
    encoder.input_size, encoder.own_size = (size, None) if fixed else (None, size)
    encoder.crop = min(1.0, float(known.get("crop_pct") or 1.0))
    encoder.interpolation = known.get("interpolation")
    random = "; random weights: for trying out only" if getattr(model, "random_weights", False) else ""
    return FoundEncoder(encoder, "", f"a model of timm, without head{random}")


def find_map(model: nn.Module) -> MapReader | None:
    """Returns what runs a timm model and has its last map, or None if the model is not timm's."""
    # bare encoders may have a `forward_head` too, but one that refuses
    return maps.read if is_timm(model) and hasattr(model, "reset_classifier") else None


def is_timm(model: nn.Module) -> bool:
    """Returns whether timm built this model."""
    return hasattr(model, "pretrained_cfg") and hasattr(model, "forward_features")


def fixed_size(model: nn.Module) -> int | None:
    """Returns the only height and width of images, in pixels, that a timm model takes; None if it takes any."""
    size, fixed = _size(model)
    return size if fixed else None


def _size(model: nn.Module) -> tuple[int | None, bool]:
    """Returns the height and width that a timm model was made for, None if they differ, and whether it takes no other.

    A size that a model was built with comes before that of its published weights.
    """
    config = getattr(model, "pretrained_cfg", {})
    patch_embed = getattr(model, "patch_embed", None)
    size = getattr(patch_embed, "img_size", None)
    fixed = getattr(patch_embed, "strict_img_size", True)
    if size is None:
        built_for = getattr(model, "_model_args", {}).get("img_size")  # where timm is recent enough to record it
        size = getattr(model, "img_size", None) or built_for or config.get("input_size", (0, 0))[-2:]
        fixed = config.get("fixed_input_size", False)
    height, width = (size, size) if isinstance(size, int) else size
    return (int(height), bool(fixed)) if height == width > 0 else (None, False)


def _resolve(name: str, *, target: bool = False) -> str:
    """Returns the name under which timm knows a student, or a target, `NAME[:stem=small]`.

    Raises:
        UsageError: If timm does not know the name, or the option is another.
    """
    plain, *options = name.split(":")
    if options and not convnets.register(plain):
        plain = plain.partition(".")[0]  # whose weights a name stands for is of no account to a stem of another shape
    if not (convnets.register(plain) or small_stems.register(plain) or timm.is_model(plain)):
        hint = did_you_mean(plain, fit.names(), most=3, list_up_to=0) or " See timm.list_models()."
        raise UsageError(f"timm knows no model '{plain}'.{hint}")
    for option in options:
        if option != "stem=small":
            if target:
                hint = did_you_mean(option, [_RANDOM.removeprefix(":"), "stem=small"], form=f"{plain}:{{}}")
                raise UsageError(f"Unknown option '{option}' of the target '{plain}'.{hint}")
            raise UsageError(f"Unknown option '{option}' of the student '{plain}'. Did you mean '{plain}:stem=small'?")
    if options:
        plain += small_stems.SUFFIX
        small_stems.register(plain)
    return plain


def _load_saved(spec: str) -> nn.Module:
    """Loads a model that was saved with its configuration, as `save` and timm do."""
    scheme, _, place = spec.partition(":")
    try:
        if scheme == "local-dir":
            architecture = json.loads(Path(place, "config.json").read_text())["architecture"]
        else:
            architecture = timm.models.load_model_config_from_hf(place)[1]
        convnets.register(architecture) or small_stems.register(architecture)
        model: nn.Module = timm.create_model(spec, pretrained=True, num_classes=0)
    except (OSError, LookupError, TypeError) as error:
        raise UsageError(f"There is no model with a configuration of timm in '{place}': {first_line(error)}") from error
    except Exception as error:  # the kinds of failure of a download are without number
        raise DistillError(f"The model '{spec}' cannot be loaded: {first_line(error)}") from error
    return model


def _load_file(name: str, path: Path) -> nn.Module:
    weights = checkpoints.read(path)
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **_config_beside(path))
    except Exception as error:  # a configuration that somebody has edited
        reason = first_line(error)
        raise UsageError(f"The configuration beside '{path}' does not fit '{name}': {reason}") from error
    weights.fill(model, name, strict=True)
    return model


def _config_beside(path: Path) -> dict[str, Any]:
    """Returns what `timm.create_model` needs to know of a student written by `save`; nothing for other files."""
    config_path = path.with_name("config.json")
    if not config_path.is_file():
        return {}
    try:
        known = json.loads(config_path.read_text())["pretrained_cfg"]
        own = {key: known[key] for key in ("mean", "std", "input_size")}
        own |= {key: known[key] for key in ("crop_pct", "interpolation") if key in known}
    except (ValueError, LookupError, TypeError):
        return {}  # somebody else's file of that name
    # Where weights depend on the size, timm builds the model for `input_size`.
    return {"pretrained_cfg_overlay": own}
