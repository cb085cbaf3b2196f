"""The target model: the frozen encoder inside any self-supervised model, as one kind of module.

Shapes: B images of a batch, n images in all, d numbers of a representation.
"""

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightly_distill.errors import DistillError, UsageError, sentence
from lightly_distill.models.encoders import candidates, encoder_name, find_encoder, is_checkpoint, load_model
from lightly_distill.models.maps import NoMapError, to_grid, with_map
from lightly_distill.runtime.console import tell_once
from lightly_distill.runtime.progress import Progress
from lightly_distill.runtime.terms import on_own_terms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Interpolation = Literal["bicubic", "bilinear"]

_STRIDES = (8, 14, 16, 32)  # pixels; a network that is picky about sizes wants a multiple of one of them
_SIZES_NAMED = 3
_COMPILED = "_orig_mod"  # what torch.compile has wrapped
_LUMA = (0.299, 0.587, 0.114)  # of grey, as Pillow weighs the colours
_PROBE_SIZE = 64  # pixels; for the fingerprint of a function, which has no weights to look at

_logger = logging.getLogger(__name__)


class Target(nn.Module):
    """A frozen encoder that owns its normalisation. Stays in eval mode and computes no gradient.

    Made by `as_target` or `load_target`.

    Args:
        encoder: Normalised images to representations. Frozen here, so it must be nobody else's.
        name: Where it comes from, for provenance and messages.
        encoder_name: Which module of the model it is, such as `SimCLR.backbone`.
        reason: Why it is this one.
        options: What brings it back on the command line, by option.
        mean: Of each channel, in units of [0, 1].
        std: Of each channel, in units of [0, 1].
        input_size: Height and width, in pixels, to which images are resized first; None takes them as they are.
        own_size: Height and width, in pixels, that it was made for, where it takes others too; None if not known.
        crop: Side of the region in the middle of an image that it was made for, as a fraction of the shorter side.
        interpolation: How images are resized for it, `bicubic` or `bilinear`.

    Attributes:
        dim: d, known after the first forward pass.
        guarded: Whether representations are looked at, and refused where they are not finite. On a GPU that waits for
            them; who turns it off looks later.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Any],
        *,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        input_size: int | None = None,
        own_size: int | None = None,
        crop: float = 1.0,
        interpolation: Interpolation = "bicubic",
        encoder_name: str | None = None,
        reason: str = "",
        options: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(encoder, nn.Module):
            # TorchScript has no `requires_grad_` of the whole, and a frozen program has no parameters of its own
            for parameter in encoder.parameters():
                if parameter.is_leaf:
                    parameter.requires_grad_(False)
        self.encoder = encoder
        self.name = name
        self.encoder_name = encoder_name or name
        self.reason = reason
        self.options = options or {}
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.input_size = input_size
        self.own_size = own_size
        self.crop = crop
        self.interpolation: Interpolation = interpolation
        self.dim: int | None = None
        self.guarded = True
        self._mean: Tensor
        self._std: Tensor
        self._channels = _first_channels(encoder)
        self._luma: Tensor
        for name, values in (("_mean", self.mean), ("_std", self.std), ("_luma", _LUMA)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> "Target":
        """Keeps eval mode, whatever is asked for."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Computes representations.

        Args:
            images: Floating point, shape (B, 3, H, W), in [0, 1], on the target's device.

        Returns:
            float32, shape (B, d). Maps and tokens are averaged over positions.

        Raises:
            DistillError: If the encoder fails on images of this shape, or returns something that is not one vector
                of finite numbers for each image, of the same length as before.
        """
        return self._represent(images, self.encoder)

    @torch.no_grad()
    def maps(self, images: Tensor, grid: int) -> tuple[Tensor, Tensor]:
        """Computes representations and, in the same pass, the encoder's last map before its global pooling.

        Args:
            images: As in `forward`.
            grid: Cells of a side to which the map is averaged.

        Returns:
            The representations, float32, shape (B, d), as `forward` returns them, and the maps, float32, shape
            (B, C, grid, grid). Where a representation is the average of a map over its positions, C is d.

        Raises:
            UsageError: If the encoder has no map, or for images of this shape one that is smaller than the grid.
            DistillError: As in `forward`.
        """
        found: list[Tensor] = []

        def encode(images: Tensor) -> Any:
            output, last_map = with_map(self.encoder, images)
            found.append(to_grid(last_map.float(), grid))
            return output

        try:
            return self._represent(images, encode), found[0]
        except NoMapError as error:
            shape = tuple(images.shape[1:])
            raise UsageError(f"The target {self.name} has no map of images of shape {shape}: {error}.") from error

    def _represent(self, images: Tensor, encode: Callable[[Tensor], Any]) -> Tensor:
        if self.input_size is not None and images.shape[-2:] != (self.input_size, self.input_size):
            size = (self.input_size, self.input_size)
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        if self._channels == 1:
            images = (images * self._luma).sum(1, keepdim=True)
            images = (images - self._mean.mean()) / self._std.mean()
        else:
            images = (images - self._mean) / self._std
        return self._pool(self._encode(images, encode), images.shape)

    def weights_sha256(self) -> str:
        """Returns the SHA-256 of all that the representation of an image depends on.

        That is weights and buffers, the classes of the layers, normalisation and input size. The weights of a plain
        function cannot be seen, so its answer to fixed images stands for them; on a GPU, which need not repeat it, in
        short, so that functions that differ by a percent may be taken for the same.
        """
        digest = hashlib.sha256(repr((self.mean, self.std, self.input_size)).encode())
        if isinstance(self.encoder, nn.Module):
            # what torch.compile puts around a part is no part
            layers = [
                (_uncompiled(path), type(module).__qualname__)
                for path, module in self.encoder.named_modules()
                if not hasattr(module, _COMPILED)
            ]
            digest.update(repr(layers).encode())
            digest.update(self.encoder.extra_repr().encode())  # such as which tokens are averaged
            tensors = sorted((_uncompiled(name), value) for name, value in self.encoder.state_dict().items())
        else:
            size = self.input_size or _PROBE_SIZE
            images = torch.rand(4, len(self.mean), size, size, generator=torch.Generator().manual_seed(0))
            answers = self(images.to(self._mean.device))
            tensors = [(self.name, answers if answers.device.type == "cpu" else _in_short(answers.cpu()))]
            self.dim = None  # a map's length may differ at the size of the real images
        for key, tensor in tensors:
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _encode(self, images: Tensor, encode: Callable[[Tensor], Any]) -> Any:
        if isinstance(self.encoder, nn.Module):
            parameter = next(self.encoder.parameters(), images)
            images = images.to(parameter.dtype)
        try:
            return encode(images)
        except (torch.OutOfMemoryError, NoMapError):
            raise
        except Exception as error:  # layers refuse a shape in many ways
            cure = "If it takes images of one size only, give it as input_size."
            if self._channels not in (None, 1, 3):
                cure = f"Its first convolution takes {self._channels} channels, images have 3: wrap it in a function."
            raise DistillError(
                f"The target {self.name} fails on images of shape {tuple(images.shape)}: {sentence(error)} {cure}"
            ) from error

    def _pool(self, output: Any, images_shape: torch.Size) -> Tensor:
        given = f"The target {self.name}, given images of shape {tuple(images_shape)}, returned"
        if not isinstance(output, Tensor):
            parts = f" of its parts: {candidates(self.encoder)}" if isinstance(self.encoder, nn.Module) else ""
            raise DistillError(
                f"{given} {_describe(output)}, expected a tensor (B, d). Name its encoder with encoder= "
                f"(--target-encoder){parts}."
            )
        shape = tuple(output.shape)
        if not output.is_floating_point():
            raise DistillError(f"{given} a tensor of {output.dtype}, shape {shape}; expected floating point.")
        if output.ndim not in (2, 3, 4) or 0 in shape or len(output) != images_shape[0]:
            raise DistillError(f"{given} a tensor of shape {shape}, expected (B, d), (B, d, H, W) or (B, tokens, d).")
        result = output.float()
        if output.ndim > 2:
            result = result.mean((2, 3)) if output.ndim == 4 else result.mean(1)
        if self.dim is not None and result.shape[1] != self.dim:
            raise DistillError(f"{given} a tensor of shape {shape}: d is {result.shape[1]} now and was {self.dim}.")
        if self.guarded and not result.isfinite().all():
            raise DistillError(f"{given} NaN or infinity in a tensor of shape {shape}.")
        self.dim = result.shape[1]
        return result


@on_own_terms()
def as_target(
    model: "nn.Module | Callable[[Tensor], Any]",
    encoder: "str | nn.Module | None" = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Target:
    """Wraps a frozen copy of the encoder inside a model; the model itself stays as it is.

    Args:
        model: A self-supervised model, an encoder, or any function from images to representations. A `Target` is
            returned as it is.
        encoder: The module to use, or the path of its attribute such as `teacher.backbone`. By default the installed
            adapters look for it, Lightly's first.
        mean: Of each channel in units of [0, 1]. By default the encoder's own, or else ImageNet's, as in Lightly.
        std: As `mean`.
        input_size: Height and width, in pixels, to which images are resized; two numbers if they are equal. By default
            the encoder's own, if it takes one size only, or else images are taken as they are.
        name: For provenance and messages. By default such as `SimCLR.backbone`.

    Raises:
        UsageError: If there is no such encoder, the encoder cannot be copied, `input_size` is no size of squares, or
            `model` is a `Target` and anything else is given.
    """
    if isinstance(model, Target):
        if any(given is not None for given in (encoder, mean, std, input_size, name)):
            raise UsageError(
                f"{model.name} is a target already: give encoder, mean, std, input_size and name when it is made of "
                "its model."
            )
        return model
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if isinstance(model, nn.Module):
        model = getattr(model, _COMPILED, model)
    if isinstance(model, type):
        raise UsageError(f"A target is a model, not its class {model.__name__}: give {model.__name__}(...).")
    if isinstance(model, nn.Module):
        _require_weights(model)
    size = None if input_size is None else _square(input_size)
    choice = find_encoder(model, encoder)
    found, where = choice.encoder, encoder_name(model, choice)
    if isinstance(found, nn.Module):
        try:
            found = copy.deepcopy(found)
        except Exception as error:  # generators, non-leaf tensors, locks: each fails in its own way
            raise UsageError(
                f"The encoder {where} cannot be copied: {sentence(error)} Name a part of it with encoder=."
            ) from error
    tell_once(_logger, logging.INFO, "Target: %s (%s).", where, choice.reason)
    return Target(
        found,
        name=name or where,
        encoder_name=where,
        reason=choice.reason,
        mean=mean if mean is not None else _own_statistics(found, "mean", IMAGENET_MEAN),
        std=std if std is not None else _own_statistics(found, "std", IMAGENET_STD),
        input_size=size if size is not None else _whole(found, "input_size"),
        own_size=_whole(found, "own_size"),
        crop=getattr(found, "crop", 1.0) if isinstance(getattr(found, "crop", 1.0), float) else 1.0,
        interpolation="bilinear" if getattr(found, "interpolation", None) == "bilinear" else "bicubic",
    )


def load_target(
    spec: str, encoder: str | None = None, target_class: str | None = None, weights: str | None = None
) -> Target:
    """Loads a target model with its weights.

    Args:
        spec: `timm:NAME` or `torchvision:NAME` for published weights, `timm:NAME@FILE` or `torchvision:NAME@FILE` for
            weights in a file, `timm:hf_hub:OWNER/NAME` or `timm:local-dir:DIR` for a model that was saved with its
            configuration, a checkpoint (`.ckpt`, `.pt`, `.pth`, `.pth.tar`, `.bin`, `.safetensors`), `NAME:...` of any
            other installed adapter, or `pkg.module:callable` for a function without arguments that returns a model. The
            working directory counts as a place for modules. A file is never read in a way that could run its code.
        encoder: Attribute path of the encoder inside the model, where it cannot be found or is to be another.
        target_class: `pkg.module:Class` of the model in a checkpoint, where the weights do not show it.
        weights: Key of the weights in a checkpoint that has several. Default: averaged ones or a teacher's, if any.

    Raises:
        UsageError: If the specification is none of these, or names something that is not there.
        DistillError: If the weights cannot be had or the function fails.
    """
    if weights is not None and not is_checkpoint(spec):
        raise UsageError(f"A key of weights goes with a checkpoint, such as last.ckpt; '{spec}' is none.")
    file = spec if weights is None else f"{spec}#{weights}"
    target = as_target(load_model(file, target_class), encoder, name=spec)
    given = {"target": spec, "target_encoder": encoder, "target_class": target_class, "target_weights": weights}
    target.options = {option: value for option, value in given.items() if value is not None}
    return target


def represent(
    target: Target,
    batches: Iterable[Tensor],
    *,
    device: "torch.device | str",
    total: int | None = None,
    ask: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Computes the representations of many images.

    Args:
        target: Is moved to `device` and stays there.
        batches: uint8 images, shape (B, 3, H, W).
        device: Where to compute.
        total: n, if known; saves memory and gives the progress bar its end.
        ask: Images in [0, 1] to rows, where they are to be more than the target's representations.

    Returns:
        float32 on the CPU, shape (n, d), in the order of the images.

    Raises:
        DistillError: If there is no image, there are not `total` images, or the target fails; see `Target.forward`.
    """
    target.to(device)
    parts: list[Tensor] = []
    count = 0
    with Progress("Representations", total, "image") as bar:
        for batch in batches:
            part = (ask or target)(batch.to(device).float() / 255).cpu()
            if total is None:
                parts.append(part)
            else:
                parts = parts or [part.new_empty(total, part.shape[1])]
                # The slice is short where there are more images than expected; the count below checks that.
                room = parts[0][count : count + len(part)]
                room.copy_(part[: len(room)])
            count += len(part)
            bar.add(len(part))
    if count == 0 or count != (total or count):
        expected = "at least one" if total is None else str(total)
        raise DistillError(f"The target {target.name} was given {count} images, expected {expected}.")
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def sizes_taken(target: Target, near: int, device: "torch.device | str") -> list[int]:
    """Returns up to three sizes that a target takes, in pixels, nearest to one that it does not take."""
    around = {step * (near // step + more) for step in _STRIDES for more in (0, 1)} - {0, near}
    known = {size for size in (target.input_size, target.own_size) if size is not None}
    found = []
    for size in sorted(around | known, key=lambda size: (abs(size - near), size)):
        target.dim = None  # a map's length differs from size to size
        try:
            target(torch.zeros(1, len(target.mean), size, size, device=device))
        except DistillError:
            continue
        found.append(size)
        if len(found) == _SIZES_NAMED:
            break
    target.dim = None
    return sorted(found)


def _in_short(answers: Tensor) -> Tensor:
    """Returns a few rounded numbers that tell answers (B, d) apart: their width, their size, and eight of their sums.

    Sums are rounded to a fiftieth of the answers' size: the last bits of these move one over a border in about one case
    of a thousand.
    """
    signs = torch.randint(2, (answers.shape[1], 8), generator=torch.Generator().manual_seed(1)) * 2 - 1
    size = float(answers.double().norm(dim=1).mean())
    sums = (answers.double() @ signs.double()).mean(0) / max(size, 1e-30)
    return torch.tensor([answers.shape[1], float(f"{size:.1e}"), *(50 * sums).round().tolist()])


def _require_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UsageError(f"The weights '{name}' of {type(model).__name__} are not made yet: give it a batch first.")
        if parameter.is_meta:
            raise UsageError(f"The weights '{name}' of {type(model).__name__} are on the meta device: load them first.")


def _uncompiled(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != _COMPILED)


def _first_channels(encoder: Any) -> int | None:
    """Returns how many channels the first convolution of an encoder takes, None if it has none."""
    modules = encoder.modules() if isinstance(encoder, nn.Module) else ()
    return next((module.in_channels for module in modules if isinstance(module, nn.Conv2d)), None)


def _own_statistics(encoder: Any, which: str, default: Sequence[float]) -> Sequence[float]:
    # A tensor of this name is a buffer with which the encoder normalises by itself: not for us.
    own = getattr(encoder, which, None)
    return own if isinstance(own, tuple | list) and own else default


def _whole(encoder: Any, name: str) -> int | None:
    own = getattr(encoder, name, None)
    return own if isinstance(own, int) else None


def _square(size: int | Sequence[int]) -> int:
    height, width = size if isinstance(size, Sequence) and len(size) == 2 else (size, size)
    if not isinstance(height, int) or height != width or height < 1:
        raise UsageError(f"input_size must be a number of pixels, or two equal ones: images are square; got {size!r}.")
    return height


def _describe(output: Any) -> str:
    """Tells the type of something that is not a tensor, and the shapes inside it."""
    kind = type(output).__name__
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    shapes = [str(tuple(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    return f"a {kind} of {', '.join(shapes)}" if shapes else f"a {kind}"
