"""The search for the fewest members that suffice, against exhaustive search."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from vlm_edge.quantization.fewest import fewest

ITEMS = tuple(range(9))


@given(
    st.permutations(ITEMS),
    st.lists(st.sets(st.sampled_from(ITEMS), max_size=3), min_size=1, max_size=4),
)
def test_what_is_found_suffices_and_nothing_of_it_can_go(ranked: list[int], clauses: list[set[int]]) -> None:
    """Monotone by construction: a choice suffices when it holds one of the sets whole."""

    def suffices(chosen: frozenset[int]) -> bool:
        return any(clause <= chosen for clause in clauses)

    found = fewest(ranked, suffices)
    assert found is not None
    assert suffices(frozenset(found))
    assert not any(suffices(frozenset(found) - {item}) for item in found)
    assert found == sorted(found, key=ranked.index)
    smallest = min(len(c) for n in range(10) for c in combinations(ITEMS, n) if suffices(frozenset(c)))
    if len(clauses) == 1:
        assert len(found) == smallest


@given(st.sets(st.sampled_from(ITEMS)), st.integers(0, 2**32))
def test_what_was_tried_and_suffices_is_returned_even_with_noise(wanted: set[int], salt: int) -> None:
    """Trials that contradict each other: whatever comes out was itself tried and sufficed."""
    passed: set[frozenset[int]] = set()

    def suffices(chosen: frozenset[int]) -> bool:
        noisy = hash((tuple(sorted(chosen)), salt)) % 4 == 0
        if chosen == frozenset(ITEMS) or (wanted <= chosen) != noisy:
            passed.add(chosen)
        return chosen in passed

    found = fewest(ITEMS, suffices)
    assert found is not None
    assert frozenset(found) in passed


def test_one_of_many_takes_few_trials_wherever_it_stands() -> None:
    for place in (0, 1, 37, 98, 99):
        tried: list[frozenset[int]] = []

        def suffices(chosen: frozenset[int], tried: list[frozenset[int]] = tried, place: int = place) -> bool:
            tried.append(chosen)
            return place in chosen

        assert fewest(range(100), suffices) == [place]
        assert len(set(tried)) <= 10


def test_none_and_all() -> None:
    assert fewest("abc", lambda _: True) == []
    assert fewest("abc", lambda _: False) is None
    assert fewest("abc", lambda chosen: len(chosen) == 3) == ["a", "b", "c"]
    assert fewest("", lambda _: False) is None
