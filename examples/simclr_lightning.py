# SimCLR with PyTorch Lightning, and what it learned distilled into 1000 images when the training ends.
#
# Without the lines marked "# + lightly_distill" this is an ordinary Lightly script.
# `python examples/simclr_lightning.py --smoke` shows it at work in seconds, on a laptop and without a download.

import argparse

import digits
import pytorch_lightning as pl
import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import nn

from lightly_distill import DistillationCallback  # + lightly_distill

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="few steps on scikit-learn's digits")
parser.add_argument("--out", default="runs/simclr_lightning", help="folder for the results")
args = parser.parse_args()

pl.seed_everything(0)


class SimCLR(pl.LightningModule):
    def __init__(self):
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = SimCLRProjectionHead(512, 2048, 2048)
        self.criterion = NTXentLoss()

    def forward(self, x):
        x = self.backbone(x).flatten(start_dim=1)
        z = self.projection_head(x)
        return z

    def training_step(self, batch, batch_index):
        x0, x1 = batch[0]
        z0 = self.forward(x0)
        z1 = self.forward(x1)
        loss = self.criterion(z0, z1)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06)


model = SimCLR()

transform = SimCLRTransform(input_size=32)
if args.smoke:
    dataset = digits.Digits(transform=transform)
    epochs, batch_size, num_workers = 2, 32, 0
else:
    dataset = torchvision.datasets.CIFAR10("datasets/cifar10", download=True, transform=transform)
    epochs, batch_size, num_workers = 10, 256, 8

dataloader = torch.utils.data.DataLoader(
    dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=num_workers
)

options = digits.STAGE if args.smoke else {"student": "resnet18:stem=small", "num_images": 1000}  # + lightly_distill
distillation = DistillationCallback(**options)  # + lightly_distill

accelerator = "gpu" if torch.cuda.is_available() else "cpu"
trainer = pl.Trainer(
    max_epochs=epochs,
    devices=1,
    accelerator=accelerator,
    default_root_dir=args.out,
    callbacks=[distillation],  # + lightly_distill
)
trainer.fit(model=model, train_dataloaders=dataloader)

held_out = distillation.synthetic.provenance["heldout_loss"]  # + lightly_distill
print("Held-out loss: {initial:.4f} -> {final:.4f}".format(**held_out))  # + lightly_distill
print(f"Results: {trainer.log_dir}")
