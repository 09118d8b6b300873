"""The table of benchmarks/exactness.py, and how it judges resumed runs. Nothing is trained."""

import pytest

from benchmarks.exactness import STEPS_PER_EPOCH, Interrupted, Row, format_table


def make_row(
    expected: float, peer_value: float, our_value: float, tolerance: float = 0.0, fact: str = "F1"
) -> Row:
    return Row(
        fact=fact,
        peer="Trainer",
        what_was_done="16 rows as 4x4",
        quantity="loss",
        expected=expected,
        peer_value=peer_value,
        our_value=our_value,
        tolerance=tolerance,
    )


@pytest.mark.parametrize(
    ("expected", "our_value", "tolerance", "is_exact"),
    [
        (2.0, 2.0, 0.0, True),
        (2.0, 2.00001, 0.0, False),
        (2.0, 2.00001, 1e-5, True),
        (2.0, 2.0001, 1e-5, False),
    ],
)
def test_a_row_has_both_differences_and_tells_ours_from_rounding(
    expected, our_value, tolerance, is_exact
):
    row = make_row(expected, 8.0, our_value, tolerance)
    assert row.differences == (6.0, pytest.approx(our_value - expected))
    assert row.is_exact == is_exact


def test_only_zero_is_exact_where_zero_is_expected():
    assert not make_row(0, 0, 1e-12, tolerance=1e-5).is_exact


def test_the_table_shows_zero_only_for_zero():
    rows = [make_row(1.25, 5.0, 1.25), make_row(0, 6e-9, 0, fact="F5")]
    titles, rule, first, second = format_table(rows).splitlines()
    assert len({line.count("|") for line in (titles, rule, first, second)}) == 1
    assert first == "| F1 | 16 rows as 4x4 | loss | 1.25 | Trainer | 5 | 3.75 | 1.25 | 0 |"
    assert second == "| F5 | 16 rows as 4x4 | loss | 0 | Trainer | 6.0e-09 | 6.0e-09 | 0 | 0 |"


def test_a_resumed_run_is_compared_with_the_uninterrupted_one():
    # Two epochs with one row per step, interrupted after the second step of the second epoch.
    all_steps = [[str(step % STEPS_PER_EPOCH)] for step in range(2 * STEPS_PER_EPOCH)]
    resumed_steps = all_steps[STEPS_PER_EPOCH + 2 :]

    same = make_interrupted(all_steps, resumed_steps)
    assert (same.num_other_batches, same.num_repeated_rows) == (0, 0)

    # Row 0 was already read in the first step of that epoch.
    other = make_interrupted(all_steps, [["0"], *resumed_steps[1:]])
    assert (other.num_other_batches, other.num_repeated_rows) == (1, 1)


def make_interrupted(all_steps: list[list[str]], resumed_steps: list[list[str]]) -> Interrupted:
    return Interrupted(
        all_steps=all_steps,
        resumed_steps=resumed_steps,
        max_difference=0.0,
        num_differing=0,
        num_tensors=1,
    )
