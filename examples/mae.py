# MAE, and what its encoder learned distilled into 1000 images.
#
# Without the lines marked "# + lightly_distill" this is an ordinary Lightly script.
# `python examples/mae.py --smoke` shows it at work in seconds, on a laptop and without a download.

import argparse
from pathlib import Path

import digits
import torch
import torchvision
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.transforms.mae_transform import MAETransform
from timm.models.vision_transformer import VisionTransformer, vit_base_patch32_224
from torch import nn

from lightly_distill import DistillationStage  # + lightly_distill

parser = argparse.ArgumentParser()
parser.add_argument("--smoke", action="store_true", help="few steps on scikit-learn's digits")
parser.add_argument("--out", type=Path, default=Path("runs/mae"), help="folder for the results")
args = parser.parse_args()

torch.manual_seed(0)


class MAE(nn.Module):
    def __init__(self, vit, decoder_dim, decoder_depth):
        super().__init__()
        self.mask_ratio = 0.75
        self.patch_size = vit.patch_embed.patch_size[0]
        self.backbone = MaskedVisionTransformerTIMM(vit=vit)
        self.sequence_length = self.backbone.sequence_length
        self.decoder_embed = nn.Linear(vit.embed_dim, decoder_dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            embed_dim=decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_dim // 32,
        )
        self.prediction_head = nn.Linear(decoder_dim, self.patch_size**2 * 3)

    def forward_decoder(self, x_encoded, idx_keep, idx_mask):
        x = self.decoder_embed(x_encoded)
        x_all = x.new_zeros(len(x), self.sequence_length, x.shape[-1])
        x_all = utils.set_at_index(x_all, idx_keep, x)
        x_decoded = self.decoder(x_all, idx_mask=idx_mask)  # puts its mask token where there is nothing yet
        return self.prediction_head(utils.get_at_index(x_decoded, idx_mask))

    def forward(self, images):
        idx_keep, idx_mask = utils.random_token_mask(
            size=(len(images), self.sequence_length), mask_ratio=self.mask_ratio, device=images.device
        )
        x_encoded = self.backbone.encode(images=images, idx_keep=idx_keep)
        x_pred = self.forward_decoder(x_encoded, idx_keep, idx_mask)
        patches = utils.patchify(images, self.patch_size)
        target = utils.get_at_index(patches, idx_mask - 1)  # the class token is no patch
        return x_pred, target


if args.smoke:
    vit = VisionTransformer(img_size=32, patch_size=4, embed_dim=96, depth=3, num_heads=3)
    model = MAE(vit, decoder_dim=64, decoder_depth=1)
    dataset = digits.Digits(transform=MAETransform(input_size=32))
    epochs, batch_size, num_workers = 2, 32, 0
else:
    vit = vit_base_patch32_224()
    model = MAE(vit, decoder_dim=512, decoder_depth=8)
    dataset = torchvision.datasets.CIFAR10("datasets/cifar10", download=True, transform=MAETransform())
    epochs, batch_size, num_workers = 10, 256, 8

device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)

dataloader = torch.utils.data.DataLoader(
    dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=num_workers
)

criterion = nn.MSELoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4)

print("Starting Training")
for epoch in range(epochs):
    total_loss = 0
    for batch in dataloader:
        images = batch[0][0].to(device)  # a single view
        predictions, targets = model(images)
        loss = criterion(predictions, targets)
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
