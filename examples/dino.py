# DINO, and what its teacher learned distilled into 1000 images.
#
# Without the lines marked "# + lightly_distill" this is an ordinary Lightly script.
# `python examples/dino.py --smoke` shows it at work in seconds, on a laptop and without a download.

import argparse
import copy
from pathlib import Path

import digits
import torch
import torchvision
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.dino_transform import DINOTransform
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from lightly_distill import DistillationStage  # + lightly_distill

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="few steps on scikit-learn's digits")
parser.add_argument("--out", type=Path, default=Path("runs/dino"), help="folder for the results")
args = parser.parse_args()

torch.manual_seed(0)


class DINO(nn.Module):
    def __init__(self, backbone, input_dim):
        super().__init__()
        self.student_backbone = backbone
        self.student_head = DINOProjectionHead(input_dim, 512, 64, 2048, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(backbone)
        self.teacher_head = DINOProjectionHead(input_dim, 512, 64, 2048)
        deactivate_requires_grad(self.teacher_backbone)
        deactivate_requires_grad(self.teacher_head)

    def forward(self, x):
        y = self.student_backbone(x).flatten(start_dim=1)
        z = self.student_head(y)
        return z

    def forward_teacher(self, x):
        y = self.teacher_backbone(x).flatten(start_dim=1)
        z = self.teacher_head(y)
        return z


resnet = torchvision.models.resnet18()
backbone = nn.Sequential(*list(resnet.children())[:-1])
model = DINO(backbone, input_dim=512)

device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)

transform = DINOTransform(global_crop_size=32, local_crop_size=16)
if args.smoke:
    dataset = digits.Digits(transform=transform)
    epochs, batch_size, num_workers = 1, 32, 0
else:
    dataset = torchvision.datasets.CIFAR10("datasets/cifar10", download=True, transform=transform)
    epochs, batch_size, num_workers = 10, 64, 8

dataloader = torch.utils.data.DataLoader(
    dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=num_workers
)

criterion = DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)
criterion = criterion.to(device)  # it holds the center
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

print("Starting Training")
for epoch in range(epochs):
    total_loss = 0
    momentum = cosine_schedule(epoch, epochs, 0.996, 1)
    for batch in dataloader:
        views = [view.to(device) for view in batch[0]]
        update_momentum(model.student_backbone, model.teacher_backbone, m=momentum)
        update_momentum(model.student_head, model.teacher_head, m=momentum)
        teacher_out = [model.forward_teacher(view) for view in views[:2]]  # the global views
        student_out = [model.forward(view) for view in views]
        loss = criterion(teacher_out, student_out, epoch=epoch)
        total_loss += loss.detach()
        loss.backward()
        # the paper keeps the last layer of the student's head still for the first epoch
        model.student_head.cancel_last_layer_gradients(current_epoch=epoch)
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
