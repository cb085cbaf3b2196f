"""How much a backbone knows of a labelled task: neighbours, a linear classifier, fine-tuning; and the table of probes.

Another probe is an entry of `PROBES`. Help, checks and evaluation read all that they know of it there.

Shapes: n labelled images for training, k for testing, p features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from lightly_distill.evaluation import gpu_probes
from lightly_distill.evaluation.data_free import data_free_accuracy
from lightly_distill.evaluation.finetune import finetune_accuracy
from lightly_distill.evaluation.trial import Trial

# scikit-learn's names; fixed, so that nothing is chosen by looking at test images
LOGISTIC: dict[str, Any] = {"C": 0.1, "tol": 1e-4, "max_iter": 2000}
NEIGHBOURS = 5


@dataclass(frozen=True)
class Probe:
    """One way to try a pre-trained backbone on a labelled task.

    Attributes:
        words: How, for --help.
        accuracy: From a trial to the accuracy in [0, 1].
        trains: Whether it trains the backbone, which the target, being frozen, is not for.
        needs_images: Whether it looks at the images of the arm, `Trial.transfer`; an arm without images is left out.
    """

    words: str
    accuracy: Callable[[Trial], float]
    trains: bool = False
    needs_images: bool = False


def knn_accuracy(train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any], test_labels: NDArray[Any]) -> float:
    """Accuracy of the nearest neighbours by cosine among labelled features, in [0, 1]."""
    classifier = KNeighborsClassifier(min(NEIGHBOURS, len(train)), metric="cosine", weights="distance")
    with _one_thread():
        return float(classifier.fit(train, labels).score(test, test_labels))


def linear_accuracy(train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any], test_labels: NDArray[Any]) -> float:
    """Accuracy of a logistic regression on standardised features, in [0, 1]."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(**LOGISTIC))
    with _one_thread():
        return float(classifier.fit(train, labels).score(test, test_labels))


def _knn(trial: Trial) -> float:
    train, test = trial.features
    if trial.device.type != "cpu":
        return gpu_probes.knn_accuracy(*_on_device(trial, train, test), NEIGHBOURS)
    return knn_accuracy(train, trial.labels.numpy(), test, trial.test_labels.numpy())


def _linear(trial: Trial) -> float:
    return _linear_of(trial, *trial.features)


def _linear_pooled(trial: Trial) -> float:
    return _linear_of(trial, *trial.pooled)


def _linear_of(trial: Trial, train: NDArray[Any], test: NDArray[Any]) -> float:
    if trial.device.type != "cpu":
        return gpu_probes.linear_accuracy(*_on_device(trial, train, test), **LOGISTIC)
    return linear_accuracy(train, trial.labels.numpy(), test, trial.test_labels.numpy())


def _on_device(trial: Trial, train: NDArray[Any], test: NDArray[Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = (torch.from_numpy(train), trial.labels, torch.from_numpy(test), trial.test_labels)
    first, labels, second, test_labels = (part.to(trial.device) for part in parts)
    return first, labels, second, test_labels


PROBES: dict[str, Probe] = {
    "knn": Probe("nearest neighbours", _knn),
    "linear": Probe("logistic regression on the features", _linear),
    "linear-pooled": Probe("on features averaged over positions", _linear_pooled),
    "finetune": Probe("all weights trained on the labels", finetune_accuracy, trains=True),
    "data-free": Probe(
        "a fresh student that only sees a classifier's answers to the set's images",
        data_free_accuracy,
        needs_images=True,
    ),
}


def _one_thread() -> threadpool_limits:
    # The problems are small. On busy cores the threads of a BLAS wait for each other: 4.5 s a fit instead of 0.04.
    return threadpool_limits(limits=1, user_api="blas")
