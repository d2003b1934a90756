"""Metrics on a matrix worked by hand, and against their formulas written as loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cl_runner.config.schema import Eval
from cl_runner.functional import metrics
from cl_runner.functional.metrics import Matrix, intransigence
from cl_runner.results.columns import formulas
from cl_runner.results.matrices import summarise

steady = settings(max_examples=60, deadline=None, derandomize=True, database=None)
METRICS = formulas("matrix")
JOINT = [0.95, 0.9, 0.95]
R = np.array(
    [
        [0.10, 0.20, 0.30],  # untrained
        [0.90, 0.85, 0.20],  # task 2 is solved better before it was trained than after
        [0.95, 0.80, 0.40],  # task 1 gets better while task 2 is trained
        [0.60, 0.50, 0.90],
    ]
)


def accuracy_matrices(T: int | None = None) -> st.SearchStrategy[Matrix]:
    sizes = st.integers(2, 6) if T is None else st.just(T)
    fraction = st.floats(0, 1, width=32)
    return sizes.flatmap(lambda T: arrays(np.float64, (T + 1, T), elements=fraction))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ACC", (0.60 + 0.50 + 0.90) / 3),
        ("BWT", ((0.60 - 0.90) + (0.50 - 0.80)) / 2),
        ("FWT", ((0.85 - 0.20) + (0.40 - 0.30)) / 2),
        ("forgetting", ((0.95 - 0.60) + (0.80 - 0.50)) / 2),
        ("learning_accuracy", (0.90 + 0.80 + 0.90) / 3),
        ("average_incremental_accuracy", (0.90 + (0.95 + 0.80) / 2 + 2.0 / 3) / 3),
        ("next_task_accuracy", (0.85 + 0.40) / 2),  # not 0.10, of the untrained network
    ],
)
def test_by_hand(name: str, expected: float) -> None:
    assert METRICS[name](R) == pytest.approx(expected, abs=1e-15)
    assert METRICS[name](R.tolist()) == METRICS[name](R)
    assert summarise(R)[name] == METRICS[name](R)


def test_by_hand_with_a_joint_bound_and_per_task() -> None:
    expected = ((0.95 - 0.90) + (0.90 - 0.80) + (0.95 - 0.90)) / 3
    assert intransigence(R, JOINT) == pytest.approx(expected)
    np.testing.assert_allclose(metrics.average_accuracy(R), [0.90, (0.95 + 0.80) / 2, 2.0 / 3])


def by_loops(R: Matrix) -> dict[str, float]:
    """The papers' formulas with tasks counted from 1, as sums in plain Python."""
    T = R.shape[1]

    def at(i: int, j: int) -> float:
        return float(R[i, j - 1])

    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    acc = [mean([at(k, j) for j in range(1, k + 1)]) for k in range(1, T + 1)]
    return {
        "ACC": acc[-1],
        "BWT": mean([at(T, i) - at(i, i) for i in range(1, T)]),
        "FWT": mean([at(i - 1, i) - at(0, i) for i in range(2, T + 1)]),
        "forgetting": mean([max(at(k, j) for k in range(j, T)) - at(T, j) for j in range(1, T)]),
        "learning_accuracy": mean([at(i, i) for i in range(1, T + 1)]),
        "average_incremental_accuracy": mean(acc),
        "next_task_accuracy": mean([at(k, k + 1) for k in range(1, T)]),
    }


@steady
@given(accuracy_matrices())
def test_any_matrix_against_the_formulas(R: Matrix) -> None:
    before = R.copy()
    assert summarise(R) == pytest.approx(by_loops(R), abs=1e-12)
    np.testing.assert_array_equal(R, before)  # the argument is not padded or sorted in place
    # The maximum is no less than the accuracy just after training.
    assert metrics.forgetting(R) >= -metrics.bwt(R) - 1e-12


@steady
@given(accuracy_matrices(), st.floats(-1, 1))
def test_a_shift_of_all_accuracies_moves_levels_and_no_differences(R: Matrix, shift: float) -> None:
    before, after = summarise(R), summarise(R + shift)
    for name in METRICS:
        moved = 0.0 if name in ("BWT", "FWT", "forgetting") else shift
        assert after[name] == pytest.approx(before[name] + moved, abs=1e-12)
    assert intransigence(R + shift, R[-1] + shift) == pytest.approx(intransigence(R, R[-1]))


