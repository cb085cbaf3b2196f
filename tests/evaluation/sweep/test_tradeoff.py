import pytest

from lightly_distill.evaluation.results import ArmResult, Evaluation
from lightly_distill.evaluation.sweep import tradeoff


@pytest.mark.parametrize(
    ("accuracies", "recommended"),
    [
        ({50: 0.40, 100: 0.50, 200: 0.505, 500: 0.51}, 100),  # exactly a point below the best
        ({50: 0.40, 100: 0.499, 200: 0.505, 500: 0.51}, 200),
        ({50: 0.70, 100: 0.69, 200: 0.60}, 50),  # the best may be the smallest
        ({100: 0.69, 200: 0.70}, 100),  # 0.7 - 0.69 is more than 0.01 in floating point
        ({100: 0.3}, 100),
    ],
)
def test_the_smallest_set_within_a_point_of_the_best_is_recommended(
    accuracies: dict[int, float], recommended: int
) -> None:
    assert tradeoff.recommend(accuracies) == recommended


def test_how_much_may_be_lost_can_be_said() -> None:
    assert tradeoff.recommend({50: 0.4, 100: 0.5}, within=0.1) == 50
    assert tradeoff.recommend({50: 0.4, 100: 0.5}, within=0.0) == 100


@pytest.mark.parametrize(
    ("cost", "saved", "times"), [(100.0, 30.0, 4), (90.0, 30.0, 3), (1.0, 30.0, 1), (5.0, 0.0, None), (5.0, -1.0, None)]
)
def test_a_cost_is_paid_back_by_so_many_savings(cost: float, saved: float, times: int | None) -> None:
    assert tradeoff.break_even(cost, saved) == times
    if times is not None and times > 1:
        assert times * saved >= cost > (times - 1) * saved


def made(student: str, seconds: tuple[float, float], **values: list[float]) -> Evaluation:
    arms = {
        "distilled": ArmResult(10, 400, [seconds[0]] * 2, values),
        "full": ArmResult(100, 900, [seconds[1]] * 2, values),
    }
    return Evaluation(student, {}, [0, 1], arms)


def test_the_mean_is_over_tasks_and_students_seed_by_seed() -> None:
    one = made("a", (1, 9), **{"x/linear": [0.2, 0.4], "y/z/linear": [0.4, 0.6], "x/knn": [0.0, 0.0]})
    two = made("b", (1, 9), **{"x/linear": [0.6, 0.8], "y/z/linear": [0.8, 1.0], "x/knn": [0.0, 0.0]})
    assert tradeoff.mean_accuracies([one, two], "distilled", "linear") == pytest.approx([0.5, 0.7])
    assert tradeoff.mean_accuracies([one, two], "random", "linear") == []


def test_linear_decides_where_it_was_tried_else_the_first() -> None:
    def probes(*names: str) -> str:
        return tradeoff.deciding_probe([made("a", (1, 9), **{f"x/y/{name}": [0.1, 0.1] for name in names})])

    assert probes("knn", "linear-pooled", "linear@100", "linear") == "linear@100"
    assert probes("knn@10", "knn", "linear-pooled") == "knn@10"


def test_cost_and_savings_are_of_the_mean_student() -> None:
    cost = tradeoff.cost_of([made("a", (1, 9)), made("b", (3, 15))], making=41.0)
    assert cost == tradeoff.Cost(41.0, 2.0, 12.0, 400, 900)
    assert (cost.saved, cost.saved_bytes, cost.pays_after) == (10.0, 500, 5)
    result = made("a", (1, 9))
    del result.arms["full"]
    assert tradeoff.cost_of([result], 1.0) is None
