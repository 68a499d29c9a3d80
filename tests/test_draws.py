"""Random numbers from keys are those that numpy gives for the same key."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hetcl.draws import digest, generator


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5), max_size=5))
def test_a_generator_is_philox_with_the_digest_as_its_key(key: list[int | str]) -> None:
    ours, theirs = generator(*key), np.random.Generator(np.random.Philox(key=digest(*key)))
    assert (ours.random((3, 4)) == theirs.random((3, 4))).all()
    assert (ours.permutation(9) == theirs.permutation(9)).all()
    assert ours.integers(2**40) == theirs.integers(2**40)
    assert ours.standard_normal() == theirs.standard_normal()
