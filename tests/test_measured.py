"""Slow tests and the processes that they start run without coverage, and the tests after them with it again."""

import os

import pytest
from coverage import Coverage

EXIT = os._exit  # while tests are collected, before any slow one has run


def is_measured():
    """Whether this process is, and its children would be."""
    children = any(name.startswith("COVERAGE_PROCESS") for name in os.environ)
    assert children == (Coverage.current() is not None)
    return children


def test_a_quick_test_is_measured_where_coverage_is_asked_for(cov):
    assert is_measured() == (cov is not None)


@pytest.mark.slow
def test_a_slow_test_is_not(cov):
    if cov is None:
        pytest.skip("without --cov no test is measured")
    assert not is_measured()


def test_a_quick_test_after_a_slow_one_is_measured_again(cov):
    assert is_measured() == (cov is not None)
    assert os._exit is EXIT, "coverage wraps it anew whenever it starts"
