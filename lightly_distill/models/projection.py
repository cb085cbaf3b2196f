"""A change of coordinates of a target's representations, which can be taken back.

Shapes: B images, D numbers of a representation of the target, K of a projected one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightly_distill.errors import UsageError


@dataclass(frozen=True, eq=False)
class Projection:
    """Centred, turned to K orthogonal directions, and divided by a scale.

    Attributes:
        mean: float32, shape (D,).
        basis: float32, orthonormal columns, shape (D, K).
        scale: float32, positive, shape (K,); all equal if it is only to make the numbers of every target alike in size.
        variance: Share of the variance of the representations that lies in these directions, float32, shape ().

    Raises:
        UsageError: If the shapes or types do not fit, or a number cannot be.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor
    variance: Tensor

    def __post_init__(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
        expected = {"mean": shapes["basis"][:1], "scale": shapes["basis"][1:], "variance": ()}
        if len(shapes["basis"]) != 2 or 0 in shapes["basis"] or shapes != {**shapes, **expected}:
            raise UsageError(f"A projection has mean (D,), basis (D, K), scale (K,) and variance (); got {shapes}.")
        types = {tensor.dtype for tensor in self.tensors().values()}
        if types != {torch.float32} or not all(tensor.isfinite().all() for tensor in self.tensors().values()):
            raise UsageError(f"The numbers of a projection are finite and float32; got {types}.")
        if not (self.scale > 0).all():
            raise UsageError("The scale of a projection is positive.")

    @property
    def dim(self) -> int:
        """D."""
        return self.basis.shape[0]

    @property
    def whitened(self) -> bool:
        """Whether directions are scaled each by itself."""
        return not bool((self.scale == self.scale[0]).all())

    def apply(self, representations: Tensor) -> Tensor:
        """Maps (B, D) to (B, K), on the device of the projection."""
        return (representations - self.mean) @ self.basis / self.scale

    def restore(self, projected: Tensor) -> Tensor:
        """Maps (B, K) to (B, D): what `apply` was given, without its part outside of the K directions."""
        return projected * self.scale @ self.basis.T + self.mean

    def to(self, device: torch.device) -> "Projection":
        """Returns it on a device; itself, where it is there, as its checks wait for a GPU."""
        if self.basis.device == device:
            return self
        return Projection(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Returns its parts by name, the arguments of another one."""
        return {"mean": self.mean, "basis": self.basis, "scale": self.scale, "variance": self.variance}

    def words(self) -> str:
        """Returns what it is, for people."""
        how = "whitened" if self.whitened else "not whitened"
        kept = f"{float(self.variance):.1%} of the variance"
        return f"{self.basis.shape[1]} principal components of {self.dim} numbers, {how}, with {kept}"
