"""Promises: claims stand side by side, ballots push out, everything is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.node.promises import CLAIMS_PER_KEY, Promises
from dcache.record import Version, make_version

KEY, OTHER = b"ns\0k", b"ns\0other"
LIFE, PATIENCE = 60_000, 250


def v(n: int) -> Version:
    return make_version(n, 0, 1)


@pytest.fixture
def promises() -> Promises:
    return Promises(1_000, LIFE, PATIENCE)


def standing(promises: Promises, key: bytes = KEY, now: int = 0) -> list[Version]:
    promise = promises.find(key, now)
    return [] if promise is None else list(promise.standing)


# -- claims ------------------------------------------------------------------------------------------------------------


def test_nothing_is_promised_at_first(promises: Promises) -> None:
    assert promises.find(KEY, 0) is None
    assert len(promises) == 0


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 2, 1], [2, 3, 1]])
def test_claims_stand_side_by_side_in_whatever_order_they_come(promises: Promises, order: list[int]) -> None:
    for n in order:
        assert promises.claim(KEY, v(n), 0)
    promise = promises.find(KEY, 0)
    assert promise is not None
    assert set(promise.standing) == {v(1), v(2), v(3)}
    assert promise.top == v(3)


def test_claims_on_one_key_say_nothing_about_another(promises: Promises) -> None:
    promises.claim(KEY, v(1), 0)
    assert promises.find(OTHER, 0) is None


def test_a_claim_made_twice_stands_once_and_does_not_live_longer(promises: Promises) -> None:
    assert promises.claim(KEY, v(1), 0)
    assert promises.claim(KEY, v(1), LIFE - 1)
    assert standing(promises, now=LIFE - 1) == [v(1)]
    assert promises.find(KEY, LIFE) is None


def test_the_claims_on_a_key_are_bounded_and_the_lowest_goes(promises: Promises) -> None:
    for n in range(1, CLAIMS_PER_KEY + 2):
        assert promises.claim(KEY, v(n), 0)
    kept = standing(promises)
    assert len(kept) == CLAIMS_PER_KEY
    assert v(1) not in kept
    assert v(CLAIMS_PER_KEY + 1) in kept


def test_a_claim_below_a_full_set_is_not_called_promised(promises: Promises) -> None:
    for n in range(2, CLAIMS_PER_KEY + 2):
        promises.claim(KEY, v(n), 0)
    assert not promises.claim(KEY, v(1), 0)
    assert v(1) not in standing(promises)


def test_a_ballot_keeps_a_claim_out_while_it_is_young(promises: Promises) -> None:
    promises.ballot(KEY, v(1), 0)
    assert not promises.claim(KEY, v(2), PATIENCE - 1)
    assert standing(promises) == [v(1)]


def test_an_old_ballot_gives_way_to_a_higher_claim_only(promises: Promises) -> None:
    promises.ballot(KEY, v(5), 0)
    assert not promises.claim(KEY, v(4), PATIENCE)
    assert not promises.claim(KEY, v(5), PATIENCE)
    assert promises.claim(KEY, v(6), PATIENCE)
    promise = promises.find(KEY, PATIENCE)
    assert promise is not None
    assert (promise.standing, promise.ballot) == ((v(6),), False)


# -- ballots -----------------------------------------------------------------------------------------------------------


def test_a_ballot_pushes_out_lower_claims_at_once(promises: Promises) -> None:
    promises.claim(KEY, v(1), 0)
    promises.claim(KEY, v(2), 0)
    assert promises.ballot(KEY, v(3), 0) is None
    assert standing(promises) == [v(3)]


def test_a_ballot_below_a_claim_is_told_what_is_in_its_way(promises: Promises) -> None:
    promises.claim(KEY, v(3), 0)
    assert promises.ballot(KEY, v(2), PATIENCE * 2) == v(3)
    assert standing(promises) == [v(3)]


def test_a_young_ballot_is_left_alone_by_a_higher_one(promises: Promises) -> None:
    """Of two changes at once the second waits, instead of leaving the first half accepted."""
    promises.ballot(KEY, v(1), 0)
    assert promises.ballot(KEY, v(2), PATIENCE - 1) == v(1)
    assert standing(promises) == [v(1)]


def test_an_old_ballot_gives_way_to_a_higher_one_only(promises: Promises) -> None:
    promises.ballot(KEY, v(2), 0)
    assert promises.ballot(KEY, v(1), PATIENCE) == v(2)
    assert promises.ballot(KEY, v(3), PATIENCE) is None
    assert standing(promises) == [v(3)]


def test_a_ballot_asked_for_again_is_granted_again_and_is_not_young_again(promises: Promises) -> None:
    promises.ballot(KEY, v(1), 0)
    assert promises.ballot(KEY, v(1), PATIENCE - 1) is None
    assert promises.ballot(KEY, v(2), PATIENCE) is None


# -- ends --------------------------------------------------------------------------------------------------------------


def test_another_write_voids_everything_promised_on_its_key_alone(promises: Promises) -> None:
    promises.claim(KEY, v(1), 0)
    promises.claim(KEY, v(2), 0)
    promises.claim(OTHER, v(3), 0)
    promises.void(KEY)
    promises.void(KEY)
    assert promises.find(KEY, 0) is None
    assert standing(promises, OTHER) == [v(3)]


def test_an_accepted_claim_ends_the_lower_ones_and_leaves_the_higher(promises: Promises) -> None:
    for n in (1, 2, 3):
        promises.claim(KEY, v(n), 0)
    promises.redeemed(KEY, v(2))
    assert standing(promises) == [v(3)]
    promises.redeemed(KEY, v(3))
    assert promises.find(KEY, 0) is None


def test_an_accepted_ballot_leaves_nothing_behind(promises: Promises) -> None:
    promises.ballot(KEY, v(1), 0)
    promises.redeemed(KEY, v(1))
    assert len(promises) == 0


def test_a_prefix_voids_its_own_keys_only(promises: Promises) -> None:
    for key in (b"a\0x", b"a\0y", b"ab\0x", b"\0a"):
        promises.claim(key, v(1), 0)
    promises.void_prefix(b"a\0")
    assert [key for key in (b"a\0x", b"a\0y", b"ab\0x", b"\0a") if promises.find(key, 0)] == [b"ab\0x", b"\0a"]


def test_the_empty_prefix_voids_all(promises: Promises) -> None:
    promises.claim(KEY, v(1), 0)
    promises.ballot(OTHER, v(1), 0)
    promises.void_prefix(b"")
    assert len(promises) == 0


@pytest.mark.parametrize("kind", ["claim", "ballot"])
def test_a_promise_stands_for_its_life_and_no_longer(promises: Promises, kind: str) -> None:
    getattr(promises, kind)(KEY, v(1), 10)
    assert standing(promises, now=10 + LIFE - 1) == [v(1)]
    assert promises.find(KEY, 10 + LIFE) is None
    assert len(promises) == 0


def test_a_promise_that_is_over_is_in_nobodys_way(promises: Promises) -> None:
    promises.ballot(KEY, v(9), 0)
    assert promises.claim(KEY, v(1), LIFE)
    assert promises.ballot(KEY, v(2), 2 * LIFE) is None


def test_the_claims_on_a_key_live_on_with_the_latest_of_them(promises: Promises) -> None:
    promises.claim(KEY, v(1), 0)
    promises.claim(KEY, v(2), LIFE - 1)
    assert standing(promises, now=LIFE) == [v(1), v(2)]
    assert promises.find(KEY, 2 * LIFE - 1) is None


def test_expiring_drops_those_that_are_over_and_no_others(promises: Promises) -> None:
    promises.claim(b"1", v(1), 0)
    promises.claim(b"2", v(1), 100)
    promises.claim(b"1", v(2), 200)  # renewed: now younger than the second
    promises.claim(b"3", v(1), 300)
    promises.expire(LIFE + 100)
    assert len(promises) == 2
    promises.expire(LIFE + 200)
    assert [key for key in (b"1", b"2", b"3") if promises.find(key, LIFE + 200)] == [b"3"]
    promises.expire(LIFE + 300)
    promises.expire(LIFE + 300)
    assert len(promises) == 0


def test_beyond_the_number_of_promises_the_oldest_is_forgotten() -> None:
    promises = Promises(2, LIFE, PATIENCE)
    promises.claim(b"1", v(1), 0)
    promises.ballot(b"2", v(1), 0)
    promises.claim(b"1", v(2), 0)  # renewed: now younger than the second
    promises.claim(b"3", v(1), 0)
    assert len(promises) == 2
    assert [key for key in (b"1", b"2", b"3") if promises.find(key, 0)] == [b"1", b"3"]


steps = st.tuples(
    st.sampled_from(["claim", "ballot", "void", "expire"]),
    st.sampled_from(b"abcd"),
    st.integers(1, 9),
    st.integers(0, 400),
)


@given(st.lists(steps, max_size=60), st.integers(1, 3))
def test_promises_stay_within_their_number_and_hold_together(
    history: list[tuple[str, int, int, int]], most: int
) -> None:
    """Whatever comes, what stands is sorted, its highest is `top`, and a ballot stands alone."""
    promises, now = Promises(most, 1_000, PATIENCE), 0
    for what, letter, n, later in history:
        key, now = bytes([letter]), now + later
        if what == "void":
            promises.void(key)
        elif what == "expire":
            promises.expire(now)
        else:
            getattr(promises, what)(key, v(n), now)
        assert len(promises) <= most
        for promise in (promises.find(bytes([letter]), now) for letter in b"abcd"):
            if promise is not None:
                assert list(promise.standing) == sorted(set(promise.standing))
                assert promise.standing[-1] == promise.top
                assert len(promise.standing) == 1 or not promise.ballot


def test_a_ballot_that_is_given_up_makes_way_at_once() -> None:
    promises = Promises(10, LIFE, PATIENCE)
    promises.ballot(KEY, v(5), 0)
    assert promises.ballot(KEY, v(6), 0) == v(5)
    promises.release(KEY, v(5))
    assert promises.ballot(KEY, v(6), 0) is None


def test_giving_up_concerns_that_ballot_only() -> None:
    promises = Promises(10, LIFE, PATIENCE)
    promises.claim(KEY, v(5), 0)
    promises.release(KEY, v(5))
    assert promises.stands(KEY, v(5), 0), "a claim is no ballot"
    promises.ballot(OTHER, v(7), 0)
    promises.release(OTHER, v(6))
    promises.release(b"never promised", v(6))
    assert promises.stands(OTHER, v(7), 0)
