"""What `--smoke` needs: a small image set that comes with scikit-learn, and a stage that ends in seconds."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

# Enough to see every part work, far too little for a good set.
STAGE = {
    "student": "convnet_16_32_64",
    "num_images": 20,
    "steps": 20,
    "batch_size": 64,
    "pool": {"size": 3, "max_age": 20},
}


class Digits(Dataset):
    """Handwritten digits at random places of 32x32 RGB pictures, in the way of a torchvision dataset."""

    def __init__(self, transform=None, num_images=192):
        self.transform = transform
        digits = load_digits()
        corners = np.random.default_rng(0).integers(0, 13, size=(num_images, 2))
        self.images = []
        for digit, corner in zip(digits.images, corners, strict=False):
            image = Image.new("RGB", (32, 32))
            image.paste(Image.fromarray((digit * 255 / 16).astype("uint8")).resize((20, 20)), tuple(corner.tolist()))
            self.images.append(image)
        self.targets = digits.target[:num_images].tolist()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        return image if self.transform is None else self.transform(image), self.targets[index]