@steady
@given(accuracy_matrices(5), st.permutations(range(4)))
def test_the_order_of_columns_does_not_matter_to_acc(R: Matrix, order: list[int]) -> None:
    assert metrics.acc(R[:, [*order, 4]]) == pytest.approx(metrics.acc(R), abs=1e-15)


@steady
@given(accuracy_matrices(5), st.permutations([2, 3, 4]))
def test_the_order_of_evaluations_between_training_and_the_end_does_not_matter_to_forgetting(
    R: Matrix, rows: list[int]
) -> None:
    # For a task that is forgotten after it was trained first, only the best of them counts.
    R[:, 1:] = R[-1, 1:]  # the other tasks' columns are constant: they contribute 0
    assert metrics.forgetting(R[[0, 1, *rows, 5]]) == pytest.approx(metrics.forgetting(R))


def test_a_task_that_keeps_its_accuracy_is_not_forgotten() -> None:
    constant = np.full((4, 3), 0.7)
    assert metrics.forgetting(constant) == metrics.bwt(constant) == metrics.fwt(constant) == 0
    mixed = R.copy()
    mixed[:, 0] = 0.7  # half of the mean is 0 now
    assert metrics.forgetting(mixed) == pytest.approx((0.80 - 0.50) / 2)


CELLS: dict[str, set[tuple[int, int]]] = {  # (after task, column) that a metric reads, for T = 3
    "ACC": {(3, 0), (3, 1), (3, 2)},
    "BWT": {(3, 0), (3, 1), (1, 0), (2, 1)},
    "FWT": {(1, 1), (2, 2), (0, 1), (0, 2)},
    "forgetting": {(1, 0), (2, 0), (3, 0), (2, 1), (3, 1)},  # no column of the newest task
    "learning_accuracy": {(1, 0), (2, 1), (3, 2)},
    "average_incremental_accuracy": {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)},
    "next_task_accuracy": {(1, 1), (2, 2)},
}


@pytest.mark.parametrize("name", METRICS)
def test_what_was_not_measured_spoils_the_metrics_that_need_it_and_no_other(name: str) -> None:
    for cell in np.ndindex(R.shape):
        unmeasured = R.copy()
        unmeasured[cell] = np.nan
        value = METRICS[name](unmeasured)
        if cell in CELLS[name]:
            assert math.isnan(value)
        else:
            assert value == METRICS[name](R)


MEASURED = {  # by eval.tasks, what is there for T = 3; FWT needs row 0
    "all": {*METRICS},
    "seen": {*METRICS} - {"FWT"},
    "last:3": {*METRICS} - {"FWT"},
    "last:2": {"learning_accuracy", "next_task_accuracy"},
    "last:1": {"learning_accuracy", "next_task_accuracy"},
    "none": set(),
}


@pytest.mark.parametrize("tasks", MEASURED)
def test_what_is_evaluated_decides_which_metrics_there_are(tasks: str) -> None:
    """Those that are there are what they are where everything is evaluated."""
    cells = np.full(R.shape, np.nan)
    for done in range(4):
        shown = Eval(tasks=tasks).shown(done, 3)
        cells[done, shown.start : shown.stop] = R[done, shown.start : shown.stop]
    values = summarise(cells)
    assert {name for name, v in values.items() if not math.isnan(v)} == MEASURED[tasks]
    for name in MEASURED[tasks]:
        assert values[name] == METRICS[name](R)
    assert Eval(tasks=tasks).whole(3) == ("ACC" in MEASURED[tasks])


def test_online_accuracy_is_a_mean_over_samples() -> None:
    """Not over parts of the stream, which may differ in size."""
    assert metrics.online_accuracy([(10, 1), (30, 27), (0, 0)]) == pytest.approx(28 / 40)
    assert math.isnan(metrics.online_accuracy([])) and math.isnan(metrics.online_accuracy([(0, 0)]))


