"""How alike two engines' tokens are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.evaluation.comparison import exact_match, token_agreement, token_fidelity

ROWS = st.lists(st.integers(0, 4), max_size=6)


def test_positions_are_compared_over_the_longer_row() -> None:
    assert token_agreement([1, 2, 3], [1, 2, 3]) == 1
    assert token_agreement([1, 2, 3], [1, 9, 3]) == 2 / 3
    assert token_agreement([1, 2], [1, 2, 3, 4]) == 0.5
    assert token_agreement([9, 1, 2], [1, 2]) == 0  # shifted by one, nothing stands where it stood
    assert token_agreement([], [1]) == 0
    assert token_agreement([], []) == 1


def test_an_exact_match_is_every_token_and_no_more() -> None:
    assert exact_match([1, 2], [1, 2]) == 1
    assert exact_match((1, 2), [1, 2]) == 1
    assert exact_match([1, 2], [1, 2, 3]) == 0
    assert exact_match([1, 2], [2, 1]) == 0


@given(ROWS, ROWS)
def test_both_are_symmetric_and_agree_on_what_is_the_same(ours: list[int], theirs: list[int]) -> None:
    share = token_agreement(ours, theirs)
    assert share == token_agreement(theirs, ours)
    assert 0 <= share <= 1
    assert (share == 1) == (exact_match(ours, theirs) == 1) == (ours == theirs)


def test_the_means_over_samples_come_with_intervals() -> None:
    baseline = [[1, 2], [3], [], [4, 5, 6, 7]] * 25
    candidate = [[1, 2], [3, 9], [], [4, 5, 6, 8]] * 25
    agreement, match = token_fidelity(baseline, candidate, [row // 4 for row in range(100)], same=False, seed=0)
    assert (agreement.metric, match.metric) == ("token_agreement", "exact_match")
    assert agreement.value == (1 + 0.5 + 1 + 0.75) / 4
    assert match.value == 0.5
    for each in (agreement, match):
        assert 0 <= each.low < each.value < each.high <= 1
        assert (each.n, each.unit) == (100, "share")


def test_an_engine_is_exactly_as_itself_and_equal_answers_of_two_are_not_that_certain() -> None:
    tokens, groups = [[1, 2], [3]], [0, 1]
    for each in token_fidelity(tokens, tokens, groups, same=True, seed=0):
        assert (each.low, each.value, each.high) == (1, 1, 1)
    for each in token_fidelity(tokens, tokens, groups, same=False, seed=0):
        assert each.low < each.value == each.high == 1
