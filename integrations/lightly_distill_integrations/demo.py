"""`lightly-distill demo`: the whole story on scikit-learn's handwritten digits, in minutes on a laptop CPU."""

import json
import logging
from pathlib import Path

import timm
import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from lightly.transforms import SimCLRTransform
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import resize, to_pil_image
from tqdm import trange

from lightly_distill import DistillationStage, SyntheticSet, pictures, pretrain, seeding
from lightly_distill.errors import UsageError
from lightly_distill.probes import features, knn_accuracy, linear_accuracy

SIZE = 32  # pixels
TRAIN = 1297  # digits for everything but the last measurement; the other 500 are held out
LABELS = 100  # labelled digits of the probes
ARMS = ("scratch", "random", "distilled")

_logger = logging.getLogger(__name__)


class Views(Dataset[list[Tensor]]):
    """Two random views of each image, as any Lightly script has them."""

    def __init__(self, images: Tensor) -> None:
        self._images = [to_pil_image(image) for image in images]
        self._transform = SimCLRTransform(
            input_size=SIZE, min_scale=0.5, hf_prob=0.0, rr_prob=0.5, rr_degrees=15, cj_prob=0.5, gaussian_blur=0.2
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> list[Tensor]:
        views: list[Tensor] = self._transform(self._images[index])
        return views


class BarlowTwins(nn.Module):
    """The model of Lightly's Barlow Twins example, with a timm backbone."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = BarlowTwinsProjectionHead(width, 512, 128)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.projection_head(self.backbone(x))
        return projected


def train_target(images: Tensor, backbone: str, epochs: int, seed: int) -> BarlowTwins:
    """Trains a small target as an ordinary Lightly script does.

    Args:
        images: uint8, shape (n, 3, H, W).
        backbone: timm name.
        epochs: Passes over the images.
        seed: Of weights and views.
    """
    with seeding.global_seed(seed, "demo", "target"):
        network = timm.create_model(backbone, num_classes=0)
        model = BarlowTwins(network, network.num_features).train()
        loader = DataLoader(Views(images), batch_size=128, shuffle=True, drop_last=True, num_workers=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * len(loader))
        criterion = BarlowTwinsLoss()
        for _ in (bar := trange(epochs, desc="Training the target with Lightly", unit="epoch")):
            for first, second in loader:
                loss = criterion(model(first), model(second))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3g}")
    return model
