"""How much a frozen backbone's features know of a labelled task: nearest neighbours and a linear classifier."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

CHUNK = 256  # images to the backbone at a time
REGULARISATION = 0.1  # scikit-learn's C; fixed, so that nothing is chosen by looking at test images


@torch.no_grad()
def features(backbone: nn.Module, images: Tensor) -> np.ndarray:
    """Returns the features of normalised images (n, 3, H, W), shape (n, p), in eval mode."""
    device = next(backbone.parameters()).device
    training = backbone.training
    parts = [backbone.eval()(chunk.to(device)).float().cpu() for chunk in torch.split(images, CHUNK)]
    backbone.train(training)
    return torch.cat(parts).numpy()


def knn_accuracy(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, neighbours: int = 5
) -> float:
    """Accuracy of the nearest neighbours by cosine among labelled features, in [0, 1]."""
    classifier = KNeighborsClassifier(min(neighbours, len(train)), metric="cosine", weights="distance")
    with _one_thread():
        return float(classifier.fit(train, labels).score(test, test_labels))


def linear_accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy of a logistic regression on standardised features, in [0, 1]."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=2000))
    with _one_thread():
        return float(classifier.fit(train, labels).score(test, test_labels))


def _one_thread() -> threadpool_limits:
    # The problems are small. On busy cores the threads of a BLAS wait for each other: 4.5 s a fit instead of 0.04.
    return threadpool_limits(limits=1, user_api="blas")
