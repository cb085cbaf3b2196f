# Barlow Twins, and what it learned distilled into 1000 images.
#
# Without the lines marked "# + lightly_distill" this is an ordinary Lightly script.
# `python examples/barlowtwins.py --smoke` shows it at work in seconds, on a laptop and without a download.

import argparse
from pathlib import Path

import digits
import torch
import torchvision
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import nn

from lightly_distill import DistillationStage  # + lightly_distill

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="few steps on scikit-learn's digits")
parser.add_argument("--out", type=Path, default=Path("runs/barlowtwins"), help="folder for the results")
args = parser.parse_args()

torch.manual_seed(0)


class BarlowTwins(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = BarlowTwinsProjectionHead(512, 2048, 2048)

    def forward(self, x):
        x = self.backbone(x).flatten(start_dim=1)
        z = self.projection_head(x)
        return z


resnet = torchvision.models.resnet18()
backbone = nn.Sequential(*list(resnet.children())[:-1])
model = BarlowTwins(backbone)

device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)

transform = SimCLRTransform(input_size=32)
if args.smoke:
    dataset = digits.Digits(transform=transform)
    epochs, batch_size, num_workers = 3, 64, 0
else:
    dataset = torchvision.datasets.CIFAR10("datasets/cifar10", download=True, transform=transform)
    epochs, batch_size, num_workers = 10, 256, 8

dataloader = torch.utils.data.DataLoader(
    dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=num_workers
)

criterion = BarlowTwinsLoss()
# a few steps at the full rate may leave weights with which every number is huge
optimizer = torch.optim.SGD(model.parameters(), lr=0.00002 if args.smoke else 0.06)

print("Starting Training")
for epoch in range(epochs):
    total_loss = 0
    for batch in dataloader:
        x0, x1 = batch[0]
        x0 = x0.to(device)
        x1 = x1.to(device)
        z0 = model(x0)
        z1 = model(x1)
        loss = criterion(z0, z1)
        total_loss += loss.detach()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    avg_loss = total_loss / len(dataloader)
    print(f"epoch: {epoch:>02}, loss: {avg_loss:.5f}")

args.out.mkdir(parents=True, exist_ok=True)
torch.save(model.state_dict(), args.out / "model.pt")

options = digits.STAGE if args.smoke else {"student": "resnet18:stem=small", "num_images": 1000}  # + lightly_distill
stage = DistillationStage(target=model, **options)  # + lightly_distill
synthetic = stage.run(dataset, out=args.out, overwrite=True)  # + lightly_distill
print("Held-out loss: {initial:.4f} -> {final:.4f}".format(**synthetic.provenance["heldout_loss"]))  # + lightly_distill

print("Results:", *sorted(map(str, args.out.iterdir())), sep="\n  ")
