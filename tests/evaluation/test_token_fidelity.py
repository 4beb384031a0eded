"""How alike two engines' tokens are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.evaluation.token_fidelity import exact_match, token_agreement

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