def test_intransigence_is_nan_without_its_bound_or_its_diagonal() -> None:
    assert math.isnan(intransigence(R, [0.9, math.nan, 0.9]))
    unmeasured = R.copy()
    unmeasured[2, 1] = np.nan
    assert math.isnan(intransigence(unmeasured, JOINT))


def test_one_task_has_accuracies_and_nothing_to_forget() -> None:
    values = summarise([[0.1], [0.8]])
    needy = ("BWT", "FWT", "forgetting", "next_task_accuracy")
    assert all(math.isnan(values[name]) for name in needy)
    assert values["ACC"] == values["learning_accuracy"] == 0.8
    assert values["average_incremental_accuracy"] == 0.8


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 3), (5, 3), (4, 3, 1), ()])
@pytest.mark.parametrize("name", METRICS)
def test_a_wrong_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(T \+ 1, T\)"):
        METRICS[name](np.zeros(shape))


@pytest.mark.parametrize("length", [1, 2, 4])
def test_a_joint_bound_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="shape"):
        intransigence(R, [0.9] * length)


# Within tasks: three tasks, two steps of the second and one of the third looked at.
ENDS = np.array([[0.1, 0.1, 0.1], [0.9, 0.2, 0.1], [0.8, 0.9, 0.3], [0.7, 0.6, 0.8]])
CURVE = [[1, 5, 0.3, 0.4, 0.0], [1, 10, 0.5, 0.7, 0.0], [2, 5, 0.75, 0.5, 0.4]]


def test_min_acc_is_the_worst_since_a_task_was_learnt():
    """Not what was before, nor at its own end: task 1 fell to 0.3 within task 2, task 2 to 0.5."""
    assert metrics.min_acc(ENDS, CURVE) == pytest.approx((0.3 + 0.5) / 2)
    assert metrics.min_acc(ENDS, []) == pytest.approx((0.7 + 0.6) / 2)  # R alone


def test_worst_case_acc_takes_the_new_task_as_it_is():
    assert metrics.worst_case_acc(ENDS, CURVE) == pytest.approx(0.8 / 3 + 2 / 3 * 0.4)
    assert metrics.worst_case_acc([[0.1], [0.9]], []) == 0.9
    assert math.isnan(metrics.min_acc([[0.1], [0.9]], []))


def test_anytime_accuracy_is_a_mean_over_all_evaluations():
    within = [(0.3 + 0.4) / 2, (0.5 + 0.7) / 2, (0.75 + 0.5 + 0.4) / 3]
    ends = [0.9, (0.8 + 0.9) / 2, (0.7 + 0.6 + 0.8) / 3]
    expected = sum(within + ends) / 6
    assert metrics.average_anytime_accuracy(ENDS, CURVE) == pytest.approx(expected)
    assert metrics.average_anytime_accuracy(ENDS, CURVE[::-1]) == pytest.approx(expected)
    assert metrics.average_anytime_accuracy(ENDS, []) == pytest.approx(
        metrics.average_incremental_accuracy(ENDS)
    )


def test_two_tasks_have_an_old_one():
    assert metrics.worst_case_acc([[0.1, 0.1], [0.9, 0.1], [0.4, 0.8]], []) == pytest.approx(0.6)


def test_evaluations_are_in_order_and_say_which_task_is_under_way():
    curve = [[1, 10, 0.5, 0.7, 0.0], [0, 3, 0.6, 0.1, 0.2], [1, 1, 0.9, 0.4, 0.0]]
    k, A = metrics.evaluations(ENDS, curve)
    assert k.tolist() == [1, 1, 2, 2, 2, 3]
    assert A[:, 0].tolist() == [0.6, 0.9, 0.9, 0.5, 0.8, 0.7]
    assert A[:, 1].tolist() == [0.1, 0.2, 0.4, 0.7, 0.9, 0.6]


def test_a_run_that_is_not_complete_has_no_anytime_metrics():
    R = ENDS.copy()
    R[2:] = np.nan
    values = summarise(R, CURVE[:2])
    assert all(math.isnan(values[name]) for name in formulas("curve"))
