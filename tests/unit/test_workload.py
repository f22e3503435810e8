"""The values that the clients write betray what happened to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.testing.workload import seal, unseal


@pytest.mark.parametrize("padding", [0, 1, 4000])
def test_a_value_is_recognised_under_its_key_only(padding: int) -> None:
    value = seal("k", "id7", padding)
    assert unseal("k", value) == "id7"
    assert unseal("other", value) is None


@given(st.data())
def test_a_value_that_was_damaged_anywhere_is_not_recognised(data: st.DataObject) -> None:
    value = seal("k", "id7", 5)
    at = data.draw(st.integers(0, len(value) - 1))
    damaged = data.draw(st.sampled_from([value[:at], value[:at] + "~" + value[at + 1 :], value + value, None, 7]))
    assert unseal("k", damaged) is None
