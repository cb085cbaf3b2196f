import pytest

from lightly_distill.evaluation.results import DISTILLED, RANDOM_OF_BYTES, ArmResult, Evaluation, Worth, worth_of


@pytest.mark.parametrize(
    ("accuracy", "curve", "expected"),
    [
        (0.5, [(1, 0.5), (2, 0.6)], Worth(1)),
        (0.55, [(1, 0.5), (4, 0.6)], Worth(2)),  # half way, by the logarithm of the bytes
        (0.4, [(1, 0.5), (2, 0.6)], Worth(1, "<")),
        (0.7, [(1, 0.5), (2, 0.6)], Worth(2, ">")),
        (0.6, [(1, 0.5), (2, 0.6)], Worth(2)),  # reached there, and not passed
        (0.5, [(1, 0.5)], Worth(1)),
        (0.5, [(1, 0.5), (2, 0.5)], Worth(1)),
        (0.65, [(1, 0.5), (2, 0.6), (5, 0.55), (8, 0.7)], Worth(4)),  # a larger set that is worse is noise
        (0.9, [(1, 0.5), (2, 0.6), (5, 0.55)], Worth(5, ">")),
    ],
)
def test_worth_is_read_off_where_random_images_first_reach_the_accuracy(
    accuracy: float, curve: list[tuple[float, float]], expected: Worth
) -> None:
    found = worth_of(accuracy, curve)
    assert found.bound == expected.bound and found.times == pytest.approx(expected.times)


def test_worth_needs_the_set_and_two_sizes_of_random_images() -> None:
    def evaluation(**arms: tuple[int, float]) -> Evaluation:
        made = {name: ArmResult(1, size, values={"t/knn": [value]}) for name, (size, value) in arms.items()}
        return Evaluation("s", {}, [0], made)

    once, twice = RANDOM_OF_BYTES, f"{RANDOM_OF_BYTES}-x2"
    assert evaluation(**{DISTILLED: (100, 0.5), once: (100, 0.4)}).worth("t/knn") is None
    assert evaluation(**{once: (100, 0.4), twice: (200, 0.6)}).worth("t/knn") is None
    whole = evaluation(**{DISTILLED: (100, 0.5), once: (100, 0.4), twice: (400, 0.6)})
    assert str(whole.worth("t/knn")) == "2" and whole.worth("t/linear") is None
    # by what they take on disk, not by their names
    assert str(evaluation(**{DISTILLED: (100, 0.5), twice: (50, 0.4), once: (200, 0.6)}).worth("t/knn")) == "1"


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("/x/lightly_distill/__main__.py", "lightly-distill evaluate --task 'my photos'"),
        ("/x/bin/lightly-distill", "lightly-distill evaluate --task 'my photos'"),
        ("/x/mine.py", "mine.py evaluate --task 'my photos'"),
    ],
)
def test_the_command_is_one_that_can_be_typed_again(monkeypatch: pytest.MonkeyPatch, program: str, told: str) -> None:
    monkeypatch.setattr("sys.argv", [program, "evaluate", "--task", "my photos"])
    assert Evaluation("s", {}, [0], {}).to_dict()["command"] == told
