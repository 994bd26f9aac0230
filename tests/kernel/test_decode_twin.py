"""Levels decoded from tables of scores are those of the slow twin, which scores each step by itself."""

import numpy as np
import pytest

from lumbar.stages.decode import Peak, decode_levels
from reference import decode_twin


def peaks(rng, place, count, n_stacks):
    spread = rng.choice([3.0, 30.0])
    return [
        Peak(place + rng.normal(0, spread, 3), float(rng.uniform(0.03, 1)), int(rng.integers(n_stacks)), 0)
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_levels_are_those_of_the_slow_twin(seed):
    rng = np.random.default_rng(seed)
    n_stacks = int(rng.integers(1, 5))
    steps = [[rng.normal(0, 2), rng.normal(0, 5), -rng.normal(33, 4)] for _ in range(4)]
    places = np.cumsum([[0.0, 0.0, 0.0], *steps], axis=0)
    labelled = [peaks(rng, place, int(rng.integers(0, 3 * n_stacks)), n_stacks) for place in places]
    discs = [peak for place in places for peak in peaks(rng, place, int(rng.integers(0, n_stacks)), n_stacks)]
    for own, twin in zip(
        decode_levels(labelled, discs, n_stacks), decode_twin.decode_levels(labelled, discs, n_stacks), strict=True
    ):
        assert (own is None) == (twin is None)
        if own is not None and twin is not None:
            np.testing.assert_allclose(own[0], twin[0], atol=1e-9)
            assert own[1] == pytest.approx(twin[1], abs=1e-9)
