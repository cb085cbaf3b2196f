"""How much a backbone knows of a labelled task: neighbours, a linear classifier, fine-tuning; and the table of probes.

Another probe is a function of a `Trial` and an entry of `PROBES`.

Shapes: n labelled images for training, k for testing, p features.
"""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from lightly_distill.evaluation.data_free import data_free_accuracy
from lightly_distill.evaluation.finetune import finetune_accuracy
from lightly_distill.evaluation.trial import Trial

REGULARISATION = 0.1  # scikit-learn's C; fixed, so that nothing is chosen by looking at test images

Probe = Callable[[Trial], float]


def knn_accuracy(
    train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any], test_labels: NDArray[Any], neighbours: int = 5
) -> float:
    """Accuracy of the nearest neighbours by cosine among labelled features, in [0, 1]."""
    classifier = KNeighborsClassifier(min(neighbours, len(train)), metric="cosine", weights="distance")
    with _one_thread():
        return float(classifier.fit(train, labels).score(test, test_labels))


def linear_accuracy(train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any], test_labels: NDArray[Any]) -> float:
    """Accuracy of a logistic regression on standardised features, in [0, 1]."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=2000))
    with _one_thread():
        return float(classifier.fit(train, labels).score(test, test_labels))


def _knn(trial: Trial) -> float:
    return knn_accuracy(trial.features[0], trial.labels.numpy(), trial.features[1], trial.test_labels.numpy())


def _linear(trial: Trial) -> float:
    return linear_accuracy(trial.features[0], trial.labels.numpy(), trial.features[1], trial.test_labels.numpy())


def _linear_pooled(trial: Trial) -> float:
    return linear_accuracy(trial.pooled[0], trial.labels.numpy(), trial.pooled[1], trial.test_labels.numpy())


PROBES: dict[str, Probe] = {
    "knn": _knn,
    "linear": _linear,
    "linear-pooled": _linear_pooled,
    "finetune": finetune_accuracy,
    "data-free": data_free_accuracy,
}


def _one_thread() -> threadpool_limits:
    # The problems are small. On busy cores the threads of a BLAS wait for each other: 4.5 s a fit instead of 0.04.
    return threadpool_limits(limits=1, user_api="blas")
