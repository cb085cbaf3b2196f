# SimCLR on several processes with Accelerate, and what it learned distilled into 1000 images.
#
# Without the lines marked "# + lightly_distill" this is an ordinary Lightly script.
# Start it with `accelerate launch examples/simclr_accelerate.py`. In seconds, on a laptop's CPU and without a download:
# `accelerate launch --multi_gpu --num_processes 2 examples/simclr_accelerate.py --smoke`

import argparse
from pathlib import Path

import digits
import torch
import torchvision
from accelerate import Accelerator
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import nn

from lightly_distill import DistillationStage  # + lightly_distill

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="few steps on scikit-learn's digits")
parser.add_argument("--out", type=Path, default=Path("runs/simclr_accelerate"), help="folder for the results")
args = parser.parse_args()

torch.manual_seed(0)


class SimCLR(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, x):
        x = self.backbone(x).flatten(start_dim=1)
        z = self.projection_head(x)
        return z


resnet = torchvision.models.resnet18()
backbone = nn.Sequential(*list(resnet.children())[:-1])
model = SimCLR(backbone)

accelerator = Accelerator(cpu=args.smoke)
if accelerator.device.type == "cuda":
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # batch norm over the batches of all processes

transform = SimCLRTransform(input_size=32)
if args.smoke:
    dataset = digits.Digits(transform=transform)
    epochs, batch_size, num_workers = 2, 16, 0
else:
    dataset = torchvision.datasets.CIFAR10("datasets/cifar10", download=True, transform=transform)
    epochs, batch_size, num_workers = 10, 256, 8

dataloader = torch.utils.data.DataLoader(
    dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=num_workers
)

criterion = NTXentLoss(gather_distributed=True)  # negatives from all processes
optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
model, optimizer, dataloader = accelerator.prepare(model, optimizer, dataloader)

accelerator.print(f"Starting Training on {accelerator.num_processes} processes")
for epoch in range(epochs):
    total_loss = 0
    for batch in dataloader:
        x0, x1 = batch[0]
        z0, z1 = model(torch.cat([x0, x1])).chunk(2)  # DistributedDataParallel wants one forward for each backward
        loss = criterion(z0, z1)
        total_loss += loss.detach()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    avg_loss = accelerator.reduce(total_loss, reduction="mean") / len(dataloader)
    accelerator.print(f"epoch: {epoch:>02}, loss: {avg_loss:.5f}")

args.out.mkdir(parents=True, exist_ok=True)
accelerator.save(accelerator.unwrap_model(model).state_dict(), args.out / "model.pt")

# + lightly_distill: all processes call the stage and share its work
options = digits.STAGE if args.smoke else {"student": "resnet18:stem=small", "num_images": 1000}  # + lightly_distill
stage = DistillationStage(target=accelerator.unwrap_model(model), **options)  # + lightly_distill
synthetic = stage.run(dataset, out=args.out, overwrite=True)  # + lightly_distill
held_out = synthetic.provenance["heldout_loss"]  # + lightly_distill
accelerator.print("Held-out loss: {initial:.4f} -> {final:.4f}".format(**held_out))  # + lightly_distill

accelerator.wait_for_everyone()
accelerator.print("Results:", *sorted(map(str, args.out.iterdir())), sep="\n  ")
accelerator.end_training()
