"""Whether two studies are the same to every reader: arrays, geometry, windows, problems."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from lumbar.study import Study


def assert_same_study(cached: Study, read: Study) -> None:
    """Compare a study with what ``read_study`` gave, every slice bit by bit."""
    assert cached.study_id == read.study_id
    assert cached.problems == read.problems
    assert list(cached.series) == list(read.series)
    for name, stacks in read.series.items():
        assert len(cached.series[name]) == len(stacks)
        for left, right in zip(cached.series[name], stacks, strict=True):
            assert np.asarray(left.volume).dtype == np.float32
            for field in fields(right):
                a, b = getattr(left, field.name), getattr(right, field.name)
                if isinstance(b, np.ndarray):
                    assert np.array_equal(np.asarray(a), b, equal_nan=True), field.name
                else:
                    assert a == b, field.name
            assert left.orientation == right.orientation
            assert cached.window(left.series_id) == read.window(right.series_id)
            for index in range(len(right.volume)):
                assert np.array_equal(cached.normalised(left, index), read.normalised(right, index))
