"""The table of benchmarks/exactness.py: what it says of values, and of interrupted runs. Nothing is trained."""

import pytest

from benchmarks.exactness import EPOCH, Interrupted, Row, table


@pytest.mark.parametrize(
    ("right", "ours", "rounding", "exact"),
    [(2.0, 2.0, 0.0, True), (2.0, 2.00001, 0.0, False), (2.0, 2.00001, 1e-5, True), (2.0, 2.0001, 1e-5, False)],
)
def test_a_row_knows_both_differences_and_whether_ours_is_rounding(right, ours, rounding, exact):
    row = Row("F1", "Trainer", "16 rows as 4x4", "loss", right, 8.0, ours, rounding)
    assert row.differences == (6.0, pytest.approx(ours - right))
    assert row.exact == exact


def test_nothing_but_zero_is_exact_where_the_right_value_is_zero():
    assert not Row("F5", "Trainer", "killed", "weights", 0, 0, 1e-12, 1e-5).exact


def test_the_table_shows_zero_only_for_zero():
    rows = [Row("F1", "Trainer", "as 4x4", "loss", 1.25, 5.0, 1.25), Row("F5", "Trainer", "killed", "w", 0, 6e-9, 0)]
    head, rule, first, second = table(rows).splitlines()
    assert len({line.count("|") for line in (head, rule, first, second)}) == 1
    assert first == "| F1 | as 4x4 | loss | 1.25 | Trainer | 5 | 3.75 | 1.25 | 0 |"
    assert second == "| F5 | killed | w | 0 | Trainer | 6.0e-09 | 6.0e-09 | 0 | 0 |"


def test_batches_and_rows_are_compared_with_those_of_the_uninterrupted_run():
    # Two epochs of one row a step, interrupted after the second step of the second one.
    whole = [[str(step % EPOCH)] for step in range(2 * EPOCH)]
    later = whole[EPOCH + 2 :]
    same = Interrupted(whole, later, 0.0, 0, 1)
    assert (same.other_batches, same.repeated_rows) == (0, 0)
    other = Interrupted(whole, [["0"], *later[1:]], 0.0, 0, 1)  # row 0 was seen in the first step of that epoch
    assert (other.other_batches, other.repeated_rows) == (1, 1)
